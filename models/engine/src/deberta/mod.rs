//! DeBERTa-v2 and -v3 as a cross-encoder: one score per pair of texts. Inference only.

mod config;
mod cpu;
mod device;

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};

pub use config::DebertaConfig;

use crate::{
    Linear, ModelDir, Norm, Result, Segments,
    bert::{check_rows, first_rows, missing, optional_linear, plain_names},
    decoder::Taker,
    load, ops,
};

/// A DeBERTa-v2 or -v3 cross-encoder with a classifier of one output.
#[derive(Debug)]
pub struct Deberta {
    config: DebertaConfig,
    embeddings: Embeddings,
    /// Layers as the device reads them.
    layers: Layers,
    pooler: Linear,
    classifier: Linear,
}

#[derive(Debug)]
struct Embeddings {
    words: Tensor,
    positions: Option<Tensor>,
    types: Option<Tensor>,
    norm: Norm,
}

#[derive(Debug)]
enum Layers {
    Cpu(Vec<cpu::PackedLayer>),
    Device(Vec<Layer>),
}

/// One layer.
#[derive(Debug)]
struct Layer {
    /// `[hidden, 3 · hidden]`: queries, keys, values.
    qkv: Linear,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
    /// Keys of relative positions, `[2 · span, hidden]`, projected once.
    position_keys: Option<Tensor>,
    /// Queries of relative positions, `[2 · span, hidden]`, projected once.
    position_queries: Option<Tensor>,
}

impl Deberta {
    /// Reads a model directory onto `device`.
    ///
    /// # Errors
    /// [`crate::EngineError::File`] when a file is missing, cut short or foreign.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let config = DebertaConfig::from_json(files.config()).map_err(|error| files.blame(error))?;
        Self::from_hf(config, &mut files.tensors()?, device, load::compute_dtype(device)).map_err(|error| files.blame(error))
    }

    /// A cross-encoder from the names of `DebertaV2ForSequenceClassification`; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`crate::EngineError::Model`] when a tensor is missing or has the wrong shape.
    pub fn from_hf(config: DebertaConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        plain_names(tensors, "deberta.");
        let taker = &mut Taker { tensors, device, dtype };
        let (c, h) = (&config, config.hidden);
        let optional = |taker: &mut Taker<'_>, wanted: bool, name: &str, rows: usize| {
            wanted.then(|| taker.take(&format!("embeddings.{name}.weight"), &[rows, h])).transpose()
        };
        let embeddings = Embeddings {
            words: taker.take("embeddings.word_embeddings.weight", &[c.vocab, h])?,
            positions: optional(taker, c.absolute_positions, "position_embeddings", c.positions)?,
            types: optional(taker, c.types > 0, "token_type_embeddings", c.types)?,
            norm: Norm::take(taker, "embeddings.LayerNorm", h)?,
        };
        let mut relative = taker.take("encoder.rel_embeddings.weight", &[2 * c.span, h])?;
        if c.normalise_relative {
            let norm = Norm::take(taker, "encoder.LayerNorm", h)?;
            relative = ops::layer_norm(&relative, &norm.weight, &norm.bias, c.eps)?;
        }
        let layers = (0..c.layers).map(|layer| Layer::take(c, taker, layer, &relative)).collect::<Result<Vec<_>>>()?;
        let layers = if device.is_cpu() {
            Layers::Cpu(layers.iter().map(|layer| cpu::PackedLayer::new(c, layer)).collect::<Result<_>>()?)
        } else {
            Layers::Device(layers)
        };
        let pooler = optional_linear(taker, "pooler.dense", h, h)?.ok_or_else(|| missing("pooler.dense.weight"))?;
        let classifier = optional_linear(taker, "classifier", h, 1)?.ok_or_else(|| missing("classifier.weight"))?;
        Ok(Self { config, embeddings, layers, pooler, classifier })
    }

    /// Its shape.
    pub fn config(&self) -> &DebertaConfig {
        &self.config
    }

    /// Last rows `[rows, hidden]` of packed texts. On the CPU a text's rows have the same bits in any company.
    ///
    /// # Errors
    /// [`crate::EngineError::Model`] for a token or type that does not exist or a text that is too long.
    pub fn rows(&self, ids: &[u32], types: &[u32], segments: &Segments) -> Result<Tensor> {
        let (c, e) = (&self.config, &self.embeddings);
        // Most checkpoints ignore token types; then any type of a pair may stand there.
        check_rows(ids, types, segments, [c.vocab, if c.types == 0 { 2 } else { c.types }, c.positions])?;
        let mut x = ops::select_rows(&e.words, ids)?;
        if let Some(positions) = &e.positions {
            x = (x + ops::select_rows(positions, &segments.positions())?)?;
        }
        if let Some(table) = &e.types {
            x = (x + ops::select_rows(table, types)?)?;
        }
        let x = ops::layer_norm(&x, &e.norm.weight, &e.norm.bias, c.eps)?;
        match &self.layers {
            Layers::Cpu(layers) => {
                let mut rows = ops::read(&x, <[f32]>::to_vec)?;
                cpu::run(c, layers, &mut rows, segments);
                Ok(ops::tensor(rows, x.shape())?)
            }
            Layers::Device(layers) => device::run(c, layers, x, segments),
        }
    }

    /// One logit per pair, in the pairs' order: the first row through pooler and classifier.
    ///
    /// # Errors
    /// As [`Self::rows`]; a text without tokens.
    pub fn score(&self, ids: &[u32], types: &[u32], segments: &Segments) -> Result<Vec<f32>> {
        let first = first_rows(&self.rows(ids, types, segments)?, segments)?;
        let pooled = ops::gelu(&self.pooler.forward(&first)?, self.config.gelu)?;
        Ok(self.classifier.forward(&pooled)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}

impl Layer {
    fn take(c: &DebertaConfig, taker: &mut Taker<'_>, layer: usize, relative: &Tensor) -> Result<Self> {
        let h = c.hidden;
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        let one =
            |taker: &mut Taker<'_>, part: &str, inputs: usize, outputs: usize| taker.fused(&[(at(part), outputs)], inputs, true);
        let query = one(taker, "attention.self.query_proj", h, h)?;
        let key = one(taker, "attention.self.key_proj", h, h)?;
        let value = one(taker, "attention.self.value_proj", h, h)?;
        let positions = |taker: &mut Taker<'_>, looks: bool, part: &str, shared: &Linear| -> Result<Option<Tensor>> {
            if !looks {
                return Ok(None);
            }
            let own = if c.shared_projections { None } else { Some(one(taker, part, h, h)?) };
            own.as_ref().unwrap_or(shared).forward(relative).map(Some)
        };
        let position_keys = positions(taker, c.content_to_position, "attention.self.pos_key_proj", &key)?;
        let position_queries = positions(taker, c.position_to_content, "attention.self.pos_query_proj", &query)?;
        let parts = [query, key, value];
        let weight = Tensor::cat(&parts.each_ref().map(|part| &part.weight), 1)?;
        let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
        Ok(Self {
            qkv: Linear::new(weight.contiguous()?, Some(Tensor::cat(&biases, 0)?)),
            position_keys,
            position_queries,
            out: one(taker, "attention.output.dense", h, h)?,
            attention_norm: Norm::take(taker, &at("attention.output.LayerNorm"), h)?,
            up: one(taker, "intermediate.dense", h, c.inner)?,
            down: one(taker, "output.dense", c.inner, h)?,
            norm: Norm::take(taker, &at("output.LayerNorm"), h)?,
        })
    }
}

#[cfg(test)]
mod tests;
