//! The border between the binary and a log as a whole: who feeds it, who looks into it, and who sends dead letters again. A stage knows
//! [`Log`] alone.

use std::{collections::BTreeMap, convert::Infallible, fmt, iter, str::FromStr};

use endcap_schemas::{UserKey, topics::Topic};
use serde::{Deserialize, Serialize};

use crate::{Backlog, DeadLetter, Erasure, Headers, Log, LogError, Outgoing, Received, Stamp, Tally};

/// What events from outside are counted under, beside the stages.
pub const INGEST: &str = "ingest";

/// A log with all its topics. `contract::check_broker` says what an implementation keeps.
pub trait Broker: Send + Sync {
    /// Makes a group known before its first consumer comes: what waits for it is seen, and kept where the log itself decides what it keeps.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn declare(&self, group: &str, topic: Topic) -> Result<(), LogError>;

    /// A consumer of `topic` for `group`. A new group begins at the oldest record.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer or refuses this process.
    fn consumer(&self, group: &str, topic: Topic) -> Result<Box<dyn Log>, LogError>;

    /// Appends `records` in one transaction and, with them, notes how far their source was read: name and value.
    ///
    /// # Errors
    /// [`LogError::Full`] while a group is too far behind on the records' lane (nothing is written; try again later), [`LogError`] when the log
    /// does not answer. Then nothing was written, or, on a log of servers, it is not known: with `progress` the same call again finds out; without,
    /// whoever reads must know what comes twice by its id.
    fn append(&self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<(), LogError>;

    /// Appends `records` and keeps, in the same transaction, what was refused before it entered the log. Both are counted under [`INGEST`].
    ///
    /// # Errors
    /// As [`Broker::append`] without progress.
    fn admit(&self, records: &[Outgoing], refused: &[DeadLetter]) -> Result<(), LogError>;

    /// Takes `records` as [`Broker::admit`] does, and also while the log is full: for what may not wait behind a backlog, such as erasures.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer; as [`Broker::append`] without progress then.
    fn insist(&self, records: &[Outgoing]) -> Result<(), LogError>;

    /// How far the source `name` was read, as the last append noted it.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn progress(&self, name: &str) -> Result<Option<String>, LogError>;

    /// What every stage did since the log was made, as its commits counted it.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn tallies(&self) -> Result<BTreeMap<String, Tally>, LogError>;

    /// How every group stands, one entry per group, topic and partition.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn groups(&self) -> Result<Vec<GroupState>, LogError>;

    /// How `group` stands on its `topic`, one entry per partition. No other group is asked for. One that has done nothing yet stands at the
    /// oldest record.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn group(&self, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError>;

    /// Offset that the next record of each partition of `topic` will get.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn ends(&self, topic: Topic) -> Result<BTreeMap<i32, i64>, LogError>;

    /// Per partition of `topic`, the offset of the first record that the log took at `at_ms` (ms since 1970) or later; the end where there is
    /// none.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn offsets_at(&self, topic: Topic, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError>;

    /// Up to `max` records of a partition from offset `from` on, for inspection; no position moves.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn records(&self, topic: Topic, partition: i32, from: i64, max: usize) -> Result<Vec<Received>, LogError>;

    /// Dead letters, newest first, without their bytes.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, LogError>;

    /// One dead letter with its bytes; `None` for an id that is none of this log's.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<StoredDeadLetter>, LogError>;

    /// Dead letters that are kept, by stage and kind of fault.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer.
    fn dead_letter_counts(&self) -> Result<BTreeMap<(String, String), u64>, LogError>;

    /// Sends dead letters again, with their key, headers and bytes, to the topic and lane that they came from, and takes them off the
    /// list. One that was filed under its user is sent under their key, as if it had come so: the key that it came under is gone. Those of
    /// erased users stay. Answers how many were sent.
    ///
    /// # Errors
    /// [`LogError`] when the log does not answer; then none was sent.
    fn redrive(&self, ids: &[DeadLetterId]) -> Result<usize, LogError>;
}

/// How a group stands on a partition of its topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    /// Name of the group.
    pub group: String,
    /// Its topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Offset of the first record that is not done.
    pub position: i64,
    /// Offset that the next record will get.
    pub end: i64,
    /// What lies between.
    pub backlog: Backlog,
}

/// Names a dead letter within its log; each log has its own way to write it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeadLetterId(String);

impl DeadLetterId {
    /// The id of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for DeadLetterId {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::new(text))
    }
}

/// Which dead letters to list; what is `None` does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// The kind of fault.
    pub kind: Option<String>,
    /// The stage that gave up.
    pub stage: Option<String>,
    /// Whose.
    pub user: Option<UserKey>,
    /// Not before, ms since 1970.
    pub since_ms: Option<i64>,
    /// At most so many, newest first.
    pub limit: usize,
}

impl Default for DeadLetterFilter {
    fn default() -> Self {
        Self { kind: None, stage: None, user: None, since_ms: None, limit: 50 }
    }
}

/// A dead letter as the log holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Its name.
    pub id: DeadLetterId,
    /// When it was given up, ms since 1970.
    pub at_ms: i64,
    /// The stage that gave up.
    pub stage: String,
    /// Its group.
    pub group: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The kind of fault.
    pub kind: String,
    /// What is wrong and what would mend it; empty when masked.
    pub message: String,
    /// Where the record came from.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// When the log took it, ms since 1970.
    pub appended_ms: i64,
    /// Its key; empty when masked.
    pub key: String,
    /// Its headers; empty when masked.
    pub headers: Headers,
    /// Its original bytes; empty when masked.
    pub value: Vec<u8>,
    /// Whether its user was erased since it happened, or since the log took it: then it says nothing of them any more.
    pub masked: bool,
}

impl StoredDeadLetter {
    /// Whose erasures decide what the letter still says: its user, and those under whose keys it came.
    pub fn users(&self) -> impl Iterator<Item = UserKey> {
        iter::once(UserKey::named(&self.key)).chain(self.headers.came_under())
    }

    /// The letter as these erasures leave it: without anything where its user was erased since it happened, or since the log took it, and without
    /// the key that it came under where that one's user was.
    #[must_use]
    pub fn erased_by(mut self, erasures: &BTreeMap<UserKey, Erasure>) -> Self {
        let since = Stamp(self.headers.time_ms.min(self.appended_ms).saturating_mul(1_000));
        let is_erased = |user: &UserKey| erasures.get(user).is_some_and(|erasure| erasure.stamp >= since);
        if is_erased(&UserKey::named(&self.key)) {
            return self.mask();
        }
        if self.headers.came_under().any(|user| is_erased(&user)) {
            self.headers = self.headers.without_key();
        }
        self
    }

    /// The letter without anything that tells of its user.
    #[must_use]
    pub fn mask(self) -> Self {
        let (message, key, headers, value) = (String::new(), String::new(), Headers::default(), Vec::new());
        Self { message, key, headers, value, masked: true, ..self }
    }
}
