//! Shapes of DeBERTa-v2 and -v3 models, as Hugging Face writes them.

use serde::Deserialize;
use serde_json::Value;

use crate::{EngineError, Result, bert::activation, ops::Gelu};

/// Shape of a DeBERTa-v2 or -v3 model.
#[derive(Debug, Clone, PartialEq)]
pub struct DebertaConfig {
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
    /// Longest text, in tokens.
    pub positions: usize,
    /// Added to the variance in every norm.
    pub eps: f64,
    /// The activation.
    pub gelu: Gelu,
    /// Relative distances that have an embedding, in one direction.
    pub span: usize,
    /// Buckets of distances in one direction, twice over; 0 where every distance has its own embedding.
    pub buckets: usize,
    /// Largest distance that buckets tell apart.
    pub distance_max: usize,
    /// Whether a row's content looks for positions.
    pub content_to_position: bool,
    /// Whether a row's position looks for contents.
    pub position_to_content: bool,
    /// Whether relative embeddings are normalised.
    pub normalise_relative: bool,
    /// Whether positions share the contents' projections.
    pub shared_projections: bool,
    /// Whether learned absolute positions are added to the words.
    pub absolute_positions: bool,
    /// Token types; 0 in most checkpoints.
    pub types: usize,
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
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_activation")]
    hidden_act: String,
    pooler_hidden_act: Option<String>,
    #[serde(default)]
    relative_attention: bool,
    #[serde(default = "minus_one")]
    max_relative_positions: i64,
    #[serde(default = "minus_one")]
    position_buckets: i64,
    #[serde(default)]
    norm_rel_ebd: String,
    #[serde(default)]
    share_att_key: bool,
    pos_att_type: Option<Value>,
    #[serde(default = "yes")]
    position_biased_input: bool,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default)]
    conv_kernel_size: usize,
    embedding_size: Option<usize>,
}

fn default_eps() -> f64 {
    1e-7
}
fn default_activation() -> String {
    "gelu".into()
}
fn minus_one() -> i64 {
    -1
}
fn yes() -> bool {
    true
}

impl DebertaConfig {
    /// Reads a `config.json` of `DebertaV2ForSequenceClassification`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is another architecture or asks for something that is not supported.
    pub fn from_json(config: &Value) -> Result<Self> {
        let raw = Raw::deserialize(config).map_err(|error| EngineError::model(format!("deberta config: {error}")))?;
        let looks = raw.looks();
        let unsupported = [
            (raw.model_type != "deberta-v2", format!("model_type {:?}", raw.model_type)),
            (!raw.relative_attention, "relative_attention false".into()),
            (raw.conv_kernel_size > 0, "conv_kernel_size".into()),
            (raw.embedding_size.is_some_and(|size| size != raw.hidden_size), "embedding_size other than hidden_size".into()),
            (raw.pooler_hidden_act.as_deref().is_some_and(|act| act != raw.hidden_act), "pooler_hidden_act".into()),
            (looks.iter().any(|look| !matches!(look.as_str(), "c2p" | "p2c")), format!("pos_att_type {looks:?}")),
            (!matches!(raw.norm_rel_ebd.as_str(), "" | "none" | "layer_norm"), format!("norm_rel_ebd {:?}", raw.norm_rel_ebd)),
            (
                raw.num_attention_heads == 0 || !raw.hidden_size.is_multiple_of(raw.num_attention_heads),
                format!("{} heads", raw.num_attention_heads),
            ),
        ];
        if let Some((_, what)) = unsupported.into_iter().find(|(is, _)| *is) {
            return Err(EngineError::model(format!("deberta config: {what} is not supported")));
        }
        let distance_max = usize::try_from(raw.max_relative_positions).ok().filter(|max| *max > 0);
        let distance_max = distance_max.unwrap_or(raw.max_position_embeddings);
        let buckets = usize::try_from(raw.position_buckets).unwrap_or(0);
        Ok(Self {
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            inner: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            positions: raw.max_position_embeddings,
            eps: raw.layer_norm_eps,
            gelu: activation(&raw.hidden_act)?,
            span: if buckets > 0 { buckets } else { distance_max },
            buckets,
            distance_max,
            content_to_position: looks.iter().any(|look| look == "c2p"),
            position_to_content: looks.iter().any(|look| look == "p2c"),
            normalise_relative: raw.norm_rel_ebd == "layer_norm",
            shared_projections: raw.share_att_key,
            absolute_positions: raw.position_biased_input,
            types: raw.type_vocab_size,
        })
    }

    /// What scores are divided by: each way of looking adds one to the head's size.
    pub(super) fn score_scale(&self) -> f32 {
        let ways = 1 + usize::from(self.content_to_position) + usize::from(self.position_to_content);
        ((self.hidden / self.heads * ways) as f32).sqrt()
    }

    /// Row of the relative embeddings for a query `distance` rows behind a key (negative: before it).
    ///
    /// Distances up to half the buckets have a row of their own, further ones share rows on a logarithmic scale.
    pub(super) fn relative_row(&self, distance: i64) -> usize {
        let span = self.span as i64;
        (self.bucket(distance) + span).clamp(0, 2 * span - 1) as usize
    }

    fn bucket(&self, distance: i64) -> i64 {
        let middle = self.buckets as i64 / 2;
        if self.buckets == 0 || distance.abs() <= middle {
            return distance;
        }
        let far = (distance.abs() as f64 / middle as f64).ln() / ((self.distance_max as f64 - 1.0) / middle as f64).ln();
        let bucket = (far * (middle - 1) as f64).ceil() as i64 + middle;
        bucket * distance.signum()
    }
}

impl Raw {
    /// `pos_att_type` as a list: checkpoints write a list or words joined by `|`.
    fn looks(&self) -> Vec<String> {
        match &self.pos_att_type {
            Some(Value::String(words)) => {
                words.split('|').map(|word| word.trim().to_lowercase()).filter(|w| !w.is_empty()).collect()
            }
            Some(Value::Array(words)) => words.iter().filter_map(Value::as_str).map(str::to_lowercase).collect(),
            _ => Vec::new(),
        }
    }
}
