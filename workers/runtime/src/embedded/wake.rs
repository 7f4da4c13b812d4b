//! Wakes idle consumers of the same process when something was appended.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

#[derive(Default)]
pub(super) struct Wake {
    appends: Mutex<u64>,
    changed: Condvar,
}

impl Wake {
    /// How often something was appended.
    pub(super) fn appends(&self) -> u64 {
        *self.appends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify(&self) {
        *self.appends.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Sleeps until something was appended since `seen`, at most `at_most`; answers whether something was.
    pub(super) fn wait(&self, seen: u64, at_most: Duration) -> bool {
        let held = self.appends.lock().unwrap_or_else(PoisonError::into_inner);
        let (appends, _) =
            self.changed.wait_timeout_while(held, at_most, |appends| *appends == seen).unwrap_or_else(PoisonError::into_inner);
        *appends != seen
    }
}
