//! Connections that all see one version of the catalogue.

use std::sync::{Condvar, Mutex, PoisonError};

use rusqlite::Connection;

use crate::{MarketDir, MarketError, dir::meta};

/// Most connections of one snapshot: readers beyond that wait for one another.
const CONNECTIONS_MAX: usize = 4;

/// Connections, each inside a read transaction that was begun at the same catalogue version.
///
/// A transaction of SQLite's log mode sees the database as it was when it began, whatever is written afterwards; so all answers
/// of a snapshot fit together. When the catalogue has moved on, no further connection of the old version can be made, and the
/// ones at hand are shared.
#[derive(Debug)]
pub(crate) struct Pool {
    dir: MarketDir,
    version: String,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    idle: Vec<Connection>,
    open: usize,
    may_grow: bool,
}

impl Pool {
    /// Begins at whatever version there is now; [`Pool::version`] tells which.
    pub(crate) fn open(dir: &MarketDir) -> Result<Self, MarketError> {
        let (db, version) = begin(dir).map_err(|fault| dir.blame(fault))?;
        let state = State { idle: vec![db], open: 1, may_grow: true };
        Ok(Self { dir: dir.clone(), version, state: Mutex::new(state), freed: Condvar::new() })
    }

    pub(crate) fn dir(&self) -> &MarketDir {
        &self.dir
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Lends a connection to `work`.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&Connection) -> Result<T, MarketError>) -> Result<T, MarketError> {
        let lent = self.lend()?;
        work(lent.db.as_ref().expect("a lent connection is there until it is given back")).map_err(|fault| self.dir.blame(fault))
    }

    fn lend(&self) -> Result<Lent<'_>, MarketError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(db) = state.idle.pop() {
                return Ok(Lent { pool: self, db: Some(db) });
            }
            if state.may_grow && state.open < CONNECTIONS_MAX {
                match begin(&self.dir) {
                    Ok((db, version)) if version == self.version => {
                        state.open += 1;
                        return Ok(Lent { pool: self, db: Some(db) });
                    }
                    // Moved on, or no more connections to be had: the ones at hand will do.
                    _ => state.may_grow = false,
                }
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn begin(dir: &MarketDir) -> Result<(Connection, String), MarketError> {
    let db = dir.reader()?;
    db.execute_batch("BEGIN")?;
    let version = meta(&db, "catalogue_version")?.unwrap_or_default();
    Ok((db, version))
}

struct Lent<'a> {
    pool: &'a Pool,
    db: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.idle.extend(self.db.take());
        self.pool.freed.notify_one();
    }
}
