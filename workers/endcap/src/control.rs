//! The control page: a static library of merchandised placements, the same for everybody (the paper's production baseline).

use anyhow::{Context, Result};
use endcap_evaluation::control_library;
use endcap_ranking::KeywordCard;
use endcap_retrieval::{Filter, Snapshot};
use endcap_schemas::{DietSet, Product};
use serde::Serialize;

use crate::view::{PlacementView, ProductView};

/// Placements of the control page.
const PLACEMENTS: usize = 8;
/// Products of one of them.
const PRODUCTS: usize = 20;

/// The control page for the front end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ControlView {
    /// Carousels in order.
    pub placements: Vec<PlacementView>,
}

/// The control page of a market.
///
/// # Errors
/// When the catalogue cannot be read.
pub fn page(market: &Snapshot) -> Result<ControlView> {
    let filter = Filter::of_page(DietSet::NONE, &[]);
    let mut placements = Vec::with_capacity(PLACEMENTS);
    // The library needs no term numbers here: products are fetched by category.
    for draft in control_library(market.categories(), PLACEMENTS * 2, |_| Some(0)) {
        let category = draft.theme.concepts.first().map(String::as_str).unwrap_or_default();
        let products = market.popular(category, &filter, PRODUCTS).context("cannot read the catalogue")?;
        if !products.is_empty() && placements.len() < PLACEMENTS {
            placements.push(PlacementView {
                title: draft.theme.title,
                intent: draft.theme.intent,
                because: None,
                origin: draft.theme.origin,
                keywords: draft.keywords.iter().map(KeywordCard::of).collect(),
                retrieved: i32::try_from(products.len()).unwrap_or(i32::MAX),
                products: products.iter().map(|product: &Product| ProductView::of(product, None)).collect(),
            });
        }
    }
    Ok(ControlView { placements })
}
