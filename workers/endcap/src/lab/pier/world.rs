//! The data of one seed, and what every unit of work needs of it.

use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use endcap_ranker::{
    pier::{Dataset, Kind, Model, Order, PLACES, orders, simulator::Shop},
    seed,
};

use super::{
    keep::Keep,
    plan::{POINT, Scale},
};

pub(super) const SHOP_SEED: u64 = 1;

/// Data, and the truth where it is known.
pub(super) struct World {
    /// Of what it is, and of what is trained on it.
    pub(super) seed: u64,
    pub(super) dataset: Dataset,
    pub(super) shop: Option<Shop>,
    /// All orders of a page.
    pub(super) orders: Vec<Order>,
    /// Test pages whose orders are all evaluated.
    pub(super) slates: Vec<u32>,
    point: OnceLock<Vec<f32>>,
}

impl World {
    /// A shop of this seed.
    pub(super) fn simulated(seed_of_run: u64, scale: &Scale) -> Result<Self> {
        let shop = Shop::new(seed(&[seed_of_run, SHOP_SEED]), scale.shop);
        let dataset = shop.dataset()?;
        Ok(Self::new(seed_of_run, dataset, Some(shop), scale))
    }

    /// Data whose truth nobody knows.
    pub(super) fn new(seed: u64, dataset: Dataset, shop: Option<Shop>, scale: &Scale) -> Self {
        let step = (dataset.test.len() / scale.slates).max(1);
        let slates = dataset.test.iter().copied().step_by(step).take(scale.slates).collect();
        Self { seed, dataset, shop, orders: orders(PLACES, PLACES), slates, point: OnceLock::new() }
    }

    /// Point-wise log-odds of all pages, `[pages · PLACES]`, of the model that was trained for it.
    pub(super) fn point(&self, keep: &Keep) -> Result<&[f32]> {
        if self.point.get().is_none() {
            let model = self.model(keep, POINT, Kind::Dnn)?;
            let pages: Vec<u32> = (0..self.dataset.pages.len() as u32).collect();
            let point = model.reader()?.shown(&self.dataset, &[], &pages)?;
            // Whoever came first has computed the same.
            let _ = self.point.set(point);
        }
        self.point.get().map(Vec::as_slice).ok_or_else(|| anyhow!("point-wise scores are not there"))
    }

    /// A model that an earlier unit has trained.
    pub(super) fn model(&self, keep: &Keep, unit: &str, kind: Kind) -> Result<Model> {
        let bytes = keep.weights(unit, self.seed)?;
        Model::from_bytes(kind, &self.dataset.vocabulary, &bytes).with_context(|| {
            format!("cannot use {}: remove it, and it is made anew", keep.weights_path(unit, self.seed).display())
        })
    }

    /// True values of all orders of a page.
    pub(super) fn truth(&self, page: u32) -> Option<Vec<f64>> {
        let visit = self.dataset.visit(page);
        self.shop.as_ref().map(|shop| shop.values(visit.shopper, visit.at_ms, visit.items, &self.orders))
    }
}
