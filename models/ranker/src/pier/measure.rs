//! What a selection of orders is worth, and the selections that need no model.

use rand::seq::index;

use super::Order;
use crate::random::stream;

const CHOICE_STREAM: u64 = 31;

/// Place of the largest of `values`, the first of equals; `None` where there are none.
pub fn best(values: &[f64]) -> Option<usize> {
    first_highest(values.iter().copied().enumerate())
}

/// The one among `selected` orders that has the largest of `values`, one for each order; the first of equals. `None` of none.
pub fn best_of(selected: &[usize], values: &[f64]) -> Option<usize> {
    first_highest(selected.iter().map(|order| (*order, values[*order])))
}

/// What has the highest value, the first of equals.
pub(super) fn first_highest<T>(of: impl IntoIterator<Item = (T, f64)>) -> Option<T> {
    let higher = |best: (T, f64), next: (T, f64)| if next.1.total_cmp(&best.1).is_gt() { next } else { best };
    of.into_iter().reduce(higher).map(|(what, _)| what)
}

/// The order of items by their scores, the highest first; equals as they come.
pub fn best_first(scores: &[f64]) -> Order {
    let mut order: Order = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
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

/// Area under the ROC curve of scores, of which each is a click's with its probability (1 and 0 where the click is known): the share of pairs of a
/// click and of none, of two different items, in which the click has the higher score; half of it where they are equal. With true probabilities it is
/// the expected area (but for terms of the second order), without the noise of the clicks. `None` where there are no pairs.
pub fn auc(scores: &[f32], probabilities: &[f64]) -> Option<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_unstable_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let (mut below, mut right) = (0.0, 0.0);
    for equal in order.chunk_by(|a, b| scores[*a] == scores[*b]) {
        let clicks: f64 = equal.iter().map(|item| probabilities[*item]).sum();
        let others = equal.len() as f64 - clicks;
        // An item is no pair with itself.
        let itself: f64 = equal.iter().map(|item| probabilities[*item] * (1.0 - probabilities[*item])).sum();
        right += clicks * below + (clicks * others - itself) / 2.0;
        below += others;
    }
    let clicks: f64 = probabilities.iter().sum();
    let pairs = clicks * (probabilities.len() as f64 - clicks)
        - probabilities.iter().map(|probability| probability * (1.0 - probability)).sum::<f64>();
    (pairs > 0.0).then(|| right / pairs)
}

/// Mean cross entropy of clicks of these probabilities (1 and 0 where they are known) under log-odds, in nats.
pub fn log_loss(log_odds: &[f32], probabilities: &[f64]) -> f64 {
    let cost = |(x, probability): (&f32, &f64)| {
        let x = f64::from(*x);
        x.max(0.0) - x * probability + (-x.abs()).exp().ln_1p()
    };
    log_odds.iter().zip(probabilities).map(cost).sum::<f64>() / probabilities.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_is_the_share_of_pairs_in_their_order() {
        for (scores, probabilities, wanted) in [
            (&[1.0, 2.0, 3.0, 4.0][..], &[0.0, 0.0, 1.0, 1.0][..], Some(1.0)),
            (&[4.0, 3.0, 2.0, 1.0], &[0.0, 0.0, 1.0, 1.0], Some(0.0)),
            (&[1.0, 1.0, 1.0], &[0.0, 1.0, 1.0], Some(0.5)),
            (&[1.0, 2.0, 3.0], &[1.0, 0.0, 1.0], Some(0.5)),
            (&[1.0, 2.0], &[1.0, 1.0], None),
            (&[], &[], None),
            // Either is the click of a pair with these probabilities: .8 · .9 right, .2 · .1 wrong.
            (&[1.0, 2.0], &[0.1, 0.8], Some(0.72 / 0.74)),
        ] {
            let got = auc(scores, probabilities);
            assert!(got.zip(wanted).map_or(got == wanted, |(got, wanted)| (got - wanted).abs() < 1e-12), "{scores:?}: {got:?}");
        }
    }

    #[test]
    fn a_loss_is_the_entropy_where_the_probabilities_are_known() {
        assert!((log_loss(&[0.0, 0.0], &[1.0, 0.0]) - 2.0_f64.ln()).abs() < 1e-12);
        let entropy = -(0.2 * 0.2_f64.ln() + 0.8 * 0.8_f64.ln());
        assert!((log_loss(&[(0.25_f32).ln()], &[0.2]) - entropy).abs() < 1e-7);
        assert!(log_loss(&[40.0], &[0.0]) > 39.0);
    }

    #[test]
    fn a_hit_is_a_best_order_whichever_of_equals() {
        let values = [0.2, 0.9, 0.1, 0.9];
        for (selected, hit) in [(vec![0, 2], false), (vec![3], true), (vec![2, 1], true), (vec![], false)] {
            assert_eq!(hits(&selected, &values), hit, "{selected:?}");
        }
        assert_eq!((best(&values), best(&[])), (Some(1), None));
        assert_eq!((best_of(&[0, 3, 1], &values), best_of(&[], &values)), (Some(3), None));
        assert_eq!(best_first(&values), [1, 3, 0, 2]);
        assert!((value_ratio(0, &values) - 0.2 / 0.9).abs() < 1e-12);
    }
}
