//! One sequence on its way through the loop. Nothing here waits.

use endcap_inference::TokenCounts;

use super::{Chunk, GenerateError, Generated, Job, Outcome};
use crate::constraint::{Allowed, Constraint, ConstraintError};

/// A running sequence: its answer so far and the tokens that its cache lacks.
pub(super) struct Sequence<C> {
    index: usize,
    slot: usize,
    job: Job<C>,
    /// Tokens of the prompt and the answer that are in the cache.
    computed: usize,
    answer: Vec<u32>,
    counts: TokenCounts,
    scores: Vec<f32>,
    end: Option<Result<(), GenerateError>>,
}

impl<C: Constraint> Sequence<C> {
    /// Takes over job number `index`, with the tokens that its constraint forces in front of the first choice.
    pub(super) fn start(index: usize, job: Job<C>) -> Result<Self, GenerateError> {
        if job.prompt.is_empty() {
            return Err(GenerateError::Empty);
        }
        assert!(job.probes.is_sorted_by(|a, b| a < b), "probes rise");
        assert!(job.probes.last().is_none_or(|&last| last < job.prompt.len()), "probes lie in the prompt");
        let mut sequence = Self {
            index,
            slot: usize::MAX,
            computed: 0,
            answer: Vec::new(),
            counts: TokenCounts::default(),
            scores: Vec::with_capacity(job.probes.len()),
            end: None,
            job,
        };
        sequence.settle();
        Ok(sequence)
    }

    pub(super) fn take_slot(&mut self, slot: usize) {
        self.slot = slot;
    }

    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    /// Tokens of cache that it may come to need.
    pub(super) fn reserved(&self) -> usize {
        self.job.prompt.len() + self.job.answer_tokens_max
    }

    pub(super) fn is_done(&self) -> bool {
        self.end.is_some()
    }

    /// Whether its prompt is not yet computed.
    pub(super) fn in_prompt(&self) -> bool {
        self.computed < self.job.prompt.len()
    }

    /// Tokens that the cache lacks; at least one while it runs.
    pub(super) fn pending(&self) -> usize {
        self.job.prompt.len() + self.answer.len() - self.computed
    }

    /// The next `tokens_max` pending tokens or fewer. Wanted are its probes and, where nothing stays pending, the last row.
    pub(super) fn chunk(&self, tokens_max: usize) -> Chunk {
        let end = self.computed + self.pending().min(tokens_max);
        let prompt = &self.job.prompt;
        let from_prompt = &prompt[self.computed.min(prompt.len())..end.min(prompt.len())];
        let from_answer = &self.answer[self.computed.saturating_sub(prompt.len())..end.saturating_sub(prompt.len())];
        let mut wanted: Vec<usize> = self.probes_before(end).iter().map(|probe| probe - self.computed).collect();
        if end == prompt.len() + self.answer.len() {
            wanted.push(end - 1 - self.computed);
        }
        Chunk { slot: self.slot, tokens: [from_prompt, from_answer].concat(), wanted }
    }

    /// Probes that are not read yet and lie before position `end`.
    fn probes_before(&self, end: usize) -> &[usize] {
        let open = &self.job.probes[self.scores.len()..];
        &open[..open.partition_point(|&probe| probe < end)]
    }

    /// Books the computed chunk; gives the number of its probes.
    pub(super) fn take_chunk(&mut self, tokens: usize) -> usize {
        let end = self.computed + tokens;
        let probes = self.probes_before(end).len();
        self.counts.prefilled += (end.min(self.job.prompt.len()) - self.computed.min(self.job.prompt.len())) as u64;
        self.computed = end;
        probes
    }

    /// Takes scores of probes; hands all of them on once they are complete.
    pub(super) fn observe(&mut self, scores: Vec<f32>) {
        if scores.is_empty() {
            return;
        }
        self.scores.extend(scores);
        if self.scores.len() == self.job.probes.len() {
            self.job.constraint.observe(&self.scores);
        }
    }

    /// Computes the next choice's mask ahead of time. A failure comes back when the choice is made.
    pub(super) fn prepare(&mut self) {
        let _ = self.job.constraint.allowed();
    }

    pub(super) fn allowed(&mut self) -> Result<Allowed<'_>, ConstraintError> {
        self.job.constraint.allowed()
    }

    pub(super) fn fail(&mut self, error: GenerateError) {
        self.end = Some(Err(error));
    }

    /// Takes the model's choice and the tokens that it forces.
    pub(super) fn choose(&mut self, token: Option<u32>) {
        let Some(token) = token else { return self.fail(GenerateError::NotANumber) };
        if let Err(error) = self.job.constraint.advance(token) {
            return self.fail(error.into());
        }
        self.answer.push(token);
        self.counts.generated += 1;
        self.settle();
    }

    /// Takes forced tokens until there is a choice or the end.
    fn settle(&mut self) {
        loop {
            if self.job.constraint.finished() {
                self.end = Some(Ok(()));
                return;
            }
            if self.answer.len() >= self.job.answer_tokens_max {
                return self.fail(GenerateError::Unfinished(self.job.answer_tokens_max));
            }
            match self.job.constraint.forced() {
                Err(error) => return self.fail(error.into()),
                Ok(run) if run.is_empty() => {
                    if self.job.constraint.finished() {
                        self.end = Some(Ok(()));
                    }
                    return;
                }
                Ok(run) => {
                    self.counts.forced += run.len() as u64;
                    self.answer.extend(run);
                }
            }
        }
    }

    pub(super) fn into_outcome(self) -> (usize, Outcome<C>) {
        let generated = Generated { tokens: self.answer, counts: self.counts, constraint: self.job.constraint };
        let outcome = match self.end {
            Some(Ok(())) => Ok(generated),
            Some(Err(error)) => Err(error),
            None => Err(GenerateError::Unfinished(self.job.answer_tokens_max)),
        };
        (self.index, outcome)
    }
}
