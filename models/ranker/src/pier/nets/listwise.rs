//! PRM and EXTR: an item in the company of the others, by attention over the page.

use candle_core::{Result, Tensor};

use super::{
    super::net::{self_attention, standardise},
    Batch, DIMS, Graph, HIDDEN, Mlp, Net,
};

/// Size of a token.
const TOKEN: usize = 32;
/// Encoder blocks of PRM.
const BLOCKS: usize = 2;

/// Encoder blocks over the page's items with their places; the personalised vector of its pre-trained model is v.
pub(super) struct Prm {
    token: Mlp,
    /// Attention's inputs and the perceptron of each block.
    blocks: Vec<[Mlp; 2]>,
    out: Mlp,
}

impl Prm {
    pub(super) fn new(fields: usize) -> Self {
        let block = |block: usize| {
            let attend = Mlp::linear(format!("prm.attend{block}"), TOKEN, 3 * TOKEN);
            [attend, Mlp::to_output(format!("prm.feed{block}"), TOKEN, &[2 * TOKEN], TOKEN)]
        };
        Self {
            token: Mlp::linear("prm.token", (fields + 2) * DIMS + 1, TOKEN),
            blocks: (0..BLOCKS).map(block).collect(),
            out: Mlp::linear("prm.out", TOKEN, 1),
        }
    }
}

impl Net for Prm {
    fn layers(&self) -> Vec<&Mlp> {
        [&self.token, &self.out].into_iter().chain(self.blocks.iter().flatten()).collect()
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let tokens = self.token.apply(graph, &Tensor::cat(&[&batch.items(graph, true)?, &batch.point()?], 1)?)?;
        let tokens = self.blocks.iter().try_fold(tokens, |x, [attend, feed]| {
            let x = standardise(&(self_attention(&attend.apply(graph, &x)?, batch.places(), false)? + x)?)?;
            standardise(&(feed.apply(graph, &x)? + x)?)
        })?;
        self.out.apply(graph, &tokens)
    }
}

/// The item at its place is the query; keys and values are the other items without their places. So it tells what an item would get at any
/// place beside this set, and nothing of who is its neighbour: all orders' values are sums over pairs of item and place.
pub(super) struct Extr {
    query: Mlp,
    /// Key and value of an item of the set.
    external: Mlp,
    out: Mlp,
}

impl Extr {
    pub(super) fn new(fields: usize) -> Self {
        let placed = (fields + 2) * DIMS + 1;
        Self {
            query: Mlp::linear("extr.query", placed, TOKEN),
            external: Mlp::linear("extr.external", placed - DIMS, 2 * TOKEN),
            out: Mlp::to_output("extr.out", placed + TOKEN, &HIDDEN, 1),
        }
    }
}

impl Net for Extr {
    fn layers(&self) -> Vec<&Mlp> {
        vec![&self.query, &self.external, &self.out]
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let point = batch.point()?;
        let placed = Tensor::cat(&[&batch.items(graph, true)?, &point], 1)?;
        let bare = Tensor::cat(&[&batch.items(graph, false)?, &point], 1)?;
        let all = Tensor::cat(&[&self.query.apply(graph, &placed)?, &self.external.apply(graph, &bare)?], 1)?;
        let others = self_attention(&all, batch.places(), true)?;
        self.out.apply(graph, &Tensor::cat(&[&placed, &others], 1)?)
    }
}
