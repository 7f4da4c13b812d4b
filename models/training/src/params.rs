//! The weights that a run trains: plain `f32` buffers, handed to the graph as fresh variables once per step.

use std::collections::HashMap;

use candle_core::{Device, Storage, Tensor, Var, backprop::GradStore};
use endcap_market::fnv1a;
use rand::{Rng, RngExt};

use crate::Result;

/// One tensor of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) value: Vec<f32>,
    /// Frozen tensors take part in the forward pass only.
    pub(crate) trained: bool,
}

/// All tensors of a model, in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Params(pub(crate) Vec<Param>);

/// The tensors of one step, by name: variables where trained, constants where frozen.
pub(crate) struct Weights {
    tensors: HashMap<String, Tensor>,
    trained: Vec<(String, Tensor)>,
}

/// Gradients of the trained tensors, in the order of [`Params`].
pub(crate) type Gradients = Vec<Vec<f32>>;

impl Params {
    pub(crate) fn push(&mut self, name: impl Into<String>, shape: &[usize], value: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), value.len(), "a tensor's values fill its shape");
        self.0.push(Param { name: name.into(), shape: shape.to_vec(), value, trained: true });
    }

    /// Adds a tensor of normally distributed values.
    pub(crate) fn push_normal(&mut self, name: impl Into<String>, shape: &[usize], std: f32, rng: &mut impl Rng) {
        let value = (0..shape.iter().product()).map(|_| normal(rng) * std).collect();
        self.push(name, shape, value);
    }

    /// Adds a tensor whose elements all are `value`.
    pub(crate) fn push_full(&mut self, name: impl Into<String>, shape: &[usize], value: f32) {
        self.push(name, shape, vec![value; shape.iter().product()]);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Param> {
        self.0.iter().find(|param| param.name == name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut Param> {
        self.0.iter_mut().find(|param| param.name == name)
    }

    pub(crate) fn freeze(&mut self, frozen: impl Fn(&str) -> bool) {
        for param in &mut self.0 {
            param.trained = !frozen(&param.name);
        }
    }

    /// A number that other values, names or shapes would change (FNV-1a over all of them).
    pub(crate) fn fingerprint(&self) -> u64 {
        fnv1a(self.0.iter().flat_map(|param| {
            let (name, shape) = (param.name.bytes().map(u64::from), param.shape.iter().map(|size| *size as u64));
            name.chain(shape).chain(param.value.iter().map(|x| u64::from(x.to_bits())))
        }))
    }

    pub(crate) fn trained(&self) -> impl Iterator<Item = &Param> {
        self.0.iter().filter(|param| param.trained)
    }

    pub(crate) fn weights(&self) -> Result<Weights> {
        let mut weights = Weights { tensors: HashMap::new(), trained: Vec::new() };
        for param in &self.0 {
            let tensor = Tensor::from_slice(&param.value, param.shape.as_slice(), &Device::Cpu)?;
            let tensor = if param.trained {
                let variable = Var::from_tensor(&tensor)?.as_tensor().clone();
                weights.trained.push((param.name.clone(), variable.clone()));
                variable
            } else {
                tensor
            };
            weights.tensors.insert(param.name.clone(), tensor);
        }
        Ok(weights)
    }
}

impl Weights {
    pub(crate) fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(name).unwrap_or_else(|| panic!("the model has no tensor `{name}`"))
    }

    /// Takes the trained tensors' gradients out of `store`; a tensor without one gets zeros.
    pub(crate) fn gradients(&self, store: &GradStore) -> Result<Gradients> {
        self.trained
            .iter()
            .map(|(_, tensor)| match store.get(tensor) {
                Some(gradient) => floats(gradient),
                None => Ok(vec![0.0; tensor.elem_count()]),
            })
            .collect()
    }

    /// The trained tensors, in the order of [`Params`].
    #[cfg(test)]
    pub(crate) fn trained(&self) -> &[(String, Tensor)] {
        &self.trained
    }
}

/// A tensor's elements, row by row.
pub(crate) fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => {
            let start = layout.start_offset();
            Ok(storage.as_slice::<f32>()?[start..start + layout.shape().elem_count()].to_vec())
        }
        _ => Err(candle_core::Error::Msg("training runs on the processor only".into()).into()),
    }
}

/// A draw from the standard normal distribution (Box–Muller).
pub(crate) fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
}
