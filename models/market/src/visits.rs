//! What households do with a storefront, by the market's truth: where they look, and what pleases them.

use endcap_schemas::{Budget, Product};
use rand::RngExt;

use crate::{Household, Market, random::stream};

const VISIT_STREAM: u64 = 31;
/// Share of the shoppers who, having come to a row, look at it.
const ROW_SEEN: f64 = 0.85;
/// Products of a row that are in sight at once, and the share of the shoppers who go on to each further one.
const IN_SIGHT: usize = 5;
const GOES_ON: f64 = 0.7;
/// Probability of a click on something that the household does not care for, and what taste, popularity and habit add to it at most.
const CHANCE: f64 = 0.01;
const TASTE: f64 = 0.22;
const POPULARITY: f64 = 0.06;
/// Taste for a leaf of the household's profile that is no favourite, where a favourite's is up to 1.
const LIKED: f64 = 0.25;
/// What is left of the appeal where the price does not suit.
const WRONG_PRICE: f64 = 0.5;
/// Share of the clicks that end in the cart.
const CARTED: f64 = 0.35;

/// What was done with a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// It came into sight.
    Seen,
    /// It was looked at.
    Clicked,
    /// It was put into the cart.
    Carted,
}

/// Something that was done on a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deed {
    /// The row of the storefront, from 0.
    pub row: usize,
    /// The place in the row, from 0.
    pub place: usize,
    /// The most that was done there.
    pub act: Act,
}

impl Market {
    /// The probability that `household` looks at `product` when it comes into sight, 0…1: its taste for the product's leaf, how much it
    /// sells, and whether the price suits. What its diets forbid has none.
    pub fn appeal(&self, household: &Household, product: &Product) -> f64 {
        if product.violates.intersects(household.diets) || product.age_restricted {
            return 0.0;
        }
        let greatest = household.favourites.first().map_or(1.0, |like| like.weight);
        let favourite = household.favourites.iter().find(|like| like.category == product.category());
        let taste = match favourite {
            Some(like) => 0.4 + 0.6 * like.weight / greatest,
            None if household.likes(product.category()) => LIKED,
            None => 0.0,
        };
        let suits = if self.price_suits(household.budget, product) { 1.0 } else { WRONG_PRICE };
        (CHANCE + (TASTE * taste + POPULARITY * f64::from(product.popularity)) * suits).min(1.0)
    }

    /// Whether a price is on the household's side of its shelf's mean.
    fn price_suits(&self, budget: Budget, product: &Product) -> bool {
        let shelf = self.products_of(product.category());
        let (sum, count) =
            shelf.iter().filter_map(|other| other.price_cents).fold((0, 0), |(sum, count), price| (sum + price, count + 1));
        let Some(price) = product.price_cents.filter(|_| count > 0) else { return true };
        match budget {
            Budget::Low => price * count <= sum,
            Budget::Middle => true,
            Budget::High => price * count >= sum,
        }
    }

    /// What `household` does with a storefront whose `rows` hold these products in display order. The same seed does the same.
    pub fn visit(&self, household: &Household, rows: &[Vec<&Product>], seed: u64) -> Vec<Deed> {
        let mut rng = stream(&[VISIT_STREAM, household.seed, seed]);
        let mut deeds = Vec::new();
        for (row, products) in rows.iter().enumerate() {
            if !rng.random_bool(ROW_SEEN) {
                break;
            }
            for (place, product) in products.iter().enumerate() {
                if place >= IN_SIGHT && !rng.random_bool(GOES_ON) {
                    break;
                }
                let (looks, takes) = (rng.random::<f64>(), rng.random::<f64>());
                let act = match looks < self.appeal(household, product) {
                    true if takes < CARTED => Act::Carted,
                    true => Act::Clicked,
                    false => Act::Seen,
                };
                deeds.push(Deed { row, place, act });
            }
        }
        deeds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DEMO_SEED;

    #[test]
    fn shoppers_click_what_they_like_and_never_what_their_diets_forbid() {
        let market = Market::generate(DEMO_SEED);
        for n in 0..40 {
            let household = market.household(7, n);
            let mean = |wanted: &dyn Fn(&Product) -> bool| {
                let appeals: Vec<f64> = market
                    .products
                    .iter()
                    .filter(|product| wanted(product))
                    .map(|product| market.appeal(&household, product))
                    .collect();
                (appeals.iter().sum::<f64>() / appeals.len().max(1) as f64, appeals.len())
            };
            let forbidden = |product: &Product| product.violates.intersects(household.diets);
            let (liked, count) = mean(&|product| household.likes(product.category()) && !forbidden(product));
            let (others, _) = mean(&|product| !household.likes(product.category()) && !forbidden(product));
            assert!(count > 0 && liked > 2.0 * others && liked < 0.5, "household {n}: {liked} and {others}");
            assert_eq!(mean(&forbidden).0, 0.0, "household {n}");
        }
    }

    #[test]
    fn a_visit_is_its_seed_goes_from_the_top_and_sees_before_it_clicks() {
        let market = Market::generate(DEMO_SEED);
        let household = market.household(7, 3);
        let rows: Vec<Vec<&Product>> = market.products.chunks(20).take(8).map(|row| row.iter().collect()).collect();
        assert_eq!(market.visit(&household, &rows, 5), market.visit(&household, &rows, 5));
        let visits: Vec<Vec<Deed>> = (0..400).map(|seed| market.visit(&household, &rows, seed)).collect();
        for deeds in &visits {
            assert!(deeds.windows(2).all(|pair| (pair[0].row, pair[0].place) < (pair[1].row, pair[1].place)), "{deeds:?}");
        }
        let seen = |row: usize| visits.iter().filter(|deeds| deeds.iter().any(|deed| deed.row == row)).count();
        assert!(seen(0) > 300 && seen(7) < seen(0) / 2 && seen(7) > 0, "{} and {}", seen(0), seen(7));
    }
}
