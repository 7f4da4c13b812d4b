//! Limits of the AIQA stage.

use serde::{Deserialize, Serialize};

/// Settings of the AIQA stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AiqaConfig {
    /// Products of a placement that are judged and shown.
    pub products_max: usize,
    /// Fewest products of a placement.
    pub products_min: usize,
    /// Share (0…1) of a placement's judged products that must be relevant.
    pub share_min: f64,
    /// Probability (0…1) from which a product is relevant; calibrate it with the cross-encoder.
    pub threshold: f32,
    /// Placements below which the merchandiser fills the page.
    pub floor: usize,
    /// Replacements that are judged for every placement that is missing.
    pub replacements_per_gap: usize,
    /// Products looked up per keyword.
    pub per_keyword_max: usize,
    /// Terms that no shown product may have in its title.
    pub banned: Vec<String>,
}

impl Default for AiqaConfig {
    fn default() -> Self {
        Self {
            products_max: 20,
            products_min: 4,
            share_min: 0.6,
            threshold: 0.5,
            floor: 5,
            replacements_per_gap: 2,
            per_keyword_max: 60,
            banned: ["cannabis", "cbd", "gift card", "lottery", "prescription", "weapon"].map(str::to_owned).to_vec(),
        }
    }
}
