//! A decoder with its caches and its candidate head: what the two language models have in common.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use endcap_inference::ModelError;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    Adapter, Constraint, Decoder, DecoderConfig, EngineError, GenerateLimits, Generated, Job, KvCache, ModelDir, Result,
    StepInput, Tokenizer, Want, compute_dtype,
    generate::{Chunk, Machine, generate},
    ops, version_of,
};

const TOKENIZER: &str = "tokenizer.json";

/// What a decoder's directory and adapter hold.
pub(crate) struct WriterFiles {
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// What an adapter's file holds beside its low-rank parts.
    pub(crate) extra: HashMap<String, Tensor>,
    /// E.g. `decoder+keywords@0123456789ab.0123456789ab`: the directory's name, the adapter's, fingerprints of their files.
    pub(crate) version: String,
    dir: ModelDir,
}

impl WriterFiles {
    pub(crate) fn read(dir: &Path, adapter: Option<&Path>, device: &Device) -> Result<Self> {
        let dir = ModelDir::open(dir)?;
        let config = DecoderConfig::from_json(dir.config()).map_err(|error| dir.blame(error))?;
        let tokenizer = read_tokenizer(&dir)?;
        if tokenizer.vocabulary_size() > config.vocab {
            let (own, of_model) = (tokenizer.vocabulary_size(), config.vocab);
            return Err(dir.blame(EngineError::model(format!("its tokenizer has {own} tokens, its weights know {of_model}"))));
        }
        let mut decoder =
            Decoder::from_hf(config, &mut dir.tensors()?, device, compute_dtype(device)).map_err(|error| dir.blame(error))?;
        let (mut name, mut extra) = (name(dir.path()), HashMap::new());
        if let Some(path) = adapter {
            let adapter = Adapter::load(path, device)?;
            decoder = decoder.with_adapter(&adapter).map_err(|error| match error {
                EngineError::Model(what) => EngineError::file(path, what, "use the adapter that was trained on this decoder"),
                other => other,
            })?;
            extra = adapter.extra;
            name = format!("{name}+{}", self::name(path));
        }
        let version = version(name, &dir, adapter)?;
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), extra, version, dir })
    }

    /// The value of `key` in the model's `config.json`, if it is there.
    pub(crate) fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        setting(&self.dir, key)
    }
}

/// The tokenizer of a model's directory.
pub(crate) fn read_tokenizer(dir: &ModelDir) -> Result<Tokenizer> {
    let path = dir.path().join(TOKENIZER);
    Tokenizer::from_file(&path)
        .map_err(|error| EngineError::file(&path, error, "use the tokenizer.json that belongs to the model"))
}

/// The value of `key` in a model's `config.json`, if it is there.
pub(crate) fn setting<T: DeserializeOwned>(dir: &ModelDir, key: &str) -> Result<Option<T>> {
    match dir.config().get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(value).map(Some).map_err(|error| {
            EngineError::file(&dir.path().join("config.json"), format!("{key}: {error}"), "correct it or leave it out")
        }),
    }
}

/// A directory's name, or an adapter file's without what says that it is one.
pub(crate) fn name(path: &Path) -> String {
    let name = path.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy());
    let stem = name.strip_suffix(".safetensors").unwrap_or(&name);
    stem.strip_suffix(".adapter").unwrap_or(stem).to_owned()
}

/// `name`, then fingerprints of a model's own files and of what is used beside them.
pub(crate) fn version(name: String, dir: &ModelDir, adapter: Option<&Path>) -> Result<String> {
    let mut beside = vec![dir.path().join(TOKENIZER)];
    beside.extend(adapter.map(Path::to_owned));
    beside.extend(adapter.map(Adapter::config_path));
    Ok(format!("{name}@{}.{}", dir.version()?, version_of(&beside)?))
}

/// A decoder that generates.
pub(crate) struct Writer {
    decoder: Decoder,
    /// `[1, hidden]`.
    head: Option<Tensor>,
    caches: Vec<Option<KvCache>>,
    /// Wanted hidden states of the last pass, `[rows, hidden]`.
    kept: Option<Tensor>,
    limits: GenerateLimits,
}

impl Writer {
    pub(crate) fn new(decoder: Decoder, head: Option<Tensor>, limits: GenerateLimits) -> Result<Self> {
        let hidden = decoder.config().hidden;
        let head = head.map(|head| {
            if head.elem_count() != hidden {
                let what = format!("the candidate head has shape {:?}, the decoder asks for [1, {hidden}]", head.dims());
                return Err(EngineError::model(what));
            }
            Ok(head.reshape((1, hidden))?.to_device(decoder.device())?.to_dtype(compute_dtype(decoder.device()))?)
        });
        Ok(Self { head: head.transpose()?, decoder, caches: Vec::new(), kept: None, limits })
    }

    pub(crate) fn with_limits(mut self, limits: GenerateLimits) -> Self {
        self.limits = limits;
        self
    }

    #[cfg(test)]
    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub(crate) fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Generates what could be made a job of; answers stand in the jobs' order.
    pub(crate) fn write<C: Constraint>(
        &mut self,
        jobs: Vec<Result<Job<C>, ModelError>>,
    ) -> Result<Vec<Result<Generated<C>, ModelError>>, ModelError> {
        let mut good = Vec::new();
        let places: Vec<Result<(), ModelError>> = jobs.into_iter().map(|job| job.map(|job| good.push(job))).collect();
        let limits = self.limits;
        let mut done = generate(self, good, limits).map_err(|error| ModelError::Failed(error.to_string()))?.into_iter();
        let answer = |place: Result<(), ModelError>| {
            place.and_then(|()| done.next().expect("one outcome per job").map_err(|error| ModelError::Request(error.to_string())))
        };
        Ok(places.into_iter().map(answer).collect())
    }

    fn kept_rows(&self, rows: &[usize]) -> Result<Tensor> {
        let kept = self.kept.as_ref().ok_or_else(|| EngineError::model("nothing was computed yet"))?;
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        Ok(ops::select_rows(kept, &rows)?)
    }
}

impl Machine for Writer {
    fn positions(&self) -> usize {
        self.decoder.config().positions
    }

    fn open(&mut self, tokens: usize) -> usize {
        let cache = Some(self.decoder.cache(tokens));
        match self.caches.iter().position(Option::is_none) {
            Some(slot) => {
                self.caches[slot] = cache;
                slot
            }
            None => {
                self.caches.push(cache);
                self.caches.len() - 1
            }
        }
    }

    fn close(&mut self, slot: usize) {
        self.caches[slot] = None;
    }

    fn step(&mut self, chunks: &[Chunk]) -> Result<()> {
        let mut place_of = vec![usize::MAX; self.caches.len()];
        let mut caches: Vec<&mut KvCache> = Vec::with_capacity(chunks.len());
        let used: Vec<bool> = (0..self.caches.len()).map(|slot| chunks.iter().any(|chunk| chunk.slot == slot)).collect();
        for (slot, cache) in self.caches.iter_mut().enumerate().filter(|(slot, _)| used[*slot]) {
            place_of[slot] = caches.len();
            caches.push(cache.as_mut().expect("an open slot has a cache"));
        }
        let inputs: Vec<StepInput<'_>> =
            chunks.iter().map(|chunk| StepInput { seq: place_of[chunk.slot], tokens: &chunk.tokens }).collect();
        let mut rows = Vec::new();
        let mut first = 0;
        for chunk in chunks {
            rows.extend(chunk.wanted.iter().map(|row| first + row));
            first += chunk.tokens.len();
        }
        self.kept = None;
        let output = self.decoder.step(&mut caches, &inputs, &Want::rows(&rows))?;
        self.kept = Some(output.hidden);
        Ok(())
    }

    fn logits(&self, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
        Ok(self.decoder.logits(&self.kept_rows(rows)?)?.to_dtype(DType::F32)?.to_vec2()?)
    }

    fn logits_of(&self, row: usize, tokens: &[u32]) -> Result<Vec<f32>> {
        self.decoder.logits_of(&self.kept_rows(&[row])?, tokens)
    }

    fn probe(&self, rows: &[usize]) -> Result<Vec<f32>> {
        let Some(head) = self.head.as_ref().filter(|_| !rows.is_empty()) else { return Ok(Vec::new()) };
        let scores = ops::linear_t(&self.kept_rows(rows)?, head, None)?;
        Ok(scores.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
    }
}
