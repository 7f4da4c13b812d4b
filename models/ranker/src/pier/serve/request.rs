//! What a kernel is asked: a slate, the orders of it that count, and who looks at it.

use super::{
    super::{HISTORY, Order, PLACES, Vocabulary, orders::count},
    ITEMS_MAX, ORDERS_MAX, POINT_MAX,
    kernel::{Kernel, PAGE_LANES},
    lanes::Lane,
};
use crate::SlateError;

/// A slate that is to be arranged, and for whom: as many items as a page shows, or more.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RerankRequest<'a> {
    /// Number of the shopper; none for one whom the model does not know, who then has no embedding.
    pub shopper: Option<u32>,
    /// Values of the items' fields, `[items, fields]`.
    pub items: &'a [u32],
    /// Point-wise log-odds of a click on each item, `[items]`.
    pub point: &'a [f32],
}

/// A page that the shopper clicked on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClickedPage<'a> {
    /// Values of the fields of its items, place by place, `[places, fields]`.
    pub items: &'a [u32],
    /// When it was, in milliseconds.
    pub at_ms: i64,
}

/// A shopper's clicked pages as the weights of one kernel see them: encoded once, and good for every slate until new weights or a new click.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// Of the kernel that encoded it.
    pub(super) print: u64,
    /// u of each page, newest first.
    pub(super) pages: Vec<[Lane; PAGE_LANES]>,
}

impl History {
    /// Pages that count.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether nobody has clicked.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// Orders of a slate, all of as many different items.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    items: usize,
    shown: usize,
    flat: Vec<u8>,
}

impl Orders {
    /// All orders of `shown` out of `items`, in lexicographic order.
    ///
    /// # Errors
    /// When there are fewer items than are shown, or more than a slate may have; or more than [`ORDERS_MAX`] orders.
    pub fn all(items: usize, shown: usize) -> Result<Self, SlateError> {
        if !(1..=ITEMS_MAX).contains(&items) || shown == 0 || shown > items {
            return Err(SlateError::Items { got: items, shown });
        }
        // Beyond so many places there are too many of anything, and their number may not be countable.
        if shown > PLACES || count(items, shown) > ORDERS_MAX {
            return Err(SlateError::TooMany { items, shown });
        }
        let mut flat = Vec::with_capacity(count(items, shown) * shown);
        let mut order: Vec<u8> = (0..shown as u8).collect();
        loop {
            flat.extend(&order);
            if !next(&mut order, items as u8) {
                return Ok(Self { items, shown, flat });
            }
        }
    }

    /// These orders of `shown` out of `items`.
    ///
    /// # Errors
    /// When there is none, or one is not of as many different items.
    pub fn of(items: usize, shown: usize, orders: &[Order]) -> Result<Self, SlateError> {
        if !(1..=ITEMS_MAX).contains(&items) {
            return Err(SlateError::Items { got: items, shown });
        }
        if orders.is_empty() || shown == 0 {
            return Err(SlateError::NoOrders);
        }
        let fits = |order: &Order| {
            order.len() == shown && order.iter().enumerate().all(|(at, item)| *item < items && !order[..at].contains(item))
        };
        match orders.iter().position(|order| !fits(order)) {
            Some(order) => Err(SlateError::Order { order, shown, items }),
            None => Ok(Self { items, shown, flat: orders.iter().flatten().map(|item| *item as u8).collect() }),
        }
    }

    /// Some of these, by their numbers, in place of those that `some` had. Numbers beyond the last are left out.
    pub fn choose_into(&self, numbers: &[u32], some: &mut Self) {
        (some.items, some.shown) = (self.items, self.shown);
        some.flat.clear();
        let chosen = numbers.iter().filter_map(|number| self.flat.chunks_exact(self.shown).nth(*number as usize));
        chosen.for_each(|order| some.flat.extend(order));
    }

    /// Items of the slates that they are of.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Items of a page.
    pub fn shown(&self) -> usize {
        self.shown
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.flat.len() / self.shown.max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flat.is_empty()
    }

    /// Items of an order, by their place in the slate.
    ///
    /// # Panics
    /// When there are not so many orders.
    pub fn get(&self, order: usize) -> &[u8] {
        &self.flat[order * self.shown..][..self.shown]
    }

    /// The orders one after the other.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.flat.chunks_exact(self.shown.max(1))
    }
}

/// Turns an order into the next one of so many items, in lexicographic order; false after the last.
fn next(order: &mut [u8], items: u8) -> bool {
    for place in (0..order.len()).rev() {
        let free = |order: &[u8], item: &u8| !order[..place].contains(item);
        if let Some(item) = (order[place] + 1..items).find(|item| free(order, item)) {
            order[place] = item;
            for later in place + 1..order.len() {
                let lowest = (0..items).find(|item| !order[..later].contains(item));
                order[later] = lowest.expect("there are as many items as places");
            }
            return true;
        }
    }
    false
}

impl Kernel {
    /// Whether the slate is one that the weights can see.
    pub(super) fn check(&self, request: &RerankRequest<'_>) -> Result<(), SlateError> {
        let RerankRequest { shopper, items, point } = *request;
        let (vocabulary, count) = (&self.vocabulary, point.len());
        if !(vocabulary.places()..=ITEMS_MAX).contains(&count) {
            return Err(SlateError::Items { got: count, shown: vocabulary.places() });
        }
        check_values(vocabulary, items, count)?;
        if let Some(shopper) = shopper.filter(|shopper| *shopper >= vocabulary.shoppers()) {
            return Err(SlateError::Shopper { shopper, shoppers: vocabulary.shoppers() });
        }
        match point.iter().position(|point| point.is_nan() || point.abs() > POINT_MAX) {
            Some(item) => Err(SlateError::Point { item, value: point[item] }),
            None => Ok(()),
        }
    }

    /// Whether pages are such as the weights can see.
    pub(super) fn check_pages(&self, pages: &[ClickedPage<'_>]) -> Result<(), SlateError> {
        let most = &pages[..pages.len().min(HISTORY)];
        most.iter().try_for_each(|page| check_values(&self.vocabulary, page.items, self.places()))
    }

    /// Whether orders are of a slate of so many items, and a history of these weights.
    pub(super) fn check_orders(&self, orders: &Orders, items: usize) -> Result<(), SlateError> {
        if orders.is_empty() {
            return Err(SlateError::NoOrders);
        }
        match (orders.items == items, orders.shown == self.places()) {
            (true, true) => Ok(()),
            (false, _) => Err(SlateError::Count { what: "items in its orders", got: orders.items, wanted: items }),
            _ => Err(SlateError::Count { what: "places in its orders", got: orders.shown, wanted: self.places() }),
        }
    }
}

fn check_values(vocabulary: &Vocabulary, items: &[u32], count: usize) -> Result<(), SlateError> {
    let fields = vocabulary.fields();
    if items.len() != count * fields {
        return Err(SlateError::Count { what: "values of fields", got: items.len(), wanted: count * fields });
    }
    let known = |at: usize| vocabulary.values()[at % fields];
    match items.iter().enumerate().position(|(at, value)| *value >= known(at)) {
        Some(at) => Err(SlateError::Value { item: at / fields, field: at % fields, value: items[at], values: known(at) }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::super::orders, *};

    #[test]
    fn all_orders_are_those_of_the_models_and_in_their_order() {
        for (items, shown) in [(5, 5), (10, 3), (4, 2), (1, 1)] {
            let all = Orders::all(items, shown).expect("orders");
            let wanted = orders(items, shown);
            assert_eq!(Orders::of(items, shown, &wanted).as_ref(), Ok(&all));
            assert_eq!(all.len(), wanted.len());
        }
    }

    #[test]
    fn orders_that_are_none_are_named() {
        let wrong = |order: usize| SlateError::Order { order, shown: 2, items: 3 };
        for (orders, error) in [
            (vec![], SlateError::NoOrders),
            (vec![vec![0, 1], vec![1, 1]], wrong(1)),
            (vec![vec![0, 3]], wrong(0)),
            (vec![vec![0]], wrong(0)),
        ] {
            assert_eq!(Orders::of(3, 2, &orders), Err(error));
        }
        for (items, shown) in [(0, 0), (2, 3), (65, 2), (3, 0)] {
            assert_eq!(Orders::all(items, shown), Err(SlateError::Items { got: items, shown }));
        }
        for (items, shown) in [(64, 5), (64, 64)] {
            assert_eq!(Orders::all(items, shown), Err(SlateError::TooMany { items, shown }));
        }
    }

    #[test]
    fn some_orders_are_chosen_by_number() {
        let all = Orders::all(4, 2).expect("orders");
        let mut some = all.clone();
        all.choose_into(&[11, 0, 99], &mut some);
        assert_eq!(some.iter().collect::<Vec<_>>(), [[3, 2], [0, 1]]);
    }
}
