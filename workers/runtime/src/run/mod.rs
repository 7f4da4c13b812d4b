//! The loop of one stage: poll, decode, hold and coalesce, batch, process, store, commit.
//!
//! Records are settled in offset order: what the loop holds is a queue, a batch is a prefix of it, and a commit moves the position to the
//! end of that prefix. So whatever was not committed is delivered again after a crash, and nothing that was committed is. A stage may have two
//! such queues, one per lane: `lanes` decides whose turn it is, `work` takes a batch through its steps.

mod breaker;
mod lanes;
mod pending;
mod settle;
mod work;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use endcap_schemas::topics::Lane;
use thiserror::Error;
use tracing::{error, info, warn};

use crate::{
    Clocks, LaneSnapshot, Log, LogError, Phase, RetryConfig, Shutdown, Stage, StageStats, Store, StoreError, Tally, metric,
    retry::Waits,
};
use breaker::Breaker;
pub use breaker::BreakerConfig;
use lanes::Lanes;
use pending::Pending;
use work::Work;

/// Kind of a dead letter whose bytes could not be read.
pub(crate) const MALFORMED: &str = "malformed";
/// Kind of a dead letter whose key is not its user's: another partition has the rest of the user's records. A sender's fault.
pub(crate) const WRONG_KEY: &str = "wrong_key";
/// Kind of a dead letter on which the stage fails even when it is alone.
pub(crate) const STAGE_FAILED: &str = "stage_failed";
/// Kind of a dead letter whose output does not fit the wire.
pub(crate) const UNWRITABLE: &str = "unwritable_output";
/// Kind of a dead letter of which a stage made more than a store takes.
pub(crate) const TOO_LARGE: &str = "too_large";
/// How often the backlog of a lane is measured: a log on servers is asked about every partition.
const fn backlog_every(lane: Lane) -> Duration {
    match lane {
        Lane::Live => Duration::from_secs(1),
        Lane::Backfill => Duration::from_secs(10),
    }
}

/// Limits of a stage's loop.
#[derive(Debug, Clone, Copy)]
pub struct LoopConfig {
    /// Records of one poll.
    pub poll_max: usize,
    /// Records held at once; when so many are held, none waits for company any longer.
    pub held_max: usize,
    /// Bytes of the values of those, as they came; from it on nothing is polled, so that one more poll's records are the most above it. What
    /// they decode to is held beside them.
    pub held_bytes_max: usize,
    /// Records of one batch that the stage is asked about; a quarter of it on the backfill lane, as live records wait for such a batch.
    pub batch_records_max: usize,
    /// Tokens of one batch, as [`Stage::tokens`] counts them; a single larger record still goes, alone.
    pub batch_tokens_max: usize,
    /// How long a live record waits for a newer context of its user before it is processed; zero for none.
    pub debounce: Duration,
    /// How long a user's contexts may supersede each other before one is processed.
    pub debounce_max: Duration,
    /// How long live records are gathered for one batch: unless so many are held that none waits any longer, none goes before the first that is held was
    /// held for so long; then those that are due go together. Zero for not at all.
    pub gather: Duration,
    /// How long live records are gathered at least while there is much to do: while two or more and an eighth of [`Self::batch_records_max`] are
    /// held, whatever is to become of them, and not as many as that, and the backfill lane has no work. A commit costs much the same whatever is
    /// in it, so fuller batches leave more time for records. Zero for not at all.
    pub gather_under_load: Duration,
    /// While both lanes have work, the backfill lane gets one batch in so many; at least 2.
    pub backfill_share: u32,
    /// How long a poll waits for records: bounds how late a shutdown is noticed.
    pub poll_wait: Duration,
    /// Waits between attempts at something unavailable.
    pub retry: RetryConfig,
    /// When faults stop the stage.
    pub breaker: BreakerConfig,
}

impl Default for LoopConfig {
    fn default() -> Self {
        Self {
            poll_max: 512,
            held_max: 4_096,
            held_bytes_max: 64 * 1_024 * 1_024,
            batch_records_max: 64,
            batch_tokens_max: usize::MAX,
            debounce: Duration::ZERO,
            debounce_max: Duration::from_secs(10),
            gather: Duration::ZERO,
            gather_under_load: Duration::from_millis(40),
            backfill_share: 10,
            poll_wait: Duration::from_millis(100),
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
        }
    }
}

/// What a stage's loop works with.
#[derive(Clone)]
pub struct StageEnv {
    /// Where writes and results go.
    pub store: Arc<dyn Store>,
    /// Its time.
    pub clocks: Clocks,
    /// Its limits.
    pub config: LoopConfig,
    /// Where it tells how it is doing.
    pub stats: Arc<StageStats>,
    /// Who asks it to finish.
    pub shutdown: Shutdown,
}

/// Why a stage stopped although nobody asked it to.
#[derive(Debug, Error)]
pub enum StageStopped {
    /// Too many records failed: rather than drain the topic into the dead letters, look into the last one.
    #[error(
        "stage {stage} stopped: {faults} of its last {of} records failed, last with `{last}`; mend the cause and start it again"
    )]
    Breaker {
        /// The stage.
        stage: &'static str,
        /// How many failed.
        faults: usize,
        /// Of how many.
        of: usize,
        /// What the last one failed with.
        last: String,
    },
    /// The stage did not give one verdict per record.
    #[error("stage {stage} gave {got} verdicts for {records} records; this is a fault of the stage")]
    Verdicts {
        /// The stage.
        stage: &'static str,
        /// Verdicts given.
        got: usize,
        /// Records asked about.
        records: usize,
    },
    /// The stage cannot go on; the cause says what mends it.
    #[error("stage {stage} stopped: {cause}")]
    Broken {
        /// The stage.
        stage: &'static str,
        /// Why, and what to do.
        cause: String,
    },
    /// The loop itself panicked.
    #[error("stage {stage} panicked: {cause}; this is a fault of the program, nothing that was committed is lost")]
    Panicked {
        /// The stage.
        stage: &'static str,
        /// The panic's message.
        cause: String,
    },
    /// The log holds what cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store holds what cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Runs `stage` on its live lane until somebody asks it to finish: then the batch in hand is committed and the rest is left to the next start.
///
/// # Errors
/// [`StageStopped`] when going on would lose or waste records. What is unavailable is retried for as long as it takes.
pub fn run_stage<S: Stage>(stage: &mut S, log: Box<dyn Log + '_>, env: &StageEnv) -> Result<(), StageStopped> {
    info!(stage = S::NAME, group = log.group(), "stage starts");
    run(stage, Lanes::new(log, None, env), env)
}

/// Runs `stage` on both of its lanes, as [`run_stage`] does on one. Live records go first; the backfill lane takes the time that they leave
/// and, while both have work, its share ([`LoopConfig::backfill_share`]). It waits for no newer contexts.
///
/// # Errors
/// As [`run_stage`]; but where only the backfill lane's records fail, that lane stops until the next start and the live one goes on. Its log
/// is dropped then: other processes of the stage get its partitions.
pub fn run_lanes<S: Stage>(
    stage: &mut S,
    live: Box<dyn Log + '_>,
    backfill: Box<dyn Log + '_>,
    env: &StageEnv,
) -> Result<(), StageStopped> {
    info!(stage = S::NAME, group = live.group(), backfill = backfill.group(), "stage starts");
    run(stage, Lanes::new(live, Some(backfill), env), env)
}

fn run<S: Stage>(stage: &mut S, mut lanes: Lanes<'_, S>, env: &StageEnv) -> Result<(), StageStopped> {
    env.stats.update(|s| s.running = true);
    let result = catch_unwind(AssertUnwindSafe(|| lanes.turn_until_shutdown(stage)))
        .unwrap_or_else(|panic| Err(StageStopped::Panicked { stage: S::NAME, cause: panic_text(&*panic).to_owned() }));
    env.stats.update(|s| (s.running, s.live.at_work, s.backfill.at_work) = (false, None, None));
    match &result {
        Ok(()) => info!(stage = S::NAME, "stage has finished"),
        Err(cause) => error!(stage = S::NAME, %cause, "stage has stopped"),
    }
    result
}

/// The state of one lane between turns.
struct Run<'a, S: Stage> {
    lane: Lane,
    log: Box<dyn Log + 'a>,
    env: &'a StageEnv,
    pending: Pending<S::In>,
    breaker: Breaker,
    /// The batch that was put off; the backfill lane's alone.
    work: Option<Work<S>>,
    /// Time that no commit has taken along yet.
    unsaved: Tally,
    /// Records among which a culprit is looked for; zero while nothing fails.
    suspects: usize,
    /// Waits between polls of a log that is down.
    poll_waits: Waits,
    /// Until when nothing is done on the lane, as something does not answer; the backfill lane's alone.
    rests_until: Duration,
    backlog_at: Option<Duration>,
}

impl<'a, S: Stage> Run<'a, S> {
    fn new(lane: Lane, log: Box<dyn Log + 'a>, env: &'a StageEnv) -> Self {
        let pending = match lane {
            Lane::Live => Pending::waiting(&env.config),
            Lane::Backfill => Pending::at_once(),
        };
        Self {
            lane,
            log,
            env,
            pending,
            breaker: Breaker::new(env.config.breaker),
            work: None,
            unsaved: Tally::default(),
            suspects: 0,
            poll_waits: Waits::new(env.config.retry),
            rests_until: Duration::ZERO,
            backlog_at: None,
        }
    }

    /// Records polled and not yet committed.
    fn held(&self) -> usize {
        self.pending.len() + self.work.as_ref().map_or(0, Work::held)
    }

    /// Whether there is something to do now.
    fn is_due(&self) -> bool {
        let is_due = || self.pending.until_due(self.env.clocks.wall.now_ms()) == Some(Duration::ZERO);
        !self.is_resting() && (self.work.is_some() || self.is_full() || is_due())
    }

    fn is_full(&self) -> bool {
        let config = &self.env.config;
        self.pending.len() >= config.held_max || self.pending.bytes() >= config.held_bytes_max
    }

    /// Polls until enough is held, waiting `at_most` and only while nothing is due.
    fn fill(&mut self, at_most: Duration) -> Result<(), StageStopped> {
        self.let_revoked_go();
        if self.is_resting() {
            return Ok(());
        }
        self.poll(at_most)?;
        self.watch_backlog();
        Ok(())
    }

    fn poll(&mut self, at_most: Duration) -> Result<(), StageStopped> {
        let config = &self.env.config;
        let now_ms = self.env.clocks.wall.now_ms();
        let mut wait = self.pending.until_due(now_ms).map_or(at_most, |due| due.min(at_most));
        loop {
            if self.is_full() {
                return Ok(());
            }
            let room = (config.held_max - self.pending.len()).min(config.poll_max);
            let start = self.env.clocks.wall.monotonic();
            let polled = match self.log.poll(room, wait) {
                Ok(polled) => polled,
                Err(LogError::Unavailable(cause)) => {
                    self.be_without_log(&cause);
                    return Ok(());
                }
                Err(LogError::Conflict(_)) => {
                    self.forget();
                    return Ok(());
                }
                Err(LogError::Revoked { partitions, .. }) => {
                    self.let_go(&partitions);
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            };
            self.log_answers();
            // A poll that had to wait is idleness, one that did not is work.
            self.spend(if wait.is_zero() || !polled.is_empty() { Phase::Poll } else { Phase::Idle }, start);
            let full = polled.len() == room;
            let start = self.env.clocks.wall.monotonic();
            let now_ms = self.env.clocks.wall.now_ms();
            polled.into_iter().for_each(|record| self.pending.admit(record, now_ms));
            self.spend(Phase::Batch, start);
            if !full {
                return Ok(());
            }
            wait = Duration::ZERO;
        }
    }

    /// The log is down. The live lane waits for it; it does not wait for the backfill lane's.
    fn be_without_log(&mut self, cause: &str) {
        self.tell_down("log", cause);
        let wait = self.poll_waits.next();
        match self.lane {
            Lane::Live => {
                self.sleep(wait);
            }
            Lane::Backfill => self.rest(wait),
        }
    }

    fn log_answers(&mut self) {
        self.poll_waits.reset();
        // What a batch was put off for is still to be seen.
        let (awaits, is_over) = (self.log.awaits(), self.work.is_none());
        self.tell(|lane| {
            lane.awaits = awaits;
            if is_over {
                lane.trouble = None;
            }
        });
    }

    /// Tells that a dependency is down and will be asked again.
    fn tell_down(&self, dependency: &'static str, cause: &str) {
        warn!(stage = S::NAME, lane = %self.lane, dependency, cause, "unavailable; will try again");
        metric::retried(S::NAME, self.lane, dependency);
        let now_ms = self.env.clocks.wall.now_ms();
        self.env.stats.update(|s| {
            s.lane_mut(self.lane).trouble = Some(format!("{dependency}: {cause}"));
            s.alive_ms = now_ms;
        });
    }

    fn tell(&self, change: impl FnOnce(&mut LaneSnapshot)) {
        self.env.stats.update(|s| change(s.lane_mut(self.lane)));
    }

    /// Waits on the stage's thread; answers whether somebody asked to finish meanwhile.
    fn sleep(&mut self, wait: Duration) -> bool {
        let start = self.env.clocks.wall.monotonic();
        let asked = self.env.shutdown.wait(wait);
        self.spend(Phase::Idle, start);
        asked
    }

    /// Leaves the lane alone for `wait`, while the stage's thread goes on.
    fn rest(&mut self, wait: Duration) {
        self.rests_until = self.env.clocks.wall.monotonic() + wait;
    }

    fn is_resting(&self) -> bool {
        self.env.clocks.wall.monotonic() < self.rests_until
    }

    /// Drops what is held: another consumer of the group has done it.
    fn forget(&mut self) {
        info!(stage = S::NAME, held = self.pending.len(), "another process of this stage was faster; polling again");
        self.pending.clear();
        self.work = None;
        self.suspects = 0;
    }

    /// Drops what is held of partitions that are being taken away: between two turns nothing of them is in work.
    fn let_revoked_go(&mut self) {
        let partitions = self.log.revoked();
        if !partitions.is_empty() {
            self.let_go(&partitions);
        }
    }

    fn let_go(&mut self, partitions: &[i32]) {
        let dropped = self.pending.drop_partitions(partitions);
        if let Some(mut work) = self.work.take() {
            if work.drop_partitions(partitions) {
                self.work = Some(work);
            } else {
                self.unsaved += &work.into_spent();
            }
        }
        info!(stage = S::NAME, ?partitions, dropped, "partitions go to another process of this stage");
        self.suspects = self.suspects.min(self.pending.len());
    }

    /// Measures the backlog from time to time. Only a measure: a log that does not answer is met by the next poll.
    fn watch_backlog(&mut self) {
        let now = self.env.clocks.wall.monotonic();
        // A log that kept a batch waiting keeps this waiting too.
        if self.work.is_some() || self.backlog_at.is_some_and(|at| now.saturating_sub(at) < backlog_every(self.lane)) {
            return;
        }
        self.backlog_at = Some(now);
        if let Ok(backlog) = self.log.backlog() {
            metric::backlog(S::NAME, self.lane, backlog, self.env.clocks.wall.now_ms());
        }
    }

    /// Counts the time since `since`; answers it.
    fn spend(&mut self, phase: Phase, since: Duration) -> Duration {
        let time = self.env.clocks.wall.monotonic().saturating_sub(since);
        metric::spent(S::NAME, self.lane, phase, time);
        self.unsaved.spend(phase, time);
        time
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is no text")
}
