//! DNN and DCN: an item by itself, wherever it stands.

use candle_core::{Result, Tensor};

use super::{Batch, DIMS, Graph, HIDDEN, Mlp, Net};

/// Crosses that come one after the other.
const CROSSES: usize = 3;

/// One perceptron over an item's and the shopper's embeddings.
pub(super) struct Dnn {
    mlp: Mlp,
}

impl Dnn {
    pub(super) fn new(fields: usize) -> Self {
        Self { mlp: Mlp::to_output("dnn", (fields + 1) * DIMS, &HIDDEN, 1) }
    }
}

impl Net for Dnn {
    fn layers(&self) -> Vec<&Mlp> {
        vec![&self.mlp]
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        self.mlp.apply(graph, &batch.items(graph, false)?)
    }
}

/// The same, and beside it crosses x ← x_0 · (x · w + b) + x.
pub(super) struct Dcn {
    mlp: Mlp,
    crosses: Vec<Mlp>,
    out: Mlp,
}

impl Dcn {
    pub(super) fn new(fields: usize) -> Self {
        let inputs = (fields + 1) * DIMS;
        Self {
            mlp: Mlp::hidden("dcn.deep", inputs, &HIDDEN),
            crosses: (0..CROSSES).map(|cross| Mlp::linear(format!("dcn.cross{cross}"), inputs, 1)).collect(),
            out: Mlp::linear("dcn.out", inputs + HIDDEN[2], 1),
        }
    }
}

impl Net for Dcn {
    fn layers(&self) -> Vec<&Mlp> {
        [&self.mlp, &self.out].into_iter().chain(&self.crosses).collect()
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let first = batch.items(graph, false)?;
        let crossed =
            self.crosses.iter().try_fold(first.clone(), |x, cross| first.broadcast_mul(&cross.apply(graph, &x)?)? + x)?;
        let deep = self.mlp.apply(graph, &first)?;
        self.out.apply(graph, &Tensor::cat(&[&crossed, &deep], 1)?)
    }
}
