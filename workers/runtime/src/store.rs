//! The border to the store: state, stage results, pages, caches. Each read of a user is one partition read.

use endcap_schemas::UserKey;
use thiserror::Error;

use crate::{Stamp, Write};

/// Where state, results and pages are kept. Writes may be repeated and may arrive in any order: per row the greatest stamp wins,
/// and among equal stamps the greater bytes, so that every order of arrival ends in the same rows.
pub trait Store: Send + Sync {
    /// Writes all of `writes`, and what a stage did for users, for `explain`. The latter is kept for a short time.
    ///
    /// # Errors
    /// [`StoreError`] when they are not durable; some of them may be.
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError>;

    /// The fold state of a user.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn state(&self, user: &UserKey) -> Result<Option<Vec<u8>>, StoreError>;

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

    /// The latest erasure of a user.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn erasure(&self, user: &UserKey) -> Result<Option<Erasure>, StoreError>;

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

/// The store did not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// It is not reachable or not writable now: retry.
    #[error("store is unavailable: {0}")]
    Unavailable(String),
    /// It holds something that this version cannot read.
    #[error("store holds unreadable data: {0}")]
    Corrupt(String),
}
