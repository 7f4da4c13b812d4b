//! Looking into the log: how far groups are, what waits, what stands where.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    sync::{Mutex, MutexGuard, PoisonError},
};

use endcap_runtime::{Backlog, GroupState, LogError, Received};
use endcap_schemas::topics::Topic;
use rdkafka::{
    consumer::{BaseConsumer, Consumer},
    message::Message,
};

use crate::{
    KafkaConfig,
    client::{self, Watch},
    names::Names,
    reader::{self, Reader},
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

/// Looks into the log. One reader serves everybody, one at a time.
pub(crate) struct Inspector {
    config: KafkaConfig,
    names: Names,
    reader: Mutex<Reader>,
    asker: BaseConsumer<Watch>,
    counted: Mutex<Counted>,
    /// Which groups read which topics, as far as is known.
    groups: Mutex<BTreeSet<(String, Topic)>>,
    /// Clients that ask for the positions of a group, by its name; they never join it.
    asking: Mutex<BTreeMap<String, BaseConsumer<Watch>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inspector {
    pub(crate) fn new(config: &KafkaConfig, names: &Names) -> Result<Self, LogError> {
        Ok(Self {
            config: config.clone(),
            names: names.clone(),
            reader: Mutex::new(Reader::new(config, &names.group("endcap.inspect"))?),
            asker: client::create(&config.asker(), Watch::of(config))?,
            counted: Mutex::default(),
            groups: Mutex::default(),
            asking: Mutex::default(),
        })
    }

    /// The reader, for whoever reads besides.
    pub(crate) fn reader(&self) -> MutexGuard<'_, Reader> {
        lock(&self.reader)
    }

    /// Makes a group known before it has committed anything.
    pub(crate) fn declare(&self, group: &str, topic: Topic) {
        lock(&self.groups).insert((group.to_owned(), topic));
    }

    /// Records between `from` and `end` of a partition of the topic `name`.
    pub(crate) fn between(&self, name: &str, partition: i32, from: i64, end: i64) -> Result<Backlog, LogError> {
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
        self.reader().read(name, &BTreeMap::from([(partition, from)]), |message| {
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

    /// How every group of this namespace stands.
    pub(crate) fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        self.discover()?;
        let mut known: Vec<(String, Topic)> = lock(&self.groups).iter().cloned().collect();
        // Along the path: a record that moves on while this is read is seen again, and never by nobody.
        known.sort_by_key(|(_, topic)| Topic::all().position(|other| other == *topic));
        let mut states = Vec::new();
        for (group, topic) in known {
            states.extend(self.group(&group, topic)?);
        }
        states.sort_by(|a, b| (&a.topic, &a.group, a.partition).cmp(&(&b.topic, &b.group, b.partition)));
        Ok(states)
    }

    fn group(&self, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError> {
        let name = self.names.topic(topic);
        let ends = self.reader().ends(&name)?;
        let positions = self.positions(group, &name, i32::try_from(ends.len()).unwrap_or(i32::MAX))?;
        let state = |(partition, (first, end)): (i32, (i64, i64))| {
            let position = positions.get(&partition).copied().unwrap_or(first).max(first);
            let backlog = self.between(&name, partition, position, end)?;
            let (group, topic) = (group.to_owned(), topic.name().to_owned());
            Ok(GroupState { group, topic, partition, position, end, backlog })
        };
        ends.into_iter().map(state).collect()
    }

    fn positions(&self, group: &str, name: &str, partitions: i32) -> Result<BTreeMap<i32, i64>, LogError> {
        let mut asking = lock(&self.asking);
        if !asking.contains_key(group) {
            let client = client::create(&self.config.reader(&self.names.group(group)), Watch::of(&self.config))?;
            asking.insert(group.to_owned(), client);
        }
        reader::committed(&asking[group], name, partitions, self.config.request_timeout())
    }

    /// Finds groups that other processes have, by what they have committed.
    fn discover(&self) -> Result<(), LogError> {
        let found = self
            .asker
            .fetch_group_list(None, self.config.request_timeout())
            .map_err(|error| client::failure("cannot list the groups", &error))?;
        let known: BTreeSet<String> = lock(&self.groups).iter().map(|(group, _)| group.clone()).collect();
        let own = found.groups().iter().filter_map(|group| self.names.own_group(group.name()));
        for group in own.filter(|group| group.starts_with(GROUPS) && !known.contains(*group)) {
            for topic in Topic::all() {
                let name = self.names.topic(topic);
                let partitions = self.reader().partitions(&name)?;
                if !self.positions(group, &name, partitions)?.is_empty() {
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
        let reader = self.reader();
        let (first, end) = reader.end(&name, partition)?;
        let (mut records, mut bytes) = (Vec::new(), 0);
        if max == 0 || from >= end {
            return Ok(records);
        }
        reader.read(&name, &BTreeMap::from([(partition, from.max(first))]), |message| {
            bytes += message.payload_len();
            records.push(record::received(topic, message));
            if records.len() >= max || bytes > READ_BYTES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        drop(reader);
        records.iter_mut().try_for_each(|each| record::unframe(registry, each))?;
        Ok(records)
    }
}
