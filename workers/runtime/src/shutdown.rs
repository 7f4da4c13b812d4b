//! The one way to ask every thread of a process to finish.

use std::{
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// A request to finish, shared by all clones. Once made it stands.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    asked: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Shutdown {
    /// No request yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks everybody to finish what is running and to return.
    pub fn trigger(&self) {
        self.shared.asked.store(true, Ordering::SeqCst);
        let _held = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wake.notify_all();
    }

    /// Whether somebody asked.
    pub fn is_triggered(&self) -> bool {
        self.shared.asked.load(Ordering::SeqCst)
    }

    /// Sleeps for `at_most`, or until somebody asks; answers whether somebody did.
    pub fn wait(&self, at_most: Duration) -> bool {
        let held = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = self.shared.wake.wait_timeout_while(held, at_most, |()| !self.is_triggered());
        self.is_triggered()
    }
}
