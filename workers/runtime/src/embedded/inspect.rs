//! Looking over the whole file, for pages that list and reports that count.

use std::collections::BTreeMap;

use endcap_schemas::{UserKey, topics::Topic};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Embedded, backlog, store::USER_TABLES};
use crate::{GroupState, LogError, Remain, Stamp, StoreError, StoreOverview, StoredPage};

impl StoreOverview for Embedded {
    fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.pages("user > ?1", &after.map(ToString::to_string).unwrap_or_default(), limit)
    }

    fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let own = format!("{}/", UserKey::DEFAULT_TENANT);
        let shown = format!("CASE WHEN substr(user, 1, {0}) = '{own}' THEN substr(user, {0} + 1) ELSE user END", own.len());
        self.pages(&format!("instr(lower({shown}), lower(?1)) > 0"), part, limit)
    }

    fn pages_count(&self) -> Result<u64, StoreError> {
        self.count("SELECT count(*) FROM pages WHERE page IS NOT NULL")
    }

    fn states_count(&self) -> Result<u64, StoreError> {
        self.count("SELECT count(*) FROM states")
    }

    fn remains(&self, user: &UserKey) -> Result<Vec<Remain>, StoreError> {
        self.shared.read(|connection| {
            let mut remains = Vec::new();
            for table in USER_TABLES {
                let mut statement = connection.prepare_cached(&format!("SELECT stamp FROM {table} WHERE user = ?1"))?;
                let rows =
                    statement.query_map([user.to_string()], |row| Ok(Remain { table, stamp: Some(Stamp(row.get(0)?)) }))?;
                remains.extend(rows.collect::<rusqlite::Result<Vec<_>>>()?);
            }
            Ok(remains)
        })
    }

    fn note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        const NOTE: &str = "INSERT INTO meta VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
        self.shared.write(|transaction| transaction.execute(NOTE, [name, value]).map(|_| ()))
    }

    fn noted(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.shared.read(|connection| {
            connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0)).optional()
        })
    }

    fn add_generation(&self, generation: i32, manifest: &str) -> Result<Option<String>, StoreError> {
        self.shared.write(|transaction| {
            let values = params![generation, manifest];
            transaction.execute("INSERT INTO generations VALUES (?1, ?2) ON CONFLICT DO NOTHING", values)?;
            let other = "SELECT manifest FROM generations WHERE generation = ?1 AND manifest <> ?2";
            transaction.query_row(other, values, |row| row.get(0)).optional()
        })
    }

    fn generation(&self, number: Option<i32>) -> Result<Option<(i32, String)>, StoreError> {
        self.shared.read(|connection| {
            connection
                .prepare_cached(
                    "SELECT generation, manifest FROM generations WHERE ?1 IS NULL OR generation = ?1 ORDER BY generation DESC LIMIT 1",
                )?
                .query_row([number], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()
        })
    }

    fn generations(&self) -> Result<Vec<(i32, String)>, StoreError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare("SELECT generation, manifest FROM generations ORDER BY generation DESC")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }
}

impl Embedded {
    /// Dead letters that are kept, by stage and kind of fault.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn dead_letter_counts(&self) -> Result<BTreeMap<(String, String), u64>, LogError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT stage, kind, count(*) FROM dead_letters GROUP BY 1, 2")?;
            let rows = statement.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), row.get::<_, i64>(2)?.unsigned_abs())))?;
            rows.collect()
        })
    }

    /// How every group stands.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached(
                "SELECT p.\"group\", p.topic, p.next, t.next FROM positions p JOIN topics t ON t.name = p.topic ORDER BY 2, 1",
            )?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?;
            let rows: Vec<(String, String, i64, i64)> = rows.collect::<Result<_, _>>()?;
            rows.into_iter().map(|row| state_of(connection, row)).collect()
        })
    }

    /// How `group` stands on `topic`; one that is not known at the oldest record.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn group(&self, group: &str, topic: Topic) -> Result<GroupState, LogError> {
        self.shared.read(|connection| {
            let row = connection
                .prepare_cached(
                    "SELECT coalesce(p.next, 0), t.next FROM topics t
                     LEFT JOIN positions p ON p.topic = t.name AND p.\"group\" = ?1 WHERE t.name = ?2",
                )?
                .query_row([group, topic.name()], |row| {
                    Ok((group.to_owned(), topic.name().to_owned(), row.get(0)?, row.get(1)?))
                })?;
            state_of(connection, row)
        })
    }

    /// Offset of the first record of `topic` that was appended at `at_ms` or later; the end where there is none.
    pub(super) fn offset_at(&self, topic: Topic, at_ms: i64) -> Result<i64, LogError> {
        self.shared.read(|connection| {
            let found: Option<i64> = connection
                .prepare_cached(&format!("SELECT min(\"offset\") FROM \"{topic}\" WHERE appended_ms >= ?1"))?
                .query_row([at_ms], |row| row.get(0))?;
            let end = connection.query_row("SELECT next FROM topics WHERE name = ?1", [topic.name()], |row| row.get(0))?;
            Ok(found.unwrap_or(end))
        })
    }

    fn count(&self, sql: &str) -> Result<u64, StoreError> {
        self.shared.read(|connection| {
            let count: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    fn pages(&self, condition: &str, value: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.shared.read(|connection| {
            let sql = format!(
                "SELECT user, stamp, page, written_ms FROM pages WHERE page IS NOT NULL AND {condition} ORDER BY user LIMIT ?2"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![value, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                let user: String = row.get(0)?;
                let page = StoredPage { stamp: Stamp(row.get(1)?), page: row.get(2)?, written_ms: row.get(3)? };
                Ok((UserKey::named(&user), page))
            })?;
            rows.collect()
        })
    }
}

/// How a group stands, of its name, its topic, its position and the end.
fn state_of(connection: &Connection, (group, topic, position, end): (String, String, i64, i64)) -> rusqlite::Result<GroupState> {
    let backlog = backlog(connection, &topic, position, end)?;
    Ok(GroupState { group, topic, partition: 0, position, end, backlog })
}
