//! Policies as a store keeps them: read, whole or not at all, and thinned out as they age.

use std::collections::BTreeMap;

use endcap_ranker::{
    SnapshotError,
    linucb::{
        TwoStage,
        snapshot::{self, Versions},
    },
};
use endcap_runtime::{Policies, StoreError, StoredPolicy};

use crate::{
    features::{VERSION, untaught},
    ledger::Ledger,
    metric,
};

/// Policies that are kept whatever their age: the newest.
const NEWEST_KEPT: usize = 16;
/// Of those that are older, so many are kept for each doubling of their number.
const KEPT_PER_DOUBLING: usize = 2;

/// A policy, and what it has learnt from.
#[derive(Debug, Clone, PartialEq)]
pub struct KeptPolicy {
    /// Its version: the place in the log up to which it has learnt, greater than any that was kept before; 0 for the untaught one.
    pub(crate) version: i64,
    /// The policy.
    pub(crate) policy: TwoStage,
    /// What it has learnt from already.
    pub(crate) ledger: Ledger,
}

impl KeptPolicy {
    /// The policy that has learnt nothing.
    pub(crate) fn untaught() -> Self {
        Self { version: 0, policy: untaught(), ledger: Ledger::default() }
    }

    /// The policy that `stored` holds, with what it has learnt from: whoever goes by it needs both.
    ///
    /// # Errors
    /// As [`policy_of`]; and when what it has learnt from is damaged.
    pub fn read(stored: &StoredPolicy) -> Result<Self, SnapshotError> {
        let policy = policy_of(stored)?;
        let ledger = Ledger::read(&stored.ledger).ok_or(SnapshotError::Content("what it has learnt from is damaged"))?;
        Ok(Self { version: stored.version, policy, ledger })
    }

    /// Impressions that it has learnt from.
    pub fn impressions(&self) -> u64 {
        self.policy.ranker().observations()
    }

    /// When the newest slate that it has learnt from was served, or, where that is later, an earlier policy put back; ms since 1970. None where
    /// nothing was learnt.
    pub fn learnt_until_ms(&self) -> Option<i64> {
        self.ledger.newest_ms()
    }

    /// The form that a store keeps. What follows from the policy's beliefs is computed afresh first, as in [`snapshot::write`].
    pub(crate) fn store(&mut self) -> StoredPolicy {
        let policy = u64::try_from(self.version).unwrap_or_default();
        let snapshot = snapshot::write(&mut self.policy, Versions { features: VERSION, policy });
        StoredPolicy { version: self.version, snapshot, ledger: self.ledger.write() }
    }
}

/// Whether the policy that `stored` holds can be put back, whatever becomes of what it has learnt from.
///
/// # Errors
/// [`SnapshotError`] for anything but a whole, undamaged policy over today's features that is the one of its version.
pub fn can_be_put_back(stored: &StoredPolicy) -> Result<(), SnapshotError> {
    policy_of(stored).map(drop)
}

/// The policy that `stored` holds, whatever it has learnt from.
///
/// # Errors
/// As [`can_be_put_back`].
pub(crate) fn policy_of(stored: &StoredPolicy) -> Result<TwoStage, SnapshotError> {
    let (policy, version) = snapshot::read(&stored.snapshot, VERSION)?;
    if i64::try_from(version) != Ok(stored.version) {
        return Err(SnapshotError::Content("it is that of another version"));
    }
    let untaught = untaught();
    let dims = |policy: &TwoStage| {
        std::iter::once(policy.ranker()).chain(policy.nominators()).map(endcap_ranker::linucb::LinUcb::dims).collect::<Vec<_>>()
    };
    if dims(&policy) != dims(&untaught) {
        return Err(SnapshotError::Content("it has other stages than this release's"));
    }
    Ok(policy)
}

/// Looks after which a policy that could not be used is read again: it may have been mended.
pub(crate) const LOOKS: u32 = 60;

/// Kept policies that cannot be used, each with the looks for which it is passed over unread.
#[derive(Debug, Default)]
pub(crate) struct Refused(BTreeMap<i64, u32>);

impl Refused {
    /// The newest policy beyond version `above` that can be read, of `versions`, which come newest first. Those that cannot are told once and passed
    /// over.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(crate) fn newest_readable(
        &mut self,
        store: &dyn Policies,
        versions: &[i64],
        above: i64,
    ) -> Result<Option<KeptPolicy>, StoreError> {
        self.0.retain(|version, _| versions.contains(version));
        for version in versions.iter().copied().take_while(|version| *version > above) {
            if let Some(looks) = self.0.get_mut(&version).filter(|looks| **looks > 0) {
                *looks -= 1;
                continue;
            }
            let Some(stored) = store.policy(version)? else { continue }; // forgotten meanwhile
            match KeptPolicy::read(&stored) {
                Ok(kept) => return Ok(Some(kept)),
                Err(error) if self.0.insert(version, LOOKS).is_none() => {
                    metric::policy_refused();
                    tracing::warn!(version, %error, "a kept policy cannot be used; going by an earlier one");
                }
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

/// Versions that may be forgotten of `versions`, which come newest first: the newest stay, and of the older ones fewer the older they are. So
/// there is something to go back to for long, and never much of it.
pub(crate) fn superfluous(versions: &[i64]) -> Vec<i64> {
    let older = versions.get(NEWEST_KEPT..).unwrap_or_default();
    let Some(newest) = versions.first() else { return Vec::new() };
    let mut kept_at: Vec<(u32, usize)> = Vec::new();
    let mut gone = Vec::new();
    // From the oldest on, so that what is kept of an age stays kept as it grows older.
    for version in older.iter().rev() {
        let doubling = (newest - version).max(1).ilog2();
        match kept_at.iter_mut().find(|(at, _)| *at == doubling) {
            Some((_, kept)) if *kept >= KEPT_PER_DOUBLING => gone.push(*version),
            Some((_, kept)) => *kept += 1,
            None => kept_at.push((doubling, 1)),
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_policies_are_thinned_out_and_something_old_stays() {
        let mut versions: Vec<i64> = Vec::new();
        for version in 1..=20_000 {
            versions.insert(0, version * 3);
            let gone = superfluous(&versions);
            versions.retain(|version| !gone.contains(version));
        }
        assert!(versions.len() < NEWEST_KEPT + 2 * KEPT_PER_DOUBLING * 16, "{versions:?}");
        assert!(versions[..NEWEST_KEPT].windows(2).all(|pair| pair[0] - pair[1] == 3));
        let age = 60_000 - versions.last().unwrap();
        assert!(age > 20_000, "the oldest is {age} old: {versions:?}");
        assert!(superfluous(&[]).is_empty() && superfluous(&[7]).is_empty());
    }

    #[test]
    fn a_policy_under_another_version_is_refused() {
        let mut kept = KeptPolicy { version: 12, ..KeptPolicy::untaught() };
        let stored = kept.store();
        assert_eq!(KeptPolicy::read(&stored), Ok(kept));
        assert!(KeptPolicy::read(&StoredPolicy { version: 13, ..stored.clone() }).is_err());
        assert!(KeptPolicy::read(&StoredPolicy { snapshot: stored.snapshot[..40].to_vec(), ..stored }).is_err());
    }
}
