//! Dead letters on Kafka: listed, counted and found by an index of this process, which is read once and then followed.
//!
//! The index knows where each letter stands and what lists choose by; the letters themselves are read when somebody wants to see them.
//! Kafka cannot take single records away: a letter that was sent again is noted in a compacted topic, in the transaction that sends it,
//! and no longer listed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::ControlFlow,
    sync::Mutex,
};

use endcap_runtime::{DeadLetterFilter, DeadLetterId, LogError, StoredDeadLetter};
use endcap_schemas::topics::Topic;
use rdkafka::message::{BorrowedMessage, Message};

use crate::{asker::Ends, lock::lock, names::Names, reader::Reader, record};

/// Letters of one partition that are indexed, newest first; older ones are neither listed nor counted.
const INDEXED_MAX: i64 = 50_000;
/// Bytes of values that are kept of the letters that were listed last: whoever lists letters looks into some of them next.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Letters in between that are read along, in place of reading twice.
const READ_ALONG_MAX: i64 = 100;

/// Where a letter stands: its topic's place on the path, partition and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Spot {
    pub(crate) topic: Topic,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
}

impl Spot {
    /// Its id: the name of the topic that the record came from, and where in that topic's dead letters it stands.
    pub(crate) fn id(self) -> DeadLetterId {
        DeadLetterId::new(format!("{}/{}/{}", self.topic, self.partition, self.offset))
    }

    /// Reads an id; `None` for one of another log.
    pub(crate) fn of(id: &DeadLetterId) -> Option<Self> {
        let mut parts = id.as_str().rsplitn(3, '/');
        let (offset, partition, name) = (parts.next()?, parts.next()?, parts.next()?);
        let topic = Topic::LIVE.into_iter().find(|topic| topic.name() == name)?;
        Some(Self { topic, partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// The spots that notes have under their ids.
pub(crate) fn spots(notes: &BTreeMap<String, String>) -> BTreeSet<Spot> {
    notes.keys().filter_map(|id| Spot::of(&DeadLetterId::new(id.as_str()))).collect()
}

/// What lists choose a letter by.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: i64,
    at_ms: i64,
    /// Place of its stage and kind in [`Index::labels`].
    label: usize,
    /// Of its key.
    hash: [u8; 8],
}

/// Which letters there are.
#[derive(Debug, Default)]
struct Index {
    partitions: BTreeMap<(Topic, i32), Entries>,
    /// Stage and kind of letters; there are few of them.
    labels: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Entries {
    next: i64,
    entries: VecDeque<Entry>,
}

/// The index, and the letters that were listed last. Several may read at once: nothing is locked while the brokers are asked.
#[derive(Debug, Default)]
pub(crate) struct Letters {
    index: Mutex<Index>,
    kept: Mutex<BTreeMap<Spot, StoredDeadLetter>>,
}

impl Letters {
    /// Follows the topics of dead letters to their ends.
    pub(crate) fn refresh(&self, reader: &Reader, names: &Names) -> Result<(), LogError> {
        for topic in Topic::LIVE {
            let name = names.dead_letters(topic);
            let ends = reader.asker.ends(&name)?;
            let from = lock(&self.index).unread(topic, &ends);
            reader.read(&name, &from, |message| {
                let letter = stored(topic, message);
                lock(&self.index).take(topic, message.partition(), message.offset(), &letter);
                ControlFlow::Continue(())
            })?;
            lock(&self.index).reached(topic, from.keys().map(|partition| (*partition, ends[partition].1)));
        }
        Ok(())
    }

    /// Letters that `filter` lets through and that were not sent again, newest first, without their bytes.
    pub(crate) fn list(
        &self,
        reader: &Reader,
        names: &Names,
        filter: &DeadLetterFilter,
        redriven: &BTreeSet<Spot>,
    ) -> Result<Vec<StoredDeadLetter>, LogError> {
        let chosen = lock(&self.index).chosen(filter, redriven);
        let (mut found, mut kept, mut kept_bytes) = (BTreeMap::new(), BTreeMap::new(), 0);
        for run in runs(&chosen) {
            read_run(reader, names, &run, |spot, letter| {
                kept_bytes += letter.value.len();
                found.insert(spot, StoredDeadLetter { value: Vec::new(), ..letter.clone() });
                if kept_bytes <= KEPT_BYTES_MAX {
                    kept.insert(spot, letter);
                }
            })?;
        }
        *lock(&self.kept) = kept;
        Ok(chosen.iter().filter_map(|spot| found.remove(spot)).collect())
    }

    /// How many letters there are that were not sent again, by stage and kind.
    pub(crate) fn counts(&self, redriven: &BTreeSet<Spot>) -> BTreeMap<(String, String), u64> {
        lock(&self.index).counts(redriven)
    }

    /// A letter with its bytes, where it is among those that were listed last.
    pub(crate) fn kept(&self, spot: Spot) -> Option<StoredDeadLetter> {
        lock(&self.kept).get(&spot).cloned()
    }
}

impl Index {
    /// From where on the partitions of `topic` are to be read, of those that have more than is known. Forgets what stands before their firsts.
    fn unread(&mut self, topic: Topic, ends: &Ends) -> BTreeMap<i32, i64> {
        let mut from = BTreeMap::new();
        for (partition, (first, end)) in ends {
            let found = self.partitions.entry((topic, *partition)).or_default();
            found.trim((*first).max(end - INDEXED_MAX));
            if found.next < *end {
                from.insert(*partition, found.next);
            }
        }
        from
    }

    /// Nothing comes before these ends any more.
    fn reached(&mut self, topic: Topic, ends: impl Iterator<Item = (i32, i64)>) {
        for (partition, end) in ends {
            let found = self.partitions.entry((topic, partition)).or_default();
            found.next = found.next.max(end);
        }
    }

    /// Takes a letter in, unless another reader has done it. Each begins where the index ends and leaves nothing out.
    fn take(&mut self, topic: Topic, partition: i32, offset: i64, letter: &StoredDeadLetter) {
        let is_its = |(stage, kind): &(String, String)| *stage == letter.stage && *kind == letter.kind;
        let label = self.labels.iter().position(is_its).unwrap_or_else(|| {
            self.labels.push((letter.stage.clone(), letter.kind.clone()));
            self.labels.len() - 1
        });
        let found = self.partitions.entry((topic, partition)).or_default();
        if offset >= found.next {
            found.next = offset + 1;
            found.entries.push_back(Entry { offset, at_ms: letter.at_ms, label, hash: hash_of(&letter.key) });
        }
    }

    /// Where the letters stand that `filter` lets through, newest first.
    fn chosen(&self, filter: &DeadLetterFilter, redriven: &BTreeSet<Spot>) -> Vec<Spot> {
        let user = filter.user.as_ref().map(|user| hash_of(&user.to_string()));
        let fits = |entry: &Entry| {
            let (stage, kind) = &self.labels[entry.label];
            filter.kind.as_ref().is_none_or(|wanted| wanted == kind)
                && filter.stage.as_ref().is_none_or(|wanted| wanted == stage)
                && user.is_none_or(|user| user == entry.hash)
                && filter.since_ms.is_none_or(|since_ms| entry.at_ms >= since_ms)
        };
        let mut found: Vec<(i64, Spot)> =
            self.entries(redriven).filter(|(_, entry)| fits(entry)).map(|(spot, entry)| (entry.at_ms, spot)).collect();
        found.sort_by_key(|place| std::cmp::Reverse(*place));
        found.into_iter().take(filter.limit).map(|(_, spot)| spot).collect()
    }

    fn counts(&self, redriven: &BTreeSet<Spot>) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        for (_, entry) in self.entries(redriven) {
            *counts.entry(self.labels[entry.label].clone()).or_default() += 1;
        }
        counts
    }

    fn entries<'a>(&'a self, redriven: &'a BTreeSet<Spot>) -> impl Iterator<Item = (Spot, &'a Entry)> {
        let all = self.partitions.iter().flat_map(|((topic, partition), found)| {
            found.entries.iter().map(|entry| (Spot { topic: *topic, partition: *partition, offset: entry.offset }, entry))
        });
        all.filter(|(spot, _)| !redriven.contains(spot))
    }
}

impl Entries {
    /// Forgets what stands before `first`.
    fn trim(&mut self, first: i64) {
        let gone = self.entries.partition_point(|entry| entry.offset < first);
        self.entries.drain(..gone);
        self.next = self.next.max(first);
    }
}

fn hash_of(key: &str) -> [u8; 8] {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
    hash
}

fn stored(topic: Topic, message: &BorrowedMessage<'_>) -> StoredDeadLetter {
    let spot = Spot { topic, partition: message.partition(), offset: message.offset() };
    record::stored(topic, spot.id(), message)
}

/// Spots of one partition that stand near each other, in order, so that they are read at once.
fn runs(spots: &[Spot]) -> Vec<Vec<Spot>> {
    let mut runs: Vec<Vec<Spot>> = Vec::new();
    for spot in spots.iter().copied().collect::<BTreeSet<_>>() {
        let is_near = |last: &Spot| {
            (last.topic, last.partition) == (spot.topic, spot.partition) && spot.offset - last.offset <= READ_ALONG_MAX
        };
        match runs.last_mut().filter(|run| run.last().is_some_and(is_near)) {
            Some(run) => run.push(spot),
            None => runs.push(vec![spot]),
        }
    }
    runs
}

/// Reads the letters of a run; one that retention has taken is left out.
fn read_run(reader: &Reader, names: &Names, run: &[Spot], mut each: impl FnMut(Spot, StoredDeadLetter)) -> Result<(), LogError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
    reader.read(&names.dead_letters(first.topic), &BTreeMap::from([(first.partition, first.offset)]), |message| {
        let spot = Spot { offset: message.offset(), ..*first };
        if run.binary_search(&spot).is_ok() {
            each(spot, stored(first.topic, message));
        }
        if spot.offset >= last.offset { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// One letter with its bytes, from the brokers; `None` where none stands.
pub(crate) fn find(reader: &Reader, names: &Names, spot: Spot) -> Result<Option<StoredDeadLetter>, LogError> {
    let ends = reader.asker.ends(&names.dead_letters(spot.topic))?;
    if !ends.get(&spot.partition).is_some_and(|(first, end)| (*first..*end).contains(&spot.offset)) {
        return Ok(None);
    }
    let mut found = None;
    read_run(reader, names, &[spot], |_, letter| found = Some(letter))?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Headers;
    use endcap_schemas::UserKey;

    use super::*;

    fn spot(partition: i32, offset: i64) -> Spot {
        Spot { topic: Topic::EVENTS, partition, offset }
    }

    fn letter(spot: Spot, at_ms: i64, kind: &str, user: &str) -> StoredDeadLetter {
        StoredDeadLetter {
            id: spot.id(),
            at_ms,
            stage: "themes".into(),
            group: "g".into(),
            attempts: 1,
            kind: kind.into(),
            message: String::new(),
            topic: spot.topic.name().into(),
            partition: 0,
            offset: 0,
            appended_ms: 0,
            key: format!("default/{user}"),
            headers: Headers::default(),
            value: vec![0; 10],
            masked: false,
        }
    }

    fn index(letters: &[(i32, i64, i64, &str, &str)]) -> Index {
        let mut index = Index::default();
        for (partition, offset, at_ms, kind, user) in letters {
            index.take(Topic::EVENTS, *partition, *offset, &letter(spot(*partition, *offset), *at_ms, kind, user));
        }
        index
    }

    #[test]
    fn an_id_names_topic_partition_and_offset_and_every_other_text_is_none() {
        let spot = Spot { topic: Topic::CONTEXTS, partition: 3, offset: 41 };
        assert_eq!(spot.id().as_str(), "endcap.context-changed.v1/3/41");
        assert_eq!(Spot::of(&spot.id()), Some(spot));
        for other in ["17", "", "a/1/2", "endcap.context-changed.v1/x/1", "endcap.context-changed.v1/1"] {
            assert_eq!(Spot::of(&DeadLetterId::new(other)), None, "{other}");
        }
    }

    #[test]
    fn letters_are_chosen_newest_first_over_all_partitions_without_those_sent_again() {
        let index = index(&[(0, 0, 10, "a", "anna"), (0, 1, 30, "b", "anna"), (1, 0, 20, "a", "bert")]);
        let none = BTreeSet::new();
        let chosen = |filter: DeadLetterFilter, redriven| -> Vec<(i32, i64)> {
            index.chosen(&filter, redriven).iter().map(|spot| (spot.partition, spot.offset)).collect()
        };
        let any = DeadLetterFilter::default;
        assert_eq!(chosen(any(), &none), [(0, 1), (1, 0), (0, 0)]);
        assert_eq!(chosen(DeadLetterFilter { limit: 2, ..any() }, &none), [(0, 1), (1, 0)]);
        assert_eq!(chosen(DeadLetterFilter { kind: Some("a".into()), since_ms: Some(15), ..any() }, &none), [(1, 0)]);
        assert_eq!(chosen(DeadLetterFilter { user: Some(UserKey::of("anna")), ..any() }, &none), [(0, 1), (0, 0)]);
        let sent = spots(&BTreeMap::from([("endcap.shopper-events.v1/0/1".to_owned(), "1".to_owned())]));
        assert_eq!(chosen(any(), &sent), [(1, 0), (0, 0)]);
        assert_eq!(index.counts(&sent), BTreeMap::from([(("themes".to_owned(), "a".to_owned()), 2)]));
    }

    #[test]
    fn what_retention_took_is_forgotten() {
        let mut index = index(&[(0, 0, 10, "a", "anna"), (0, 1, 30, "b", "anna"), (1, 5, 20, "a", "anna")]);
        index.partitions.get_mut(&(Topic::EVENTS, 0)).unwrap().trim(2);
        assert_eq!(index.chosen(&DeadLetterFilter::default(), &BTreeSet::new()), [spot(1, 5)]);
    }

    #[test]
    fn of_two_who_read_at_once_each_begins_where_the_index_ends_and_takes_what_the_other_has_not() {
        let (ends, mut index) = (Ends::from([(0, (0, 4))]), Index::default());
        let mut readers = [0, 1].map(|_| index.unread(Topic::EVENTS, &ends)[&0]);
        for reader in [0, 0, 1, 0, 1, 1, 1, 0] {
            let offset = readers[reader];
            index.take(Topic::EVENTS, 0, offset, &letter(spot(0, offset), 10 + offset, "a", "anna"));
            readers[reader] += 1;
        }
        index.reached(Topic::EVENTS, [(0, 4)].into_iter());
        let all = index.chosen(&DeadLetterFilter::default(), &BTreeSet::new());
        assert_eq!(all, [spot(0, 3), spot(0, 2), spot(0, 1), spot(0, 0)]);
        assert!(index.unread(Topic::EVENTS, &ends).is_empty());
    }

    #[test]
    fn letters_that_stand_near_each_other_are_read_at_once() {
        let chosen = [spot(0, 500), spot(1, 7), spot(0, 100), spot(0, 120), spot(0, 220)];
        assert_eq!(runs(&chosen), [vec![spot(0, 100), spot(0, 120), spot(0, 220)], vec![spot(0, 500)], vec![spot(1, 7)]]);
    }
}
