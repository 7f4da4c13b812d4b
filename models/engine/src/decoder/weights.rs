//! A decoder's weights: fused, `[in, out]`, and their Hugging Face names.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor, Var};

use super::DecoderConfig;
use crate::{EngineError, Linear, Random, Result};

/// All weights of a decoder.
#[derive(Debug, Clone)]
pub struct DecoderWeights {
    /// `[vocab, hidden]`.
    pub embeddings: Tensor,
    /// The layers, first to last.
    pub layers: Vec<DecoderLayer>,
    /// Last norm, `[hidden]`.
    pub norm: Tensor,
    /// Output head, `[vocab, hidden]`; `None` when it is the embedding matrix.
    pub head: Option<Tensor>,
}

/// Weights of one layer.
#[derive(Debug, Clone)]
pub struct DecoderLayer {
    /// Norm before attention, `[hidden]`.
    pub attention_norm: Tensor,
    /// `[hidden, (heads + 2 · kv_heads) · head]`: queries, keys, values.
    pub qkv: Linear,
    /// `[heads · head, hidden]`.
    pub out: Linear,
    /// Norm before the feed-forward part, `[hidden]`.
    pub mlp_norm: Tensor,
    /// `[hidden, 2 · inner]`: gate, up.
    pub gate_up: Linear,
    /// `[inner, hidden]`.
    pub down: Linear,
}

/// Takes tensors by name out of a checkpoint.
pub(crate) struct Taker<'a> {
    pub(crate) tensors: &'a mut HashMap<String, Tensor>,
    pub(crate) device: &'a Device,
    pub(crate) dtype: DType,
}

impl Taker<'_> {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor `name`, which must have this shape.
    pub(crate) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensors.remove(name).ok_or_else(|| EngineError::model(format!("weights have no tensor {name}")))?;
        if tensor.dims() != shape {
            let what = format!("tensor {name} has shape {:?}, the config asks for {shape:?}", tensor.dims());
            return Err(EngineError::model(what));
        }
        Ok(tensor.to_device(self.device)?.to_dtype(self.dtype)?)
    }

    /// The layers `names`, each `[out, in]`, side by side as `[in, out …]`.
    pub(crate) fn fused(&mut self, names: &[(String, usize)], inputs: usize, bias: bool) -> Result<Linear> {
        let parts = names
            .iter()
            .map(|(name, outputs)| Ok(self.take(&format!("{name}.weight"), &[*outputs, inputs])?.t()?))
            .collect::<Result<Vec<_>>>()?;
        let weight = Tensor::cat(&parts, 1)?.contiguous()?;
        let bias = bias
            .then(|| -> Result<Tensor> {
                let parts = names
                    .iter()
                    .map(|(name, outputs)| self.take(&format!("{name}.bias"), &[*outputs]))
                    .collect::<Result<Vec<_>>>()?;
                Ok(Tensor::cat(&parts, 0)?)
            })
            .transpose()?;
        Ok(Linear::new(weight, bias))
    }
}

/// Puts a fused layer back as `[out, in]` tensors.
pub(crate) fn split(linear: &Linear, names: &[(String, usize)], out: &mut HashMap<String, Tensor>) -> Result<()> {
    let mut first = 0;
    for (name, outputs) in names {
        let part = linear.weight.narrow(1, first, *outputs)?.t()?.contiguous()?;
        out.insert(format!("{name}.weight"), part);
        if let Some(bias) = &linear.bias {
            out.insert(format!("{name}.bias"), bias.narrow(0, first, *outputs)?.contiguous()?);
        }
        first += outputs;
    }
    Ok(())
}

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Hugging Face names of one layer's parts.
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub(super) fn of(layer: usize) -> Self {
        Self { prefix: format!("model.layers.{layer}") }
    }
    fn attention_norm(&self) -> String {
        format!("{}.input_layernorm.weight", self.prefix)
    }
    fn mlp_norm(&self) -> String {
        format!("{}.post_attention_layernorm.weight", self.prefix)
    }
    /// The parts of a fused layer with their numbers of outputs.
    pub(super) fn parts(&self, fused: Fused, config: &DecoderConfig) -> Vec<(String, usize)> {
        let (queries, keys) = (config.heads * config.head, config.kv_heads * config.head);
        let parts: &[(&str, usize)] = match fused {
            Fused::Qkv => &[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)],
            Fused::Out => &[("self_attn.o_proj", config.hidden)],
            Fused::GateUp => &[("mlp.gate_proj", config.inner), ("mlp.up_proj", config.inner)],
            Fused::Down => &[("mlp.down_proj", config.hidden)],
        };
        parts.iter().map(|(name, outputs)| (format!("{}.{name}", self.prefix), *outputs)).collect()
    }
}

/// The four fused layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fused {
    Qkv,
    Out,
    GateUp,
    Down,
}

impl Fused {
    pub(super) const ALL: [Self; 4] = [Self::Qkv, Self::Out, Self::GateUp, Self::Down];

    pub(super) fn inputs(self, config: &DecoderConfig) -> usize {
        match self {
            Self::Qkv | Self::GateUp => config.hidden,
            Self::Out => config.heads * config.head,
            Self::Down => config.inner,
        }
    }
}

impl DecoderLayer {
    pub(super) fn part(&self, fused: Fused) -> &Linear {
        match fused {
            Fused::Qkv => &self.qkv,
            Fused::Out => &self.out,
            Fused::GateUp => &self.gate_up,
            Fused::Down => &self.down,
        }
    }

    pub(super) fn part_mut(&mut self, fused: Fused) -> &mut Linear {
        match fused {
            Fused::Qkv => &mut self.qkv,
            Fused::Out => &mut self.out,
            Fused::GateUp => &mut self.gate_up,
            Fused::Down => &mut self.down,
        }
    }
}

impl DecoderWeights {
    /// Weights from Hugging Face names; removes what it uses from `tensors`.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a tensor is missing or has another shape than `config` asks for.
    pub fn from_hf(config: &DecoderConfig, tensors: &mut HashMap<String, Tensor>, device: &Device, dtype: DType) -> Result<Self> {
        let (h, v) = (config.hidden, config.vocab);
        let mut taker = Taker { tensors, device, dtype };
        let embeddings = taker.take(EMBEDDINGS, &[v, h])?;
        let layers = (0..config.layers)
            .map(|layer| {
                let names = Names::of(layer);
                let mut fused = |part: Fused| {
                    taker.fused(&names.parts(part, config), part.inputs(config), part == Fused::Qkv && config.qkv_bias)
                };
                let [qkv, out, gate_up, down] = Fused::ALL.map(&mut fused);
                Ok(DecoderLayer {
                    qkv: qkv?,
                    out: out?,
                    gate_up: gate_up?,
                    down: down?,
                    attention_norm: taker.take(&names.attention_norm(), &[h])?,
                    mlp_norm: taker.take(&names.mlp_norm(), &[h])?,
                })
            })
            .collect::<Result<_>>()?;
        let norm = taker.take(NORM, &[h])?;
        let head = if config.tied { None } else { Some(taker.take(HEAD, &[v, h])?) };
        Ok(Self { embeddings, layers, norm, head })
    }

    /// The weights under their Hugging Face names, low-rank parts merged.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn to_hf(&self, config: &DecoderConfig) -> Result<HashMap<String, Tensor>> {
        let mut out = HashMap::new();
        out.insert(EMBEDDINGS.to_owned(), self.embeddings.clone());
        out.insert(NORM.to_owned(), self.norm.clone());
        if let Some(head) = &self.head {
            out.insert(HEAD.to_owned(), head.clone());
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let names = Names::of(index);
            out.insert(names.attention_norm(), layer.attention_norm.clone());
            out.insert(names.mlp_norm(), layer.mlp_norm.clone());
            for part in Fused::ALL {
                split(layer.part(part), &names.parts(part, config), &mut out)?;
            }
        }
        Ok(out)
    }

    /// Seeded starting weights for training, f32 on the CPU; layers that end in the residual stream start small.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn random(config: &DecoderConfig, seed: u64) -> Result<Self> {
        let mut random = Random::new(seed);
        let h = config.hidden;
        let ones = || Tensor::ones(h, DType::F32, &Device::Cpu);
        let residual = 1.0 / (2.0 * config.layers as f32).sqrt();
        let embeddings = random.tensor((config.vocab, h), 0.03)?;
        let layers = (0..config.layers)
            .map(|_| {
                let mut linear = |inputs: usize, outputs: usize, gain: f32| {
                    random.tensor((inputs, outputs), 0.8 * gain / (inputs as f32).sqrt())
                };
                let qkv = linear(h, config.qkv_columns(), 1.0)?;
                let out = linear(config.heads * config.head, h, residual)?;
                let gate_up = linear(h, 2 * config.inner, 1.0)?;
                let down = linear(config.inner, h, residual)?;
                let bias = config.qkv_bias.then(|| Tensor::zeros(config.qkv_columns(), DType::F32, &Device::Cpu)).transpose()?;
                Ok(DecoderLayer {
                    attention_norm: ones()?,
                    qkv: Linear::new(qkv, bias),
                    out: Linear::new(out, None),
                    mlp_norm: ones()?,
                    gate_up: Linear::new(gate_up, None),
                    down: Linear::new(down, None),
                })
            })
            .collect::<Result<_>>()?;
        let head = if config.tied { None } else { Some(random.tensor((config.vocab, h), 0.03)?) };
        Ok(Self { embeddings, layers, norm: ones()?, head })
    }

    /// The same weights as variables, with their names, in a fixed order. The returned weights share the variables' memory: updating a variable
    /// in place updates the model.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn trainable(&self) -> Result<(Self, Vec<(String, Var)>)> {
        let (mut weights, mut vars) = (self.clone(), Vec::new());
        weights.each_mut(&mut |name, tensor| {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            vars.push((name, var));
            Ok(())
        })?;
        Ok((weights, vars))
    }

    /// Visits every tensor (low-rank parts aside) under a name of its own.
    fn each_mut(&mut self, visit: &mut dyn FnMut(String, &mut Tensor) -> Result<()>) -> Result<()> {
        visit("embeddings".into(), &mut self.embeddings)?;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let at = |part: &str| format!("layers.{index}.{part}");
            visit(at("attention_norm"), &mut layer.attention_norm)?;
            visit(at("mlp_norm"), &mut layer.mlp_norm)?;
            for (name, fused) in ["qkv", "out", "gate_up", "down"].into_iter().zip(Fused::ALL) {
                let linear = layer.part_mut(fused);
                visit(at(name), &mut linear.weight)?;
                if let Some(bias) = &mut linear.bias {
                    visit(at(&format!("{name}.bias")), bias)?;
                }
            }
        }
        visit("norm".into(), &mut self.norm)?;
        match &mut self.head {
            Some(head) => visit("head".into(), head),
            None => Ok(()),
        }
    }
}
