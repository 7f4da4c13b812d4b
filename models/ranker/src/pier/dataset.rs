//! What models are trained and tried on: pages as they were shown, with their clicks and what the shopper had clicked on before.
//!
//! Whatever the data come from, an item is numbers of fields (id, category, …), a page [`PLACES`] items, and a history the newest [`HISTORY`]
//! pages with a click that lie before it (section 5.1.1; fewer where there are fewer).

use std::collections::HashMap;

use super::PierError;

/// Items of a page that is shown (section 5.1.3: 5).
pub const PLACES: usize = 5;
/// Pages of a history (M of section 4.1; section 5.1.3: 5).
pub const HISTORY: usize = 5;
/// Stands for a page that a history does not have; as a row of a tensor, for zeros.
pub(crate) const NONE: u32 = u32::MAX;

/// A page that was shown.
#[derive(Debug, Clone, PartialEq)]
pub struct PageView {
    /// Who saw it, from 0.
    pub shopper: u32,
    /// When, in milliseconds.
    pub at_ms: i64,
    /// Numbers of the items, place by place.
    pub items: [u32; PLACES],
    /// Whether each was clicked; `None` where nobody knows.
    pub clicks: [Option<bool>; PLACES],
}

impl PageView {
    /// Whether anything on it was clicked.
    pub fn is_clicked(&self) -> bool {
        self.clicks.contains(&Some(true))
    }
}

/// Rows of the one table of embeddings: the values of each field, then shoppers, then places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    fields: Vec<u32>,
    shoppers: u32,
    places: usize,
}

impl Vocabulary {
    /// Of fields with so many values each, and so many shoppers; for pages of [`PLACES`] items.
    pub fn new(fields: &[u32], shoppers: u32) -> Self {
        Self { fields: fields.to_vec(), shoppers, places: PLACES }
    }

    /// The same for pages of `places` items, one at least and [`PLACES`] at most (the paper's second data show 3 of 10). Of a page in the data
    /// the first so many count.
    pub fn of_places(self, places: usize) -> Self {
        Self { places: places.clamp(1, PLACES), ..self }
    }

    /// Number of fields of an item.
    pub fn fields(&self) -> usize {
        self.fields.len()
    }

    /// Items of a page.
    pub fn places(&self) -> usize {
        self.places
    }

    /// How many values each field has.
    pub fn values(&self) -> &[u32] {
        &self.fields
    }

    /// How many shoppers there are.
    pub fn shoppers(&self) -> u32 {
        self.shoppers
    }

    /// Rows of the table.
    pub fn rows(&self) -> usize {
        self.place(self.places) as usize
    }

    pub(crate) fn field(&self, field: usize, value: u32) -> u32 {
        self.fields[..field].iter().sum::<u32>() + value
    }

    pub(crate) fn shopper(&self, shopper: u32) -> u32 {
        self.field(self.fields(), shopper)
    }

    pub(crate) fn place(&self, place: usize) -> u32 {
        self.shopper(self.shoppers) + place as u32
    }
}

/// Where time cuts pages into parts, in milliseconds. Pages before the first are history alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cuts {
    /// From here on pages are trained on.
    pub train_ms: i64,
    /// From here on they say when training should have ended.
    pub valid_ms: i64,
    /// From here on they are the test.
    pub test_ms: i64,
}

/// Pages in the order of time, cut into parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Rows of the embeddings.
    pub vocabulary: Vocabulary,
    /// The pages.
    pub pages: Vec<PageView>,
    /// Numbers of the pages that are trained on.
    pub train: Vec<u32>,
    /// Of those that say when training should have ended.
    pub valid: Vec<u32>,
    /// Of the test.
    pub test: Vec<u32>,
    /// Rows of the items' fields, `[items, fields]`.
    items: Vec<u32>,
    /// Numbers of the pages of each page's history, newest first, `[pages, HISTORY]`.
    histories: Vec<u32>,
}

impl Dataset {
    /// Cuts `pages`, in whatever order, and finds their histories. `items` are fields of each item.
    ///
    /// # Errors
    /// When a page or an item names what the vocabulary does not have, or a part has no page.
    pub fn new(vocabulary: Vocabulary, items: &[Vec<u32>], mut pages: Vec<PageView>, cuts: Cuts) -> Result<Self, PierError> {
        check(&vocabulary, items, &pages)?;
        // The same order whatever order they came in: who saw two pages at once saw them in no order that means anything.
        pages.sort_by_key(|page| (page.at_ms, page.shopper, page.items));
        let rows = items.iter().flat_map(|item| item.iter().enumerate().map(|(field, value)| vocabulary.field(field, *value)));
        let part = |from: i64, to: i64| -> Vec<u32> {
            let inside = |page: &(usize, &PageView)| (from..to).contains(&page.1.at_ms);
            pages.iter().enumerate().filter(inside).map(|(number, _)| number as u32).collect()
        };
        let parts = [(cuts.train_ms, cuts.valid_ms), (cuts.valid_ms, cuts.test_ms), (cuts.test_ms, i64::MAX)];
        let [train, valid, test] = parts.map(|(from, to)| part(from, to));
        for (pages, what) in [(&train, "to train on"), (&valid, "to end the training by"), (&test, "to test with")] {
            if pages.is_empty() {
                return Err(PierError::NoPages(what));
            }
        }
        let (items, histories) = (rows.collect(), histories(&pages));
        Ok(Self { vocabulary, pages, train, valid, test, items, histories })
    }

    /// The same with no history of anybody: what is trained then is what is served where no pages are remembered.
    pub fn without_histories(mut self) -> Self {
        self.histories.fill(NONE);
        self
    }

    /// A page as a visit whose candidates are what was shown, in that order.
    pub fn visit(&self, page: u32) -> Visit<'_> {
        let PageView { shopper, at_ms, items, .. } = &self.pages[page as usize];
        Visit { shopper: *shopper, at_ms: *at_ms, history: self.history(page), items }
    }

    /// Numbers of the pages of a page's history, newest first.
    pub fn history(&self, page: u32) -> &[u32] {
        let slots = &self.histories[page as usize * HISTORY..][..HISTORY];
        &slots[..slots.iter().position(|page| *page == NONE).unwrap_or(HISTORY)]
    }

    /// Values of the fields of items, `[items, fields]`.
    pub fn values(&self, items: &[u32]) -> Vec<u32> {
        let of_item = |item: &u32| self.rows(*item).iter().enumerate().map(|(field, row)| row - self.vocabulary.field(field, 0));
        items.iter().flat_map(of_item).collect()
    }

    /// Rows of an item's fields.
    pub(crate) fn rows(&self, item: u32) -> &[u32] {
        &self.items[item as usize * self.vocabulary.fields()..][..self.vocabulary.fields()]
    }
}

/// A slate that is to be arranged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Visit<'a> {
    /// Who visits.
    pub shopper: u32,
    /// When, in milliseconds.
    pub at_ms: i64,
    /// Numbers of the pages of the history, newest first.
    pub history: &'a [u32],
    /// Numbers of the candidates, at least as many as a page has places.
    pub items: &'a [u32],
}

fn check(vocabulary: &Vocabulary, items: &[Vec<u32>], pages: &[PageView]) -> Result<(), PierError> {
    let fits = |fields: &Vec<u32>| {
        fields.len() == vocabulary.fields() && fields.iter().zip(&vocabulary.fields).all(|(value, values)| value < values)
    };
    if let Some(item) = items.iter().position(|fields| !fits(fields)) {
        return Err(PierError::Item { item });
    }
    let known =
        |page: &PageView| page.shopper < vocabulary.shoppers && page.items.iter().all(|item| (*item as usize) < items.len());
    match pages.iter().position(|page| !known(page)) {
        Some(page) => Err(PierError::Page { page }),
        None => Ok(()),
    }
}

/// Histories of pages in the order of time: each shopper's clicked pages of earlier times.
fn histories(pages: &[PageView]) -> Vec<u32> {
    let mut clicked: HashMap<u32, Vec<u32>> = HashMap::new();
    let mut histories = Vec::with_capacity(pages.len() * HISTORY);
    for (number, page) in pages.iter().enumerate() {
        let before = clicked.entry(page.shopper).or_default();
        let earlier = before.iter().rev().filter(|other| pages[**other as usize].at_ms < page.at_ms);
        histories.extend(earlier.copied().chain(std::iter::repeat(NONE)).take(HISTORY));
        if page.is_clicked() {
            before.push(number as u32);
        }
    }
    histories
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(shopper: u32, at_ms: i64, clicked: bool) -> PageView {
        PageView { shopper, at_ms, items: [0, 1, 2, 3, 4], clicks: [Some(false), Some(clicked), None, Some(false), None] }
    }

    fn dataset(pages: Vec<PageView>) -> Result<Dataset, PierError> {
        let items: Vec<Vec<u32>> = (0..5).map(|item| vec![item, item % 2]).collect();
        Dataset::new(Vocabulary::new(&[5, 2], 3), &items, pages, Cuts { train_ms: 10, valid_ms: 20, test_ms: 30 })
    }

    #[test]
    fn a_history_is_the_shoppers_newest_clicked_pages_before_or_none() {
        let mut pages: Vec<PageView> = (0..9).map(|at| page(1, at, at != 3)).collect();
        pages.extend([page(0, 5, true), page(1, 10, true), page(1, 10, true), page(2, 25, true), page(1, 30, false)]);
        pages.reverse();
        let data = dataset(pages).expect("a dataset");
        let times = |page: u32| -> Vec<i64> { data.history(page).iter().map(|page| data.pages[*page as usize].at_ms).collect() };
        let at = |part: &[u32]| part.iter().map(|page| times(*page)).collect::<Vec<_>>();
        // Two pages at once are not each other's history.
        assert_eq!(at(&data.train), [[8, 7, 6, 5, 4], [8, 7, 6, 5, 4]]);
        assert_eq!(at(&data.valid), [Vec::<i64>::new()]);
        assert_eq!(at(&data.test), [[10, 10, 8, 7, 6]]);
        let data = data.without_histories();
        assert!((0..data.pages.len()).all(|page| data.history(page as u32).is_empty()));
    }

    #[test]
    fn rows_of_the_table_are_all_different() {
        let data = dataset(vec![page(0, 10, true), page(0, 20, true), page(0, 30, true)]).expect("a dataset");
        assert_eq!((data.rows(4), data.rows(1)), (&[4, 5][..], &[1, 6][..]));
        assert_eq!((data.vocabulary.shopper(2), data.vocabulary.place(0), data.vocabulary.rows()), (9, 10, 15));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let all = || vec![page(0, 10, true), page(0, 20, true), page(0, 30, true)];
        for (pages, needle) in [
            ([all(), vec![page(3, 11, true)]].concat(), "page 3"),
            ([all(), vec![PageView { items: [0, 1, 2, 3, 5], ..page(0, 11, true) }]].concat(), "page 3"),
            (all()[..2].to_vec(), "no page to test with"),
        ] {
            let error = dataset(pages).expect_err("it does not fit").to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
