//! What the kernel says of orders, and which it takes.

use endcap_ranker::{
    pier::{
        Fpsm, FpsmSetting, HISTORY, Ocpm, Order, PLACES, Visit, count,
        fpsm::{self, Behaviour, Places, SimHash, Ties},
        orders,
        serve::{EXACT_MAX, Orders, RerankRequest, Scratch, Selector, Wanted},
    },
    seed,
};

use crate::{
    exact::{Exact, Seen},
    world::{DAY_MS, SIZES, World, check, pages},
};

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
        // More of these: some were off by more than is allowed while scores were worked out in f32.
        (0..12).for_each(|seed| check(&World::of(Ocpm::RESIDUAL, seed, size, 12.0), &mut scratch));
    }
}

#[test]
fn kernel_and_candle_are_both_near_what_f64_makes_of_the_equations() {
    let mut scratch = Scratch::default();
    let parts = [Ocpm::WHOLE, Ocpm::RESIDUAL].into_iter().flat_map(|parts| [(parts, 1.0), (parts, 12.0)]);
    for ((parts, steep), size) in parts.flat_map(|parts| SIZES.map(|size| (parts, size))) {
        let world = World::of(parts, 3, size, steep);
        let (kernel, reader, exact) = (world.kernel(), world.model.reader().expect("a reader"), Exact::of(&world));
        let some: Vec<Order> = orders(size.0, size.1).into_iter().step_by(41).collect();
        let listed = Orders::of(size.0, size.1, &some).expect("orders");
        for (page, items, point) in world.visits() {
            let visit = Visit { items: &items, ..world.dataset.visit(page) };
            let (values, clicked) = (world.dataset.values(&items), world.clicked(visit.history));
            let history = kernel.encode(&pages(&clicked), &mut scratch).expect("a history");
            let request = RerankRequest { shopper: Some(visit.shopper), items: &values, point: &point };
            let of_kernel = kernel.score(&request, &history, &listed, &mut scratch).expect("scores").clicks;
            let of_candle = reader.clicks(&world.dataset, &visit, &point, &some).expect("clicks");
            let seen = Seen { shopper: visit.shopper, items: &values, point: &point, clicked: &clicked };
            let wanted = some.iter().flat_map(|order| exact.clicks(&seen, order));
            for ((wanted, kernel), candle) in wanted.zip(of_kernel).zip(&of_candle) {
                let off = [f64::from(*kernel), *candle].map(|got| (got - wanted).abs());
                assert!(off.iter().all(|off| *off < 5e-6), "{parts:?}, {size:?}, steep {steep}, page {page}: off by {off:?}");
            }
        }
    }
}

#[test]
fn an_unknown_shopper_is_nobody_in_particular() {
    let world = World::new(1, (5, 5), 1.0);
    let (kernel, mut scratch) = (world.kernel(), Scratch::default());
    let (all, none) = (Orders::all(5, 5).expect("orders"), kernel.encode(&[], &mut scratch).expect("no history"));
    let (_, items, point) = world.visits().remove(0);
    let values = world.dataset.values(&items);
    let request = RerankRequest { shopper: None, items: &values, point: &point };
    let of_nobody = kernel.score(&request, &none, &all, &mut scratch).expect("scores").clicks.to_vec();
    let known = RerankRequest { shopper: Some(3), ..request };
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
                let request = RerankRequest { shopper: Some(visit.shopper), items: &values, point: &point };
                let interest = selector.encode(&kernel, &pages(&clicked)).expect("an interest");
                for most in [1, 10, 100, 1_000] {
                    let got =
                        selector.select(&kernel, &request, &interest, &listed, Wanted { most, at_ms: visit.at_ms }, &mut scratch);
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
            let request = RerankRequest { shopper: Some(visit.shopper), items: &values, point: &point };
            let history = kernel.encode(&pages(&world.clicked(visit.history)), &mut scratch).expect("a history");
            let scores = kernel.score(&request, &history, &listed, &mut scratch).expect("scores");
            let best = listed.get(scores.best).to_vec();
            let (highest, scores) = (scores.values[scores.best], scores.values.to_vec());
            let first = scores[0];
            let arranged = kernel.arrange(&request, &history, calls_max, &mut scratch).expect("an order");
            if count(size.0, size.1) <= EXACT_MAX {
                assert_eq!((arranged.order, arranged.value, arranged.calls), (&best[..], highest, listed.len()));
            } else {
                assert_eq!(arranged.calls, calls_max);
                assert!((first..=highest).contains(&arranged.value), "{} is not from {first} to {highest}", arranged.value);
                let place = (0..listed.len()).find(|place| listed.get(*place) == arranged.order).expect("one of all orders");
                let off = (scores[place] - arranged.value).abs();
                assert!(off < 1e-5, "the order is worth {}, {} was said", scores[place], arranged.value);
            }
        }
    }
}
