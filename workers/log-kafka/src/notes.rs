//! Compacted topics read as maps: the latest value of every key. What was read once is not read again.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Mutex, time::Duration};

use endcap_runtime::{LogError, Tally};
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};

use crate::{lock::lock, reader::Reader};

/// A compacted topic of one partition. Several may read at once: nothing is locked while the brokers are asked.
#[derive(Debug)]
pub(crate) struct Notes {
    topic: String,
    seen: Mutex<Seen>,
}

/// What was read, up to `next`.
#[derive(Debug, Default)]
struct Seen {
    next: i64,
    latest: Latest,
}

/// The latest value of every key.
pub(crate) type Latest = BTreeMap<String, String>;

impl Notes {
    pub(crate) fn new(topic: String) -> Self {
        Self { topic, seen: Mutex::default() }
    }

    /// What `look` finds in the map as it is now, for those who look.
    pub(crate) fn refreshed<T>(&self, reader: &Reader, look: impl FnOnce(&Latest) -> T) -> Result<T, LogError> {
        self.read(reader, reader.asker.end(&self.topic, 0)?, look)
    }

    /// What `look` finds in the map with everything that was written before, for those who go on from it: a sum that is read behind an open
    /// transaction of another writer would be an old one.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] while such a transaction stays open.
    pub(crate) fn whole<T>(&self, reader: &Reader, look: impl FnOnce(&Latest) -> T) -> Result<T, LogError> {
        self.read(reader, reader.asker.whole(&self.topic, 0)?, look)
    }

    fn read<T>(&self, reader: &Reader, (first, end): (i64, i64), look: impl FnOnce(&Latest) -> T) -> Result<T, LogError> {
        let from = lock(&self.seen).next.max(first);
        if from < end {
            reader.read(&self.topic, &BTreeMap::from([(0, from)]), |message| {
                lock(&self.seen).take(message.offset(), message.key().unwrap_or_default(), message.payload());
                ControlFlow::Continue(())
            })?;
        }
        let mut seen = lock(&self.seen);
        seen.next = seen.next.max(end); // nothing comes before an end any more
        Ok(look(&seen.latest))
    }
}

impl Seen {
    /// Takes a note in, unless another reader has done it. Each begins where the map ends and leaves nothing out.
    fn take(&mut self, offset: i64, key: &[u8], value: Option<&[u8]>) {
        if offset < self.next {
            return;
        }
        self.next = offset + 1;
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        match value {
            Some(value) => drop(self.latest.insert(text(key), text(value))),
            None => drop(self.latest.remove(&text(key))),
        }
    }
}

/// Key of what the writer `id` has counted of `stage`: it goes on with its own sum after a new start, and fences whoever had it before.
pub(crate) fn tally_key(stage: &str, id: &str) -> String {
    format!("{stage}@{id}")
}

/// Sums what every writer has counted, by stage.
pub(crate) fn sum(latest: &Latest) -> Result<BTreeMap<String, Tally>, LogError> {
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    for (key, text) in latest {
        let Some((stage, _)) = key.split_once('@') else { continue };
        *tallies.entry(stage.to_owned()).or_default() += &read_tally(key, text)?;
    }
    Ok(tallies)
}

/// A tally as it is noted. Times are kept in microseconds.
#[derive(Serialize, Deserialize)]
struct Noted {
    received: u64,
    passed: u64,
    batches: u64,
    dropped: BTreeMap<String, u64>,
    dead_lettered: BTreeMap<String, u64>,
    counters: BTreeMap<String, u64>,
    spent_us: BTreeMap<String, u64>,
}

pub(crate) fn write_tally(tally: &Tally) -> String {
    let micros = |time: &Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let noted = Noted {
        received: tally.received,
        passed: tally.passed,
        batches: tally.batches,
        dropped: tally.dropped.clone(),
        dead_lettered: tally.dead_lettered.clone(),
        counters: tally.counters.clone(),
        spent_us: tally.spent.iter().map(|(name, time)| (name.clone(), micros(time))).collect(),
    };
    serde_json::to_string(&noted).expect("a tally is names and numbers")
}

/// What is noted under `key`; nothing where there is no note.
pub(crate) fn tally_of(latest: &Latest, key: &str) -> Result<Tally, LogError> {
    latest.get(key).map_or_else(|| Ok(Tally::default()), |text| read_tally(key, text))
}

fn read_tally(key: &str, text: &str) -> Result<Tally, LogError> {
    let noted: Noted = serde_json::from_str(text)
        .map_err(|error| LogError::Corrupt(format!("the tally {key} cannot be read: {error}; a newer release has written it")))?;
    Ok(Tally {
        received: noted.received,
        passed: noted.passed,
        batches: noted.batches,
        dropped: noted.dropped,
        dead_lettered: noted.dead_lettered,
        counters: noted.counters,
        spent: noted.spent_us.into_iter().map(|(name, us)| (name, Duration::from_micros(us))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use endcap_runtime::{DropReason, Phase};

    use super::*;

    #[test]
    fn two_who_read_at_once_end_in_the_latest_values() {
        let notes: [(i64, &str, Option<&str>); 5] =
            [(0, "a", Some("1")), (2, "b", Some("2")), (3, "a", None), (5, "b", Some("3")), (6, "c", Some("4"))];
        let expected = BTreeMap::from([("b", "3"), ("c", "4")].map(|(key, value)| (key.to_owned(), value.to_owned())));
        // Where the second begins to read, of what the first has read already.
        for head_start in 0..=notes.len() {
            let (mut seen, mut places) = (Seen::default(), [head_start, 0]);
            notes[..head_start]
                .iter()
                .for_each(|(offset, key, value)| seen.take(*offset, key.as_bytes(), value.map(str::as_bytes)));
            while places != [notes.len(); 2] {
                for place in places.iter_mut().filter(|place| **place < notes.len()) {
                    let (offset, key, value) = notes[*place];
                    seen.take(offset, key.as_bytes(), value.map(str::as_bytes));
                    *place += 1;
                }
            }
            assert_eq!((&seen.latest, seen.next), (&expected, 7), "a head start of {head_start}");
        }
    }

    #[test]
    fn tallies_come_back_and_are_summed_over_all_writers() {
        let mut tally = Tally::default();
        tally.pass();
        tally.drop_for(DropReason::Expired);
        tally.dead_letter("malformed");
        tally.count("tokens", 5);
        tally.spend(Phase::Infer, Duration::from_micros(1_500));
        tally.batches = 1;
        let text = write_tally(&tally);
        assert_eq!(read_tally("s@a", &text).unwrap(), tally);
        let latest = BTreeMap::from([
            (tally_key("s", "ns.s.a"), text.clone()),
            (tally_key("s", "ns.s.b"), text.clone()),
            (tally_key("t", "ns.t.a"), text),
        ]);
        let sums = sum(&latest).unwrap();
        assert_eq!((sums["s"].received, sums["t"].received, sums["s"].counters["tokens"]), (6, 3, 10));
        let broken = BTreeMap::from([("s@a".to_owned(), "{}".to_owned())]);
        assert!(sum(&broken).unwrap_err().to_string().contains("s@a"));
    }
}
