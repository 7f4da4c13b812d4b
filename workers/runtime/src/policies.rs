//! The border to where ranking policies are kept: written by whoever learns, read by whoever serves.

use crate::{ROW_MAX_BYTES, StoreError, TooLarge};

/// A ranking policy as a store holds it. What the bytes mean is the ranking's affair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPolicy {
    /// Its version: the place in the log up to which it has learnt, and greater than that of the policy before.
    pub version: i64,
    /// The policy as it is served.
    pub snapshot: Vec<u8>,
    /// What it has learnt from already.
    pub ledger: Vec<u8>,
}

/// Ranking policies by version, few of them. A row may be written again and in any order: the same version has learnt the same.
/// `contract::check_policies` says what an implementation keeps.
pub trait Policies: Send + Sync {
    /// Keeps `policy`.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] for more than [`ROW_MAX_BYTES`] in either part; [`StoreError`] when it is not durable.
    fn put_policy(&self, policy: &StoredPolicy) -> Result<(), StoreError>;

    /// Forgets the policies of `versions`.
    ///
    /// # Errors
    /// [`StoreError`] when it is not durable; some may be forgotten.
    fn forget_policies(&self, versions: &[i64]) -> Result<(), StoreError>;

    /// Versions that are kept, the newest first.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn policy_versions(&self) -> Result<Vec<i64>, StoreError>;

    /// The policy of `version`.
    ///
    /// # Errors
    /// [`StoreError`] when the store does not answer.
    fn policy(&self, version: i64) -> Result<Option<StoredPolicy>, StoreError>;
}

impl StoredPolicy {
    /// Checks it against the limits of every store.
    ///
    /// # Errors
    /// [`TooLarge`] with the limit and the remedy.
    pub fn check(&self) -> Result<(), TooLarge> {
        TooLarge::beyond(ROW_MAX_BYTES, self.snapshot.len(), "policy", "rank by fewer features")?;
        TooLarge::beyond(ROW_MAX_BYTES, self.ledger.len(), "ledger", "remember fewer slates")
    }
}
