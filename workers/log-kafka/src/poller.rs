//! The thread that polls: it never stops while the stage works. Slow work stops fetching, not polling, so that the group never takes this
//! consumer for dead. Rebalance hooks run here, inside of a poll.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use endcap_runtime::LogError;
use endcap_schemas::topics::Topic;
use rdkafka::{
    ClientContext, TopicPartitionList,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    KafkaConfig,
    client::{self, Watch},
    hand::{Ahead, Hand},
    record,
};

/// Longest wait of one poll: bounds how late fetching goes on, and how late the thread ends.
const POLL_WAIT: Duration = Duration::from_millis(25);
/// Time between two attempts to reach brokers that were all down, and the longest wait for their answer.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// A consumer, and what its hooks work with.
pub(crate) struct Steward {
    watch: Watch,
    hand: Arc<Hand>,
    drain: Duration,
    /// Whether fetching is stopped: partitions that come meanwhile are stopped too.
    paused: AtomicBool,
}

/// A consumer of a group.
pub(crate) type GroupConsumer = BaseConsumer<Steward>;

impl ClientContext for Steward {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.watch.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.watch.generate_oauth_token(config)
    }
}

impl ConsumerContext for Steward {
    fn pre_rebalance(&self, consumer: &GroupConsumer, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = partitions_of(list);
                tracing::info!(?partitions, "partitions come");
                self.hand.assigned(partitions);
            }
            Rebalance::Revoke(list) => {
                let (partitions, lost) = (partitions_of(list), consumer.assignment_lost());
                tracing::info!(?partitions, lost, "partitions go");
                self.hand.leave(&partitions, if lost { Duration::ZERO } else { self.drain });
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &GroupConsumer, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance
            && self.paused.load(Ordering::SeqCst)
            && let Err(error) = consumer.pause(list)
        {
            tracing::warn!(%error, "new partitions are fetched although enough waits");
        }
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

/// The thread, its consumer and the hand-over from it.
pub(crate) struct Poller {
    pub(crate) consumer: Arc<GroupConsumer>,
    pub(crate) hand: Arc<Hand>,
    thread: Option<JoinHandle<()>>,
}

impl Poller {
    /// Joins `group` on `topic`, whose name on the brokers is `name`.
    pub(crate) fn start(config: &KafkaConfig, group: &str, topic: Topic, name: String) -> Result<Self, LogError> {
        let settings = config.settings();
        let ahead = Ahead { records_max: settings.ahead_records_max as usize, bytes_max: settings.ahead_bytes_max as usize };
        let hand = Arc::new(Hand::new(ahead));
        let mut client = config.reader(group);
        client
            .set("partition.assignment.strategy", "cooperative-sticky")
            // Small, as stopping throws it away.
            .set("queued.min.messages", settings.ahead_records_max.to_string())
            .set("queued.max.messages.kbytes", (settings.ahead_bytes_max / 1_024).to_string())
            .set("fetch.queue.backoff.ms", "10");
        let watch = Watch::of(config);
        let steward = Steward { watch, hand: hand.clone(), drain: config.drain(), paused: AtomicBool::new(false) };
        let consumer: GroupConsumer = client::create(&client, steward)?;
        consumer.subscribe(&[&name]).map_err(|error| client::failure("cannot subscribe", &error))?;
        let consumer = Arc::new(consumer);
        let polling = Polling { config: config.clone(), consumer: consumer.clone(), hand: hand.clone(), topic, name, down: None };
        let thread = thread::Builder::new()
            .name(format!("poll-{topic}"))
            .spawn(move || polling.run())
            .map_err(|error| LogError::Unavailable(format!("cannot start the polling thread: {error}")))?;
        Ok(Self { consumer, hand, thread: Some(thread) })
    }
}

impl Drop for Poller {
    /// Leaves the group, so that the others go on at once.
    fn drop(&mut self) {
        self.hand.close();
        if let Some(thread) = self.thread.take() {
            // The thread panics at most in a hook; the group takes its partitions when its session is over.
            let _ = thread.join();
        }
    }
}

/// The thread's own state.
struct Polling {
    config: KafkaConfig,
    consumer: Arc<GroupConsumer>,
    hand: Arc<Hand>,
    topic: Topic,
    name: String,
    /// When the brokers were last looked for, while they are all down.
    down: Option<Instant>,
}

impl Polling {
    fn run(mut self) {
        let consumer = self.consumer.clone();
        while !self.hand.is_closing() {
            match consumer.poll(POLL_WAIT) {
                Some(Ok(message)) => {
                    let record = record::received(self.topic, &message);
                    self.hand.put(record);
                    self.recovered();
                }
                Some(Err(error)) => self.fail(&error),
                None => {}
            }
            self.settle_fetching();
            self.probe();
        }
    }

    /// Stops fetching when enough waits, and lets it go on.
    fn settle_fetching(&self) {
        let (full, steward) = (self.hand.is_full(), self.consumer.context());
        if full == steward.paused.load(Ordering::SeqCst) {
            return;
        }
        let Ok(assignment) = self.consumer.assignment() else { return };
        let done = if full { self.consumer.pause(&assignment) } else { self.consumer.resume(&assignment) };
        match done {
            Ok(()) => steward.paused.store(full, Ordering::SeqCst),
            Err(error) => tracing::warn!(%error, full, "fetching cannot be stopped or resumed; trying again"),
        }
    }

    fn fail(&mut self, error: &KafkaError) {
        let watch = &self.consumer.context().watch;
        let complaint = watch.last();
        let reason = complaint.as_ref().map_or_else(|| error.to_string(), |complaint| complaint.reason.clone());
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let refused = complaint.and_then(|complaint| client::refusal(&self.config, &complaint));
                self.down.get_or_insert_with(Instant::now);
                let cause = refused.map_or_else(|| format!("no broker answers: {reason}"), |refused| refused.to_string());
                self.hand.tell_trouble(Some(LogError::Unavailable(cause)));
            }
            Some(RDKafkaErrorCode::FencedInstanceId) => {
                self.hand.tell_trouble(Some(LogError::Fenced(self.config.settings().instance.clone())));
            }
            // Single connections come and go, and are made again by themselves.
            Some(
                RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SSL,
            ) => tracing::debug!(%error, "{reason}"),
            _ => {
                self.down.get_or_insert_with(Instant::now);
                self.hand.tell_trouble(Some(client::failure(&format!("cannot read {}", self.name), error)));
            }
        }
    }

    fn recovered(&mut self) {
        if self.down.take().is_some() {
            self.consumer.context().watch.clear();
            self.hand.tell_trouble(None);
        }
    }

    /// Looks from time to time whether brokers that were all down are there again.
    fn probe(&mut self) {
        let Some(last) = &mut self.down else { return };
        if last.elapsed() < PROBE_EVERY {
            return;
        }
        *last = Instant::now();
        if let Ok(metadata) = self.consumer.fetch_metadata(Some(&self.name), PROBE_EVERY)
            && metadata.topics().iter().all(|topic| topic.error().is_none())
        {
            self.recovered();
        }
    }
}
