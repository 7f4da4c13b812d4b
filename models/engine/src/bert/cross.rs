//! BERT as a cross-encoder: one score per pair of texts.

use std::{collections::HashMap, path::Path};

use candle_core::{DType, Device, Tensor};

use super::{Bert, BertConfig, Pooling, first_rows, missing, optional_linear, plain_names};
use crate::{EngineError, Linear, ModelDir, Result, Segments, decoder::Taker, load, ops};

/// An encoder with a pooling and a classifier of one output.
#[derive(Debug, Clone)]
pub struct BertCrossEncoder {
    /// The encoder.
    pub encoder: Bert,
    /// From `endcap_pooling`; the first row where the config does not say.
    pub pooling: Pooling,
    /// `[hidden, hidden]`, then tanh; only with [`Pooling::Cls`].
    pub pooler: Option<Linear>,
    /// `[hidden, 1]`.
    pub classifier: Linear,
}

impl BertCrossEncoder {
    /// Reads a model directory onto `device`.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short or foreign.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        let config = BertConfig::from_json(files.config()).map_err(|error| files.blame(error))?;
        Self::from_hf(config, &mut files.tensors()?, device, load::compute_dtype(device)).map_err(|error| files.blame(error))
    }

    /// A cross-encoder from the names of `BertForSequenceClassification`; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a tensor is missing or has the wrong shape.
    pub fn from_hf(config: BertConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        plain_names(tensors, "bert.");
        let (h, pooling) = (config.hidden, config.pooling.unwrap_or(Pooling::Cls));
        let encoder = Bert::from_hf(config, tensors, device, dtype)?;
        let taker = &mut Taker { tensors, device, dtype };
        let pooler = match pooling {
            Pooling::Cls => Some(optional_linear(taker, "pooler.dense", h, h)?.ok_or_else(|| missing("pooler.dense.weight"))?),
            _ => None,
        };
        let classifier = optional_linear(taker, "classifier", h, 1)?.ok_or_else(|| missing("classifier.weight"))?;
        Ok(Self { encoder, pooling, pooler, classifier })
    }

    /// The weights under the names of `BertForSequenceClassification`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn to_hf(&self) -> Result<HashMap<String, Tensor>> {
        let named = self.encoder.to_hf()?.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor));
        let mut out: HashMap<_, _> = named.collect();
        if let Some(pooler) = &self.pooler {
            crate::decoder::split(pooler, &[("bert.pooler.dense".into(), self.encoder.config().hidden)], &mut out)?;
        }
        crate::decoder::split(&self.classifier, &[("classifier".into(), 1)], &mut out)?;
        Ok(out)
    }

    /// One logit per pair, `[segments, 1]`, from the encoder's rows `[rows, hidden]`; differentiable.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a pair has no row to pool.
    pub fn logits(&self, rows: &Tensor, types: &[u32], segments: &Segments) -> Result<Tensor> {
        let pooled = match self.pooling {
            Pooling::Cls => first_rows(rows, segments)?,
            Pooling::Mean => ops::segment_mean(rows, segments, |_| true)?,
            Pooling::SecondSegmentMean => {
                if segments.iter().any(|rows| types[rows].iter().all(|kind| *kind == 0)) {
                    return Err(EngineError::model("a pair has no second text"));
                }
                ops::segment_mean(rows, segments, |row| types[row] == 1)?
            }
        };
        let pooled = match &self.pooler {
            Some(pooler) => pooler.forward(&pooled)?.tanh()?,
            None => pooled,
        };
        self.classifier.forward(&pooled)
    }

    /// One logit per pair, in the pairs' order. Not differentiable; the fast way.
    ///
    /// # Errors
    /// [`EngineError::Model`] for rows that the encoder cannot read or a pair with nothing to pool.
    pub fn score(&self, ids: &[u32], types: &[u32], segments: &Segments) -> Result<Vec<f32>> {
        let rows = self.encoder.rows(ids, Some(types), segments)?;
        Ok(self.logits(&rows, types, segments)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}
