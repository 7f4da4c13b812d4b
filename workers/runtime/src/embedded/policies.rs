//! The embedded side of [`Policies`]: a table of its own.

use rusqlite::{OptionalExtension, params};

use super::Embedded;
use crate::{Policies, StoreError, StoredPolicy};

impl Policies for Embedded {
    fn put_policy(&self, policy: &StoredPolicy) -> Result<(), StoreError> {
        policy.check()?;
        let StoredPolicy { version, snapshot, ledger } = policy;
        self.shared.write(|transaction| {
            transaction
                .prepare_cached(
                    "INSERT INTO policies VALUES (?1, ?2, ?3) ON CONFLICT (version) DO UPDATE
                     SET snapshot = excluded.snapshot, ledger = excluded.ledger",
                )?
                .execute(params![version, snapshot, ledger])
                .map(|_| ())
        })
    }

    fn forget_policies(&self, versions: &[i64]) -> Result<(), StoreError> {
        self.shared.write(|transaction| {
            let mut statement = transaction.prepare_cached("DELETE FROM policies WHERE version = ?1")?;
            versions.iter().try_for_each(|version| statement.execute([version]).map(|_| ()))
        })
    }

    fn policy_versions(&self) -> Result<Vec<i64>, StoreError> {
        self.shared.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT version FROM policies ORDER BY version DESC")?;
            let rows = statement.query_map([], |row| row.get(0))?;
            rows.collect()
        })
    }

    fn policy(&self, version: i64) -> Result<Option<StoredPolicy>, StoreError> {
        self.shared.read(|connection| {
            connection
                .prepare_cached("SELECT version, snapshot, ledger FROM policies WHERE version = ?1")?
                .query_row([version], |row| Ok(StoredPolicy { version: row.get(0)?, snapshot: row.get(1)?, ledger: row.get(2)? }))
                .optional()
        })
    }
}
