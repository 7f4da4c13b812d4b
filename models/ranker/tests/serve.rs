//! The serving kernel: it says what the candle model says, selects what FPSM selects, and refuses what cannot be.

use std::collections::HashMap;

use endcap_ranker::{
    SlateError, WeightsError,
    pier::{
        Cuts, Dataset, EXACT_MAX, Fpsm, FpsmSetting, HISTORY, Kind, Model, Ocpm, Order, PLACES, PageView, Visit, Vocabulary,
        Weights, best, count,
        fpsm::{self, Behaviour, Places, SimHash, Ties},
        orders,
        serve::{self, ClickedPage, History, Kernel, Orders, Reranker, Scratch, Selector, Slate},
    },
    seed,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};

/// Items of a slate and of a page: those of the paper's two data sets, and others.
const SIZES: [(usize, usize); 5] = [(5, 5), (10, 3), (7, 4), (2, 2), (6, 1)];
const DAY_MS: i64 = 86_400_000;

fn rng(parts: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed(parts))
}

/// Numbers around zero, mostly within ±`spread`.
fn number(rng: &mut impl Rng, spread: f32) -> f32 {
    (0..4).map(|_| rng.random_range(-spread..spread)).sum::<f32>() / 2.0
}

/// A model and data that mean nothing: random weights, biases too, and random pages.
struct World {
    seed: u64,
    dataset: Dataset,
    model: Model,
    candidates: usize,
}

impl World {
    /// `steep` weights of attention leave one item with everything.
    fn new(seed: u64, size: (usize, usize), steep: f32) -> Self {
        Self::of(Ocpm::WHOLE, seed, size, steep)
    }

    fn of(parts: Ocpm, seed: u64, (candidates, places): (usize, usize), steep: f32) -> Self {
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

    fn kernel(&self) -> Kernel {
        Kernel::new(self.model.weights(), &self.dataset.vocabulary, self.seed).expect("a kernel")
    }

    fn places(&self) -> usize {
        self.dataset.vocabulary.places()
    }

    /// Visits of test pages with random candidates, all different, and their point-wise log-odds.
    fn visits(&self) -> Vec<(u32, Vec<u32>, Vec<f32>)> {
        let mut rng = rng(&[self.seed, 3]);
        let visit = |page: &u32| {
            let items = rand::seq::index::sample(&mut rng, 40, self.candidates).into_iter().map(|item| item as u32).collect();
            (*page, items, (0..self.candidates).map(|_| number(&mut rng, 3.0)).collect())
        };
        self.dataset.test.iter().step_by(3).map(visit).collect()
    }

    /// Values of fields of the pages of a history, and when they were.
    fn clicked(&self, history: &[u32]) -> Vec<(Vec<u32>, i64)> {
        let page = |page: &u32| {
            let page = &self.dataset.pages[*page as usize];
            (self.dataset.values(&page.items[..self.places()]), page.at_ms)
        };
        history.iter().map(page).collect()
    }
}

fn pages(clicked: &[(Vec<u32>, i64)]) -> Vec<ClickedPage<'_>> {
    clicked.iter().map(|(items, at_ms)| ClickedPage { items, at_ms: *at_ms }).collect()
}

/// Holds a kernel against the candle model of the same weights, over all orders of some visits; with few of them too, as they share less.
fn check(world: &World, scratch: &mut Scratch) {
    let (kernel, reader, all) =
        (world.kernel(), world.model.reader().expect("a reader"), orders(world.candidates, world.places()));
    for (page, items, point) in world.visits() {
        let visit = Visit { items: &items, ..world.dataset.visit(page) };
        let values = world.dataset.values(&items);
        let history = kernel.encode(&pages(&world.clicked(visit.history)), scratch).expect("a history");
        let slate = Slate { shopper: Some(visit.shopper), items: &values, point: &point, worth: None };
        let some: Vec<Order> = all.iter().skip(page as usize % all.len().min(5)).step_by(7).cloned().collect();
        for orders in [&all, &some] {
            let wanted = reader.clicks(&world.dataset, &visit, &point, orders).expect("clicks");
            let listed = Orders::of(world.candidates, world.places(), orders).expect("orders");
            let got = kernel.score(&slate, &history, &listed, scratch).expect("scores");
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

#[test]
fn scores_are_those_of_the_candle_model() {
    let mut scratch = Scratch::default();
    for size in SIZES {
        (0..6).for_each(|seed| check(&World::new(seed, size, 1.0), &mut scratch));
    }
}

#[test]
fn so_they_are_where_items_count_by_themselves_too() {
    let mut scratch = Scratch::default();
    for size in SIZES {
        (0..6).for_each(|seed| check(&World::of(Ocpm::RESIDUAL, seed, size, 1.0), &mut scratch));
    }
}

#[test]
fn so_they_are_where_attention_leaves_nothing_to_most_items() {
    let mut scratch = Scratch::default();
    for size in SIZES {
        (0..3).for_each(|seed| check(&World::new(seed, size, 12.0), &mut scratch));
    }
}

#[test]
fn a_click_counts_with_what_it_is_worth_and_an_unknown_shopper_is_nobody_in_particular() {
    let world = World::new(1, (5, 5), 1.0);
    let (kernel, mut scratch) = (world.kernel(), Scratch::default());
    let (all, none) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let (_, items, point) = world.visits().remove(0);
    let (values, worth) = (world.dataset.values(&items), [0.0, 1.0, 2.5, 0.1, 9.0]);
    let slate = Slate { shopper: None, items: &values, point: &point, worth: Some(&worth) };
    let scores = kernel.score(&slate, &none, &all, &mut scratch).expect("scores");
    for ((order, value), clicks) in all.iter().zip(scores.values).zip(scores.clicks.chunks_exact(5)) {
        let wanted: f32 = order.iter().zip(clicks).map(|(item, click)| click * worth[usize::from(*item)]).sum();
        assert!((value - wanted).abs() < 1e-5, "{order:?}: {value}, not {wanted}");
    }
    let of_nobody = scores.clicks.to_vec();
    let known = Slate { shopper: Some(3), ..slate };
    assert_ne!(kernel.score(&known, &none, &all, &mut scratch).expect("scores").clicks, of_nobody);
}

#[test]
fn the_selection_is_fpsms_to_the_bit() {
    let mut scratch = Scratch::default();
    for (size, seed) in SIZES.into_iter().flat_map(|size| (0..4).map(move |seed| (size, seed))) {
        let world = World::new(seed, size, 1.0);
        let (kernel, all) = (world.kernel(), orders(size.0, size.1));
        let listed = Orders::all(size.0, size.1).expect("orders");
        for (places, bits, half_life_ms, ties_by_rank) in [
            (Places::Plain, 64, Some(3.0 * DAY_MS as f64), false),
            (Places::Centred, 64, None, true),
            (Places::Plain, 19, Some(DAY_MS as f64), false),
        ] {
            let setting = FpsmSetting { places, bits, half_life_ms, ties_by_rank, seed };
            let selector = Selector::new(setting, size.1);
            for (page, items, point) in world.visits() {
                let visit = Visit { items: &items, ..world.dataset.visit(page) };
                let (values, clicked) = (world.dataset.values(&items), world.clicked(visit.history));
                let slate = Slate { shopper: Some(visit.shopper), items: &values, point: &point, worth: None };
                let interest = selector.encode(&kernel, &pages(&clicked)).expect("an interest");
                for most in [1, 10, 100, 1_000] {
                    let got = selector.select(&kernel, &slate, &interest, &listed, (most, visit.at_ms), &mut scratch);
                    let got: Vec<usize> = got.expect("a selection").iter().map(|order| *order as usize).collect();
                    let wanted = by_hand(&world, setting, &visit, &all, most);
                    assert_eq!(got, wanted, "seed {seed}, {size:?}, {setting:?}, page {page}, {most}");
                    if size == (PLACES, PLACES) {
                        let fpsm = Fpsm::new(setting);
                        assert_eq!(got, fpsm.select(world.model.weights(), &world.dataset, &visit, &all, most));
                    }
                }
            }
        }
    }
}

/// The selection by the functions of `fpsm`, for pages of any size.
fn by_hand(world: &World, setting: FpsmSetting, visit: &Visit, all: &[Order], most: usize) -> Vec<usize> {
    let (_, table) = world.model.weights().get("embeddings").expect("embeddings");
    let values = world.dataset.vocabulary.values();
    let pooled = |items: &[u32]| -> Vec<Vec<f32>> {
        let of_item = |item: &u32| {
            let fields = world.dataset.values(&[*item]);
            let row = |(field, value): (usize, &u32)| (values[..field].iter().sum::<u32>() + value) as usize;
            let rows = fields.iter().enumerate().map(row);
            fpsm::pool_fields(&rows.flat_map(|row| table[row * 8..row * 8 + 8].to_vec()).collect::<Vec<f32>>(), 8)
        };
        items.iter().map(of_item).collect()
    };
    let (places, hash) =
        (fpsm::encode_places(world.places(), 8, setting.places), SimHash::new(HISTORY, setting.bits, 8, setting.seed));
    let as_shown: Order = (0..world.places()).collect();
    let behaviours = visit.history.iter().map(|page| {
        let page = &world.dataset.pages[*page as usize];
        Behaviour { h: fpsm::represent(&as_shown, &pooled(&page.items[..world.places()]), &places), at_ms: page.at_ms }
    });
    let history = fpsm::history(behaviours, HISTORY);
    let weights = fpsm::time_weights(&history, setting.half_life_ms.unwrap_or(f64::INFINITY));
    let items = pooled(visit.items);
    let all: Vec<Vec<f32>> = all.iter().map(|order| fpsm::represent(order, &items, &places)).collect();
    let ties = match setting.ties_by_rank {
        true => Ties::InitialRank,
        false => Ties::Drawn(seed(&[setting.seed, u64::from(visit.shopper), visit.at_ms as u64])),
    };
    fpsm::select(&fpsm::distances(&hash, &all, &history, &weights), most, ties)
}

#[test]
fn a_slate_is_arranged_as_the_model_likes_it_best_and_a_larger_space_is_searched_within_the_calls() {
    let mut scratch = Scratch::default();
    for (size, calls_max) in [((5, 5), 7), ((10, 3), 7), ((10, 5), 300), ((10, 5), 1)] {
        let world = World::new(2, size, 1.0);
        let (kernel, listed) = (world.kernel(), Orders::all(size.0, size.1).expect("orders"));
        for (page, items, point) in world.visits() {
            let visit = world.dataset.visit(page);
            let values = world.dataset.values(&items);
            let slate = Slate { shopper: Some(visit.shopper), items: &values, point: &point, worth: None };
            let history = kernel.encode(&pages(&world.clicked(visit.history)), &mut scratch).expect("a history");
            let scores = kernel.score(&slate, &history, &listed, &mut scratch).expect("scores");
            let (highest, first) = (scores.values[scores.best], scores.values[0]);
            let best = listed.get(scores.best).to_vec();
            let arranged = kernel.arrange(&slate, &history, (&[], calls_max), &mut scratch).expect("an order");
            if count(size.0, size.1) <= EXACT_MAX {
                assert_eq!((arranged.order, arranged.value, arranged.calls), (&best[..], highest, listed.len()));
            } else {
                assert_eq!(arranged.calls, calls_max);
                assert!((first..=highest).contains(&arranged.value), "{} is not from {first} to {highest}", arranged.value);
            }
        }
    }
}

/// A change to a slate, and what is said of it.
type Case = (&'static str, fn(&mut Asked), &'static str);

/// What is asked, as it may come from outside.
#[derive(Clone)]
struct Asked {
    shopper: Option<u32>,
    items: Vec<u32>,
    point: Vec<f32>,
    worth: Option<Vec<f32>>,
}

impl Asked {
    fn score<'a>(
        &'a self,
        kernel: &'a Kernel,
        history: &'a History,
        orders: &Orders,
        scratch: &'a mut Scratch,
    ) -> Result<serve::Scores<'a>, SlateError> {
        let slate = Slate { shopper: self.shopper, items: &self.items, point: &self.point, worth: self.worth.as_deref() };
        kernel.score(&slate, history, orders, scratch)
    }
}

#[test]
fn what_cannot_be_scored_is_refused_with_a_reason() {
    let world = World::new(3, (5, 5), 1.0);
    let (kernel, other, mut scratch) = (world.kernel(), World::new(4, (5, 5), 1.0).kernel(), Scratch::default());
    let (_, items, point) = world.visits().remove(0);
    let good = Asked { shopper: Some(0), items: world.dataset.values(&items), point, worth: Some(vec![1.0; 5]) };
    let (all, history) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let cases: [Case; 10] = [
        ("NaN", |asked| asked.point[3] = f32::NAN, "log-odds of item 3 are NaN"),
        ("no bounds", |asked| asked.point[0] = f32::INFINITY, "log-odds of item 0 are inf"),
        ("a field too few", |asked| _ = asked.items.pop(), "values of fields"),
        ("an item too few", |asked| _ = asked.point.pop(), "slate has 4 items"),
        ("far too many items", |asked| asked.point = vec![0.0; 65], "slate has 65 items"),
        ("an unknown value", |asked| asked.items[0] = 40, "field 0 of item 0 is 40"),
        ("an unknown shopper", |asked| asked.shopper = Some(6), "shopper 6 is not known"),
        ("worth NaN", |asked| asked.worth = Some(vec![1.0, f32::NAN, 1.0, 1.0, 1.0]), "item 1 is worth NaN"),
        ("worth below nothing", |asked| asked.worth = Some(vec![-1.0; 5]), "item 0 is worth -1"),
        ("a worth too many", |asked| asked.worth = Some(vec![1.0; 6]), "6 worths"),
    ];
    for (what, change, needle) in cases {
        let mut asked = good.clone();
        change(&mut asked);
        let error = asked.score(&kernel, &history, &all, &mut scratch).expect_err(what).to_string();
        assert!(error.contains(needle), "{what}: {error}");
    }
    let of_four = Orders::all(4, 4).expect("orders");
    assert!(matches!(good.score(&kernel, &history, &of_four, &mut scratch), Err(SlateError::Count { .. })));
    let of_other = other.encode(&[], &mut scratch).expect("no history");
    assert_eq!(good.score(&kernel, &of_other, &all, &mut scratch), Err(SlateError::Stale));
    let page = ClickedPage { items: &good.items[1..], at_ms: 0 };
    assert!(matches!(kernel.encode(&[page], &mut scratch), Err(SlateError::Count { .. })));
    assert!(good.score(&kernel, &history, &all, &mut scratch).is_ok());
}

#[test]
fn requests_that_chance_has_spoilt_are_scored_or_refused_and_harm_no_later_one() {
    let world = World::new(5, (5, 5), 1.0);
    let (kernel, mut scratch, mut rng) = (world.kernel(), Scratch::default(), rng(&[5, 9]));
    let (_, items, point) = world.visits().remove(0);
    let good = Asked { shopper: Some(0), items: world.dataset.values(&items), point, worth: None };
    let (all, history) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let wanted = good.score(&kernel, &history, &all, &mut scratch).expect("scores").values.to_vec();
    let (mut refused, rounds) = (0, 2_000);
    for round in 0..rounds {
        let mut asked = good.clone();
        for _ in 0..rng.random_range(1..4) {
            spoil(&mut asked, &mut rng);
        }
        let count = asked.point.len();
        let orders = Orders::all(count, rng.random_range(0..6)).unwrap_or_else(|_| all.clone());
        match asked.score(&kernel, &history, &orders, &mut scratch) {
            Ok(scores) => assert!(scores.values.iter().all(|value| value.is_finite()), "round {round} of seed 5"),
            Err(_) => refused += 1,
        }
        let again = good.score(&kernel, &history, &all, &mut scratch).expect("scores");
        assert_eq!(again.values, wanted, "round {round} of seed 5 has left something behind");
    }
    assert!((rounds / 4..rounds).contains(&refused), "{refused} of {rounds} were refused");
}

fn spoil(asked: &mut Asked, rng: &mut ChaCha8Rng) {
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, -0.0, 100.0, -100.0];
    match rng.random_range(0..7) {
        0 if !asked.point.is_empty() => {
            let at = rng.random_range(0..asked.point.len());
            asked.point[at] = strange[rng.random_range(0..strange.len())];
        }
        1 if !asked.items.is_empty() => {
            let at = rng.random_range(0..asked.items.len());
            asked.items[at] = if rng.random_bool(0.5) { rng.random() } else { rng.random_range(0..4) };
        }
        2 => asked.point.resize(rng.random_range(0..70), 0.5),
        3 => asked.items.resize(rng.random_range(0..300), 0),
        4 => asked.shopper = if rng.random_bool(0.5) { None } else { Some(rng.random()) },
        5 => asked.worth = Some((0..rng.random_range(0..8)).map(|_| strange[rng.random_range(0..strange.len())]).collect()),
        _ => asked.worth = Some(vec![rng.random(); asked.point.len()]),
    }
}

#[test]
fn weights_travel_in_bytes_and_whatever_else_comes_the_last_good_ones_go_on_serving() {
    let world = World::new(6, (10, 3), 1.0);
    let (weights, vocabulary) = (world.model.weights(), &world.dataset.vocabulary);
    let bytes = serve::write(weights, vocabulary, 7);
    let reranker = Reranker::new(world.kernel());
    assert_eq!(reranker.take(&bytes), Ok(7));
    let length = bytes.len() as u64;
    let sealed = |bytes: &[u8]| [bytes, blake3::hash(bytes).as_bytes()].concat();
    let body = &bytes[..bytes.len() - 32];
    let mut newer = bytes.clone();
    newer[8] = 2;
    let mut flipped = bytes.clone();
    flipped[1_000] ^= 1;
    let mut crowded = body.to_vec();
    crowded[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut placeless = body.to_vec();
    placeless[28] = 0;
    let nan = Weights::from_bytes(&with_nan(weights)).expect("tensors");
    let other = Model::new(Kind::Prm, vocabulary, 1);
    for (what, bytes, wanted) in [
        ("nothing", Vec::new(), Some(WeightsError::Foreign)),
        ("JSON", b"{\"weights\": []}".to_vec(), Some(WeightsError::Foreign)),
        ("tensors alone", weights.to_bytes(), Some(WeightsError::Foreign)),
        ("the name alone", bytes[..8].to_vec(), Some(WeightsError::Length { got: 8, wanted: 72 })),
        ("half", bytes[..bytes.len() / 2].to_vec(), Some(WeightsError::Length { got: length / 2, wanted: length })),
        ("more", [&bytes[..], b"x"].concat(), Some(WeightsError::Length { got: length + 1, wanted: length })),
        ("a newer form", newer, Some(WeightsError::Form { got: 2, reads: 1 })),
        ("a flipped bit", flipped, Some(WeightsError::Damaged)),
        ("too many values", sealed(&crowded), Some(WeightsError::Vocabulary("it has more values than can be counted"))),
        ("no places", sealed(&placeless), Some(WeightsError::Vocabulary("its pages have no places, or too many"))),
        ("NaN", serve::write(&nan, vocabulary, 8), Some(WeightsError::Number { name: "ocpm.mlp2.1.bias".to_owned() })),
        ("another model", serve::write(other.weights(), vocabulary, 8), None),
        ("another vocabulary", serve::write(weights, &Vocabulary::new(vocabulary.values(), 99).of_places(3), 8), None),
    ] {
        let error = reranker.take(&bytes).expect_err(what);
        match wanted {
            Some(wanted) => assert_eq!(error, wanted, "{what}"),
            None => assert!(matches!(error, WeightsError::Shape { .. }), "{what}: {error}"),
        }
        assert_eq!(reranker.kernel().version(), 7, "{what}");
    }
    let (again, mut scratch) = (serve::read(&bytes).expect("weights"), Scratch::default());
    check(
        &World { model: Model::from_bytes(world.model.kind(), vocabulary, &weights.to_bytes()).expect("a model"), ..world },
        &mut scratch,
    );
    assert_eq!(again.vocabulary(), reranker.kernel().vocabulary());
}

fn with_nan(weights: &Weights) -> Vec<u8> {
    let mut bytes = weights.to_bytes();
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let names = String::from_utf8(bytes[8..8 + header].to_vec()).expect("a header");
    let entry = names.split("\"ocpm.mlp2.1.bias\"").nth(1).expect("the tensor is there");
    let from = entry.split("\"data_offsets\":[").nth(1).and_then(|rest| rest.split(',').next()).expect("it has an offset");
    let at = 8 + header + from.parse::<usize>().expect("an offset is a number");
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    bytes
}

#[test]
fn bytes_that_chance_has_spoilt_are_refused() {
    let world = World::new(7, (5, 5), 1.0);
    let bytes = serve::write(world.model.weights(), &world.dataset.vocabulary, 7);
    let (reranker, mut rng) = (Reranker::new(world.kernel()), rng(&[7, 9]));
    for round in 0..300 {
        let mut spoilt = bytes.clone();
        for _ in 0..rng.random_range(1..6) {
            let at = rng.random_range(0..spoilt.len());
            match rng.random_range(0..3) {
                0 => spoilt.truncate(at.max(1)),
                1 => spoilt[at] ^= 1 << rng.random_range(0..8),
                _ => spoilt.insert(at, rng.random()),
            }
        }
        // Half of them are sealed again, as if whoever spoilt them had written them.
        let sealed = spoilt.len() > 72 && rng.random_bool(0.5) && spoilt != bytes;
        if sealed {
            spoilt.truncate(spoilt.len() - 32);
            let length = (spoilt.len() + 32) as u64;
            spoilt[12..20].copy_from_slice(&length.to_le_bytes());
            spoilt.extend(*blake3::hash(&spoilt).as_bytes());
        }
        // What was sealed may be good weights with other numbers; it is never a panic.
        assert!(reranker.take(&spoilt).is_err() || sealed || spoilt == bytes, "round {round} of seed 7");
        reranker.take(&bytes).expect("the good ones");
    }
}
