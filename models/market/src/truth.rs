//! What is true in a market, against which models are measured.

use endcap_inference::prompts::plain;
use endcap_schemas::{Product, Term, Theme};

use crate::Household;

/// Whether the product is relevant to the theme: one of the shelves that it stands on is one of the theme's concepts.
pub fn relevant(theme: &Theme, product: &Product) -> bool {
    product.shelves().any(|shelf| theme.concepts.iter().any(|concept| plain(concept) == plain(shelf)))
}

/// Whether the term is right for the household (K-U): its leaf is in the household's profile, and it keeps the diets.
pub fn keyword_fits_household(term: &Term, household: &Household) -> bool {
    !term.violates.intersects(household.diets) && term.category.as_deref().is_some_and(|category| household.likes(category))
}

/// Whether the theme's anchor is in the household's profile.
pub fn theme_in_taste(theme: &Theme, household: &Household) -> bool {
    theme.concepts.first().is_some_and(|anchor| household.likes(&plain(anchor)))
}
