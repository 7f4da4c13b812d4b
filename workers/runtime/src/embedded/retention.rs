//! What the file forgets, in small steps between other work.

use std::{sync::PoisonError, time::Duration};

use endcap_schemas::topics::Topic;
use rusqlite::{Transaction, params};

use super::{Embedded, Shared};
use crate::LogError;

/// Time between two looks at what may go.
const EVERY_MS: i64 = 5_000;

/// What is kept. A record that a group has not consumed is kept whatever these say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Records older than this go.
    pub records_age: Duration,
    /// Of each topic, records beyond this many go, oldest first.
    pub records_max: u32,
    /// Stage results older than this go.
    pub results_age: Duration,
    /// Dead letters older than this go.
    pub dead_letters_age: Duration,
    /// Dead letters beyond this many go, oldest first.
    pub dead_letters_max: u32,
    /// Cached answers beyond this many go, oldest first.
    pub cached_max: u32,
    /// Rows of one table that go in one step.
    pub step: u32,
}

impl Default for Retention {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        Self {
            records_age: DAY,
            records_max: 200_000,
            results_age: DAY,
            dead_letters_age: DAY * 7,
            dead_letters_max: 100_000,
            cached_max: 200_000,
            step: 500,
        }
    }
}

/// How many rows went in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retained {
    /// Records of topics.
    pub records: usize,
    /// Stage results.
    pub results: usize,
    /// Dead letters.
    pub dead_letters: usize,
    /// Cached answers.
    pub cached: usize,
}

impl Retained {
    /// All rows.
    pub fn total(self) -> usize {
        self.records + self.results + self.dead_letters + self.cached
    }
}

impl Embedded {
    /// Does one bounded step now. The log's consumers do the same between other work.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn retain(&self) -> Result<Retained, LogError> {
        self.shared.retain()
    }
}

impl Shared {
    /// A step, if the last one was long enough ago or has left something over.
    pub(super) fn retain_if_due(&self) -> Result<(), LogError> {
        let now_ms = self.clock.now_ms();
        {
            let mut last_ms = self.retained_ms.lock().unwrap_or_else(PoisonError::into_inner);
            if now_ms - *last_ms < EVERY_MS {
                return Ok(());
            }
            *last_ms = now_ms;
        }
        let gone = self.retain()?;
        if gone.total() >= self.config.retention.step as usize {
            *self.retained_ms.lock().unwrap_or_else(PoisonError::into_inner) = now_ms - EVERY_MS;
        }
        Ok(())
    }

    fn retain(&self) -> Result<Retained, LogError> {
        let (now_ms, keep) = (self.clock.now_ms(), self.config.retention);
        let before = |age: Duration| now_ms.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
        let step = i64::from(keep.step);
        self.write(|transaction| {
            let mut gone = Retained::default();
            for topic in Topic::all() {
                gone.records += trim(transaction, topic, before(keep.records_age), &keep)?;
            }
            gone.results = transaction
                .prepare_cached(
                    "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results WHERE at_ms < ?1 ORDER BY at_ms LIMIT ?2)",
                )?
                .execute(params![before(keep.results_age), step])?;
            gone.dead_letters = transaction
                .prepare_cached(
                    "DELETE FROM dead_letters WHERE id IN (SELECT id FROM dead_letters ORDER BY id LIMIT ?2)
                        AND (at_ms < ?1 OR id <= (SELECT max(id) FROM dead_letters) - ?3)",
                )?
                .execute(params![before(keep.dead_letters_age), step, keep.dead_letters_max])?;
            gone.cached = transaction
                .prepare_cached(
                    "DELETE FROM cache WHERE id IN (SELECT id FROM cache ORDER BY id LIMIT ?1)
                        AND id <= (SELECT max(id) FROM cache) - ?2",
                )?
                .execute(params![step, keep.cached_max])?;
            Ok(gone)
        })
    }
}

/// Removes the oldest records of a topic that every group has consumed and that are too old or too many: at most a step.
fn trim(transaction: &Transaction<'_>, topic: Topic, before_ms: i64, keep: &Retention) -> rusqlite::Result<usize> {
    let (end, consumed): (i64, i64) = transaction
        .prepare_cached(
            "SELECT next, min(next, coalesce((SELECT min(next) FROM positions WHERE topic = ?1), next)) FROM topics WHERE name = ?1",
        )?
        .query_row([topic.name()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let surplus = end - i64::from(keep.records_max);
    transaction
        .prepare_cached(&format!(
            "DELETE FROM \"{topic}\" WHERE \"offset\" IN (SELECT \"offset\" FROM \"{topic}\" ORDER BY \"offset\" LIMIT ?1)
                AND \"offset\" < ?2 AND (\"offset\" < ?3 OR appended_ms < ?4)"
        ))?
        .execute(params![keep.step, consumed, surplus, before_ms])
}
