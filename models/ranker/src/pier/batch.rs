//! Orders of slates as the rows of tensors.

use candle_core::{Device, Result, Tensor};

use super::{
    dataset::{Dataset, HISTORY, NONE, Visit, Vocabulary},
    net::Graph,
};

/// Name of the one table of embeddings, `[rows, D]`.
pub(crate) const EMBEDDINGS: &str = "embeddings";

/// Several pages as they might be shown, and what is known of who would see them.
pub(crate) struct Batch<'a> {
    dataset: &'a Dataset,
    /// Items of each page, place by place, `[N, places]`.
    targets: Vec<u32>,
    /// Point-wise log-odds of a click on each.
    point: Vec<f32>,
    shoppers: Vec<u32>,
    /// Items of the pages of all histories, each visit's once, `[H, places]`. The first belongs to nobody: so there is always one.
    history: Vec<u32>,
    /// For each target the places of its history's pages among those; [`NONE`] behind a short one. `[targets, HISTORY]`.
    history_of: Vec<u32>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(dataset: &'a Dataset) -> Self {
        let (targets, point, shoppers, history_of) = Default::default();
        Self { dataset, targets, point, shoppers, history: of_page(dataset, 0).to_vec(), history_of }
    }

    /// Adds orders of a visit; `point` has the point-wise log-odds of each of its candidates.
    pub(crate) fn add<'o>(&mut self, visit: &Visit, point: &[f32], orders: impl IntoIterator<Item = &'o [usize]>) {
        let from = self.history_len() as u32;
        self.history.extend(visit.history.iter().flat_map(|page| of_page(self.dataset, *page)));
        let slots = (0..HISTORY as u32).map(|slot| if (slot as usize) < visit.history.len() { from + slot } else { NONE });
        let slots: Vec<u32> = slots.collect();
        for order in orders {
            let order = &order[..self.places()];
            self.targets.extend(order.iter().map(|item| visit.items[*item]));
            self.point.extend(order.iter().map(|item| point[*item]));
            self.shoppers.push(visit.shopper);
            self.history_of.extend(&slots);
        }
    }

    fn vocabulary(&self) -> &Vocabulary {
        &self.dataset.vocabulary
    }

    /// Fields of an item.
    pub(crate) fn fields(&self) -> usize {
        self.vocabulary().fields()
    }

    /// Items of a page.
    pub(crate) fn places(&self) -> usize {
        self.vocabulary().places()
    }

    /// Pages.
    pub(crate) fn len(&self) -> usize {
        self.shoppers.len()
    }

    /// Pages of all histories.
    pub(crate) fn history_len(&self) -> usize {
        self.history.len() / self.places()
    }

    /// Point-wise log-odds, `[N · places, 1]`.
    pub(crate) fn point(&self) -> Result<Tensor> {
        Tensor::from_slice(&self.point, (self.point.len(), 1), &Device::Cpu)
    }

    /// Embeddings of each item of each page: its fields, then its shopper's, then (with `places`) its place's; `[N · places, width]`.
    pub(crate) fn items(&self, graph: &Graph, places: bool) -> Result<Tensor> {
        let mut rows = Vec::new();
        for (items, shopper) in self.targets.chunks_exact(self.places()).zip(&self.shoppers) {
            for (place, item) in items.iter().enumerate() {
                rows.extend_from_slice(self.dataset.rows(*item));
                rows.push(self.vocabulary().shopper(*shopper));
                rows.extend(places.then(|| self.vocabulary().place(place)));
            }
        }
        lookup(graph, rows, self.len() * self.places())
    }

    /// Embeddings of one field of all items of the pages and of their histories: `[(N + H) · places, D]`.
    pub(crate) fn field(&self, graph: &Graph, field: usize, histories: bool) -> Result<Tensor> {
        let history = if histories { &self.history[..] } else { &[] };
        let pages = self.targets.iter().chain(history);
        let rows: Vec<u32> = pages.map(|item| self.dataset.rows(*item)[field]).collect();
        let count = rows.len();
        lookup(graph, rows, count)
    }

    /// Embeddings of all fields of the items of the histories' pages, `[H · places, fields · D]`.
    pub(crate) fn history_items(&self, graph: &Graph) -> Result<Tensor> {
        let rows = self.history.iter().flat_map(|item| self.dataset.rows(*item)).copied().collect();
        lookup(graph, rows, self.history.len())
    }

    /// Rows of a tensor over the histories' pages `[H, d]` for each page and slot, `[N · HISTORY, d]`; zeros where a history is short.
    /// With `places`, for each place of each page: `[N · places · HISTORY, d]`.
    pub(crate) fn spread_histories(&self, tensor: &Tensor, places: bool) -> Result<Tensor> {
        let times = if places { self.places() } else { 1 };
        let rows: Vec<u32> = self.history_of.chunks_exact(HISTORY).flat_map(|slots| slots.repeat(times)).collect();
        select(tensor, rows)
    }
}

/// Items of a page that count.
fn of_page(dataset: &Dataset, page: u32) -> &[u32] {
    &dataset.pages[page as usize].items[..dataset.vocabulary.places()]
}

/// Each row of `[N, d]` so many times, one after the other.
pub(crate) fn repeat_rows(tensor: &Tensor, times: usize) -> Result<Tensor> {
    let rows = (0..tensor.dim(0)? as u32).flat_map(|row| std::iter::repeat_n(row, times)).collect();
    select(tensor, rows)
}

fn lookup(graph: &Graph, rows: Vec<u32>, count: usize) -> Result<Tensor> {
    let wide = select(graph.get(EMBEDDINGS), rows)?;
    let width = wide.elem_count() / count.max(1);
    wide.reshape((count, width))
}

fn select(tensor: &Tensor, rows: Vec<u32>) -> Result<Tensor> {
    let count = rows.len();
    tensor.index_select(&Tensor::from_vec(rows, count, &Device::Cpu)?, 0)
}
