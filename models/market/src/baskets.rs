//! What a household puts into its basket: tastes, season, diets, budget and habits.

use endcap_schemas::{Budget, Category, Product, Season};
use rand::{Rng, RngExt};

use crate::{
    Household, Market,
    random::{stream, weighted},
};

/// Share of the lines that follow the household's favourites; the others are what everybody buys.
const FAVOURITE_SHARE: f64 = 0.78;
/// Share of the favourites' lines that are the usual product again.
const HABIT_SHARE: f64 = 0.45;
/// Draws beyond the wanted lines, as some give nothing or a product that is in the basket already.
const EXTRA_DRAWS: usize = 20;
const HABIT_STREAM: u64 = 11;

/// One household at the shelves.
pub(crate) struct Basket<'a> {
    market: &'a Market,
    household: &'a Household,
    season: Season,
}

impl<'a> Basket<'a> {
    pub(crate) fn new(market: &'a Market, household: &'a Household, season: Season) -> Self {
        Self { market, household, season }
    }

    /// `lines` different products, or fewer where the draws repeat too often.
    pub(crate) fn fill<R: Rng>(&self, lines: usize, rng: &mut R) -> Vec<&'a Product> {
        let mut products: Vec<&Product> = Vec::with_capacity(lines);
        for _ in 0..lines + EXTRA_DRAWS {
            if products.len() == lines {
                break;
            }
            if let Some(product) = self.pick(rng).filter(|product| products.iter().all(|other| other.id != product.id)) {
                products.push(product);
            }
        }
        products
    }

    /// One product that the household may have.
    pub(crate) fn pick<R: Rng>(&self, rng: &mut R) -> Option<&'a Product> {
        if rng.random_bool(FAVOURITE_SHARE) {
            let likes = &self.household.favourites;
            let weights: Vec<f32> = likes
                .iter()
                .map(|like| like.weight as f32 * self.market.category(&like.category).map_or(0.0, |leaf| self.lift(leaf)))
                .collect();
            let leaf = self.market.leaf(&likes.get(weighted(rng, &weights)?)?.category)?;
            if rng.random_bool(HABIT_SHARE) {
                // The usual product of the leaf: the same draw every time.
                return self.shelf_pick(leaf, &mut stream(&[HABIT_STREAM, self.household.seed, leaf as u64]));
            }
            return self.shelf_pick(leaf, rng);
        }
        let weight = |category: &Category| match category.violates.intersects(self.household.diets) || category.age_restricted {
            true => 0.0,
            false => category.popularity * self.lift(category),
        };
        let weights: Vec<f32> = self.market.categories.iter().map(weight).collect();
        self.shelf_pick(weighted(rng, &weights)?, rng)
    }

    fn lift(&self, category: &Category) -> f32 {
        1.0 + category.seasons[self.season as usize]
    }

    /// A product of the leaf, by popularity and budget.
    fn shelf_pick<R: Rng>(&self, leaf: usize, rng: &mut R) -> Option<&'a Product> {
        let shelf = self.market.shelf(leaf);
        let mean = shelf.iter().filter_map(|product| product.price_cents).sum::<i64>() / shelf.len().max(1) as i64;
        let weight = |product: &Product| {
            if !product.in_stock || product.violates.intersects(self.household.diets) {
                return 0.0;
            }
            let cheap = product.price_cents.unwrap_or(mean) <= mean;
            product.popularity
                * match (self.household.budget, cheap) {
                    (Budget::Low, true) | (Budget::High, false) => 1.7,
                    (Budget::Low, false) | (Budget::High, true) => 0.3,
                    (Budget::Middle, _) => 1.0,
                }
        };
        let weights: Vec<f32> = shelf.iter().map(weight).collect();
        shelf.get(weighted(rng, &weights)?)
    }
}
