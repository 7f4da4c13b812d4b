//! What a storefront is answered as.

use std::sync::Arc;

use endcap_schemas::{Descriptor, Keyword, Origin, Product};
use serde::Serialize;

/// A shopper's page as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storefront {
    /// Whose: `user`, or `tenant/user`.
    pub user: String,
    /// Id of the request.
    pub request: String,
    /// The shopper in a few words; empty on the default page.
    pub persona: String,
    /// Whether this is the page of whoever has none.
    pub is_default: bool,
    /// Diets that everything here keeps, in words.
    pub diets: Vec<&'static str>,
    /// The fold's clock, ms: which page of the shopper it is; none on the default page.
    pub context_ms: Option<i64>,
    /// Number of the manifest that the page was made under; none on the default page.
    pub generation: Option<i32>,
    /// Version of the policy that ranked it; 0 for the one that has learnt nothing.
    pub policy: i64,
    /// Whether any placement was arranged as a whole; else all are in the ranker's order, or shuffled.
    pub reranked: bool,
    /// Whether the slates of this request were shuffled, to learn what the policy would not show.
    pub shuffled: bool,
    /// Placements, the most promising first.
    pub placements: Vec<StorefrontPlacement>,
}

/// A carousel as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StorefrontPlacement {
    /// Its title.
    pub title: String,
    /// The intent behind it.
    pub intent: String,
    /// Who wrote it.
    pub origin: Origin,
    /// What retrieved its products.
    pub keywords: Vec<KeywordCard>,
    /// The mean expected reward of as many of its best products as are in sight first: what placements are ordered by.
    pub expected: f64,
    /// Whether its products in sight first are in the order of the model of whole rows; else all are in the ranker's, or shuffled.
    pub reranked: bool,
    /// What feedback is sent back with.
    pub slate: String,
    /// Of a shuffled slate, the probability that a given product stands at a given place.
    pub propensity: Option<f64>,
    /// Its products in order.
    pub products: Vec<StorefrontProduct>,
}

/// A keyword as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeywordCard {
    /// The term.
    pub text: String,
    /// Its kind.
    pub descriptor: Descriptor,
}

impl KeywordCard {
    /// That of `keyword`.
    pub fn of(keyword: &Keyword) -> Self {
        Self { text: keyword.text.clone(), descriptor: keyword.descriptor }
    }
}

/// What is shown of a product, wherever it stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProductCard {
    /// Its id.
    pub id: String,
    /// Name without brand and size.
    pub name: String,
    /// Brand; empty where there is none.
    pub brand: String,
    /// Package size; empty where unknown.
    pub size: String,
    /// Price, where known.
    pub price_cents: Option<i64>,
    /// Taxonomy leaf.
    pub category: String,
    /// Top of its taxonomy path.
    pub department: String,
}

impl ProductCard {
    /// That of `product`.
    pub fn of(product: &Product) -> Self {
        Self {
            id: product.id.clone(),
            name: product.name.clone(),
            brand: product.brand.clone(),
            size: product.size.clone(),
            price_cents: product.price_cents,
            category: product.category().to_owned(),
            department: product.department().to_owned(),
        }
    }
}

/// A product of a placement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StorefrontProduct {
    /// What it is.
    #[serde(flatten)]
    pub card: Arc<ProductCard>,
    /// Probability that it belongs to the placement, 0…1.
    pub relevance: f64,
    /// Expected reward, by the policy.
    pub score: f64,
    /// What exploring it counted beside that: where nothing was shuffled or arranged, products stand by the sum of both.
    pub bonus: f64,
    /// Who nominated it.
    pub nominators: Vec<&'static str>,
}
