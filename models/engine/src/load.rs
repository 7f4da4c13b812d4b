//! Model directories: `config.json`, `model.safetensors` (or its shards), `tokenizer.json`, and what can be wrong with them.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use candle_core::{DType, Device, Tensor, safetensors::Load};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Adapter, EngineError, Result, Tokenizer, TokenizerError};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const TOKENIZER: &str = "tokenizer.json";
/// Digits of a version.
const VERSION_DIGITS: usize = 12;

/// The device named `cpu`, `cuda` (the first) or `cuda:N`.
///
/// # Errors
/// [`EngineError::Device`] when there is no such device or this build has no CUDA.
pub fn parse_device(name: &str) -> Result<Device> {
    let refuse = |what: String| EngineError::Device { name: name.to_owned(), what };
    let ordinal = match name.split_once(':') {
        None if name == "cpu" => return Ok(Device::Cpu),
        None if name == "cuda" => 0,
        Some(("cuda", ordinal)) => ordinal.parse().map_err(|_| refuse("its number is not one".into()))?,
        _ => return Err(refuse("it must be cpu, cuda or cuda:N".into())),
    };
    if !cfg!(feature = "cuda") {
        return Err(refuse("this program was built without cuda; build it with --features cuda".into()));
    }
    Device::new_cuda(ordinal).map_err(|error| refuse(error.to_string()))
}

/// What a device computes with: f32 on the CPU, bf16 elsewhere.
pub fn compute_dtype(device: &Device) -> DType {
    if device.is_cpu() { DType::F32 } else { DType::BF16 }
}

/// A model directory whose config has been read.
#[derive(Debug, Clone)]
pub struct ModelDir {
    path: PathBuf,
    config: Value,
    weights: Vec<PathBuf>,
    /// The hash of the weights' files so far, once somebody asked: they are large.
    hashed: OnceLock<blake3::Hasher>,
}

impl ModelDir {
    /// Reads `config.json` and finds the weights.
    ///
    /// # Errors
    /// [`EngineError::File`] when one is missing or not what it should be.
    pub fn open(path: &Path) -> Result<Self> {
        let config = read_json(&path.join(CONFIG))?;
        let single = path.join(WEIGHTS);
        let weights = if single.exists() || !path.join(INDEX).exists() { vec![single] } else { shards(path)? };
        Ok(Self { path: path.to_owned(), config, weights, hashed: OnceLock::new() })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The model type, e.g. `llama`, `qwen2`, `bert`, `deberta-v2`.
    pub fn kind(&self) -> &str {
        self.config.get("model_type").and_then(Value::as_str).unwrap_or("")
    }

    /// All weights, as they are stored, on the CPU.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file is missing, cut short or foreign.
    pub fn tensors(&self) -> Result<HashMap<String, Tensor>> {
        let mut all = HashMap::new();
        for file in &self.weights {
            all.extend(read_tensors(file, &Device::Cpu)?);
        }
        Ok(all)
    }

    /// Short fingerprint of the weights alone: what an adapter belongs to.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file cannot be read.
    pub fn weights_version(&self) -> Result<String> {
        Ok(digits(self.hashed()?))
    }

    /// Short fingerprint of weights and config: equal files, equal version.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file cannot be read.
    pub fn version(&self) -> Result<String> {
        let mut hasher = self.hashed()?.clone();
        hash_file(&mut hasher, &self.path.join(CONFIG))?;
        Ok(digits(&hasher))
    }

    fn hashed(&self) -> Result<&blake3::Hasher> {
        if let Some(hasher) = self.hashed.get() {
            return Ok(hasher);
        }
        let mut hasher = blake3::Hasher::new();
        self.weights.iter().try_for_each(|file| hash_file(&mut hasher, file))?;
        Ok(self.hashed.get_or_init(|| hasher))
    }

    /// `error` with this directory's name, for faults that lie between config and weights.
    pub(crate) fn blame(&self, error: EngineError) -> EngineError {
        match error {
            EngineError::Model(what) => {
                EngineError::file(&self.path, what, "use a directory whose config.json and weights belong together")
            }
            other => other,
        }
    }
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: HashMap<String, String>,
}

fn shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let path = dir.join(INDEX);
    let index: ShardIndex = read_json(&path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.iter().any(|name| name.contains(['/', '\\']) || name.starts_with('.')) {
        return Err(EngineError::file(&path, "it names files outside its directory", "fetch the model again"));
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}

/// Fingerprint of files, in order: the first digits of the BLAKE3 of their contents.
///
/// # Errors
/// [`EngineError::File`] when one cannot be read.
pub fn version_of(files: &[PathBuf]) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    files.iter().try_for_each(|file| hash_file(&mut hasher, file))?;
    Ok(digits(&hasher))
}

fn hash_file(hasher: &mut blake3::Hasher, file: &Path) -> Result<()> {
    let bytes = map(file)?;
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(&bytes);
    Ok(())
}

fn digits(hasher: &blake3::Hasher) -> String {
    hasher.finalize().to_hex()[..VERSION_DIGITS].to_owned()
}

/// Reads a JSON file.
///
/// # Errors
/// [`EngineError::File`] when it is missing or something else.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let name = path.file_name().unwrap_or_default();
        let remedy = match name.to_str() {
            Some(CONFIG) => "give the directory of a model".to_owned(),
            _ => format!("fetch {} beside the weights that it belongs to", name.display()),
        };
        EngineError::file(path, error, remedy)
    })?;
    serde_json::from_str(&text)
        .map_err(|error| EngineError::file(path, format!("not the JSON it should be: {error}"), "fetch it again"))
}

/// All tensors of a safetensors file, as they are stored, on `device`.
///
/// # Errors
/// [`EngineError::File`] when it is missing, cut short or foreign, or holds values that are no finite numbers: nothing computed from them is
/// one either, so that a model would serve without a word and have no product pass.
pub fn read_tensors(path: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let bytes = map(path)?;
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(EngineError::file(path, "it is a Git LFS pointer, not the weights", "run git lfs pull"));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| foreign(path, &error))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| match view.load(device) {
            Ok(_) if !is_finite(&view) => {
                let remedy = "fetch the model again, or train it again from where it was sound";
                Err(EngineError::file(path, format!("tensor {name} holds a value that is no finite number"), remedy))
            }
            Ok(tensor) => Ok((name, tensor)),
            Err(error) => Err(EngineError::file(path, format!("tensor {name}: {error}"), "use f32, f16 or bf16 weights")),
        })
        .collect()
}

/// Whether every value of a tensor is a finite number; of types that no model here is stored in, nothing is known.
fn is_finite(view: &TensorView<'_>) -> bool {
    /// Folded, not searched, so that the compiler makes vector instructions of it: it costs less than reading the values.
    fn all<const N: usize>(bytes: &[u8], none: impl Fn([u8; N]) -> bool) -> bool {
        let (values, _) = bytes.as_chunks::<N>();
        values.chunks(4_096).all(|part| !part.iter().fold(false, |found, value| found | none(*value)))
    }
    match view.dtype() {
        Dtype::F64 => all(view.data(), |value| !f64::from_le_bytes(value).is_finite()),
        Dtype::F32 => all(view.data(), |value| !f32::from_le_bytes(value).is_finite()),
        Dtype::BF16 => all(view.data(), |value| u16::from_le_bytes(value) & 0x7f80 == 0x7f80),
        Dtype::F16 => all(view.data(), |value| u16::from_le_bytes(value) & 0x7c00 == 0x7c00),
        _ => true,
    }
}

/// What a safetensors file says about itself beside its tensors.
///
/// # Errors
/// [`EngineError::File`] when it is missing, cut short or foreign.
pub(crate) fn read_metadata(path: &Path) -> Result<HashMap<String, String>> {
    let bytes = map(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| foreign(path, &error))?;
    Ok(header.metadata().clone().unwrap_or_default())
}

fn foreign(path: &Path, error: &SafeTensorError) -> EngineError {
    let (what, remedy) = match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer => {
            ("it is cut short", "fetch it again")
        }
        _ => ("it is not a safetensors file", "convert the weights to safetensors"),
    };
    EngineError::file(path, format!("{what} ({error})"), remedy)
}

fn map(path: &Path) -> Result<Mmap> {
    let remedy = "check that the file exists and can be read";
    let file = File::open(path).map_err(|error| EngineError::file(path, error, remedy))?;
    // SAFETY: model files are not changed while a program reads them; whoever does so anyway gets wrong weights or a bus error.
    unsafe { Mmap::map(&file) }.map_err(|error| EngineError::file(path, error, remedy))
}

/// Writes `tensors` as safetensors.
///
/// # Errors
/// [`EngineError::File`] when the file cannot be written.
pub fn write_tensors(path: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    candle_core::safetensors::save(tensors, path)
        .map_err(|error| EngineError::file(path, error, "check the directory and its space"))
}

/// The tokenizer of a model's directory.
pub(crate) fn read_tokenizer(dir: &ModelDir) -> Result<Tokenizer> {
    let path = dir.path().join(TOKENIZER);
    Tokenizer::from_file(&path).map_err(|error| {
        let what = match error {
            TokenizerError::Read { source, .. } => source.to_string(),
            TokenizerError::File { what, .. } => what,
            other => other.to_string(),
        };
        EngineError::file(&path, what, "use the tokenizer.json that belongs to the model")
    })
}

/// The value of `key` in a model's `config.json`, if it is there.
pub(crate) fn setting<T: DeserializeOwned>(dir: &ModelDir, key: &str) -> Result<Option<T>> {
    match dir.config().get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| {
            EngineError::file(&dir.path().join(CONFIG), format!("{key}: {error}"), "correct it or leave it out")
        }),
    }
}

/// A directory's name, or an adapter file's without what says that it is one.
fn name(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let stem = name.strip_suffix(".safetensors").unwrap_or(&name);
    stem.strip_suffix(".adapter").unwrap_or(stem).to_owned()
}

/// The version of the model in `dir`, with `adapter` merged where one is given: names, then fingerprints of its own files and of what is
/// used beside them. Loaded models tell the same.
///
/// # Errors
/// [`EngineError::File`] when a file is missing or cannot be read.
pub fn model_version(dir: &Path, adapter: Option<&Path>) -> Result<String> {
    version(&ModelDir::open(dir)?, adapter)
}

/// The files that [`model_version`] reads.
///
/// # Errors
/// [`EngineError::File`] when one that names others is missing or not what it should be.
pub fn model_files(dir: &Path, adapter: Option<&Path>) -> Result<Vec<PathBuf>> {
    let dir = ModelDir::open(dir)?;
    let mut files = dir.weights.clone();
    files.push(dir.path.join(CONFIG));
    files.extend(beside(&dir, adapter));
    Ok(files)
}

/// As [`model_version`], of a directory that is open already.
pub(crate) fn version(dir: &ModelDir, adapter: Option<&Path>) -> Result<String> {
    let own = name(&dir.path);
    let name = adapter.map_or(own.clone(), |adapter| format!("{own}+{}", name(adapter)));
    Ok(format!("{name}@{}.{}", dir.version()?, version_of(&beside(dir, adapter))?))
}

fn beside(dir: &ModelDir, adapter: Option<&Path>) -> Vec<PathBuf> {
    let mut files = vec![dir.path.join(TOKENIZER)];
    files.extend(adapter.map(Path::to_owned));
    files.extend(adapter.map(Adapter::config_path));
    files
}

#[cfg(test)]
mod tests;
