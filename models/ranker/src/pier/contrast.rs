//! The contrastive loss of the joint phase (section 4.3.2), and where its gradient goes.
//!
//! FPSM has no weights of its own (section 4.1). It hashes h, which is made of the embeddings that it shares with OCPM; the signs of a hash and
//! the choice of the nearest K have no gradient. So Eq. 14 moves the weights through ȳ alone, the evaluator's own figures: through its
//! perceptrons, and into the embeddings of the items that it looked at. It raises what the evaluator says of the orders that were selected, and
//! lowers what it says of the others. It does not move what is selected towards what is good: embeddings that have changed give other hashes,
//! but nothing says which. [`Contrast::Distance`] is our form of what section 4.3.2 wants of the loss: its gradient goes through the distances.
//!
//! What the paper leaves open: Eq. 14 with its square would push the two sides apart whichever is higher; [`Contrast::Signed`] is the difference
//! itself. "Any K permutations in unselected permutations" are drawn by seed. The loss of a batch is estimated from some of its pages and
//! some of their K pairs, as means over samples that the seed draws: the expectation of the gradient is the same.

use candle_core::{Result, Tensor};
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::{
    batch::Batch,
    dataset::{Dataset, PLACES},
    model::{AS_SHOWN, Model, of_page},
    net::{Graph, sigmoid},
    orders::orders,
    selection::Fpsm,
};

/// An order that is nearer by much more than so many bits is near enough.
const NEARER_BITS: f64 = 4.0;

/// Form of the contrastive loss. ȳ is the mean of an order's click probabilities, k a selected order and k' another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contrast {
    /// −Σ (ȳ_k − ȳ_k'): selected orders are to be worth more.
    Signed,
    /// −Σ (ȳ_k − ȳ_k')², as Eq. 14 is printed.
    Squared,
    /// Σ (ȳ_k − ȳ_k') tanh((d_k − d_k') / 4), where ȳ is taken as it is and d is the distance in bits that is to be expected over all hash
    /// functions: orders that are worth more are to be nearer, by some bits. Ours, not the paper's.
    Distance,
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

/// Pairs of a selected and another order that stand in the first rows of a batch.
#[derive(Default)]
pub(super) struct Pairs {
    /// Pages that have pairs.
    pub(super) pages: usize,
    /// Pairs of each.
    count: usize,
    /// Weights of the slots of each page's history, `[pages · HISTORY]`.
    time: Vec<f32>,
}

impl Pairs {
    /// Adds the first of `pages` with pairs: each as it was shown, then its selected orders, then the others.
    pub(super) fn add(
        batch: &mut Batch,
        joint: &Joint,
        model: &Model,
        dataset: &Dataset,
        point: &[f32],
        pages: &[u32],
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let all = orders(PLACES, PLACES);
        let most = joint.most.min(all.len() / 2);
        let (paired, count) = (joint.pages_max.min(pages.len()), joint.pairs_max.min(most));
        let mut time = Vec::new();
        for page in &pages[..paired] {
            let visit = dataset.visit(*page);
            let selected = joint.fpsm.select(&model.weights, dataset, &visit, &all, most);
            let others: Vec<usize> = (0..all.len()).filter(|order| !selected.contains(order)).collect();
            let some = |of: &[usize], rng: &mut ChaCha8Rng| -> Vec<usize> {
                index::sample(rng, of.len(), count).into_iter().map(|place| of[place]).collect()
            };
            let chosen = [some(&selected, rng), some(&others, rng)].concat();
            let chosen = chosen.iter().map(|order| &all[*order][..]);
            batch.add(&visit, of_page(point, *page), std::iter::once(&AS_SHOWN[..]).chain(chosen));
            time.extend(joint.fpsm.time_weights(dataset, visit.history));
        }
        Self { pages: paired, count, time }
    }

    /// Rows of a page with pairs.
    pub(super) fn each(&self) -> usize {
        1 + 2 * self.count
    }

    /// Rows of the batch that they take.
    pub(super) fn rows(&self) -> usize {
        self.pages * self.each()
    }

    /// Eq. 14 times α: K times the mean over pages and pairs, so the mean over pages of the sum over K pairs. `logits` are the batch's,
    /// `[N, PLACES]`.
    pub(super) fn loss(&self, joint: &Joint, graph: &Graph, batch: &Batch, logits: &Tensor) -> Result<Tensor> {
        let values = self.difference(&sigmoid(&logits.narrow(0, 0, self.rows())?.contiguous()?)?.mean(1)?)?;
        let of_pairs = match joint.contrast {
            Contrast::Signed => values.neg()?,
            Contrast::Squared => values.sqr()?.neg()?,
            Contrast::Distance => {
                let distances = joint.fpsm.expected_distances(graph, batch, self.rows(), &self.time)?;
                (values.detach() * (self.difference(&distances)? / NEARER_BITS)?.tanh()?)?
            }
        };
        of_pairs.mean_all()? * (joint.alpha * joint.most as f64)
    }

    /// Of each pair what the selected order has more than the other, `[pages, pairs]`, of one number for each row.
    fn difference(&self, numbers: &Tensor) -> Result<Tensor> {
        let rows = numbers.reshape((self.pages, self.each()))?;
        rows.narrow(1, 1, self.count)? - rows.narrow(1, 1 + self.count, self.count)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        pier::{
            FpsmSetting, Kind, Ocpm,
            batch::EMBEDDINGS,
            dataset::HISTORY,
            fpsm::{Behaviour, Places, SimHash, distances, encode_places, history, represent},
            model::pooled,
            nets::DIMS,
            simulator::{Shop, ShopSize},
        },
        random::stream,
    };

    const SEED: u64 = 7;

    /// A log, its point-wise log-odds, and a model that knows nothing yet.
    fn shop() -> (Dataset, Vec<f32>, Model) {
        let size = ShopSize { shoppers: 30, sessions: 16, history_sessions: 3, test_sessions: 2 };
        let dataset = Shop::new(SEED, size).dataset().expect("a log");
        let model = Model::new(Kind::Ocpm(Ocpm::WHOLE), &dataset.vocabulary, SEED);
        let point = vec![-1.0; dataset.pages.len() * PLACES];
        (dataset, point, model)
    }

    fn fpsm(places: Places) -> Fpsm {
        Fpsm::new(FpsmSetting { places, bits: 64, half_life_ms: Some(2e8), ties_by_rank: false, seed: SEED })
    }

    fn logits(model: &Model, graph: &Graph, batch: &Batch) -> Tensor {
        model.net.logits(graph, batch).and_then(|logits| logits.reshape((batch.len(), PLACES))).expect("logits")
    }

    /// Holds the gradient of a form of the loss against finite differences along it, and says whether weights other than embeddings have some.
    fn check(contrast: Contrast) -> bool {
        let ((dataset, point, mut model), fpsm) = (shop(), fpsm(Places::Plain));
        let joint = Joint { alpha: 0.5, most: 10, contrast, pages_max: 8, pairs_max: 6, fpsm: &fpsm };
        let mut batch = Batch::new(&dataset);
        let pages = &dataset.train[..8];
        let pairs = Pairs::add(&mut batch, &joint, &model, &dataset, &point, pages, &mut stream(&[SEED]));
        // What the evaluator says as it is: what the distances' gradient goes by.
        let fixed = logits(&model, &Graph::constants(&model.weights).expect("a graph"), &batch);
        let loss = |model: &Model, graph: &Graph| {
            let logits = if contrast == Contrast::Distance { fixed.clone() } else { logits(model, graph, &batch) };
            pairs.loss(&joint, graph, &batch, &logits).expect("a loss")
        };
        let graph = Graph::variables(&model.weights).expect("a graph");
        let gradients = loss(&model, &graph).backward().and_then(|store| graph.gradients(&store)).expect("gradients");
        let length = gradients.iter().flatten().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let names: Vec<String> = model.weights.iter().map(|(name, ..)| name.to_owned()).collect();
        let has = |name: &str| {
            names.iter().zip(&gradients).any(|(of, g)| (of == EMBEDDINGS) == (name == EMBEDDINGS) && g.iter().any(|g| *g != 0.0))
        };
        assert!(length > 1e-6 && has(EMBEDDINGS), "{contrast:?}: the embeddings have no gradient");
        let elsewhere = has("others");
        let mut at = |step: f64| {
            model.weights.shift(&gradients, (step / length) as f32);
            let loss = loss(&model, &Graph::constants(&model.weights).expect("a graph")).to_scalar::<f32>().expect("a number");
            model.weights.shift(&gradients, (-step / length) as f32);
            f64::from(loss)
        };
        let slope = (at(3e-3) - at(-3e-3)) / 6e-3;
        assert!((slope - length).abs() < 0.05 * length, "{contrast:?}, seed {SEED}: slope {slope}, gradient of length {length}");
        elsewhere
    }

    #[test]
    fn every_form_has_the_gradient_that_it_should_and_ours_leaves_the_evaluator_alone() {
        for (contrast, moves_evaluator) in [(Contrast::Signed, true), (Contrast::Squared, true), (Contrast::Distance, false)] {
            assert_eq!(check(contrast), moves_evaluator, "{contrast:?}");
        }
    }

    #[test]
    fn the_signed_loss_is_what_the_others_are_worth_more_than_those_selected() {
        let ((dataset, point, model), fpsm) = (shop(), fpsm(Places::Plain));
        let (all, pages) = (orders(PLACES, PLACES), &dataset.train[..8]);
        // Half of all orders, each of them in a pair: nothing is left to chance.
        let joint = Joint { alpha: 0.5, most: 60, contrast: Contrast::Signed, pages_max: 8, pairs_max: 60, fpsm: &fpsm };
        let mut batch = Batch::new(&dataset);
        let pairs = Pairs::add(&mut batch, &joint, &model, &dataset, &point, pages, &mut stream(&[SEED]));
        let graph = Graph::constants(&model.weights).expect("a graph");
        let loss = pairs.loss(&joint, &graph, &batch, &logits(&model, &graph, &batch)).and_then(|loss| loss.to_scalar::<f32>());
        let mut wanted = 0.0;
        for page in pages {
            let visit = dataset.visit(*page);
            let values = model.reader().and_then(|reader| reader.values(&dataset, &visit, of_page(&point, *page), &all));
            let values = values.expect("values");
            let selected = fpsm.select(&model.weights, &dataset, &visit, &all, 60);
            let of_selected = selected.iter().map(|order| values[*order]).sum::<f64>();
            // Each of 60 pairs counts with its mean over the places.
            wanted -= 0.5 * (2.0 * of_selected - values.iter().sum::<f64>()) / PLACES as f64 / pages.len() as f64;
        }
        let loss = f64::from(loss.expect("a loss"));
        assert!((loss - wanted).abs() < 1e-3 * wanted.abs() + 1e-5, "seed {SEED}: {loss}, not {wanted}");
    }

    #[test]
    fn expected_distances_are_the_mean_over_hash_functions() {
        const FUNCTIONS: u64 = 400;
        let (dataset, point, model) = shop();
        let all = orders(PLACES, PLACES);
        let page = *dataset.train.iter().find(|page| dataset.history(**page).len() == 3).expect("a short history");
        let visit = dataset.visit(page);
        for how in [Places::Plain, Places::Centred] {
            let (fpsm, places) = (fpsm(how), encode_places(PLACES, DIMS, how));
            let time = fpsm.time_weights(&dataset, visit.history);
            let mut batch = Batch::new(&dataset);
            batch.add(&visit, of_page(&point, page), all.iter().map(|order| &order[..]));
            let graph = Graph::constants(&model.weights).expect("a graph");
            let expected = fpsm.expected_distances(&graph, &batch, all.len(), &time).and_then(|d| d.to_vec1::<f32>());
            let expected = expected.expect("distances");
            let of =
                |items: &[u32], order: &[usize]| represent(&order.to_vec(), &pooled(&model.weights, &dataset, items), &places);
            let clicked = visit.history.iter().map(|page| {
                let page = &dataset.pages[*page as usize];
                Behaviour { h: of(&page.items, &AS_SHOWN), at_ms: page.at_ms }
            });
            let slots = history(clicked, HISTORY);
            let representations: Vec<Vec<f32>> = all.iter().map(|order| of(visit.items, order)).collect();
            let mut mean = vec![0.0; all.len()];
            for seed in 0..FUNCTIONS {
                let drawn = distances(&SimHash::new(HISTORY, 64, DIMS, seed), &representations, &slots, &time);
                mean.iter_mut().zip(drawn).for_each(|(mean, drawn)| *mean += drawn / FUNCTIONS as f32);
            }
            let off = expected.iter().zip(&mean).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // A bit's standard deviation is ½: of 64 · 400 bits, 0.2 bits.
            assert!(off < 1.0, "{how:?}: {off} bits off; {:?} and {:?}", &expected[..4], &mean[..4]);
        }
    }
}
