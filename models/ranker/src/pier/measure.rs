//! What a selection of orders is worth, and the selections that need no model.

use rand::seq::index;

use crate::random::stream;

const CHOICE_STREAM: u64 = 31;

/// Place of the largest of `values`, the first of equals; `None` where there are none.
pub fn best(values: &[f64]) -> Option<usize> {
    (0..values.len()).rev().max_by(|a, b| values[*a].total_cmp(&values[*b]))
}

/// Whether a selection holds a best order (HR@1 of section 5.1.2) under `values`, one for each order. Whose values they are decides what the hit
/// ratio tells: the evaluator's own (HR_self), those of one trained without the contrastive loss (HR_frozen), or the truth's (HR_true).
pub fn hits(selected: &[usize], values: &[f64]) -> bool {
    best(values).is_some_and(|best| selected.iter().any(|order| values[*order] >= values[best]))
}

/// V/V*: true value of an order over that of the best.
pub fn value_ratio(order: usize, values: &[f64]) -> f64 {
    best(values).map_or(1.0, |best| values[order] / values[best])
}

/// `most` of `orders` orders by chance (table 4's Random), each as likely; no order twice.
pub fn random_choice(orders: usize, most: usize, seed: u64) -> Vec<usize> {
    index::sample(&mut stream(&[CHOICE_STREAM, seed]), orders, most.min(orders)).into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hit_is_a_best_order_whichever_of_equals() {
        let values = [0.2, 0.9, 0.1, 0.9];
        for (selected, hit) in [(vec![0, 2], false), (vec![3], true), (vec![2, 1], true), (vec![], false)] {
            assert_eq!(hits(&selected, &values), hit, "{selected:?}");
        }
        assert_eq!((best(&values), best(&[])), (Some(1), None));
        assert!((value_ratio(0, &values) - 0.2 / 0.9).abs() < 1e-12);
    }
}
