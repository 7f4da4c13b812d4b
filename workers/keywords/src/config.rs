//! Limits of the keywords stage.

use endcap_inference::NEIGHBOURS;
use endcap_runtime::outside;
use endcap_schemas::Descriptor;
use serde::{Deserialize, Serialize};

/// Settings of the keywords stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeywordsConfig {
    /// Neighbours looked up per concept, before the filter.
    pub neighbours: usize,
    /// Candidates of a theme, after it.
    pub candidates_max: usize,
    /// Fewest keywords of a theme.
    pub keywords_min: usize,
    /// Most keywords of a theme.
    pub keywords_max: usize,
    /// Kinds of descriptor that may be chosen.
    pub descriptors: Vec<Descriptor>,
}

impl Default for KeywordsConfig {
    fn default() -> Self {
        Self {
            neighbours: NEIGHBOURS,
            candidates_max: 64,
            keywords_min: 3,
            keywords_max: 8,
            descriptors: vec![Descriptor::Node, Descriptor::Query],
        }
    }
}

impl KeywordsConfig {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        [
            outside("neighbours", self.neighbours, 1..=10_000),
            outside("candidates_max", self.candidates_max, 1..=1_000),
            outside("keywords_max", self.keywords_max, 1..=64),
            outside("keywords_min", self.keywords_min, 1..=self.keywords_max.max(1)),
        ]
        .into_iter()
        .flatten()
        .chain(self.descriptors.is_empty().then(|| "`descriptors` must name at least one kind, none is not".to_owned()))
        .collect()
    }
}
