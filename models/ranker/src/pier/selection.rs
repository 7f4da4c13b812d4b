//! FPSM over the embeddings of a model.

use candle_core::{D, Device, Result, Tensor};

use super::{
    Order,
    batch::Batch,
    dataset::{Dataset, HISTORY, PLACES, Visit},
    fpsm::{Behaviour, Places, SimHash, Ties, distances, encode_places, history, represent, select, time_weights},
    model::{AS_SHOWN, pooled},
    net::{Graph, Weights, angle},
    nets::DIMS,
};
use crate::seed;

/// Added to squared lengths, which may be nothing.
const LENGTH_MIN: f64 = 1e-12;

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

impl FpsmSetting {
    /// How the orders of a visit that lie equally near come.
    pub(crate) fn ties(&self, shopper: u64, at_ms: i64) -> Ties {
        match self.ties_by_rank {
            true => Ties::InitialRank,
            false => Ties::Drawn(seed(&[self.seed, shopper, at_ms as u64])),
        }
    }

    /// Weights of a history's slots (w_m of Eq. 5).
    pub(crate) fn weigh(&self, history: &[Option<Behaviour>]) -> Vec<f32> {
        time_weights(history, self.half_life_ms.unwrap_or(f64::INFINITY))
    }
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
        let history = behaviours(dataset, visit.history, |page| {
            represent(&AS_SHOWN.to_vec(), &pooled(weights, dataset, &dataset.pages[page as usize].items), &self.places)
        });
        let (time, ties) = (self.setting.weigh(&history), self.setting.ties(u64::from(visit.shopper), visit.at_ms));
        select(&distances(&self.hash, &representations, &history, &time), most, ties)
    }

    /// Weights of a history's slots (w_m of Eq. 5), `[HISTORY]`.
    pub(crate) fn time_weights(&self, dataset: &Dataset, pages: &[u32]) -> Vec<f32> {
        self.setting.weigh(&behaviours(dataset, pages, |_| Vec::new()))
    }

    /// Distances of the first `rows` pages of a batch from their histories, `[rows]`, in bits: the mean of Eq. 5 over all hash functions that could
    /// be drawn, which is their bits times the angle between two representations over π (Charikar, 2002), and has a gradient. `time` has
    /// the weights of the slots, `[visits, HISTORY]`, of visits with as many rows each.
    pub(crate) fn expected_distances(&self, graph: &Graph, batch: &Batch, rows: usize, time: &[f32]) -> Result<Tensor> {
        let all = self.representations(graph, batch)?;
        let behaviours = batch.spread_histories(&all.narrow(0, batch.len(), batch.history_len())?.contiguous()?, false)?;
        let behaviours = behaviours.reshape((batch.len(), HISTORY, DIMS))?.narrow(0, 0, rows)?;
        let cosines = behaviours.broadcast_mul(&all.narrow(0, 0, rows)?.unsqueeze(1)?)?.sum(D::Minus1)?;
        let each = rows * HISTORY / time.len().max(1);
        let time: Vec<f32> = time.chunks_exact(HISTORY).flat_map(|slots| slots.repeat(each)).collect();
        let time = Tensor::from_vec(time, (rows, HISTORY), &Device::Cpu)?;
        (angle(&cosines)? * time)?.sum(D::Minus1)? * (self.setting.bits as f64 / std::f64::consts::PI)
    }

    /// h of the batch's pages and of their histories' pages (Eq. 3), of length 1, `[N + H, D]`.
    fn representations(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let fields = batch.fields();
        let mut pooled = batch.field(graph, 0, true)?;
        for field in 1..fields {
            pooled = (pooled + batch.field(graph, field, true)?)?;
        }
        let places = Tensor::from_slice(&self.places, (1, PLACES, DIMS), &Device::Cpu)?;
        let pages = pooled.reshape((batch.len() + batch.history_len(), PLACES, DIMS))?;
        // Means are sums but for a factor, and lengths go.
        let h = pages.broadcast_mul(&places)?.sum(1)?;
        let length = (h.sqr()?.sum_keepdim(D::Minus1)? + LENGTH_MIN)?.sqrt()?;
        h.broadcast_div(&length)
    }
}

/// A history of pages, newest first, with the representation that `h` gives each.
fn behaviours(dataset: &Dataset, pages: &[u32], h: impl Fn(u32) -> Vec<f32>) -> Vec<Option<Behaviour>> {
    let behaviour = |page: &u32| Behaviour { h: h(*page), at_ms: dataset.pages[*page as usize].at_ms };
    history(pages.iter().map(behaviour), HISTORY)
}
