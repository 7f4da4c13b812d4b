//! What nominators choose from: of each placement the products that its page has, and those that were found for it beside them ([`Found`]).
//! Nothing here depends on the shopper but the page.

use std::{collections::HashMap, sync::Arc};

use endcap_market::hash;
use endcap_retrieval::ProductWords;
use endcap_schemas::{Placement, Product};

use crate::{ProductCard, features::Nominator};

/// A product with what is looked at over and over.
#[derive(Debug)]
pub(crate) struct Item {
    /// Follows from its id, and tells it from other products.
    pub(crate) number: u64,
    pub(crate) product: Product,
    /// What is shown of it.
    pub(crate) card: Arc<ProductCard>,
    /// What its shelves, from the leaf on, and its department are known by.
    pub(crate) shelves: Vec<u64>,
    pub(crate) department: Option<u64>,
    pub(crate) words: ProductWords,
    /// Whether its title has a banned term.
    pub(crate) is_banned: bool,
}

impl Item {
    pub(crate) fn new(product: Product, is_banned: bool) -> Self {
        Self {
            number: hash(&product.id),
            card: Arc::new(ProductCard::of(&product)),
            shelves: product.shelves().map(hash).collect(),
            department: product.category_path.first().map(|department| hash(department)),
            words: ProductWords::of(&product),
            product,
            is_banned,
        }
    }
}

/// A product that is relevant to a placement; each figure 0…1, as the traits of the same name.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) item: Arc<Item>,
    /// Nominators that may bring it in, by bit.
    pub(crate) of: u8,
    pub(crate) relevance: f64,
    pub(crate) keyword: f64,
    pub(crate) embedding: f64,
}

/// A product that may be nominated for a placement, with where it stands among the others; each figure 0…1, as the traits of the same name.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) found: Found,
    pub(crate) dearness: f64,
    pub(crate) anchor: f64,
}

/// What may be nominated for a placement.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) candidates: Vec<Candidate>,
}

impl Pool {
    /// The pool of `placement`: the page's own products, as far as they are among `items`, and what was `found` beside them. Its own were found
    /// relevant when the page was made, as its scores tell, and came by its keywords.
    pub(crate) fn of(placement: &Placement, items: &HashMap<&str, Arc<Item>>, found: &[Found]) -> Self {
        let mut all: Vec<Found> = Vec::with_capacity(placement.products.len() + found.len());
        for shown in placement.products.iter().filter(|shown| shown.score.is_finite()) {
            let Some(item) = items.get(shown.product.as_str()) else { continue };
            if all.iter().all(|own| own.item.number != item.number) {
                let (item, of) = (item.clone(), Nominator::Keyword.bit());
                all.push(Found { item, of, relevance: shown.score, keyword: 0.0, embedding: 0.0 });
            }
        }
        let count = all.len();
        for found in found {
            match all[..count].iter_mut().find(|own| own.item.number == found.item.number) {
                Some(own) => (own.of, own.keyword, own.embedding) = (own.of | found.of, found.keyword, found.embedding),
                None => all.push(found.clone()),
            }
        }
        Self::compared(placement, all)
    }

    /// Looks at each beside the others.
    fn compared(placement: &Placement, all: Vec<Found>) -> Self {
        let prices: Vec<i64> = all.iter().filter_map(|found| found.item.product.price_cents).collect();
        let mean = prices.iter().sum::<i64>() as f64 / prices.len().max(1) as f64;
        let shelf = placement.theme.concepts.first().map(|concept| hash(&concept.trim().to_lowercase()));
        let candidate = |found: Found| {
            let product = &found.item.product;
            let price = product.price_cents.filter(|price| *price >= 0 && mean > 0.0);
            let dearness = price.map_or(0.5, |price| price as f64 / (price as f64 + mean));
            let anchor = f64::from(u8::from(shelf.is_some_and(|shelf| found.item.shelves.contains(&shelf))));
            Candidate { found, dearness, anchor }
        };
        Self { candidates: all.into_iter().map(candidate).collect() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use endcap_schemas::{DietSet, Origin, ShownProduct, Theme};

    use super::*;

    /// A product of this id, on a shelf of the same name.
    pub(crate) fn item(id: &str, price_cents: i64) -> Arc<Item> {
        let product = Product {
            id: id.to_owned(),
            name: id.to_owned(),
            brand: String::new(),
            size: String::new(),
            category_path: vec!["food".to_owned(), id.to_owned()],
            price_cents: Some(price_cents),
            popularity: 0.0,
            violates: DietSet::NONE,
            age_restricted: false,
            in_stock: true,
        };
        Arc::new(Item::new(product, false))
    }

    /// A placement about tea, with these products of the page.
    pub(crate) fn placement(products: &[(&str, f64)]) -> Placement {
        let theme = Theme {
            title: "Tea time".to_owned(),
            intent: String::new(),
            concepts: vec!["Tea".to_owned()],
            origin: Origin::Model,
        };
        let products = products.iter().map(|(id, score)| ShownProduct { product: (*id).to_owned(), score: *score }).collect();
        Placement { theme, keywords: Vec::new(), products, retrieved: 0 }
    }

    #[test]
    fn a_pool_is_what_the_page_has_and_what_was_found_beside_it_each_product_once() {
        let items: HashMap<&str, Arc<Item>> = [("tea", 300), ("jam", 100)].map(|(id, price)| (id, item(id, price))).into();
        let found = |id: &str, price, nominator: Nominator| Found {
            item: item(id, price),
            of: nominator.bit(),
            relevance: 0.7,
            keyword: 0.25,
            embedding: 0.5,
        };
        let page = placement(&[("tea", 0.9), ("tea", 0.1), ("gone", 0.8), ("oil", f64::NAN), ("jam", 0.6)]);
        let pool = Pool::of(&page, &items, &[found("jam", 100, Nominator::Popularity), found("oil", 200, Nominator::Embedding)]);
        let told = |candidate: &Candidate| {
            let Found { item, of, relevance, keyword, embedding } = &candidate.found;
            (item.product.id.clone(), *of, [*relevance, *keyword, *embedding, candidate.dearness, candidate.anchor])
        };
        let expected = [
            ("tea", 0b0001, [0.9, 0.0, 0.0, 0.6, 1.0]),
            ("jam", 0b0101, [0.6, 0.25, 0.5, 1.0 / 3.0, 0.0]),
            ("oil", 0b0010, [0.7, 0.25, 0.5, 0.5, 0.0]),
        ];
        let expected = expected.map(|(id, of, figures)| (id.to_owned(), of, figures));
        assert_eq!(pool.candidates.iter().map(told).collect::<Vec<_>>(), expected);
    }
}
