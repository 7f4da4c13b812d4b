//! Limits of the AIQA stage.

use endcap_runtime::outside;
use serde::{Deserialize, Serialize};

/// Terms of goods that are not for a page, and of claims about health that a shop may not make. Alcohol is not told by its words (wine
/// vinegar, rum raisins): the catalogue says whether a product is for adults alone.
const BANNED: [&str; 27] = [
    "anti cancer",
    "antidepressant",
    "burns fat",
    "cannabis",
    "cbd",
    "cigarette",
    "clinically proven",
    "cures cancer",
    "cures diabetes",
    "cures disease",
    "doctor recommended",
    "fat burner",
    "fat burning",
    "gift card",
    "heals",
    "immune booster",
    "lottery",
    "lowers blood pressure",
    "lowers cholesterol",
    "miracle cure",
    "prescription",
    "prevents cancer",
    "prevents disease",
    "tobacco",
    "treats disease",
    "vape",
    "weapon",
];

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
    /// Probability (0…1) from which a product is relevant; `None` takes the one that was calibrated with the cross-encoder.
    pub threshold: Option<f32>,
    /// Placements below which the merchandiser fills the page.
    pub floor: usize,
    /// Replacements that are judged for every placement that is missing.
    pub replacements_per_gap: usize,
    /// Products looked up per keyword.
    pub per_keyword_max: usize,
    /// Terms that no shown product may have in its title: goods that are not for a page, and claims about health that a shop may not make.
    pub banned: Vec<String>,
}

impl Default for AiqaConfig {
    fn default() -> Self {
        Self {
            products_max: 20,
            products_min: 4,
            share_min: 0.6,
            threshold: None,
            floor: 5,
            replacements_per_gap: 2,
            per_keyword_max: 60,
            banned: BANNED.map(str::to_owned).to_vec(),
        }
    }
}

impl AiqaConfig {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        [
            outside("products_max", self.products_max, 1..=1_000),
            outside("products_min", self.products_min, 1..=self.products_max.max(1)),
            outside("share_min", self.share_min, 0.0..=1.0),
            self.threshold.and_then(|threshold| outside("threshold", threshold, 0.0..=1.0)),
            outside("floor", self.floor, 1..=100),
            outside("replacements_per_gap", self.replacements_per_gap, 0..=100),
            outside("per_keyword_max", self.per_keyword_max, 1..=10_000),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The threshold; even odds where neither the settings nor a model gave one.
    pub fn threshold(&self) -> f32 {
        self.threshold.unwrap_or(0.5)
    }
}

#[cfg(test)]
mod tests {
    use endcap_retrieval::Banned;
    use endcap_schemas::{DietSet, Product};

    use super::*;

    #[test]
    fn claims_about_health_are_banned_and_food_that_only_sounds_like_one_is_not() {
        let banned = Banned::new(&AiqaConfig::default().banned);
        let holds = |name: &str| {
            banned.holds(&Product {
                id: "p".to_owned(),
                name: name.to_owned(),
                brand: String::new(),
                size: String::new(),
                category_path: Vec::new(),
                price_cents: None,
                popularity: 0.0,
                violates: DietSet::NONE,
                age_restricted: false,
                in_stock: true,
            })
        };
        for claim in ["Cures cancer shiitake", "Fat-burning tea", "Oats, lowers cholesterol", "Tobacco cigarettes"] {
            assert!(holds(claim), "{claim}");
        }
        for food in ["Dry cure bacon", "Cured ham", "Healthy oats", "Rum raisins", "Wine vinegar", "Doctor's herbal tea"] {
            assert!(!holds(food), "{food}");
        }
    }
}
