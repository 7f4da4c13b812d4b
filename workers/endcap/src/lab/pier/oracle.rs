//! What a history can tell of the best order: selections by whoever knows the truth about looks, or about the shopper's interest in them, with
//! nothing trained. FPSM's own rule is among them, over true looks in the place of what embeddings tell of them.

use anyhow::Result;
use endcap_ranker::{
    pier::{
        Dataset, HISTORY, Order, PLACES, best_of,
        fpsm::{BITS_MAX, Behaviour, SimHash, Ties, distances, history, select, time_weights},
        hits, random_choice,
        simulator::{LOOKS, Shop, ShopSize},
        value_ratio,
    },
    seed,
};

use super::{
    Stop,
    keep::Outcome,
    plan::{ALL, PAPER_MOST, Scale},
    work::HALF_LIFE_MS,
    world::{SHOP_SEED, World},
};

/// Selections, from those that know nothing to those that know much, and what they are called.
pub(super) const ORACLES: [(&str, &str); 6] = [
    ("chance", "chance"),
    ("nearest", "nearest to clicked pages, by their true looks"),
    ("nearest_centred", "nearest to clicked pages, by true looks less the usual ones"),
    ("alike", "most of what clicked pages had more of than others, in true looks"),
    ("interest", "what the shopper likes in truth, by looks alone"),
    ("items", "best in truth, but for the interest in looks"),
];
/// A shop of so many of the shoppers will do, as nothing is trained.
const SHARE: u32 = 5;

/// Adds how often each selection of the paper's K has the best order, and V/V* of the best that it has, where the interest in arrangements
/// counts so many `times` as much as in the shop of the other tables.
pub(super) fn oracle(world: &World, times: f64, scale: &Scale, stop: Stop, outcome: &mut Outcome) -> Result<()> {
    let size = ShopSize { shoppers: (scale.shop.shoppers / SHARE).max(1), ..scale.shop };
    let shop = Shop::new(seed(&[world.seed, SHOP_SEED]), size).with_interest(times);
    let world = World::new(world.seed, shop.dataset()?, Some(shop), scale);
    let Some(shop) = &world.shop else { return Ok(()) };
    let usual =
        weighted_sum(world.slates.iter().map(|page| (shown(&world.dataset, shop, *page), 1.0 / world.slates.len() as f64)));
    for page in &world.slates {
        stop.heed()?;
        let Some(truth) = world.truth(*page) else { continue };
        for ((name, _), selected) in ORACLES.iter().zip(selections(&world, shop, *page, &usual)) {
            let mut add = |what: &str, figure: f64| {
                let name = format!("{name}.{what}@{PAPER_MOST}");
                *outcome.figures.entry(name).or_default() += figure / world.slates.len() as f64;
            };
            add("hr_true", f64::from(hits(&selected, &truth)));
            add("ratio", value_ratio(best_of(&selected, &truth).unwrap_or(0), &truth));
        }
    }
    Ok(())
}

/// The selections of [`ORACLES`] for a page; `usual` are the looks of pages on the whole.
fn selections(world: &World, shop: &Shop, page: u32, usual: &Looks) -> [Vec<usize>; 6] {
    let (data, visit) = (&world.dataset, world.dataset.visit(page));
    let looks = shop.looks(visit.items, &world.orders);
    let clicked: Vec<(i64, Looks)> =
        visit.history.iter().map(|page| (data.pages[*page as usize].at_ms, shown(data, shop, *page))).collect();
    let hash = SimHash::new(HISTORY, BITS_MAX, LOOKS, world.seed);
    let slots = |less: &Looks| {
        let behaviour = |(at_ms, looks): &(i64, Looks)| Behaviour { h: numbers(looks, less), at_ms: *at_ms };
        history(clicked.iter().map(behaviour), HISTORY)
    };
    let weights = time_weights(&slots(usual), HALF_LIFE_MS);
    let nearest = |less: &Looks| {
        let of_orders: Vec<Vec<f32>> = looks.iter().map(|looks| numbers(looks, less)).collect();
        distances(&hash, &of_orders, &slots(less), &weights)
    };
    // Of nobody who has clicked on nothing is anything known.
    let known = f64::from(weights.iter().sum::<f32>());
    let of_clicked = weighted_sum(clicked.iter().zip(&weights).map(|((_, looks), weight)| (*looks, f64::from(*weight))));
    let more: Looks = std::array::from_fn(|look| of_clicked[look] - known * usual[look]);
    let by_looks = |liked: Looks| -> Vec<f32> {
        let of_order = |looks: &Looks| -looks.iter().zip(liked).map(|(look, liked)| look * liked).sum::<f64>() as f32;
        looks.iter().map(of_order).collect()
    };
    let by_items = shop.values_without_interest(visit.shopper, visit.at_ms, visit.items, &world.orders);
    let drawn = seed(&[world.seed, u64::from(page)]);
    let first = |distances: &[f32]| select(distances, PAPER_MOST, Ties::Drawn(drawn));
    [
        random_choice(ALL, PAPER_MOST, drawn),
        first(&nearest(&[0.0; LOOKS])),
        first(&nearest(usual)),
        first(&by_looks(more)),
        first(&by_looks(shop.interest(visit.shopper, visit.at_ms))),
        first(&by_items.iter().map(|value| -value as f32).collect::<Vec<_>>()),
    ]
}

type Looks = [f64; LOOKS];

/// Looks of a page as it was shown.
fn shown(data: &Dataset, shop: &Shop, page: u32) -> Looks {
    let order: Order = (0..PLACES).collect();
    shop.looks(&data.pages[page as usize].items, &[order])[0]
}

/// Looks less others.
fn numbers(looks: &Looks, less: &Looks) -> Vec<f32> {
    looks.iter().zip(less).map(|(look, less)| (look - less) as f32).collect()
}

/// Sum of looks times their weights.
fn weighted_sum(looks: impl Iterator<Item = (Looks, f64)>) -> Looks {
    looks.fold([0.0; LOOKS], |sum, (looks, weight)| std::array::from_fn(|look| sum[look] + weight * looks[look]))
}
