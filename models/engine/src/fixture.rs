//! Tiny model directories with random weights, for tests: the whole engine in milliseconds.
//!
//! What such a model says has no sense, but everything around it is real: files, tokenizer, constraints, batches.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use crate::{
    Adapter, AdapterConfig, Bert, BertConfig, BertWeights, CANDIDATE_HEAD, Decoder, DecoderConfig, DecoderWeights, EngineError,
    Pooling, Random, Result, Tokenizer, demo_tokenizer, ops::Gelu, write_tensors,
};

/// Words that the fixture's tokenizer knows; others are spelled in bytes.
pub const WORDS: &str = "flavor builders for weeknight meals smoked gouda oat milk vegan snacks winter warmers lentil soup sourdough \
     bread aged cheddar dark chocolate olive oil pasta sauce green tea busy family cook healthy quick breakfast";

const VOCABULARY: usize = 768;
const HIDDEN: usize = 32;
const POSITIONS: usize = 2_048;

/// A demo-style tokenizer of [`WORDS`].
///
/// # Errors
/// [`EngineError::Model`] when it cannot be trained.
pub fn tokenizer() -> Result<Tokenizer> {
    demo_tokenizer([WORDS; 2].into_iter(), VOCABULARY).map_err(|error| EngineError::model(error.to_string()))
}

/// Writes a random decoder of one layer with short texts in its config to `dir`: for [`crate::ThemeModel`] and [`crate::KeywordModel`].
///
/// # Errors
/// [`EngineError`] when a file cannot be written.
pub fn write_decoder(dir: &Path, seed: u64) -> Result<()> {
    let tokenizer = tokenizer()?;
    let config = DecoderConfig {
        vocab: tokenizer.vocabulary_size(),
        hidden: HIDDEN,
        inner: 2 * HIDDEN,
        layers: 1,
        heads: 2,
        kv_heads: 2,
        head: HIDDEN / 2,
        eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        qkv_bias: false,
        positions: POSITIONS,
    };
    let mut json = config.to_json();
    json["endcap_text_chars"] = json!({"persona": 16, "title": 20, "intent": 16, "concept": 12});
    let decoder = Decoder::new(config.clone(), DecoderWeights::random(&config, seed)?)?;
    write(dir, &json, &tokenizer, &decoder.to_hf()?)
}

/// Writes a random adapter for the decoder in `dir` as `<name>.adapter.safetensors` beside it, with a candidate head or without. Gives its path.
///
/// # Errors
/// [`EngineError`] when a file cannot be read or written.
pub fn write_adapter(dir: &Path, name: &str, with_head: bool, seed: u64) -> Result<PathBuf> {
    let config = DecoderConfig::from_json(&crate::read_json(&dir.join("config.json"))?)?;
    let lora = AdapterConfig {
        r: 2,
        lora_alpha: 4.0,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        peft_type: "LORA".into(),
    };
    let (mut adapter, _) = Adapter::trainable(lora.clone(), &config, seed)?;
    let mut random = Random::new(seed);
    for (_, b) in adapter.parts.values_mut() {
        *b = random.tensor(b.shape().clone(), 0.1)?;
    }
    if with_head {
        adapter.extra.insert(CANDIDATE_HEAD.into(), random.tensor((1, config.hidden), 0.5)?);
    }
    let path = dir.join(format!("{name}.adapter.safetensors"));
    write_json(
        &dir.join("adapter_config.json"),
        &serde_json::to_value(&lora).map_err(|error| EngineError::model(error.to_string()))?,
    )?;
    write_tensors(&path, &adapter.to_tensors())?;
    Ok(path)
}

/// Writes a random encoder of one layer to `dir`: for [`crate::EmbedModel`].
///
/// # Errors
/// [`EngineError`] when a file cannot be written.
pub fn write_encoder(dir: &Path, seed: u64) -> Result<()> {
    let tokenizer = tokenizer()?;
    let config = encoder_config(&tokenizer, Pooling::Mean);
    let encoder = Bert::new(config.clone(), BertWeights::random(&config, seed)?)?;
    write(dir, &config.to_json(), &tokenizer, &encoder.to_hf()?)
}

/// Writes a random cross-encoder of one layer to `dir`: for [`crate::RelevanceModel`]. About half of all pairs pass its threshold.
///
/// # Errors
/// [`EngineError`] when a file cannot be written.
pub fn write_cross_encoder(dir: &Path, seed: u64) -> Result<()> {
    let tokenizer = tokenizer()?;
    let config = encoder_config(&tokenizer, Pooling::SecondSegmentMean);
    let encoder = Bert::new(config.clone(), BertWeights::random(&config, seed)?)?;
    let named = encoder.to_hf()?.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor));
    let mut tensors: HashMap<String, Tensor> = named.collect();
    tensors.insert("classifier.weight".into(), Random::new(seed).tensor((1, HIDDEN), 1.0)?);
    tensors.insert("classifier.bias".into(), Tensor::zeros(1, DType::F32, &Device::Cpu)?);
    let mut json = config.to_json();
    json["architectures"] = json!(["BertForSequenceClassification"]);
    json["endcap_threshold"] = json!(0.5);
    write(dir, &json, &tokenizer, &tensors)
}

fn encoder_config(tokenizer: &Tokenizer, pooling: Pooling) -> BertConfig {
    BertConfig {
        vocab: tokenizer.vocabulary_size(),
        hidden: HIDDEN,
        inner: 2 * HIDDEN,
        layers: 1,
        heads: 2,
        positions: 128,
        types: 2,
        eps: 1e-12,
        gelu: Gelu::Erf,
        pooling: Some(pooling),
    }
}

fn write(dir: &Path, config: &Value, tokenizer: &Tokenizer, tensors: &HashMap<String, Tensor>) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| EngineError::file(dir, error, "check the directory"))?;
    write_json(&dir.join("config.json"), config)?;
    let text = tokenizer.to_json().map_err(|error| EngineError::model(error.to_string()))?;
    write_text(&dir.join("tokenizer.json"), &text)?;
    write_tensors(&dir.join("model.safetensors"), tensors)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_text(path, &value.to_string())
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| EngineError::file(path, error, "check the directory and its space"))
}
