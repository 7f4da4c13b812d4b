//! A shopper as the ranking sees one. Pure.

use std::collections::HashMap;

use endcap_market::hash;
use endcap_retrieval::{Filter, Snapshot, has_disliked};
use endcap_schemas::{Budget, ContextChanged, DietSet};

use crate::pool::Item;

/// After so many days a purchase counts half.
const HALF_LIFE_DAYS: f64 = 30.0;
const DAY_MS: f64 = 86_400_000.0;

/// What is known of a shopper.
#[derive(Debug, Clone)]
pub(crate) struct Shopper {
    filter: Filter,
    disliked: Vec<Vec<String>>,
    budget: Budget,
    /// Favourite shelves by the hashes of their names, as all here, the greatest weight being 1.
    shelves: Few<f64>,
    /// Departments by their share of the favourites' weight.
    departments: Few<f64>,
    /// Purchases: how often, and how much of the latest one is left.
    bought: Few<(i32, f64)>,
}

/// A few values by hashes, in their order: a thousand products are looked up for each request.
#[derive(Debug, Clone)]
struct Few<T>(Vec<(u64, T)>);

impl<T: Copy> Few<T> {
    fn of(values: HashMap<u64, T>) -> Self {
        let mut values: Vec<(u64, T)> = values.into_iter().collect();
        values.sort_unstable_by_key(|(hash, _)| *hash);
        Self(values)
    }

    fn get(&self, hash: u64) -> Option<T> {
        self.0.binary_search_by_key(&hash, |(hash, _)| *hash).ok().map(|at| self.0[at].1)
    }
}

impl Shopper {
    /// The shopper of `context` at `now_ms`, whose page was made for `diets`. What the household keeps by now counts, and what its page was made
    /// for.
    pub(crate) fn of(context: Option<&ContextChanged>, diets: DietSet, market: &Snapshot, now_ms: i64) -> Self {
        let brief = context.map(|context| &context.brief);
        let kept = diets.iter().chain(brief.map_or(DietSet::NONE, |brief| brief.diets).iter()).collect();
        let filter = Filter::of_page(kept, brief.map_or(&[][..], |brief| &brief.dislikes));
        let (mut shelves, mut departments, mut bought) = (HashMap::new(), HashMap::new(), HashMap::new());
        if let Some(context) = context {
            let greatest = context.favourites.iter().map(|like| like.weight).fold(f64::MIN_POSITIVE, f64::max);
            let total: f64 = context.favourites.iter().map(|like| like.weight).sum::<f64>().max(f64::MIN_POSITIVE);
            for like in &context.favourites {
                shelves.insert(hash(&like.category), like.weight / greatest);
                if let Some(category) = market.category(&like.category) {
                    *departments.entry(hash(&category.department)).or_insert(0.0) += like.weight / total;
                }
            }
            for purchase in &context.recent {
                let age_days = (now_ms - purchase.last_ms).max(0) as f64 / DAY_MS;
                bought.insert(hash(&purchase.product), (purchase.count, (-age_days / HALF_LIFE_DAYS).exp2()));
            }
        }
        let disliked = filter.disliked_words();
        let budget = brief.map_or(Budget::Middle, |brief| brief.budget);
        let (shelves, departments, bought) = (Few::of(shelves), Few::of(departments), Few::of(bought));
        Self { filter, disliked, budget, shelves, departments, bought }
    }

    /// Whether the product may be shown: it can be bought, violates no diet, has no disliked word, and is for everybody.
    pub(crate) fn may_have(&self, item: &Item) -> bool {
        self.filter.allows_words(&item.product, &item.words, &self.disliked)
    }

    /// Whether a placement of this title may be shown: it has no disliked word.
    pub(crate) fn may_read(&self, title: &str) -> bool {
        !has_disliked(title, &self.disliked)
    }

    /// Diets that are kept.
    pub(crate) fn diets(&self) -> DietSet {
        self.filter.diets
    }

    /// What the household spends.
    pub(crate) fn budget(&self) -> Budget {
        self.budget
    }

    /// Whether there is a history.
    pub(crate) fn is_known(&self) -> bool {
        !self.shelves.0.is_empty() || !self.bought.0.is_empty()
    }

    /// Weight of the product's best shelf, 0…1.
    pub(crate) fn affinity(&self, item: &Item) -> f64 {
        item.shelves.iter().filter_map(|shelf| self.shelves.get(*shelf)).fold(0.0, f64::max)
    }

    /// Share of the favourites in the product's department, 0…1.
    pub(crate) fn department(&self, item: &Item) -> f64 {
        item.department.and_then(|department| self.departments.get(department)).unwrap_or(0.0)
    }

    /// How often the product was bought and how recently, both as 0…1.
    pub(crate) fn bought(&self, item: &Item) -> (f64, f64) {
        self.bought.get(item.number).map_or((0.0, 0.0), |(count, left)| (1.0 - (-f64::from(count)).exp2(), left))
    }

    /// How well a price suits, 0…1, as `dearness` tells it: ½ is the usual one.
    pub(crate) fn suits(&self, dearness: f64) -> f64 {
        match self.budget {
            Budget::Low => 1.0 - dearness,
            Budget::Middle => 1.0 - (2.0 * dearness - 1.0).abs(),
            Budget::High => dearness,
        }
    }
}
