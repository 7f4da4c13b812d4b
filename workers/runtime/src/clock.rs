//! Time, injected. What a stage or its loop decides by comes from here; only waiting itself goes by the machine's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A source of time.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
    /// Time since some fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is moved: for tests.
#[derive(Debug, Default)]
pub struct ManualClock {
    ms: AtomicI64,
}

impl ManualClock {
    /// A clock that stands at `now_ms`.
    pub fn at(now_ms: i64) -> Self {
        Self { ms: AtomicI64::new(now_ms) }
    }

    /// Moves on by `by`.
    pub fn advance(&self, by: Duration) {
        self.ms.fetch_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
    }

    /// Moves on to `now_ms`; an earlier time changes nothing.
    pub fn advance_to(&self, now_ms: i64) {
        self.ms.fetch_max(now_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> i64 {
        self.ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.now_ms()).unwrap_or(0))
    }
}

/// The clocks of a process.
#[derive(Clone)]
pub struct Clocks {
    /// When things are done: appended, stored, measured.
    pub wall: Arc<dyn Clock>,
    /// What the events' times are compared with: the wall's, except in a replay of old events.
    pub events: Arc<dyn Clock>,
}

impl Clocks {
    /// The machine's clock for both.
    pub fn system() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        Self { wall: clock.clone(), events: clock }
    }

    /// One clock for both.
    pub fn of(clock: Arc<dyn Clock>) -> Self {
        Self { wall: clock.clone(), events: clock }
    }
}
