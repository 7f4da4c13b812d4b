//! The border to the store: state, stage results, pages, caches. Each read of a user is one partition read.

use endcap_schemas::{UserKey, wire};
use thiserror::Error;

use crate::{Stamp, Write};

/// Largest page that a store takes, in bytes: a page is one cell, and is read whole.
pub const PAGE_MAX_BYTES: usize = 64 * 1024;
/// Largest state or explanation that a store takes, in bytes.
pub const ROW_MAX_BYTES: usize = wire::VALUE_MAX_BYTES;

/// Where state, results and pages are kept. Writes may be repeated and may arrive in any order: per row the greatest stamp wins,
/// and among equal stamps the greater bytes, so that every order of arrival ends in the same rows.
pub trait Store: Send + Sync {
    /// Writes all of `writes`, and what a stage did for users, for `explain`. The latter is kept for a short time.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for a value beyond its limit, before anything is written; [`StoreError`] when they are not durable: some of
    /// them may be.
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError>;

    /// The fold states of `users`, in their order, asked for together.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// The fold state of a user.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn state(&self, user: &UserKey) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.states(std::slice::from_ref(user))?.pop().flatten())
    }

    /// The page of a user.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError>;

    /// The latest result of every stage for a user, in path order.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError>;

    /// The latest erasures of `users`, in their order, asked for together.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError>;

    /// The latest erasure of a user.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn erasure(&self, user: &UserKey) -> Result<Option<Erasure>, StoreError> {
        Ok(self.erasures(std::slice::from_ref(user))?.pop().flatten())
    }

    /// Cached answers for `keys`, in their order.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError>;

    /// Remembers answers. They hold no personal data and may be forgotten at any time.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError>;
}

/// How far a user is erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Erasure {
    /// Up to when.
    pub stamp: Stamp,
    /// Where in the log it was asked for: partition and offset; `None` where that is not known.
    pub at: Option<(i32, i64)>,
}

/// A page as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPage {
    /// When it was made.
    pub stamp: Stamp,
    /// The page; `None` when it was withdrawn.
    pub page: Option<Vec<u8>>,
    /// When the row was written, by the store's clock, ms.
    pub written_ms: i64,
}

/// What a stage did for a user.
#[derive(Debug, Clone, PartialEq)]
pub struct StageResult {
    /// Whose.
    pub user: UserKey,
    /// Which stage.
    pub stage: String,
    /// For which context.
    pub stamp: Stamp,
    /// JSON: verdict, explanation, timings.
    pub explanation: String,
    /// When, by the worker's clock, ms.
    pub at_ms: i64,
}

/// A value that no store takes. The loop makes a dead letter of its record, so that no store is asked. Names no shopper: it is logged.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} has {got} bytes, at most {most} are stored: {remedy}")]
pub struct TooLarge {
    /// What it is, in words.
    pub what: &'static str,
    /// Its size, in bytes.
    pub got: usize,
    /// How many bytes may be stored.
    pub most: usize,
    /// What would make it smaller.
    pub remedy: &'static str,
}

impl TooLarge {
    pub(crate) fn beyond(most: usize, got: usize, what: &'static str, remedy: &'static str) -> Result<(), Self> {
        if got <= most { Ok(()) } else { Err(Self { what, got, most, remedy }) }
    }
}

impl Write {
    /// Checks it against the limits of every store.
    ///
    /// # Errors
    /// [`TooLarge`] with the limit and the remedy.
    pub fn check(&self) -> Result<(), TooLarge> {
        match self {
            Write::Page { page, .. } => {
                let got = page.as_ref().map_or(0, Vec::len);
                TooLarge::beyond(PAGE_MAX_BYTES, got, "page", "configure fewer placements, or fewer products in each")
            }
            Write::State { state, .. } => {
                TooLarge::beyond(ROW_MAX_BYTES, state.len(), "state", "let the context stage remember less")
            }
            Write::Erase { .. } => Ok(()),
        }
    }
}

impl StageResult {
    /// Checks it against the limits of every store.
    ///
    /// # Errors
    /// [`TooLarge`] with the limit and the remedy.
    pub fn check(&self) -> Result<(), TooLarge> {
        TooLarge::beyond(ROW_MAX_BYTES, self.explanation.len(), "explanation", "let the stage explain less")
    }
}

/// What every store checks before it writes anything.
///
/// # Errors
/// [`TooLarge`] for the first value beyond its limit.
pub fn check_sizes(writes: &[Write], results: &[StageResult]) -> Result<(), TooLarge> {
    writes.iter().try_for_each(Write::check)?;
    results.iter().try_for_each(StageResult::check)
}

/// The store did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It is not reachable or not writable now: retry.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// It was asked to keep more than it keeps; no retry would help.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// It holds something that this version cannot read.
    #[error("store holds unreadable data: {0}")]
    Corrupt(String),
}
