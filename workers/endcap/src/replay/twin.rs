//! A store that counts how often it is asked for erasures; else the embedded one.

use std::sync::atomic::{AtomicUsize, Ordering};

use endcap_runtime::{
    Embedded, Erasure, Policies, Remain, StageResult, Store, StoreError, StoreOverview, StoredPage, StoredPolicy, Write,
};
use endcap_schemas::UserKey;

/// The store.
pub(super) struct Counting {
    file: Embedded,
    asked: AtomicUsize,
}

impl Counting {
    pub(super) fn of(file: Embedded) -> Self {
        Self { file, asked: AtomicUsize::new(0) }
    }

    /// Questions for erasures since this was asked last, each of however many users.
    pub(super) fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

impl Store for Counting {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        self.file.put_all(writes, results)
    }

    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.file.states(users)
    }

    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        self.file.page(user)
    }

    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        self.file.results(user)
    }

    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.file.erasures(users)
    }

    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.file.cached(cache, keys)
    }

    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        self.file.remember(cache, entries)
    }
}

impl Policies for Counting {
    fn put_policy(&self, policy: &StoredPolicy) -> Result<(), StoreError> {
        self.file.put_policy(policy)
    }

    fn forget_policies(&self, versions: &[i64]) -> Result<(), StoreError> {
        self.file.forget_policies(versions)
    }

    fn policy_versions(&self) -> Result<Vec<i64>, StoreError> {
        self.file.policy_versions()
    }

    fn policy(&self, version: i64) -> Result<Option<StoredPolicy>, StoreError> {
        self.file.policy(version)
    }
}

impl StoreOverview for Counting {
    fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.file.pages_after(after, limit)
    }

    fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        self.file.pages_like(part, limit)
    }

    fn pages_count(&self) -> Result<u64, StoreError> {
        self.file.pages_count()
    }

    fn states_count(&self) -> Result<u64, StoreError> {
        self.file.states_count()
    }

    fn remains(&self, user: &UserKey) -> Result<Vec<Remain>, StoreError> {
        self.file.remains(user)
    }

    fn note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.file.note(name, value)
    }

    fn noted(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.file.noted(name)
    }

    fn add_generation(&self, generation: i32, manifest: &str) -> Result<Option<String>, StoreError> {
        self.file.add_generation(generation, manifest)
    }

    fn generation(&self, number: Option<i32>) -> Result<Option<(i32, String)>, StoreError> {
        self.file.generation(number)
    }

    fn generations(&self) -> Result<Vec<(i32, String)>, StoreError> {
        self.file.generations()
    }
}
