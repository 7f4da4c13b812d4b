//! From verdicts to one store write and one commit.

use std::{collections::HashMap, time::Duration};

use endcap_schemas::{Head, Message, UserKey, wire};
use serde_json::{Value, json};
use tracing::warn;

use super::{Fate, Held, MALFORMED, Run, STAGE_FAILED, StageStopped, UNWRITABLE};
use crate::{
    Commit, DeadLetter, DropReason, Input, LogError, Outgoing, Phase, Stage, StageResult, Stamp, StoreError, Verdict, Write,
    metric, retry::Waits,
};

/// Everything that a batch leaves behind.
#[derive(Default)]
struct Outcome {
    commit: Commit,
    writes: Vec<Write>,
    results: Vec<StageResult>,
    /// When the log accepted the event behind each published page, ms.
    accepted_ms: Vec<i64>,
    /// Per record, in order: the fault that counts for the breaker.
    faults: Vec<Option<String>>,
}

/// What the explanations of a batch share.
struct Circumstances {
    stage: &'static str,
    records: usize,
    infer: Duration,
    now_ms: i64,
}

impl<S: Stage> Run<'_, S> {
    /// Drops live records of users who were erased after them; answers false when somebody asked to finish while the store was down.
    pub(super) fn drop_erased(&mut self, batch: &mut [Held<S::In>]) -> Result<bool, StageStopped> {
        let start = self.env.clocks.wall.monotonic();
        let mut known: HashMap<UserKey, Option<Stamp>> = HashMap::new();
        for held in batch.iter_mut().filter(|held| held.is_live()) {
            let Some((user, stamp)) = &held.context else { continue };
            if !known.contains_key(user) {
                let store = self.env.store.clone();
                let Some(erasure) = self.insist_on_store(|| store.erasure(user))? else { return Ok(false) };
                known.insert(user.clone(), erasure.map(|erasure| erasure.stamp));
            }
            if known[user].is_some_and(|until| *stamp <= until) {
                held.fate = Fate::Dropped(DropReason::Erased);
            }
        }
        if !known.is_empty() {
            self.spend(Phase::Store, start);
        }
        Ok(true)
    }

    /// Stores what a batch did, then commits it. `inputs` and `verdicts` belong to its started records, in order.
    pub(super) fn settle(
        &mut self,
        batch: Vec<Held<S::In>>,
        inputs: Vec<Input<S::In>>,
        verdicts: Vec<Verdict<S::Out>>,
        infer: Duration,
    ) -> Result<(), StageStopped> {
        let circumstances = Circumstances { stage: S::NAME, records: inputs.len(), infer, now_ms: self.env.clocks.wall.now_ms() };
        let mut outcome = outcome_of(self.log.group(), batch, inputs, verdicts, &circumstances);
        for fault in &outcome.faults {
            if let Err(tripped) = self.breaker.observe(fault.is_some()) {
                let last = outcome.faults.iter().rev().flatten().next().cloned().unwrap_or_default();
                return Err(StageStopped::Breaker { stage: S::NAME, faults: tripped.faults, of: tripped.of, last });
            }
        }
        if !self.store(&outcome)? {
            return Ok(());
        }
        outcome.commit.tally += &std::mem::take(&mut self.unsaved);
        assert!(outcome.commit.tally.is_balanced(), "every record gets exactly one verdict: {:?}", outcome.commit.tally);
        self.commit(&outcome)
    }

    /// Answers whether the writes are durable; if not, somebody asked to finish.
    fn store(&mut self, outcome: &Outcome) -> Result<bool, StageStopped> {
        if outcome.writes.is_empty() && outcome.results.is_empty() {
            return Ok(true);
        }
        let start = self.env.clocks.wall.monotonic();
        let store = self.env.store.clone();
        let stored = self.insist_on_store(|| store.put_all(&outcome.writes, &outcome.results))?;
        self.spend(Phase::Store, start);
        Ok(stored.is_some())
    }

    fn commit(&mut self, outcome: &Outcome) -> Result<(), StageStopped> {
        let mut waits = Waits::new(self.env.config.retry);
        loop {
            let start = self.env.clocks.wall.monotonic();
            let answer = self.log.commit(&outcome.commit);
            self.spend(Phase::Commit, start);
            match answer {
                Ok(()) => break,
                Err(LogError::Conflict(_)) => {
                    self.forget();
                    return Ok(());
                }
                Err(LogError::Unavailable(cause)) => {
                    if self.pause("log", &cause, &mut waits) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let now_ms = self.env.clocks.wall.now_ms();
        metric::committed(S::NAME, &outcome.commit.tally);
        outcome.accepted_ms.iter().for_each(|accepted_ms| metric::freshness(now_ms - accepted_ms));
        for letter in &outcome.commit.dead_letters {
            warn!(stage = S::NAME, kind = letter.kind, offset = letter.record.offset, "dead letter: {}", letter.message);
        }
        self.env.stats.update(|s| {
            s.tally += &outcome.commit.tally;
            s.committed_ms = now_ms;
            s.trouble = None;
        });
        Ok(())
    }

    /// Asks the store for as long as it is down; `None` when somebody asked to finish meanwhile.
    fn insist_on_store<R>(&mut self, ask: impl Fn() -> Result<R, StoreError>) -> Result<Option<R>, StageStopped> {
        let mut waits = Waits::new(self.env.config.retry);
        loop {
            match ask() {
                Ok(answer) => return Ok(Some(answer)),
                Err(StoreError::Unavailable(cause)) => {
                    if self.pause("store", &cause, &mut waits) {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
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
    let mut outcome = Outcome::default();
    circumstances.stage.clone_into(&mut outcome.commit.stage);
    let mut answers = inputs.into_iter().zip(verdicts);
    for held in batch {
        let through = outcome.commit.through.entry(held.record.partition).or_default();
        *through = (*through).max(held.record.offset + 1);
        outcome.faults.push(None);
        match held.fate {
            Fate::Started => {
                let (input, verdict) = answers.next().expect("every started record has its verdict");
                let attempt = Attempted { group, record: held.record, attempts: held.attempts, circumstances };
                outcome.take_verdict(attempt, &input, verdict);
            }
            Fate::Live(_) => unreachable!("a batch is settled after all its live records were started"),
            Fate::Dropped(reason) => outcome.commit.tally.drop_for(reason),
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
    fn take_verdict<In: Message, Out: Message>(&mut self, attempt: Attempted<'_>, input: &Input<In>, verdict: Verdict<Out>) {
        let stamp = input.value.head().map(stamp_of);
        match verdict {
            Verdict::Passed(passed) => {
                let value = match wire::encode(&passed.out) {
                    Ok(value) => value,
                    Err(error) => return self.bury(attempt, UNWRITABLE, error.to_string()),
                };
                let user = passed.out.user();
                let stamp = passed.out.head().map(stamp_of).or(stamp);
                self.explain(&attempt, &user, stamp, "passed", "", passed.explanation);
                let headers = attempt.record.headers.child(attempt.circumstances.stage, Out::TOPIC);
                if Out::TOPIC == endcap_schemas::topics::Topic::PAGES {
                    self.accepted_ms.extend(passed.out.head().map(|head| head.cause.accepted_ms));
                }
                self.commit.outputs.push(Outgoing { topic: Out::TOPIC, key: user, headers, value });
                self.writes.extend(passed.writes);
                self.count(&passed.counters);
                self.commit.tally.pass();
            }
            Verdict::Dropped(reason) => {
                self.explain(&attempt, &input.value.user(), stamp, "dropped", reason.label(), json!({}));
                self.commit.tally.drop_for(reason);
            }
            Verdict::Settled(settled) => {
                let stamp = stamp.or_else(|| settled.writes.iter().map(write_stamp).max());
                self.explain(&attempt, &input.value.user(), stamp, "dropped", settled.reason.label(), settled.explanation);
                self.writes.extend(settled.writes);
                self.count(&settled.counters);
                self.commit.tally.drop_for(settled.reason);
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
        let Circumstances { stage, records, infer, now_ms } = *attempt.circumstances;
        let text = json!({
            "verdict": verdict,
            "reason": reason,
            "batch_records": records,
            "infer_ms": infer.as_secs_f64() * 1_000.0,
            "waited_ms": (now_ms - attempt.record.appended_ms - i64::try_from(infer.as_millis()).unwrap_or(0)).max(0),
            "attempts": attempt.attempts,
            "input": { "topic": attempt.record.topic.name(), "offset": attempt.record.offset, "ce_id": attempt.record.headers.id },
            "explanation": explanation,
        });
        self.results.push(StageResult {
            user: user.clone(),
            stage: stage.to_owned(),
            stamp,
            explanation: text.to_string(),
            at_ms: now_ms,
        });
    }

    fn bury(&mut self, attempt: Attempted<'_>, kind: &str, message: String) {
        self.commit.tally.dead_letter(kind);
        self.commit.dead_letters.push(DeadLetter {
            record: attempt.record,
            group: attempt.group.to_owned(),
            stage: attempt.circumstances.stage.to_owned(),
            attempts: attempt.attempts,
            kind: kind.to_owned(),
            message,
        });
    }

    fn count(&mut self, counters: &[(&'static str, u64)]) {
        for (name, amount) in counters {
            self.commit.tally.count(name, *amount);
        }
    }
}

fn stamp_of(head: &Head) -> Stamp {
    Stamp::of(head.context_ms, head.generation)
}

fn write_stamp(write: &Write) -> Stamp {
    match write {
        Write::State { stamp, .. } | Write::Page { stamp, .. } | Write::Erase { stamp, .. } => *stamp,
    }
}
