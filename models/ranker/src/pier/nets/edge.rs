//! Edge-Rerank: what stands before an item, and what is like it in the history.

use candle_core::{Device, Result, Tensor};

use super::{Batch, DIMS, Graph, HEAD, HIDDEN, Mlp, Net, PAGE, target_attention};

/// Size of an item that stands before.
const BEFORE: usize = 16;

/// The item at its place, the mean of all before it and the one right before it, and the attention of the item to the pages of the history
/// (items of a page in the mean, as their order is nothing to it). The original is made of one page's items at a time from the first on, so
/// that it knows none after it.
pub(super) struct EdgeRerank {
    before: Mlp,
    query: Mlp,
    page: Mlp,
    attend: Mlp,
    out: Mlp,
}

impl EdgeRerank {
    pub(super) fn new(fields: usize) -> Self {
        let placed = (fields + 2) * DIMS + 1;
        Self {
            before: Mlp::linear("edge.before", placed - DIMS, BEFORE),
            query: Mlp::linear("edge.query", placed - DIMS, PAGE),
            page: Mlp::linear("edge.page", fields * DIMS, PAGE),
            attend: Mlp::to_output("edge.attend", 4 * PAGE, &HEAD, 1),
            out: Mlp::to_output("edge.out", placed + 2 * BEFORE + PAGE, &HIDDEN, 1),
        }
    }
}

impl Net for EdgeRerank {
    fn layers(&self) -> Vec<&Mlp> {
        vec![&self.before, &self.query, &self.page, &self.attend, &self.out]
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let point = batch.point()?;
        let placed = Tensor::cat(&[&batch.items(graph, true)?, &point], 1)?;
        let bare = Tensor::cat(&[&batch.items(graph, false)?, &point], 1)?;
        let places = batch.places();
        let items = self.before.apply(graph, &bare)?.reshape((batch.len(), places * BEFORE))?;
        let before = items.matmul(&looking_back(places)?)?.reshape((batch.len() * places, 2 * BEFORE))?;
        let pages = batch.history_items(graph)?;
        let width = pages.dim(1)?;
        let pages = pages.reshape((batch.history_len(), places, width))?.mean(1)?;
        let behaviours = batch.spread_histories(&self.page.apply(graph, &pages)?, true)?;
        let interest = target_attention(&self.attend, graph, &self.query.apply(graph, &bare)?, &behaviours)?;
        self.out.apply(graph, &Tensor::cat(&[&placed, &before, &interest], 1)?)
    }
}

/// The matrix that makes of a page's items `[places · BEFORE]` for each place the mean of those before it and the one right before it,
/// `[places · 2 · BEFORE]`; zeros at the first.
fn looking_back(places: usize) -> Result<Tensor> {
    let (from, to) = (places * BEFORE, places * 2 * BEFORE);
    let mut matrix = vec![0.0_f32; from * to];
    for place in 1..places {
        for dim in 0..BEFORE {
            for earlier in 0..place {
                matrix[(earlier * BEFORE + dim) * to + place * 2 * BEFORE + dim] = 1.0 / place as f32;
            }
            matrix[((place - 1) * BEFORE + dim) * to + (place * 2 + 1) * BEFORE + dim] = 1.0;
        }
    }
    Tensor::from_vec(matrix, (from, to), &Device::Cpu)
}
