//! The directory that a market lives in, and the layout of its database.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::MarketError;

/// Format that this version writes; kept in the database's `user_version`.
pub(crate) const FORMAT: i64 = 1;

const DATABASE: &str = "market.sqlite";
const LOCK: &str = "writer.lock";
const IDENTITY: &str = "identity";
/// How long a statement waits for another process's write.
const BUSY: Duration = Duration::from_secs(30);

/// Tables of format 1.
///
/// `products.key` is made of popularity (falling), number and flags, see `derive::key_of`: rows, and the entries of the full-text index
/// that carry the same key, lie in order of popularity, so that the best of many matches are the first ones and nothing is sorted.
/// The columns `source_*` and those before `path` are as they came in; the others are derived from them. `indexed` is a hash of what the
/// full-text index holds of the row.
const SCHEMA: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE products (
  key INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  catalogue TEXT NOT NULL,
  name TEXT NOT NULL, brand TEXT NOT NULL, size TEXT NOT NULL,
  price_cents INTEGER,
  source_path TEXT NOT NULL,
  source_violates INTEGER NOT NULL,
  source_popularity REAL NOT NULL,
  adult INTEGER NOT NULL,
  in_stock INTEGER NOT NULL,
  withdrawn INTEGER NOT NULL,
  path TEXT NOT NULL DEFAULT '',
  category INTEGER NOT NULL DEFAULT 0,
  department TEXT NOT NULL DEFAULT '',
  violates INTEGER NOT NULL DEFAULT 0,
  popularity REAL NOT NULL DEFAULT 0,
  indexed INTEGER
);
CREATE INDEX products_of_category ON products (category, key) WHERE withdrawn = 0;
CREATE INDEX products_of_department ON products (department, key) WHERE withdrawn = 0;
CREATE TABLE categories (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  department TEXT NOT NULL,
  violates INTEGER NOT NULL,
  adult INTEGER NOT NULL,
  seasons TEXT NOT NULL,
  related TEXT NOT NULL,
  popularity REAL NOT NULL,
  given INTEGER NOT NULL
);
CREATE TABLE terms (
  id INTEGER PRIMARY KEY,
  text TEXT NOT NULL,
  descriptor INTEGER NOT NULL,
  category TEXT,
  violates INTEGER NOT NULL,
  popularity REAL NOT NULL,
  tier INTEGER NOT NULL,
  source TEXT NOT NULL,
  UNIQUE (text, descriptor)
);
CREATE TABLE term_vectors (term INTEGER PRIMARY KEY, row INTEGER NOT NULL);
CREATE TABLE purchases (shopper INTEGER NOT NULL, product TEXT NOT NULL);
CREATE TABLE words (word TEXT PRIMARY KEY, products INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE product_words USING fts5 (head, name, path, content='', contentless_delete=1, detail=column, tokenize='ascii');
CREATE VIRTUAL TABLE word_counts USING fts5vocab (product_words, row);
";

/// A market directory, ready to be written.
#[derive(Debug, Clone)]
pub struct MarketDir {
    path: PathBuf,
}

impl MarketDir {
    /// Makes an empty market in `dir`, or opens the one that is there.
    ///
    /// # Errors
    /// When the directory cannot be written, or holds a market of a newer format.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self, MarketError> {
        let path = dir.as_ref().to_owned();
        fs::create_dir_all(&path).map_err(MarketError::file(&path))?;
        let dir = Self { path };
        dir.lay_out().map_err(|fault| dir.blame(fault))?;
        Ok(dir)
    }

    fn lay_out(&self) -> Result<(), MarketError> {
        self.refuse_foreign(OpenFlags::SQLITE_OPEN_CREATE)?;
        let mut db = self.connect()?;
        let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if format_of(&tx)? == 0 {
            tx.execute_batch(SCHEMA)?;
            tx.pragma_update(None, "user_version", FORMAT)?;
            set_meta(&tx, "catalogue_version", "empty")?;
        }
        tx.commit()?;
        self.check_format(&db)
    }

    /// Takes back [`MarketDir::create`], where nothing has come in since and nobody else writes: removes the market's own files and those
    /// of `made` that are there, then the directory and the empty ones above it, up to `top`.
    ///
    /// # Errors
    /// When another process writes the market, or its files cannot be read or removed.
    pub fn discard(self, top: Option<&Path>, made: &[PathBuf]) -> Result<(), MarketError> {
        let _lock = self.lock()?;
        let has_purchases: bool = self.connect()?.query_row("SELECT EXISTS (SELECT 1 FROM purchases)", [], |row| row.get(0))?;
        if has_purchases || self.counts()? != crate::Counts::default() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.path).map_err(MarketError::file(&self.path))? {
            let entry = entry.map_err(MarketError::file(&self.path))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(DATABASE) || name == LOCK || made.contains(&entry.path()) {
                fs::remove_file(entry.path()).map_err(MarketError::file(&entry.path()))?;
            }
        }
        let Some(top) = top else { return Ok(()) };
        for dir in self.path.ancestors().take_while(|dir| dir.starts_with(top)) {
            // One that holds something of somebody else stays.
            if fs::remove_dir(dir).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Opens the market in `dir`.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or has a newer format.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, MarketError> {
        let dir = Self { path: dir.as_ref().to_owned() };
        if !dir.database().is_file() {
            return Err(MarketError::Absent(dir.path));
        }
        dir.refuse_foreign(OpenFlags::empty())
            .and_then(|()| dir.check_format(&dir.connect()?))
            .map_err(|fault| dir.blame(fault))?;
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this market from all others: made when somebody asks for the first time, the same ever after. It lies in a file of its
    /// own, so that it outlives a database that was lost and is imported again, and goes with the directory wherever that is moved.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub fn identity(&self) -> Result<String, MarketError> {
        if let Some(known) = self.known_identity()? {
            return Ok(known);
        }
        let made: String = self.connect()?.query_row("SELECT lower(hex(randomblob(16)))", [], |row| row.get(0))?;
        let (path, draft) = (self.path.join(IDENTITY), self.path.join(format!("{IDENTITY}-{made}")));
        fs::write(&draft, &made).map_err(MarketError::file(&draft))?;
        // A link takes nobody's place: of two processes that ask at once, the slower one reads what the faster one made.
        let linked = match fs::hard_link(&draft, &path) {
            Err(fault) if fault.kind() != ErrorKind::AlreadyExists => fs::rename(&draft, &path), // a file system without links
            _ => fs::remove_file(&draft),
        };
        linked.map_err(MarketError::file(&path))?;
        Ok(self.known_identity()?.unwrap_or(made))
    }

    /// The identity, where somebody has asked for it before.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn known_identity(&self) -> Result<Option<String>, MarketError> {
        let path = self.path.join(IDENTITY);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(fault) if fault.kind() == ErrorKind::NotFound => Ok(None),
            Err(fault) => Err(MarketError::File { path, fault }),
        }
    }

    /// Version of the products, categories and terms: changes with every change of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn catalogue_version(&self) -> Result<String, MarketError> {
        let version = self.connect().and_then(|db| meta(&db, "catalogue_version"));
        Ok(version.map_err(|fault| self.blame(fault))?.unwrap_or_default())
    }

    /// How many products, terms and the like there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self) -> Result<crate::Counts, MarketError> {
        self.connect().and_then(|db| crate::snapshot::counts(&db)).map_err(|fault| self.blame(fault))
    }

    /// Refuses another program's database. Only reads, so that it stays as it was.
    fn refuse_foreign(&self, more: OpenFlags) -> Result<(), MarketError> {
        let db = self.open_file(more)?;
        let (all, own): (i64, i64) = db.query_row(
            "SELECT count(*), coalesce(sum(name IN ('meta', 'products', 'terms')), 0) FROM sqlite_schema",
            [],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        if all > 0 && own < 3 { Err(MarketError::Foreign(self.database())) } else { Ok(()) }
    }

    /// `fault` with the database's name, where the file itself is what is wrong.
    pub(crate) fn blame(&self, fault: MarketError) -> MarketError {
        match fault {
            MarketError::Database(fault)
                if matches!(fault.sqlite_error_code(), Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)) =>
            {
                MarketError::Unreadable { path: self.database(), fault }
            }
            other => other,
        }
    }

    /// Refuses formats of later versions. Older formats would be migrated here; format 1 is the first.
    fn check_format(&self, db: &Connection) -> Result<(), MarketError> {
        match format_of(db)? {
            FORMAT => Ok(()),
            0 => Err(MarketError::Absent(self.path.clone())),
            found => Err(MarketError::Newer { dir: self.path.clone(), found, known: FORMAT }),
        }
    }

    fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// A connection that may write.
    pub(crate) fn writer(&self) -> Result<Connection, MarketError> {
        let db = self.connect()?;
        // A large import is one transaction: its pages go to the log file, not to memory.
        db.execute_batch("PRAGMA cache_size = -65536; PRAGMA temp_store = FILE;")?;
        Ok(db)
    }

    /// A connection that only reads.
    pub(crate) fn reader(&self) -> Result<Connection, MarketError> {
        let db = self.connect()?;
        db.execute_batch("PRAGMA query_only = ON; PRAGMA mmap_size = 1073741824; PRAGMA cache_size = -16384;")?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    }

    fn open_file(&self, more: OpenFlags) -> Result<Connection, MarketError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
        let db = Connection::open_with_flags(self.database(), flags)?;
        db.busy_timeout(BUSY)?;
        Ok(db)
    }

    fn connect(&self) -> Result<Connection, MarketError> {
        let db = self.open_file(OpenFlags::empty())?;
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864;")?;
        Ok(db)
    }

    /// Keeps other writers out for as long as the answer is held.
    pub(crate) fn lock(&self) -> Result<Turn, MarketError> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).map_err(MarketError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Turn(file)),
            Err(TryLockError::WouldBlock) => Err(MarketError::Busy(self.path.clone())),
            Err(TryLockError::Error(fault)) => Err(MarketError::File { path, fault }),
        }
    }
}

/// A writer's turn.
#[derive(Debug)]
pub(crate) struct Turn(File);

impl Drop for Turn {
    /// Closing the file alone would leave the lock with a process that is being started at this moment, until it has closed its copy.
    fn drop(&mut self) {
        let _ = self.0.unlock(); // closed, it is unlocked a moment later
    }
}

fn format_of(db: &Connection) -> Result<i64, MarketError> {
    Ok(db.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

pub(crate) fn meta(db: &Connection, key: &str) -> Result<Option<String>, MarketError> {
    let mut statement = db.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
    Ok(statement.query_row([key], |row| row.get(0)).optional()?)
}

pub(crate) fn set_meta(db: &Connection, key: &str, value: &str) -> Result<(), MarketError> {
    db.prepare_cached("INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value")?
        .execute([key, value])?;
    Ok(())
}
