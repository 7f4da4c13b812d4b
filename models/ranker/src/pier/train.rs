//! Training: on pages as they were shown (section 4.3.1), and jointly with the contrastive loss that is to lead FPSM (section 4.3.2).
//!
//! What the paper leaves open: the joint phase goes on from the pre-trained weights.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{
    PierError,
    batch::Batch,
    contrast::{Joint, Pairs},
    dataset::{Dataset, PLACES},
    measure::log_loss,
    model::{AS_SHOWN, Model, of_page},
    net::{Adam, Graph, cross_entropy},
};
use crate::random::stream;

const SHUFFLE_STREAM: u64 = 91;
const PAIRS_STREAM: u64 = 92;

/// How long, and in which steps, a model is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// Pages of a step (section 5.1.3: 1,024).
    pub batch: usize,
    /// Adam's rate (section 5.1.3: 10⁻³).
    pub rate: f32,
    /// Times that all pages are gone through, at most.
    pub epochs: usize,
    /// Whether to end, and with which weights, is decided by the loss on the validation pages: those after the epoch with the lowest are
    /// kept, and the first epoch that brings nothing is the last. Without, the weights after the last epoch are kept.
    pub by_validation: bool,
    /// Seed of the order of the pages and of what is drawn.
    pub seed: u64,
}

/// How far training is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Pages that were gone through.
    pub done: usize,
    /// Of so many at most.
    pub most: usize,
}

/// Trains `model`, which hears nothing of the test pages. `point` has the point-wise log-odds of all pages `[pages · PLACES]`, or none for a
/// model that needs none. `heard` is told after each step and may end it. Gives the validation loss after each epoch, in nats an item.
///
/// # Errors
/// [`PierError::Stopped`] when `heard` wants no more; the model is of no use then.
pub fn train(
    model: &mut Model,
    dataset: &Dataset,
    point: &[f32],
    schedule: &Schedule,
    joint: Option<&Joint>,
    heard: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<f64>, PierError> {
    let mut adam = Adam::new(&model.weights);
    let mut best = (f64::INFINITY, model.weights.clone());
    let (mut losses, mut done, most) = (Vec::new(), 0, schedule.epochs * dataset.train.len());
    for epoch in 0..schedule.epochs as u64 {
        let mut pages = dataset.train.clone();
        pages.shuffle(&mut stream(&[SHUFFLE_STREAM, schedule.seed, epoch]));
        for (step, pages) in pages.chunks(schedule.batch).enumerate() {
            let mut rng = stream(&[PAIRS_STREAM, schedule.seed, epoch, step as u64]);
            let gradients = gradients(model, dataset, point, pages, joint, &mut rng)?;
            adam.step(&mut model.weights, &gradients, schedule.rate);
            done += pages.len();
            if heard(Progress { done, most }).is_break() {
                return Err(PierError::Stopped);
            }
        }
        losses.push(validate(model, dataset, point)?);
        let loss = losses[epoch as usize];
        // What is no number is no improvement.
        if schedule.by_validation && (loss >= best.0 || loss.is_nan()) {
            break;
        }
        best = (loss, model.weights.clone());
    }
    model.weights = best.1;
    Ok(losses)
}

fn validate(model: &Model, dataset: &Dataset, point: &[f32]) -> Result<f64, PierError> {
    let log_odds = model.reader()?.shown(dataset, point, &dataset.valid)?;
    let (log_odds, clicks) = known(dataset, &dataset.valid, &log_odds);
    Ok(log_loss(&log_odds, &clicks))
}

/// Log-odds of pages' items whose clicks are known, and those clicks as probabilities, 0 or 1.
pub fn known(dataset: &Dataset, pages: &[u32], log_odds: &[f32]) -> (Vec<f32>, Vec<f64>) {
    let clicks = pages.iter().flat_map(|page| dataset.pages[*page as usize].clicks);
    clicks.zip(log_odds).filter_map(|(click, x)| click.map(|click| (*x, f64::from(click)))).unzip()
}

/// Gradients of Eq. 15 by all weights.
fn gradients(
    model: &Model,
    dataset: &Dataset,
    point: &[f32],
    pages: &[u32],
    joint: Option<&Joint>,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<Vec<f32>>, PierError> {
    let mut batch = Batch::new(dataset);
    // Without a weight the loss is nothing, and what it would be need not be known.
    let joint = joint.filter(|joint| joint.alpha > 0.0);
    // Pages with pairs come first: each as it was shown, then its selected orders, then the others.
    let pairs = joint.map(|joint| Pairs::add(&mut batch, joint, model, dataset, point, pages, rng)).unwrap_or_default();
    for page in &pages[pairs.pages..] {
        batch.add(&dataset.visit(*page), of_page(point, *page), [&AS_SHOWN[..]]);
    }
    let graph = Graph::variables(&model.weights)?;
    let logits = model.net.logits(&graph, &batch)?.reshape((batch.len(), PLACES))?;
    let from = pairs.rows();
    let shown: Vec<u32> = (0..from).step_by(pairs.each()).chain(from..batch.len()).map(|row| row as u32).collect();
    let count = shown.len();
    let of_shown =
        if from == 0 { logits.clone() } else { logits.index_select(&Tensor::from_vec(shown, count, &Device::Cpu)?, 0)? };
    let labels = pages.iter().flat_map(|page| dataset.pages[*page as usize].clicks).collect();
    let mut loss = (cross_entropy(&of_shown, labels)? / pages.len() as f64)?;
    if let Some(joint) = joint {
        loss = (loss + pairs.loss(joint, &graph, &batch, &logits)?)?;
    }
    Ok(graph.gradients(&loss.backward()?)?)
}
