//! Dead letters: kept with their original bytes, listed, shown, sent again.

use std::collections::BTreeMap;

use endcap_schemas::{UserKey, topics::Topic};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{Embedded, append, headers_of, store::erasure_of};
use crate::{DeadLetter, DeadLetterFilter, DeadLetterId, LogError, Outgoing, StoredDeadLetter};

const SELECT: &str =
    "SELECT id, at_ms, stage, \"group\", attempts, kind, message, topic, partition, \"offset\", appended_ms, \"key\", headers,
        CASE WHEN ?1 THEN value ELSE x'' END
    FROM dead_letters";

impl Embedded {
    /// Dead letters, newest first, without their bytes.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, LogError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached(&format!(
                "{SELECT} WHERE (?2 IS NULL OR kind = ?2) AND (?3 IS NULL OR stage = ?3) AND (?4 IS NULL OR \"key\" = ?4)
                    AND (?5 IS NULL OR at_ms >= ?5) ORDER BY id DESC LIMIT ?6"
            ))?;
            let user = filter.user.as_ref().map(ToString::to_string);
            let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
            let rows = statement.query_map(params![false, filter.kind, filter.stage, user, filter.since_ms, limit], letter_of)?;
            rows.map(|letter| as_erased(connection, letter?)).collect()
        })
    }

    /// One dead letter with its bytes; an id that is no number is none of this file's.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<StoredDeadLetter>, LogError> {
        let Some(id) = number_of(id) else { return Ok(None) };
        self.shared.read(|connection| read_one(connection, id))
    }

    /// Sends dead letters again, with their key, headers and bytes, and removes them from the list. The key that one came under before it was
    /// filed under its user is gone. Those of erased users stay. Answers how many were sent.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer; then none was sent.
    pub fn redrive(&self, ids: &[DeadLetterId]) -> Result<usize, LogError> {
        let now_ms = self.shared.clock.now_ms();
        let sent = self.shared.write::<_, LogError>(|transaction| {
            let mut sent = 0;
            for id in ids.iter().filter_map(number_of) {
                let Some(letter) = read_one(transaction, id)? else { continue };
                let Some(topic) = Topic::named(&letter.topic) else { continue };
                if letter.masked {
                    continue;
                }
                let key = UserKey::named(&letter.key);
                let headers = letter.headers.without_key();
                append(transaction, &[Outgoing { topic, key, headers, value: letter.value }], now_ms)?;
                sent += transaction.execute("DELETE FROM dead_letters WHERE id = ?1", [id])?;
            }
            Ok(sent)
        })?;
        self.shared.wake.notify();
        Ok(sent)
    }
}

fn number_of(id: &DeadLetterId) -> Option<i64> {
    id.as_str().parse().ok()
}

/// A letter with its bytes.
fn read_one(connection: &Connection, id: i64) -> rusqlite::Result<Option<StoredDeadLetter>> {
    let mut statement = connection.prepare_cached(&format!("{SELECT} WHERE id = ?2"))?;
    let letter = statement.query_row(params![true, id], letter_of).optional()?;
    letter.map(|letter| as_erased(connection, letter)).transpose()
}

/// A letter without what erasures have taken.
fn as_erased(connection: &Connection, letter: StoredDeadLetter) -> rusqlite::Result<StoredDeadLetter> {
    let mut erasures = BTreeMap::new();
    for user in letter.users() {
        let erasure = erasure_of(connection, &user)?;
        erasures.extend(erasure.map(|erasure| (user, erasure)));
    }
    Ok(letter.erased_by(&erasures))
}

fn letter_of(row: &Row<'_>) -> rusqlite::Result<StoredDeadLetter> {
    Ok(StoredDeadLetter {
        id: DeadLetterId::new(row.get::<_, i64>(0)?.to_string()),
        at_ms: row.get(1)?,
        stage: row.get(2)?,
        group: row.get(3)?,
        attempts: row.get(4)?,
        kind: row.get(5)?,
        message: row.get(6)?,
        topic: row.get(7)?,
        partition: row.get(8)?,
        offset: row.get(9)?,
        appended_ms: row.get(10)?,
        key: row.get(11)?,
        headers: headers_of(&row.get::<_, String>(12)?),
        value: row.get(13)?,
        masked: false,
    })
}

pub(super) fn bury(transaction: &Transaction<'_>, letter: &DeadLetter, now_ms: i64) -> rusqlite::Result<()> {
    let record = &letter.record;
    let headers = serde_json::to_string(&record.headers).expect("headers are plain text and numbers");
    transaction
        .prepare_cached("INSERT INTO dead_letters VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)")?
        .execute(params![
            now_ms,
            letter.stage,
            letter.group,
            letter.attempts,
            letter.kind,
            letter.message,
            record.topic.name(),
            record.partition,
            record.offset,
            record.appended_ms,
            record.key,
            record.headers.time_ms,
            headers,
            record.value,
        ])
        .map(|_| ())
}
