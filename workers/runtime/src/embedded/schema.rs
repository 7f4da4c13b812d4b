//! The tables of the file and how an older file becomes a newer one.

use std::path::Path;

use endcap_schemas::topics::{Lane, Topic};
use rusqlite::{Connection, TransactionBehavior};

use super::OpenError;

/// Marks a file as Endcap's in its header: "Endc".
const APPLICATION_ID: i32 = 0x456E_6463;

/// One step per schema version: the n-th brings a file from version n to n + 1.
pub(super) fn migrations() -> Vec<String> {
    vec![first(), second(), third(), fourth(), fifth()]
}

/// Version 1: one table per topic, named like it, so that `sqlite3` shows what is where.
fn first() -> String {
    let topics = tables_on(Lane::Live);
    format!(
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE topics (name TEXT PRIMARY KEY, next INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE positions (\"group\" TEXT NOT NULL, topic TEXT NOT NULL, next INTEGER NOT NULL,
             PRIMARY KEY (\"group\", topic)) STRICT, WITHOUT ROWID;
         CREATE TABLE progress (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE tallies (stage TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, amount INTEGER NOT NULL,
             PRIMARY KEY (stage, kind, name)) STRICT, WITHOUT ROWID;
         CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, stage TEXT NOT NULL,
             \"group\" TEXT NOT NULL, attempts INTEGER NOT NULL, kind TEXT NOT NULL, message TEXT NOT NULL, topic TEXT NOT NULL,
             partition INTEGER NOT NULL, \"offset\" INTEGER NOT NULL, appended_ms INTEGER NOT NULL, \"key\" TEXT NOT NULL,
             time_ms INTEGER NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL) STRICT;
         CREATE INDEX dead_letters_by_key ON dead_letters (\"key\");
         CREATE TABLE states (user TEXT PRIMARY KEY, stamp INTEGER NOT NULL, state BLOB NOT NULL) STRICT;
         CREATE TABLE pages (user TEXT PRIMARY KEY, stamp INTEGER NOT NULL, page BLOB, written_ms INTEGER NOT NULL) STRICT;
         CREATE TABLE erased (user TEXT PRIMARY KEY, stamp INTEGER NOT NULL) STRICT, WITHOUT ROWID;
         CREATE TABLE results (user TEXT NOT NULL, stage TEXT NOT NULL, stamp INTEGER NOT NULL, explanation TEXT NOT NULL,
             at_ms INTEGER NOT NULL, UNIQUE (user, stage)) STRICT;
         CREATE INDEX results_by_age ON results (at_ms);
         CREATE TABLE cache (id INTEGER PRIMARY KEY AUTOINCREMENT, cache TEXT NOT NULL, \"key\" BLOB NOT NULL, value BLOB NOT NULL,
             UNIQUE (cache, \"key\")) STRICT;
         {topics}"
    )
}

/// The path's topics on a lane.
fn tables_on(lane: Lane) -> String {
    Topic::PATH.into_iter().map(|topic| table_of(topic.on(lane))).collect()
}

fn table_of(topic: Topic) -> String {
    format!(
        "CREATE TABLE \"{topic}\" (\"offset\" INTEGER PRIMARY KEY, appended_ms INTEGER NOT NULL, \"key\" TEXT NOT NULL,
             headers TEXT NOT NULL, value BLOB NOT NULL) STRICT;
         INSERT INTO topics VALUES ('{topic}', 0);"
    )
}

/// Version 2: an erasure tells where in the log it was asked for; that of an older one is not known.
fn second() -> String {
    "ALTER TABLE erased ADD COLUMN partition INTEGER NOT NULL DEFAULT -1;
     ALTER TABLE erased ADD COLUMN \"offset\" INTEGER NOT NULL DEFAULT -1;"
        .to_owned()
}

/// Version 3: the manifests that the pipeline was deployed with, under their numbers.
fn third() -> String {
    "CREATE TABLE generations (generation INTEGER PRIMARY KEY, manifest TEXT NOT NULL) STRICT;".to_owned()
}

/// Version 4: the topics of the backfill lane.
fn fourth() -> String {
    tables_on(Lane::Backfill)
}

/// Version 5: feedback to the ranking service, and its policies under their versions.
fn fifth() -> String {
    let topics: String = Lane::ALL.map(|lane| table_of(Topic::FEEDBACK.on(lane))).concat();
    format!(
        "CREATE TABLE policies (version INTEGER PRIMARY KEY, snapshot BLOB NOT NULL, ledger BLOB NOT NULL) STRICT;
         {topics}"
    )
}

/// Refuses a database of something else. Only reads, so that a stranger's file stays as it was.
pub(super) fn refuse_foreign(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let sql = |cause| OpenError::of(path, cause);
    // In this order: another process may be making the file right now, and brings the mark with the tables.
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sql)?;
    let id: i32 = connection.query_row("PRAGMA application_id", [], |row| row.get(0)).map_err(sql)?;
    if tables > 0 && id != APPLICATION_ID { Err(OpenError::Foreign(path.to_owned())) } else { Ok(()) }
}

/// Brings the file to the version that the last of `migrations` leads to, in one transaction. Several processes may try at once.
pub(super) fn migrate(path: &Path, connection: &mut Connection, migrations: &[String]) -> Result<(), OpenError> {
    let sql = |cause| OpenError::of(path, cause);
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let pragma = |name: &str| transaction.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0)).map_err(sql);
    refuse_foreign(path, &transaction)?;
    let found = pragma("user_version")?;
    let known = i32::try_from(migrations.len()).expect("versions are few");
    if found > known {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    }
    let done = usize::try_from(found).map_err(|_| OpenError::Foreign(path.to_owned()))?;
    if done == migrations.len() {
        return Ok(());
    }
    for step in &migrations[done..] {
        transaction.execute_batch(step).map_err(sql)?;
    }
    transaction
        .execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {known};
             INSERT INTO meta VALUES ('schema', '{known}') ON CONFLICT (name) DO UPDATE SET value = excluded.value;"
        ))
        .map_err(sql)?;
    transaction.commit().map_err(sql)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrate(connection: &mut Connection, steps: &[String]) -> Result<(), OpenError> {
        super::migrate(Path::new("endcap.db"), connection, steps)
    }

    fn version(connection: &Connection) -> (i32, String) {
        let number = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
        (number, connection.query_row("SELECT value FROM meta WHERE name = 'schema'", [], |row| row.get(0)).unwrap())
    }

    #[test]
    fn an_older_file_keeps_its_rows_and_takes_the_missing_steps() {
        let mut connection = Connection::open_in_memory().unwrap();
        let mut steps = vec![first()];
        migrate(&mut connection, &steps).unwrap();
        connection.execute("INSERT INTO progress VALUES ('import', '7')", []).unwrap();
        steps.push("ALTER TABLE progress ADD COLUMN at_ms INTEGER NOT NULL DEFAULT 5;".to_owned());
        steps.push("CREATE TABLE more (x INTEGER) STRICT;".to_owned());
        migrate(&mut connection, &steps).unwrap();
        migrate(&mut connection, &steps).unwrap();
        assert_eq!(version(&connection), (3, "3".to_owned()));
        let row: (String, i64) =
            connection.query_row("SELECT value, at_ms FROM progress", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, ("7".to_owned(), 5));
    }

    #[test]
    fn a_step_that_fails_leaves_the_file_as_it_was() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate(&mut connection, &[first()]).unwrap();
        let steps = [first(), "CREATE TABLE half (x INTEGER) STRICT; CREATE TABLE half (x INTEGER) STRICT;".to_owned()];
        assert!(matches!(migrate(&mut connection, &steps), Err(OpenError::Unusable { .. })));
        assert_eq!(version(&connection), (1, "1".to_owned()));
        let half: i64 =
            connection.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'half'", [], |row| row.get(0)).unwrap();
        assert_eq!(half, 0);
    }

    #[test]
    fn a_newer_file_and_a_strangers_file_are_refused() {
        let mut newer = Connection::open_in_memory().unwrap();
        migrate(&mut newer, &[first()]).unwrap();
        newer.execute_batch("PRAGMA user_version = 9").unwrap();
        let error = migrate(&mut newer, &[first()]).unwrap_err();
        assert!(matches!(error, OpenError::Newer { found: 9, known: 1, .. }), "{error}");

        let mut foreign = Connection::open_in_memory().unwrap();
        foreign.execute_batch("CREATE TABLE photos (x)").unwrap();
        assert!(matches!(migrate(&mut foreign, &[first()]), Err(OpenError::Foreign(_))));
    }
}
