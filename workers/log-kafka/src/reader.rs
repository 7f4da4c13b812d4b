//! Reading without a group: from given offsets to the end as it is now. Moves no position.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{ControlFlow, Deref},
    sync::{Arc, Mutex},
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
    asker::Asker,
    client::{self, Watch},
    lock::lock,
    names::Names,
    tender::{self, Tender},
};

/// Longest wait of one poll.
const STEP: Duration = Duration::from_millis(50);
/// Readers that are kept for their next use; a further one ends with it.
const KEPT_MAX: usize = 2;

/// A reader of any topic, one at a time.
pub(crate) struct Reader {
    consumer: BaseConsumer<Watch>,
    /// Tells where to read from and to.
    pub(crate) asker: Arc<Asker>,
    timeout: Duration,
}

/// Readers for whoever comes: each has one of its own, so nobody waits for what another one reads.
pub(crate) struct Readers {
    config: KafkaConfig,
    names: Names,
    asker: Arc<Asker>,
    idle: Arc<Mutex<Vec<Reader>>>,
}

/// A reader until it is dropped.
pub(crate) struct Lent {
    reader: Option<Reader>,
    idle: Arc<Mutex<Vec<Reader>>>,
}

impl Readers {
    pub(crate) fn new(config: &KafkaConfig, names: &Names, asker: &Arc<Asker>, tender: &Tender) -> Self {
        let idle = Arc::<Mutex<Vec<Reader>>>::default();
        tender.keep(&idle, |idle| lock(idle).iter().for_each(|reader| tender::serve(&reader.consumer)));
        Self { config: config.clone(), names: names.clone(), asker: asker.clone(), idle }
    }

    /// A reader.
    ///
    /// # Errors
    /// [`LogError`] when it cannot be made.
    pub(crate) fn lend(&self) -> Result<Lent, LogError> {
        let kept = lock(&self.idle).pop();
        let reader = kept.map_or_else(|| Reader::new(&self.config, &self.names, self.asker.clone()), Ok)?;
        Ok(Lent { reader: Some(reader), idle: self.idle.clone() })
    }
}

impl Deref for Lent {
    type Target = Reader;

    fn deref(&self) -> &Reader {
        self.reader.as_ref().expect("a reader is there until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT_MAX {
            idle.extend(self.reader.take());
        }
    }
}

impl Reader {
    fn new(config: &KafkaConfig, names: &Names, asker: Arc<Asker>) -> Result<Self, LogError> {
        // The group names it to librdkafka; it never joins and never commits.
        let mut client = config.reader(&names.group("endcap.inspect"));
        // The end is told by an empty answer, so the brokers must not hold that back.
        client.set("enable.partition.eof", "true").set("fetch.wait.max.ms", "10");
        let consumer = client::create(&client, Watch::of(config))?;
        tender::serve(&consumer);
        Ok(Self { consumer, asker, timeout: config.request_timeout() })
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
