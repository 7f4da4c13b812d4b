//! The embedded log and store: one SQLite file, durable against `kill -9`, shared by several processes, readable with `sqlite3`.
//!
//! One partition per topic. Writers take turns (`BEGIN IMMEDIATE`), readers never wait. Every commit is synced to disk before it counts
//! (`synchronous=FULL`).

mod broker;
mod consumer;
mod dead_letters;
mod inspect;
mod policies;
mod retention;
mod schema;
mod store;
mod wake;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use endcap_schemas::topics::{Lane, Topic};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, TransactionBehavior, params};
use thiserror::Error;

use crate::{Backlog, Clock, DeadLetter, LogError, Outgoing, Received, StoreError, Tally, metric};
pub use crate::{DeadLetterFilter, GroupState, INGEST, StoredDeadLetter};
pub use consumer::Consumer;
pub use retention::{Retained, Retention};
use wake::Wake;

/// Idle connections for reading that are kept open.
const READERS_KEPT: usize = 8;
/// Bytes of values after which a read is cut short.
const READ_BYTES_MAX: usize = 32 * 1024 * 1024;
/// How soon a new file is set up again that another process is setting up.
const SET_UP_AGAIN: Duration = Duration::from_millis(5);

/// Limits of the file.
#[derive(Debug, Clone, Copy)]
pub struct EmbeddedConfig {
    /// What is kept, and for how long.
    pub retention: Retention,
    /// Records that may wait for a group before a producer is told that the log is full.
    pub waiting_max: u64,
    /// How long a writer waits for its turn.
    pub busy_timeout: Duration,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self { retention: Retention::default(), waiting_max: 500_000, busy_timeout: Duration::from_secs(10) }
    }
}

/// Why a file could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A newer release has written it.
    #[error("{path} has schema version {found}, this release knows {known}: use the newer release, or another file")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// The newest version known.
        known: i32,
    },
    /// It is a database of something else.
    #[error("{0} is a database, but not one of Endcap: choose another place, or move it away")]
    Foreign(PathBuf),
    /// It is no database, or what it holds is damaged.
    #[error("cannot read {path}: {cause}: move it away, and a new one is made; what it held is lost")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        cause: rusqlite::Error,
    },
    /// It cannot be opened or written.
    #[error("cannot use {path}: {cause}: check that its directory is there, may be written and has space")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        cause: rusqlite::Error,
    },
}

impl OpenError {
    fn of(path: &Path, cause: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match cause.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Unreadable { path, cause },
            _ => OpenError::Unusable { path, cause },
        }
    }
}

/// The file. Clones share it.
#[derive(Clone)]
pub struct Embedded {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    config: EmbeddedConfig,
    clock: Arc<dyn Clock>,
    writer: Mutex<Connection>,
    readers: Mutex<Vec<Connection>>,
    wake: Wake,
    /// When retention last ran, ms; what is left over makes it due again at once.
    retained_ms: Mutex<i64>,
}

impl Embedded {
    /// Opens the file, creates it, or brings an older one up to date.
    ///
    /// # Errors
    /// [`OpenError`] with the remedy.
    pub fn open(path: impl AsRef<Path>, config: EmbeddedConfig, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let path = path.as_ref().to_owned();
        let unusable = |cause| OpenError::of(&path, cause);
        let mut writer = open_file(&path, config.busy_timeout).map_err(unusable)?;
        schema::refuse_foreign(&path, &writer)?;
        set_up(&writer, config.busy_timeout).map_err(unusable)?;
        schema::migrate(&path, &mut writer, &schema::migrations())?;
        let shared = Shared {
            path,
            config,
            clock,
            writer: Mutex::new(writer),
            readers: Mutex::default(),
            wake: Wake::default(),
            retained_ms: Mutex::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Makes a group known before its first consumer comes, so that retention keeps what it has not consumed. It starts at the oldest record.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn declare(&self, group: &str, topic: Topic) -> Result<(), LogError> {
        self.shared.write(|transaction| {
            transaction
                .execute("INSERT INTO positions VALUES (?1, ?2, 0) ON CONFLICT DO NOTHING", params![group, topic.name()])?;
            Ok(())
        })
    }

    /// A consumer of `topic` for `group`, which is declared if it is new.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn consumer(&self, group: &str, topic: Topic) -> Result<Consumer, LogError> {
        self.declare(group, topic)?;
        Consumer::new(self.shared.clone(), group, topic)
    }

    /// Who lets events into the log.
    pub fn producer(&self) -> Producer {
        Producer { shared: self.shared.clone() }
    }

    /// What every stage did since the file was made, as its commits counted it.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn tallies(&self) -> Result<BTreeMap<String, Tally>, LogError> {
        self.shared.read(|connection| {
            let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
            let mut statement = connection.prepare_cached("SELECT stage, kind, name, amount FROM tallies")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (kind, name): (String, String) = (row.get(1)?, row.get(2)?);
                consumer::add_row(tallies.entry(row.get(0)?).or_default(), &kind, name, row.get::<_, i64>(3)?.unsigned_abs());
            }
            Ok(tallies)
        })
    }

    /// Up to `max` records of `topic` from offset `from` on, for inspection; no position moves.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn records(&self, topic: Topic, from: i64, max: usize) -> Result<Vec<Received>, LogError> {
        self.shared.read(|connection| read_records(connection, topic, from, max))
    }

    /// Offset that the next record of `topic` will get: how many it ever had.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn end(&self, topic: Topic) -> Result<i64, LogError> {
        self.shared
            .read(|connection| connection.query_row("SELECT next FROM topics WHERE name = ?1", [topic.name()], |row| row.get(0)))
    }
}

/// Lets events into the log: durable when it answers.
#[derive(Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

impl Producer {
    /// Appends `records` in one transaction and, with them, notes how far their source was read. Answers their offsets.
    ///
    /// # Errors
    /// [`LogError::Full`] while a group is too far behind (nothing is written; try again later), [`LogError`] when the file does not answer.
    pub fn append(&self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<Vec<i64>, LogError> {
        self.write(Outgoing::lane_of(records), |transaction, now_ms| {
            if let Some((name, value)) = progress {
                transaction.execute(
                    "INSERT INTO progress VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                    params![name, value],
                )?;
            }
            append(transaction, records, now_ms)
        })
    }

    /// Appends `records` and keeps, in the same transaction, what was refused before it entered the log. Both are counted under [`INGEST`].
    ///
    /// # Errors
    /// [`LogError::Full`] as [`Producer::append`]; [`LogError`] when the file does not answer. Then nothing was kept.
    pub fn admit(&self, records: &[Outgoing], refused: &[DeadLetter]) -> Result<(), LogError> {
        let tally = entering(records, refused);
        self.write(Outgoing::lane_of(records), |transaction, now_ms| {
            refused.iter().try_for_each(|letter| dead_letters::bury(transaction, letter, now_ms))?;
            consumer::count(transaction, INGEST, &tally)?;
            append(transaction, records, now_ms).map(|_| ())
        })?;
        metric::committed(INGEST, Lane::Live, &tally);
        Ok(())
    }

    /// Takes `records` as [`Producer::admit`] does, and also while the log is full.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer; then nothing was kept.
    pub fn insist(&self, records: &[Outgoing]) -> Result<(), LogError> {
        let (tally, now_ms) = (entering(records, &[]), self.shared.clock.now_ms());
        self.shared.write::<_, LogError>(|transaction| {
            consumer::count(transaction, INGEST, &tally)?;
            append(transaction, records, now_ms)
        })?;
        self.shared.wake.notify();
        metric::committed(INGEST, Lane::Live, &tally);
        Ok(())
    }

    /// Runs `work` with the time in a transaction, unless the log is full on `lane`.
    fn write<R: Default>(
        &self,
        lane: Lane,
        work: impl FnOnce(&Transaction<'_>, i64) -> rusqlite::Result<R>,
    ) -> Result<R, LogError> {
        let limit = self.shared.config.waiting_max;
        let mut full = None;
        let written = self.shared.write::<_, LogError>(|transaction| {
            full = fullest(transaction, lane)?.filter(|(_, waiting)| *waiting >= limit);
            if full.is_some() { Ok(R::default()) } else { work(transaction, self.shared.clock.now_ms()) }
        })?;
        if let Some((topic, waiting)) = full {
            return Err(LogError::Full { topic, waiting, limit });
        }
        self.shared.wake.notify();
        Ok(written)
    }

    /// How far the source `name` was read, as the last append noted it.
    ///
    /// # Errors
    /// [`LogError`] when the file does not answer.
    pub fn progress(&self, name: &str) -> Result<Option<String>, LogError> {
        self.shared.read(|connection| {
            connection.query_row("SELECT value FROM progress WHERE name = ?1", [name], |row| row.get(0)).optional()
        })
    }
}

/// What is counted of records that enter, and of those that were refused.
fn entering(records: &[Outgoing], refused: &[DeadLetter]) -> Tally {
    let mut tally = Tally::default();
    records.iter().for_each(|_| tally.pass());
    refused.iter().for_each(|letter| tally.dead_letter(&letter.kind));
    tally
}

impl Shared {
    /// Runs `work` in a write transaction; an error undoes it.
    fn write<R, E: From<Fault>>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<R>) -> Result<R, E> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = || {
            let transaction = writer.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = work(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        attempt().map_err(|cause| E::from(Fault(cause)))
    }

    /// Runs `work` on a connection of its own.
    fn read<R, E: From<Fault>>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<R>) -> Result<R, E> {
        let idle = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection =
            idle.map_or_else(|| connect(&self.path, self.config.busy_timeout), Ok).map_err(|cause| E::from(Fault(cause)))?;
        let result = work(&connection).map_err(|cause| E::from(Fault(cause)));
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_KEPT {
            readers.push(connection);
        }
        result
    }
}

/// SQLite's answer when it did not do what it was asked; knows whether that may mend itself.
struct Fault(rusqlite::Error);

impl Fault {
    fn may_mend(&self) -> bool {
        matches!(
            self.0.sqlite_error_code(),
            Some(
                ErrorCode::DatabaseBusy
                    | ErrorCode::DatabaseLocked
                    | ErrorCode::SystemIoFailure
                    | ErrorCode::DiskFull
                    | ErrorCode::CannotOpen
                    | ErrorCode::ReadOnly
                    | ErrorCode::OutOfMemory
                    | ErrorCode::PermissionDenied
                    | ErrorCode::FileLockingProtocolFailed
            )
        )
    }
}

impl From<Fault> for LogError {
    fn from(fault: Fault) -> Self {
        if fault.may_mend() { LogError::Unavailable(fault.0.to_string()) } else { LogError::Corrupt(fault.0.to_string()) }
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        if fault.may_mend() { StoreError::Unavailable(fault.0.to_string()) } else { StoreError::Corrupt(fault.0.to_string()) }
    }
}

fn connect(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let connection = open_file(path, busy_timeout)?;
    set_up(&connection, busy_timeout)?;
    Ok(connection)
}

fn open_file(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Turning a new file to WAL needs it alone for a moment, for which SQLite does not wait: of several processes that open it at once the others
/// try again.
fn set_up(connection: &Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    let deadline = Instant::now() + busy_timeout;
    loop {
        let done = connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 4000;
             PRAGMA journal_size_limit = 67108864; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16000;",
        );
        match done {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < deadline => {
                thread::sleep(SET_UP_AGAIN);
            }
            done => return done,
        }
    }
}

/// Appends records to their topics and answers their offsets.
fn append(transaction: &Transaction<'_>, records: &[Outgoing], now_ms: i64) -> rusqlite::Result<Vec<i64>> {
    let mut next: BTreeMap<Topic, i64> = BTreeMap::new();
    let mut offsets = Vec::with_capacity(records.len());
    for record in records {
        let topic = record.topic;
        let offset = match next.get(&topic) {
            Some(offset) => *offset,
            None => transaction
                .prepare_cached("SELECT next FROM topics WHERE name = ?1")?
                .query_row([topic.name()], |row| row.get(0))?,
        };
        let headers = serde_json::to_string(&record.headers).expect("headers are plain text and numbers");
        transaction.prepare_cached(&format!("INSERT INTO \"{topic}\" VALUES (?1, ?2, ?3, ?4, ?5)"))?.execute(params![
            offset,
            now_ms,
            record.key.to_string(),
            headers,
            record.value
        ])?;
        offsets.push(offset);
        next.insert(topic, offset + 1);
    }
    for (topic, next) in next {
        transaction.prepare_cached("UPDATE topics SET next = ?2 WHERE name = ?1")?.execute(params![topic.name(), next])?;
    }
    Ok(offsets)
}

/// Records of `topic` from offset `from` on: at most `max`, and not many more bytes than a limit.
fn read_records(connection: &Connection, topic: Topic, from: i64, max: usize) -> rusqlite::Result<Vec<Received>> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT \"offset\", appended_ms, \"key\", headers, value FROM \"{topic}\" WHERE \"offset\" >= ?1 ORDER BY \"offset\" LIMIT ?2"
    ))?;
    let mut rows = statement.query(params![from, i64::try_from(max).unwrap_or(i64::MAX)])?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let record = Received {
            topic,
            partition: 0,
            offset: row.get(0)?,
            appended_ms: row.get(1)?,
            key: row.get(2)?,
            headers: headers_of(&row.get::<_, String>(3)?),
            value: row.get(4)?,
        };
        bytes += record.value.len();
        records.push(record);
        if bytes > READ_BYTES_MAX {
            break;
        }
    }
    Ok(records)
}

/// Headers that cannot be read are lost; the record is not.
fn headers_of(text: &str) -> crate::Headers {
    serde_json::from_str(text).unwrap_or_default()
}

fn backlog(connection: &Connection, topic: &str, position: i64, end: i64) -> rusqlite::Result<Backlog> {
    let oldest_ms = connection
        .prepare_cached(&format!("SELECT appended_ms FROM \"{topic}\" WHERE \"offset\" >= ?1 ORDER BY \"offset\" LIMIT 1"))?
        .query_row([position], |row| row.get(0))
        .optional()?;
    Ok(Backlog { waiting: u64::try_from(end - position).unwrap_or(0), oldest_ms })
}

/// The topic of the group that is furthest behind on `lane`, and how many records wait for it.
fn fullest(connection: &Connection, lane: Lane) -> rusqlite::Result<Option<(String, u64)>> {
    connection
        .prepare_cached(
            "SELECT p.topic, t.next - p.next FROM positions p JOIN topics t ON t.name = p.topic
             WHERE (p.topic LIKE '%.backfill') = ?1 ORDER BY 2 DESC LIMIT 1",
        )?
        .query_row([lane == Lane::Backfill], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())))
        .optional()
}
