//! The real side of [`Policies`]: one partition, whose first row is the newest policy.

use endcap_runtime::{Policies, StoreError, StoredPolicy};

use crate::{
    ScyllaStore,
    migrate::SCOPE,
    store::{corrupt, first_row},
};

/// Each row is written, and forgotten, with its version as the timestamp: what was forgotten stays so, also when it is written again late.
impl Policies for ScyllaStore {
    fn put_policy(&self, policy: &StoredPolicy) -> Result<(), StoreError> {
        policy.check()?;
        let StoredPolicy { version, snapshot, ledger } = policy.clone();
        self.run(|shared| async move {
            shared.write(&shared.statements.put_policy, (SCOPE, version, snapshot, ledger, version)).await
        })
    }

    fn forget_policies(&self, versions: &[i64]) -> Result<(), StoreError> {
        let versions = versions.to_vec();
        self.run(|shared| async move {
            let statement = &shared.statements.forget_policy;
            let forgetting: Vec<_> =
                versions.iter().map(|version| shared.write(statement, (*version, SCOPE, *version))).collect();
            shared.all(forgetting).await.map(|_| ())
        })
    }

    fn policy_versions(&self) -> Result<Vec<i64>, StoreError> {
        self.run(|shared| async move {
            let found = shared.read(&shared.statements.policy_versions, (SCOPE,)).await?;
            found.rows::<(i64,)>().map_err(corrupt)?.map(|row| row.map(|(version,)| version).map_err(corrupt)).collect()
        })
    }

    fn policy(&self, version: i64) -> Result<Option<StoredPolicy>, StoreError> {
        self.run(|shared| async move {
            let found = shared.read(&shared.statements.policy, (SCOPE, version)).await?;
            let row = found.maybe_first_row::<(Option<Vec<u8>>, Option<Vec<u8>>)>().map_err(first_row)?;
            Ok(row.map(|(snapshot, ledger)| StoredPolicy {
                version,
                snapshot: snapshot.unwrap_or_default(),
                ledger: ledger.unwrap_or_default(),
            }))
        })
    }
}
