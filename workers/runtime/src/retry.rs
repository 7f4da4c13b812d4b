//! Waiting between attempts. The only module that knows the `backoff` crate.

use std::time::Duration;

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};

/// How long to wait between attempts at something that is unavailable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryConfig {
    /// After the first failure; each further wait is half as long again, give or take half.
    pub first: Duration,
    /// At most.
    pub longest: Duration,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), longest: Duration::from_secs(5) }
    }
}

/// The waits of one series of attempts; never ends by itself.
///
/// Their scatter is not seeded: it decides when something is tried again, never what comes out.
pub(crate) struct Waits(ExponentialBackoff);

impl Waits {
    pub(crate) fn new(config: RetryConfig) -> Self {
        Self(
            ExponentialBackoffBuilder::new()
                .with_initial_interval(config.first)
                .with_max_interval(config.longest)
                .with_max_elapsed_time(None)
                .build(),
        )
    }

    /// Begins again with the first wait.
    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }

    pub(crate) fn next(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }
}
