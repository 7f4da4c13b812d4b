//! The embedded side of [`Log`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use endcap_schemas::topics::Topic;
use rusqlite::{Connection, Transaction, params};

use super::{Fault, Shared, append, backlog, connect, dead_letters, read_records};
use crate::{Backlog, Commit, Log, LogError, Received, Tally};

/// How often an idle consumer looks whether another process has written.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A group's connection to its topic.
///
/// Positions are moved by compare-and-set: of two processes of one group that work on the same records, one commits and the other meets
/// [`LogError::Conflict`].
pub struct Consumer {
    shared: Arc<Shared>,
    connection: Connection,
    group: String,
    topic: Topic,
    /// The group's position as this consumer knows it.
    committed: i64,
    /// The first offset that it has not polled.
    next: i64,
}

impl Consumer {
    pub(super) fn new(shared: Arc<Shared>, group: &str, topic: Topic) -> Result<Self, LogError> {
        let connection = connect(&shared.path, shared.config.busy_timeout).map_err(Fault)?;
        let mut consumer = Self { shared, connection, group: group.to_owned(), topic, committed: 0, next: 0 };
        consumer.rewind()?;
        Ok(consumer)
    }

    /// Goes back to the group's position.
    fn rewind(&mut self) -> Result<(), LogError> {
        self.committed = self.position()?;
        self.next = self.committed;
        Ok(())
    }

    fn position(&self) -> Result<i64, LogError> {
        let mut statement =
            self.connection.prepare_cached("SELECT next FROM positions WHERE \"group\" = ?1 AND topic = ?2").map_err(Fault)?;
        Ok(statement.query_row(params![self.group, self.topic.name()], |row| row.get(0)).map_err(Fault)?)
    }

    fn conflict(&mut self) -> LogError {
        // A rewind that fails leaves the old position, on which the next commit conflicts again.
        match self.rewind() {
            Ok(()) => LogError::Conflict(self.group.clone()),
            Err(error) => error,
        }
    }

    /// Changes whenever another connection has committed.
    fn data_version(&self) -> Result<i64, LogError> {
        let mut statement = self.connection.prepare_cached("PRAGMA data_version").map_err(Fault)?;
        Ok(statement.query_row([], |row| row.get(0)).map_err(Fault)?)
    }

    /// Sleeps until the file changes or `deadline` comes; answers whether it changed.
    fn sleep(&self, appends: u64, version: i64, deadline: Instant) -> Result<bool, LogError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if self.shared.wake.wait(appends, left.min(LOOK_EVERY)) || self.data_version()? != version {
                return Ok(true);
            }
        }
    }
}

impl Log for Consumer {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Received>, LogError> {
        let deadline = Instant::now() + wait;
        loop {
            let (appends, version) = (self.shared.wake.appends(), self.data_version()?);
            if self.position()? != self.committed {
                return Err(self.conflict());
            }
            let records = read_records(&self.connection, self.topic, self.next, max).map_err(Fault)?;
            if let Some(last) = records.last() {
                self.next = last.offset + 1;
                return Ok(records);
            }
            self.shared.retain_if_due()?;
            if !self.sleep(appends, version, deadline)? {
                return Ok(Vec::new());
            }
        }
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        let through = commit.through.get(&0).copied().unwrap_or(self.committed);
        assert!(
            (self.committed..=self.next).contains(&through) && commit.through.keys().all(|partition| *partition == 0),
            "a commit ends between the position {} and what was polled, {}: {:?}",
            self.committed,
            self.next,
            commit.through,
        );
        let now_ms = self.shared.clock.now_ms();
        let moved = self.shared.write::<_, LogError>(|transaction| {
            let moved = transaction
                .prepare_cached("UPDATE positions SET next = ?4 WHERE \"group\" = ?1 AND topic = ?2 AND next = ?3")?
                .execute(params![self.group, self.topic.name(), self.committed, through])?;
            if moved == 0 {
                return Ok(false);
            }
            append(transaction, &commit.outputs, now_ms)?;
            commit.dead_letters.iter().try_for_each(|letter| dead_letters::bury(transaction, letter, now_ms))?;
            count(transaction, &commit.stage, &commit.tally)?;
            Ok(true)
        })?;
        if !moved {
            return Err(self.conflict());
        }
        self.committed = through;
        self.shared.wake.notify();
        // The commit stands; what retention could not do now it does next time.
        let _ = self.shared.retain_if_due();
        Ok(())
    }

    fn backlog(&mut self) -> Result<Backlog, LogError> {
        let mut statement = self.connection.prepare_cached("SELECT next FROM topics WHERE name = ?1").map_err(Fault)?;
        let end = statement.query_row([self.topic.name()], |row| row.get(0)).map_err(Fault)?;
        Ok(backlog(&self.connection, self.topic.name(), self.committed, end).map_err(Fault)?)
    }

    fn group(&self) -> &str {
        &self.group
    }
}

/// Adds a tally to the stage's rows. Times are kept in microseconds.
pub(super) fn count(transaction: &Transaction<'_>, stage: &str, tally: &Tally) -> rusqlite::Result<()> {
    let add = |kind: &str, name: &str, amount: u64| {
        if amount == 0 {
            return Ok(());
        }
        transaction
            .prepare_cached(
                "INSERT INTO tallies VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (stage, kind, name) DO UPDATE SET amount = amount + excluded.amount",
            )?
            .execute(params![stage, kind, name, i64::try_from(amount).unwrap_or(i64::MAX)])
            .map(|_| ())
    };
    add("received", "", tally.received)?;
    add("passed", "", tally.passed)?;
    add("batches", "", tally.batches)?;
    for (kind, amounts) in [("dropped", &tally.dropped), ("dead_lettered", &tally.dead_lettered), ("counter", &tally.counters)] {
        amounts.iter().try_for_each(|(name, amount)| add(kind, name, *amount))?;
    }
    tally.spent.iter().try_for_each(|(name, time)| add("spent_us", name, u64::try_from(time.as_micros()).unwrap_or(u64::MAX)))
}

/// Puts a row that [`count`] wrote back into a tally.
pub(super) fn add_row(tally: &mut Tally, kind: &str, name: String, amount: u64) {
    match kind {
        "received" => tally.received = amount,
        "passed" => tally.passed = amount,
        "batches" => tally.batches = amount,
        "dropped" => drop(tally.dropped.insert(name, amount)),
        "dead_lettered" => drop(tally.dead_lettered.insert(name, amount)),
        "counter" => drop(tally.counters.insert(name, amount)),
        "spent_us" => drop(tally.spent.insert(name, Duration::from_micros(amount))),
        _ => {}
    }
}
