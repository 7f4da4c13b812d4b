//! The running job in numbers: one reading feeds the terminal, the pipeline view and the health endpoints.

use std::collections::BTreeMap;

use endcap_inference::TokenCounts;
use endcap_schemas::topics::Lane;
use serde::{Serialize, Serializer};

/// A moment of the whole job.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Figures {
    /// Number of the manifest that this process runs; 0 before the first reading.
    pub generation: i32,
    /// Time since the start, s.
    pub uptime_s: f64,
    /// Events in the log.
    pub accepted: u64,
    /// Events that the interface refused; kept as dead letters.
    pub refused: u64,
    /// Stages in path order on the live lane, then on the backfill lane, where it has had work.
    pub stages: Vec<StageFigures>,
    /// From an accepted event to its readable page.
    pub freshness: Freshness,
    /// What was published.
    pub pages: PageFigures,
    /// Share of answers that came from a cache.
    pub cache: CacheFigures,
    /// What the feeder is doing.
    pub feeder: Option<String>,
}

/// A moment of one stage on one lane.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageFigures {
    /// Its name.
    pub name: String,
    /// The lane.
    #[serde(serialize_with = "by_name")]
    pub lane: Lane,
    /// Records whose fate is decided.
    #[serde(rename = "in")]
    pub received: u64,
    /// Records passed on.
    pub passed: u64,
    /// Records that ended as they should, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Records that could not be processed.
    pub dead_lettered: u64,
    /// Records that wait.
    pub waiting: u64,
    /// Seconds of work (not of waiting).
    pub seconds: f64,
    /// Tokens of its model; none where it has none.
    pub tokens: Option<TokenCounts>,
    /// Tokens a second over the last half minute; since the reading before this one, where that was longer ago.
    pub tokens_per_second: f64,
    /// The batch that it is processing; none between two.
    pub at_work: Option<AtWorkFigures>,
    /// What it waits for, while something is down; why it has stopped, where it has.
    pub trouble: Option<String>,
    /// Whether this process works on it no more until the next start, while the rest of the stage goes on.
    pub stopped: bool,
}

/// A batch in a stage's hands, of this process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AtWorkFigures {
    /// Its records; they count among those that wait until they are committed.
    pub records: usize,
    /// For how long, s.
    pub seconds: f64,
}

impl Default for StageFigures {
    fn default() -> Self {
        Self {
            name: String::new(),
            lane: Lane::Live,
            received: 0,
            passed: 0,
            dropped: BTreeMap::new(),
            dead_lettered: 0,
            waiting: 0,
            seconds: 0.0,
            tokens: None,
            tokens_per_second: 0.0,
            at_work: None,
            trouble: None,
            stopped: false,
        }
    }
}

fn by_name<S: Serializer>(lane: &Lane, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(lane.name())
}

/// Seconds from an accepted event to its readable page.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Freshness {
    /// Half of the pages are at least this fresh.
    pub p50: Option<f64>,
    /// 99 of 100 are.
    pub p99: Option<f64>,
    /// Pages that this was taken from: the last ones, at most 500.
    pub count: usize,
}

impl Freshness {
    /// The quantiles of `seconds`, by the nearest rank.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a rank within the list"
            )]
            let at = (share * seconds.len() as f64).ceil() as usize;
            seconds.get(at.max(1) - 1).copied()
        };
        Self { p50: rank(0.50), p99: rank(0.99), count: seconds.len() }
    }
}

impl Figures {
    /// Records that wait for any stage on `lane`.
    pub fn waiting(&self, lane: Lane) -> u64 {
        self.on(lane).map(|stage| stage.waiting).sum()
    }

    /// Those of the stages on `lane` that have stopped there while records wait for them: nobody works these off here.
    pub fn left_lying(&self, lane: Lane) -> impl Iterator<Item = &StageFigures> {
        self.on(lane).filter(|stage| stage.stopped && stage.waiting > 0)
    }

    fn on(&self, lane: Lane) -> impl Iterator<Item = &StageFigures> {
        self.stages.iter().filter(move |stage| stage.lane == lane)
    }
}

/// Published pages.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PageFigures {
    /// Pages published.
    pub published: u64,
    /// Shoppers that have one.
    pub shoppers: u64,
    /// Pages a second over the last half minute; since the reading before this one, where that was longer ago.
    pub per_second: f64,
}

/// Share of answers that came from a cache, 0…1; none before the first question.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct CacheFigures {
    /// Keyword lists.
    pub keywords: Option<f64>,
    /// Verdicts on products.
    pub verdicts: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        for (seconds, p50, p99) in [
            (vec![], None, None),
            (vec![3.0], Some(3.0), Some(3.0)),
            (vec![4.0, 1.0, 3.0, 2.0], Some(2.0), Some(4.0)),
            ((1..=200).map(f64::from).collect(), Some(100.0), Some(198.0)),
        ] {
            let freshness = Freshness::of(seconds);
            assert_eq!((freshness.p50, freshness.p99), (p50, p99));
        }
    }
}
