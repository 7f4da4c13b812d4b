//! Reading without a group: from given offsets to the end as it is now. Moves no position.
//!
//! A commit is answered a moment before its records can be read: the brokers mark them afterwards. Whoever asks for an end here waits for
//! that moment, so that everything is seen that was answered before. A transaction that somebody has left open is not waited for longer.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
    time::{Duration, Instant},
};

use endcap_runtime::LogError;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Message},
};

use crate::{
    KafkaConfig,
    client::{self, Watch},
};

/// Longest wait of one poll.
const STEP: Duration = Duration::from_millis(50);
/// Longest wait for transactions that are not marked yet, and how often they are looked after.
const SETTLED_IN: Duration = Duration::from_millis(500);
const SETTLE_STEP: Duration = Duration::from_millis(2);
/// How often a partition is asked again whose leader is changing.
const MOVE_STEP: Duration = Duration::from_millis(20);

/// First offset that is there and the one behind the last, per partition.
pub(crate) type Ends = BTreeMap<i32, (i64, i64)>;

/// A reader of any topic, one at a time.
pub(crate) struct Reader {
    consumer: BaseConsumer<Watch>,
    /// Sees what is not committed yet: asked for ends alone.
    raw: BaseConsumer<Watch>,
    timeout: Duration,
}

impl Reader {
    /// A reader. `group` names it to librdkafka; it never joins and never commits.
    pub(crate) fn new(config: &KafkaConfig, group: &str) -> Result<Self, LogError> {
        let mut client = config.reader(group);
        // The end is told by an empty answer, so the brokers must not hold that back.
        client.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer = client::create(&client, Watch::of(config))?;
        let raw = client::create(config.asker().set("isolation.level", "read_uncommitted"), Watch::of(config))?;
        Ok(Self { consumer, raw, timeout: config.request_timeout() })
    }

    /// How many partitions `topic` has.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] when it is not there.
    pub(crate) fn partitions(&self, topic: &str) -> Result<i32, LogError> {
        let asked = || format!("cannot ask for topic {topic}");
        let metadata =
            self.consumer.fetch_metadata(Some(topic), self.timeout).map_err(|error| client::failure(&asked(), &error))?;
        let found = metadata.topics().first().map(|found| (found.partitions().len(), found.error()));
        match found {
            Some((count, None)) if count > 0 => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
            Some((_, Some(error))) => Err(client::failure(&asked(), &KafkaError::MetadataFetch(error.into()))),
            _ => Err(client::failure(&asked(), &KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopicOrPartition))),
        }
    }

    /// Where the partitions of `topic` begin and end.
    pub(crate) fn ends(&self, topic: &str) -> Result<Ends, LogError> {
        (0..self.partitions(topic)?).map(|partition| Ok((partition, self.end(topic, partition)?))).collect()
    }

    /// Where a partition begins, and where what is committed so far ends.
    pub(crate) fn end(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let (_, written) = self.watermarks(&self.raw, topic, partition)?;
        let deadline = Instant::now() + SETTLED_IN;
        loop {
            let (first, end) = self.end_now(topic, partition)?;
            if end >= written || Instant::now() >= deadline {
                return Ok((first, end));
            }
            std::thread::sleep(SETTLE_STEP);
        }
    }

    /// The same, as it can be read at this moment.
    pub(crate) fn end_now(&self, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        self.watermarks(&self.consumer, topic, partition)
    }

    /// Per partition, the offset of the first record with this time (ms) or a later one. Of a partition that has none the brokers say nothing:
    /// that means its end, and not its beginning.
    pub(crate) fn offsets_at(&self, topic: &str, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        let what = || format!("cannot ask for offsets of {topic} by time");
        let mut list = TopicPartitionList::new();
        for partition in 0..self.partitions(topic)? {
            list.add_partition_offset(topic, partition, Offset::Offset(at_ms))
                .map_err(|error| client::failure(&what(), &error))?;
        }
        let found = self.consumer.offsets_for_times(list, self.timeout).map_err(|error| client::failure(&what(), &error))?;
        let found = offsets_of(&found);
        let ends = self.ends(topic)?.into_iter();
        Ok(ends
            .map(|(partition, (_, end))| (partition, found.get(&partition).map_or(end, |offset| (*offset).min(end))))
            .collect())
    }

    fn watermarks(&self, client: &BaseConsumer<Watch>, topic: &str, partition: i32) -> Result<(i64, i64), LogError> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match client.fetch_watermarks(topic, partition, self.timeout) {
                Ok(ends) => return Ok(ends),
                Err(error) if is_moving(&error) && Instant::now() < deadline => {
                    // Asking for the topic makes the client learn who leads it now; what is wrong then the next attempt tells.
                    let _ = client.fetch_metadata(Some(topic), self.timeout);
                    std::thread::sleep(MOVE_STEP);
                }
                Err(error) => {
                    return Err(client::failure(&format!("cannot ask for the end of {topic}/{partition}"), &error));
                }
            }
        }
    }

    /// Hands every record of `topic` from the offsets in `from` on to `each`, until the end of each partition or until it breaks off.
    /// Offsets that retention has passed begin at the oldest record.
    pub(crate) fn read(
        &self,
        topic: &str,
        from: &BTreeMap<i32, i64>,
        each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        if from.is_empty() {
            return Ok(());
        }
        let what = || format!("cannot read {topic}");
        let mut list = TopicPartitionList::new();
        for (partition, offset) in from {
            list.add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(|error| client::failure(&what(), &error))?;
        }
        self.consumer.assign(&list).map_err(|error| client::failure(&what(), &error))?;
        let read = self.read_assigned(topic, from.keys().copied().collect(), each);
        self.consumer.unassign().map_err(|error| client::failure(&what(), &error))?;
        read
    }

    fn read_assigned(
        &self,
        topic: &str,
        mut open: BTreeSet<i32>,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> ControlFlow<()>,
    ) -> Result<(), LogError> {
        let mut deadline = Instant::now() + self.timeout;
        while !open.is_empty() {
            match self.consumer.poll(STEP) {
                Some(Ok(message)) if message.topic() == topic => {
                    deadline = Instant::now() + self.timeout;
                    if each(&message).is_break() {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) if is_final(&error) => return Err(client::failure(&format!("cannot read {topic}"), &error)),
                _ => {}
            }
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!("cannot read {topic}: no answer within {:?}", self.timeout)));
            }
        }
        Ok(())
    }
}

/// Positions on `topic` that the group of `client` has committed, where it has any.
pub(crate) fn committed(
    client: &BaseConsumer<Watch>,
    topic: &str,
    partitions: i32,
    timeout: Duration,
) -> Result<BTreeMap<i32, i64>, LogError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_range(topic, 0, partitions - 1);
    let list = client
        .committed_offsets(list, timeout)
        .map_err(|error| client::failure(&format!("cannot ask for the positions on {topic}"), &error))?;
    Ok(offsets_of(&list))
}

/// Whether a partition is between two leaders, as a new one is too: that mends by itself.
fn is_moving(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable | RDKafkaErrorCode::FencedLeaderEpoch
        )
    )
}

/// Whether waiting for the next answer is in vain.
fn is_final(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
        )
    )
}

/// Offsets of a list, where there are any.
pub(crate) fn offsets_of(list: &TopicPartitionList) -> BTreeMap<i32, i64> {
    let offset = |offset| match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    list.elements().iter().filter_map(|element| Some((element.partition(), offset(element.offset())?))).collect()
}
