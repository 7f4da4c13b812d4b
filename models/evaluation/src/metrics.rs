//! The paper's table 1 against a market whose truth is known: P-T@K, K-U and density.

use endcap_market::{Household, truth};
use endcap_schemas::{Product, Term, Theme};
use serde::Serialize;

/// A page with everything that a judge looks at.
#[derive(Debug, Clone)]
pub struct JudgedPage {
    /// The household it was made for.
    pub household: Household,
    /// Its placements in order.
    pub placements: Vec<JudgedPlacement>,
}

/// A placement with the terms and products themselves.
#[derive(Debug, Clone)]
pub struct JudgedPlacement {
    /// Its theme.
    pub theme: Theme,
    /// Its keywords, best first.
    pub keywords: Vec<Term>,
    /// Its products, best first.
    pub products: Vec<Product>,
}

/// One row of table 1.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyMetrics {
    /// Who made the pages.
    pub policy: String,
    /// How many pages were judged.
    pub pages: usize,
    /// How many placements.
    pub placements: usize,
    /// Share of the first 5 products relevant to the placement's theme, mean over placements.
    pub p_t_5: f64,
    /// The same of the first 20.
    pub p_t_20: f64,
    /// Share of placements with fewer than 5 products; they were divided by what they have.
    pub short_5: f64,
    /// Share of placements with fewer than 20 products.
    pub short_20: f64,
    /// Share of keywords that fit the household, over all placements.
    pub k_u: f64,
    /// Mean number of products per placement.
    pub density: f64,
    /// Share of themes whose anchor is in the household's true taste.
    pub in_taste: f64,
}

/// Judges the pages of one policy.
///
/// A placement without products counts as 0 in P-T@K: an empty carousel helps nobody.
pub fn judge(policy: &str, pages: &[JudgedPage]) -> PolicyMetrics {
    let placements: Vec<(&Household, &JudgedPlacement)> =
        pages.iter().flat_map(|page| page.placements.iter().map(|placement| (&page.household, placement))).collect();
    let keywords: Vec<bool> = placements
        .iter()
        .flat_map(|(household, placement)| placement.keywords.iter().map(|term| truth::keyword_fits_household(term, household)))
        .collect();
    let over_placements = |value: &dyn Fn(&JudgedPlacement) -> f64| mean(placements.iter().map(|(_, p)| value(p)));
    PolicyMetrics {
        policy: policy.to_owned(),
        pages: pages.len(),
        placements: placements.len(),
        p_t_5: over_placements(&|placement| precision(placement, 5)),
        p_t_20: over_placements(&|placement| precision(placement, 20)),
        short_5: over_placements(&|placement| f64::from(placement.products.len() < 5)),
        short_20: over_placements(&|placement| f64::from(placement.products.len() < 20)),
        k_u: mean(keywords.into_iter().map(f64::from)),
        density: over_placements(&|placement| placement.products.len() as f64),
        in_taste: mean(
            placements.iter().map(|(household, placement)| f64::from(truth::theme_in_taste(&placement.theme, household))),
        ),
    }
}

fn precision(placement: &JudgedPlacement, k: usize) -> f64 {
    mean(placement.products.iter().take(k).map(|product| f64::from(truth::relevant(&placement.theme, product))))
}

/// 0 for nothing.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}
