//! Looking over the whole file, for pages that list, reports that count, and senders that must not lose what was refused.

use std::collections::BTreeMap;

use endcap_schemas::UserKey;
use rusqlite::params;

use super::{Embedded, Producer, dead_letters};
use crate::{DeadLetter, LogError, Stamp, StoreError, StoredPage};

impl Embedded {
    /// Users with a page (withdrawn ones included) and the page, by key, at most `limit` from `after` (exclusive).
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.pages("user > ?1", &after.map(ToString::to_string).unwrap_or_default(), limit)
    }

    /// Users whose key holds `part`, with their pages, by key.
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.pages("instr(lower(user), lower(?1)) > 0", part, limit)
    }

    /// How many users have a page.
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn pages_count(&self) -> Result<u64, StoreError> {
        self.shared.read(|connection| {
            let count: i64 = connection
                .prepare_cached("SELECT count(*) FROM pages WHERE page IS NOT NULL")?
                .query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

    /// How many users have a fold state: those whose context ever changed, less the erased ones.
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn states_count(&self) -> Result<u64, StoreError> {
        self.shared.read(|connection| {
            let count: i64 = connection.prepare_cached("SELECT count(*) FROM states")?.query_row([], |row| row.get(0))?;
            Ok(count.unsigned_abs())
        })
    }

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

    fn pages(&self, condition: &str, value: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.shared.read(|connection| {
            let sql = format!("SELECT user, stamp, page, written_ms FROM pages WHERE {condition} ORDER BY user LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params![value, i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
                let user: String = row.get(0)?;
                let page = StoredPage { stamp: Stamp(row.get(1)?), page: row.get(2)?, written_ms: row.get(3)? };
                Ok((user.parse().unwrap_or_else(|never| match never {}), page))
            })?;
            rows.collect()
        })
    }
}

impl Producer {
    /// Keeps what was refused before it entered the log. Durable when it answers.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer; then nothing was kept.
    pub fn bury(&self, letters: &[DeadLetter]) -> Result<(), LogError> {
        let now_ms = self.shared.clock.now_ms();
        self.shared.write(|transaction| letters.iter().try_for_each(|letter| dead_letters::bury(transaction, letter, now_ms)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use endcap_schemas::topics::Topic;

    use super::*;
    use crate::{DeadLetterFilter, EmbeddedConfig, Headers, ManualClock, Received, Store, Write};

    fn open(dir: &tempfile::TempDir) -> Embedded {
        Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), Arc::new(ManualClock::at(5_000))).unwrap()
    }

    #[test]
    fn pages_are_listed_by_key_and_found_by_a_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(&dir);
        for (user, page) in [("Ada", Some(vec![1])), ("bob", None), ("cleo", Some(vec![3]))] {
            file.put(&[Write::Page { user: UserKey::of(user), stamp: Stamp(7), page }]).unwrap();
        }
        let names = |found: Vec<(UserKey, StoredPage)>| found.into_iter().map(|(user, _)| user.user).collect::<Vec<_>>();
        assert_eq!(names(file.pages_after(None, 2).unwrap()), ["Ada", "bob"]);
        assert_eq!(names(file.pages_after(Some(&UserKey::of("bob")), 2).unwrap()), ["cleo"]);
        assert_eq!(names(file.pages_like("A", 9).unwrap()), ["Ada", "bob", "cleo"]); // the tenant `default` holds an a
        assert_eq!(names(file.pages_like("ADA", 9).unwrap()), ["Ada"]);
        assert_eq!(names(file.pages_like("%", 9).unwrap()), [""; 0]);
        assert_eq!(file.pages_count().unwrap(), 2);
    }

    #[test]
    fn what_was_refused_at_the_door_is_listed_as_a_dead_letter() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(&dir);
        let letter = DeadLetter {
            record: Received {
                topic: Topic::EVENTS,
                partition: 0,
                offset: -1,
                appended_ms: 5_000,
                key: "default/ada".into(),
                headers: Headers::root("e1", Topic::EVENTS, 5_000),
                value: b"{}".to_vec(),
            },
            group: "http".into(),
            stage: "ingest".into(),
            attempts: 1,
            kind: "malformed".into(),
            message: "no".into(),
        };
        file.producer().bury(&[letter]).unwrap();
        let found = file.dead_letters(&DeadLetterFilter::default()).unwrap();
        assert_eq!((found[0].stage.as_str(), found[0].kind.as_str()), ("ingest", "malformed"));
        assert_eq!(file.dead_letter_counts().unwrap()[&("ingest".to_owned(), "malformed".to_owned())], 1);
    }
}
