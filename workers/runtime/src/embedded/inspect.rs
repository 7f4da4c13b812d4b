//! Looking over the whole file, for pages that list and reports that count.

use std::collections::BTreeMap;

use endcap_schemas::UserKey;
use rusqlite::params;

use super::Embedded;
use crate::{LogError, Stamp, StoreError, StoredPage};

impl Embedded {
    /// Users with a page and the page, by key, at most `limit` from `after` (exclusive).
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.pages("user > ?1", &after.map(ToString::to_string).unwrap_or_default(), limit)
    }

    /// Users whose key holds `part`, with their pages, by key. Of the default tenant only the user counts.
    ///
    /// # Errors
    /// [`StoreError`] when the file does not answer.
    pub fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let own = format!("{}/", UserKey::DEFAULT_TENANT);
        let shown = format!("CASE WHEN substr(user, 1, {0}) = '{own}' THEN substr(user, {0} + 1) ELSE user END", own.len());
        self.pages(&format!("instr(lower({shown}), lower(?1)) > 0"), part, limit)
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
            let sql = format!(
                "SELECT user, stamp, page, written_ms FROM pages WHERE page IS NOT NULL AND {condition} ORDER BY user LIMIT ?2"
            );
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use endcap_schemas::topics::Topic;

    use super::*;
    use crate::{DeadLetter, DeadLetterFilter, EmbeddedConfig, Headers, ManualClock, Received, Store, Write};

    fn open(dir: &tempfile::TempDir) -> Embedded {
        Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), Arc::new(ManualClock::at(5_000))).unwrap()
    }

    #[test]
    fn pages_are_listed_by_key_and_found_by_a_part_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = open(&dir);
        for (user, page) in [("Ada", Some(vec![1])), ("bob", None), ("cleo", Some(vec![3])), ("dora", Some(vec![4]))] {
            file.put_all(&[Write::Page { user: UserKey::of(user), stamp: Stamp(7), page }], &[]).unwrap();
        }
        let elsewhere = UserKey { tenant: "alpine".into(), user: "eve".into() };
        file.put_all(&[Write::Page { user: elsewhere, stamp: Stamp(7), page: Some(vec![5]) }], &[]).unwrap();
        let names = |found: Vec<(UserKey, StoredPage)>| found.into_iter().map(|(user, _)| user.user).collect::<Vec<_>>();
        assert_eq!(names(file.pages_after(None, 3).unwrap()), ["eve", "Ada", "cleo"], "a withdrawn page takes no place");
        assert_eq!(names(file.pages_after(Some(&UserKey::of("bob")), 1).unwrap()), ["cleo"]);
        assert_eq!(names(file.pages_like("A", 9).unwrap()), ["eve", "Ada", "dora"], "`default` holds an a, but is not looked at");
        for (part, found) in [("ADA", &["Ada"][..]), ("bob", &[]), ("alp", &["eve"]), ("fault", &[]), ("%", &[])] {
            assert_eq!(names(file.pages_like(part, 9).unwrap()), found, "{part}");
        }
        assert_eq!(file.pages_count().unwrap(), 4);
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
        file.producer().admit(&[], &[letter]).unwrap();
        let found = file.dead_letters(&DeadLetterFilter::default()).unwrap();
        assert_eq!((found[0].stage.as_str(), found[0].kind.as_str()), ("ingest", "malformed"));
        assert_eq!(file.dead_letter_counts().unwrap()[&("ingest".to_owned(), "malformed".to_owned())], 1);
    }
}
