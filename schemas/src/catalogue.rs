//! What a market consists of: products, taxonomy leaves and terms of the keyword corpus.

use serde::{Deserialize, Serialize};

use crate::{Descriptor, DietSet};

/// Leaf and department of products that fit nowhere: nobody's favourite and no theme.
pub const UNCATEGORISED: &str = "uncategorised";

/// A product of the catalogue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Product {
    /// Id, unique in the market.
    pub id: String,
    /// Name with modifiers, without brand and size: `smoked gouda`.
    pub name: String,
    /// Brand; empty where there is none.
    pub brand: String,
    /// Package size as written: `500 g`; empty where unknown.
    pub size: String,
    /// Price in cents of the market's currency, where known.
    pub price_cents: Option<i64>,
    /// Taxonomy path from the department to the leaf, lower case. Never empty.
    pub category_path: Vec<String>,
    /// Diets that the product is known to violate.
    pub violates: DietSet,
    /// Whether it may be sold to adults only.
    pub age_restricted: bool,
    /// How much it sells, 0…1.
    pub popularity: f32,
    /// Whether it can be bought now.
    pub in_stock: bool,
}

impl Product {
    /// The taxonomy's leaf.
    pub fn category(&self) -> &str {
        self.category_path.last().map_or("", String::as_str)
    }

    /// The taxonomy's top.
    pub fn department(&self) -> &str {
        self.category_path.first().map_or("", String::as_str)
    }

    /// The nodes of the taxonomy that it stands under, the leaf first: three at most, without the department unless there is nothing else.
    pub fn shelves(&self) -> impl Iterator<Item = &str> {
        let below = self.category_path.len().saturating_sub(1).max(1);
        self.category_path.iter().rev().take(below.min(SHELVES_MAX)).map(String::as_str)
    }

    /// Whether the taxonomy has a leaf for it.
    pub fn is_categorised(&self) -> bool {
        self.category() != UNCATEGORISED
    }

    /// Brand, name and size as a page shows them.
    pub fn title(&self) -> String {
        [&self.brand, &self.name, &self.size].into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
    }
}

/// Nodes that a product's place is told by.
pub const SHELVES_MAX: usize = 3;

/// A leaf of the taxonomy, as the merchandiser sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// Name of the leaf, lower case, unique in the market.
    pub name: String,
    /// Its department, lower case.
    pub department: String,
    /// Diets that (nearly) everything in it violates.
    pub violates: DietSet,
    /// Whether it may be sold to adults only.
    pub age_restricted: bool,
    /// How much better it sells per season (spring, summer, autumn, winter); 0 is as always.
    pub seasons: [f32; 4],
    /// Names of categories that are bought with it, closest first.
    pub related: Vec<String>,
    /// How much it sells, 0…1.
    pub popularity: f32,
}

/// A term of the keyword corpus.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// The term, lower case.
    pub text: String,
    /// What it retrieves by.
    pub descriptor: Descriptor,
    /// The taxonomy leaf that it belongs to, where known. A node's own name for a leaf node.
    pub category: Option<String>,
    /// Diets that its products are known to violate.
    pub violates: DietSet,
    /// How much it is searched for, 0…1.
    pub popularity: f32,
    /// Quality: 1 curated, 2 composed, 3 rare.
    pub tier: u8,
}
