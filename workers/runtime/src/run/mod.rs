//! The loop of one stage: poll, decode, hold and coalesce, batch, process, store, commit.
//!
//! Records are settled in offset order: what the loop holds is a queue, a batch is a prefix of it, and a commit moves the position to the
//! end of that prefix. So whatever was not committed is delivered again after a crash, and nothing that was committed is.

mod breaker;
mod pending;
mod settle;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tracing::{error, info, warn};

use crate::{
    Clocks, Input, Log, LogError, Phase, RetryConfig, Shutdown, Stage, StageError, StageStats, Store, StoreError, Tally, Verdict,
    metric, retry::Waits,
};
use breaker::Breaker;
pub use breaker::BreakerConfig;
use pending::{Fate, Held, Pending};

/// Kind of a dead letter whose bytes could not be read.
pub(crate) const MALFORMED: &str = "malformed";
/// Kind of a dead letter whose key is not its user's: another partition has the rest of the user's records. A sender's fault.
pub(crate) const WRONG_KEY: &str = "wrong_key";
/// Kind of a dead letter on which the stage fails even when it is alone.
pub(crate) const STAGE_FAILED: &str = "stage_failed";
/// Kind of a dead letter whose output does not fit the wire.
pub(crate) const UNWRITABLE: &str = "unwritable_output";
/// How often a dependency that falters is asked before the records are to blame.
const FALTERS_MAX: usize = 6;
/// How often the backlog is measured.
const BACKLOG_EVERY: Duration = Duration::from_secs(1);

/// Limits of a stage's loop.
#[derive(Debug, Clone, Copy)]
pub struct LoopConfig {
    /// Records of one poll.
    pub poll_max: usize,
    /// Records held at once; when so many are held, none waits for company any longer.
    pub held_max: usize,
    /// Live records of one batch.
    pub batch_records_max: usize,
    /// Tokens of one batch, as [`Stage::tokens`] counts them; a single larger record still goes, alone.
    pub batch_tokens_max: usize,
    /// How long a record waits for a newer context of its user before it is processed; zero for none.
    pub debounce: Duration,
    /// How long a user's contexts may supersede each other before one is processed.
    pub debounce_max: Duration,
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

/// Runs `stage` until somebody asks it to finish: then the batch in hand is committed and the rest is left to the next start.
///
/// # Errors
/// [`StageStopped`] when going on would lose or waste records. What is unavailable is retried for as long as it takes.
pub fn run_stage<S: Stage>(stage: &mut S, log: &mut dyn Log, env: &StageEnv) -> Result<(), StageStopped> {
    info!(stage = S::NAME, group = log.group(), "stage starts");
    env.stats.update(|s| s.running = true);
    let mut run = Run::new(stage, log, env);
    let result = catch_unwind(AssertUnwindSafe(|| run.turn_until_shutdown()))
        .unwrap_or_else(|panic| Err(StageStopped::Panicked { stage: S::NAME, cause: panic_text(&*panic).to_owned() }));
    env.stats.update(|s| s.running = false);
    match &result {
        Ok(()) => info!(stage = S::NAME, "stage has finished"),
        Err(cause) => error!(stage = S::NAME, %cause, "stage has stopped"),
    }
    result
}

/// The loop's state between turns.
struct Run<'a, S: Stage> {
    stage: &'a mut S,
    log: &'a mut dyn Log,
    env: &'a StageEnv,
    pending: Pending<S::In>,
    breaker: Breaker,
    /// Time that no commit has taken along yet.
    unsaved: Tally,
    /// Live records among which a culprit is looked for; zero while nothing fails.
    suspects: usize,
    /// Waits between polls of a log that is down.
    poll_waits: Waits,
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
    fn new(stage: &'a mut S, log: &'a mut dyn Log, env: &'a StageEnv) -> Self {
        let breaker = Breaker::new(env.config.breaker);
        let pending = Pending::new(env.config.debounce, env.config.debounce_max);
        let poll_waits = Waits::new(env.config.retry);
        Self { stage, log, env, pending, breaker, unsaved: Tally::default(), suspects: 0, poll_waits, backlog_at: None }
    }

    fn turn_until_shutdown(&mut self) -> Result<(), StageStopped> {
        while !self.env.shutdown.is_triggered() {
            self.let_revoked_go();
            self.fill()?;
            self.watch_backlog();
            let batch = self.take_batch()?;
            if !batch.is_empty() {
                self.work(batch)?;
            }
            let (held, now_ms) = (self.pending.len(), self.env.clocks.wall.now_ms());
            self.env.stats.update(|s| (s.held, s.alive_ms) = (held, now_ms));
        }
        Ok(())
    }

    /// Polls until enough is held, waiting only while nothing is due.
    fn fill(&mut self) -> Result<(), StageStopped> {
        let config = &self.env.config;
        let now_ms = self.env.clocks.wall.now_ms();
        let mut wait = self.pending.until_due(now_ms).map_or(config.poll_wait, |due| due.min(config.poll_wait));
        loop {
            let room = config.held_max.saturating_sub(self.pending.len()).min(config.poll_max);
            if room == 0 {
                return Ok(());
            }
            let start = self.env.clocks.wall.monotonic();
            let polled = match self.log.poll(room, wait) {
                Ok(polled) => polled,
                Err(LogError::Unavailable(cause)) => {
                    let mut waits = std::mem::replace(&mut self.poll_waits, Waits::new(config.retry));
                    self.pause("log", &cause, &mut waits);
                    self.poll_waits = waits;
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
            self.poll_waits.reset();
            self.env.stats.update(|s| s.trouble = None);
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

    /// The next batch: the due prefix of the queue, cut where its live records reach a limit, with what need not be processed sorted out.
    fn take_batch(&mut self) -> Result<Vec<Held<S::In>>, StageStopped> {
        let start = self.env.clocks.wall.monotonic();
        let config = &self.env.config;
        let everything = self.pending.len() >= config.held_max;
        let records_max = if self.suspects > 0 { (self.suspects / 2).max(1) } else { config.batch_records_max };
        let stage = &*self.stage;
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
    fn work(&mut self, mut batch: Vec<Held<S::In>>) -> Result<(), StageStopped> {
        let inputs: Vec<Input<S::In>> = batch.iter_mut().filter_map(Held::start).collect();
        let live = inputs.len();
        let start = self.env.clocks.wall.monotonic();
        let attempt = if live == 0 { Attempt::Done(Vec::new()) } else { self.process(&inputs)? };
        let infer = self.env.clocks.wall.monotonic().saturating_sub(start);
        match attempt {
            Attempt::Done(verdicts) if verdicts.len() != live => {
                Err(StageStopped::Verdicts { stage: S::NAME, got: verdicts.len(), records: live })
            }
            Attempt::Done(verdicts) => {
                if live > 0 {
                    metric::batch(S::NAME, live);
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
    fn process(&mut self, inputs: &[Input<S::In>]) -> Result<Attempt<S::Out>, StageStopped> {
        let mut waits = Waits::new(self.env.config.retry);
        let mut falters = 0;
        loop {
            let start = self.env.clocks.wall.monotonic();
            let answer = catch_unwind(AssertUnwindSafe(|| self.stage.process(inputs)));
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
        metric::retried(S::NAME, dependency);
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
        if self.backlog_at.is_some_and(|at| now.saturating_sub(at) < BACKLOG_EVERY) {
            return;
        }
        self.backlog_at = Some(now);
        if let Ok(backlog) = self.log.backlog() {
            metric::backlog(S::NAME, backlog, self.env.clocks.wall.now_ms());
        }
    }

    fn spend(&mut self, phase: Phase, since: Duration) {
        let time = self.env.clocks.wall.monotonic().saturating_sub(since);
        metric::spent(S::NAME, phase, time);
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
