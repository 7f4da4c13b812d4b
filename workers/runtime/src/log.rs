//! The border to the log: one stage's connection to its topics.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use endcap_schemas::{
    UserKey,
    topics::{Lane, Topic},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Tally;

/// Name of the header that keeps the key under which a record came, where it does not stand under it: a key that is no text, or another one
/// than its user's. A dead letter has it for whoever looks for the producer; a record that is sent again under its user's key has it no more.
pub const CAME_UNDER: &str = "endcap_key";

/// Hex digits of a hash that stands for bytes: enough to find them again in the sender's file.
const HASH_DIGITS: usize = 32;

/// A stage's consumer: reads its input topic and, atomically, writes what came of it.
///
/// What an implementation keeps (`contract::check_log` checks it):
/// - `poll` gives every record once, in offset order per partition, starting at the group's position.
/// - `commit` appends outputs and dead letters, adds the tallies and moves the positions: all of it or nothing, durably.
/// - A consumer that starts anew, or whose commit met [`LogError::Conflict`], begins at the group's position again.
/// - Records of one key stand in one partition, in the order in which they were appended.
///
/// Logs share the work among the consumers of a group in one of two ways. Either all of them read the same records and one commit wins
/// ([`LogError::Conflict`] tells the others; `contract::check_rivals`), or each has partitions of its own, which may be taken away
/// ([`Log::revoked`], [`LogError::Revoked`]).
pub trait Log: Send {
    /// The next records, at most `max`; waits up to `wait` while there is none. Records stay the consumer's until it commits past them.
    ///
    /// # Errors
    /// [`LogError::Unavailable`] to be retried; [`LogError::Corrupt`] when the log holds what this version cannot read.
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Received>, LogError>;

    /// Appends, counts and moves the positions in one transaction.
    ///
    /// # Errors
    /// [`LogError::Conflict`] when another consumer of the group has moved the positions: nothing was written, drop what was polled and
    /// poll again. [`LogError::Revoked`] when some of the partitions went away: nothing was written, drop what was polled of them and
    /// commit the rest. [`LogError::Unavailable`] to be retried as it is.
    fn commit(&mut self, commit: &Commit) -> Result<(), LogError>;

    /// How far the group is behind, as far as this consumer knows it: its own partitions where it has some. A measure for people: exact
    /// when the log has been quiet for a moment, near enough while it is not, and never worth waiting for.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn backlog(&mut self) -> Result<Backlog, LogError>;

    /// Partitions that are being taken away from this consumer. Whoever asks drops what it holds of them: with the answer they are let
    /// go, and their records come to another consumer, or again.
    fn revoked(&mut self) -> Vec<i32> {
        Vec::new()
    }

    /// What this consumer waits for before it gets any record, although the log answers: that its group is divided. `None` where records come
    /// as soon as there are some.
    fn awaits(&self) -> Option<String> {
        None
    }

    /// Name of the consumer group.
    fn group(&self) -> &str;
}

/// What travels beside a record's value (CloudEvents binary mode and W3C trace context).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Headers {
    /// `ce_id`: id of the record, derived from its parent's, so that a record that is made again has the same one.
    #[serde(rename = "ce_id")]
    pub id: String,
    /// `ce_type`: name of its topic, on whichever lane it travels.
    #[serde(rename = "ce_type")]
    pub kind: Cow<'static, str>,
    /// `ce_time`, ms since 1970: when the event behind it happened.
    #[serde(rename = "ce_time")]
    pub time_ms: i64,
    /// Id of the record that it was made of.
    #[serde(rename = "ce_causationid", default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<String>,
    /// W3C trace context, handed through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What else a foreign producer wrote: kept for a dead letter, never handed to a child.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<(String, Vec<u8>)>,
}

impl Headers {
    /// Headers of a record that enters the log.
    pub fn root(id: impl Into<String>, topic: Topic, time_ms: i64) -> Self {
        Self { id: id.into(), kind: topic.on(Lane::Live).name().into(), time_ms, ..Self::default() }
    }

    /// Headers of the record that `stage` makes of the one with these headers.
    #[must_use]
    pub fn child(self, stage: &str, topic: Topic) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(self.id.as_bytes()).update(&[0]).update(stage.as_bytes());
        Self {
            id: hash.finalize().to_hex()[..32].to_owned(),
            kind: topic.on(Lane::Live).name().into(),
            time_ms: self.time_ms,
            causation: Some(self.id),
            traceparent: self.traceparent,
            foreign: Vec::new(),
        }
    }

    /// Under whose keys the record came, where it does not stand under its own.
    pub fn came_under(&self) -> impl Iterator<Item = UserKey> {
        let kept = self.foreign.iter().filter(|(name, _)| name == CAME_UNDER);
        kept.map(|(_, key)| UserKey::named(&String::from_utf8_lossy(key)))
    }

    /// The headers as they came, without the key that the record came under.
    #[must_use]
    pub fn without_key(mut self) -> Self {
        self.foreign.retain(|(name, _)| name != CAME_UNDER);
        self
    }
}

/// A record to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Where to, and on which lane.
    pub topic: Topic,
    /// Whose.
    pub key: UserKey,
    /// Beside the value.
    pub headers: Headers,
    /// The value in wire form.
    pub value: Vec<u8>,
}

impl Outgoing {
    /// The lane that has to have room for `records`: the slower one, where they are for both.
    pub fn lane_of(records: &[Outgoing]) -> Lane {
        records.iter().map(|record| record.topic.lane()).max().unwrap_or(Lane::Live)
    }
}

/// A record as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Where from, and on which lane.
    pub topic: Topic,
    /// Partition.
    pub partition: i32,
    /// Place in the partition.
    pub offset: i64,
    /// When the log took it, ms since 1970.
    pub appended_ms: i64,
    /// Its key, `tenant/user`.
    pub key: String,
    /// Beside the value.
    pub headers: Headers,
    /// The value in wire form, not yet looked at.
    pub value: Vec<u8>,
}

impl Received {
    /// The same record under the key of `user`. The key that it came under is kept in its headers.
    #[must_use]
    pub fn under(mut self, user: &UserKey) -> Self {
        let key = std::mem::replace(&mut self.key, user.to_string());
        let is_kept = |name: &str, value: &[u8]| name == CAME_UNDER && String::from_utf8_lossy(value) == key;
        if !self.headers.foreign.iter().any(|(name, value)| is_kept(name, value)) {
            self.headers.foreign.push((CAME_UNDER.to_owned(), key.into_bytes()));
        }
        self
    }
}

/// A record that could not be processed, with everything needed to look into it and to send it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The record, untouched.
    pub record: Received,
    /// The consumer group that gave up.
    pub group: String,
    /// The stage that gave up.
    pub stage: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The kind of fault, as a metric label.
    pub kind: String,
    /// What is wrong and what would mend it.
    pub message: String,
}

/// Length and hash in place of bytes that are not kept.
pub fn in_place_of(hashed: &blake3::Hasher) -> String {
    format!("({} bytes, blake3 {}…)", hashed.count(), &hashed.finalize().to_hex()[..HASH_DIGITS])
}

/// What one transaction writes.
#[derive(Debug, Clone, Default)]
pub struct Commit {
    /// Records for the next topic.
    pub outputs: Vec<Outgoing>,
    /// Records that could not be processed.
    pub dead_letters: Vec<DeadLetter>,
    /// New positions: partition → offset of the first record that is not done.
    pub through: BTreeMap<i32, i64>,
    /// Name of the stage that the tally is added to.
    pub stage: String,
    /// What happened to the records between the old and the new positions.
    pub tally: Tally,
}

/// How far a group is behind on its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Records between the group's position and the end.
    pub waiting: u64,
    /// When the oldest of them was appended, ms since 1970.
    pub oldest_ms: Option<i64>,
}

/// The log did not do what it was asked.
#[derive(Debug, Error)]
pub enum LogError {
    /// It is not reachable or not writable now: retry.
    #[error("log is unavailable: {0}")]
    Unavailable(String),
    /// Another consumer of the group moved the positions: poll again.
    #[error("another consumer of group {0} has moved its position")]
    Conflict(String),
    /// The group has given partitions to another consumer: drop what was polled of them.
    #[error("group {group} has given partitions {partitions:?} to another consumer")]
    Revoked {
        /// The group.
        group: String,
        /// What went away.
        partitions: Vec<i32>,
    },
    /// Another process works under this one's name, in its place: end.
    #[error("another process writes as {0}: this one ends; give every process an instance name of its own")]
    Fenced(String),
    /// It is there, but does not do for this process what it must: a person has to act.
    #[error("log refuses: {0}")]
    Refused(String),
    /// Too many records wait: let the stages catch up, or raise the limit.
    #[error(
        "log is full: {waiting} records of {topic} wait, at most {limit} may: let the stages catch up or raise `waiting_max`"
    )]
    Full {
        /// The topic whose consumer is behind.
        topic: String,
        /// Records that wait.
        waiting: u64,
        /// How many may.
        limit: u64,
    },
    /// It holds something that this version cannot read.
    #[error("log holds unreadable data: {0}")]
    Corrupt(String),
}
