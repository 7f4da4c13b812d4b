//! Five of ten candidates: 30,240 orders, too many to evaluate for a page. Ways to choose which to ask the evaluator about, at the same number of
//! orders asked about.

use anyhow::Result;
use endcap_ranker::{
    pier::{
        Fpsm, Kind, Model, Order, PLACES, PierError, Visit, beam, best, best_of, count, guided, orders, probability,
        random_choice, value_ratio,
    },
    seed,
};

use super::{
    Stop,
    candidates::place_rates,
    keep::{Keep, Outcome},
    plan::{POINT, Scale},
    world::World,
};

/// Candidates of a visit.
pub(super) const CANDIDATES: usize = 10;
/// Orders that the evaluator is asked about.
pub(super) const CALLS: [usize; 4] = [50, 100, 300, 1_000];
/// Ways to choose them.
pub(super) const WAYS: [&str; 4] = ["random", "fpsm", "beam", "guided"];
/// Orders of the beam that the guided search begins with.
const START: usize = 10;

/// Adds for each way and number of calls how often it has the evaluator's best order, what the evaluator expects of its choice over what it
/// expects of the best (`self_ratio`), and V/V*; and V/V* of the evaluator's best of all.
pub(super) fn search(
    world: &World,
    model: &Model,
    fpsm: &Fpsm,
    keep: &Keep,
    scale: &Scale,
    stop: Stop,
    outcome: &mut Outcome,
) -> Result<()> {
    let Some(shop) = &world.shop else { return Ok(()) };
    let (scorer, reader) = (world.model(keep, POINT, Kind::Dnn)?, model.reader()?);
    let (scorer, rates) = (scorer.reader()?, place_rates(world, world.point(keep)?));
    let all = orders(CANDIDATES, PLACES);
    debug_assert_eq!(all.len(), count(CANDIDATES, PLACES));
    let pages = &world.slates[..world.slates.len().min(scale.searches)];
    for page in pages {
        stop.heed()?;
        let of_page = world.dataset.visit(*page);
        let items = shop.candidates(of_page.shopper, of_page.at_ms, CANDIDATES);
        let visit = Visit { items: &items, ..of_page };
        let point = scorer.point(&world.dataset, &visit)?;
        let values = reader.values(&world.dataset, &visit, &point, &all)?;
        let truth = shop.values(visit.shopper, visit.at_ms, &items, &all);
        let place_of = |order: &Order| all.binary_search(order).ok();
        let highest = best(&values).unwrap_or(0);
        let mut add = |name: String, figure: f64| *outcome.figures.entry(name).or_default() += figure / pages.len() as f64;
        add("all.ratio".to_owned(), value_ratio(highest, &truth));
        let scores: Vec<f64> = point.iter().map(|score| probability(*score)).collect();
        let nearest = fpsm.select(model.weights(), &world.dataset, &visit, &all, CALLS[CALLS.len() - 1]);
        for calls in CALLS {
            let start = beam(&scores, &rates, START);
            // The evaluator has been asked about all of them already.
            let ask = |orders: &[Order]| -> Result<Vec<f64>, PierError> {
                Ok(orders.iter().filter_map(place_of).map(|place| values[place]).collect())
            };
            let found = guided(CANDIDATES, &start, calls, ask)?;
            let chance = random_choice(all.len(), calls, seed(&[world.seed, u64::from(*page), calls as u64]));
            let likely: Vec<usize> = beam(&scores, &rates, calls).iter().filter_map(place_of).collect();
            let of = |places: &[usize]| best_of(places, &values);
            let of_ways = [of(&chance), of(&nearest[..calls]), of(&likely), place_of(&found.order)];
            for (way, place) in WAYS.iter().zip(of_ways) {
                let place = place.unwrap_or(0);
                add(format!("{way}.hr_self@{calls}"), f64::from(values[place] >= values[highest]));
                add(format!("{way}.self_ratio@{calls}"), value_ratio(place, &values));
                add(format!("{way}.ratio@{calls}"), value_ratio(place, &truth));
            }
        }
    }
    Ok(())
}
