//! Low-rank adapters (LoRA) under their PEFT names.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::{
    DecoderConfig, DecoderWeights,
    weights::{Fused, Names},
};
use crate::{EngineError, ModelDir, Random, Result, load};

const PREFIX: &str = "base_model.model.";
/// How the names of adapters' files end.
const ADAPTER: &str = ".adapter.safetensors";

/// What an `adapter_config.json` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Rank of the updates.
    pub r: usize,
    /// Updates are scaled by alpha / rank.
    pub lora_alpha: f64,
    /// Layers that have one, e.g. `q_proj`.
    pub target_modules: Vec<String>,
    /// Always `LORA`.
    #[serde(default = "lora")]
    pub peft_type: String,
}

fn has_adapters(dir: &Path) -> Result<bool> {
    let files = fs::read_dir(dir).map_err(|error| EngineError::file(dir, error, "check the directory"))?;
    Ok(files.flatten().any(|file| file.file_name().to_string_lossy().ends_with(ADAPTER)))
}

fn lora() -> String {
    "LORA".into()
}

/// A low-rank adapter of a decoder.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rank, scale and targets.
    pub config: AdapterConfig,
    /// `A[rank, in]` and `B[out, rank]` by module, e.g. `model.layers.0.self_attn.q_proj`.
    pub parts: BTreeMap<String, (Tensor, Tensor)>,
    /// Whatever else the file holds, e.g. `candidate_head.weight`.
    pub extra: HashMap<String, Tensor>,
}

impl Adapter {
    /// The config of all adapters in a directory that have none of their own.
    pub const CONFIG: &str = "adapter_config.json";
    /// Entry of an adapter file's metadata that tells what it was made for, see [`Self::origin`].
    pub const ORIGIN: &str = "endcap_adapter";

    /// What an adapter for `task` (`themes`, `keywords`) on `base` was made for: the task and the base's weights.
    ///
    /// # Errors
    /// [`EngineError::File`] when the base cannot be read.
    pub fn origin(task: &str, base: &ModelDir) -> Result<String> {
        Ok(format!("{task} {}", base.weights_version()?))
    }

    /// Reads a `.safetensors` file; `<same name>.json` (`x.safetensors` → `x.json`) or else `adapter_config.json` beside it holds the config.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short or foreign.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let config: AdapterConfig = load::read_json(&Self::config_path(path))?;
        Self::from_tensors(config, load::read_tensors(path, device)?)
            .map_err(|error| EngineError::file(path, error, "use an adapter saved by PEFT or by this project"))
    }

    /// The adapter for `task` beside the decoder in `dir`: `<task>.adapter.safetensors`, with a config. A decoder that has none serves as it
    /// is; so it does before its adapters are made, and between them. Training writes the config last: weights without one are unfinished.
    ///
    /// # Errors
    /// [`EngineError::File`] when the adapter was lost: its own config lies there without it, or the one for all lies there without any.
    pub fn beside(dir: &Path, task: &str) -> Result<Option<PathBuf>> {
        let path = dir.join(format!("{task}{ADAPTER}"));
        let (own, shared) = (path.with_extension("json"), path.with_file_name(Self::CONFIG));
        if path.exists() {
            return Ok((own.exists() || shared.exists()).then_some(path));
        }
        let config = match (own.exists(), shared.exists()) {
            (true, _) => own,
            (false, true) if !has_adapters(dir)? => shared,
            _ => return Ok(None),
        };
        let what = format!("it is not there, although {} says that the decoder has adapters", config.display());
        let remedy =
            format!("put it back, make it with `endcap train {task}`, or remove the config to have the decoder serve as it is");
        Err(EngineError::file(&path, what, remedy))
    }

    /// The config of the adapter in `path`, as [`Self::load`] finds it.
    pub(crate) fn config_path(path: &Path) -> PathBuf {
        let own = path.with_extension("json");
        if own.exists() { own } else { path.with_file_name(Self::CONFIG) }
    }

    /// An adapter from PEFT's names.
    ///
    /// # Errors
    /// [`EngineError::Model`] when there is no part, an A lacks its B, or ranks differ.
    pub fn from_tensors(config: AdapterConfig, mut tensors: HashMap<String, Tensor>) -> Result<Self> {
        let names: Vec<String> = tensors.keys().filter(|name| name.ends_with(".lora_A.weight")).cloned().collect();
        let mut parts = BTreeMap::new();
        for name in names {
            let stem = name.trim_end_matches(".lora_A.weight").to_owned();
            let a = tensors.remove(&name).expect("the name was just listed");
            let b = tensors
                .remove(&format!("{stem}.lora_B.weight"))
                .ok_or_else(|| EngineError::model(format!("adapter has {name} but no lora_B")))?;
            if a.dims2()?.0 != config.r || b.dims2()?.1 != config.r {
                return Err(EngineError::model(format!("adapter part {stem} does not have rank {}", config.r)));
            }
            parts.insert(stem.trim_start_matches(PREFIX).to_owned(), (a, b));
        }
        if parts.is_empty() {
            return Err(EngineError::model("adapter has no low-rank parts"));
        }
        Ok(Self { config, parts, extra: tensors })
    }

    /// All tensors under PEFT's names.
    pub fn to_tensors(&self) -> HashMap<String, Tensor> {
        let mut tensors = self.extra.clone();
        for (module, (a, b)) in &self.parts {
            tensors.insert(format!("{PREFIX}{module}.lora_A.weight"), a.clone());
            tensors.insert(format!("{PREFIX}{module}.lora_B.weight"), b.clone());
        }
        tensors
    }

    /// A fresh adapter to train: A seeded, B zero, both variables (f32, CPU), with their names in a fixed order.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a target is not a layer of the decoder.
    pub fn trainable(config: AdapterConfig, decoder: &DecoderConfig, seed: u64) -> Result<(Self, Vec<(String, Var)>)> {
        let mut random = Random::new(seed);
        let (mut parts, mut vars) = (BTreeMap::new(), Vec::new());
        for layer in 0..decoder.layers {
            for fused in Fused::ALL {
                for (module, outputs) in Names::of(layer).parts(fused, decoder) {
                    if !config.target_modules.iter().any(|target| module.ends_with(&format!(".{target}"))) {
                        continue;
                    }
                    let inputs = fused.inputs(decoder);
                    let a = Var::from_tensor(&random.tensor((config.r, inputs), 1.0 / (inputs as f32).sqrt())?)?;
                    let b = Var::zeros((outputs, config.r), candle_core::DType::F32, &Device::Cpu)?;
                    parts.insert(module.clone(), (a.as_tensor().clone(), b.as_tensor().clone()));
                    vars.push((format!("{module}.lora_A"), a));
                    vars.push((format!("{module}.lora_B"), b));
                }
            }
        }
        if parts.is_empty() {
            return Err(EngineError::model(format!("adapter targets {:?} name no layer", config.target_modules)));
        }
        Ok((Self { config, parts, extra: HashMap::new() }, vars))
    }

    /// `weights` with this adapter's parts added to them.
    ///
    /// # Errors
    /// [`EngineError::Model`] when a part fits no layer.
    pub(super) fn merge(&self, config: &DecoderConfig, mut weights: DecoderWeights) -> Result<DecoderWeights> {
        let scale = self.config.lora_alpha / self.config.r.max(1) as f64;
        let mut merged = 0;
        for (index, layer) in weights.layers.iter_mut().enumerate() {
            for fused in Fused::ALL {
                let mut first = 0;
                for (module, outputs) in Names::of(index).parts(fused, config) {
                    if let Some((a, b)) = self.parts.get(&module) {
                        if a.dims() != [self.config.r, fused.inputs(config)] || b.dims() != [outputs, self.config.r] {
                            return Err(EngineError::model(format!("adapter part {module} does not fit the decoder")));
                        }
                        layer.part_mut(fused).add_low_rank(a, b, scale, first)?;
                        merged += 1;
                    }
                    first += outputs;
                }
            }
        }
        if merged != self.parts.len() {
            return Err(EngineError::model("adapter has parts for layers that the decoder does not have"));
        }
        Ok(weights)
    }
}
