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

use endcap_runtime::{LogError, Received};
use endcap_schemas::topics::{Lane, Topic};
use rdkafka::{
    ClientConfig, TopicPartitionList,
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
/// How long nothing is polled while enough waits, before fetching is stopped: stopping throws away what was fetched, and going on waits for
/// the answer to a request that was made meanwhile.
const PAUSE_AFTER: Duration = Duration::from_millis(250);
/// Which part of what may be held ahead librdkafka fetches ahead of that.
const OF_AHEAD: u32 = 8;
/// Bytes of one partition that brokers answer with at once; a batch that is larger comes whole. librdkafka's own megabyte took four stages
/// over four partitions 35 MB more, and saved no time.
const FETCH_BYTES: &str = "131072";
/// Records that are handed over at once, at most.
const AT_ONCE_MAX: usize = 256;
/// Time between two attempts to reach brokers that were all down, and the longest wait for their answer.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// How long brokers may hold an answer back while they have nothing. They hold some back to the end although a transaction was committed
/// meanwhile (measured with Apache Kafka 4.3: one lone record in eight), so on the live lane that must not be long.
fn fetch_wait_ms(lane: Lane) -> &'static str {
    match lane {
        Lane::Live => "20",
        Lane::Backfill => "500",
    }
}

/// What the hooks of a group's consumer work with.
pub(crate) struct Steward {
    group: String,
    hand: Arc<Hand>,
    drain: Duration,
    /// Whether fetching is stopped: partitions that come meanwhile are stopped too.
    paused: AtomicBool,
}

/// A consumer of a group.
pub(crate) type GroupConsumer = BaseConsumer<Watch<Steward>>;

impl ConsumerContext for Watch<Steward> {
    fn pre_rebalance(&self, consumer: &GroupConsumer, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let partitions = partitions_of(list);
                tracing::info!(group = self.role.group, ?partitions, "partitions come");
                self.role.hand.assigned(partitions);
            }
            Rebalance::Revoke(list) => {
                let (partitions, lost) = (partitions_of(list), consumer.assignment_lost());
                tracing::info!(group = self.role.group, ?partitions, lost, "partitions go");
                if lost {
                    self.role.hand.lose(&partitions);
                } else {
                    self.role.hand.leave(&partitions, self.role.drain);
                }
            }
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &GroupConsumer, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance
            && self.role.paused.load(Ordering::SeqCst)
            && let Err(error) = consumer.pause(list)
        {
            tracing::warn!(%error, "new partitions are fetched although enough waits");
        }
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|element| element.partition()).collect()
}

impl KafkaConfig {
    /// A client that reads as a member of `group`.
    pub(crate) fn member(&self, group: &str, lane: Lane) -> ClientConfig {
        let (settings, mut client) = (self.settings(), self.reader(group));
        client
            .set("partition.assignment.strategy", "cooperative-sticky")
            // What librdkafka fetches ahead comes beside what is held here, the first for each partition: small, as it takes memory twice and
            // stopping throws it away.
            .set("queued.min.messages", (settings.ahead_records_max / OF_AHEAD).max(1).to_string())
            .set("queued.max.messages.kbytes", (settings.ahead_bytes_max / OF_AHEAD / 1_024).max(1_024).to_string())
            .set("enable.partition.eof", "true");
        self.usually(&mut client, "fetch.queue.backoff.ms", "10");
        self.usually(&mut client, "fetch.wait.max.ms", fetch_wait_ms(lane));
        if !settings.properties.contains_key("max.partition.fetch.bytes") {
            self.usually(&mut client, "fetch.message.max.bytes", FETCH_BYTES); // two names of one property
        }
        client
    }
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
        let steward =
            Steward { group: group.to_owned(), hand: hand.clone(), drain: config.drain(), paused: AtomicBool::new(false) };
        let consumer: GroupConsumer = client::create(&config.member(group, topic.lane()), Watch::with(config, steward))?;
        consumer.subscribe(&[&name]).map_err(|error| client::failure("cannot subscribe", &error))?;
        let consumer = Arc::new(consumer);
        let polling = Polling {
            config: config.clone(),
            consumer: consumer.clone(),
            hand: hand.clone(),
            topic,
            name,
            polled: Vec::with_capacity(AT_ONCE_MAX),
            down: None,
        };
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
    /// On their way to the hand-over: empty between two polls, and kept for its room.
    polled: Vec<Received>,
    /// When the brokers were last looked for, while they are all down.
    down: Option<Instant>,
}

impl Polling {
    fn run(mut self) {
        let consumer = self.consumer.clone();
        while !self.hand.is_closing() {
            self.settle_fetching();
            self.poll(&consumer);
            self.probe();
        }
    }

    /// Waits for something, and takes along what has come with it, up to a limit.
    fn poll(&mut self, consumer: &GroupConsumer) {
        let (room, departures) = (self.hand.room(Duration::ZERO).unwrap_or(1).min(AT_ONCE_MAX), self.hand.departures());
        let mut wait = POLL_WAIT;
        while self.polled.len() < room {
            match consumer.poll(wait) {
                Some(Ok(message)) => self.polled.push(record::received(self.topic, &message)),
                Some(Err(error)) => {
                    self.hand_over(departures);
                    return match error {
                        KafkaError::PartitionEOF(partition) => self.hand.at_end(partition),
                        error => self.fail(&error),
                    };
                }
                None => break,
            }
            wait = Duration::ZERO;
        }
        self.hand_over(departures);
    }

    fn hand_over(&mut self, departures: u64) {
        if !self.polled.is_empty() {
            self.hand.put(self.polled.drain(..), departures);
            self.recovered();
        }
    }

    /// Stops fetching when enough waits, and lets it go on.
    fn settle_fetching(&self) {
        let steward = &self.consumer.context().role;
        let paused = steward.paused.load(Ordering::SeqCst);
        let full = self.hand.room(if paused { Duration::ZERO } else { PAUSE_AFTER }).is_none();
        if full == paused {
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
        let complaint = self.consumer.context().last();
        let reason = complaint.as_ref().map_or_else(|| error.to_string(), |complaint| complaint.reason.clone());
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                let refused = complaint.and_then(|complaint| client::refusal(&self.config, &complaint));
                self.down.get_or_insert_with(Instant::now);
                let cause = refused.map_or_else(|| format!("no broker answers: {reason}"), |refused| refused.to_string());
                self.hand.tell_trouble(Some(LogError::Unavailable(cause)));
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

    /// The brokers have answered: whatever was complained of before is mended, also where not all of them were down.
    fn recovered(&mut self) {
        self.consumer.context().clear();
        if self.down.take().is_some() {
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
