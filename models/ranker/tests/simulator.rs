//! The simulator: what the log may know, what arranging is worth, and selections that need no model.

use endcap_ranker::{
    pier::{
        Order, best, hits, orders, random_choice,
        simulator::{Catalogue, CatalogueSize, SLATE, Shop, ShopSize, Truth, arrange, page, propensity},
        value_ratio,
    },
    seed,
};

const SEED: u64 = 5;

fn shop() -> (Catalogue, Truth) {
    let catalogue = Catalogue::new(SEED, CatalogueSize::default());
    let truth = Truth::new(SEED, &catalogue);
    (catalogue, truth)
}

/// True values of every order of a visit's candidates: the clicks to be expected of it.
fn values(catalogue: &Catalogue, truth: &Truth, shopper: u64, session: u64) -> Vec<f64> {
    let set = catalogue.candidate_set(shopper, session);
    let (products, shopper) = (catalogue.of(&set), truth.shopper(shopper, session));
    orders(SLATE, SLATE).iter().map(|order| truth.clicks(&shopper, &products, order).iter().sum()).collect()
}

#[test]
fn pages_are_a_function_of_their_seeds_and_the_policy_that_arranged_them_does_not_know_the_truth() {
    let (catalogue, truth) = shop();
    let another = Truth::new(SEED + 1, &catalogue);
    let (mut clicks, mut other_clicks, mut times) = (0, 0, Vec::new());
    for session in 0..400 {
        let page_by = |truth: &Truth| page(&catalogue, truth, catalogue.candidate_set(1, session), SEED);
        let (one, two) = (page_by(&truth), page_by(&another));
        assert_eq!(one, page_by(&truth), "seed {SEED}, session {session}");
        assert_eq!(
            (&one.order, one.propensity, &one.candidates),
            (&two.order, two.propensity, &two.candidates),
            "the truth shows in the log"
        );
        let mut products = one.candidates.products.to_vec();
        products.sort_unstable();
        products.dedup();
        assert_eq!(products.len(), SLATE);
        times.push(one.candidates.at_ms);
        clicks += one.clicks.iter().filter(|click| **click).count();
        other_clicks += two.clicks.iter().filter(|click| **click).count();
    }
    assert!(times.is_sorted());
    assert_ne!(clicks, other_clicks, "another truth has the same clicks");
}

#[test]
fn every_order_is_logged_as_often_as_its_propensity_says() {
    const PAGES: u64 = 60_000;
    let (catalogue, _) = shop();
    let set = catalogue.candidate_set(3, 1);
    let (products, all) = (catalogue.of(&set), orders(SLATE, SLATE));
    let total: f64 = all.iter().map(|order| propensity(&products, order)).sum();
    assert!((total - 1.0).abs() < 1e-12, "the propensities of all orders come to {total}");
    let mut counts = vec![0_u64; all.len()];
    for draw in 0..PAGES {
        let (order, of_order) = arrange(&products, &[SEED, draw]);
        let place = all.binary_search(&order).expect("an order of the slate");
        assert_eq!(of_order, propensity(&products, &order));
        counts[place] += 1;
    }
    let surprise: f64 = all.iter().zip(&counts).fold(0.0, |sum, (order, count)| {
        let expected = PAGES as f64 * propensity(&products, order);
        sum + (*count as f64 - expected).powi(2) / expected
    });
    // χ² with 119 degrees of freedom: mean 119, standard deviation 15.4.
    assert!((60.0..190.0).contains(&surprise), "χ² {surprise}, seed {SEED}");
}

#[test]
fn clicks_are_as_many_as_the_truth_says_and_fewer_further_down() {
    const VISITS: u64 = 20_000;
    let (catalogue, truth) = shop();
    let (mut clicked, mut expected, mut variance) = ([0.0; SLATE], [0.0; SLATE], [0.0; SLATE]);
    for visit in 0..VISITS {
        let page = page(&catalogue, &truth, catalogue.candidate_set(visit, 2), SEED);
        let probabilities = truth.clicks(&truth.shopper(visit, 2), &catalogue.of(&page.candidates), &page.order);
        for place in 0..SLATE {
            clicked[place] += f64::from(page.clicks[place]);
            expected[place] += probabilities[place];
            variance[place] += probabilities[place] * (1.0 - probabilities[place]);
        }
    }
    for place in 0..SLATE {
        let off = (clicked[place] - expected[place]).abs();
        assert!(off < 4.0 * variance[place].sqrt(), "place {place}: {clicked:?} clicks, {expected:?} expected, seed {SEED}");
    }
    assert!(expected.is_sorted_by(|a, b| a > b), "{expected:?}");
    let rate = expected.iter().sum::<f64>() / (VISITS as usize * SLATE) as f64;
    assert!((0.08..0.3).contains(&rate), "click rate {rate}");
}

#[test]
fn arranging_is_worth_something_and_by_items_alone_it_is_half_done() {
    const VISITS: u64 = 2_000;
    let ((catalogue, truth), all) = (shop(), orders(SLATE, SLATE));
    let (mut by_chance, mut by_items, mut worst) = (0.0, 0.0, 0.0);
    for visit in 0..VISITS {
        let set = catalogue.candidate_set(visit, 3);
        let (products, shopper) = (catalogue.of(&set), truth.shopper(visit, 3));
        let values = values(&catalogue, &truth, visit, 3);
        let best = values[best(&values).expect("there are orders")];
        by_chance += values.iter().sum::<f64>() / values.len() as f64 / best / VISITS as f64;
        worst += values.iter().copied().fold(f64::MAX, f64::min) / best / VISITS as f64;
        // The best that can be known of an item by itself: its clicks over all orders.
        let mut alone = [0.0; SLATE];
        for order in &all {
            order.iter().zip(truth.clicks(&shopper, &products, order)).for_each(|(item, click)| alone[*item] += click);
        }
        let mut by_item: Order = (0..SLATE).collect();
        by_item.sort_by(|a, b| alone[*b].total_cmp(&alone[*a]));
        by_items += value_ratio(all.binary_search(&by_item).expect("an order"), &values) / VISITS as f64;
    }
    println!("V/V*: worst {worst:.3}, by chance {by_chance:.3}, by items alone {by_items:.3}, seed {SEED}");
    assert!(worst < 0.6 && (0.68..0.8).contains(&by_chance), "worst {worst}, by chance {by_chance}, seed {SEED}");
    assert!(by_chance + 0.05 < by_items && by_items < 0.9, "by chance {by_chance}, by items {by_items}, seed {SEED}");
}

#[test]
fn a_random_choice_of_k_hits_in_k_of_120_and_all_orders_hit_always() {
    const VISITS: u64 = 6_000;
    let (catalogue, truth) = shop();
    let all: Vec<usize> = (0..120).collect();
    let values: Vec<Vec<f64>> = (0..VISITS).map(|visit| values(&catalogue, &truth, visit % 500, visit / 500)).collect();
    for most in [1, 5, 10, 20, 50, 119, 120] {
        let hit = |(visit, values): (usize, &Vec<f64>)| hits(&random_choice(120, most, seed(&[SEED, visit as u64])), values);
        let hit = values.iter().enumerate().filter(|visit| hit(*visit)).count() as f64 / VISITS as f64;
        let chance = most as f64 / 120.0;
        let error = (chance * (1.0 - chance) / VISITS as f64).sqrt();
        assert!((hit - chance).abs() <= 3.0 * error, "{most} of 120 hit in {hit}, seed {SEED}");
    }
    for values in &values {
        assert!(hits(&all, values));
        assert_eq!(value_ratio(best(values).expect("there are orders"), values), 1.0);
    }
}

#[test]
fn interest_counts_as_many_times_as_is_said_and_is_all_that_looks_are_about() {
    let size = ShopSize { shoppers: 20, sessions: 8, history_sessions: 2, test_sessions: 2 };
    let of_times = |times: f64| Shop::new(SEED, size).with_interest(times);
    let (shop, none, much, all) = (Shop::new(SEED, size), of_times(0.0), of_times(1e4), orders(SLATE, SLATE));
    let dataset = shop.dataset().expect("a log");
    for page in &dataset.test {
        let visit = dataset.visit(*page);
        let values = |shop: &Shop| shop.values(visit.shopper, visit.at_ms, visit.items, &all);
        let without = shop.values_without_interest(visit.shopper, visit.at_ms, visit.items, &all);
        assert_eq!(without, values(&none));
        assert_ne!(without, values(&shop));
        // Where nothing else counts, orders are clicked on by everybody or by nobody, as the shopper likes their looks.
        let interest = shop.interest(visit.shopper, visit.at_ms);
        for (value, looks) in values(&much).iter().zip(shop.looks(visit.items, &all)) {
            let liked: f64 = interest.iter().zip(looks).map(|(interest, look)| interest * look).sum();
            let wanted = if liked > 0.0 { SLATE as f64 } else { 0.0 };
            assert!(liked.abs() < 0.01 || (value - wanted).abs() < 1e-3, "seed {SEED}, page {page}: {value}, liked {liked}");
        }
    }
}
