//! The joint phase on a problem whose best orders are known: what the contrastive loss teaches the evaluator, and what it teaches FPSM.

use std::{cmp::Reverse, ops::ControlFlow};

use endcap_ranker::pier::{
    Contrast, Cuts, Dataset, Fpsm, FpsmSetting, Joint, Kind, Model, Ocpm, PLACES, PageView, Progress, Schedule, Vocabulary, auc,
    fpsm::Places, hits, known, of_page, orders, train,
};
use rand::{RngExt, SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

const SEED: u64 = 11;
const ITEMS: usize = 12;
const SHOPPERS: u32 = 40;
const PAGES: i64 = 3_000;
const MOST: usize = 10;
/// Joint steps: ten times 40 batches.
const SCHEDULE: Schedule = Schedule { batch: 64, rate: 3e-3, epochs: 10, by_validation: false, seed: SEED };

/// Pages whose clicks depend on the item and its place alone: the higher its number the better, and the earlier the better. So the best order
/// has the highest numbers first.
fn dataset() -> Dataset {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut page = |at_ms: i64| {
        let items: Vec<u32> = index::sample(&mut rng, ITEMS, PLACES).into_iter().map(|item| item as u32).collect();
        let items: [u32; PLACES] = std::array::from_fn(|place| items[place]);
        let click = |place: usize, dice: f64| {
            let log_odds = 0.4 * (f64::from(items[place]) - 6.0) - 0.6 * place as f64;
            Some(dice < 1.0 / (1.0 + (-log_odds).exp()))
        };
        let clicks = std::array::from_fn(|place| click(place, rng.random()));
        PageView { shopper: rng.random_range(0..SHOPPERS), at_ms, items, clicks }
    };
    let pages = (0..PAGES).map(&mut page).collect();
    let items: Vec<Vec<u32>> = (0..ITEMS as u32).map(|item| vec![item, item % 3]).collect();
    let cuts = Cuts { train_ms: 200, valid_ms: PAGES - 300, test_ms: PAGES - 250 };
    Dataset::new(Vocabulary::new(&[ITEMS as u32, 3], SHOPPERS), &items, pages, cuts).expect("a dataset")
}

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// How an evaluator and FPSM over its embeddings do on the test pages, as shares of them.
#[derive(Debug, Default)]
struct Score {
    /// Pages of which the selected orders have the best one: under the evaluator, and as it is known.
    hr_self: f64,
    hr_known: f64,
    /// Clicks that the evaluator expects of selected orders beyond those of all, in the mean.
    advantage: f64,
    auc: f64,
}

fn score(model: &Model, dataset: &Dataset, point: &[f32], fpsm: &Fpsm) -> Score {
    let (reader, all) = (model.reader().expect("a reader"), orders(PLACES, PLACES));
    let log_odds = reader.shown(dataset, point, &dataset.test).expect("log-odds");
    let (log_odds, clicks) = known(dataset, &dataset.test, &log_odds);
    let mut score = Score { auc: auc(&log_odds, &clicks).expect("clicks and others"), ..Score::default() };
    let share = |is: bool| f64::from(is) / dataset.test.len() as f64;
    for page in &dataset.test {
        let visit = dataset.visit(*page);
        let values = reader.values(dataset, &visit, of_page(point, *page), &all).expect("values");
        let mut best: Vec<usize> = (0..PLACES).collect();
        best.sort_by_key(|item| Reverse(visit.items[*item]));
        let selected = fpsm.select(model.weights(), dataset, &visit, &all, MOST);
        score.hr_self += share(hits(&selected, &values));
        score.hr_known += share(selected.contains(&all.binary_search(&best).expect("an order")));
        let mean = |of: &mut dyn Iterator<Item = usize>, count: usize| of.map(|order| values[order]).sum::<f64>() / count as f64;
        let more = mean(&mut selected.iter().copied(), MOST) - mean(&mut (0..all.len()), all.len());
        score.advantage += share(true) * more;
    }
    score
}

/// By chance a best order is among ten of 120 in 0.083 of the pages, with a standard error of 0.017.
#[test]
fn the_contrastive_loss_moves_the_evaluator_to_what_is_selected_and_ours_moves_the_selection_to_what_is_good() {
    let (dataset, ocpm) = (dataset(), Kind::Ocpm(Ocpm::WHOLE));
    let point = vec![-1.0; dataset.pages.len() * PLACES];
    let setting = FpsmSetting { places: Places::Plain, bits: 64, half_life_ms: None, ties_by_rank: false, seed: SEED };
    let fpsm = Fpsm::new(setting);
    let mut first = Model::new(ocpm, &dataset.vocabulary, SEED);
    train(&mut first, &dataset, &point, &SCHEDULE, None, &mut on).expect("training");
    let after = |contrast, alpha| {
        let mut model = Model::from_bytes(ocpm, &dataset.vocabulary, &first.weights().to_bytes()).expect("weights");
        let joint = Joint { alpha, most: MOST, contrast, pages_max: 16, pairs_max: 10, fpsm: &fpsm };
        train(&mut model, &dataset, &point, &SCHEDULE, Some(&joint), &mut on).expect("training");
        score(&model, &dataset, &point, &fpsm)
    };
    let before = score(&first, &dataset, &point, &fpsm);
    println!("seed {SEED}, before: {before:?}");
    assert!(before.hr_self < 0.15 && before.hr_known < 0.15 && before.auc > 0.8);
    let signed = after(Contrast::Signed, 10.0);
    println!("Eq. 14, α = 10: {signed:?}");
    assert!(signed.hr_self > 0.16 && signed.advantage > before.advantage + 0.5, "selected orders are worth no more to it");
    assert!(signed.hr_known < 0.15 && signed.auc < before.auc - 0.1, "nothing but the evaluator has moved");
    let distance = after(Contrast::Distance, 0.5);
    println!("through the distances, α = 0.5: {distance:?}");
    assert!(distance.hr_self > 0.3 && distance.hr_known > 0.25, "the best orders have come no nearer");
    assert!(distance.auc > before.auc - 0.02, "the evaluator has paid for it");
}
