//! The border between the binary and a store as a whole: who has a page, how many shoppers there are, what the store is about,
//! which manifests made its pages. A stage knows [`Store`] alone.

use endcap_schemas::UserKey;

use crate::{Policies, Stamp, Store, StoreError, StoredPage};

/// A store with all its shoppers. Lists are bounded; `contract::check_overview` says what an implementation keeps.
pub trait StoreOverview: Store + Policies {
    /// Users with a page and the page, in an order of the store's own, at most `limit` from `after` (exclusive) on. Who asks again after the
    /// last one sees every user once.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError>;

    /// Users whose key holds `part` in any case, with their pages, at most `limit`. Of the default tenant only the user counts. A large store
    /// looks through a part of its users only.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError>;

    /// How many users have a page. A large store estimates.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn pages_count(&self) -> Result<u64, StoreError>;

    /// How many users have a fold state: those whose context ever changed, less the erased ones. A large store estimates.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn states_count(&self) -> Result<u64, StoreError>;

    /// Every row that is still held of a user, erased or not: nothing older than their erasure may be among them.
    ///
    /// # Errors
    /// [`StoreError`] when not every copy answers: then nothing is proven.
    fn remains(&self, user: &UserKey) -> Result<Vec<Remain>, StoreError>;

    /// Keeps `value` under `name` for good, in place of what was there: for what the whole store is about.
    ///
    /// # Errors
    /// [`StoreError`] when it is not durable.
    fn note(&self, name: &str, value: &str) -> Result<(), StoreError>;

    /// What was noted under `name`.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn noted(&self, name: &str) -> Result<Option<String>, StoreError>;

    /// Keeps `manifest` under the number `generation` for good, where nothing is kept there yet; where something else is, answers that. Of
    /// several processes that try at once one succeeds, and the others are told what it brought. Adding the same again changes nothing.
    ///
    /// # Errors
    /// [`StoreError`] when it is not durable; it may be kept nevertheless.
    fn add_generation(&self, generation: i32, manifest: &str) -> Result<Option<String>, StoreError>;

    /// The manifest of this number; without one, that of the highest.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn generation(&self, number: Option<i32>) -> Result<Option<(i32, String)>, StoreError>;

    /// Every manifest with its number, the highest first.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn generations(&self) -> Result<Vec<(i32, String)>, StoreError>;
}

/// A row that is held of a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remain {
    /// The table that it stands in.
    pub table: &'static str,
    /// Its stamp; `None` for a row without one, which no erasure has reached.
    pub stamp: Option<Stamp>,
}
