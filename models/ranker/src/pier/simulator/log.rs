//! What a shop would have in its log: pages in an order that a randomised policy gave them, and the clicks.

use rand::RngExt;

use super::{CandidateSet, Catalogue, Product, SLATE, Truth};
use crate::{pier::Order, random::stream};

const ARRANGE_STREAM: u64 = 61;
const CLICK_STREAM: u64 = 62;
/// How much the logging policy prefers what is popular: the odds of the most popular product against the least for a place are e to this.
const PREFERENCE: f64 = 2.0;

/// A page that was shown.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Who saw what.
    pub candidates: CandidateSet,
    /// The order in which it was shown: which candidate stands at each place.
    pub order: Order,
    /// The probability that the logging policy had given this order.
    pub propensity: f64,
    /// Whether the item at each place was clicked.
    pub clicks: [bool; SLATE],
}

/// The page of a visit: arranged by the logging policy, answered by the truth. `seed` is the log's.
pub fn page(catalogue: &Catalogue, truth: &Truth, candidates: CandidateSet, seed: u64) -> Page {
    let products = catalogue.of(&candidates);
    let (order, propensity) = arrange(&products, &[seed, candidates.shopper, candidates.session]);
    let mut rng = stream(&[CLICK_STREAM, seed, candidates.shopper, candidates.session]);
    let shopper = truth.shopper(candidates.shopper, candidates.session);
    let clicks = truth.clicks(&shopper, &products, &order).map(|probability| rng.random::<f64>() < probability);
    Page { candidates, order, propensity, clicks }
}

/// An order that the logging policy draws, and its probability. Places are filled from the first on, popular products being likelier (the model of
/// Plackett and Luce); every order is possible. It sees what everybody sees, and nothing else.
pub fn arrange(products: &[&Product; SLATE], seeds: &[u64]) -> (Order, f64) {
    let mut rng = stream(&[&[ARRANGE_STREAM], seeds].concat());
    let mut left: Vec<usize> = (0..SLATE).collect();
    let mut order = Order::with_capacity(SLATE);
    while !left.is_empty() {
        let mut dice = rng.random::<f64>() * left.iter().map(|item| weight(products[*item])).sum::<f64>();
        let chosen = left.iter().position(|item| {
            dice -= weight(products[*item]);
            dice < 0.0
        });
        order.push(left.remove(chosen.unwrap_or(left.len() - 1)));
    }
    let propensity = propensity(products, &order);
    (order, propensity)
}

/// The probability of an order under the logging policy.
pub fn propensity(products: &[&Product; SLATE], order: &Order) -> f64 {
    let weights: Vec<f64> = order.iter().map(|item| weight(products[*item])).collect();
    (0..weights.len()).map(|place| weights[place] / weights[place..].iter().sum::<f64>()).product()
}

fn weight(product: &Product) -> f64 {
    (PREFERENCE * product.popularity).exp()
}
