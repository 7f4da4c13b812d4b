//! Limits of the ranking service.

use std::{num::NonZeroUsize, thread};

use endcap_runtime::outside;
use endcap_schemas::Feedback;
use serde::{Deserialize, Serialize};

use crate::features::Nominator;

/// Storefronts that are let in at once for each core: what takes about a millisecond waits for a few hundredths of a second at most.
const AT_ONCE_PER_CORE: usize = 16;

/// Settings of the ranking service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RankingConfig {
    /// Products of a slate.
    pub products_max: usize,
    /// Fewest products of a placement; one with fewer is not shown.
    pub products_min: usize,
    /// Placements of a storefront.
    pub placements_max: usize,
    /// Placements, from the first on, whose products in sight first are arranged as a whole.
    pub reranked_max: usize,
    /// Products that each nominator brings in for a placement.
    pub nominations_max: usize,
    /// Products that are looked up for nominators to choose from, per placement.
    pub pool_max: usize,
    /// Products looked up per keyword and shelf; an eighth of that per neighbouring term.
    pub per_keyword_max: usize,
    /// Placements of which it is kept in memory what was found for them: about 4 KB each.
    pub lookups_max: usize,
    /// Products that are kept in memory to be found by id: about 1 KB each. What was found for placements keeps its own beside them.
    pub items_max: usize,
    /// Placements that wait for being looked up; more are served from what the page has of them.
    pub preparing_max: usize,
    /// Share (0…1) of requests whose slates are shuffled.
    pub shuffled: f64,
    /// How much of the exploration bonus counts; 0 goes by what is expected alone.
    pub exploration: f64,
    /// Storefronts that are let in at once, to be worked on or to wait for it; more are refused [default: 16 for each core].
    pub at_once_max: usize,
    /// Placements of the default page.
    pub default_placements: usize,
    /// Slates whose feedback is remembered, so that nothing is learnt twice.
    pub slates_max: usize,
    /// How long after it was served feedback of a slate is taken, in seconds.
    pub feedback_age_max_s: u64,
    /// How long feedback is gathered before a policy is published, in milliseconds.
    pub publish_every_ms: u64,
}

impl Default for RankingConfig {
    fn default() -> Self {
        Self {
            products_max: 20,
            products_min: 4,
            placements_max: 12,
            reranked_max: 4,
            nominations_max: 10,
            pool_max: 80,
            per_keyword_max: 30,
            lookups_max: 20_000,
            items_max: 50_000,
            preparing_max: 2_000,
            shuffled: 0.02,
            exploration: 0.05,
            at_once_max: AT_ONCE_PER_CORE * thread::available_parallelism().map_or(1, NonZeroUsize::get),
            default_placements: 8,
            slates_max: 16_384,
            feedback_age_max_s: 86_400,
            publish_every_ms: 1_000,
        }
    }
}

impl RankingConfig {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        let products = outside("products_max", self.products_max, 1..=Feedback::SHOWN_MAX);
        let nominated_max = Feedback::OFFERS_MAX / Nominator::ALL.len();
        [
            products.clone(),
            // Where the most of them is told to be wrong it says nothing of the fewest.
            outside(
                "products_min",
                self.products_min,
                1..=if products.is_some() { Feedback::SHOWN_MAX } else { self.products_max },
            ),
            outside("placements_max", self.placements_max, 1..=50),
            outside("reranked_max", self.reranked_max, 0..=50),
            outside("nominations_max", self.nominations_max, 1..=nominated_max),
            outside("pool_max", self.pool_max, 1..=1_000),
            outside("per_keyword_max", self.per_keyword_max, 1..=500),
            outside("lookups_max", self.lookups_max, 1..=10_000_000),
            outside("items_max", self.items_max, 1..=100_000_000),
            outside("preparing_max", self.preparing_max, 1..=100_000),
            outside("shuffled", self.shuffled, 0.0..=1.0),
            outside("exploration", self.exploration, 0.0..=10.0),
            outside("at_once_max", self.at_once_max, 1..=4_096),
            outside("default_placements", self.default_placements, 1..=50),
            outside("slates_max", self.slates_max, 1..=20_000),
            outside("feedback_age_max_s", self.feedback_age_max_s, 1..=31_557_600),
            outside("publish_every_ms", self.publish_every_ms, 0..=600_000),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// How long feedback of a slate is taken, ms.
    pub fn feedback_age_max_ms(&self) -> i64 {
        i64::try_from(self.feedback_age_max_s.saturating_mul(1_000)).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_told_together() {
        assert!(RankingConfig::default().check().is_empty());
        let bad = RankingConfig { products_max: 33, shuffled: 1.5, exploration: f64::NAN, ..RankingConfig::default() };
        assert_eq!(bad.check().len(), 3, "{:?}", bad.check());
        for products_max in [0, 2_000] {
            let bad = RankingConfig { products_max, ..RankingConfig::default() };
            assert_eq!(bad.check().len(), 1, "{:?}", bad.check());
        }
    }
}
