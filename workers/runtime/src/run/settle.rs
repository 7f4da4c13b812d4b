//! From verdicts to one store write and one commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use endcap_schemas::{
    Head, Message, UserKey,
    topics::{Lane, Topic},
    wire,
};
use serde_json::{Value, json};
use tracing::warn;

use super::{
    MALFORMED, Run, STAGE_FAILED, StageStopped, TOO_LARGE, UNWRITABLE,
    pending::{Fate, Held},
    work::{Attempt, Step},
};
use crate::{
    Commit, DeadLetter, DropReason, Input, LogError, Outgoing, Passed, Phase, ROW_MAX_BYTES, Stage, StageResult, Stamp,
    StoreError, Tally, Verdict, Write, metric,
};

/// Everything that a batch leaves behind.
#[derive(Default)]
pub(super) struct Outcome {
    /// What is committed, by the partition that it came from: one that is taken away takes its part along.
    pub(super) parts: BTreeMap<i32, Part>,
    writes: Vec<Write>,
    results: Vec<StageResult>,
    /// Per record, in order: the fault that counts for the breaker.
    faults: Vec<Option<String>>,
}

/// What the records of one partition leave behind in the log.
#[derive(Default)]
pub(super) struct Part {
    commit: Commit,
    /// How many outputs and dead letters of it are in the one commit of all parts.
    moved: (usize, usize),
    /// When the log accepted the event behind each page that was published on the live lane, ms.
    accepted_ms: Vec<i64>,
}

/// What the explanations of a batch share.
struct Circumstances {
    stage: &'static str,
    lane: Lane,
    records: usize,
    infer: Duration,
    now_ms: i64,
}

impl<S: Stage> Run<'_, S> {
    /// Drops live records of users who were erased after them.
    pub(super) fn sift(&mut self, mut batch: Vec<Held<S::In>>) -> Result<Attempt<S>, StageStopped> {
        let contexts = batch.iter().filter(|held| held.is_live()).filter_map(|held| held.context.as_ref());
        let users: BTreeSet<UserKey> = contexts.map(|(user, _)| user.clone()).collect();
        if users.is_empty() {
            return Ok(Attempt::On(self.begin(batch)));
        }
        let users = Vec::from_iter(users);
        let start = self.env.clocks.wall.monotonic();
        let answer = self.env.store.erasures(&users);
        self.spend(Phase::Store, start);
        let erasures = match answer {
            Ok(erasures) => erasures,
            Err(StoreError::Unavailable(cause)) => {
                return Ok(Attempt::Down { dependency: "store", cause, step: Step::Sift(batch) });
            }
            Err(error) => return Err(error.into()),
        };
        let erased: BTreeMap<_, _> =
            users.iter().zip(erasures).filter_map(|(user, erasure)| Some((user, erasure?.stamp))).collect();
        for held in batch.iter_mut().filter(|held| held.is_live()) {
            let Some((user, stamp)) = &held.context else { continue };
            if erased.get(user).is_some_and(|until| stamp <= until) {
                held.fate = Fate::Dropped(DropReason::Erased);
            }
        }
        Ok(Attempt::On(self.begin(batch)))
    }

    /// Decides what a batch leaves behind. `inputs` and `verdicts` belong to its started records, in order.
    pub(super) fn settle(
        &mut self,
        batch: Vec<Held<S::In>>,
        inputs: Vec<Input<S::In>>,
        verdicts: Vec<Verdict<S::Out>>,
        infer: Duration,
    ) -> Result<Attempt<S>, StageStopped> {
        let (lane, records, now_ms) = (self.lane, inputs.len(), self.env.clocks.wall.now_ms());
        let circumstances = Circumstances { stage: S::NAME, lane, records, infer, now_ms };
        let outcome = outcome_of(self.log.group(), batch, inputs, verdicts, &circumstances);
        for fault in &outcome.faults {
            if let Err(tripped) = self.breaker.observe(fault.is_some()) {
                let last = outcome.faults.iter().rev().flatten().next().cloned().unwrap_or_default();
                return Err(StageStopped::Breaker { stage: S::NAME, faults: tripped.faults, of: tripped.of, last });
            }
        }
        Ok(Attempt::On(Step::Store(outcome)))
    }

    /// Makes the writes durable.
    pub(super) fn store(&mut self, outcome: Outcome) -> Result<Attempt<S>, StageStopped> {
        if !outcome.writes.is_empty() || !outcome.results.is_empty() {
            let start = self.env.clocks.wall.monotonic();
            let answer = self.env.store.put_all(&outcome.writes, &outcome.results);
            self.spend(Phase::Store, start);
            match answer {
                Ok(()) => {}
                Err(StoreError::Unavailable(cause)) => {
                    return Ok(Attempt::Down { dependency: "store", cause, step: Step::Store(outcome) });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Attempt::On(Step::Commit(outcome.parts, std::mem::take(&mut self.unsaved))))
    }

    /// Commits the parts; those whose partition goes away meanwhile are left to whoever has it then.
    pub(super) fn commit(&mut self, mut parts: BTreeMap<i32, Part>, spent: Tally) -> Result<Attempt<S>, StageStopped> {
        let commit = whole(self.lane.named(S::NAME), &mut parts, &spent);
        let start = self.env.clocks.wall.monotonic();
        let answer = self.log.commit(&commit);
        self.spend(Phase::Commit, start);
        match answer {
            Ok(()) => {
                self.tell_committed(&commit, parts.values().flat_map(|part| &part.accepted_ms));
                Ok(Attempt::Over)
            }
            Err(LogError::Conflict(_)) => {
                self.forget();
                Ok(Attempt::Over)
            }
            Err(LogError::Revoked { partitions, .. }) => {
                self.let_go(&partitions);
                let before = parts.len();
                divide(commit, &mut parts);
                parts.retain(|partition, _| !partitions.contains(partition));
                assert!(parts.len() < before, "a commit is refused for partitions that are in it, {partitions:?} are not");
                if parts.is_empty() {
                    self.unsaved += &spent;
                    return Ok(Attempt::Over);
                }
                Ok(Attempt::On(Step::Commit(parts, spent)))
            }
            Err(LogError::Unavailable(cause)) => {
                divide(commit, &mut parts);
                Ok(Attempt::Down { dependency: "log", cause, step: Step::Commit(parts, spent) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells everybody what is durable now.
    fn tell_committed<'a>(&self, commit: &Commit, accepted_ms: impl Iterator<Item = &'a i64>) {
        let now_ms = self.env.clocks.wall.now_ms();
        metric::committed(S::NAME, self.lane, &commit.tally);
        accepted_ms.for_each(|accepted_ms| metric::freshness(now_ms - accepted_ms));
        for letter in &commit.dead_letters {
            warn!(stage = S::NAME, kind = letter.kind, offset = letter.record.offset, "dead letter: {}", letter.message);
        }
        self.env.stats.update(|s| {
            s.committed_ms = now_ms;
            let lane = s.lane_mut(self.lane);
            lane.tally += &commit.tally;
            lane.trouble = None;
        });
    }
}

/// One commit of all parts, into which their records are moved. Records of one key come from one partition, so their order stays.
fn whole(stage: String, parts: &mut BTreeMap<i32, Part>, spent: &Tally) -> Commit {
    let outputs = Vec::with_capacity(parts.values().map(|part| part.commit.outputs.len()).sum());
    let mut whole = Commit { outputs, stage, tally: spent.clone(), ..Commit::default() };
    for Part { commit, moved, .. } in parts.values_mut() {
        *moved = (commit.outputs.len(), commit.dead_letters.len());
        whole.outputs.append(&mut commit.outputs);
        whole.dead_letters.append(&mut commit.dead_letters);
        whole.through.extend(&commit.through);
        whole.tally += &commit.tally;
    }
    assert!(whole.tally.is_balanced(), "every record gets exactly one verdict: {:?}", whole.tally);
    whole
}

/// Gives every part back what was moved into `whole`.
fn divide(whole: Commit, parts: &mut BTreeMap<i32, Part>) {
    let (mut outputs, mut letters) = (whole.outputs.into_iter(), whole.dead_letters.into_iter());
    for Part { commit, moved, .. } in parts.values_mut() {
        commit.outputs.extend(outputs.by_ref().take(moved.0));
        commit.dead_letters.extend(letters.by_ref().take(moved.1));
    }
}

/// Pure: what a batch leaves behind.
fn outcome_of<In: Message, Out: Message>(
    group: &str,
    batch: Vec<Held<In>>,
    inputs: Vec<Input<In>>,
    verdicts: Vec<Verdict<Out>>,
    circumstances: &Circumstances,
) -> Outcome {
    let mut outcome = Outcome::with_room(&batch);
    let mut answers = inputs.into_iter().zip(verdicts);
    for held in batch {
        let partition = held.record.partition;
        let through = outcome.part(partition).commit.through.entry(partition).or_default();
        *through = (*through).max(held.record.offset + 1);
        outcome.faults.push(None);
        match held.fate {
            Fate::Started => {
                let (input, verdict) = answers.next().expect("every started record has its verdict");
                let attempt = Attempted { group, record: held.record, attempts: held.attempts, circumstances };
                outcome.take_verdict(attempt, &input, verdict);
            }
            Fate::Live(_) => unreachable!("a batch is settled after all its live records were started"),
            Fate::Dropped(reason) => outcome.part(partition).commit.tally.drop_for(reason),
            Fate::Dead { kind, ref message } => {
                if kind == MALFORMED || kind == STAGE_FAILED {
                    outcome.faults.pop();
                    outcome.faults.push(Some(message.clone()));
                }
                let message = message.clone();
                let attempt = Attempted { group, record: held.record, attempts: held.attempts.max(1), circumstances };
                outcome.bury(attempt, kind, message);
            }
        }
    }
    outcome
}

/// A record with what was tried on it.
struct Attempted<'a> {
    group: &'a str,
    record: crate::Received,
    attempts: u32,
    circumstances: &'a Circumstances,
}

impl Outcome {
    /// Room for what most batches leave behind: an output of each record that the stage was asked about.
    fn with_room<T>(batch: &[Held<T>]) -> Self {
        let mut outcome = Self { faults: Vec::with_capacity(batch.len()), ..Self::default() };
        let mut records = BTreeMap::<i32, usize>::new();
        let started = batch.iter().filter(|held| matches!(held.fate, Fate::Started));
        started.for_each(|held| *records.entry(held.record.partition).or_default() += 1);
        for (partition, records) in records {
            outcome.part(partition).commit.outputs.reserve_exact(records);
        }
        outcome
    }

    fn part(&mut self, partition: i32) -> &mut Part {
        self.parts.entry(partition).or_default()
    }

    fn take_verdict<In: Message, Out: Message>(&mut self, attempt: Attempted<'_>, input: &Input<In>, verdict: Verdict<Out>) {
        let stamp = input.value.head().map(stamp_of);
        let partition = attempt.record.partition;
        match verdict {
            Verdict::Passed(passed) => {
                let value = match written(&passed) {
                    Ok(value) => value,
                    Err((kind, message)) => return self.fail(attempt, kind, message),
                };
                let user = passed.out.user();
                let stamp = passed.out.head().map(stamp_of).or(stamp);
                self.explain(&attempt, &user, stamp, "passed", "", passed.explanation);
                let headers = attempt.record.headers.child(attempt.circumstances.stage, Out::TOPIC);
                let part = self.part(partition);
                let topic = Out::TOPIC.on(attempt.circumstances.lane);
                if topic == Topic::PAGES {
                    part.accepted_ms.extend(passed.out.head().map(|head| head.cause.accepted_ms));
                }
                part.commit.outputs.push(Outgoing { topic, key: user, headers, value });
                part.commit.tally.pass();
                part.count(&passed.counters);
                self.writes.extend(passed.writes);
            }
            Verdict::Dropped(reason) => {
                self.explain(&attempt, &input.value.user(), stamp, "dropped", reason.label(), json!({}));
                self.part(partition).commit.tally.drop_for(reason);
            }
            Verdict::Settled(settled) => {
                if let Err(error) = settled.writes.iter().try_for_each(Write::check) {
                    return self.fail(attempt, TOO_LARGE, error.to_string());
                }
                let stamp = stamp.or_else(|| settled.writes.iter().map(write_stamp).max());
                self.explain(&attempt, &input.value.user(), stamp, "dropped", settled.reason.label(), settled.explanation);
                self.writes.extend(settled.writes);
                let part = self.part(partition);
                part.count(&settled.counters);
                part.commit.tally.drop_for(settled.reason);
            }
            Verdict::Rejected(rejection) => {
                let explanation = json!({ "message": rejection.message });
                self.explain(&attempt, &input.value.user(), stamp, "dead_lettered", rejection.kind, explanation);
                self.bury(attempt, rejection.kind, rejection.message);
            }
        }
    }

    /// Writes down for `explain` how a record fared. Without a stamp there is no context to file it under; a null explanation asks for silence.
    fn explain(
        &mut self,
        attempt: &Attempted<'_>,
        user: &UserKey,
        stamp: Option<Stamp>,
        verdict: &str,
        reason: &str,
        explanation: Value,
    ) {
        let (Some(stamp), false) = (stamp, explanation.is_null()) else { return };
        let Circumstances { stage, records, infer, now_ms, .. } = *attempt.circumstances;
        let told = |explanation: Value| {
            let story = json!({
                "verdict": verdict,
                "reason": reason,
                "batch_records": records,
                "infer_ms": infer.as_secs_f64() * 1_000.0,
                "waited_ms": (now_ms - attempt.record.appended_ms - i64::try_from(infer.as_millis()).unwrap_or(0)).max(0),
                "attempts": attempt.attempts,
                "input": { "topic": attempt.record.topic.name(), "offset": attempt.record.offset, "ce_id": attempt.record.headers.id },
                "explanation": explanation,
            });
            story.to_string()
        };
        let mut explanation = told(explanation);
        // What only explains is no reason to give a record up.
        if explanation.len() > ROW_MAX_BYTES {
            explanation = told(json!({ "left_out_bytes": explanation.len(), "stored_bytes_max": ROW_MAX_BYTES }));
        }
        self.results.push(StageResult { user: user.clone(), stage: stage.to_owned(), stamp, explanation, at_ms: now_ms });
    }

    /// Buries a record for a fault of ours, which counts for the breaker.
    fn fail(&mut self, attempt: Attempted<'_>, kind: &str, message: String) {
        if let Some(fault) = self.faults.last_mut() {
            *fault = Some(message.clone());
        }
        self.bury(attempt, kind, message);
    }

    fn bury(&mut self, attempt: Attempted<'_>, kind: &str, message: String) {
        let Part { commit, .. } = self.part(attempt.record.partition);
        commit.tally.dead_letter(kind);
        commit.dead_letters.push(DeadLetter {
            record: attempt.record,
            group: attempt.group.to_owned(),
            stage: attempt.circumstances.stage.to_owned(),
            attempts: attempt.attempts,
            kind: kind.to_owned(),
            message,
        });
    }
}

impl Part {
    /// Records that it is about.
    pub(super) fn received(&self) -> usize {
        usize::try_from(self.commit.tally.received).unwrap_or(usize::MAX)
    }

    fn count(&mut self, counters: &[(&'static str, u64)]) {
        for (name, amount) in counters {
            self.commit.tally.count(name, *amount);
        }
    }
}

/// The wire form of what is passed on, where a store takes its writes too; else the kind of the fault, and what it is.
fn written<Out: Message>(passed: &Passed<Out>) -> Result<Vec<u8>, (&'static str, String)> {
    passed.writes.iter().try_for_each(Write::check).map_err(|error| (TOO_LARGE, error.to_string()))?;
    wire::encode(&passed.out).map_err(|error| (UNWRITABLE, error.to_string()))
}

fn stamp_of(head: &Head) -> Stamp {
    Stamp::of(head.context_ms, head.generation)
}

fn write_stamp(write: &Write) -> Stamp {
    match write {
        Write::State { stamp, .. } | Write::Page { stamp, .. } | Write::Erase { stamp, .. } => *stamp,
    }
}
