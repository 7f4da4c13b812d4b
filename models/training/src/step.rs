//! One optimiser step: micro-batches spread over threads, their gradients added up in a fixed order.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    Result, TrainError,
    params::{Gradients, Weights},
};

/// What a run trains on and how it measures itself.
pub(crate) trait Task: Sync {
    /// A packed micro-batch.
    type Micro: Send;

    /// What it draws from, in words: another text, another run.
    fn data(&self) -> &str;

    /// Draws a micro-batch; `done` is the share of the budget used, 0…1.
    fn micro(&self, done: f32, rng: &mut ChaCha8Rng) -> Result<Self::Micro>;

    /// The micro-batch's loss, a mean over what it holds.
    fn loss(&self, weights: &Weights, micro: &Self::Micro) -> Result<Loss>;

    /// Scores on held-out data; [`TrainError::Stopped`] soon after `stop` is set.
    fn scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores>;
}

/// [`TrainError::Stopped`] once somebody asks to end.
pub(crate) fn heed(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(TrainError::Stopped) } else { Ok(()) }
}

/// Named held-out scores, in reading order.
pub(crate) type Scores = Vec<(String, f64)>;

/// A micro-batch's loss.
pub(crate) struct Loss {
    /// What is minimised, a scalar.
    pub(crate) total: Tensor,
    /// Its parts, for the log.
    pub(crate) parts: Vec<(&'static str, f32)>,
    pub(crate) tokens: usize,
}

/// What one step computed.
pub(crate) struct StepResult {
    pub(crate) gradients: Gradients,
    pub(crate) parts: Vec<(&'static str, f32)>,
    pub(crate) tokens: usize,
    pub(crate) loss: f32,
}

/// Where a step's randomness comes from: nothing but the run's seed and the step's number, so a resumed run draws what an
/// uninterrupted one would.
pub(crate) fn rng_of(seed: u64, step: u64, micro: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(step * 64 + micro as u64 + 1);
    rng
}

/// Computes the mean gradient of `micros` micro-batches on `threads` threads. The result does not depend on `threads`.
pub(crate) fn gradients<T: Task>(
    task: &T,
    weights: &Weights,
    seed: u64,
    step: u64,
    done: f32,
    micros: usize,
    threads: usize,
) -> Result<StepResult> {
    let one = |micro: usize| -> Result<(Gradients, Loss, f32)> {
        let batch = task.micro(done, &mut rng_of(seed, step, micro))?;
        let loss = task.loss(weights, &batch)?;
        let store = loss.total.backward()?;
        let value = loss.total.to_scalar::<f32>()?;
        Ok((weights.gradients(&store)?, loss, value))
    };
    let results = spread(micros, threads, one);
    let share = 1.0 / micros as f32;
    let mut sum: Option<StepResult> = None;
    for result in results {
        let (gradients, loss, value) = result?;
        match &mut sum {
            None => sum = Some(StepResult { gradients, parts: loss.parts, tokens: loss.tokens, loss: value }),
            Some(sum) => {
                add(&mut sum.gradients, &gradients);
                sum.tokens += loss.tokens;
                sum.loss += value;
                for (part, (_, more)) in sum.parts.iter_mut().zip(loss.parts) {
                    part.1 += more;
                }
            }
        }
    }
    let mut sum = sum.expect("a step has at least one micro-batch");
    sum.gradients.iter_mut().flatten().for_each(|g| *g *= share);
    sum.parts.iter_mut().for_each(|part| part.1 *= share);
    sum.loss *= share;
    Ok(sum)
}

/// Runs `work(0..count)` on up to `threads` threads; results in order.
pub(crate) fn spread<R: Send>(count: usize, threads: usize, work: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let threads = threads.clamp(1, count.max(1));
    if threads == 1 {
        return (0..count).map(work).collect();
    }
    let work = &work;
    let mut parts: Vec<Vec<R>> = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || (thread..count).step_by(threads).map(work).collect::<Vec<_>>()))
            .collect();
        handles.into_iter().map(|handle| handle.join().expect("a training thread does not panic")).collect()
    });
    parts.iter_mut().for_each(|part| part.reverse());
    (0..count).map(|i| parts[i % threads].pop().expect("every thread answered its share")).collect()
}

fn add(sum: &mut Gradients, more: &Gradients) {
    for (sum, more) in sum.iter_mut().zip(more) {
        for (a, b) in sum.iter_mut().zip(more) {
            *a += b;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_spread_comes_back_in_order() {
        for (count, threads) in [(0, 2), (1, 4), (7, 1), (7, 2), (8, 3)] {
            assert_eq!(spread(count, threads, |i| i * i), (0..count).map(|i| i * i).collect::<Vec<_>>(), "{count} on {threads}");
        }
    }
}
