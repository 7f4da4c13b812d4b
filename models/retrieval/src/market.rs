//! A handle on a market that follows what other processes write.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use rusqlite::Connection;

use crate::{MarketDir, MarketError, Snapshot, dir::meta};

/// A market that is read. Cheap to clone; all clones share one snapshot.
#[derive(Debug, Clone)]
pub struct Market {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: MarketDir,
    current: ArcSwap<Snapshot>,
    watch: Mutex<Watch>,
}

/// What tells whether something was written.
#[derive(Debug)]
struct Watch {
    db: Connection,
    /// SQLite's counter of commits by other connections.
    seen: i64,
}

impl Market {
    /// Opens the market in `dir`. Nothing is loaded but the categories: products, terms and vectors stay on disk. Of the index's files
    /// only lengths and headers are looked at: what they hold is checked by [`crate::build_index`].
    ///
    /// # Errors
    /// When there is no market, it cannot be read, or has a newer format; [`MarketError::Damaged`] when [`crate::build_index`] must
    /// make a file of the index again.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, MarketError> {
        Self::over(MarketDir::open(dir)?)
    }

    /// Reads the market that `dir` writes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn over(dir: MarketDir) -> Result<Self, MarketError> {
        let db = dir.reader().map_err(|fault| dir.blame(fault))?;
        let watch = Watch { seen: commits(&db)?, db };
        let current = ArcSwap::from_pointee(Snapshot::take(&dir, None)?);
        Ok(Self { inner: Arc::new(Inner { dir, current, watch: Mutex::new(watch) }) })
    }

    /// The directory.
    pub fn dir(&self) -> &MarketDir {
        &self.inner.dir
    }

    /// The market as it is now. Hold it for one piece of work (a page), then let it go and ask again: that is how changes arrive.
    ///
    /// A change that cannot be read leaves the last snapshot in place (and is logged); the next call tries again.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        if let Err(fault) = self.refresh() {
            tracing::warn!(%fault, market = %self.inner.dir.path().display(), "cannot read the market's new version, staying on the old one");
        }
        self.inner.current.load_full()
    }

    fn refresh(&self) -> Result<(), MarketError> {
        let mut watch = self.inner.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let commits = commits(&watch.db)?;
        if commits == watch.seen {
            return Ok(());
        }
        let current = self.inner.current.load();
        let catalogue = meta(&watch.db, "catalogue_version")?.unwrap_or_default();
        let index = meta(&watch.db, "index_version")?.unwrap_or_default();
        if catalogue != current.catalogue_version() || index != current.index_version() {
            self.inner.current.store(Arc::new(Snapshot::take(&self.inner.dir, Some(&current))?));
        }
        watch.seen = commits;
        Ok(())
    }
}

fn commits(db: &Connection) -> Result<i64, MarketError> {
    Ok(db.pragma_query_value(None, "data_version", |row| row.get(0))?)
}
