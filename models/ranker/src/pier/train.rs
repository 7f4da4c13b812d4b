//! Training: on pages as they were shown (section 4.3.1), and jointly with the contrastive loss that is to lead FPSM (section 4.3.2).
//!
//! What the paper leaves open: the joint phase goes on from the pre-trained weights. Eq. 14 with its square would push the two sides apart
//! whichever is higher; [`Contrast::Signed`] is the difference itself. "Any K permutations in unselected permutations" are drawn by seed. Both
//! sides get a gradient; the selection itself has none. The loss of a batch is estimated from some of its pages and some of their K pairs, as
//! means over samples that the seed draws: the expectation of the gradient is the same.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;

use super::{
    PierError,
    batch::Batch,
    dataset::{Dataset, PLACES},
    measure::log_loss,
    model::{AS_SHOWN, Model, of_page},
    net::{Adam, Graph, cross_entropy, sigmoid},
    orders::orders,
    selection::Fpsm,
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

/// Form of the contrastive loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contrast {
    /// −Σ (ȳ_k − ȳ_k'): selected orders are to be worth more.
    Signed,
    /// −Σ (ȳ_k − ȳ_k')², as Eq. 14 is printed.
    Squared,
}

/// What the joint phase adds.
pub struct Joint<'a> {
    /// Weight of the contrastive loss (α of Eq. 15).
    pub alpha: f64,
    /// Orders that are selected (K).
    pub most: usize,
    /// Its form.
    pub contrast: Contrast,
    /// Pages of a step that it is estimated from.
    pub pages_max: usize,
    /// Of K pairs of a page, those that it is estimated from.
    pub pairs_max: usize,
    /// What selects.
    pub fpsm: &'a Fpsm,
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
        if schedule.by_validation && loss >= best.0 {
            break;
        }
        best = (loss, model.weights.clone());
    }
    model.weights = best.1;
    Ok(losses)
}

fn validate(model: &Model, dataset: &Dataset, point: &[f32]) -> Result<f64, PierError> {
    let log_odds = model.reader()?.shown(dataset, point, &dataset.valid)?;
    let (log_odds, odds) = known(dataset, &dataset.valid, &log_odds);
    Ok(log_loss(&log_odds, &odds))
}

/// Log-odds of pages' items whose clicks are known, and those clicks as odds 0 or 1.
pub fn known(dataset: &Dataset, pages: &[u32], log_odds: &[f32]) -> (Vec<f32>, Vec<f64>) {
    let clicks = pages.iter().flat_map(|page| dataset.pages[*page as usize].clicks);
    clicks.zip(log_odds).filter_map(|(click, x)| click.map(|click| (*x, f64::from(u8::from(click))))).unzip()
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
    // Pages with pairs come first: each as it was shown, then its selected orders, then the others.
    let (paired, pairs) = add_pairs(&mut batch, model, dataset, point, pages, joint, rng);
    for page in &pages[paired..] {
        batch.add(&dataset.visit(*page), of_page(point, *page), [&AS_SHOWN[..]]);
    }
    let graph = Graph::variables(&model.weights)?;
    let logits = model.net.logits(&graph, &batch)?.reshape((batch.len(), PLACES))?;
    let (each, from) = (1 + 2 * pairs, paired * (1 + 2 * pairs));
    let shown: Vec<u32> = (0..from).step_by(each).chain(from..batch.len()).map(|row| row as u32).collect();
    let count = shown.len();
    let of_shown =
        if paired == 0 { logits.clone() } else { logits.index_select(&Tensor::from_vec(shown, count, &Device::Cpu)?, 0)? };
    let labels = pages.iter().flat_map(|page| dataset.pages[*page as usize].clicks).collect();
    let mut loss = (cross_entropy(&of_shown, labels)? / pages.len() as f64)?;
    if let Some(joint) = joint.filter(|_| paired > 0) {
        let means = sigmoid(&logits.narrow(0, 0, from)?.contiguous()?)?.mean(1)?.reshape((paired, each))?;
        let (selected, others) = (means.narrow(1, 1, pairs)?, means.narrow(1, 1 + pairs, pairs)?);
        let difference = (selected - others)?;
        let difference = if joint.contrast == Contrast::Signed { difference } else { difference.sqr()? };
        // A mean over pages and pairs, times K: the sum over pairs of Eq. 14.
        loss = (loss - (difference.mean_all()? * (joint.alpha * joint.most as f64))?)?;
    }
    Ok(graph.gradients(&loss.backward()?)?)
}

/// Adds the first pages with pairs of selected and other orders; returns how many pages have some, and how many pairs each.
fn add_pairs(
    batch: &mut Batch,
    model: &Model,
    dataset: &Dataset,
    point: &[f32],
    pages: &[u32],
    joint: Option<&Joint>,
    rng: &mut ChaCha8Rng,
) -> (usize, usize) {
    // Without a weight the loss is nothing, and what it would be need not be known.
    let Some(joint) = joint.filter(|joint| joint.alpha > 0.0) else { return (0, 0) };
    let all = orders(PLACES, PLACES);
    let most = joint.most.min(all.len() / 2);
    let (paired, pairs) = (joint.pages_max.min(pages.len()), joint.pairs_max.min(most));
    for page in &pages[..paired] {
        let visit = dataset.visit(*page);
        let selected = joint.fpsm.select(&model.weights, dataset, &visit, &all, most);
        let others: Vec<usize> = (0..all.len()).filter(|order| !selected.contains(order)).collect();
        let some = |of: &[usize], rng: &mut ChaCha8Rng| -> Vec<usize> {
            index::sample(rng, of.len(), pairs).into_iter().map(|place| of[place]).collect()
        };
        let chosen = [some(&selected, rng), some(&others, rng)].concat();
        let chosen = chosen.iter().map(|order| &all[*order][..]);
        batch.add(&visit, of_page(point, *page), std::iter::once(&AS_SHOWN[..]).chain(chosen));
    }
    (paired, pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pier::{
        FpsmSetting, Kind, Ocpm,
        fpsm::Places,
        simulator::{Shop, ShopSize},
    };

    const SEED: u64 = 7;

    /// Mean of what a model says of some orders of each page, less that of all others.
    fn advantage(model: &Model, dataset: &Dataset, point: &[f32], pages: &[u32], selected: &[Vec<usize>]) -> f64 {
        let (reader, all) = (model.reader().expect("a reader"), orders(PLACES, PLACES));
        let of_page = |(page, selected): (&u32, &Vec<usize>)| {
            let values = reader.values(dataset, &dataset.visit(*page), of_page(point, *page), &all).expect("values");
            let sum: f64 = selected.iter().map(|order| values[*order]).sum();
            let others = values.iter().sum::<f64>() - sum;
            sum / selected.len() as f64 - others / (all.len() - selected.len()) as f64
        };
        pages.iter().zip(selected).map(of_page).sum::<f64>() / pages.len() as f64
    }

    #[test]
    fn a_step_along_the_contrastive_loss_raises_selected_orders_above_the_others() {
        let size = ShopSize { shoppers: 30, sessions: 16, history_sessions: 3, test_sessions: 2 };
        let dataset = Shop::new(SEED, size).dataset().expect("a log");
        let (all, pages, point) = (orders(PLACES, PLACES), &dataset.train[..8], vec![-1.0; dataset.pages.len() * PLACES]);
        let setting = FpsmSetting { places: Places::Plain, bits: 64, half_life_ms: None, ties_by_rank: false, seed: SEED };
        let fpsm = Fpsm::new(setting);
        let mut model = Model::new(Kind::Ocpm(Ocpm::WHOLE), &dataset.vocabulary, SEED);
        let of_page = |page: &u32| fpsm.select(&model.weights, &dataset, &dataset.visit(*page), &all, 60);
        let selected: Vec<Vec<usize>> = pages.iter().map(of_page).collect();
        let by = |model: &Model, alpha: Option<f64>| {
            // Half of all orders, each of them in a pair: nothing is left to chance.
            let joint = |alpha| Joint { alpha, most: 60, contrast: Contrast::Signed, pages_max: 8, pairs_max: 60, fpsm: &fpsm };
            let joint = alpha.map(joint);
            gradients(model, &dataset, &point, pages, joint.as_ref(), &mut stream(&[SEED])).expect("gradients")
        };
        assert_eq!(by(&model, Some(0.0)), by(&model, None), "a loss without weight has a gradient");
        let before = advantage(&model, &dataset, &point, pages, &selected);
        let step = by(&model, Some(1e4));
        Adam::new(&model.weights).step(&mut model.weights, &step, 1e-4);
        let after = advantage(&model, &dataset, &point, pages, &selected);
        assert!(after > before + 1e-6, "seed {SEED}: {after} after the step, {before} before");
    }
}
