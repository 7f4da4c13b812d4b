//! Llama-style decoders, for training and for inference.

mod adapter;
mod cache;
mod config;
mod step;
mod weights;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, OnceLock},
};

use candle_core::{DType, Device, Tensor};

pub use adapter::{Adapter, AdapterConfig};
pub use cache::KvCache;
pub use config::{DecoderConfig, RopeScaling};
pub use step::{StepInput, StepOutput, Want};
pub use weights::{DecoderLayer, DecoderWeights};
pub(crate) use weights::{Taker, split};

use crate::{
    EngineError, ModelDir, Result, Segments, load,
    ops::{self, Attention, Rope},
};

/// A decoder. Cheap to clone: weights are shared.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    weights: DecoderWeights,
    rope: Rope,
    /// The weights as the CPU's [`Self::step`] reads them, made when it first runs.
    packed: Arc<OnceLock<step::Packed>>,
}

impl Decoder {
    /// Reads a model directory onto `device`.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short or foreign.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let config = DecoderConfig::from_json(files.config()).map_err(|error| files.blame(error))?;
        Self::from_hf(config, &mut files.tensors()?, device, load::compute_dtype(device)).map_err(|error| files.blame(error))
    }

    /// A decoder of `weights`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the number of layers differs from the config's.
    pub fn new(config: DecoderConfig, weights: DecoderWeights) -> Result<Self> {
        if weights.layers.len() != config.layers {
            return Err(EngineError::model(format!("{} layers for a config of {}", weights.layers.len(), config.layers)));
        }
        let rope = Rope::new(&config.frequencies(), config.positions);
        Ok(Self { config, weights, rope, packed: Arc::default() })
    }

    /// A decoder from Hugging Face names; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a tensor is missing or has the wrong shape.
    pub fn from_hf(config: DecoderConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let weights = DecoderWeights::from_hf(&config, tensors, device, dtype)?;
        Self::new(config, weights)
    }

    /// The weights under their Hugging Face names.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn to_hf(&self) -> Result<HashMap<String, Tensor>> {
        self.weights.to_hf(&self.config)
    }

    /// Its shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Its weights.
    pub fn weights(&self) -> &DecoderWeights {
        &self.weights
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        self.weights.embeddings.device()
    }

    /// The decoder with `adapter` merged into its weights.
    ///
    /// # Errors
    /// [`EngineError::Model`] when the adapter does not fit.
    pub fn with_adapter(&self, adapter: &Adapter) -> Result<Self> {
        Self::new(self.config.clone(), adapter.merge(&self.config, self.weights.clone())?)
    }

    /// Last hidden states after the norm, `[rows, hidden]`, of packed sequences; differentiable.
    ///
    /// # Errors
    /// [`EngineError::Model`] for a token that the vocabulary does not have or a sequence that is too long.
    pub fn hidden(&self, ids: &[u32], segments: &Segments) -> Result<Tensor> {
        let (c, w) = (&self.config, &self.weights);
        self.check(ids, segments)?;
        let how = Attention {
            segments: segments.clone(),
            heads: c.heads,
            kv_heads: c.kv_heads,
            head: c.head,
            causal: true,
            rope: Some(self.rope.clone()),
        };
        let mut x = ops::select_rows(&w.embeddings, ids)?;
        for layer in &w.layers {
            let normed = ops::rms_norm(&x, &layer.attention_norm, c.eps)?;
            let attended = ops::attention(&layer.qkv.forward(&normed)?, &how)?;
            x = (x + layer.out.forward(&attended)?)?;
            let normed = ops::rms_norm(&x, &layer.mlp_norm, c.eps)?;
            x = (x + layer.down.forward(&ops::swiglu(&layer.gate_up.forward(&normed)?)?)?)?;
        }
        Ok(ops::rms_norm(&x, &w.norm, c.eps)?)
    }

    /// Logits of hidden rows `[rows, hidden]` → `[rows, vocab]`; differentiable.
    ///
    /// # Errors
    /// When the shape does not fit.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if !self.device().is_cpu() || hidden.track_op() || self.head().track_op() {
            return Ok(ops::linear_t(hidden, self.head(), None)?);
        }
        let (rows, vocab) = (hidden.dims2()?.0, self.config.vocab);
        let head = &self.packed()?.head;
        let mut logits = vec![0.0; rows * vocab];
        ops::read(hidden, |hidden| head.rows(hidden, &mut logits))?;
        Ok(ops::tensor(logits, (rows, vocab))?)
    }

    /// Logits of one hidden row for `ids` alone, in their order: the restricted head at a branch. On the CPU they have the same bits as [`Self::logits`].
    ///
    /// # Errors
    /// When the row has another size than `hidden` or an id does not exist.
    pub fn logits_of(&self, hidden: &Tensor, ids: &[u32]) -> Result<Vec<f32>> {
        self.check_ids(ids)?;
        let hidden = hidden.reshape((1, self.config.hidden))?;
        if self.device().is_cpu() && !self.head().track_op() {
            let head = &self.packed()?.head;
            return Ok(ops::read(&hidden, |hidden| head.columns(hidden, ids))?);
        }
        let logits = ops::linear_t(&hidden, &ops::select_rows(self.head(), ids)?, None)?;
        Ok(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// The packed weights; made at the first call. Who trains weights in place makes a new decoder (cheap) before computing steps with them.
    fn packed(&self) -> Result<&step::Packed> {
        if self.packed.get().is_none() {
            // Two threads at once would pack twice; the first one's stays.
            let _ = self.packed.set(step::Packed::new(self)?);
        }
        Ok(self.packed.get().expect("it has just been set"))
    }

    fn head(&self) -> &Tensor {
        self.weights.head.as_ref().unwrap_or(&self.weights.embeddings)
    }

    fn check(&self, ids: &[u32], segments: &Segments) -> Result<()> {
        if ids.len() != segments.rows() {
            return Err(EngineError::model(format!("{} tokens in segments of {} rows", ids.len(), segments.rows())));
        }
        self.check_ids(ids)?;
        if segments.longest() > self.config.positions {
            let what = format!("a sequence of {} tokens is longer than {}", segments.longest(), self.config.positions);
            return Err(EngineError::model(what));
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        match ids.iter().find(|id| **id as usize >= self.config.vocab) {
            Some(id) => Err(EngineError::model(format!("token {id} is not among {}", self.config.vocab))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
