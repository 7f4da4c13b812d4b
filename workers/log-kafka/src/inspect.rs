//! Looking into the log: how far groups are, what waits, what stands where.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use endcap_runtime::{Backlog, GroupState, LogError, Received};
use endcap_schemas::topics::{Lane, Topic};
use rdkafka::message::Message;

use crate::{
    asker::{Asker, Ends},
    lock::lock,
    names::Names,
    reader::{Reader, Readers},
    record,
    registry::Registry,
};

/// Offsets between a position and the end up to which records are counted one by one. Beyond it the offsets are taken for records,
/// although the ends of transactions take offsets too.
const COUNTED_MAX: i64 = 512;
/// Bytes of values after which a read is cut short.
const READ_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Counts that are remembered: while nothing moves, nothing is read.
const REMEMBERED_MAX: usize = 1_024;
/// What groups of Endcap begin with.
const GROUPS: &str = "endcap.";

/// What was counted last: topic, partition and position → end and backlog.
type Counted = BTreeMap<(String, i32, i64), (i64, Backlog)>;

/// Looks into the log.
pub(crate) struct Inspector {
    names: Names,
    asker: Arc<Asker>,
    readers: Arc<Readers>,
    counted: Mutex<Counted>,
    /// Which groups read which topics, as far as is known.
    groups: Mutex<BTreeSet<(String, Topic)>>,
}

impl Inspector {
    pub(crate) fn new(names: &Names, asker: &Arc<Asker>, readers: &Arc<Readers>) -> Self {
        let (counted, groups) = (Mutex::default(), Mutex::default());
        Self { names: names.clone(), asker: asker.clone(), readers: readers.clone(), counted, groups }
    }

    /// The readers, for whoever reads besides.
    pub(crate) fn readers(&self) -> &Readers {
        &self.readers
    }

    /// Makes a group known before it has committed anything.
    pub(crate) fn declare(&self, group: &str, topic: Topic) {
        lock(&self.groups).insert((group.to_owned(), topic));
    }

    /// Where the partitions of `topic` begin and end.
    pub(crate) fn ends(&self, topic: Topic) -> Result<Ends, LogError> {
        self.asker.ends(&self.names.topic(topic))
    }

    /// Per partition, the offset of the first record of `topic` with this time (ms) or a later one.
    pub(crate) fn offsets_at(&self, topic: Topic, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        self.asker.at_time(&self.names.topic(topic), at_ms)
    }

    /// How every group of this namespace stands.
    pub(crate) fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        let reader = self.readers.lend()?;
        let mut states = Vec::new();
        for (group, topic) in self.known()? {
            states.extend(self.states(&reader, &group, topic)?);
        }
        states.sort_by(|a, b| (&a.topic, &a.group, a.partition).cmp(&(&b.topic, &b.group, b.partition)));
        Ok(states)
    }

    /// How one group stands.
    pub(crate) fn group(&self, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError> {
        let reader = self.readers.lend()?;
        self.states(&reader, group, topic)
    }

    fn states(&self, reader: &Reader, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError> {
        let name = self.names.topic(topic);
        let ends = self.asker.ends(&name)?;
        let positions = self.asker.positions(group, &name, count_of(&ends))?;
        let state = |(partition, (first, end)): (i32, (i64, i64))| {
            let position = positions.get(&partition).copied().unwrap_or(first).max(first);
            let backlog = self.between(reader, &name, partition, position, end)?;
            let (group, topic) = (group.to_owned(), topic.name().to_owned());
            Ok(GroupState { group, topic, partition, position, end, backlog })
        };
        ends.into_iter().map(state).collect()
    }

    /// Records between `from` and `end` of a partition of the topic `name`.
    fn between(&self, reader: &Reader, name: &str, partition: i32, from: i64, end: i64) -> Result<Backlog, LogError> {
        if end <= from {
            return Ok(Backlog::default());
        }
        let place = (name.to_owned(), partition, from);
        if let Some((known, backlog)) = lock(&self.counted).get(&place)
            && *known == end
        {
            return Ok(*backlog);
        }
        let few = end - from <= COUNTED_MAX;
        let mut backlog = Backlog::default();
        reader.read(name, &BTreeMap::from([(partition, from)]), |message| {
            backlog.waiting += 1;
            backlog.oldest_ms = backlog.oldest_ms.or(message.timestamp().to_millis());
            if few { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if !few {
            backlog.waiting = (end - from).unsigned_abs();
        }
        let mut counted = lock(&self.counted);
        if counted.len() >= REMEMBERED_MAX {
            counted.clear();
        }
        counted.insert(place, (end, backlog));
        Ok(backlog)
    }

    /// Per lane, the topic whose group is furthest behind, and how far; in offsets, as nothing is read for it.
    pub(crate) fn furthest_behind(&self) -> Result<BTreeMap<Lane, (Topic, u64)>, LogError> {
        let mut furthest: BTreeMap<Lane, (Topic, u64)> = BTreeMap::new();
        for (group, topic) in self.known()? {
            let name = self.names.topic(topic);
            let ends = self.asker.ends_now(&name)?;
            let positions = self.asker.positions_now(&group, &name, count_of(&ends))?;
            let offsets = ends.iter().map(|(partition, (first, end))| {
                let position = positions.get(partition).copied().unwrap_or(*first).max(*first);
                (end - position).max(0).unsigned_abs()
            });
            let behind = (topic, offsets.sum());
            let lane = furthest.entry(topic.lane()).or_insert(behind);
            if behind.1 > lane.1 {
                *lane = behind;
            }
        }
        Ok(furthest)
    }

    /// The groups and their topics, along the path: a record that moves on while this is read is seen again, and never by nobody.
    fn known(&self) -> Result<Vec<(String, Topic)>, LogError> {
        self.discover()?;
        let mut known: Vec<(String, Topic)> = lock(&self.groups).iter().cloned().collect();
        known.sort_by_key(|(_, topic)| Topic::all().position(|other| other == *topic));
        Ok(known)
    }

    /// Finds groups that other processes have, by what they have committed.
    fn discover(&self) -> Result<(), LogError> {
        let known: BTreeSet<String> = lock(&self.groups).iter().map(|(group, _)| group.clone()).collect();
        let found = self.asker.groups()?;
        for group in found.iter().filter(|group| group.starts_with(GROUPS) && !known.contains(*group)) {
            for topic in Topic::all() {
                let name = self.names.topic(topic);
                let partitions = self.asker.partitions(&name)?;
                if !self.asker.positions(group, &name, partitions)?.is_empty() {
                    self.declare(group, topic);
                }
            }
        }
        Ok(())
    }

    /// Up to `max` records of a partition from offset `from` on, and not many more bytes than a limit.
    pub(crate) fn records(
        &self,
        registry: Option<&Registry>,
        topic: Topic,
        partition: i32,
        from: i64,
        max: usize,
    ) -> Result<Vec<Received>, LogError> {
        let name = self.names.topic(topic);
        let (first, end) = self.asker.end(&name, partition)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        if max == 0 || from >= end {
            return Ok(records);
        }
        self.readers.lend()?.read(&name, &BTreeMap::from([(partition, from.max(first))]), |message| {
            bytes += message.payload_len();
            records.push(record::received(topic, message));
            if records.len() >= max || bytes > READ_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        if let Some(registry) = registry {
            records.iter_mut().try_for_each(|each| record::unframe(registry, each))?;
        }
        Ok(records)
    }
}

fn count_of(ends: &Ends) -> i32 {
    i32::try_from(ends.len()).unwrap_or(i32::MAX)
}
