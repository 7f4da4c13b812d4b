//! A cross-encoder of any supported architecture.

use std::path::Path;

use candle_core::Device;

use crate::{BertCrossEncoder, Deberta, EngineError, ModelDir, Result, Segments};

/// Scores pairs of texts.
#[derive(Debug)]
pub enum CrossEncoder {
    /// `model_type` bert.
    Bert(BertCrossEncoder),
    /// `model_type` deberta-v2 (DeBERTa-v2 and -v3).
    Deberta(Deberta),
}

impl CrossEncoder {
    /// Reads a model directory onto `device`; its `model_type` chooses the architecture.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short, foreign, or of another architecture.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let files = ModelDir::open(dir)?;
        match files.kind() {
            "bert" => BertCrossEncoder::load(dir, device).map(Self::Bert),
            "deberta-v2" => Deberta::load(dir, device).map(Self::Deberta),
            other => {
                let what = format!("model_type {other:?} is no cross-encoder");
                Err(EngineError::file(dir, what, "use a bert or deberta-v2 model for sequence classification"))
            }
        }
    }

    /// Longest pair, in tokens.
    pub fn positions(&self) -> usize {
        match self {
            Self::Bert(model) => model.encoder.config().positions,
            Self::Deberta(model) => model.config().positions,
        }
    }

    /// One logit per pair, in the pairs' order. On the CPU a pair's logit has the same bits in any company.
    ///
    /// # Errors
    /// [`EngineError::Model`] for rows that the model cannot read or a pair with nothing to pool.
    pub fn score(&self, ids: &[u32], types: &[u32], segments: &Segments) -> Result<Vec<f32>> {
        match self {
            Self::Bert(model) => model.score(ids, types, segments),
            Self::Deberta(model) => model.score(ids, types, segments),
        }
    }
}
