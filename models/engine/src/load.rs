//! Model directories: `config.json`, `model.safetensors` (or its shards), and what can be wrong with them.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, safetensors::Load};
use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{EngineError, Result};

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
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
        Ok(Self { path: path.to_owned(), config, weights })
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

    /// Short fingerprint of weights and config: equal files, equal version.
    ///
    /// # Errors
    /// [`EngineError::File`] when a file cannot be read.
    pub fn version(&self) -> Result<String> {
        let mut files = self.weights.clone();
        files.push(self.path.join(CONFIG));
        version_of(&files)
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
    for file in files {
        let bytes = map(file)?;
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(&bytes);
    }
    Ok(hasher.finalize().to_hex()[..VERSION_DIGITS].to_owned())
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
/// [`EngineError::File`] when it is missing, cut short or foreign.
pub fn read_tensors(path: &Path, device: &Device) -> Result<HashMap<String, Tensor>> {
    let bytes = map(path)?;
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(EngineError::file(path, "it is a Git LFS pointer, not the weights", "run git lfs pull"));
    }
    let file = SafeTensors::deserialize(&bytes).map_err(|error| {
        let (what, remedy) = fault(&error);
        EngineError::file(path, format!("{what} ({error})"), remedy)
    })?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| match view.load(device) {
            Ok(tensor) => Ok((name, tensor)),
            Err(error) => Err(EngineError::file(path, format!("tensor {name}: {error}"), "use f32, f16 or bf16 weights")),
        })
        .collect()
}

fn fault(error: &SafeTensorError) -> (&'static str, &'static str) {
    match error {
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength | SafeTensorError::MetadataIncompleteBuffer => {
            ("it is cut short", "fetch it again")
        }
        _ => ("it is not a safetensors file", "convert the weights to safetensors"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bert, Decoder, DecoderConfig, DecoderWeights};

    fn config() -> DecoderConfig {
        DecoderConfig {
            vocab: 20,
            hidden: 16,
            inner: 16,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            head: 8,
            eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tied: true,
            qkv_bias: false,
            positions: 32,
        }
    }

    /// A directory with a small decoder in bf16.
    fn model() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let tensors = DecoderWeights::random(&config(), 1).unwrap().to_hf(&config()).unwrap();
        let narrow = tensors.into_iter().map(|(name, x)| (name, x.to_dtype(DType::BF16).unwrap())).collect();
        write_tensors(&dir.path().join(WEIGHTS), &narrow).unwrap();
        std::fs::write(dir.path().join(CONFIG), config().to_json().to_string()).unwrap();
        dir
    }

    #[test]
    fn a_model_is_read_as_f32_and_its_version_follows_its_files() {
        let dir = model();
        let decoder = Decoder::load(dir.path(), &Device::Cpu).unwrap();
        assert_eq!(decoder.weights().embeddings.dtype(), DType::F32);
        let version = |dir: &Path| ModelDir::open(dir).unwrap().version().unwrap();
        assert_eq!(version(dir.path()), version(model().path()), "equal files have equal versions");
        let before = version(dir.path());
        assert_eq!(before.len(), VERSION_DIGITS);
        let mut changed = config().to_json();
        changed["rms_norm_eps"] = 1e-6.into();
        std::fs::write(dir.path().join(CONFIG), changed.to_string()).unwrap();
        assert_ne!(version(dir.path()), before);
    }

    #[test]
    fn shards_are_read_like_one_file() {
        let dir = model();
        let whole = ModelDir::open(dir.path()).unwrap().tensors().unwrap();
        std::fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
        let mut places = serde_json::Map::new();
        let mut parts: [HashMap<String, Tensor>; 2] = Default::default();
        for (i, (name, tensor)) in whole.iter().enumerate() {
            parts[i % 2].insert(name.clone(), tensor.clone());
            places.insert(name.clone(), format!("model-{}.safetensors", i % 2).into());
        }
        for (i, part) in parts.iter().enumerate() {
            write_tensors(&dir.path().join(format!("model-{i}.safetensors")), part).unwrap();
        }
        std::fs::write(dir.path().join(INDEX), serde_json::json!({ "weight_map": places }).to_string()).unwrap();
        let read = ModelDir::open(dir.path()).unwrap().tensors().unwrap();
        assert_eq!(read.len(), whole.len());
        Decoder::load(dir.path(), &Device::Cpu).unwrap();
    }

    #[test]
    fn broken_directories_say_which_file_and_what_to_do() {
        type Break = fn(&Path);
        let cases: [(&str, Break, &str, &str); 8] = [
            ("no weights", |d| std::fs::remove_file(d.join(WEIGHTS)).unwrap(), WEIGHTS, "check that the file exists"),
            ("cut in the values", |d| shorten(d, 2_000), WEIGHTS, "cut short"),
            ("cut in the header", |d| shorten(d, 100), WEIGHTS, "cut short"),
            ("cut in the length", |d| shorten(d, 3), WEIGHTS, "cut short"),
            ("foreign weights", |d| std::fs::write(d.join(WEIGHTS), [b'x'; 64]).unwrap(), WEIGHTS, "not a safetensors file"),
            (
                "a pointer",
                |d| std::fs::write(d.join(WEIGHTS), "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap(),
                WEIGHTS,
                "git lfs pull",
            ),
            ("no config", |d| std::fs::remove_file(d.join(CONFIG)).unwrap(), CONFIG, "give the directory of a model"),
            ("half a config", |d| std::fs::write(d.join(CONFIG), "{\"model_type\": \"lla").unwrap(), CONFIG, "not the JSON"),
        ];
        for (name, break_it, file, says) in cases {
            let dir = model();
            break_it(dir.path());
            let error = Decoder::load(dir.path(), &Device::Cpu).unwrap_err().to_string();
            assert!(error.contains(file) && error.contains(says), "{name}: {error}");
            assert!(!error.contains('\n'), "{name}: {error}");
        }
    }

    fn shorten(dir: &Path, keep: usize) {
        let bytes = std::fs::read(dir.join(WEIGHTS)).unwrap();
        assert!(bytes.len() > keep);
        std::fs::write(dir.join(WEIGHTS), &bytes[..keep]).unwrap();
    }

    #[test]
    fn another_architecture_is_refused_by_name() {
        let error = Bert::load(model().path(), &Device::Cpu).unwrap_err().to_string();
        assert!(error.contains("llama"), "{error}");
    }

    #[test]
    fn devices_are_named() {
        assert!(parse_device("cpu").unwrap().is_cpu());
        for name in ["", "gpu", "cuda:x", "cpu:1"] {
            assert!(parse_device(name).is_err(), "{name:?}");
        }
        if !cfg!(feature = "cuda") {
            let error = parse_device("cuda").unwrap_err().to_string();
            assert!(error.contains("--features cuda"), "{error}");
        }
    }
}
