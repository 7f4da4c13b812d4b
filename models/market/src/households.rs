//! Households whose truth is known: tastes, diets, budget.

use endcap_schemas::{Budget, Category, CategoryWeight, Diet, DietSet, UserKey};
use rand::{Rng, RngExt};

use crate::{
    Market,
    random::{one_of, weighted},
};

/// A coherent fondness, such as `italian kitchen`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taste {
    /// Its name.
    pub name: String,
    /// Its leaves, most typical first.
    pub leaves: Vec<String>,
}

/// A household whose truth is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Household {
    /// The shopper.
    pub user: UserKey,
    /// Names of its two to four tastes, strongest first.
    pub tastes: Vec<String>,
    /// Truth: the six to ten leaves that it really likes, heaviest first; the weights sum to 1.
    pub favourites: Vec<CategoryWeight>,
    /// Every leaf of its tastes that its diets allow: its profile.
    pub leaves: Vec<String>,
    /// Diets it keeps.
    pub diets: DietSet,
    /// Its budget.
    pub budget: Budget,
    /// Seed of its habits.
    pub seed: u64,
}

impl Household {
    /// Fewest and most favourite leaves.
    pub const FAVOURITES: (usize, usize) = (6, 10);
    const TASTES_MAX: usize = 4;

    /// Draws a household: everything it is follows from `rng`.
    pub(crate) fn draw<R: Rng>(market: &Market, user: String, rng: &mut R) -> Self {
        let diets = draw_diets(rng);
        let budget = [Budget::Low, Budget::Middle, Budget::High][weighted(rng, &[0.3, 0.5, 0.2]).unwrap_or(1)];
        let wanted = rng.random_range(Self::FAVOURITES.0..=Self::FAVOURITES.1);
        let tastes = draw_tastes(market, diets, rng);
        let mut likes: Vec<CategoryWeight> = Vec::new();
        for (strength, taste) in tastes.iter().enumerate() {
            for (place, leaf) in allowed(market, taste, diets).enumerate() {
                let weight =
                    f64::from(rng.random_range(0.6..1.4_f32)) / ((1.0 + 0.5 * strength as f64) * (1.0 + 0.35 * place as f64));
                match likes.iter_mut().find(|like| like.category == leaf.name) {
                    Some(like) => like.weight += weight,
                    None => likes.push(CategoryWeight { category: leaf.name.clone(), weight }),
                }
            }
        }
        let leaves = likes.iter().map(|like| like.category.clone()).collect();
        likes.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        likes.truncate(wanted);
        let total: f64 = likes.iter().map(|like| like.weight).sum();
        likes.iter_mut().for_each(|like| like.weight /= total);
        Self {
            user: UserKey::of(user),
            tastes: tastes.iter().map(|taste| taste.name.clone()).collect(),
            favourites: likes,
            leaves,
            diets,
            budget,
            seed: rng.random(),
        }
    }

    /// Whether the leaf is in the household's profile: a favourite or otherwise of its tastes.
    pub fn likes(&self, category: &str) -> bool {
        self.leaves.iter().any(|leaf| leaf == category)
    }
}

/// More than half keep none, one in nine keeps two.
fn draw_diets<R: Rng>(rng: &mut R) -> DietSet {
    const SHARES: [f32; 6] = [0.24, 0.2, 0.17, 0.14, 0.12, 0.13];
    if rng.random_bool(0.52) {
        return DietSet::NONE;
    }
    let first = Diet::ALL[weighted(rng, &SHARES).unwrap_or(0)];
    let second = if rng.random_bool(0.23) { weighted(rng, &SHARES) } else { None };
    second.map(|i| Diet::ALL[i]).into_iter().chain([first]).collect()
}

/// Two to four tastes, and more where the diets leave fewer than the smallest number of favourites.
fn draw_tastes<'a, R: Rng>(market: &'a Market, diets: DietSet, rng: &mut R) -> Vec<&'a Taste> {
    let wanted = rng.random_range(2..=Household::TASTES_MAX);
    let mut left: Vec<&Taste> =
        market.tastes.iter().filter(|taste| 2 * allowed(market, taste, diets).count() > taste.leaves.len()).collect();
    let mut tastes: Vec<&Taste> = Vec::new();
    let mut leaves: Vec<&str> = Vec::new();
    while tastes.len() < wanted || leaves.len() < Household::FAVOURITES.0 {
        let Some(taste) = one_of(rng, &left).copied() else { break };
        left.retain(|other| other.name != taste.name);
        tastes.push(taste);
        leaves.extend(allowed(market, taste, diets).map(|leaf| leaf.name.as_str()));
        leaves.sort_unstable();
        leaves.dedup();
    }
    tastes
}

/// The taste's leaves that the diets allow.
fn allowed<'a>(market: &'a Market, taste: &'a Taste, diets: DietSet) -> impl Iterator<Item = &'a Category> {
    taste.leaves.iter().filter_map(|leaf| market.category(leaf)).filter(move |leaf| !leaf.violates.intersects(diets))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::DEMO_SEED;

    #[test]
    fn households_are_coherent_and_keep_their_diets() {
        let market = Market::generate(DEMO_SEED);
        let households: Vec<Household> = (0..500).map(|n| market.household(7, n)).collect();
        for household in &households {
            assert!((6..=10).contains(&household.favourites.len()), "{household:?}");
            assert!(household.tastes.len() >= 2);
            assert!((household.favourites.iter().map(|like| like.weight).sum::<f64>() - 1.0).abs() < 1e-9);
            assert!(household.favourites.windows(2).all(|pair| pair[0].weight >= pair[1].weight));
            for like in &household.favourites {
                assert!(!market.category(&like.category).unwrap().violates.intersects(household.diets));
                assert!(household.likes(&like.category));
            }
        }
        let kept = households.iter().filter(|household| !household.diets.is_empty()).count();
        assert!((180..300).contains(&kept), "{kept} keep a diet");
    }

    #[test]
    fn a_household_is_its_seed_and_number() {
        let market = Market::generate(DEMO_SEED);
        assert_eq!(market.household(7, 3), market.household(7, 3));
        assert_eq!(market.household(7, 0).user.to_string(), "default/shopper-0001");
        assert_eq!(market.held_out_household(41).user.to_string(), "default/held-out-0042");
        let seeds: HashSet<u64> = (0..200)
            .flat_map(|n| [market.household(7, n).seed, market.held_out_household(n).seed, market.training_household(n).seed])
            .collect();
        assert_eq!(seeds.len(), 600);
    }
}
