//! The teacher encoder: a sentence-transformers BERT (all-MiniLM-L6-v2), mean pooled, read from its directory.

use std::path::Path;

use endcap_engine::{Tokenizer, ops};

use crate::{
    Result, TrainError,
    bert::{BertShape, Packed},
    files::Tensors,
    params::{Params, Weights},
    source::encode_single,
    step::spread,
};

/// Longest text that is given to the teacher, in tokens.
const TOKENS_MAX: usize = 64;
/// Texts of one forward pass.
const BATCH: usize = 64;

/// A frozen encoder.
pub(crate) struct Teacher {
    shape: BertShape,
    weights: Weights,
    tokenizer: Tokenizer,
}

impl Teacher {
    /// Reads `config.json`, `tokenizer.json` and `model.safetensors` of `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(TrainError::read(&path))?;
        let config: serde_json::Value = serde_json::from_slice(&text).map_err(|error| TrainError::content(&path, error))?;
        let size = |name: &str| {
            let value = config[name].as_u64().and_then(|n| usize::try_from(n).ok());
            value.ok_or_else(|| TrainError::content(&path, format!("it has no number `{name}`; a BERT directory is needed")))
        };
        let shape = BertShape {
            vocabulary: size("vocab_size")?,
            hidden: size("hidden_size")?,
            inner: size("intermediate_size")?,
            layers: size("num_hidden_layers")?,
            heads: size("num_attention_heads")?,
            positions: size("max_position_embeddings")?,
            types: size("type_vocab_size")?,
        };
        let mut params: Params = shape.import(&Tensors::read(&folder.join("model.safetensors"))?)?;
        params.freeze(|_| true);
        let tokenizer = Tokenizer::from_file(&folder.join("tokenizer.json")).map_err(|e| TrainError::Tokenizer(e.to_string()))?;
        Ok(Self { shape, weights: params.weights()?, tokenizer })
    }

    /// Vectors of unit length, one per text.
    pub(crate) fn vectors(&self, texts: &[String], threads: usize) -> Result<Vec<Vec<f32>>> {
        let ids: Vec<Vec<u32>> =
            texts.iter().map(|text| encode_single(&self.tokenizer, text, TOKENS_MAX)).collect::<Result<_>>()?;
        embed(&self.shape, &self.weights, &ids, threads)
    }
}

/// Mean-pooled vectors of unit length, one per token sequence.
pub(crate) fn embed(shape: &BertShape, weights: &Weights, ids: &[Vec<u32>], threads: usize) -> Result<Vec<Vec<f32>>> {
    let chunks: Vec<&[Vec<u32>]> = ids.chunks(BATCH).collect();
    let results = spread(chunks.len(), threads, |i| -> Result<Vec<Vec<f32>>> {
        let mut batch = Packed::new();
        chunks[i].iter().for_each(|ids| batch.push(ids, None));
        let hidden = shape.hidden(weights, &batch)?.detach();
        let pooled = ops::l2_normalise(&ops::segment_mean(&hidden, &batch.segments(), |_| true)?)?;
        Ok(pooled.to_vec2()?)
    });
    let mut vectors = Vec::with_capacity(ids.len());
    for result in results {
        vectors.extend(result?);
    }
    Ok(vectors)
}
