//! The page's floor: who fills it, and what becomes of an older page when it cannot be reached. Pure.

use endcap_market::Merchandiser;
use endcap_schemas::{Brief, CategoryWeight, ContextChanged, Head, Origin, Page, Theme};

/// Themes of the merchandiser for a page that misses `count` of them; none repeats the anchor of `tried`.
pub fn replacements(head: &Head, brief: &Brief, tried: &[Theme], count: usize, merchandiser: &Merchandiser) -> Vec<Theme> {
    let context = context_of(head, brief, tried);
    let mut themes = Vec::with_capacity(count);
    let mut taken = tried.to_vec();
    while themes.len() < count {
        let Some(mut theme) = merchandiser.replacement(&context, &taken, 0) else { break };
        taken.push(theme.clone());
        theme.origin = Origin::FloorFallback;
        themes.push(theme);
    }
    themes
}

/// What the merchandiser may know here: raw signals end at the themes stage, but the page's own concepts say what it is about.
fn context_of(head: &Head, brief: &Brief, themes: &[Theme]) -> ContextChanged {
    let mut favourites: Vec<CategoryWeight> = Vec::new();
    if brief.personalise {
        for (place, theme) in themes.iter().enumerate() {
            for concept in &theme.concepts {
                let category = concept.trim().to_lowercase();
                if !favourites.iter().any(|known| known.category == category) {
                    favourites.push(CategoryWeight { category, weight: 1.0 / (1.0 + place as f64) });
                }
            }
        }
    }
    favourites.truncate(16);
    ContextChanged { head: head.clone(), brief: brief.clone(), favourites, recent: Vec::new() }
}

/// What becomes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is published.
    Publish,
    /// It is below the floor and an older page fits better.
    KeepOlder,
    /// There is nothing to show, and what is shown may not stay.
    Withdraw,
}

/// Decides on a page of `placements`. `older_fits` says whether an older page is there and still fits, see [`fits`].
pub fn outcome(placements: usize, floor: usize, older_fits: bool) -> Outcome {
    match placements {
        n if n >= floor.max(1) => Outcome::Publish,
        _ if older_fits => Outcome::KeepOlder,
        0 => Outcome::Withdraw,
        // A short page that fits beats none, and beats one that does not fit.
        _ => Outcome::Publish,
    }
}

/// Whether an older page may stay for a household as it is now: nothing on it violates what the household keeps, each of its
/// placements still has enough products that can be bought, and it is as personal as the household allows.
pub fn fits(page: &Page, brief: &Brief, products_min: usize, allowed: impl Fn(&str) -> Allowed) -> bool {
    if page.placements.is_empty() || (page.is_personal() && !brief.personalise) {
        return false;
    }
    page.placements.iter().all(|placement| {
        let states: Vec<Allowed> = placement.products.iter().map(|shown| allowed(&shown.product)).collect();
        let sold = states.iter().filter(|state| **state == Allowed::Yes).count();
        !states.contains(&Allowed::Never) && sold >= products_min
    })
}

/// Whether a product may be shown to a household.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// It may.
    Yes,
    /// Not now: it is withdrawn or out of stock.
    NotNow,
    /// It violates what the household keeps.
    Never,
}
