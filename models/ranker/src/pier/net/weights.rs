//! Weights as plain numbers under their names, and the bytes that they are kept as.

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::pier::PierError;

/// One tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Weight {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// All tensors of a model, in a fixed order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights(pub(super) Vec<Weight>);

impl Weights {
    pub(crate) fn push(&mut self, name: String, shape: &[usize], values: Vec<f32>) {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values of `{name}` fill its shape");
        self.0.push(Weight { name, shape: shape.to_vec(), values });
    }

    /// Shape and values of a tensor, row by row; a layer's weight is `[inputs, outputs]`.
    pub fn get(&self, name: &str) -> Option<(&[usize], &[f32])> {
        self.0.iter().find(|weight| weight.name == name).map(|weight| (&weight.shape[..], &weight.values[..]))
    }

    /// Names, shapes and values of all tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.0.iter().map(|weight| (&weight.name[..], &weight.shape[..], &weight.values[..]))
    }

    /// Adds numbers of the same shapes, times a factor.
    #[cfg(test)]
    pub(crate) fn shift(&mut self, by: &[Vec<f32>], times: f32) {
        for (weight, by) in self.0.iter_mut().zip(by) {
            weight.values.iter_mut().zip(by).for_each(|(value, by)| *value += times * by);
        }
    }

    /// The weights in the safetensors format.
    pub fn to_bytes(&self) -> Vec<u8> {
        let bytes: Vec<Vec<u8>> =
            self.0.iter().map(|weight| weight.values.iter().flat_map(|value| value.to_le_bytes()).collect()).collect();
        let views = self.0.iter().zip(&bytes).map(|(weight, bytes)| {
            let view = TensorView::new(Dtype::F32, weight.shape.clone(), bytes).expect("values fill their shape");
            (&weight.name, view)
        });
        safetensors::serialize(views, None).expect("tensors of known shapes can be written")
    }

    /// All tensors of what [`Weights::to_bytes`] gave, of whatever model.
    ///
    /// # Errors
    /// When the bytes are no tensors, or others than of f32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PierError> {
        let unfit = |what: String| PierError::Weights(what);
        let file = SafeTensors::deserialize(bytes).map_err(|error| unfit(error.to_string()))?;
        let mut weights = Self::default();
        for (name, tensor) in file.tensors() {
            if tensor.dtype() != Dtype::F32 {
                return Err(unfit(format!("`{name}` is {:?}, not F32", tensor.dtype())));
            }
            let values = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            weights.push(name, tensor.shape(), values);
        }
        Ok(weights)
    }

    /// Fills the weights with what [`Weights::to_bytes`] gave.
    ///
    /// # Errors
    /// When the bytes are no weights, or those of another model; the weights may be filled in part then.
    pub fn fill(&mut self, bytes: &[u8]) -> Result<(), PierError> {
        let unfit = |what: String| PierError::Weights(what);
        let file = SafeTensors::deserialize(bytes).map_err(|error| unfit(error.to_string()))?;
        for weight in &mut self.0 {
            let tensor = file.tensor(&weight.name).map_err(|error| unfit(error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != weight.shape {
                let (name, got, wanted) = (&weight.name, tensor.shape(), &weight.shape);
                return Err(unfit(format!("`{name}` is {:?} {got:?}, not F32 {wanted:?}", tensor.dtype())));
            }
            let numbers = tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            weight.values.iter_mut().zip(numbers).for_each(|(value, number)| *value = number);
        }
        Ok(())
    }
}
