//! What a trained model is worth: on the test pages as they were shown, and on all orders of some of them.

use anyhow::Result;
use endcap_evaluation::mean;
use endcap_ranker::pier::{Kind, Model, Order, PLACES, auc, best, best_first, known, log_loss, log_odds, of_page, value_ratio};

use super::{Stop, keep::Outcome, world::World};

/// Area under the curve and loss of a model on the test pages; expected ones too where the truth is known.
pub(super) fn accuracy(model: &Model, world: &World, point: &[f32], outcome: &mut Outcome) -> Result<()> {
    let data = &world.dataset;
    let log_odds = model.reader()?.shown(data, point, &data.test)?;
    let (of_known, clicks) = known(data, &data.test, &log_odds);
    outcome.set("log_loss", log_loss(&of_known, &clicks));
    if let Some(auc) = auc(&of_known, &clicks) {
        outcome.set("auc", auc);
    }
    let Some(shop) = &world.shop else { return Ok(()) };
    let shown: Order = (0..PLACES).collect();
    let probabilities = data.test.iter().flat_map(|page| {
        let visit = data.visit(*page);
        shop.clicks(visit.shopper, visit.at_ms, visit.items, std::slice::from_ref(&shown))
    });
    let probabilities: Vec<f64> = probabilities.collect();
    outcome.set("log_loss_expected", log_loss(&log_odds, &probabilities));
    if let Some(auc) = auc(&log_odds, &probabilities) {
        outcome.set("auc_expected", auc);
    }
    if model.kind() == Kind::Dnn {
        truth(world, &probabilities, outcome);
    }
    Ok(())
}

/// What could be reached at most: the figures of the truth itself, whose click probabilities of the test pages these are.
fn truth(world: &World, probabilities: &[f64], outcome: &mut Outcome) {
    let of_all: Vec<f32> = probabilities.iter().copied().map(log_odds).collect();
    let (of_known, clicks) = known(&world.dataset, &world.dataset.test, &of_all);
    outcome.set("truth.log_loss", log_loss(&of_known, &clicks));
    outcome.set("truth.log_loss_expected", log_loss(&of_all, probabilities));
    let areas = [("truth.auc", auc(&of_known, &clicks)), ("truth.auc_expected", auc(&of_all, probabilities))];
    for (name, auc) in areas.into_iter().filter_map(|(name, auc)| Some((name, auc?))) {
        outcome.set(name, auc);
    }
    outcome.set("truth.ratio", 1.0);
}

/// V/V* of the order that a model likes best, over the slates; a point-wise model's has the best items first. Beside a point-wise one stands
/// what an order by chance has.
pub(super) fn arranging(model: &Model, world: &World, point: &[f32], stop: Stop, outcome: &mut Outcome) -> Result<()> {
    let reader = model.reader()?;
    let (mut ratio, mut chance) = (0.0, 0.0);
    for page in &world.slates {
        stop.heed()?;
        let Some(truth) = world.truth(*page) else { return Ok(()) };
        let visit = world.dataset.visit(*page);
        let chosen = if model.kind().is_pointwise() {
            let scores: Vec<f64> = reader.shown(&world.dataset, point, &[*page])?.into_iter().map(f64::from).collect();
            world.orders.binary_search(&best_first(&scores)).ok()
        } else {
            best(&reader.values(&world.dataset, &visit, of_page(point, *page), &world.orders)?)
        };
        ratio += value_ratio(chosen.unwrap_or(0), &truth);
        chance += mean(&(0..truth.len()).map(|order| value_ratio(order, &truth)).collect::<Vec<_>>());
    }
    outcome.set("ratio", ratio / world.slates.len() as f64);
    if model.kind().is_pointwise() {
        outcome.set("chance.ratio", chance / world.slates.len() as f64);
    }
    Ok(())
}
