//! The embedded side of [`Store`]: the same file, tables of its own.

use endcap_schemas::UserKey;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::Embedded;
use crate::{Erasure, StageResult, Stamp, Store, StoreError, StoredPage, Write, store::check_sizes};

/// Stages in path order, for [`Store::results`]; others come after them, by time.
const PATH: [&str; 5] = ["context", "themes", "keywords", "dedup", "aiqa"];
/// Tables whose rows are derived of one user; an erasure empties them.
pub(super) const USER_TABLES: [&str; 3] = ["states", "pages", "results"];
/// Partition and offset of an erasure that was not asked for in the log.
const NOWHERE: (i32, i64) = (-1, -1);

impl Store for Embedded {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        check_sizes(writes, results)?;
        let now_ms = self.shared.clock.now_ms();
        self.shared.write(|transaction| {
            writes.iter().try_for_each(|write| put(transaction, write, now_ms))?;
            results.iter().try_for_each(|result| put_result(transaction, result))
        })
    }

    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT state FROM states WHERE user = ?1")?;
            users.iter().map(|user| statement.query_row([user.to_string()], |row| row.get(0)).optional()).collect()
        })
    }

    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        self.shared.read(|connection| {
            connection
                .prepare_cached("SELECT stamp, page, written_ms FROM pages WHERE user = ?1")?
                .query_row([user.to_string()], |row| {
                    Ok(StoredPage { stamp: Stamp(row.get(0)?), page: row.get(1)?, written_ms: row.get(2)? })
                })
                .optional()
        })
    }

    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        let mut results: Vec<StageResult> = self.shared.read::<_, StoreError>(|connection| {
            let mut statement = connection
                .prepare_cached("SELECT stage, stamp, explanation, at_ms FROM results WHERE user = ?1 ORDER BY at_ms, rowid")?;
            let rows = statement.query_map([user.to_string()], |row| {
                Ok(StageResult {
                    user: user.clone(),
                    stage: row.get(0)?,
                    stamp: Stamp(row.get(1)?),
                    explanation: row.get(2)?,
                    at_ms: row.get(3)?,
                })
            })?;
            rows.collect()
        })?;
        results.sort_by_key(|result| PATH.iter().position(|stage| *stage == result.stage).unwrap_or(PATH.len()));
        Ok(results)
    }

    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.shared.read(|connection| users.iter().map(|user| erasure_of(connection, user)).collect())
    }

    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT value FROM cache WHERE cache = ?1 AND \"key\" = ?2")?;
            keys.iter().map(|key| statement.query_row(params![cache, &key[..]], |row| row.get(0)).optional()).collect()
        })
    }

    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.shared.write(|transaction| {
            let mut statement = transaction.prepare_cached("INSERT OR REPLACE INTO cache VALUES (NULL, ?1, ?2, ?3)")?;
            entries.iter().try_for_each(|(key, value)| statement.execute(params![cache, &key[..], value]).map(|_| ()))
        })
    }
}

/// The latest erasure of a user.
pub(super) fn erasure_of(connection: &Connection, user: &UserKey) -> rusqlite::Result<Option<Erasure>> {
    let read = |row: &Row<'_>| {
        let at: (i32, i64) = (row.get(1)?, row.get(2)?);
        Ok(Erasure { stamp: Stamp(row.get(0)?), at: (at != NOWHERE).then_some(at) })
    };
    let mut statement = connection.prepare_cached("SELECT stamp, partition, \"offset\" FROM erased WHERE user = ?1")?;
    statement.query_row([user.to_string()], read).optional()
}

/// One write; what is older than its row, or not younger than its user's erasure, changes nothing.
fn put(transaction: &Transaction<'_>, write: &Write, now_ms: i64) -> rusqlite::Result<()> {
    match write {
        Write::State { user, stamp, state } => transaction
            .prepare_cached(
                "INSERT INTO states SELECT ?1, ?2, ?3 WHERE NOT EXISTS (SELECT 1 FROM erased WHERE user = ?1 AND stamp >= ?2)
                 ON CONFLICT (user) DO UPDATE SET stamp = excluded.stamp, state = excluded.state
                 WHERE (excluded.stamp, excluded.state) > (states.stamp, states.state)",
            )?
            .execute(params![user.to_string(), stamp.0, state]),
        Write::Page { user, stamp, page } => transaction
            .prepare_cached(
                "INSERT INTO pages SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (SELECT 1 FROM erased WHERE user = ?1 AND stamp >= ?2)
                 ON CONFLICT (user) DO UPDATE SET stamp = excluded.stamp, page = excluded.page, written_ms = excluded.written_ms
                 WHERE (excluded.stamp, excluded.page IS NOT NULL, coalesce(excluded.page, x''))
                     > (pages.stamp, pages.page IS NOT NULL, coalesce(pages.page, x''))",
            )?
            .execute(params![user.to_string(), stamp.0, page, now_ms]),
        Write::Erase { user, stamp, at } => erase(transaction, &user.to_string(), *stamp, at.unwrap_or(NOWHERE)),
    }
    .map(|_| ())
}

fn erase(transaction: &Transaction<'_>, user: &str, stamp: Stamp, at: (i32, i64)) -> rusqlite::Result<usize> {
    transaction
        .prepare_cached(
            "INSERT INTO erased VALUES (?1, ?2, ?3, ?4) ON CONFLICT (user) DO UPDATE
             SET stamp = excluded.stamp, partition = excluded.partition, \"offset\" = excluded.\"offset\"
             WHERE (excluded.stamp, excluded.partition, excluded.\"offset\")
                 > (erased.stamp, erased.partition, erased.\"offset\")",
        )?
        .execute(params![user, stamp.0, at.0, at.1])?;
    let mut gone = 0;
    for table in USER_TABLES {
        gone += transaction
            .prepare_cached(&format!("DELETE FROM {table} WHERE user = ?1 AND stamp <= ?2"))?
            .execute(params![user, stamp.0])?;
    }
    Ok(gone)
}

fn put_result(transaction: &Transaction<'_>, result: &StageResult) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO results SELECT ?1, ?2, ?3, ?4, ?5 WHERE NOT EXISTS (SELECT 1 FROM erased WHERE user = ?1 AND stamp >= ?3)
             ON CONFLICT (user, stage) DO UPDATE SET stamp = excluded.stamp, explanation = excluded.explanation, at_ms = excluded.at_ms
             WHERE (excluded.stamp, excluded.explanation) > (results.stamp, results.explanation)",
        )?
        .execute(params![result.user.to_string(), result.stage, result.stamp.0, result.explanation, result.at_ms])
        .map(|_| ())
}
