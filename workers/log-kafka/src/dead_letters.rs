//! Dead letters on Kafka: listed, counted and found by an index of this process, which is read once and then followed.
//!
//! Kafka cannot take single records away: a letter that was sent again is noted in a compacted topic, in the transaction that sends it,
//! and no longer listed.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::ControlFlow,
};

use endcap_runtime::{DeadLetterFilter, DeadLetterId, LogError, StoredDeadLetter};
use endcap_schemas::topics::Topic;
use rdkafka::message::{BorrowedMessage, Message};

use crate::{names::Names, reader::Reader, record};

/// Letters of one partition that are indexed, newest first; older ones are neither listed nor counted.
const INDEXED_MAX: i64 = 50_000;
/// Bytes of values that are kept with the newest letters, so that a list with its contents asks the brokers for nothing.
const KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;

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
        let topic = Topic::PATH.into_iter().find(|topic| topic.name() == name)?;
        Some(Self { topic, partition: partition.parse().ok()?, offset: offset.parse().ok()? })
    }
}

/// What is remembered of a letter: itself, or, when it is not among the newest, itself without its bytes.
#[derive(Debug)]
struct Entry {
    offset: i64,
    letter: StoredDeadLetter,
    whole: bool,
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    lanes: BTreeMap<(Topic, i32), Lane>,
    kept_bytes: usize,
}

#[derive(Debug, Default)]
struct Lane {
    next: i64,
    entries: VecDeque<Entry>,
}

impl Index {
    /// Follows the topics of dead letters to their ends.
    pub(crate) fn refresh(&mut self, reader: &Reader, names: &Names) -> Result<(), LogError> {
        for topic in Topic::PATH {
            let name = names.dead_letters(topic);
            let (mut from, ends) = (BTreeMap::new(), reader.ends(&name)?);
            for (partition, (first, end)) in &ends {
                let lane = self.lanes.entry((topic, *partition)).or_default();
                lane.trim((*first).max(end - INDEXED_MAX), &mut self.kept_bytes);
                if lane.next < *end {
                    from.insert(*partition, lane.next);
                }
            }
            reader.read(&name, &from, |message| {
                self.take(topic, message);
                ControlFlow::Continue(())
            })?;
            for partition in from.keys() {
                // Nothing comes before an end any more.
                let lane = self.lanes.entry((topic, *partition)).or_default();
                lane.next = lane.next.max(ends[partition].1);
            }
        }
        self.shed();
        Ok(())
    }

    fn take(&mut self, topic: Topic, message: &BorrowedMessage<'_>) {
        let spot = Spot { topic, partition: message.partition(), offset: message.offset() };
        let letter = record::stored(topic, spot.id(), message);
        let lane = self.lanes.entry((topic, spot.partition)).or_default();
        lane.next = spot.offset + 1;
        self.kept_bytes += letter.value.len();
        lane.entries.push_back(Entry { offset: spot.offset, letter, whole: true });
    }

    /// Lets the bytes of the oldest letters go until the rest fits.
    fn shed(&mut self) {
        while self.kept_bytes > KEPT_BYTES_MAX {
            let whole = self.lanes.values_mut().filter_map(|lane| lane.entries.iter_mut().find(|entry| entry.whole));
            let Some(oldest) = whole.min_by_key(|entry| entry.letter.at_ms) else { return };
            self.kept_bytes -= oldest.letter.value.len();
            oldest.letter.value = Vec::new();
            oldest.whole = false;
        }
    }

    /// Letters that `filter` lets through and that were not sent again, newest first, without their bytes.
    pub(crate) fn list(&self, filter: &DeadLetterFilter, redriven: &BTreeMap<String, String>) -> Vec<StoredDeadLetter> {
        let user = filter.user.as_ref().map(ToString::to_string);
        let fits = |letter: &&StoredDeadLetter| {
            filter.kind.as_ref().is_none_or(|kind| *kind == letter.kind)
                && filter.stage.as_ref().is_none_or(|stage| *stage == letter.stage)
                && user.as_ref().is_none_or(|user| *user == letter.key)
                && filter.since_ms.is_none_or(|since_ms| letter.at_ms >= since_ms)
        };
        let mut found: Vec<&StoredDeadLetter> = self.letters(redriven).filter(fits).collect();
        found.sort_by_key(|letter| std::cmp::Reverse((letter.at_ms, Spot::of(&letter.id))));
        found.into_iter().take(filter.limit).map(|letter| StoredDeadLetter { value: Vec::new(), ..letter.clone() }).collect()
    }

    /// How many letters there are that were not sent again, by stage and kind.
    pub(crate) fn counts(&self, redriven: &BTreeMap<String, String>) -> BTreeMap<(String, String), u64> {
        let mut counts = BTreeMap::new();
        for letter in self.letters(redriven) {
            *counts.entry((letter.stage.clone(), letter.kind.clone())).or_default() += 1;
        }
        counts
    }

    fn letters<'a>(&'a self, redriven: &'a BTreeMap<String, String>) -> impl Iterator<Item = &'a StoredDeadLetter> {
        let all = self.lanes.values().flat_map(|lane| lane.entries.iter().map(|entry| &entry.letter));
        all.filter(|letter| !redriven.contains_key(letter.id.as_str()))
    }

    /// A letter with its bytes, where the index has them.
    fn whole(&self, spot: Spot) -> Option<&StoredDeadLetter> {
        let entries = &self.lanes.get(&(spot.topic, spot.partition))?.entries;
        let at = entries.binary_search_by_key(&spot.offset, |entry| entry.offset).ok()?;
        entries[at].whole.then_some(&entries[at].letter)
    }
}

impl Lane {
    /// Forgets what stands before `first`.
    fn trim(&mut self, first: i64, kept_bytes: &mut usize) {
        let gone = self.entries.partition_point(|entry| entry.offset < first);
        *kept_bytes -= self.entries.drain(..gone).map(|entry| entry.letter.value.len()).sum::<usize>();
        self.next = self.next.max(first);
    }
}

/// One letter with its bytes, from the index or from the brokers; `None` where none stands.
pub(crate) fn find(index: &Index, reader: &Reader, names: &Names, spot: Spot) -> Result<Option<StoredDeadLetter>, LogError> {
    if let Some(letter) = index.whole(spot) {
        return Ok(Some(letter.clone()));
    }
    let name = names.dead_letters(spot.topic);
    let ends = reader.ends(&name)?;
    if !ends.get(&spot.partition).is_some_and(|(first, end)| (*first..*end).contains(&spot.offset)) {
        return Ok(None);
    }
    let mut found = None;
    reader.read(&name, &BTreeMap::from([(spot.partition, spot.offset)]), |message| {
        if message.offset() == spot.offset {
            found = Some(record::stored(spot.topic, spot.id(), message));
        }
        ControlFlow::Break(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use endcap_runtime::Headers;

    use super::*;

    fn letter(spot: Spot, at_ms: i64, kind: &str, bytes: usize) -> StoredDeadLetter {
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
            key: "default/anna".into(),
            headers: Headers::default(),
            value: vec![0; bytes],
            masked: false,
        }
    }

    fn index(letters: &[(i32, i64, i64, &str, usize)]) -> Index {
        let mut index = Index::default();
        for (partition, offset, at_ms, kind, bytes) in letters {
            let spot = Spot { topic: Topic::EVENTS, partition: *partition, offset: *offset };
            let lane = index.lanes.entry((spot.topic, spot.partition)).or_default();
            lane.next = offset + 1;
            lane.entries.push_back(Entry { offset: *offset, letter: letter(spot, *at_ms, kind, *bytes), whole: true });
            index.kept_bytes += bytes;
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
    fn letters_are_listed_newest_first_over_all_partitions_without_those_sent_again() {
        let index = index(&[(0, 0, 10, "a", 1), (0, 1, 30, "b", 1), (1, 0, 20, "a", 1)]);
        let none = BTreeMap::new();
        let times = |filter: DeadLetterFilter, redriven| -> Vec<i64> {
            index.list(&filter, redriven).iter().map(|letter| letter.at_ms).collect()
        };
        let any = DeadLetterFilter::default;
        assert_eq!(times(any(), &none), [30, 20, 10]);
        assert_eq!(times(DeadLetterFilter { limit: 2, ..any() }, &none), [30, 20]);
        assert_eq!(times(DeadLetterFilter { kind: Some("a".into()), since_ms: Some(15), ..any() }, &none), [20]);
        let sent = BTreeMap::from([("endcap.shopper-events.v1/0/1".to_owned(), "1".to_owned())]);
        assert_eq!(times(any(), &sent), [20, 10]);
        assert_eq!(index.counts(&sent), BTreeMap::from([(("themes".to_owned(), "a".to_owned()), 2)]));
    }

    #[test]
    fn bytes_are_kept_of_the_newest_and_what_retention_took_is_forgotten() {
        let half = KEPT_BYTES_MAX / 2;
        let mut index = index(&[(0, 0, 10, "a", half), (0, 1, 30, "b", half), (1, 5, 20, "a", half)]);
        index.shed();
        let is_whole = |index: &Index, partition, offset| index.whole(Spot { topic: Topic::EVENTS, partition, offset }).is_some();
        assert_eq!([is_whole(&index, 0, 0), is_whole(&index, 0, 1), is_whole(&index, 1, 5)], [false, true, true]);
        let lane = index.lanes.get_mut(&(Topic::EVENTS, 0)).unwrap();
        lane.trim(2, &mut index.kept_bytes);
        assert_eq!((index.kept_bytes, is_whole(&index, 0, 1), is_whole(&index, 1, 5)), (half, false, true));
    }
}
