//! What everybody can see: products, and which slates come up for a shopper.

use rand::{RngExt, seq::index};
use rand_chacha::ChaCha8Rng;

use super::{SESSION_MS, SLATE};
use crate::random::stream;

const PRODUCT_STREAM: u64 = 51;
const SLATE_STREAM: u64 = 52;
const CANDIDATE_STREAM: u64 = 53;

/// Fields of a product that a model embeds: id, category, brand, price level.
pub const FIELDS: usize = 4;

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CatalogueSize {
    /// Products.
    pub products: usize,
    /// Categories.
    pub categories: usize,
    /// Brands.
    pub brands: usize,
    /// Price levels, from the cheapest.
    pub prices: usize,
}

impl Default for CatalogueSize {
    fn default() -> Self {
        Self { products: 400, categories: 12, brands: 30, prices: 10 }
    }
}

/// A product as everybody sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Product {
    /// Its number.
    pub id: usize,
    /// Its category.
    pub category: usize,
    /// Its brand.
    pub brand: usize,
    /// Its price level.
    pub price_level: usize,
    /// Its price as a share of the highest, 0…1.
    pub price: f64,
    /// How much it is bought, as a share, 0…1.
    pub popularity: f64,
}

impl Product {
    /// Its fields, as numbers that a model embeds.
    pub fn fields(&self) -> [usize; FIELDS] {
        [self.id, self.category, self.brand, self.price_level]
    }
}

/// Candidates of one visit, in no order that means anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateSet {
    /// Who visits.
    pub shopper: u64,
    /// Which of their visits it is, from 0.
    pub session: u64,
    /// When it is, in milliseconds from the shop's beginning.
    pub at_ms: i64,
    /// Numbers of the products, all different.
    pub products: [usize; SLATE],
}

/// The shop's products.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    seed: u64,
    /// How much there is.
    pub size: CatalogueSize,
    /// The products, by number.
    pub products: Vec<Product>,
}

impl Catalogue {
    /// Draws a catalogue of at least [`SLATE`] products, one category, one brand and two price levels.
    pub fn new(seed: u64, size: CatalogueSize) -> Self {
        let mut rng = stream(&[PRODUCT_STREAM, seed]);
        let mut product = |id: usize| {
            let price_level = rng.random_range(0..size.prices);
            Product {
                id,
                category: rng.random_range(0..size.categories),
                brand: rng.random_range(0..size.brands),
                price_level,
                price: price_level as f64 / (size.prices - 1) as f64,
                popularity: rng.random(),
            }
        };
        Self { seed, size, products: (0..size.products).map(&mut product).collect() }
    }

    /// The candidates of a visit that shows all of them. Most products come from two categories that the visit is about, so that they compete.
    pub fn candidate_set(&self, shopper: u64, session: u64) -> CandidateSet {
        let mut rng = stream(&[SLATE_STREAM, self.seed, shopper, session]);
        let mut products = [0; SLATE];
        products.iter_mut().zip(self.draw(SLATE, &mut rng)).for_each(|(place, product)| *place = product);
        let at_ms = session as i64 * SESSION_MS + rng.random_range(0..SESSION_MS / 2);
        CandidateSet { shopper, session, at_ms, products }
    }

    /// `most` candidates of a visit of which not all can be shown, all different, drawn like those of a set.
    pub fn candidates(&self, shopper: u64, session: u64, most: usize) -> Vec<usize> {
        self.draw(most, &mut stream(&[CANDIDATE_STREAM, self.seed, shopper, session]))
    }

    fn draw(&self, most: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
        let about: [usize; 2] = [rng.random_range(0..self.size.categories), rng.random_range(0..self.size.categories)];
        let weight = |product: usize| if about.contains(&self.products[product].category) { 12.0 } else { 1.0 };
        index::sample_weighted(rng, self.products.len(), weight, most).expect("weights are above zero").into_vec()
    }

    /// The products of a set.
    pub fn of(&self, set: &CandidateSet) -> [&Product; SLATE] {
        set.products.map(|product| &self.products[product])
    }
}
