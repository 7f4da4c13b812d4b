//! The generation loop: many constrained sequences at once, packed into as few forward passes as the limits allow.
//!
//! A prefill chunk, a run of forced tokens and a single decoded token are the same thing here: tokens of a sequence that are not in its cache
//! yet. Every step takes single tokens first, then forced runs, then prefill chunks, up to its budget, and asks for the rows at which something
//! is to be decided. What is decided for a sequence depends on its own rows alone, never on its company.

mod sequence;

use std::{collections::VecDeque, thread};

use candle_core::Device;
use endcap_inference::TokenCounts;
use thiserror::Error;

use crate::{
    Constraint, ConstraintError, EngineError,
    constraint::{Allowed, best},
};
use sequence::Sequence;

/// Limits of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GenerateLimits {
    /// Tokens of one forward pass.
    pub step_tokens_max: usize,
    /// Tokens that the caches of all running sequences may hold together; a sequence takes its prompt and its longest answer.
    pub cache_tokens_max: usize,
    /// Sequences that run at once.
    pub sequences_max: usize,
    /// Whether masks are computed on a second thread while the device computes. On a CPU the engine has one core, so there it only costs.
    pub masks_beside: bool,
}

impl Default for GenerateLimits {
    /// For one CPU core.
    fn default() -> Self {
        Self { step_tokens_max: 512, cache_tokens_max: 65_536, sequences_max: 64, masks_beside: false }
    }
}

impl GenerateLimits {
    /// Limits that suit `device`.
    pub fn for_device(device: &Device) -> Self {
        if device.is_cpu() {
            return Self::default();
        }
        Self { step_tokens_max: 8_192, cache_tokens_max: 1 << 20, sequences_max: 256, masks_beside: true }
    }
}

/// One sequence to generate.
pub struct Job<C> {
    /// Tokens of the prompt, not empty.
    pub prompt: Vec<u32>,
    /// Positions of the prompt whose scores the constraint observes, rising.
    pub probes: Vec<usize>,
    /// What may be said.
    pub constraint: C,
    /// Longest answer in tokens, forced ones included.
    pub answer_tokens_max: usize,
}

/// What came out of a [`Job`].
pub struct Generated<C> {
    /// Tokens of the answer, forced ones included.
    pub tokens: Vec<u32>,
    /// What it cost.
    pub counts: TokenCounts,
    /// The constraint at its end.
    pub constraint: C,
}

/// Why one sequence has no answer; the others are not concerned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenerateError {
    /// The prompt and the longest answer do not fit.
    #[error("cannot generate: {needed} tokens are needed, {limit} is the limit")]
    TooLong {
        /// Prompt and longest answer, in tokens.
        needed: usize,
        /// The smaller of the model's context and the cache, in tokens.
        limit: usize,
    },
    /// There is nothing to start from.
    #[error("cannot generate from an empty prompt")]
    Empty,
    /// The answer was not complete at its longest.
    #[error("cannot complete the answer within {0} tokens")]
    Unfinished(usize),
    /// No logit was a number.
    #[error("cannot choose a token: every logit is NaN")]
    NotANumber,
    /// The constraint failed.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
}

/// Tokens of one sequence for the next forward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Number that [`Machine::open`] gave.
    pub(crate) slot: usize,
    /// The tokens that follow those in the slot's cache, `[rows]`.
    pub(crate) tokens: Vec<u32>,
    /// Rows whose hidden state is wanted, rising; the last one may stand twice.
    pub(crate) wanted: Vec<usize>,
}

/// What the loop needs of a decoder.
pub(crate) trait Machine {
    /// Longest context, in tokens.
    fn positions(&self) -> usize;

    /// Makes an empty cache for a sequence of at most `tokens`.
    fn open(&mut self, tokens: usize) -> usize;

    /// Gives a sequence's cache back.
    fn close(&mut self, slot: usize);

    /// Computes `chunks` in one pass and keeps the wanted rows' hidden states, in order, until the next pass.
    fn step(&mut self, chunks: &[Chunk]) -> Result<(), EngineError>;

    /// Logits of kept rows over the vocabulary, `[rows][vocabulary]`.
    fn logits(&self, rows: &[usize]) -> Result<Vec<Vec<f32>>, EngineError>;

    /// Logits of one kept row for `tokens`, `[tokens]`.
    fn logits_of(&self, row: usize, tokens: &[u32]) -> Result<Vec<f32>, EngineError>;

    /// What the probe reads at kept rows, `[rows]`.
    fn probe(&self, rows: &[usize]) -> Result<Vec<f32>, EngineError>;
}

type Outcome<C> = Result<Generated<C>, GenerateError>;

/// Generates every job's answer, greedily; answers stand in the jobs' order.
///
/// # Errors
/// [`EngineError`] when the device fails, which ends all sequences. What is wrong with one job is its own `Err`.
pub(crate) fn generate<C: Constraint>(
    machine: &mut dyn Machine,
    jobs: Vec<Job<C>>,
    limits: GenerateLimits,
) -> Result<Vec<Outcome<C>>, EngineError> {
    let mut outcomes: Vec<Option<Outcome<C>>> = jobs.iter().map(|_| None).collect();
    let mut waiting: VecDeque<(usize, Job<C>)> = jobs.into_iter().enumerate().collect();
    let mut running: Vec<Sequence<C>> = Vec::new();
    let result = loop {
        admit(machine, &mut waiting, &mut running, &mut outcomes, limits);
        if running.is_empty() {
            break Ok(());
        }
        if let Err(error) = advance(machine, &mut running, limits) {
            break Err(error);
        }
        for done in running.extract_if(.., |sequence| sequence.is_done()) {
            machine.close(done.slot());
            let (job, outcome) = done.into_outcome();
            outcomes[job] = Some(outcome);
        }
    };
    running.iter().for_each(|sequence| machine.close(sequence.slot()));
    result?;
    Ok(outcomes.into_iter().map(|outcome| outcome.expect("every job has ended")).collect())
}

/// Starts waiting jobs in order while there is room for them.
fn admit<C: Constraint>(
    machine: &mut dyn Machine,
    waiting: &mut VecDeque<(usize, Job<C>)>,
    running: &mut Vec<Sequence<C>>,
    outcomes: &mut [Option<Outcome<C>>],
    limits: GenerateLimits,
) {
    let mut held: usize = running.iter().map(Sequence::reserved).sum();
    let limit = machine.positions().min(limits.cache_tokens_max);
    while let Some((_, job)) = waiting.front() {
        let needed = job.prompt.len() + job.answer_tokens_max;
        if needed <= limit && (running.len() >= limits.sequences_max.max(1) || held + needed > limits.cache_tokens_max) {
            return;
        }
        let (index, job) = waiting.pop_front().expect("the front was just seen");
        let started = if needed > limit { Err(GenerateError::TooLong { needed, limit }) } else { Sequence::start(index, job) };
        match started {
            Err(error) => outcomes[index] = Some(Err(error)),
            Ok(sequence) if sequence.is_done() => outcomes[index] = Some(sequence.into_outcome().1),
            Ok(mut sequence) => {
                sequence.take_slot(machine.open(needed));
                held += needed;
                running.push(sequence);
            }
        }
    }
}

/// One forward pass and the decisions that it allows.
fn advance<C: Constraint>(
    machine: &mut dyn Machine,
    running: &mut [Sequence<C>],
    limits: GenerateLimits,
) -> Result<(), EngineError> {
    let (order, chunks) = pack(running, limits.step_tokens_max.max(1));
    if limits.masks_beside {
        thread::scope(|scope| {
            scope.spawn(|| running.iter_mut().for_each(Sequence::prepare));
            machine.step(&chunks)
        })?;
    } else {
        machine.step(&chunks)?;
    }
    let mut row = 0;
    let mut whole = Vec::new();
    for (&index, chunk) in order.iter().zip(&chunks) {
        let rows: Vec<usize> = (row..row + chunk.wanted.len()).collect();
        row += rows.len();
        let sequence = &mut running[index];
        let probes = sequence.take_chunk(chunk.tokens.len());
        sequence.observe(machine.probe(&rows[..probes])?);
        let Some(&last) = rows.get(probes) else { continue };
        match sequence.allowed() {
            Err(error) => sequence.fail(error.into()),
            Ok(Allowed::Mask(_)) => whole.push((index, last)),
            Ok(allowed @ Allowed::Few { tokens, .. }) => {
                let choice = best(&allowed, &machine.logits_of(last, tokens)?);
                sequence.choose(choice);
            }
        }
    }
    let rows: Vec<usize> = whole.iter().map(|&(_, row)| row).collect();
    let logits = if rows.is_empty() { Vec::new() } else { machine.logits(&rows)? };
    for ((index, _), logits) in whole.into_iter().zip(logits) {
        let sequence = &mut running[index];
        match sequence.allowed().map(|allowed| best(&allowed, &logits)) {
            Ok(choice) => sequence.choose(choice),
            Err(error) => sequence.fail(error.into()),
        }
    }
    Ok(())
}

/// Fills a pass of at most `budget` tokens: decoded tokens and forced runs, the shortest first, then prompts in the order of their admission.
/// Gives the sequences' indices and their chunks.
fn pack<C: Constraint>(running: &[Sequence<C>], budget: usize) -> (Vec<usize>, Vec<Chunk>) {
    let mut order: Vec<usize> = (0..running.len()).collect();
    order.sort_by_key(|&index| {
        let sequence = &running[index];
        if sequence.in_prompt() { (1, index) } else { (0, sequence.pending()) }
    });
    let mut left = budget;
    let mut chunks = Vec::new();
    order.retain(|&index| {
        if left == 0 {
            return false;
        }
        let chunk = running[index].chunk(left);
        left -= chunk.tokens.len();
        chunks.push(chunk);
        true
    });
    (order, chunks)
}

#[cfg(test)]
mod tests;
