//! The directory that a market lives in, and the layout of its database.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::MarketError;

/// Format that this version writes; kept in the database's `user_version`.
pub(crate) const FORMAT: i64 = 1;

const DATABASE: &str = "market.sqlite";
const LOCK: &str = "writer.lock";
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
        let mut db = dir.connect(OpenFlags::SQLITE_OPEN_CREATE)?;
        let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        if format_of(&tx)? == 0 {
            tx.execute_batch(SCHEMA)?;
            tx.pragma_update(None, "user_version", FORMAT)?;
            set_meta(&tx, "catalogue_version", "empty")?;
        }
        tx.commit()?;
        dir.check_format(&db)?;
        Ok(dir)
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
        let db = dir.connect(OpenFlags::empty())?;
        dir.check_format(&db)?;
        Ok(dir)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Version of the products, categories and terms: changes with every change of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn catalogue_version(&self) -> Result<String, MarketError> {
        Ok(meta(&self.connect(OpenFlags::empty())?, "catalogue_version")?.unwrap_or_default())
    }

    /// How many products, terms and the like there are.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self) -> Result<crate::Counts, MarketError> {
        crate::snapshot::counts(&self.connect(OpenFlags::empty())?)
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
        let db = self.connect(OpenFlags::empty())?;
        // A large import is one transaction: its pages go to the log file, not to memory.
        db.execute_batch("PRAGMA cache_size = -65536; PRAGMA temp_store = FILE;")?;
        Ok(db)
    }

    /// A connection that only reads.
    pub(crate) fn reader(&self) -> Result<Connection, MarketError> {
        let db = self.connect(OpenFlags::empty())?;
        db.execute_batch("PRAGMA query_only = ON; PRAGMA mmap_size = 1073741824; PRAGMA cache_size = -16384;")?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    }

    fn connect(&self, more: OpenFlags) -> Result<Connection, MarketError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | more;
        let db = Connection::open_with_flags(self.database(), flags)?;
        db.busy_timeout(BUSY)?;
        db.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA journal_size_limit = 67108864;")?;
        Ok(db)
    }

    /// Keeps other writers out for as long as the file is held.
    pub(crate) fn lock(&self) -> Result<File, MarketError> {
        let path = self.path.join(LOCK);
        let file = File::create(&path).map_err(MarketError::file(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(MarketError::Busy(self.path.clone())),
            Err(TryLockError::Error(fault)) => Err(MarketError::File { path, fault }),
        }
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
