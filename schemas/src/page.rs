//! The page that the store holds and the ranking layer reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DietSet, Keyword, Origin, Theme};

/// Models, indexes, prompts: name → version.
pub type Versions = BTreeMap<String, String>;

/// One shopper's storefront, H_u of the paper's equation 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// The shopper in a few words.
    pub persona: String,
    /// The diets that the page was made for.
    pub diets: DietSet,
    /// Placements in order.
    pub placements: Vec<Placement>,
    /// Which models, index and prompts made it.
    pub versions: Versions,
}

impl Page {
    /// Whether it came from a shopper's history. What fills the floor is as personal as the page it fills.
    pub fn is_personal(&self) -> bool {
        let has = |wanted: &[Origin]| self.placements.iter().any(|placement| wanted.contains(&placement.theme.origin));
        has(&[Origin::Model, Origin::ThemeFallback, Origin::PageFallback]) || !has(&[Origin::Cold])
    }
}

/// One carousel: z_iu(t_iu, s_iu) of the paper's equation 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Placement {
    /// Title, intent, concepts and who wrote it.
    pub theme: Theme,
    /// What retrieved its products.
    pub keywords: Vec<Keyword>,
    /// Products that AIQA let through, best first; at most 20.
    pub products: Vec<ShownProduct>,
    /// How many products the keywords retrieved before AIQA (recall density).
    pub retrieved: i32,
}

/// A product in a placement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShownProduct {
    /// Id of the product.
    pub product: String,
    /// Probability that it is relevant to the placement's theme.
    pub score: f64,
}
