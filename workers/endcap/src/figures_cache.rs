//! The job's figures for whoever asks: read then, not over and over, and kept for a while. A process of a fleet asks its servers no more
//! often than somebody looks.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;
use endcap_runtime::Clock;

use crate::{feed::FeedState, figures::Figures, monitor::Monitor};

/// The cache.
pub struct FiguresCache {
    clock: Arc<dyn Clock>,
    /// When the process began to work.
    start: Duration,
    /// How old figures may be that somebody is shown.
    keep: Duration,
    feeding: Option<Feeding>,
    monitor: Mutex<Monitor>,
    /// The last reading, and when it was made.
    last: Mutex<Option<(Duration, Arc<Figures>)>>,
}

/// Who feeds events in.
#[derive(Debug, Clone)]
pub struct Feeding {
    /// How far it is.
    pub state: Arc<FeedState>,
    /// What is being fed, for people.
    pub words: String,
}

impl FiguresCache {
    /// A cache that reads with `monitor` and shows figures that are up to `keep` old.
    pub fn new(monitor: Monitor, feeding: Option<Feeding>, keep: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { start: clock.monotonic(), clock, keep, feeding, monitor: Mutex::new(monitor), last: Mutex::default() }
    }

    /// Time since the process began to work.
    pub fn up_for(&self) -> Duration {
        self.clock.monotonic().saturating_sub(self.start)
    }

    /// Time of day, ms since 1970.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Reads anew.
    ///
    /// # Errors
    /// When log or store do not answer.
    pub fn read(&self) -> Result<Arc<Figures>> {
        self.read_with(&mut self.monitor.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_with(&self, monitor: &mut Monitor) -> Result<Arc<Figures>> {
        let words = self.feeding.as_ref().map(|Feeding { state, words }| {
            let now = if state.is_done() { "all fed" } else { "feeding" };
            format!("{words}; {} events so far, {now}", state.fed())
        });
        let figures = Arc::new(monitor.read(self.up_for(), self.clock.now_ms(), words)?);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.clock.monotonic(), figures.clone()));
        Ok(figures)
    }

    /// The last reading, however old it is.
    pub fn last(&self) -> Option<Arc<Figures>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, figures)| figures.clone())
    }

    /// Figures that are not too old. The last ones where somebody else is just reading, or where nobody answers.
    ///
    /// # Errors
    /// When log or store do not answer and nothing was read before.
    pub fn recent(&self) -> Result<Arc<Figures>> {
        let (now, last) = (self.clock.monotonic(), self.last.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let Some((at, last)) = last else {
            let mut monitor = self.monitor.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever waited for the first reading is shown it.
            return self.last().map_or_else(|| self.read_with(&mut monitor), Ok);
        };
        if now.saturating_sub(at) <= self.keep {
            return Ok(last);
        }
        let Ok(mut monitor) = self.monitor.try_lock() else { return Ok(last) };
        Ok(self.read_with(&mut monitor).unwrap_or_else(|error| {
            tracing::warn!(error = format!("{error:#}"), "cannot read the figures; showing older ones");
            last
        }))
    }
}

impl fmt::Debug for FiguresCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FiguresCache").field("keep", &self.keep).finish_non_exhaustive()
    }
}
