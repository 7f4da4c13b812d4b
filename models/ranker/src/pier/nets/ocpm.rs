//! OCPM, the omnidirectional context-aware prediction module (section 4.2).
//!
//! What the paper leaves open, or says in two ways:
//!
//! - **MLP_1 (Eq. 8)** is one perceptron for all fields. Its sizes (128, 64, 32) are hidden layers and a linear layer to D follows, as Z is
//!   `[N_f, D]`. H_j enters it place by place: so the order of a page shows in it.
//! - **MLP_2 (Eq. 9)** ends with the last of its sizes, 20; no equation says otherwise.
//! - **MLP_Att (Eq. 11)** has no sizes; it has those of MLP_3. Its outputs are taken as they are, not as shares of one, and an empty slot of a
//!   history has none.
//! - **Eq. 12** taken at its word gives the same number for every t, as all its inputs are the page's. Here MLP_3 is shared and sees, beside
//!   u_k and w_k, the item's own embeddings e_t and v_t (reading B). Which t it is goes in as an embedding of the place: without it a place
//!   shows only through u_k. [`Ocpm::place`] leaves it out, to be compared.
//! - **v** is the log-odds of the point-wise model; the paper's is its probability.
//! - The **shopper's** embedding goes in with e_t, as every model here has it; Eq. 12 does not name it.
//! - **A residual** within a field is a variant of ours, see [`Ocpm::residual`].
//! - Projections have biases; Eq. 7 and Eq. 10 have none.

use candle_core::{Result, Tensor};

use super::{
    super::{dataset::Vocabulary, net::self_attention},
    Batch, DIMS, Graph, HEAD, HIDDEN, Mlp, PAGE, target_attention,
};

/// MLP_2 of section 5.1.3.
pub(crate) const MLP2: [usize; 3] = [60, 32, PAGE];

/// Which parts of OCPM there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ocpm {
    /// The omnidirectional attention unit. Without it a page is the mean of its items, through MLP_2.
    pub attention: bool,
    /// The target attention unit. Without it there is no history.
    pub interest: bool,
    /// The place of an item, for MLP_3.
    pub place: bool,
    /// What each item is by itself, beside what attention within a field makes of it: H = softmax(Q Kᵀ / √D) V + V (ours). By Eq. 6 alone every
    /// place begins as the mean of all items, while attention is still even, and orders of the same items look alike: little is learnt of them.
    pub residual: bool,
}

impl Ocpm {
    /// All parts of the paper's.
    pub const WHOLE: Self = Self { attention: true, interest: true, place: true, residual: false };
    /// The same with [`Ocpm::residual`]: what serves.
    pub const RESIDUAL: Self = Self { residual: true, ..Self::WHOLE };

    /// Name of the layer that makes query, key and value of a field. It says what is made of them.
    pub(crate) fn within(self, field: usize) -> String {
        format!("ocpm.{}{field}", if self.residual { "residual" } else { "within" })
    }
}

pub(super) struct Net {
    parts: Ocpm,
    fields: usize,
    /// Query, key and value of each field (Eq. 7).
    within: Vec<Mlp>,
    mlp1: Mlp,
    /// Query, key and value of the fields' representations (Eq. 10).
    across: Mlp,
    mlp2: Mlp,
    attend: Mlp,
    mlp3: Mlp,
}

impl Net {
    pub(super) fn new(parts: Ocpm, vocabulary: &Vocabulary) -> Self {
        let fields = vocabulary.fields();
        let item = (fields + 1 + usize::from(parts.place)) * DIMS + 1;
        let pages = if parts.interest { 2 * PAGE } else { PAGE };
        Self {
            parts,
            fields,
            within: (0..fields).map(|field| Mlp::linear(parts.within(field), DIMS, 3 * DIMS)).collect(),
            mlp1: Mlp::to_output("ocpm.mlp1", vocabulary.places() * DIMS, &HIDDEN, DIMS),
            across: Mlp::linear("ocpm.across", DIMS, 3 * DIMS),
            mlp2: Mlp::hidden("ocpm.mlp2", fields * DIMS, &MLP2),
            attend: Mlp::to_output("ocpm.attend", 4 * PAGE, &HEAD, 1),
            mlp3: Mlp::to_output("ocpm.mlp3", pages + item, &HEAD, 1),
        }
    }

    /// u of the pages and of their histories' pages (Eq. 6 to Eq. 10), `[N + H, PAGE]`; without TAU the pages alone.
    fn pages(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let (places, count) = (batch.places(), batch.len() + if self.parts.interest { batch.history_len() } else { 0 });
        let fields = (0..self.fields).map(|field| {
            let items = batch.field(graph, field, self.parts.interest)?;
            if !self.parts.attention {
                return items.reshape((count, places, DIMS))?.mean(1);
            }
            let projected = self.within[field].apply(graph, &items)?;
            let mut attended = self_attention(&projected, places, false)?;
            if self.parts.residual {
                attended = (attended + projected.narrow(1, 2 * DIMS, DIMS)?)?;
            }
            attended.reshape((count, places * DIMS))
        });
        let fields: Vec<Tensor> = fields.collect::<Result<_>>()?;
        if !self.parts.attention {
            return self.mlp2.apply(graph, &Tensor::cat(&fields, 1)?);
        }
        let of_fields = self.mlp1.apply(graph, &Tensor::cat(&fields, 0)?)?;
        let of_pages = of_fields.reshape((self.fields, count, DIMS))?.transpose(0, 1)?.contiguous()?;
        let flat = self.across.apply(graph, &of_pages.reshape((count * self.fields, DIMS))?)?;
        let attended = self_attention(&flat, self.fields, false)?;
        self.mlp2.apply(graph, &attended.reshape((count, self.fields * DIMS))?)
    }
}

impl super::Net for Net {
    fn layers(&self) -> Vec<&Mlp> {
        let attention = self.within.iter().chain([&self.mlp1, &self.across]).filter(|_| self.parts.attention);
        let interest = [&self.attend].into_iter().filter(|_| self.parts.interest);
        attention.chain([&self.mlp2, &self.mlp3]).chain(interest).collect()
    }

    fn logits(&self, graph: &Graph, batch: &Batch) -> Result<Tensor> {
        let all = self.pages(graph, batch)?;
        let pages = all.narrow(0, 0, batch.len())?.contiguous()?;
        let pages = if self.parts.interest {
            let history = all.narrow(0, batch.len(), batch.history_len())?.contiguous()?;
            let behaviours = batch.spread_histories(&history, false)?;
            let interest = target_attention(&self.attend, graph, &pages, &behaviours)?;
            Tensor::cat(&[&pages, &interest], 1)?
        } else {
            pages
        };
        let pages = super::repeat_rows(&pages, batch.places())?;
        let items = batch.items(graph, self.parts.place)?;
        self.mlp3.apply(graph, &Tensor::cat(&[&pages, &items, &batch.point()?], 1)?)
    }
}
