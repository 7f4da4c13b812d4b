//! Shapes of BERT-style encoders, as Hugging Face writes them.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    EngineError, Result,
    ops::{Gelu, kernels::HEAD_MAX},
};

/// How an encoder's rows become one row per text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Mean over all rows.
    Mean,
    /// The first row (through the pooler, where a cross-encoder has one).
    Cls,
    /// Mean over the rows of the second text and the separator behind it (token type 1).
    SecondSegmentMean,
}

/// Shape of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Tokens.
    pub vocab: usize,
    /// Width of a row.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Longest sequence, in tokens.
    pub positions: usize,
    /// Token types.
    pub types: usize,
    /// Added to the variance in every norm.
    pub eps: f64,
    /// The activation.
    pub gelu: Gelu,
    /// From `endcap_pooling`; `None` where the config does not say.
    pub pooling: Option<Pooling>,
}

#[derive(Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    position_embedding_type: Option<String>,
    endcap_pooling: Option<Pooling>,
}

fn default_types() -> usize {
    2
}
fn default_eps() -> f64 {
    1e-12
}
fn default_activation() -> String {
    "gelu".into()
}

/// The GELU of a `hidden_act`.
pub(crate) fn activation(name: &str) -> Result<Gelu> {
    match name {
        "gelu" => Ok(Gelu::Erf),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Gelu::Tanh),
        _ => Err(EngineError::model(format!("encoder config: hidden_act {name:?} is not supported"))),
    }
}

impl BertConfig {
    /// Reads a `config.json` of `BertModel` or `BertForSequenceClassification`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is another architecture or asks for something that is not supported.
    pub fn from_json(config: &Value) -> Result<Self> {
        let raw = Raw::deserialize(config).map_err(|error| EngineError::model(format!("encoder config: {error}")))?;
        if raw.model_type != "bert" {
            return Err(EngineError::model(format!("encoder config: model_type {:?} is not supported", raw.model_type)));
        }
        if raw.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute") {
            return Err(EngineError::model("encoder config: only absolute positions are supported"));
        }
        if raw.num_attention_heads == 0 || !raw.hidden_size.is_multiple_of(raw.num_attention_heads) {
            return Err(EngineError::model("encoder config: hidden_size is not a multiple of num_attention_heads"));
        }
        if raw.hidden_size / raw.num_attention_heads > HEAD_MAX {
            return Err(EngineError::model(format!("encoder config: heads of more than {HEAD_MAX} values are not supported")));
        }
        Ok(Self {
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            inner: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            positions: raw.max_position_embeddings,
            types: raw.type_vocab_size,
            eps: raw.layer_norm_eps,
            gelu: activation(&raw.hidden_act)?,
            pooling: raw.endcap_pooling,
        })
    }

    /// The `config.json` that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let pooling = self.pooling.map(|pooling| match pooling {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::SecondSegmentMean => "second_segment_mean",
        });
        json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": self.positions,
            "type_vocab_size": self.types,
            "layer_norm_eps": self.eps,
            "hidden_act": match self.gelu { Gelu::Erf => "gelu", Gelu::Tanh => "gelu_new" },
            "endcap_pooling": pooling,
        })
    }
}
