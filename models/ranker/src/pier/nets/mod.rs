//! The evaluation models: OCPM and those that the paper compares it with (section 5.2.1).
//!
//! Control: all have the same embeddings of the same fields, the shopper's and (list-wise ones) the place's among them, the same point-wise
//! log-odds v of a click (those of a DNN that was trained before, where they are list-wise), hidden layers of the paper's sizes, and the same
//! training. What makes them different is what their files say.

mod edge;
mod listwise;
mod ocpm;
mod pointwise;

use candle_core::{Result, Tensor};

use super::{
    batch::{Batch, repeat_rows},
    dataset::{HISTORY, Vocabulary},
    net::{Graph, Mlp},
};
use edge::EdgeRerank;
use listwise::{Extr, Prm};
pub(crate) use ocpm::MLP2;
pub use ocpm::Ocpm;
use pointwise::{Dcn, Dnn};

/// Size of an embedding (D; section 5.1.3: 8).
pub const DIMS: usize = 8;
/// Hidden layers of a model that is one perceptron: MLP_1 of section 5.1.3.
pub(crate) const HIDDEN: [usize; 3] = [128, 64, 32];
/// Of the perceptron behind an attention: MLP_3 of section 5.1.3. The paper gives none for MLP_Att of Eq. 11.
pub(crate) const HEAD: [usize; 2] = [50, 20];
/// Size of a page's representation: MLP_2 of section 5.1.3 ends with it.
pub(crate) const PAGE: usize = 20;

/// An evaluation model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A perceptron over one item (Covington et al., 2016).
    Dnn,
    /// The same beside explicit crosses of its inputs (Wang et al., 2017).
    Dcn,
    /// Self-attention over the page (Pei et al., 2019).
    Prm,
    /// The item at its place attends to the other items of the set (Chen et al., 2022).
    Extr,
    /// The items before it and what is like it in the history (Gong et al., 2022).
    EdgeRerank,
    /// PIER's own (section 4.2), or a part of it.
    Ocpm(Ocpm),
}

impl Kind {
    /// Whether a page's order is nothing to it.
    pub fn is_pointwise(self) -> bool {
        matches!(self, Self::Dnn | Self::Dcn)
    }

    pub(crate) fn net(self, vocabulary: &Vocabulary) -> Box<dyn Net> {
        let fields = vocabulary.fields();
        match self {
            Self::Dnn => Box::new(Dnn::new(fields)),
            Self::Dcn => Box::new(Dcn::new(fields)),
            Self::Prm => Box::new(Prm::new(fields)),
            Self::Extr => Box::new(Extr::new(fields)),
            Self::EdgeRerank => Box::new(EdgeRerank::new(fields)),
            Self::Ocpm(parts) => Box::new(ocpm::Net::new(parts, vocabulary)),
        }
    }
}

/// A model without its weights.
pub(crate) trait Net: Send + Sync {
    /// Its perceptrons, in the order in which their weights are drawn.
    fn layers(&self) -> Vec<&Mlp>;

    /// Log-odds of a click on each item of each page, `[N · places, 1]`.
    ///
    /// # Errors
    /// When tensors do not fit: a broken promise.
    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor>;
}

/// Attention to behaviours (Eq. 11): Σ_m b_m · MLP(q ‖ b_m ‖ q ⊙ b_m ‖ q − b_m), of `queries[R, d]` and `behaviours[R · HISTORY, d]`, where a
/// behaviour of zeros adds nothing. Gives `[R, d]`.
fn target_attention(mlp: &Mlp, graph: &Graph, queries: &Tensor, behaviours: &Tensor) -> Result<Tensor> {
    let (rows, dims) = queries.dims2()?;
    let queries = repeat_rows(queries, HISTORY)?;
    let pairs = Tensor::cat(&[&queries, behaviours, &(&queries * behaviours)?, &(&queries - behaviours)?], 1)?;
    let weights = mlp.apply(graph, &pairs)?;
    behaviours.broadcast_mul(&weights)?.reshape((rows, HISTORY, dims))?.sum(1)
}
