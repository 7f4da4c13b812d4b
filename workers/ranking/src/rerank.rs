//! The border at which a model of whole rows comes in: it sees the products that are in sight first, and puts them into the order that pleases most
//! as a whole.

use endcap_schemas::{Budget, Product};

use crate::features::Traits;

/// Products of a row that are arranged: those that are in sight first.
pub const ARRANGED: usize = 5;

/// A product, as whoever arranges sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seen<'a> {
    /// The product.
    pub product: &'a Product,
    /// What is known of it here and now.
    pub traits: Traits,
    /// Its expected reward, by the policy.
    pub expected: f64,
}

/// What is to be arranged: up to [`ARRANGED`] products, in the ranker's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Row<'a> {
    /// What the household spends.
    pub budget: Budget,
    /// The products.
    pub products: Vec<Seen<'a>>,
}

/// Answers the places of a row's products in the order in which they are to be shown, or `None` to leave them as they are.
pub type Rerank = Box<dyn Fn(&Row<'_>) -> Option<Vec<usize>> + Send + Sync>;

/// Whether `order` names each of `count` places once.
pub(crate) fn is_order(order: &[usize], count: usize) -> bool {
    let mut places = order.to_vec();
    places.sort_unstable();
    places.into_iter().eq(0..count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_each_place_once() {
        for (order, count, expected) in
            [(&[2, 0, 1][..], 3, true), (&[], 0, true), (&[0, 0, 1], 3, false), (&[0, 1], 3, false), (&[1, 2, 3], 3, false)]
        {
            assert_eq!(is_order(order, count), expected, "{order:?} of {count}");
        }
    }
}
