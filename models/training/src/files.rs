//! Weights in files: read from `safetensors`, written as bf16.

use std::{collections::HashMap, fs, path::Path};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{Result, TrainError, checkpoint::replace};

/// Tensors of a file, widened to `f32`.
pub(crate) struct Tensors(HashMap<String, (Vec<usize>, Vec<f32>)>);

impl Tensors {
    /// Reads every floating-point tensor of `path`.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(TrainError::read(path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| TrainError::content(path, error))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            if let Some(values) = widen(&view) {
                tensors.insert(name, (view.shape().to_vec(), values));
            }
        }
        Ok(Self(tensors))
    }

    #[cfg(test)]
    pub(crate) fn of(tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> Self {
        Self(tensors.into_iter().map(|(name, shape, values)| (name, (shape, values))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.0.get(name).cloned().ok_or_else(|| TrainError::Setting(format!("the model's file has no tensor `{name}`")))
    }
}

fn widen(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = view.data();
    match view.dtype() {
        Dtype::F32 => Some(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()),
        Dtype::F16 => Some(data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        Dtype::BF16 => Some(data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()),
        _ => None,
    }
}

/// What other readers of the format look for in a whole model's metadata.
pub(crate) const FORMAT: (&str, &str) = ("format", "pt");

/// Writes tensors as bf16, replacing the file atomically; `about` is the one entry of the file's
/// metadata, as several would stand in another order every time.
pub(crate) fn write_bf16(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)], about: (&str, &str)) -> Result<()> {
    let narrow: Vec<Vec<u8>> =
        tensors.iter().map(|(_, _, values)| values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&narrow).map(|((name, shape, _), bytes)| {
        (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).expect("a tensor's values fill its shape"))
    });
    let header = HashMap::from([(about.0.to_owned(), about.1.to_owned())]);
    let bytes = safetensors::serialize(views, Some(header)).map_err(|error| TrainError::content(path, error))?;
    replace(path, &bytes)
}

/// Writes `value` as readable JSON, replacing the file atomically.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    text.push('\n');
    replace(path, text.as_bytes())
}
