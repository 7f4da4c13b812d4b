//! The evaluation models: what they can see, that they learn, and that the contrastive loss does what it is for.

use std::{collections::HashSet, ops::ControlFlow};

use endcap_ranker::pier::{
    Dataset, Kind, Model, Ocpm, Order, PLACES, PierError, Progress, Schedule, Visit, auc, known, orders,
    simulator::{Shop, ShopSize},
    train,
};

const SEED: u64 = 3;
const ALL: [Kind; 7] =
    [Kind::Dnn, Kind::Dcn, Kind::Prm, Kind::Extr, Kind::EdgeRerank, Kind::Ocpm(Ocpm::WHOLE), Kind::Ocpm(Ocpm::RESIDUAL)];
const SCHEDULE: Schedule = Schedule { batch: 64, rate: 3e-3, epochs: 2, by_validation: false, seed: SEED };

fn shop(shoppers: u32) -> (Shop, Dataset) {
    let shop = Shop::new(SEED, ShopSize { shoppers, sessions: 16, history_sessions: 3, test_sessions: 2 });
    let dataset = shop.dataset().expect("a log");
    (shop, dataset)
}

fn on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn trained(kind: Kind, dataset: &Dataset, point: &[f32], seed: u64) -> Model {
    let mut model = Model::new(kind, &dataset.vocabulary, seed);
    train(&mut model, dataset, point, &Schedule { seed, ..SCHEDULE }, None, &mut on).expect("training");
    model
}

/// Point-wise log-odds of all pages, of a model that was trained for them.
fn point(dataset: &Dataset) -> Vec<f32> {
    let pages: Vec<u32> = (0..dataset.pages.len() as u32).collect();
    trained(Kind::Dnn, dataset, &[], SEED).reader().expect("a reader").shown(dataset, &[], &pages).expect("scores")
}

/// What a model says of each order of a page.
fn values(model: &Model, dataset: &Dataset, page: u32) -> Vec<f64> {
    let point: Vec<f32> = (0..PLACES).map(|item| item as f32 * 0.3 - 2.0).collect();
    model.reader().expect("a reader").values(dataset, &dataset.visit(page), &point, &orders(PLACES, PLACES)).expect("values")
}

#[test]
fn point_wise_models_do_not_see_the_order_and_list_wise_ones_do() {
    let (_, dataset) = shop(60);
    for kind in ALL {
        let model = trained(kind, &dataset, &vec![-1.0; dataset.pages.len() * PLACES], SEED);
        let values = values(&model, &dataset, dataset.test[0]);
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)));
        assert_eq!(high - low < 1e-5, kind.is_pointwise(), "{kind:?}: from {low} to {high}");
    }
}

#[test]
fn extr_knows_pairs_of_item_and_place_alone_and_ocpm_knows_neighbours() {
    let (_, dataset) = shop(60);
    let all = orders(PLACES, PLACES);
    let of = |order: [usize; PLACES]| all.binary_search(&order.to_vec()).expect("an order");
    // Items 0 and 1 swapped at the first two places, whatever stands behind them: the same difference where nobody sees neighbours.
    let pairs = [[[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]], [[0, 1, 4, 2, 3], [1, 0, 4, 2, 3]]];
    for (kind, additive) in [(Kind::Extr, true), (Kind::Ocpm(Ocpm::WHOLE), false), (Kind::EdgeRerank, false)] {
        let values = values(&trained(kind, &dataset, &vec![-1.0; dataset.pages.len() * PLACES], SEED), &dataset, dataset.test[0]);
        let [one, other] = pairs.map(|[a, b]| values[of(a)] - values[of(b)]);
        assert_eq!((one - other).abs() < 1e-5, additive, "{kind:?}: {one} and {other}");
    }
}

#[test]
fn a_pages_figures_do_not_depend_on_its_company_and_nobody_sees_later_pages() {
    let (_, dataset) = shop(60);
    let point = vec![-1.0; dataset.pages.len() * PLACES];
    for kind in ALL {
        let model = trained(kind, &dataset, &point, SEED);
        let reader = model.reader().expect("a reader");
        let together = reader.shown(&dataset, &point, &dataset.test).expect("figures");
        for (place, page) in dataset.test.iter().enumerate().step_by(17) {
            let alone = reader.shown(&dataset, &point, &[*page]).expect("figures");
            let wanted = &together[place * PLACES..][..PLACES];
            assert!(alone.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-5), "{kind:?}: {alone:?}, not {wanted:?}");
        }
    }
    for page in &dataset.test {
        let times = dataset.history(*page).iter().map(|page| dataset.pages[*page as usize].at_ms);
        assert!(times.into_iter().all(|at_ms| at_ms < dataset.pages[*page as usize].at_ms));
    }
}

#[test]
fn a_visit_without_history_is_like_one_whose_slots_are_empty() {
    let (_, dataset) = shop(60);
    let model = trained(Kind::Ocpm(Ocpm::WHOLE), &dataset, &vec![-1.0; dataset.pages.len() * PLACES], SEED);
    let page = *dataset.test.iter().find(|page| dataset.history(**page).len() > 2).expect("somebody clicked");
    let (visit, all, reader) = (dataset.visit(page), orders(PLACES, PLACES), model.reader().expect("a reader"));
    let with = |history: &[u32]| {
        let visit = Visit { history, ..visit };
        reader.values(&dataset, &visit, &[-1.0; PLACES], &all[..3]).expect("values")
    };
    let (none, one, more) = (with(&[]), with(&visit.history[..1]), with(visit.history));
    assert!(none.iter().all(|value| value.is_finite()));
    assert!(none != one && one != more, "the history is nothing to it");
}

#[test]
fn every_model_learns_and_is_the_same_from_the_same_seed() {
    let (_, dataset) = shop(150);
    let point = point(&dataset);
    for kind in ALL {
        let point = if kind == Kind::Dnn { &[][..] } else { &point };
        let model = trained(kind, &dataset, point, SEED);
        let log_odds = model.reader().expect("a reader").shown(&dataset, point, &dataset.test).expect("figures");
        let (log_odds, clicks) = known(&dataset, &dataset.test, &log_odds);
        let area = auc(&log_odds, &clicks).expect("clicks, and others");
        assert!(area > 0.6, "{kind:?}, seed {SEED}: an AUC of {area} on pages that it has not seen");
        let bytes = model.weights().to_bytes();
        assert_eq!(bytes, trained(kind, &dataset, point, SEED).weights().to_bytes(), "{kind:?}");
        assert_ne!(bytes, trained(kind, &dataset, point, SEED + 1).weights().to_bytes(), "{kind:?}");
        let again = Model::from_bytes(kind, &dataset.vocabulary, &bytes).expect("weights");
        assert_eq!(again.weights(), model.weights());
    }
}

#[test]
fn weights_of_another_model_or_cut_off_are_refused() {
    let (_, dataset) = shop(20);
    let bytes = Model::new(Kind::Prm, &dataset.vocabulary, 1).weights().to_bytes();
    for (kind, bytes) in [(Kind::Extr, &bytes[..]), (Kind::Prm, &bytes[..bytes.len() / 2]), (Kind::Prm, &[][..])] {
        let refused = Model::from_bytes(kind, &dataset.vocabulary, bytes);
        assert!(matches!(refused, Err(PierError::Weights(_))), "{kind:?}");
    }
}

#[test]
fn training_ends_when_it_is_told_to() {
    let (_, dataset) = shop(60);
    let mut model = Model::new(Kind::Dnn, &dataset.vocabulary, SEED);
    let mut steps = 0;
    let mut heard = |progress: Progress| {
        steps += 1;
        assert!(progress.done <= progress.most);
        if steps == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    assert!(matches!(train(&mut model, &dataset, &[], &SCHEDULE, None, &mut heard), Err(PierError::Stopped)));
    assert_eq!(steps, 3);
}

#[test]
fn ten_candidates_have_point_wise_scores_that_do_not_depend_on_each_other() {
    let (shop, dataset) = shop(60);
    let scorer = trained(Kind::Dnn, &dataset, &[], SEED);
    let reader = scorer.reader().expect("a reader");
    let visit = dataset.visit(dataset.test[0]);
    let items = shop.candidates(visit.shopper, visit.at_ms, 12);
    assert_eq!(items.iter().collect::<HashSet<_>>().len(), 12);
    let scores = reader.point(&dataset, &Visit { items: &items, ..visit }).expect("scores");
    assert_eq!(scores.len(), 12);
    let some: Vec<u32> = items[4..9].to_vec();
    let of_some = reader.point(&dataset, &Visit { items: &some, ..visit }).expect("scores");
    assert!(of_some.iter().zip(&scores[4..9]).all(|(a, b)| (a - b).abs() < 1e-5), "{of_some:?}, not {scores:?}");
    let order: Order = vec![11, 0, 5, 7, 2];
    let chosen: Vec<u32> = order.iter().map(|item| items[*item]).collect();
    let as_shown: Order = (0..PLACES).collect();
    let of = |items: &[u32], order: &Order| shop.values(visit.shopper, visit.at_ms, items, std::slice::from_ref(order));
    assert_eq!(of(&items, &order), of(&chosen, &as_shown));
}
