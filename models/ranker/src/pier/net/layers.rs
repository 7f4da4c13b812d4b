//! Perceptrons, and the graph of one step.

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor, Var, backprop::GradStore};
use rand_chacha::ChaCha8Rng;

use super::{
    Weights,
    ops::{linear, read},
};
use crate::random::normal;

/// Layers one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mlp {
    name: String,
    /// Numbers that go in, and that come out of each layer.
    sizes: Vec<usize>,
    /// Whether the last layer keeps what is below zero, as an output or a projection does.
    open: bool,
}

impl Mlp {
    /// Hidden layers of these sizes, cut off at zero, the last of which is what comes out.
    pub(crate) fn hidden(name: impl Into<String>, inputs: usize, sizes: &[usize]) -> Self {
        Self { name: name.into(), sizes: [&[inputs], sizes].concat(), open: false }
    }

    /// Hidden layers of these sizes, and a linear layer behind them.
    pub(crate) fn to_output(name: impl Into<String>, inputs: usize, sizes: &[usize], outputs: usize) -> Self {
        Self { name: name.into(), sizes: [&[inputs], sizes, &[outputs]].concat(), open: true }
    }

    /// One linear layer.
    pub(crate) fn linear(name: impl Into<String>, inputs: usize, outputs: usize) -> Self {
        Self::to_output(name, inputs, &[], outputs)
    }

    fn names(&self, layer: usize) -> [String; 2] {
        ["weight", "bias"].map(|part| format!("{}.{layer}.{part}", self.name))
    }

    /// Draws the layers' weights, with the variance that keeps that of what flows through them (He et al., 2015).
    pub(crate) fn draw(&self, weights: &mut Weights, rng: &mut ChaCha8Rng) {
        for (layer, sizes) in self.sizes.windows(2).enumerate() {
            let [weight, bias] = self.names(layer);
            let gain = if self.open && layer + 2 == self.sizes.len() { 1.0 } else { 2.0 };
            let spread = (gain / sizes[0] as f64).sqrt();
            let values = (0..sizes[0] * sizes[1]).map(|_| (spread * normal(rng)) as f32).collect();
            weights.push(weight, sizes, values);
            weights.push(bias, &sizes[1..], vec![0.0; sizes[1]]);
        }
    }

    /// `[N, inputs]` to `[N, outputs]`.
    pub(crate) fn apply(&self, graph: &Graph, x: &Tensor) -> Result<Tensor> {
        let last = self.sizes.len() - 2;
        (0..=last).try_fold(x.clone(), |x, layer| {
            let [weight, bias] = self.names(layer);
            linear(&x, graph.get(&weight), graph.get(&bias), !(self.open && layer == last))
        })
    }
}

/// The weights as tensors: variables of a step of training, or constants.
pub(crate) struct Graph {
    tensors: HashMap<String, Tensor>,
    /// Names of the variables, in the weights' order.
    names: Vec<String>,
}

impl Graph {
    /// Variables, whose gradients can be asked for.
    pub(crate) fn variables(weights: &Weights) -> Result<Self> {
        Self::of(weights, |tensor| Ok(Var::from_tensor(&tensor)?.as_tensor().clone()))
    }

    /// Constants.
    pub(crate) fn constants(weights: &Weights) -> Result<Self> {
        Self::of(weights, Ok)
    }

    fn of(weights: &Weights, make: impl Fn(Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut tensors = HashMap::new();
        for weight in &weights.0 {
            let tensor = Tensor::from_slice(&weight.values, &weight.shape[..], &Device::Cpu)?;
            tensors.insert(weight.name.clone(), make(tensor)?);
        }
        Ok(Self { tensors, names: weights.0.iter().map(|weight| weight.name.clone()).collect() })
    }

    /// A tensor that the model has.
    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the model has no tensor `{name}`"))
    }

    /// Gradients of all weights in their order; zeros where a weight had no part.
    pub(crate) fn gradients(&self, store: &GradStore) -> Result<Vec<Vec<f32>>> {
        let of = |name: &String| match store.get(self.get(name)) {
            Some(gradient) => read(gradient, <[f32]>::to_vec),
            None => Ok(vec![0.0; self.get(name).elem_count()]),
        };
        self.names.iter().map(of).collect()
    }
}
