//! What households do with a storefront, by the market's truth: where they look, and what pleases them. Nothing that ranks may see it.
//!
//! Whether a product is looked at depends on itself ([`Market::appeal`]) and on what it stands among ([`Market::row_appeal`]): its place in the row,
//! the prices beside it, and products of its own shelf near by, which take its place.

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
/// Loss of log-odds from one place of a row to the next, in logarithms of the place.
const PLACE: f64 = 0.3;
/// Gain of log-odds by being cheaper than the product before and than the one after, for a price lower by a factor of e; a loss where dearer.
const CHEAPER: [f64; 2] = [0.6, 0.3];
/// Loss of log-odds by each product of the same shelf right beside, and one further.
const SUBSTITUTES: [f64; 2] = [0.5, 0.2];

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

/// What a visit is expected to bring.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Expected {
    /// Products that come into sight.
    pub impressions: f64,
    /// Products that are looked at.
    pub clicks: f64,
    /// What is put into the cart, cents.
    pub value_cents: f64,
}

impl Market {
    /// The probability that `household` looks at `product` when it comes into sight, 0…1, whatever it stands among: its taste for the product's
    /// leaf, how much it sells, and whether the price suits. What its diets forbid has none.
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
        let known = product.price_cents.map(|cents| cents as f64).zip(self.mean_price(product.category()));
        known.is_none_or(|(price, mean)| match budget {
            Budget::Low => price <= mean,
            Budget::Middle => true,
            Budget::High => price >= mean,
        })
    }

    /// The probability that `household` looks at each product of `row` when it comes into sight, 0…1, given all that stands there.
    pub fn row_appeal(&self, household: &Household, row: &[&Product]) -> Vec<f64> {
        let alone: Vec<f64> = row.iter().map(|product| self.appeal(household, product)).collect();
        let in_row = |(place, alone): (usize, f64)| match alone {
            0.0 => 0.0,
            alone => {
                let log_odds = (alone / (1.0 - alone).max(f64::MIN_POSITIVE)).ln() + company(row, place, household.budget);
                (1.0 + (-log_odds).exp()).recip()
            }
        };
        alone.into_iter().enumerate().map(in_row).collect()
    }

    /// What `household` does with a storefront whose `rows` hold these products in display order. The same seed does the same.
    pub fn visit(&self, household: &Household, rows: &[Vec<&Product>], seed: u64) -> Vec<Deed> {
        let mut rng = stream(&[VISIT_STREAM, household.seed, seed]);
        let mut deeds = Vec::new();
        for (row, products) in rows.iter().enumerate() {
            if !rng.random_bool(ROW_SEEN) {
                break;
            }
            for (place, appeal) in self.row_appeal(household, products).into_iter().enumerate() {
                if place >= IN_SIGHT && !rng.random_bool(GOES_ON) {
                    break;
                }
                let (looks, takes) = (rng.random::<f64>(), rng.random::<f64>());
                let act = match looks < appeal {
                    true if takes < CARTED => Act::Carted,
                    true => Act::Clicked,
                    false => Act::Seen,
                };
                deeds.push(Deed { row, place, act });
            }
        }
        deeds
    }

    /// What [`Market::visit`] brings on average over all seeds.
    pub fn expected(&self, household: &Household, rows: &[Vec<&Product>]) -> Expected {
        let (mut expected, mut comes) = (Expected::default(), 1.0);
        for row in rows {
            comes *= ROW_SEEN;
            let mut seen = comes;
            for ((place, product), appeal) in row.iter().enumerate().zip(self.row_appeal(household, row)) {
                if place >= IN_SIGHT {
                    seen *= GOES_ON;
                }
                expected.impressions += seen;
                expected.clicks += seen * appeal;
                expected.value_cents += seen * appeal * CARTED * product.price_cents.unwrap_or(0) as f64;
            }
        }
        expected
    }
}

/// What its place and its neighbours add to the log-odds of the product at `place`.
fn company(row: &[&Product], place: usize, budget: Budget) -> f64 {
    let own = row[place];
    let thrift = match budget {
        Budget::Low => 1.0,
        Budget::Middle => 0.6,
        Budget::High => 0.2,
    };
    let beside = |step: isize| place.checked_add_signed(step).and_then(|at| row.get(at));
    let cheaper = |step: isize, worth: f64| {
        let price = |product: &Product| product.price_cents.filter(|cents| *cents > 0).map(|cents| (cents as f64).ln());
        let gap = beside(step).and_then(|other| Some(price(other)? - price(own)?));
        gap.map_or(0.0, |gap| worth * gap.clamp(-1.0, 1.0))
    };
    let alike = |step: isize| beside(step).is_some_and(|other| other.category() == own.category());
    let lost = |distance: isize, worth: f64| worth * f64::from(u8::from(alike(-distance)) + u8::from(alike(distance)));
    thrift * (cheaper(-1, CHEAPER[0]) + cheaper(1, CHEAPER[1]))
        - PLACE * (1.0 + place as f64).ln()
        - lost(1, SUBSTITUTES[0])
        - lost(2, SUBSTITUTES[1])
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

    /// Products of one household's favourite leaves, `each` of each.
    fn liked<'a>(market: &'a Market, household: &Household, leaves: usize, each: usize) -> Vec<&'a Product> {
        let fits = |product: &&Product| market.appeal(household, product) > 0.0 && product.price_cents.is_some();
        let of = |leaf: &'a str| market.products_of(leaf).iter().filter(fits).take(each);
        let names: Vec<&'a str> = household
            .favourites
            .iter()
            .take(leaves)
            .filter_map(|like| Some(market.category(&like.category)?.name.as_str()))
            .collect();
        names.into_iter().flat_map(of).collect()
    }

    #[test]
    fn place_prices_and_substitutes_count_by_what_they_are_said_to() {
        let market = Market::generate(DEMO_SEED);
        let product = |leaf: usize, cents: i64| {
            let shelf = market.products_of(&market.categories[leaf].name);
            Product { price_cents: Some(cents), ..shelf[0].clone() }
        };
        let (plain, dear, twin) = (product(0, 200), product(1, 400), product(0, 200));
        let other = product(2, 200);
        let of = |row: &[&Product], place| company(row, place, Budget::Low);
        let near = |got: f64, wanted: f64, what: &str| assert!((got - wanted).abs() < 1e-12, "{what}: {got}, not {wanted}");
        near(of(&[&plain], 0), 0.0, "alone");
        near(of(&[&other, &plain], 1), -PLACE * 2.0_f64.ln(), "place");
        near(of(&[&plain, &dear], 0), CHEAPER[1] * 2.0_f64.ln(), "cheaper than the next");
        near(of(&[&dear, &plain], 1), (CHEAPER[0] - PLACE) * 2.0_f64.ln(), "cheaper than the one before");
        near(company(&[&plain, &dear], 0, Budget::High), 0.2 * CHEAPER[1] * 2.0_f64.ln(), "to whom prices are little");
        near(of(&[&plain, &twin], 0), -SUBSTITUTES[0], "one of its shelf beside");
        near(of(&[&plain, &other, &twin], 0), -SUBSTITUTES[1], "one further");
        let household = market.household(7, 3);
        let forbidden = market.products.iter().find(|product| market.appeal(&household, product) == 0.0).expect("age restricted");
        assert_eq!(market.row_appeal(&household, &[forbidden, &plain])[0], 0.0);
    }

    #[test]
    fn what_is_expected_is_the_mean_of_visits() {
        const VISITS: u64 = 20_000;
        let market = Market::generate(DEMO_SEED);
        let household = market.household(7, 3);
        let rows: Vec<Vec<&Product>> =
            vec![liked(&market, &household, 6, 2), market.products.iter().step_by(97).take(12).collect()];
        let expected = market.expected(&household, &rows);
        let (mut seen, mut clicks, mut cents) = (0, 0, 0);
        for deed in (0..VISITS).flat_map(|seed| market.visit(&household, &rows, seed)) {
            seen += 1;
            clicks += u64::from(deed.act >= Act::Clicked);
            cents += if deed.act == Act::Carted { rows[deed.row][deed.place].price_cents.unwrap_or(0) } else { 0 };
        }
        let near = |sum: f64, expected: f64| (sum / VISITS as f64 - expected).abs() < 0.05 * expected;
        assert!(
            near(f64::from(seen), expected.impressions) && near(clicks as f64, expected.clicks),
            "{seen}, {clicks}: {expected:?}"
        );
        assert!(near(cents as f64, expected.value_cents), "{cents}: {expected:?}");
    }
}
