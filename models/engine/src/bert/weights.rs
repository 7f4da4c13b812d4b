//! An encoder's weights: fused, `[in, out]`, and their Hugging Face names.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use super::BertConfig;
use crate::{
    EngineError, Linear, Random, Result,
    decoder::{Taker, split},
};

/// All weights of an encoder.
#[derive(Debug, Clone)]
pub struct BertWeights {
    /// `[vocab, hidden]`.
    pub words: Tensor,
    /// `[positions, hidden]`.
    pub positions: Tensor,
    /// `[types, hidden]`.
    pub types: Tensor,
    /// Norm of the embeddings.
    pub norm: Norm,
    /// The layers, first to last.
    pub layers: Vec<BertLayer>,
}

/// Weights of one layer.
#[derive(Debug, Clone)]
pub struct BertLayer {
    /// `[hidden, 3 · hidden]`: queries, keys, values.
    pub qkv: Linear,
    /// `[hidden, hidden]`.
    pub out: Linear,
    /// Norm after attention.
    pub attention_norm: Norm,
    /// `[hidden, inner]`.
    pub up: Linear,
    /// `[inner, hidden]`.
    pub down: Linear,
    /// Norm after the feed-forward part.
    pub norm: Norm,
}

/// Weight and bias of a layer norm, `[hidden]` each.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Scale.
    pub weight: Tensor,
    /// Shift.
    pub bias: Tensor,
}

impl Norm {
    pub(crate) fn take(taker: &mut Taker<'_>, name: &str, hidden: usize) -> Result<Self> {
        Ok(Self {
            weight: taker.take(&format!("{name}.weight"), &[hidden])?,
            bias: taker.take(&format!("{name}.bias"), &[hidden])?,
        })
    }

    fn put(&self, name: &str, out: &mut HashMap<String, Tensor>) {
        out.insert(format!("{name}.weight"), self.weight.clone());
        out.insert(format!("{name}.bias"), self.bias.clone());
    }

    fn fresh(hidden: usize) -> Result<Self> {
        let device = &Device::Cpu;
        Ok(Self { weight: Tensor::ones(hidden, DType::F32, device)?, bias: Tensor::zeros(hidden, DType::F32, device)? })
    }
}

const WORDS: &str = "embeddings.word_embeddings.weight";
const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";
const NORM: &str = "embeddings.LayerNorm";

/// Hugging Face names of one layer's parts.
struct Names {
    prefix: String,
    hidden: usize,
    inner: usize,
}

impl Names {
    fn of(layer: usize, config: &BertConfig) -> Self {
        Self { prefix: format!("encoder.layer.{layer}"), hidden: config.hidden, inner: config.inner }
    }
    fn at(&self, part: &str) -> String {
        format!("{}.{part}", self.prefix)
    }
    fn qkv(&self) -> Vec<(String, usize)> {
        ["query", "key", "value"].map(|part| (self.at(&format!("attention.self.{part}")), self.hidden)).to_vec()
    }
    fn out(&self) -> Vec<(String, usize)> {
        vec![(self.at("attention.output.dense"), self.hidden)]
    }
    fn attention_norm(&self) -> String {
        self.at("attention.output.LayerNorm")
    }
    fn up(&self) -> Vec<(String, usize)> {
        vec![(self.at("intermediate.dense"), self.inner)]
    }
    fn down(&self) -> Vec<(String, usize)> {
        vec![(self.at("output.dense"), self.hidden)]
    }
    fn norm(&self) -> String {
        self.at("output.LayerNorm")
    }
}

/// Names without a leading `bert.`, and norms under their new names.
pub(crate) fn plain_names(tensors: &mut HashMap<String, Tensor>, model: &str) {
    let names: Vec<String> = tensors.keys().cloned().collect();
    for name in names {
        let plain = name.strip_prefix(model).unwrap_or(&name);
        let plain = plain.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias");
        if plain != name {
            let tensor = tensors.remove(&name).expect("the name was just listed");
            tensors.insert(plain, tensor);
        }
    }
}

impl BertWeights {
    /// Weights from Hugging Face names, with or without `bert.` before them; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a tensor is missing or has another shape than `config` asks for.
    pub fn from_hf(config: &BertConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        plain_names(tensors, "bert.");
        let (h, inner) = (config.hidden, config.inner);
        let taker = &mut Taker { tensors, device, dtype };
        Ok(Self {
            words: taker.take(WORDS, &[config.vocab, h])?,
            positions: taker.take(POSITIONS, &[config.positions, h])?,
            types: taker.take(TYPES, &[config.types, h])?,
            norm: Norm::take(taker, NORM, h)?,
            layers: (0..config.layers)
                .map(|layer| {
                    let names = Names::of(layer, config);
                    Ok(BertLayer {
                        qkv: taker.fused(&names.qkv(), h, true)?,
                        out: taker.fused(&names.out(), h, true)?,
                        attention_norm: Norm::take(taker, &names.attention_norm(), h)?,
                        up: taker.fused(&names.up(), h, true)?,
                        down: taker.fused(&names.down(), inner, true)?,
                        norm: Norm::take(taker, &names.norm(), h)?,
                    })
                })
                .collect::<Result<_>>()?,
        })
    }

    /// The weights under the names of `BertModel`.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn to_hf(&self, config: &BertConfig) -> Result<HashMap<String, Tensor>> {
        let mut out = HashMap::new();
        for (name, tensor) in [(WORDS, &self.words), (POSITIONS, &self.positions), (TYPES, &self.types)] {
            out.insert(name.to_owned(), tensor.clone());
        }
        self.norm.put(NORM, &mut out);
        for (index, layer) in self.layers.iter().enumerate() {
            let names = Names::of(index, config);
            layer.attention_norm.put(&names.attention_norm(), &mut out);
            layer.norm.put(&names.norm(), &mut out);
            for (linear, parts) in
                [(&layer.qkv, names.qkv()), (&layer.out, names.out()), (&layer.up, names.up()), (&layer.down, names.down())]
            {
                split(linear, &parts, &mut out)?;
            }
        }
        Ok(out)
    }

    /// Seeded starting weights for training, f32 on the CPU.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn random(config: &BertConfig, seed: u64) -> Result<Self> {
        const DEVIATION: f32 = 0.02;
        let mut random = Random::new(seed);
        let h = config.hidden;
        let words = random.tensor((config.vocab, h), DEVIATION)?;
        let positions = random.tensor((config.positions, h), DEVIATION)?;
        let types = random.tensor((config.types, h), DEVIATION)?;
        let mut linear = |inputs: usize, outputs: usize| -> Result<Linear> {
            let weight = random.tensor((inputs, outputs), 1.0 / (inputs as f32).sqrt())?;
            Ok(Linear::new(weight, Some(Tensor::zeros(outputs, DType::F32, &Device::Cpu)?)))
        };
        let layers = (0..config.layers)
            .map(|_| {
                Ok(BertLayer {
                    qkv: linear(h, 3 * h)?,
                    out: linear(h, h)?,
                    attention_norm: Norm::fresh(h)?,
                    up: linear(h, config.inner)?,
                    down: linear(config.inner, h)?,
                    norm: Norm::fresh(h)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { words, positions, types, norm: Norm::fresh(h)?, layers })
    }

    /// The same weights as variables, with their names, in a fixed order. The returned weights share the variables' memory.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn trainable(&self) -> Result<(Self, Vec<(String, Var)>)> {
        let (mut weights, mut vars) = (self.clone(), Vec::new());
        for (name, tensor) in weights.each_mut() {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            vars.push((name, var));
        }
        Ok((weights, vars))
    }

    fn each_mut(&mut self) -> Vec<(String, &mut Tensor)> {
        let mut all = vec![
            ("words".to_owned(), &mut self.words),
            ("positions".to_owned(), &mut self.positions),
            ("types".to_owned(), &mut self.types),
            ("norm.weight".to_owned(), &mut self.norm.weight),
            ("norm.bias".to_owned(), &mut self.norm.bias),
        ];
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |part: &str| format!("layers.{index}.{part}");
            for (name, linear) in
                [("qkv", &mut layer.qkv), ("out", &mut layer.out), ("up", &mut layer.up), ("down", &mut layer.down)]
            {
                all.push((at(name), &mut linear.weight));
                if let Some(bias) = &mut linear.bias {
                    all.push((at(&format!("{name}.bias")), bias));
                }
            }
            for (name, norm) in [("attention_norm", &mut layer.attention_norm), ("norm", &mut layer.norm)] {
                all.push((at(&format!("{name}.weight")), &mut norm.weight));
                all.push((at(&format!("{name}.bias")), &mut norm.bias));
            }
        }
        all
    }
}

/// `dense` of a pooler or classifier, when the checkpoint has it; a missing bias is zero.
pub(crate) fn optional_linear(taker: &mut Taker<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Option<Linear>> {
    if !taker.has(&format!("{name}.weight")) {
        return Ok(None);
    }
    let bias = taker.has(&format!("{name}.bias"));
    taker.fused(&[(name.to_owned(), outputs)], inputs, bias).map(Some)
}

pub(crate) fn missing(name: &str) -> EngineError {
    EngineError::model(format!("weights have no tensor {name}"))
}
