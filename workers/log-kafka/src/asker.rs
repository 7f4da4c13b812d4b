//! Questions to the brokers that read no record: topics and their ends, groups and their positions. Any thread may ask at any time; nobody
//! waits for another's answer.
//!
//! A commit is answered a moment before its records and positions can be read: the brokers mark them afterwards. Whoever asks for settled
//! ends or positions waits for that moment, so that everything is seen that was answered before. A transaction that somebody has left open is
//! waited for longer only by those who decide by what stands behind it ([`Asker::whole`]).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use endcap_runtime::LogError;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use crate::{
    KafkaConfig,
    client::{self, Watch, is_between_coordinators},
    lock::lock,
    names::Names,
    tender::Tender,
};

/// Longest wait for transactions that are not marked yet, and how often they are looked after.
const SETTLED_IN: Duration = Duration::from_millis(500);
const SETTLE_STEP: Duration = Duration::from_millis(2);
/// How often is asked again while a leader or a coordinator is changing.
const MOVE_STEP: Duration = Duration::from_millis(20);

/// What a client sees: what is committed alone, or all. Positions that an open transaction would move are not told to the former.
type Isolation = &'static str;
const COMMITTED: Isolation = "read_committed";
const ALL: Isolation = "read_uncommitted";

/// First offset that is there and the one behind the last, per partition.
pub(crate) type Ends = BTreeMap<i32, (i64, i64)>;

type ByGroup = BTreeMap<(String, Isolation), Arc<BaseConsumer<Watch>>>;

/// Asks.
pub(crate) struct Asker {
    config: KafkaConfig,
    names: Names,
    tender: Arc<Tender>,
    /// Sees what is committed.
    committed: Arc<BaseConsumer<Watch>>,
    /// Sees what is not committed yet, too.
    raw: Arc<BaseConsumer<Watch>>,
    /// Clients that ask for the positions of a group, by its name and what they see; they never join it.
    groups: Mutex<ByGroup>,
}

impl Asker {
    pub(crate) fn new(config: &KafkaConfig, names: &Names, tender: &Arc<Tender>) -> Result<Self, LogError> {
        let client = |isolation: Isolation| tender.consumer(config.asker().set("isolation.level", isolation), config);
        Ok(Self {
            config: config.clone(),
            names: names.clone(),
            tender: tender.clone(),
            committed: client(COMMITTED)?,
            raw: client(ALL)?,
            groups: Mutex::default(),
        })
    }

    /// How many partitions `topic` has.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when it is not there.
    pub(crate) fn partitions(&self, topic: &str) -> Result<i32, LogError> {
        let asked = || format!("cannot ask for topic {topic}");
        let timeout = self.config.request_timeout();
        let metadata = self.committed.fetch_metadata(Some(topic), timeout).map_err(|error| client::failure(&asked(), &error))?;
        let found = metadata.topics().first().map(|found| (found.partitions().len(), found.error()));
        match found {
            Some((count, None)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
            Some((_, Some(error))) => Err(client::failure(&asked(), &KafkaError::MetadataFetch(error.into()))),
            _ => Err(client::failure(&asked(), &KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition))),
        }
    }

    /// Where the partitions of `topic` begin, and where what is committed so far ends.
    pub(crate) fn ends(&self, topic: &str) -> Result<Ends, LogError> {
        let partitions: Vec<i32> = (0..self.partitions(topic)?).collect();
        self.settled(topic, &partitions)
    }

    /// The same as it can be read at this moment, without waiting for what is being marked.
    pub(crate) fn ends_now(&self, topic: &str) -> Result<Ends, LogError> {
        let partitions: Vec<i32> = (0..self.partitions(topic)?).collect();
        let ends = offsets_at(&self.committed, topic, &partitions, Offset::End, self.config.request_timeout())?;
        self.with_firsts(topic, &partitions, ends)
    }

    /// Where one partition begins, and where what is committed so far ends.
    pub(crate) fn end(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let ends = self.settled(topic, &[partition])?;
        ends.get(&partition).copied().ok_or_else(|| LogError::Unavailable(format!("nobody tells the end of {topic}/{partition}")))
    }

    /// The same behind everything that was written before this question.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] while a transaction that began earlier stays open; the brokers end it after its time.
    pub(crate) fn whole(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let (ends, is_settled) = self.settle(topic, &[partition], self.config.request_timeout())?;
        match self.with_firsts(topic, &[partition], ends)?.get(&partition) {
            Some(end) if is_settled => Ok(*end),
            _ => Err(LogError::Unavailable(format!("a transaction of another writer to {topic} is not over yet"))),
        }
    }

    /// Per partition, the offset of the first record with this time (ms) or a later one. Of a partition that has none the brokers say nothing:
    /// that means its end, and not its beginning.
    pub(crate) fn at_time(&self, topic: &str, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        let ends = self.ends(topic)?;
        let partitions: Vec<i32> = ends.keys().copied().collect();
        let found = offsets_at(&self.committed, topic, &partitions, Offset::Offset(at_ms), self.config.request_timeout())?;
        let or_end = |(partition, (_, end))| (partition, found.get(&partition).map_or(end, |offset| (*offset).min(end)));
        Ok(ends.into_iter().map(or_end).collect())
    }

    fn settled(&self, topic: &str, partitions: &[i32]) -> Result<Ends, LogError> {
        let (ends, _) = self.settle(topic, partitions, SETTLED_IN)?;
        self.with_firsts(topic, partitions, ends)
    }

    /// Ends of what is committed, and whether they are behind everything that was written before: waits for that for `patience`.
    fn settle(&self, topic: &str, partitions: &[i32], patience: Duration) -> Result<(BTreeMap<i32, i64>, bool), LogError> {
        let timeout = self.config.request_timeout();
        let written = offsets_at(&self.raw, topic, partitions, Offset::End, timeout)?;
        let deadline = Instant::now() + patience;
        loop {
            let ends = offsets_at(&self.committed, topic, partitions, Offset::End, timeout)?;
            let is_settled = written.iter().all(|(partition, written)| ends.get(partition).is_some_and(|end| end >= written));
            if is_settled || Instant::now() >= deadline {
                return Ok((ends, is_settled));
            }
            std::thread::sleep(SETTLE_STEP);
        }
    }

    fn with_firsts(&self, topic: &str, partitions: &[i32], ends: BTreeMap<i32, i64>) -> Result<Ends, LogError> {
        let firsts = offsets_at(&self.committed, topic, partitions, Offset::Beginning, self.config.request_timeout())?;
        Ok(ends.into_iter().filter_map(|(partition, end)| Some((partition, (*firsts.get(&partition)?, end)))).collect())
    }

    /// Names of the groups of this namespace, with those of other processes.
    pub(crate) fn groups(&self) -> Result<Vec<String>, LogError> {
        let timeout = self.config.request_timeout();
        let found = once_settled(timeout, || self.committed.fetch_group_list(None, timeout));
        let found = found.map_err(|error| client::failure("cannot list the groups", &error))?;
        Ok(found.groups().iter().filter_map(|group| self.names.own_group(group.name())).map(str::to_owned).collect())
    }

    /// Positions of `group` on `topic`, where it has committed any.
    pub(crate) fn positions(&self, group: &str, topic: &str, partitions: i32) -> Result<BTreeMap<i32, i64>, LogError> {
        let settled = committed_offsets(&*self.client_of(group, COMMITTED)?, range(topic, partitions), SETTLED_IN);
        settled.or_else(|_| self.positions_now(group, topic, partitions))
    }

    /// The same as they are at this moment, without waiting for what is being marked.
    pub(crate) fn positions_now(&self, group: &str, topic: &str, partitions: i32) -> Result<BTreeMap<i32, i64>, LogError> {
        committed_offsets(&*self.client_of(group, ALL)?, range(topic, partitions), self.config.request_timeout())
    }

    fn client_of(&self, group: &str, isolation: Isolation) -> Result<Arc<BaseConsumer<Watch>>, LogError> {
        let mut groups = lock(&self.groups);
        let key = (group.to_owned(), isolation);
        if let Some(client) = groups.get(&key) {
            return Ok(client.clone());
        }
        let mut config = self.config.reader(&self.names.group(group));
        let client = self.tender.consumer(config.set("isolation.level", isolation), &self.config)?;
        groups.insert(key, client.clone());
        Ok(client)
    }
}

fn range(topic: &str, partitions: i32) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    list
}

/// Where `which` ([`Offset::Beginning`] or [`Offset::End`]) is in `partitions` of `topic`, as `client` sees it: one question for all of them.
pub(crate) fn offsets_at<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partitions: &[i32],
    which: Offset,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, LogError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = || format!("cannot ask where {topic} begins and ends");
    let deadline = Instant::now() + timeout;
    loop {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            // Offsets that mean a place are the times of this question, too.
            list.add_partition_offset(topic, *partition, which).map_err(|error| client::failure(&what(), &error))?;
        }
        match client.offsets_for_times(list, timeout) {
            Ok(list) => return Ok(offsets_of(&list)),
            Err(error) if is_between_leaders(&error) && Instant::now() < deadline => {
                // Asking for the topic makes the client learn who leads it now; what is wrong then the next attempt tells.
                let _ = client.fetch_metadata(Some(topic), timeout);
                std::thread::sleep(MOVE_STEP);
            }
            Err(error) => return Err(client::failure(&what(), &error)),
        }
    }
}

/// Positions of the group of `client` on the partitions in `list`, where it has committed any.
pub(crate) fn committed_offsets<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    list: TopicPartitionList,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, LogError> {
    if list.count() == 0 {
        return Ok(BTreeMap::new());
    }
    let list = once_settled(timeout, || client.committed_offsets(list.clone(), timeout));
    list.map(|list| offsets_of(&list)).map_err(|error| client::failure("cannot ask for a group's positions", &error))
}

/// What `ask` answers, asked again for `timeout` at most while whoever keeps the groups is changing.
fn once_settled<T>(timeout: Duration, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match ask() {
            Err(error) if is_between_coordinators(&error) && Instant::now() < deadline => std::thread::sleep(MOVE_STEP),
            answer => return answer,
        }
    }
}

/// Whether a partition is between two leaders, as a new one is too: that mends by itself.
fn is_between_leaders(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable | RDKafkaErrorCode::FencedLeaderEpoch
        )
    )
}

/// Offsets of a list, where there are any.
fn offsets_of(list: &TopicPartitionList) -> BTreeMap<i32, i64> {
    let offset = |offset| match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    list.elements().iter().filter_map(|element| Some((element.partition(), offset(element.offset())?))).collect()
}
