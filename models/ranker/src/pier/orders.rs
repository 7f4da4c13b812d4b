//! All orders of a slate.

/// Which item stands at each place, from the first on.
pub type Order = Vec<usize>;

/// Every ordered choice of `shown` out of `items`, in lexicographic order: 120 for 5 of 5, 720 for 3 of 10. The first is the order in which the
/// items come.
pub fn orders(items: usize, shown: usize) -> Vec<Order> {
    let mut all = vec![Vec::new()];
    for _ in 0..shown.min(items) {
        let longer = |order: Order| {
            let left: Vec<usize> = (0..items).filter(|item| !order.contains(item)).collect();
            left.into_iter().map(move |item| order.iter().copied().chain([item]).collect::<Order>())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

/// How many [`orders`] there are.
pub fn count(items: usize, shown: usize) -> usize {
    (0..shown.min(items)).map(|place| items - place).product()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn there_are_as_many_orders_as_there_should_be_and_no_two_alike() {
        for (items, shown, count) in [(5, 5, 120), (10, 3, 720), (4, 2, 12), (3, 9, 6), (1, 1, 1)] {
            let all = orders(items, shown);
            assert_eq!((all.len(), super::count(items, shown)), (count, count), "{shown} of {items}");
            assert_eq!(all.iter().collect::<HashSet<_>>().len(), count);
            assert!(all.is_sorted());
            assert_eq!(all[0], (0..shown.min(items)).collect::<Vec<_>>());
        }
    }
}
