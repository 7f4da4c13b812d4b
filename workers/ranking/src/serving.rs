//! The policy that is served now, and how a newer one takes its place while requests go on.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use endcap_ranker::linucb::TwoStage;
use endcap_runtime::{Policies, StoreError};

use crate::{
    features::untaught,
    kept::{KeptPolicy, Refused},
    metric,
};

/// A policy that is served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) version: i64,
    pub(crate) policy: TwoStage,
}

/// The policy that is served now. Who asks gets one and keeps it for a request.
#[derive(Debug)]
pub(crate) struct Serving {
    current: ArcSwap<Served>,
    exploration: f64,
    refused: Mutex<Refused>,
}

impl Serving {
    /// Serves the policy that has learnt nothing, until [`Serving::refresh`] finds another; `exploration` times the bonus counts.
    pub(crate) fn new(exploration: f64) -> Self {
        let untaught = Served { version: 0, policy: untaught().exploring(exploration) };
        Self { current: ArcSwap::from_pointee(untaught), exploration, refused: Mutex::default() }
    }

    pub(crate) fn now(&self) -> Arc<Served> {
        self.current.load_full()
    }

    /// Takes up the newest policy that can be read, if it is newer than the one that is served; says whether one was. One that cannot be read
    /// takes nobody's place, and is told once.
    ///
    /// # Errors
    /// When the store does not answer; then nothing changes.
    pub(crate) fn refresh(&self, store: &dyn Policies) -> Result<bool, StoreError> {
        let versions = store.policy_versions()?;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let found = refused.newest_readable(store, &versions, self.now().version)?;
        let Some(KeptPolicy { version, policy, .. }) = found else { return Ok(false) };
        metric::policy(version);
        self.current.store(Arc::new(Served { version, policy: policy.exploring(self.exploration) }));
        Ok(true)
    }
}
