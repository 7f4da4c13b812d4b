//! The loop of one stage: poll, decode, hold and coalesce, batch, process, store, commit.
//!
//! Records are settled in offset order: what the loop holds is a queue, a batch is a prefix of it, and a commit moves the position to the
//! end of that prefix. So whatever was not committed is delivered again after a crash, and nothing that was committed is. A stage may have two
//! such queues, one per lane: `lanes` decides whose turn it is.

mod breaker;
mod lanes;
mod pending;
mod settle;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use endcap_schemas::topics::Lane;
use thiserror::Error;
use tracing::{error, info, warn};

use crate::{
    AtWork, Clocks, Input, Log, LogError, Phase, RetryConfig, Shutdown, Stage, StageError, StageStats, Store, StoreError, Tally,
    Verdict, metric, retry::Waits,
};
use breaker::Breaker;
pub use breaker::BreakerConfig;
use lanes::Lanes;
use pending::{Fate, Held, Pending};

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
/// How often a dependency that falters is asked before the records are to blame.
const FALTERS_MAX: usize = 6;
/// A batch of the backfill lane has at most this part of a live batch's records: live records wait for it.
const BACKFILL_BATCH_PART: usize = 4;
/// Most looks at a backfill lane that does not answer that are left out.
const SKIPS_MAX: u32 = 64;
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
    /// Records of one batch that the stage is asked about; a quarter of it on the backfill lane, as live records wait for such a batch.
    pub batch_records_max: usize,
    /// Tokens of one batch, as [`Stage::tokens`] counts them; a single larger record still goes, alone.
    pub batch_tokens_max: usize,
    /// How long a live record waits for a newer context of its user before it is processed; zero for none.
    pub debounce: Duration,
    /// How long a user's contexts may supersede each other before one is processed.
    pub debounce_max: Duration,
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
            batch_records_max: 64,
            batch_tokens_max: usize::MAX,
            debounce: Duration::ZERO,
            debounce_max: Duration::from_secs(10),
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
pub fn run_stage<S: Stage>(stage: &mut S, log: &mut dyn Log, env: &StageEnv) -> Result<(), StageStopped> {
    info!(stage = S::NAME, group = log.group(), "stage starts");
    run(stage, Lanes::new(log, None, env), env)
}

/// Runs `stage` on both of its lanes, as [`run_stage`] does on one. Live records go first; the backfill lane takes the time that they leave
/// and, while both have work, its share ([`LoopConfig::backfill_share`]). It waits for no newer contexts.
///
/// # Errors
/// As [`run_stage`]; but where only the backfill lane's records fail, that lane stops until the next start and the live one goes on.
pub fn run_lanes<S: Stage>(
    stage: &mut S,
    live: &mut dyn Log,
    backfill: &mut dyn Log,
    env: &StageEnv,
) -> Result<(), StageStopped> {
    info!(stage = S::NAME, group = live.group(), backfill = backfill.group(), "stage starts");
    run(stage, Lanes::new(live, Some(backfill), env), env)
}

fn run<S: Stage>(stage: &mut S, mut lanes: Lanes<'_, S>, env: &StageEnv) -> Result<(), StageStopped> {
    env.stats.update(|s| s.running = true);
    let result = catch_unwind(AssertUnwindSafe(|| lanes.turn_until_shutdown(stage)))
        .unwrap_or_else(|panic| Err(StageStopped::Panicked { stage: S::NAME, cause: panic_text(&*panic).to_owned() }));
    env.stats.update(|s| (s.running, s.at_work) = (false, None));
    match &result {
        Ok(()) => info!(stage = S::NAME, "stage has finished"),
        Err(cause) => error!(stage = S::NAME, %cause, "stage has stopped"),
    }
    result
}

/// The state of one lane between turns.
struct Run<'a, S: Stage> {
    lane: Lane,
    log: &'a mut dyn Log,
    env: &'a StageEnv,
    pending: Pending<S::In>,
    breaker: Breaker,
    /// Time that no commit has taken along yet.
    unsaved: Tally,
    /// Records among which a culprit is looked for; zero while nothing fails.
    suspects: usize,
    /// Waits between polls of a log that is down.
    poll_waits: Waits,
    /// Looks at the lane that are left out, as it does not answer, and how many the next failure leaves out.
    skips: (u32, u32),
    backlog_at: Option<Duration>,
}

/// What became of the attempt to process a batch.
enum Attempt<Out> {
    Done(Vec<Verdict<Out>>),
    Failed(String),
    /// Somebody asked to finish while a dependency was down.
    Interrupted,
}

impl<'a, S: Stage> Run<'a, S> {
    fn new(lane: Lane, log: &'a mut dyn Log, env: &'a StageEnv) -> Self {
        let breaker = Breaker::new(env.config.breaker);
        let pending = match lane {
            Lane::Live => Pending::new(env.config.debounce, env.config.debounce_max),
            Lane::Backfill => Pending::new(Duration::ZERO, Duration::ZERO),
        };
        let poll_waits = Waits::new(env.config.retry);
        let unsaved = Tally::default();
        Self { lane, log, env, pending, breaker, unsaved, suspects: 0, poll_waits, skips: (0, 1), backlog_at: None }
    }

    /// Records polled and not yet committed.
    fn held(&self) -> usize {
        self.pending.len()
    }

    /// Whether a batch can be taken.
    fn is_due(&self) -> bool {
        self.is_full() || self.pending.until_due(self.env.clocks.wall.now_ms()) == Some(Duration::ZERO)
    }

    fn is_full(&self) -> bool {
        self.pending.len() >= self.env.config.held_max
    }

    /// Takes a batch, asks `stage` about it, stores and commits.
    fn turn(&mut self, stage: &mut S) -> Result<(), StageStopped> {
        let batch = self.take_batch(stage)?;
        if batch.is_empty() { Ok(()) } else { self.work(stage, batch) }
    }

    /// Polls until enough is held, waiting `at_most` and only while nothing is due.
    fn fill(&mut self, at_most: Duration) -> Result<(), StageStopped> {
        self.let_revoked_go();
        if self.skips.0 > 0 {
            self.skips.0 -= 1;
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
            let room = config.held_max.saturating_sub(self.pending.len()).min(config.poll_max);
            if room == 0 {
                return Ok(());
            }
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
            for record in polled {
                self.pending.admit(record);
            }
            self.spend(Phase::Batch, start);
            if !full {
                return Ok(());
            }
            wait = Duration::ZERO;
        }
    }

    /// Waits for a log that is down. The live lane does not wait for the backfill lane's: that one is looked at less often.
    fn be_without_log(&mut self, cause: &str) {
        if self.lane == Lane::Live {
            let mut waits = std::mem::replace(&mut self.poll_waits, Waits::new(self.env.config.retry));
            self.pause("log", cause, &mut waits);
            self.poll_waits = waits;
            return;
        }
        warn!(stage = S::NAME, lane = %self.lane, cause, "log is unavailable; will try again");
        metric::retried(S::NAME, self.lane, "log");
        self.env.stats.update(|s| s.backfill.trouble = Some(format!("log: {cause}")));
        self.skips = (self.skips.1, (self.skips.1 * 2).min(SKIPS_MAX));
    }

    fn log_answers(&mut self) {
        self.poll_waits.reset();
        self.skips = (0, 1);
        let lane = self.lane;
        self.env.stats.update(|s| match lane {
            Lane::Live => s.trouble = None,
            Lane::Backfill => s.backfill.trouble = None,
        });
    }

    /// The next batch: the due prefix of the queue, cut where its live records reach a limit, with what need not be processed sorted out.
    fn take_batch(&mut self, stage: &S) -> Result<Vec<Held<S::In>>, StageStopped> {
        let start = self.env.clocks.wall.monotonic();
        let config = &self.env.config;
        let everything = self.is_full();
        let usual_max = match self.lane {
            Lane::Live => config.batch_records_max,
            Lane::Backfill => config.batch_records_max.div_ceil(BACKFILL_BATCH_PART),
        };
        let records_max = if self.suspects > 0 { (self.suspects / 2).max(1) } else { usual_max };
        let mut batch =
            self.pending.take(self.env.clocks.wall.now_ms(), everything, records_max, config.batch_tokens_max, |value| {
                stage.tokens(value)
            });
        let events_ms = self.env.clocks.events.now_ms();
        for held in &mut batch {
            held.expire(events_ms);
        }
        self.spend(Phase::Batch, start);
        Ok(if self.drop_erased(&mut batch)? { batch } else { Vec::new() })
    }

    /// Processes a batch and settles it; one that fails goes back to be taken in halves, or ends as a dead letter when it is one record.
    fn work(&mut self, stage: &mut S, mut batch: Vec<Held<S::In>>) -> Result<(), StageStopped> {
        let inputs: Vec<Input<S::In>> = batch.iter_mut().filter_map(Held::start).collect();
        let live = inputs.len();
        let since_ms = self.env.clocks.wall.now_ms();
        self.env.stats.update(|s| s.at_work = (live > 0).then_some(AtWork { records: live, since_ms }));
        let start = self.env.clocks.wall.monotonic();
        let attempt = if live == 0 { Attempt::Done(Vec::new()) } else { self.process(stage, &inputs)? };
        let infer = self.env.clocks.wall.monotonic().saturating_sub(start);
        match attempt {
            Attempt::Done(verdicts) if verdicts.len() != live => {
                Err(StageStopped::Verdicts { stage: S::NAME, got: verdicts.len(), records: live })
            }
            Attempt::Done(verdicts) => {
                if live > 0 {
                    metric::batch(S::NAME, self.lane, live);
                    self.unsaved.batches += 1;
                }
                self.suspects = self.suspects.saturating_sub(live);
                self.settle(batch, inputs, verdicts, infer)
            }
            Attempt::Failed(cause) if live == 1 => {
                warn!(stage = S::NAME, cause, "a record fails on its own");
                self.suspects = self.suspects.saturating_sub(1);
                for held in &mut batch {
                    if matches!(held.fate, Fate::Started) {
                        held.fate = Fate::Dead { kind: STAGE_FAILED, message: cause.clone() };
                    }
                }
                self.settle(batch, Vec::new(), Vec::new(), infer)
            }
            Attempt::Failed(cause) => {
                warn!(stage = S::NAME, cause, records = live, "a batch fails; looking for the culprit in halves");
                self.suspects = live;
                self.pending.put_back(batch, inputs);
                Ok(())
            }
            Attempt::Interrupted => Ok(()),
        }
    }

    /// Asks the stage, for as long as a dependency of it is down; a dependency that falters is asked a few times.
    fn process(&mut self, stage: &mut S, inputs: &[Input<S::In>]) -> Result<Attempt<S::Out>, StageStopped> {
        let mut waits = Waits::new(self.env.config.retry);
        let mut falters = 0;
        loop {
            let start = self.env.clocks.wall.monotonic();
            let answer = catch_unwind(AssertUnwindSafe(|| stage.process(inputs)));
            self.spend(Phase::Infer, start);
            match answer {
                Ok(Ok(verdicts)) => {
                    self.env.stats.update(|s| s.trouble = None);
                    return Ok(Attempt::Done(verdicts));
                }
                Ok(Err(StageError::Failed(cause))) => return Ok(Attempt::Failed(cause)),
                Ok(Err(StageError::Broken(cause))) => return Err(StageStopped::Broken { stage: S::NAME, cause }),
                Ok(Err(StageError::Faltered(dependency, cause))) => {
                    falters += 1;
                    if falters == FALTERS_MAX {
                        return Ok(Attempt::Failed(format!("{dependency} failed {falters} times: {cause}")));
                    }
                    if self.pause(dependency, &cause, &mut waits) {
                        return Ok(Attempt::Interrupted);
                    }
                }
                Ok(Err(StageError::Unavailable(dependency, cause))) => {
                    if self.pause(dependency, &cause, &mut waits) {
                        return Ok(Attempt::Interrupted);
                    }
                }
                Err(panic) => return Ok(Attempt::Failed(format!("the stage panicked: {}", panic_text(&*panic)))),
            }
        }
    }

    /// Waits out a dependency that is down; answers whether somebody asked to finish meanwhile.
    fn pause(&mut self, dependency: &'static str, cause: &str, waits: &mut Waits) -> bool {
        warn!(stage = S::NAME, dependency, cause, "unavailable; will try again");
        metric::retried(S::NAME, self.lane, dependency);
        let now_ms = self.env.clocks.wall.now_ms();
        self.env.stats.update(|s| {
            s.trouble = Some(format!("{dependency}: {cause}"));
            s.alive_ms = now_ms;
        });
        let start = self.env.clocks.wall.monotonic();
        let asked = self.env.shutdown.wait(waits.next());
        self.spend(Phase::Idle, start);
        asked
    }

    /// Drops what is held: another consumer of the group has done it.
    fn forget(&mut self) {
        info!(stage = S::NAME, held = self.pending.len(), "another process of this stage was faster; polling again");
        self.pending.clear();
        self.suspects = 0;
    }

    /// Drops what is held of partitions that are being taken away: between two batches nothing of them is in work.
    fn let_revoked_go(&mut self) {
        let partitions = self.log.revoked();
        if !partitions.is_empty() {
            self.let_go(&partitions);
        }
    }

    fn let_go(&mut self, partitions: &[i32]) {
        let dropped = self.pending.drop_partitions(partitions);
        info!(stage = S::NAME, ?partitions, dropped, "partitions go to another process of this stage");
        self.suspects = self.suspects.min(self.pending.len());
    }

    /// Measures the backlog from time to time. Only a measure: a log that does not answer is met by the next poll.
    fn watch_backlog(&mut self) {
        let now = self.env.clocks.wall.monotonic();
        if self.backlog_at.is_some_and(|at| now.saturating_sub(at) < backlog_every(self.lane)) {
            return;
        }
        self.backlog_at = Some(now);
        if let Ok(backlog) = self.log.backlog() {
            metric::backlog(S::NAME, self.lane, backlog, self.env.clocks.wall.now_ms());
        }
    }

    fn spend(&mut self, phase: Phase, since: Duration) {
        let time = self.env.clocks.wall.monotonic().saturating_sub(since);
        metric::spent(S::NAME, self.lane, phase, time);
        self.unsaved.spend(phase, time);
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("with a value that is no text")
}
