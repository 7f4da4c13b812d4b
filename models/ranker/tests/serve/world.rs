//! Models and data that mean nothing, and the kernel held against candle.

use std::collections::HashMap;

use endcap_ranker::{
    pier::{
        Cuts, Dataset, Kind, Model, Ocpm, Order, PageView, Visit, Vocabulary, best, orders,
        serve::{ClickedPage, Kernel, Orders, RerankRequest, Scratch},
    },
    seed,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};

/// Items of a slate and of a page: those of the paper's two data sets, and others.
pub(crate) const SIZES: [(usize, usize); 5] = [(5, 5), (10, 3), (7, 4), (2, 2), (6, 1)];
pub(crate) const DAY_MS: i64 = 86_400_000;

pub(crate) fn rng(parts: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed(parts))
}

/// Numbers around zero, mostly within ±`spread`.
pub(crate) fn number(rng: &mut impl Rng, spread: f32) -> f32 {
    (0..4).map(|_| rng.random_range(-spread..spread)).sum::<f32>() / 2.0
}

/// A model and data that mean nothing: random weights, biases too, and random pages.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) dataset: Dataset,
    pub(crate) model: Model,
    pub(crate) candidates: usize,
}

impl World {
    /// `steep` weights of attention leave one item with everything.
    pub(crate) fn new(seed: u64, size: (usize, usize), steep: f32) -> Self {
        Self::of(Ocpm::WHOLE, seed, size, steep)
    }

    pub(crate) fn of(parts: Ocpm, seed: u64, (candidates, places): (usize, usize), steep: f32) -> Self {
        let mut rng = rng(&[seed, 1]);
        // Some fields have few values, so that items share them.
        let values = [40_u32, 3, 9, 2, 30, 5, 7, 4, 11];
        let values = &values[..rng.random_range(1..=values.len())];
        let vocabulary = Vocabulary::new(values, 6).of_places(places);
        let items: Vec<Vec<u32>> = (0..40).map(|_| values.iter().map(|values| rng.random_range(0..*values)).collect()).collect();
        let pages = (0..60).map(|at| PageView {
            shopper: rng.random_range(0..6),
            at_ms: at * DAY_MS / 3,
            items: std::array::from_fn(|_| rng.random_range(0..40)),
            clicks: std::array::from_fn(|_| Some(rng.random_bool(0.1))),
        });
        let pages = pages.collect();
        let cuts = Cuts { train_ms: 5 * DAY_MS, valid_ms: 10 * DAY_MS, test_ms: 15 * DAY_MS };
        let dataset = Dataset::new(vocabulary, &items, pages, cuts).expect("data");
        let model = Self::model(parts, seed, &dataset.vocabulary, steep);
        Self { seed, dataset, model, candidates }
    }

    fn model(parts: Ocpm, seed: u64, vocabulary: &Vocabulary, steep: f32) -> Model {
        let (kind, mut rng) = (Kind::Ocpm(parts), rng(&[seed, 2]));
        let fresh = Model::new(kind, vocabulary, seed);
        let tensors = fresh.weights().iter().map(|(name, shape, values)| {
            let value = |(at, value): (usize, &f32)| match (name, shape.len()) {
                ("embeddings", _) => number(&mut rng, 1.0),
                // Query and key alone: values are as they are.
                (name, 2) if (name.contains("within") || name.contains("residual")) && at % 24 < 16 => steep * value,
                (_, 1) => number(&mut rng, 0.3),
                _ => *value,
            };
            let bytes: Vec<u8> = values.iter().enumerate().map(value).flat_map(f32::to_le_bytes).collect();
            (name.to_owned(), shape.to_vec(), bytes)
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).expect("values fill their shape"))
        });
        let bytes = safetensors::serialize(views.collect::<HashMap<_, _>>(), None).expect("tensors");
        Model::from_bytes(kind, vocabulary, &bytes).expect("weights")
    }

    pub(crate) fn kernel(&self) -> Kernel {
        Kernel::new(self.model.weights(), &self.dataset.vocabulary, self.seed).expect("a kernel")
    }

    pub(crate) fn places(&self) -> usize {
        self.dataset.vocabulary.places()
    }

    /// Visits of test pages with random candidates, all different, and their point-wise log-odds.
    pub(crate) fn visits(&self) -> Vec<(u32, Vec<u32>, Vec<f32>)> {
        let mut rng = rng(&[self.seed, 3]);
        let visit = |page: &u32| {
            let items = rand::seq::index::sample(&mut rng, 40, self.candidates).into_iter().map(|item| item as u32).collect();
            (*page, items, (0..self.candidates).map(|_| number(&mut rng, 3.0)).collect())
        };
        self.dataset.test.iter().step_by(3).map(visit).collect()
    }

    /// Values of fields of the pages of a history, and when they were.
    pub(crate) fn clicked(&self, history: &[u32]) -> Vec<(Vec<u32>, i64)> {
        let page = |page: &u32| {
            let page = &self.dataset.pages[*page as usize];
            (self.dataset.values(&page.items[..self.places()]), page.at_ms)
        };
        history.iter().map(page).collect()
    }
}

pub(crate) fn pages(clicked: &[(Vec<u32>, i64)]) -> Vec<ClickedPage<'_>> {
    clicked.iter().map(|(items, at_ms)| ClickedPage { items, at_ms: *at_ms }).collect()
}

/// Holds the kernel of a world against its candle model.
pub(crate) fn check(world: &World, scratch: &mut Scratch) {
    check_kernel(world, &world.kernel(), scratch);
}

/// Holds a kernel against the candle model of the same weights, over all orders of some visits; with few of them too, as they share less.
pub(crate) fn check_kernel(world: &World, kernel: &Kernel, scratch: &mut Scratch) {
    let (reader, all) = (world.model.reader().expect("a reader"), orders(world.candidates, world.places()));
    for (page, items, point) in world.visits() {
        let visit = Visit { items: &items, ..world.dataset.visit(page) };
        let values = world.dataset.values(&items);
        let history = kernel.encode(&pages(&world.clicked(visit.history)), scratch).expect("a history");
        let request = RerankRequest { shopper: Some(visit.shopper), items: &values, point: &point };
        let some: Vec<Order> = all.iter().skip(page as usize % all.len().min(5)).step_by(7).cloned().collect();
        for orders in [&all, &some] {
            let wanted = reader.clicks(&world.dataset, &visit, &point, orders).expect("clicks");
            let listed = Orders::of(world.candidates, world.places(), orders).expect("orders");
            let got = kernel.score(&request, &history, &listed, scratch).expect("scores");
            // A number that is none is infinitely far off.
            let off = |got: &[f32], wanted: &[f64]| {
                assert_eq!(got.len(), wanted.len());
                let each = got.iter().zip(wanted).map(|(got, wanted)| (f64::from(*got) - wanted).abs());
                each.map(|off| if off.is_nan() { f64::INFINITY } else { off }).fold(0.0, f64::max)
            };
            let who = format!("seed {}, {} of {}, page {page}", world.seed, world.places(), world.candidates);
            assert!(off(got.clicks, &wanted) < 1e-5, "{who}: clicks are off by {}", off(got.clicks, &wanted));
            let sums: Vec<f64> = wanted.chunks_exact(world.places()).map(|clicks| clicks.iter().sum()).collect();
            assert!(off(got.values, &sums) < 1e-5, "{who}: values are off by {}", off(got.values, &sums));
            let highest = best(&sums).expect("a best order");
            assert!(sums[highest] - sums[got.best] < 1e-5, "{who}: the best order is {highest}, not {}", got.best);
        }
    }
}
