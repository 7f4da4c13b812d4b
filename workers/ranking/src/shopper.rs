//! A shopper as the ranking sees one. Pure.

use std::collections::HashMap;

use endcap_retrieval::{Filter, ProductWords, Snapshot};
use endcap_schemas::{Budget, ContextChanged, DietSet, Product};

/// After so many days a purchase counts half.
const HALF_LIFE_DAYS: f64 = 30.0;
const DAY_MS: f64 = 86_400_000.0;

/// What is known of a shopper.
#[derive(Debug, Clone)]
pub(crate) struct Shopper {
    filter: Filter,
    disliked: Vec<Vec<String>>,
    budget: Budget,
    /// Favourite shelves, the greatest weight being 1.
    shelves: HashMap<String, f64>,
    /// Departments by their share of the favourites' weight.
    departments: HashMap<String, f64>,
    /// Purchases: how often, and how much of the latest one is left.
    bought: HashMap<String, (i32, f64)>,
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
                shelves.insert(like.category.clone(), like.weight / greatest);
                if let Some(category) = market.category(&like.category) {
                    *departments.entry(category.department.clone()).or_insert(0.0) += like.weight / total;
                }
            }
            for purchase in &context.recent {
                let age_days = (now_ms - purchase.last_ms).max(0) as f64 / DAY_MS;
                bought.insert(purchase.product.clone(), (purchase.count, (-age_days / HALF_LIFE_DAYS).exp2()));
            }
        }
        let disliked = filter.disliked_words();
        Self { budget: brief.map_or(Budget::Middle, |brief| brief.budget), filter, disliked, shelves, departments, bought }
    }

    /// Whether the product may be shown: it can be bought, violates no diet, has no disliked word, and is for everybody.
    pub(crate) fn may_have(&self, product: &Product, words: &ProductWords) -> bool {
        self.filter.allows_words(product, words, &self.disliked)
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
        !self.shelves.is_empty() || !self.bought.is_empty()
    }

    /// Weight of the product's best shelf, 0…1.
    pub(crate) fn affinity(&self, product: &Product) -> f64 {
        product.shelves().filter_map(|shelf| self.shelves.get(shelf)).copied().fold(0.0, f64::max)
    }

    /// Share of the favourites in the product's department, 0…1.
    pub(crate) fn department(&self, product: &Product) -> f64 {
        product.category_path.first().and_then(|department| self.departments.get(department)).copied().unwrap_or(0.0)
    }

    /// How often the product was bought and how recently, both as 0…1.
    pub(crate) fn bought(&self, product: &Product) -> (f64, f64) {
        self.bought.get(&product.id).map_or((0.0, 0.0), |(count, left)| (1.0 - (-f64::from(*count)).exp2(), *left))
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
