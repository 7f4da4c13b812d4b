//! The loop that every model is trained by: budget, learning rate, checkpoints, progress, held-out scores.

use std::{path::PathBuf, sync::atomic::AtomicBool, time::Duration};

use endcap_inference::prompts;
use serde::Serialize;

use crate::{
    Result, TrainError,
    adamw::{AdamW, AdamWConfig},
    checkpoint::{self, Position},
    params::Params,
    step::{Scores, Task, gradients, heed},
};

/// How long a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// Wall time, that of held-out scores included; a resumed run counts on. The result depends on the machine's speed.
    Minutes(f64),
    /// Optimiser steps. The result is a function of seed and data.
    Steps(u64),
}

/// What every run is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSettings {
    /// Seed of initial weights and of every draw.
    pub seed: u64,
    /// How long to train.
    pub budget: Budget,
    /// Threads that compute micro-batches; the result does not depend on it.
    pub threads: usize,
    /// Micro-batches whose mean gradient makes one step.
    pub micro_batches: usize,
    /// Tokens of a micro-batch, about.
    pub micro_tokens: usize,
    /// Highest learning rate.
    pub rate: f32,
    /// Share of the budget after which the rate falls (a cosine to 5 % of its height).
    pub anneal_from: f32,
    /// Where the run's state is kept; a file that is there already is resumed from.
    #[serde(skip)]
    pub checkpoint: Option<PathBuf>,
    /// Time between two checkpoints.
    pub checkpoint_every: Duration,
    /// Least time between two held-out scores; they are rarer where they would take more than a tenth of the run.
    pub score_every: Duration,
}

impl Default for RunSettings {
    fn default() -> Self {
        Self {
            seed: 1,
            budget: Budget::Minutes(5.0),
            threads: 1,
            micro_batches: 2,
            micro_tokens: 1_024,
            rate: 1e-3,
            anneal_from: 0.6,
            checkpoint: None,
            checkpoint_every: Duration::from_secs(60),
            score_every: Duration::from_secs(120),
        }
    }
}

/// What surrounds a run: its clock, the wish to stop, where progress lines go.
pub struct Surroundings<'a> {
    /// Time since any fixed moment; never goes back.
    pub clock: &'a dyn Fn() -> Duration,
    /// Set from outside to end the run after its step or in the middle of an examination, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Takes progress lines.
    pub say: &'a mut dyn FnMut(&str),
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Time spent training.
    pub seconds: f64,
    /// Trained numbers.
    pub parameters: usize,
    /// Scores on held-out data at the end.
    pub scores: Scores,
}

impl RunReport {
    /// The scores as a Markdown table.
    pub(crate) fn table(&self) -> String {
        let rows: String = self.scores.iter().map(|(name, value)| format!("| {name} | {value:.3} |\n")).collect();
        format!("| score | value |\n|---|---|\n{rows}")
    }
}

const WARM_UP_STEPS: u64 = 100;
/// Said before held-out data is gone through, which takes a minute.
const MEASURING: &str = "measuring on held-out data";
/// Times that a score took until the next one.
const SCORE_RARITY: u32 = 9;
/// The rate at the end, as a share of the highest.
const FLOOR: f32 = 0.05;

/// The learning rate at `step`: warm-up, a long flat part, a cosine at the end.
fn rate(settings: &RunSettings, step: u64, done: f32) -> f32 {
    let warm = ((step + 1) as f32 / WARM_UP_STEPS as f32).min(1.0);
    let late = ((done - settings.anneal_from) / (1.0 - settings.anneal_from).max(1e-6)).clamp(0.0, 1.0);
    settings.rate * warm * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f32::consts::PI * late).cos()))
}

fn done(settings: &RunSettings, position: &Position) -> f32 {
    match settings.budget {
        Budget::Minutes(minutes) => (position.elapsed.as_secs_f64() / (minutes * 60.0)) as f32,
        Budget::Steps(steps) => position.step as f32 / steps.max(1) as f32,
    }
}

/// Trains `params` on `task` until the budget is used up; [`TrainError::Stopped`] when somebody asks to end before.
pub(crate) fn train<T: Task>(
    task: &T,
    params: &mut Params,
    settings: &RunSettings,
    around: &mut Surroundings<'_>,
) -> Result<RunReport> {
    check(settings)?;
    let mut optimiser = AdamW::new(params, AdamWConfig::default());
    let of = format!("{}, prompts {}, from weights {:016x}", task.data(), prompts::VERSION, params.fingerprint());
    let mut position = Position { of, seed: settings.seed, step: 0, tokens: 0, elapsed: Duration::ZERO, scored: None };
    if let Some(path) = settings.checkpoint.as_ref().filter(|path| path.exists()) {
        match checkpoint::load(path, &position.of, params, &mut optimiser)? {
            Some(kept) => {
                let minutes = kept.elapsed.as_secs_f64() / 60.0;
                (around.say)(&format!("resumed at step {} after {minutes:.1} min", kept.step));
                position = kept;
            }
            None => (around.say)(&format!("{} is of other data or other starting weights: beginning afresh", path.display())),
        }
    }
    let mut progress = Progress::new(&position, settings.score_every);
    let mut saved = position.elapsed;
    let mut last = (around.clock)();
    while done(settings, &position) < 1.0 {
        let share = done(settings, &position);
        let step =
            gradients(task, &params.weights()?, position.seed, position.step, share, settings.micro_batches, settings.threads)?;
        if !step.loss.is_finite() {
            return Err(TrainError::Diverged(step.loss, position.step));
        }
        let norm = optimiser.step(params, &step.gradients, rate(settings, position.step, share));
        position.step += 1;
        position.tokens += step.tokens as u64;
        progress.add(&step.parts, norm);
        let now = (around.clock)();
        position.elapsed += now - last;
        last = now;
        let mut examined = heed(around.stop);
        if examined.is_ok() && position.elapsed >= progress.next {
            examined = examine(task, params, &mut position, &progress, around);
            let took = (around.clock)() - last;
            position.elapsed += took;
            last += took;
            progress.go_on(&position, settings.score_every.max(took * SCORE_RARITY));
        }
        if examined.is_err() || position.elapsed - saved >= settings.checkpoint_every {
            save(settings, params, &optimiser, &position)?;
            saved = position.elapsed;
        }
        examined?;
    }
    save(settings, params, &optimiser, &position)?;
    if position.scored.as_ref().is_none_or(|(step, _)| *step != position.step) {
        examine(task, params, &mut position, &progress, around)?;
        // A run that goes on from here later is over at once.
        save(settings, params, &optimiser, &position)?;
    }
    let (_, scores) = position.scored.expect("a run that has ended is examined");
    Ok(RunReport {
        steps: position.step,
        tokens: position.tokens,
        seconds: position.elapsed.as_secs_f64(),
        parameters: params.trained().map(|param| param.value.len()).sum(),
        scores,
    })
}

/// Examines `params` on held-out data, and notes the scores with their step.
fn examine<T: Task>(
    task: &T,
    params: &Params,
    position: &mut Position,
    progress: &Progress,
    around: &mut Surroundings<'_>,
) -> Result<()> {
    (around.say)(MEASURING);
    let scores = task.scores(&params.weights()?, around.stop)?;
    (around.say)(&progress.line(position, &scores));
    position.scored = Some((position.step, scores));
    Ok(())
}

fn check(settings: &RunSettings) -> Result<()> {
    let fault = match settings.budget {
        Budget::Minutes(minutes) if !(minutes > 0.0 && minutes.is_finite()) => Some("a budget is more than no minutes"),
        Budget::Steps(0) => Some("a budget is more than no steps"),
        _ if settings.threads == 0 => Some("at least one thread is needed"),
        _ if !(1..=64).contains(&settings.micro_batches) => Some("a step has 1 to 64 micro-batches"),
        _ if settings.micro_tokens == 0 => Some("a micro-batch has at least one token"),
        _ => None,
    };
    fault.map_or(Ok(()), |fault| Err(TrainError::Setting(fault.into())))
}

fn save(settings: &RunSettings, params: &Params, optimiser: &AdamW, position: &Position) -> Result<()> {
    settings.checkpoint.as_ref().map_or(Ok(()), |path| checkpoint::save(path, params, optimiser, position))
}

/// Running means between two progress lines.
struct Progress {
    parts: Vec<(&'static str, f32)>,
    norm: f32,
    steps: u32,
    next: Duration,
    since: (u64, Duration),
}

impl Progress {
    fn new(position: &Position, score_every: Duration) -> Self {
        Self {
            parts: Vec::new(),
            norm: 0.0,
            steps: 0,
            next: position.elapsed + score_every,
            since: (position.tokens, position.elapsed),
        }
    }

    fn add(&mut self, parts: &[(&'static str, f32)], norm: f32) {
        if self.parts.is_empty() {
            self.parts = parts.iter().map(|part| (part.0, 0.0)).collect();
        }
        self.parts.iter_mut().zip(parts).for_each(|(sum, part)| sum.1 += part.1);
        self.norm += norm;
        self.steps += 1;
    }

    /// Counts from `position` on; the next line comes after `pause`.
    fn go_on(&mut self, position: &Position, pause: Duration) {
        (self.norm, self.steps) = (0.0, 0);
        self.parts.iter_mut().for_each(|(_, sum)| *sum = 0.0);
        (self.since, self.next) = ((position.tokens, position.elapsed), position.elapsed + pause);
    }

    fn line(&self, position: &Position, scores: &Scores) -> String {
        let steps = self.steps.max(1) as f32;
        let seconds = (position.elapsed - self.since.1).as_secs_f64().max(1e-9);
        let speed = (position.tokens - self.since.0) as f64 / seconds;
        let mut line = format!(
            "{:.1} min, step {}, {:.2}M tokens, {speed:.0} tokens/s, |g| {:.2}; loss",
            position.elapsed.as_secs_f64() / 60.0,
            position.step,
            position.tokens as f64 / 1e6,
            self.norm / steps,
        );
        for (name, sum) in &self.parts {
            line.push_str(&format!(" {name} {:.4}", sum / steps));
        }
        line.push_str("; held out");
        for (name, score) in scores {
            line.push_str(&format!(" {name} {score:.3}"));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::atomic::{AtomicU64, Ordering},
    };

    use candle_core::Tensor;
    use rand::RngExt;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::{params::Weights, step::Loss};

    /// Fits y = 2x + 1 by two numbers.
    struct Line;

    impl Task for Line {
        type Micro = Vec<f32>;

        fn data(&self) -> &str {
            "a line"
        }

        fn micro(&self, _: f32, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
            Ok((0..16).map(|_| rng.random::<f32>()).collect())
        }

        fn loss(&self, weights: &Weights, xs: &Vec<f32>) -> Result<Loss> {
            let x = Tensor::from_slice(xs, 16, &candle_core::Device::Cpu)?;
            let guess = x.broadcast_mul(weights.get("slope"))?.broadcast_add(weights.get("offset"))?;
            let total = (guess - ((x * 2.0)? + 1.0)?)?.sqr()?.mean_all()?;
            Ok(Loss { parts: vec![("square", total.to_scalar()?)], total, tokens: 16 })
        }

        fn scores(&self, weights: &Weights, _: &AtomicBool) -> Result<Scores> {
            Ok(vec![("slope".into(), f64::from(weights.get("slope").to_vec1::<f32>()?[0]))])
        }
    }

    fn start() -> Params {
        let mut params = Params::default();
        params.push("slope", &[1], vec![0.0]);
        params.push("offset", &[1], vec![0.0]);
        params
    }

    fn go(settings: &RunSettings) -> (Params, RunReport) {
        let (mut params, ticks) = (start(), Cell::new(0));
        let clock = || {
            ticks.set(ticks.get() + 1);
            Duration::from_millis(ticks.get() * 10)
        };
        let mut around = Surroundings { clock: &clock, stop: &AtomicBool::new(false), say: &mut |_| {} };
        let report = train(&Line, &mut params, settings, &mut around).unwrap();
        (params, report)
    }

    #[test]
    fn a_run_learns_and_its_result_does_not_depend_on_the_number_of_threads() {
        let settings = RunSettings { budget: Budget::Steps(800), rate: 0.02, micro_batches: 3, ..RunSettings::default() };
        let (params, report) = go(&settings);
        assert!((report.scores[0].1 - 2.0).abs() < 0.1, "{:?}", report.scores);
        assert_eq!((report.steps, report.tokens), (800, 800 * 48));
        assert_eq!(go(&RunSettings { threads: 2, ..settings }).0, params);
    }

    #[test]
    fn a_run_that_is_interrupted_and_resumed_ends_where_an_uninterrupted_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let whole = RunSettings { budget: Budget::Steps(60), anneal_from: 1.0, ..RunSettings::default() };
        let checkpoint = Some(folder.path().join("run.checkpoint"));
        go(&RunSettings { budget: Budget::Steps(25), checkpoint: checkpoint.clone(), ..whole.clone() });
        let (resumed, report) = go(&RunSettings { checkpoint, ..whole.clone() });
        assert_eq!(report.steps, 60);
        assert_eq!(resumed, go(&whole).0);
    }

    /// A line that is watched while it is examined.
    struct Watched<F>(F);

    impl<F: Fn(&AtomicBool) -> Result<()> + Sync> Task for Watched<F> {
        type Micro = Vec<f32>;

        fn data(&self) -> &str {
            Line.data()
        }

        fn micro(&self, share: f32, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
            Line.micro(share, rng)
        }

        fn loss(&self, weights: &Weights, xs: &Vec<f32>) -> Result<Loss> {
            Line.loss(weights, xs)
        }

        fn scores(&self, weights: &Weights, stop: &AtomicBool) -> Result<Scores> {
            (self.0)(stop)?;
            Line.scores(weights, stop)
        }
    }

    #[test]
    fn a_run_that_is_told_to_end_keeps_its_checkpoint_and_gives_no_model() {
        let folder = tempfile::tempdir().unwrap();
        let settings = RunSettings {
            budget: Budget::Steps(60),
            checkpoint: Some(folder.path().join("run.checkpoint")),
            ..RunSettings::default()
        };
        let mut said = Vec::new();
        let mut run = |stop: bool| {
            let mut say = |line: &str| said.push(line.to_owned());
            let mut around = Surroundings { clock: &|| Duration::ZERO, stop: &AtomicBool::new(stop), say: &mut say };
            train(&Line, &mut start(), &settings, &mut around)
        };
        assert!(matches!(run(true), Err(TrainError::Stopped)));
        assert_eq!(run(false).unwrap().steps, 60);
        assert_eq!(said[0], "resumed at step 1 after 0.0 min");
    }

    #[test]
    fn an_examination_hears_a_wish_to_end_and_is_not_made_twice() {
        let folder = tempfile::tempdir().unwrap();
        let settings = RunSettings {
            budget: Budget::Steps(60),
            checkpoint: Some(folder.path().join("run.checkpoint")),
            ..RunSettings::default()
        };
        let (stop, scored) = (AtomicBool::new(false), AtomicU64::new(0));
        let run = |ask: bool| {
            let task = Watched(|heard: &AtomicBool| {
                scored.fetch_add(1, Ordering::Relaxed);
                stop.store(ask, Ordering::Relaxed);
                heed(heard)
            });
            let mut around = Surroundings { clock: &|| Duration::ZERO, stop: &stop, say: &mut |_| {} };
            train(&task, &mut start(), &settings, &mut around)
        };
        assert!(matches!(run(true), Err(TrainError::Stopped)), "in the middle of the examination at the end");
        stop.store(false, Ordering::Relaxed);
        let report = run(false).unwrap();
        assert_eq!((report.steps, scored.load(Ordering::Relaxed)), (60, 2));
        let again = run(false).unwrap();
        assert_eq!((again.steps, scored.load(Ordering::Relaxed)), (60, 2), "its scores are in the checkpoint");
        assert!((again.scores[0].1 - report.scores[0].1).abs() < 1e-9, "{again:?}");
    }

    #[test]
    fn scores_count_as_time_and_take_a_tenth_of_it_at_most() {
        // A score takes a minute on a clock that a step moves by a second.
        let (now, scored, mut params) = (AtomicU64::new(0), AtomicU64::new(0), start());
        let task = Watched(|_: &AtomicBool| {
            now.fetch_add(60, Ordering::Relaxed);
            scored.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
        let clock = || Duration::from_secs(now.fetch_add(1, Ordering::Relaxed));
        let mut around = Surroundings { clock: &clock, stop: &AtomicBool::new(false), say: &mut |_| {} };
        let settings = RunSettings { budget: Budget::Minutes(50.0), ..RunSettings::default() };
        train(&task, &mut params, &settings, &mut around).unwrap();
        let scored = scored.load(Ordering::Relaxed) - 1; // the last one belongs to the report
        assert!((3..=5).contains(&scored), "{scored} scores in 50 minutes");
        let seconds = now.load(Ordering::Relaxed);
        assert!((50 * 60..=52 * 60).contains(&seconds), "ended after {seconds} s");
    }

    #[test]
    fn the_rate_warms_up_stays_flat_and_falls_at_the_end() {
        let settings = RunSettings { rate: 1.0, anneal_from: 0.5, ..RunSettings::default() };
        for (step, done, expected) in [(0, 0.0, 0.01), (49, 0.0, 0.5), (100, 0.1, 1.0), (1_000, 0.5, 1.0), (1_000, 1.0, 0.05)] {
            let got = rate(&settings, step, done);
            assert!((got - expected).abs() < 1e-4, "step {step}, {done}: {got}");
        }
    }
}
