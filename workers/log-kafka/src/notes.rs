//! Compacted topics read as maps: the latest value of every key. What was read once is not read again.

use std::{collections::BTreeMap, ops::ControlFlow, time::Duration};

use endcap_runtime::{LogError, Tally};
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};

use crate::reader::Reader;

/// A compacted topic of one partition.
#[derive(Debug)]
pub(crate) struct Notes {
    topic: String,
    next: i64,
    latest: BTreeMap<String, String>,
}

impl Notes {
    pub(crate) fn new(topic: String) -> Self {
        Self { topic, next: 0, latest: BTreeMap::new() }
    }

    /// The map as it is now, for those who look.
    pub(crate) fn refresh(&mut self, reader: &Reader) -> Result<&BTreeMap<String, String>, LogError> {
        self.read(reader, reader.asker.end(&self.topic, 0)?)
    }

    /// The map with everything that was written before, for those who go on from it: a sum that is read behind an open transaction of
    /// another writer would be an old one.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] while such a transaction stays open.
    pub(crate) fn whole(&mut self, reader: &Reader) -> Result<&BTreeMap<String, String>, LogError> {
        self.read(reader, reader.asker.whole(&self.topic, 0)?)
    }

    fn read(&mut self, reader: &Reader, (first, end): (i64, i64)) -> Result<&BTreeMap<String, String>, LogError> {
        let Self { topic, next, latest } = self;
        *next = (*next).max(first);
        if *next >= end {
            return Ok(latest);
        }
        let from = BTreeMap::from([(0, *next)]);
        reader.read(topic, &from, |message| {
            let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
            match message.payload() {
                Some(value) => drop(latest.insert(key, String::from_utf8_lossy(value).into_owned())),
                None => drop(latest.remove(&key)),
            }
            *next = message.offset() + 1;
            ControlFlow::Continue(())
        })?;
        *next = (*next).max(end); // nothing comes before an end any more
        Ok(latest)
    }
}

/// Key of what the writer `id` has counted of `stage`: it goes on with its own sum after a new start, and fences whoever had it before.
pub(crate) fn tally_key(stage: &str, id: &str) -> String {
    format!("{stage}@{id}")
}

/// Sums what every writer has counted, by stage.
pub(crate) fn sum(latest: &BTreeMap<String, String>) -> Result<BTreeMap<String, Tally>, LogError> {
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

pub(crate) fn read_tally(key: &str, text: &str) -> Result<Tally, LogError> {
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
