//! A stored page as people see it: ids resolved in the catalogue, and why each placement is there.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result};
use endcap_ranking::{KeywordCard, ProductCard};
use endcap_retrieval::Snapshot;
use endcap_schemas::{Head, Origin, Page, Placement, Product, PurchaseMemory};
use serde::Serialize;

/// A page for the front end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PageView {
    /// Whose.
    pub user: String,
    /// The shopper in a few words.
    pub persona: String,
    /// Diets in words.
    pub diets: Vec<&'static str>,
    /// The fold's clock: identifies the page of this shopper.
    pub context_ms: i64,
    /// Number of the manifest that it was made under: that of the process that folded the event.
    pub generation: i32,
    /// The event behind it.
    pub event_id: String,
    /// When the log took that event.
    pub accepted_ms: i64,
    /// When the page could be read.
    pub published_ms: i64,
    /// From one to the other.
    pub freshness_ms: i64,
    /// Model, index and prompt versions.
    pub versions: BTreeMap<String, String>,
    /// Carousels in order.
    pub placements: Vec<PlacementView>,
}

/// A carousel for the front end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlacementView {
    /// Its title.
    pub title: String,
    /// The intent behind it.
    pub intent: String,
    /// The latest purchase that it goes back to, where there is one.
    pub because: Option<String>,
    /// Who wrote it.
    pub origin: Origin,
    /// What retrieved its products.
    pub keywords: Vec<KeywordCard>,
    /// Its products in order.
    pub products: Vec<ProductView>,
    /// How many the keywords retrieved.
    pub retrieved: i32,
}

/// A product for the front end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProductView {
    /// What it is.
    #[serde(flatten)]
    pub card: ProductCard,
    /// Relevance to the placement, 0…1; none on the control page.
    pub score: Option<f64>,
}

impl ProductView {
    /// The view of a product.
    pub fn of(product: &Product, score: Option<f64>) -> Self {
        Self { card: ProductCard::of(product), score }
    }
}

/// Shows `page`; products that have left the catalogue since are left out, and so are placements without any left. `recent` are the shopper's purchases, newest first.
///
/// # Errors
/// When the catalogue cannot be read.
pub fn page(head: &Head, page: &Page, published_ms: i64, recent: &[PurchaseMemory], market: &Snapshot) -> Result<PageView> {
    let (mut told, mut placements) = (HashSet::new(), Vec::with_capacity(page.placements.len()));
    for placement in &page.placements {
        let products = show_products(placement, market)?;
        if !products.is_empty() {
            placements.push(show_placement(placement, because(placement, recent, &mut told), products));
        }
    }
    Ok(PageView {
        user: short_name(head),
        persona: page.persona.clone(),
        diets: page.diets.iter().map(endcap_schemas::Diet::words).collect(),
        context_ms: head.context_ms,
        generation: head.generation,
        event_id: head.cause.event_id.clone(),
        accepted_ms: head.cause.accepted_ms,
        published_ms,
        freshness_ms: (published_ms - head.cause.accepted_ms).max(0),
        versions: page.versions.clone(),
        placements,
    })
}

/// How many placements of `page` still show a product.
///
/// # Errors
/// When the catalogue cannot be read.
pub fn shown(page: &Page, market: &Snapshot) -> Result<usize> {
    let mut count = 0;
    for placement in &page.placements {
        for shown in &placement.products {
            if market.product(&shown.product).context("cannot read the catalogue")?.is_some() {
                count += 1;
                break;
            }
        }
    }
    Ok(count)
}

fn show_products(placement: &Placement, market: &Snapshot) -> Result<Vec<ProductView>> {
    let ids: Vec<&str> = placement.products.iter().map(|shown| shown.product.as_str()).collect();
    let found = market.products(&ids).context("cannot read the catalogue")?;
    let by_id: HashMap<&str, &Product> = found.iter().map(|product| (product.id.as_str(), product)).collect();
    let products = placement
        .products
        .iter()
        .filter_map(|shown| Some(ProductView::of(by_id.get(shown.product.as_str())?, Some(shown.score))));
    Ok(products.collect())
}

fn show_placement(placement: &Placement, because: Option<String>, products: Vec<ProductView>) -> PlacementView {
    PlacementView {
        title: placement.theme.title.clone(),
        intent: placement.theme.intent.clone(),
        because,
        origin: placement.theme.origin,
        keywords: placement.keywords.iter().map(KeywordCard::of).collect(),
        products,
        retrieved: placement.retrieved,
    }
}

/// The newest purchase in one of the theme's categories; each purchase is told once a page.
fn because(placement: &Placement, recent: &[PurchaseMemory], told: &mut HashSet<String>) -> Option<String> {
    let concepts = &placement.theme.concepts;
    let found = recent.iter().find(|purchase| concepts.contains(&purchase.category) && !told.contains(&purchase.product))?;
    told.insert(found.product.clone());
    Some(found.name.clone())
}

/// `user` for the default tenant, else `tenant/user`.
fn short_name(head: &Head) -> String {
    head.user.short()
}
