//! What a stage did, counted: persisted with each commit, and live for the process.

use std::{
    collections::BTreeMap,
    ops::AddAssign,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use endcap_schemas::topics::Lane;

use crate::DropReason;

/// Where a stage's seconds go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Reading records, without waiting for them.
    Poll,
    /// Decoding, coalescing, choosing a batch.
    Batch,
    /// Inside the stage.
    Infer,
    /// Writing to the store.
    Store,
    /// Committing to the log.
    Commit,
    /// Waiting: for records, or for a dependency that is down.
    Idle,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Phase; 6] = [Phase::Poll, Phase::Batch, Phase::Infer, Phase::Store, Phase::Commit, Phase::Idle];

    /// The phase as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Phase::Poll => "poll",
            Phase::Batch => "batch",
            Phase::Infer => "infer",
            Phase::Store => "store",
            Phase::Commit => "commit",
            Phase::Idle => "idle",
        }
    }
}

/// Counts of one stage on one lane. `received = passed + dropped + dead_lettered`, always.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// Records whose fate is decided.
    pub received: u64,
    /// Records that were passed on.
    pub passed: u64,
    /// Records that ended as they should, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Records that could not be processed, by kind of fault.
    pub dead_lettered: BTreeMap<String, u64>,
    /// Batches that the stage processed.
    pub batches: u64,
    /// Where the time went, by the label of its [`Phase`].
    pub spent: BTreeMap<String, Duration>,
    /// What the stage itself counts.
    pub counters: BTreeMap<String, u64>,
}

impl Tally {
    /// Counts one record that was passed on.
    pub fn pass(&mut self) {
        self.received += 1;
        self.passed += 1;
    }

    /// Counts one record that was dropped.
    pub fn drop_for(&mut self, reason: DropReason) {
        self.received += 1;
        *self.dropped.entry(reason.label().to_owned()).or_default() += 1;
    }

    /// Counts one record that became a dead letter.
    pub fn dead_letter(&mut self, kind: &str) {
        self.received += 1;
        *self.dead_lettered.entry(kind.to_owned()).or_default() += 1;
    }

    /// Counts time.
    pub fn spend(&mut self, phase: Phase, time: Duration) {
        *self.spent.entry(phase.label().to_owned()).or_default() += time;
    }

    /// Adds to one of the stage's own counters.
    pub fn count(&mut self, name: &str, amount: u64) {
        *self.counters.entry(name.to_owned()).or_default() += amount;
    }

    /// Records dropped for any reason.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.values().sum()
    }

    /// Records dead-lettered for any fault.
    pub fn dead_lettered_total(&self) -> u64 {
        self.dead_lettered.values().sum()
    }

    /// Whether every record received has exactly one verdict.
    pub fn is_balanced(&self) -> bool {
        self.received == self.passed + self.dropped_total() + self.dead_lettered_total()
    }
}

impl AddAssign<&Tally> for Tally {
    fn add_assign(&mut self, other: &Tally) {
        fn add<V: AddAssign + Copy + Default>(to: &mut BTreeMap<String, V>, from: &BTreeMap<String, V>) {
            for (name, value) in from {
                *to.entry(name.clone()).or_default() += *value;
            }
        }
        self.received += other.received;
        self.passed += other.passed;
        self.batches += other.batches;
        add(&mut self.dropped, &other.dropped);
        add(&mut self.dead_lettered, &other.dead_lettered);
        add(&mut self.spent, &other.spent);
        add(&mut self.counters, &other.counters);
    }
}

/// How a running stage is doing, for the process around it.
#[derive(Debug, Default)]
pub struct StageStats {
    shared: Mutex<StageSnapshot>,
}

/// A moment of [`StageStats`].
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StageSnapshot {
    /// Whether the loop runs.
    pub running: bool,
    /// When the loop last went round, ms: a stage that hangs falls behind.
    pub alive_ms: i64,
    /// When the last commit was made, ms; 0 before the first.
    pub committed_ms: i64,
    /// How the live lane is doing.
    pub live: LaneSnapshot,
    /// How the backfill lane is doing beside it.
    pub backfill: LaneSnapshot,
}

/// What of a [`StageSnapshot`] is a lane's own.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LaneSnapshot {
    /// What was committed of it since the stage started in this process.
    pub tally: Tally,
    /// Records polled and not yet committed.
    pub held: usize,
    /// What it is waiting for, while a dependency is down; why it has stopped, where it has.
    pub trouble: Option<String>,
    /// What its log waits for before it gives any record, although it answers.
    pub awaits: Option<String>,
    /// Whether it has stopped until the next start, while the rest of the stage goes on.
    pub stopped: bool,
    /// The batch that is being processed; none between two.
    pub at_work: Option<AtWork>,
}

/// A batch in a stage's hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AtWork {
    /// Its live records.
    pub records: usize,
    /// When the stage got it, ms.
    pub since_ms: i64,
}

impl StageSnapshot {
    /// How `lane` is doing.
    pub fn lane(&self, lane: Lane) -> &LaneSnapshot {
        match lane {
            Lane::Live => &self.live,
            Lane::Backfill => &self.backfill,
        }
    }

    pub(crate) fn lane_mut(&mut self, lane: Lane) -> &mut LaneSnapshot {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backfill => &mut self.backfill,
        }
    }
}

impl StageStats {
    /// How it stands now.
    pub fn snapshot(&self) -> StageSnapshot {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut StageSnapshot)) {
        change(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
