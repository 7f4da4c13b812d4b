//! Candidates that are found without FPSM: by beam search over point-wise scores, and by letting the evaluator lead.

use std::collections::HashSet;

use super::{Order, measure::first_highest};

/// PRS's generator (section 5.3.1): beam search over the expected clicks of a page, place by place, that point-wise scores foretell; `width`
/// orders, best first. As the sum of the scores alone is the same for all orders of the same items, each place counts with its rate of clicks.
pub fn beam(scores: &[f64], rates: &[f64], width: usize) -> Vec<Order> {
    let mut beam: Vec<(f64, Order)> = vec![(0.0, Order::new())];
    for rate in rates.iter().take(scores.len()) {
        let longer = |(sum, order): &(f64, Order)| {
            let left: Vec<usize> = (0..scores.len()).filter(|item| !order.contains(item)).collect();
            let (sum, order) = (*sum, order.clone());
            left.into_iter().map(move |item| (sum + rate * scores[item], order.iter().copied().chain([item]).collect()))
        };
        beam = beam.iter().flat_map(longer).collect();
        beam.sort_by(|a: &(f64, Order), b| b.0.total_cmp(&a.0));
        beam.truncate(width);
    }
    beam.into_iter().map(|(_, order)| order).collect()
}

/// An order that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The order.
    pub order: Order,
    /// What the evaluator says it is worth.
    pub value: f64,
    /// Orders that the evaluator was asked about.
    pub calls: usize,
}

/// Best-first search: the evaluator is asked about `start`, then always about all that is one step (two places swapped, or one item replaced
/// by one that is not shown) from the best order whose neighbours it does not know yet. Ends after `calls_max` orders.
///
/// # Errors
/// The evaluator's.
pub fn guided<E>(
    items: usize,
    start: &[Order],
    calls_max: usize,
    mut evaluate: impl FnMut(&[Order]) -> Result<Vec<f64>, E>,
) -> Result<Found, E> {
    let mut seen: HashSet<Order> = HashSet::new();
    let mut known: Vec<(Order, f64)> = Vec::new();
    let mut expanded: Vec<bool> = Vec::new();
    let mut next: Vec<Order> = start.to_vec();
    loop {
        next.retain(|order| seen.len() < calls_max && seen.insert(order.clone()));
        let values = evaluate(&next)?;
        expanded.resize(known.len() + next.len(), false);
        known.extend(next.drain(..).zip(values));
        let open = first_highest((0..known.len()).filter(|place| !expanded[*place]).map(|place| (place, known[place].1)));
        match open.filter(|_| seen.len() < calls_max) {
            Some(place) => {
                expanded[place] = true;
                next = neighbours(&known[place].0, items);
            }
            None => break,
        }
    }
    let calls = known.len();
    let best = first_highest(known.iter().map(|(order, value)| ((order, *value), *value)));
    let (order, value) = best.map(|(order, value)| (order.clone(), value)).unwrap_or_default();
    Ok(Found { order, value, calls })
}

/// Orders one step away.
fn neighbours(order: &Order, items: usize) -> Vec<Order> {
    let mut near = Vec::new();
    for place in 0..order.len() {
        for other in place + 1..order.len() {
            let mut swapped = order.clone();
            swapped.swap(place, other);
            near.push(swapped);
        }
        for item in (0..items).filter(|item| !order.contains(item)) {
            let mut replaced = order.clone();
            replaced[place] = item;
            near.push(replaced);
        }
    }
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value that has no other local maximum than the best order: items by their number, better ones first.
    fn by_number(orders: &[Order]) -> Result<Vec<f64>, ()> {
        let value = |order: &Order| order.iter().enumerate().map(|(place, item)| *item as f64 / (1.0 + place as f64)).sum();
        Ok(orders.iter().map(value).collect())
    }

    #[test]
    fn a_wide_beam_has_all_orders_and_a_narrow_one_the_best_by_score() {
        let (scores, rates) = ([0.1, 0.5, 0.3, 0.2, 0.4], [1.0, 0.6, 0.5, 0.4, 0.3]);
        let all = beam(&scores, &rates, 120);
        assert_eq!((all.len(), &all[0]), (120, &vec![1, 4, 2, 3, 0]));
        let value = |order: &Order| order.iter().zip(rates).map(|(item, rate)| rate * scores[*item]).sum::<f64>();
        assert!(all.is_sorted_by(|a, b| value(a) >= value(b) - 1e-12));
        assert_eq!(beam(&scores, &rates, 10)[..3], all[..3]);
        assert_eq!(beam(&scores, &rates, 10).len(), 10);
    }

    #[test]
    fn many_orders_are_searched_within_the_calls() {
        let start: Vec<Order> = vec![(0..5).collect()];
        let found = guided(10, &start, 300, by_number).expect("a value");
        assert_eq!((found.calls, found.order), (300, vec![9, 8, 7, 6, 5]));
        let none = guided(10, &[], 10, by_number).expect("no value");
        assert_eq!(none.calls, 0);
    }

    #[test]
    fn a_search_asks_about_no_order_twice_and_ends_when_all_are_known() {
        let mut asked = HashSet::new();
        let found = guided(4, &[vec![0, 1, 2], vec![0, 1, 2]], 1_000, |orders: &[Order]| {
            orders.iter().for_each(|order| assert!(asked.insert(order.clone()), "{order:?} is asked about twice"));
            by_number(orders)
        });
        assert_eq!((found.expect("a value").calls, asked.len()), (24, 24));
    }
}
