//! A shop's log as data to train on, and the truth beside it to be judged by.

use super::{Catalogue, CatalogueSize, LOOKS, Product, SESSION_MS, SLATE, Shopper, Truth, page, truth::looks};
use crate::{
    pier::{Cuts, Dataset, Order, PLACES, PageView, PierError, Vocabulary},
    seed,
};

/// How much a shop has in its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShopSize {
    /// Shoppers.
    pub shoppers: u32,
    /// Visits of each, a day apart.
    pub sessions: u64,
    /// Of those, the first ones, which are history alone.
    pub history_sessions: u64,
    /// And the last ones, which are the test. The one before them says when training should end.
    pub test_sessions: u64,
}

/// A shop, its truth and its size.
pub struct Shop {
    catalogue: Catalogue,
    truth: Truth,
    size: ShopSize,
    seed: u64,
}

impl Shop {
    /// Draws a shop.
    pub fn new(shop_seed: u64, size: ShopSize) -> Self {
        let catalogue = Catalogue::new(shop_seed, CatalogueSize::default());
        let truth = Truth::new(seed(&[shop_seed, 1]), &catalogue);
        Self { catalogue, truth, size, seed: shop_seed }
    }

    /// The same shop, but that the interest in arrangements counts so many times as much.
    pub fn with_interest(self, times: f64) -> Self {
        Self { truth: self.truth.with_interest(times), ..self }
    }

    /// The log: what a shop can know.
    ///
    /// # Errors
    /// When the size leaves a part without pages.
    pub fn dataset(&self) -> Result<Dataset, PierError> {
        let CatalogueSize { products, categories, brands, prices } = self.catalogue.size;
        let fields = [products, categories, brands, prices].map(|values| values as u32);
        let items = self.catalogue.products.iter().map(|product| product.fields().map(|value| value as u32).to_vec());
        let visits = (0..u64::from(self.size.shoppers)).flat_map(|who| (0..self.size.sessions).map(move |visit| (who, visit)));
        let pages = visits.map(|(who, visit)| self.view(who, visit)).collect();
        let days = |sessions: u64| sessions as i64 * SESSION_MS;
        let tested = self.size.sessions.saturating_sub(self.size.test_sessions);
        let cuts =
            Cuts { train_ms: days(self.size.history_sessions), valid_ms: days(tested.saturating_sub(1)), test_ms: days(tested) };
        Dataset::new(Vocabulary::new(&fields, self.size.shoppers), &items.collect::<Vec<_>>(), pages, cuts)
    }

    fn view(&self, shopper: u64, session: u64) -> PageView {
        let page = page(&self.catalogue, &self.truth, self.catalogue.candidate_set(shopper, session), self.seed);
        PageView {
            shopper: shopper as u32,
            at_ms: page.candidates.at_ms,
            items: std::array::from_fn(|place| page.candidates.products[page.order[place]] as u32),
            clicks: page.clicks.map(Some),
        }
    }

    /// Numbers of `most` candidates for a visit at `at_ms` that has more to choose from than it can show.
    pub fn candidates(&self, shopper: u32, at_ms: i64, most: usize) -> Vec<u32> {
        let drawn = self.catalogue.candidates(u64::from(shopper), session(at_ms), most);
        drawn.into_iter().map(|product| product as u32).collect()
    }

    /// True click probabilities of orders of candidates, `[orders · PLACES]`.
    pub fn clicks(&self, shopper: u32, at_ms: i64, items: &[u32], orders: &[Order]) -> Vec<f64> {
        self.clicks_of(&self.shopper(shopper, at_ms), items, orders)
    }

    /// True values of orders of candidates: the clicks to be expected of each.
    pub fn values(&self, shopper: u32, at_ms: i64, items: &[u32], orders: &[Order]) -> Vec<f64> {
        values(&self.clicks(shopper, at_ms, items, orders))
    }

    /// What the values would be if the shopper had no interest in arrangements.
    pub fn values_without_interest(&self, shopper: u32, at_ms: i64, items: &[u32], orders: &[Order]) -> Vec<f64> {
        values(&self.clicks_of(&self.shopper(shopper, at_ms).without_interest(), items, orders))
    }

    /// The shopper's true interest in each look of an arrangement at that time.
    pub fn interest(&self, shopper: u32, at_ms: i64) -> [f64; LOOKS] {
        self.shopper(shopper, at_ms).interest
    }

    /// How much orders of candidates truly have of each look.
    pub fn looks(&self, items: &[u32], orders: &[Order]) -> Vec<[f64; LOOKS]> {
        let products = self.products(items);
        orders.iter().map(|order| looks(&std::array::from_fn(|place| products[order[place]]))).collect()
    }

    fn shopper(&self, shopper: u32, at_ms: i64) -> Shopper {
        self.truth.shopper(u64::from(shopper), session(at_ms))
    }

    fn products(&self, items: &[u32]) -> Vec<&Product> {
        items.iter().map(|item| &self.catalogue.products[*item as usize]).collect()
    }

    fn clicks_of(&self, shopper: &Shopper, items: &[u32], orders: &[Order]) -> Vec<f64> {
        let products = self.products(items);
        orders.iter().flat_map(|order| self.truth.clicks(shopper, &products, order)).collect()
    }
}

/// Clicks to be expected of whole pages.
fn values(clicks: &[f64]) -> Vec<f64> {
    clicks.chunks_exact(PLACES).map(|clicks| clicks.iter().sum()).collect()
}

/// A page shows what a slate has.
const _: () = assert!(SLATE == PLACES);

/// The visit that was at that time.
fn session(at_ms: i64) -> u64 {
    (at_ms / SESSION_MS) as u64
}
