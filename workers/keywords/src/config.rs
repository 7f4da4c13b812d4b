//! Limits of the keywords stage.

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
            neighbours: 96,
            candidates_max: 64,
            keywords_min: 3,
            keywords_max: 8,
            descriptors: vec![Descriptor::Node, Descriptor::Query],
        }
    }
}
