//! The circuit breaker: a stage that fails on nearly everything stops instead of draining its topic into the dead letters.

use std::collections::VecDeque;

/// When faults stop a stage. Only faults of ours count (bytes that cannot be read, records on which the stage fails, outputs that neither
/// wire nor store take), not what a stage rejects for cause: a sender must not be able to stop a stage.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// So many in a row.
    pub consecutive_max: usize,
    /// Or more than this share …
    pub ratio_max: f64,
    /// … of the last so many records.
    pub window: usize,
}

impl BreakerConfig {
    /// Nothing stops the stage: whatever fails becomes a dead letter.
    pub const NEVER: Self = Self { consecutive_max: usize::MAX, ratio_max: 1.0, window: 1 };
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { consecutive_max: 20, ratio_max: 0.5, window: 200 }
    }
}

pub(super) struct Breaker {
    config: BreakerConfig,
    window: VecDeque<bool>,
    faults: usize,
    consecutive: usize,
}

/// Too many faults: how many of how many.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tripped {
    pub(super) faults: usize,
    pub(super) of: usize,
}

impl Breaker {
    pub(super) fn new(config: BreakerConfig) -> Self {
        Self { config, window: VecDeque::with_capacity(config.window + 1), faults: 0, consecutive: 0 }
    }

    /// Takes note of one record.
    #[expect(clippy::cast_precision_loss, reason = "a window is small")]
    pub(super) fn observe(&mut self, fault: bool) -> Result<(), Tripped> {
        self.consecutive = if fault { self.consecutive + 1 } else { 0 };
        self.window.push_back(fault);
        self.faults += usize::from(fault);
        if self.window.len() > self.config.window {
            self.faults -= usize::from(self.window.pop_front().unwrap_or(false));
        }
        if self.consecutive >= self.config.consecutive_max {
            return Err(Tripped { faults: self.consecutive, of: self.consecutive });
        }
        let full = self.window.len() == self.config.window;
        if full && self.faults as f64 > self.config.ratio_max * self.window.len() as f64 {
            return Err(Tripped { faults: self.faults, of: self.window.len() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `faults` is a word of `.` (fine) and `x` (fault); the answer is the place at which the breaker trips.
    fn trips_at(config: BreakerConfig, faults: &str) -> Option<usize> {
        let mut breaker = Breaker::new(config);
        faults.chars().position(|c| breaker.observe(c == 'x').is_err())
    }

    #[test]
    fn it_trips_on_a_row_of_faults_and_on_a_full_window_of_mostly_faults() {
        let config = BreakerConfig { consecutive_max: 4, ratio_max: 0.5, window: 6 };
        for (faults, place) in [
            ("......", None),
            ("xxx.xxx", Some(5)),
            ("xxxx", Some(3)),
            ("x.x.x.x.x.x.", None),
            ("......xx.xx.", Some(11 - 1)),
            ("xxx...", None),
        ] {
            assert_eq!(trips_at(config, faults), place, "{faults}");
        }
        assert_eq!(trips_at(BreakerConfig::NEVER, &"x".repeat(1_000)), None);
    }
}
