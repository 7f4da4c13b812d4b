//! Transactions. One producer under one transactional id; a new one takes its place after a fault that it does not survive.
//!
//! Measured with librdkafka 2.12 and rdkafka 0.39: committing with records in flight waits in steps of 100 ms, so they are waited for first; aborting with
//! records in flight hangs until its timeout, so they are thrown away first. Records linger until the last of a transaction is handed over, so that
//! each partition gets its own in as few requests as `batch.size` allows.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::LogError;
use rdkafka::{
    TopicPartitionList,
    bindings::rd_kafka_flush,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    message::DeliveryResult,
    producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig},
    types::RDKafkaRespErr,
};

use crate::{
    KafkaConfig,
    client::{self, Watch, is_between_coordinators},
    lock::lock,
    record::Record,
    tender::{SERVE_FOR, Tender},
};

/// Longest wait for records in flight before what the producer has to tell is heard, of deliveries that failed most of all.
const FLUSH_STEP: Duration = Duration::from_millis(50);
/// How long an answer is waited for at least.
const LEAST: Duration = Duration::from_millis(1);
/// How often a beginning is tried again while the transactions' keeper is changing.
const MOVE_STEP: Duration = Duration::from_millis(100);

/// Why a transaction did not go through.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// Nothing was written.
    Nothing(LogError),
    /// It is not known whether it was written: whoever asked must find out before it tries again.
    Unclear(LogError),
}

impl Stopped {
    pub(crate) fn into_error(self) -> LogError {
        match self {
            Stopped::Nothing(error) | Stopped::Unclear(error) => error,
        }
    }
}

/// Positions that a transaction moves, and the group whose they are.
pub(crate) struct Positions<'a> {
    pub(crate) list: &'a TopicPartitionList,
    pub(crate) group: &'a ConsumerGroupMetadata,
}

/// A transactional producer.
pub(crate) struct Writer {
    config: KafkaConfig,
    id: String,
    tender: Arc<Tender>,
    producer: Option<Arc<TransactionalProducer>>,
}

type TransactionalProducer = BaseProducer<Watch<Delivery>>;

/// Notes the first record that did not arrive.
#[derive(Default)]
struct Delivery {
    /// Held while a transaction is made: nobody else hears of its deliveries then.
    turn: Mutex<()>,
    failed: Mutex<Option<KafkaError>>,
}

impl ProducerContext for Watch<Delivery> {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.role.failed().get_or_insert_with(|| error.clone());
        }
    }
}

impl Delivery {
    fn failed(&self) -> MutexGuard<'_, Option<KafkaError>> {
        lock(&self.failed)
    }
}

impl Writer {
    /// A writer under `id`. Whoever wrote under it before is fenced at the first transaction.
    pub(crate) fn new(config: KafkaConfig, id: String, tender: Arc<Tender>) -> Self {
        Self { config, id, tender, producer: None }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Makes the producer ready, which ends whatever transaction an earlier one of this id has left open: committed if it was to be, else
    /// aborted.
    pub(crate) fn ready(&mut self) -> Result<(), LogError> {
        let deadline = Instant::now() + self.config.request_timeout();
        while self.producer.is_none() {
            let watch = Watch::with(&self.config, Delivery::default());
            let producer: Arc<TransactionalProducer> = Arc::new(client::create(&self.config.writer(&self.id), watch)?);
            let serve = |producer: &TransactionalProducer| {
                if let Ok(_turn) = producer.context().role.turn.try_lock() {
                    producer.poll(SERVE_FOR);
                }
            };
            serve(&producer); // its first token: what follows polls nothing
            self.tender.keep(&producer, serve);
            match producer.init_transactions(deadline.saturating_duration_since(Instant::now()).max(LEAST)) {
                Ok(()) => self.producer = Some(producer),
                Err(error) if is_between_coordinators(&error) && Instant::now() < deadline => thread::sleep(MOVE_STEP),
                Err(error) => return Err(self.meaning("cannot begin to write", &error)),
            }
        }
        Ok(())
    }

    /// Writes `records`, each made when its turn comes, and moves `positions`: all of it or nothing.
    pub(crate) fn transact<'a>(
        &mut self,
        records: impl Iterator<Item = Result<Record<'a>, LogError>>,
        positions: Option<Positions<'_>>,
    ) -> Result<(), Stopped> {
        self.ready().map_err(Stopped::Nothing)?;
        let producer = self.producer.clone().expect("a writer that is ready has a producer");
        let _turn = lock(&producer.context().role.turn);
        if let Err(error) = self.prepare(&producer, records, positions) {
            self.abort();
            return Err(Stopped::Nothing(error));
        }
        self.commit()
    }

    /// Everything of a transaction but its commit.
    fn prepare<'a>(
        &self,
        producer: &TransactionalProducer,
        records: impl Iterator<Item = Result<Record<'a>, LogError>>,
        positions: Option<Positions<'_>>,
    ) -> Result<(), LogError> {
        let cannot_write = |error: KafkaError| self.meaning("cannot write", &error);
        *producer.context().role.failed() = None;
        producer.begin_transaction().map_err(cannot_write)?;
        let deadline = Instant::now() + self.config.request_timeout();
        for record in records {
            send(producer, &record?, deadline).map_err(cannot_write)?;
        }
        while !flush(producer) {
            if Instant::now() >= deadline {
                return Err(cannot_write(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut)));
            }
        }
        if let Some(error) = producer.context().role.failed().take() {
            return Err(cannot_write(error));
        }
        let Some(Positions { list, group }) = positions else { return Ok(()) };
        producer.send_offsets_to_transaction(list, group, self.config.request_timeout()).map_err(cannot_write)
    }

    /// Commits, again while the broker asks for it. What is not decided by the deadline, or by a producer that is done for, is unclear.
    fn commit(&mut self) -> Result<(), Stopped> {
        let deadline = Instant::now() + self.config.request_timeout();
        loop {
            let producer = self.producer.as_ref().expect("a transaction has a producer");
            let Err(error) = producer.commit_transaction(deadline.saturating_duration_since(Instant::now()).max(LEAST)) else {
                return Ok(());
            };
            let meaning = self.meaning("cannot commit", &error);
            match &error {
                KafkaError::Transaction(cause) if cause.txn_requires_abort() => {
                    self.abort();
                    return Err(Stopped::Nothing(meaning));
                }
                KafkaError::Transaction(cause) if cause.is_retriable() && Instant::now() < deadline => {}
                _ => {
                    self.producer = None;
                    return Err(Stopped::Unclear(meaning));
                }
            }
        }
    }

    /// Aborts, or gives the producer up: the next one's beginning aborts then.
    fn abort(&mut self) {
        let timeout = self.config.request_timeout();
        let aborted = self.producer.as_ref().is_some_and(|producer| {
            producer.purge(PurgeConfig::default().queue().inflight());
            producer.client().fatal_error().is_none()
                && producer.flush(timeout).is_ok()
                && producer.abort_transaction(timeout).is_ok()
        });
        if !aborted {
            self.producer = None;
        }
    }

    /// What an error of a transaction means.
    fn meaning(&self, what: &str, error: &KafkaError) -> LogError {
        // A record that was thrown away for a fatal fault tells of the throwing away alone.
        let fatal = self.producer.as_ref().and_then(|producer| producer.client().fatal_error());
        match fatal.map(|(code, _)| code).or(error.rdkafka_error_code()) {
            Some(RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced) => LogError::Fenced(self.id.clone()),
            Some(
                RDKafkaErrorCode::IllegalGeneration | RDKafkaErrorCode::UnknownMemberId | RDKafkaErrorCode::RebalanceInProgress,
            ) => LogError::Unavailable(format!("the group is being divided anew: {error}")),
            _ => client::failure(what, error),
        }
    }
}

/// Sends what lingers, waits a moment until everything has arrived, and answers whether it has. Not by rdkafka's `flush`, which asks
/// librdkafka without any time: its threads wake up too late to see that they should not linger.
fn flush(producer: &TransactionalProducer) -> bool {
    // SAFETY: the producer is alive for as long as it is borrowed; any thread may call this.
    let answer = unsafe { rd_kafka_flush(producer.client().native_ptr(), FLUSH_STEP.as_millis() as i32) };
    let arrived = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    if !arrived {
        producer.poll(SERVE_FOR); // a record that failed is in flight until somebody has heard of it
    }
    arrived
}

/// Hands a record to the producer, waiting for room in its queue.
fn send(producer: &TransactionalProducer, record: &Record<'_>, deadline: Instant) -> Result<(), KafkaError> {
    loop {
        let mut base = BaseRecord::<[u8], [u8]>::to(&record.topic).key(record.key.as_ref()).headers(record.owned_headers());
        if let Some(value) = &record.value {
            base = base.payload(value.as_ref());
        }
        match producer.send(base) {
            Ok(()) => return Ok(()),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) if Instant::now() < deadline => {
                flush(producer);
            }
            Err((error, _)) => return Err(error),
        }
    }
}
