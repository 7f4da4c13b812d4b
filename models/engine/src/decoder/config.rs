//! Shapes of Llama-style decoders, as Hugging Face writes them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{EngineError, Result, ops::kernels::HEAD_MAX};

/// Positions that rotary tables are made for, at most; longer contexts are refused.
const POSITIONS_MAX: usize = 16_384;

/// How a checkpoint stretches its rotary positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// All positions divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Waves longer than the original context divided by this are low.
        low_freq_factor: f64,
        /// Waves shorter than the original context divided by this are high.
        high_freq_factor: f64,
        /// Context that the checkpoint was first trained for, in tokens.
        original_max_position_embeddings: f64,
    },
}

/// Shape of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Tokens.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward layer.
    pub inner: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head: usize,
    /// Added to the mean square in every norm.
    pub eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary positions.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the output head is the embedding matrix.
    pub tied: bool,
    /// Whether queries, keys and values have a bias (Qwen 2).
    pub qkv_bias: bool,
    /// Longest context, in tokens.
    pub positions: usize,
}

/// The fields of `config.json` that matter here.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    rope_parameters: Option<Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
}

fn default_eps() -> f64 {
    1e-6
}
fn default_positions() -> usize {
    2_048
}
fn default_activation() -> String {
    "silu".into()
}

impl DecoderConfig {
    /// Reads a `config.json` of `LlamaForCausalLM` or `Qwen2ForCausalLM`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when it is another architecture or asks for something that is not supported.
    pub fn from_json(config: &Value) -> Result<Self> {
        let raw = Raw::deserialize(config).map_err(|error| EngineError::model(format!("decoder config: {error}")))?;
        let unsupported = [
            (!matches!(raw.model_type.as_str(), "llama" | "qwen2"), format!("model_type {:?}", raw.model_type)),
            (raw.hidden_act != "silu", format!("hidden_act {:?}", raw.hidden_act)),
            (raw.mlp_bias, "mlp_bias".into()),
            (raw.attention_bias, "attention_bias".into()),
            (raw.use_sliding_window, "use_sliding_window".into()),
        ];
        if let Some((_, what)) = unsupported.into_iter().find(|(is, _)| *is) {
            return Err(EngineError::model(format!("decoder config: {what} is not supported")));
        }
        let rope = raw.rope_parameters.or(raw.rope_scaling);
        let theta_inside = rope.as_ref().and_then(|rope| rope.get("rope_theta")?.as_f64());
        let config = Self {
            vocab: raw.vocab_size,
            hidden: raw.hidden_size,
            inner: raw.intermediate_size,
            layers: raw.num_hidden_layers,
            heads: raw.num_attention_heads,
            kv_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            eps: raw.rms_norm_eps,
            rope_theta: theta_inside.or(raw.rope_theta).unwrap_or(10_000.0),
            rope_scaling: scaling(rope)?,
            tied: raw.tie_word_embeddings,
            qkv_bias: raw.model_type == "qwen2",
            positions: raw.max_position_embeddings.min(POSITIONS_MAX),
        };
        config.checked()
    }

    fn checked(self) -> Result<Self> {
        let zero = [self.vocab, self.hidden, self.inner, self.heads, self.kv_heads, self.head, self.positions].contains(&0);
        if zero || self.head > HEAD_MAX || !self.heads.is_multiple_of(self.kv_heads) || !self.head.is_multiple_of(2) {
            return Err(EngineError::model(format!("decoder config: sizes do not fit each other: {self:?}")));
        }
        Ok(self)
    }

    /// The `config.json` that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Value {
        let (kind, architecture) = if self.qkv_bias { ("qwen2", "Qwen2ForCausalLM") } else { ("llama", "LlamaForCausalLM") };
        json!({
            "architectures": [architecture],
            "model_type": kind,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "rms_norm_eps": self.eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.positions,
            "hidden_act": "silu",
        })
    }

    /// Angular frequency of each rotary pair, `head / 2` of them.
    pub fn frequencies(&self) -> Vec<f32> {
        let pairs = (0..self.head / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / self.head as f64));
        pairs.map(|f| self.scaled(f) as f32).collect()
    }

    fn scaled(&self, frequency: f64) -> f64 {
        match self.rope_scaling {
            None => frequency,
            Some(RopeScaling::Linear { factor }) => frequency / factor,
            Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
                let waves = original_max_position_embeddings * frequency / std::f64::consts::TAU;
                let keep = ((waves - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            }
        }
    }

    /// Columns of the fused query, key and value layer.
    pub fn qkv_columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }
}

fn scaling(rope: Option<Value>) -> Result<Option<RopeScaling>> {
    let Some(Value::Object(mut rope)) = rope else { return Ok(None) };
    // Older files say `type`.
    let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default").to_owned();
    if kind == "default" {
        return Ok(None);
    }
    rope.insert("rope_type".into(), kind.into());
    parse_scaling(rope).map(Some)
}

fn parse_scaling(rope: Map<String, Value>) -> Result<RopeScaling> {
    serde_json::from_value(Value::Object(rope))
        .map_err(|error| EngineError::model(format!("decoder config: rope_scaling: {error}")))
}
