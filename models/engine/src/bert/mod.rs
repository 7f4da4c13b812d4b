//! BERT-style encoders: texts to vectors.

mod config;
mod cpu;
mod cross;
mod weights;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
};

use candle_core::{DType, Device, Tensor};

pub(crate) use config::activation;
pub use config::{BertConfig, Pooling};
pub use cross::BertCrossEncoder;
pub use weights::{BertLayer, BertWeights, Norm};
pub(crate) use weights::{missing, optional_linear, plain_names};

use crate::{
    EngineError, ModelDir, Result, Segments, load,
    ops::{self, Attention},
};

/// An encoder. Cheap to clone: weights are shared.
#[derive(Debug, Clone)]
pub struct Bert {
    config: BertConfig,
    weights: BertWeights,
    /// The weights as the CPU's kernels read them, made when they first run.
    packed: Arc<OnceLock<cpu::Packed>>,
}

impl Bert {
    /// An encoder of `weights`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the number of layers differs from the config's.
    pub fn new(config: BertConfig, weights: BertWeights) -> Result<Self> {
        if weights.layers.len() != config.layers {
            return Err(EngineError::model(format!("{} layers for a config of {}", weights.layers.len(), config.layers)));
        }
        Ok(Self { config, weights, packed: Arc::default() })
    }

    /// Reads a model directory onto `device`.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short or foreign, or the directory is a cross-encoder's.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let config = BertConfig::from_json(files.config()).map_err(|error| files.blame(error))?;
        let mut tensors = files.tensors()?;
        if tensors.contains_key("classifier.weight") {
            let what = "it is a cross-encoder, which scores pairs: its weights end in a classifier";
            return Err(EngineError::file(dir, what, "use an encoder's directory"));
        }
        Self::from_hf(config, &mut tensors, device, load::compute_dtype(device)).map_err(|error| files.blame(error))
    }

    /// An encoder from Hugging Face names, with or without `bert.` before them; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a tensor is missing or has the wrong shape.
    pub fn from_hf(config: BertConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let weights = BertWeights::from_hf(&config, tensors, device, dtype)?;
        Self::new(config, weights)
    }

    /// The weights under the names of `BertModel`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn to_hf(&self) -> Result<HashMap<String, Tensor>> {
        self.weights.to_hf(&self.config)
    }

    /// Its shape.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Its weights.
    pub fn weights(&self) -> &BertWeights {
        &self.weights
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.weights.words.device()
    }

    /// Last rows `[rows, hidden]` of packed texts; differentiable. `types` holds each row's token type; all 0 where there is none.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a token or type that does not exist or a text that is too long.
    pub fn hidden(&self, ids: &[u32], types: Option<&[u32]>, segments: &Segments) -> Result<Tensor> {
        let (c, w) = (&self.config, &self.weights);
        let types = self.check(ids, types, segments)?;
        let how = Attention {
            segments: segments.clone(),
            heads: c.heads,
            kv_heads: c.heads,
            head: c.hidden / c.heads,
            causal: false,
            rope: None,
        };
        let norm = |x: &Tensor, norm: &Norm| ops::layer_norm(x, &norm.weight, &norm.bias, c.eps);
        let words = ops::select_rows(&w.words, ids)?;
        let places = ops::select_rows(&w.positions, &segments.positions())?;
        let kinds = ops::select_rows(&w.types, &types)?;
        let mut x = norm(&((words + kinds)? + places)?, &w.norm)?;
        for layer in &w.layers {
            let attended = layer.out.forward(&ops::attention(&layer.qkv.forward(&x)?, &how)?)?;
            x = norm(&(x + attended)?, &layer.attention_norm)?;
            let inner = ops::gelu(&layer.up.forward(&x)?, c.gelu)?;
            x = norm(&(&x + layer.down.forward(&inner)?)?, &layer.norm)?;
        }
        Ok(x)
    }

    /// One vector of unit length per text, `[segments, hidden]`: the mean of its rows, or its first row where `endcap_pooling` says `cls`.
    /// Not differentiable; the fast way.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn embed(&self, ids: &[u32], segments: &Segments) -> Result<Tensor> {
        let rows = self.rows(ids, None, segments)?;
        let pooled = match self.config.pooling {
            Some(Pooling::Cls) => first_rows(&rows, segments)?,
            _ => ops::segment_mean(&rows, segments, |_| true)?,
        };
        Ok(ops::l2_normalise(&pooled)?)
    }

    /// [`Self::hidden`] without gradients: on the CPU through kernels of our own, in which a text's rows have the same bits in any company.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn rows(&self, ids: &[u32], types: Option<&[u32]>, segments: &Segments) -> Result<Tensor> {
        if !self.device().is_cpu() {
            return self.hidden(ids, types, segments);
        }
        let types = self.check(ids, types, segments)?;
        if self.packed.get().is_none() {
            // Two threads at once would pack twice; the first one's stays.
            let _ = self.packed.set(cpu::Packed::new(self)?);
        }
        let packed = self.packed.get().expect("it has just been set");
        Ok(ops::tensor(packed.rows(self, ids, &types, segments), (ids.len(), self.config.hidden))?)
    }

    /// The types to use, once everything is known to exist.
    fn check(&self, ids: &[u32], types: Option<&[u32]>, segments: &Segments) -> Result<Vec<u32>> {
        let c = &self.config;
        let types = types.map_or_else(|| vec![0; ids.len()], <[u32]>::to_vec);
        check_rows(ids, &types, segments, [c.vocab, c.types, c.positions])?;
        Ok(types)
    }
}

/// Refuses rows that a model with `[vocab, types, positions]` cannot read.
pub(crate) fn check_rows(ids: &[u32], types: &[u32], segments: &Segments, [vocab, kinds, positions]: [usize; 3]) -> Result<()> {
    if ids.len() != segments.rows() || types.len() != ids.len() {
        let what = format!("{} tokens and {} types in segments of {} rows", ids.len(), types.len(), segments.rows());
        return Err(EngineError::model(what));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab) {
        return Err(EngineError::model(format!("token {id} is not among {vocab}")));
    }
    if let Some(kind) = types.iter().find(|kind| **kind as usize >= kinds.max(1)) {
        return Err(EngineError::model(format!("token type {kind} is not among {kinds}")));
    }
    if segments.longest() > positions {
        return Err(EngineError::model(format!("a text of {} tokens is longer than {positions}", segments.longest())));
    }
    Ok(())
}

/// Each segment's first row.
pub(crate) fn first_rows(rows: &Tensor, segments: &Segments) -> Result<Tensor> {
    if segments.iter().any(|rows| rows.is_empty()) {
        return Err(EngineError::model("a text has no token"));
    }
    let first: Vec<u32> = segments.iter().map(|rows| rows.start as u32).collect();
    Ok(ops::select_rows(rows, &first)?)
}

#[cfg(test)]
mod tests;
