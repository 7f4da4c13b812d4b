//! A batch on its way from the queue to the log: step after step, each tried again while something does not answer.
//!
//! The live lane waits for that in place. The backfill lane puts its batch off and rests: live records that come meanwhile go first.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use endcap_schemas::topics::Lane;
use tracing::warn;

use super::{
    Run, STAGE_FAILED, StageStopped, panic_text,
    pending::{Fate, Held},
    settle::{Outcome, Part},
};
use crate::{AtWork, Input, Phase, Stage, StageError, Tally, metric, retry::Waits};

/// How often a dependency that falters is asked before the records are to blame.
const FALTERS_MAX: usize = 6;
/// A batch of the backfill lane has at most this part of a live batch's records: live records wait for it.
const BACKFILL_BATCH_PART: usize = 4;

/// A batch that was put off.
pub(super) struct Work<S: Stage> {
    step: Step<S>,
    /// Waits between the attempts at the step.
    waits: Waits,
}

/// What is to be done with a batch next.
pub(super) enum Step<S: Stage> {
    /// Drop the records of users who were erased after them.
    Sift(Vec<Held<S::In>>),
    /// Ask the stage.
    Ask(Asked<S>),
    /// Store what came of it.
    Store(Outcome),
    /// Commit it. The parts by partition; beside them the time that it takes along, as a commit is repeated as it was.
    Commit(BTreeMap<i32, Part>, Tally),
}

/// A batch that the stage is asked about.
pub(super) struct Asked<S: Stage> {
    batch: Vec<Held<S::In>>,
    /// Of its started records, in order.
    inputs: Vec<Input<S::In>>,
    /// When it came to the stage, ms.
    since_ms: i64,
    /// How often a dependency has faltered on it.
    falters: usize,
}

/// What became of one attempt at a step.
pub(super) enum Attempt<S: Stage> {
    /// It is done, this one is next.
    On(Step<S>),
    /// The batch is at its end: committed, back in the queue, or somebody else's.
    Over,
    /// Something does not answer: the step is to be tried again.
    Down { dependency: &'static str, cause: String, step: Step<S> },
}

impl<S: Stage> Work<S> {
    /// Records that are not committed yet.
    pub(super) fn held(&self) -> usize {
        let received = |parts: &BTreeMap<i32, Part>| parts.values().map(Part::received).sum();
        match &self.step {
            Step::Sift(batch) | Step::Ask(Asked { batch, .. }) => batch.len(),
            Step::Store(outcome) => received(&outcome.parts),
            Step::Commit(parts, _) => received(parts),
        }
    }

    /// Drops what is of `partitions`; answers whether anything is left. What was to be stored may be: it is the same wherever it is made.
    pub(super) fn drop_partitions(&mut self, partitions: &[i32]) -> bool {
        let stays = |partition: i32| !partitions.contains(&partition);
        match &mut self.step {
            Step::Sift(batch) => batch.retain(|held| stays(held.record.partition)),
            Step::Ask(Asked { batch, inputs, .. }) => {
                batch.retain(|held| stays(held.record.partition));
                inputs.retain(|input| stays(input.partition));
            }
            Step::Store(Outcome { parts, .. }) | Step::Commit(parts, _) => parts.retain(|partition, _| stays(*partition)),
        }
        self.held() > 0
    }

    /// The time that its commit would have taken along.
    pub(super) fn into_spent(self) -> Tally {
        match self.step {
            Step::Commit(_, spent) => spent,
            _ => Tally::default(),
        }
    }
}

impl<S: Stage> Run<'_, S> {
    /// Takes a batch, or the one that was put off, through its steps.
    pub(super) fn turn(&mut self, stage: &mut S) -> Result<(), StageStopped> {
        let Some(Work { mut step, mut waits }) = self.work.take().or_else(|| self.take_batch(stage)) else { return Ok(()) };
        loop {
            let start = self.env.clocks.wall.monotonic();
            match self.attempt(stage, step)? {
                Attempt::Over => return Ok(()),
                Attempt::On(next) => {
                    step = next;
                    waits.reset();
                }
                Attempt::Down { dependency, cause, step: again } => {
                    self.tell_down(dependency, &cause);
                    let wait = waits.next();
                    if self.lane == Lane::Backfill {
                        // What does not answer at once takes no greater share of the stage's time than a batch would.
                        let took = self.env.clocks.wall.monotonic().saturating_sub(start);
                        self.work = Some(Work { step: again, waits });
                        self.rest(wait.max(took * self.env.config.backfill_share.saturating_sub(1)));
                        return Ok(());
                    }
                    if self.sleep(wait) {
                        return Ok(());
                    }
                    step = again;
                }
            }
        }
    }

    fn attempt(&mut self, stage: &mut S, step: Step<S>) -> Result<Attempt<S>, StageStopped> {
        match step {
            Step::Sift(batch) => self.sift(batch),
            Step::Ask(asked) => self.ask(stage, asked),
            Step::Store(outcome) => self.store(outcome),
            Step::Commit(parts, spent) => self.commit(parts, spent),
        }
    }

    /// The due prefix of the queue, cut where its live records reach a limit, with what need not be processed sorted out; `None` where
    /// nothing is due.
    fn take_batch(&mut self, stage: &S) -> Option<Work<S>> {
        let start = self.env.clocks.wall.monotonic();
        let config = &self.env.config;
        let everything = self.is_full();
        let usual_max = match self.lane {
            Lane::Live => config.batch_records_max,
            Lane::Backfill => config.batch_records_max.div_ceil(BACKFILL_BATCH_PART),
        };
        let records_max = if self.suspects > 0 { (self.suspects / 2).max(1) } else { usual_max };
        let now_ms = self.env.clocks.wall.now_ms();
        let tokens = |value: &S::In| stage.tokens(value);
        let mut batch = self.pending.take(now_ms, everything, records_max, config.batch_tokens_max, tokens);
        let events_ms = self.env.clocks.events.now_ms();
        batch.iter_mut().for_each(|held| held.expire(events_ms));
        self.spend(Phase::Batch, start);
        (!batch.is_empty()).then(|| Work { step: Step::Sift(batch), waits: Waits::new(config.retry) })
    }

    /// Hands the live records of a batch over to the stage.
    pub(super) fn begin(&self, mut batch: Vec<Held<S::In>>) -> Step<S> {
        let inputs = batch.iter_mut().filter_map(Held::start).collect();
        Step::Ask(Asked { batch, inputs, since_ms: self.env.clocks.wall.now_ms(), falters: 0 })
    }

    /// Asks the stage. A dependency that falters is asked a few times before the records are to blame.
    fn ask(&mut self, stage: &mut S, mut asked: Asked<S>) -> Result<Attempt<S>, StageStopped> {
        let (records, since_ms) = (asked.inputs.len(), asked.since_ms);
        if records == 0 {
            return self.settle(asked.batch, asked.inputs, Vec::new(), Duration::ZERO);
        }
        self.tell(|lane| lane.at_work = Some(AtWork { records, since_ms }));
        let start = self.env.clocks.wall.monotonic();
        let answer = catch_unwind(AssertUnwindSafe(|| stage.process(&asked.inputs)));
        let infer = self.spend(Phase::Infer, start);
        match answer {
            Ok(Ok(verdicts)) if verdicts.len() != records => {
                Err(StageStopped::Verdicts { stage: S::NAME, got: verdicts.len(), records })
            }
            Ok(Ok(verdicts)) => {
                self.tell(|lane| lane.trouble = None);
                metric::batch(S::NAME, self.lane, records);
                self.unsaved.batches += 1;
                self.suspects = self.suspects.saturating_sub(records);
                self.settle(asked.batch, asked.inputs, verdicts, infer)
            }
            Ok(Err(StageError::Broken(cause))) => Err(StageStopped::Broken { stage: S::NAME, cause }),
            Ok(Err(StageError::Unavailable(dependency, cause))) => {
                Ok(Attempt::Down { dependency, cause, step: Step::Ask(asked) })
            }
            Ok(Err(StageError::Faltered(dependency, cause))) => {
                asked.falters += 1;
                if asked.falters < FALTERS_MAX {
                    return Ok(Attempt::Down { dependency, cause, step: Step::Ask(asked) });
                }
                let cause = format!("{dependency} failed {} times: {cause}", asked.falters);
                self.blame(asked, cause, infer)
            }
            Ok(Err(StageError::Failed(cause))) => self.blame(asked, cause, infer),
            Err(panic) => self.blame(asked, format!("the stage panicked: {}", panic_text(&*panic)), infer),
        }
    }

    /// A batch that fails goes back to be taken in halves, or ends as a dead letter when it is one record.
    fn blame(&mut self, asked: Asked<S>, cause: String, infer: Duration) -> Result<Attempt<S>, StageStopped> {
        let Asked { mut batch, inputs, .. } = asked;
        if inputs.len() > 1 {
            warn!(stage = S::NAME, cause, records = inputs.len(), "a batch fails; looking for the culprit in halves");
            self.suspects = inputs.len();
            self.pending.put_back(batch, inputs);
            return Ok(Attempt::Over);
        }
        warn!(stage = S::NAME, cause, "a record fails on its own");
        self.suspects = self.suspects.saturating_sub(1);
        for held in batch.iter_mut().filter(|held| matches!(held.fate, Fate::Started)) {
            held.fate = Fate::Dead { kind: STAGE_FAILED, message: cause.clone() };
        }
        self.settle(batch, Vec::new(), Vec::new(), infer)
    }
}
