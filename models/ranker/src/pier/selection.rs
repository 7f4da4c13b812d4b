//! FPSM over the embeddings of a model.

use super::{
    Order,
    dataset::{Dataset, HISTORY, Visit},
    fpsm::{Behaviour, Places, SimHash, Ties, distances, encode_places, history, represent, select, time_weights},
    model::{AS_SHOWN, pooled},
    net::Weights,
    nets::DIMS,
};
use crate::seed;

/// How FPSM selects.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FpsmSetting {
    /// How places are written into a representation.
    pub places: Places,
    /// Bits of a hash.
    pub bits: usize,
    /// Age in which a behaviour loses half its weight, in milliseconds; without, all weigh the same (table 4's ablation).
    pub half_life_ms: Option<f64>,
    /// Whether equal distances stay in the order in which the orders come, instead of being drawn.
    pub ties_by_rank: bool,
    /// Seed of the hash functions and of ties.
    pub seed: u64,
}

/// FPSM (section 4.1) with its hash functions, which are drawn once and not trained.
pub struct Fpsm {
    setting: FpsmSetting,
    hash: SimHash,
    places: Vec<f32>,
}

impl Fpsm {
    /// Draws the hash functions.
    pub fn new(setting: FpsmSetting) -> Self {
        let hash = SimHash::new(HISTORY, setting.bits, DIMS, setting.seed);
        Self { setting, hash, places: encode_places(AS_SHOWN.len(), DIMS, setting.places) }
    }

    /// Places among `orders` of the `most` that lie nearest to what the visit's shopper clicked on, by the embeddings of `weights`.
    pub fn select(&self, weights: &Weights, dataset: &Dataset, visit: &Visit, orders: &[Order], most: usize) -> Vec<usize> {
        let items = pooled(weights, dataset, visit.items);
        let representations: Vec<Vec<f32>> = orders.iter().map(|order| represent(order, &items, &self.places)).collect();
        let clicked = visit.history.iter().map(|page| {
            let page = &dataset.pages[*page as usize];
            let h = represent(&AS_SHOWN.to_vec(), &pooled(weights, dataset, &page.items), &self.places);
            Behaviour { h, at_ms: page.at_ms }
        });
        let history = history(clicked, HISTORY);
        let time = time_weights(&history, self.setting.half_life_ms.unwrap_or(f64::INFINITY));
        let ties = match self.setting.ties_by_rank {
            true => Ties::InitialRank,
            false => Ties::Drawn(seed(&[self.setting.seed, u64::from(visit.shopper), visit.at_ms as u64])),
        };
        select(&distances(&self.hash, &representations, &history, &time), most, ties)
    }
}
