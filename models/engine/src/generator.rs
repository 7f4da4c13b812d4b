//! A decoder with its caches and its candidate head: what the two language models have in common.

use std::{collections::HashMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use endcap_inference::ModelError;
use serde::de::DeserializeOwned;

use crate::{
    Adapter, CANDIDATE_HEAD, Constraint, Decoder, DecoderConfig, EngineError, GenerateLimits, Generated, Job, KvCache, ModelDir,
    Result, StepInput, Tokenizer, Want, compute_dtype,
    generate::{Chunk, Machine, generate},
    load::{self, read_metadata, read_tokenizer, setting},
    ops,
};

/// The head that a decoder's base was trained with; its adapter for keywords holds one of its own.
const BASE_HEAD: &str = "base-head.safetensors";

/// What a decoder's directory and adapter hold.
pub(crate) struct DecoderFiles {
    pub(crate) decoder: Decoder,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// What an adapter's file holds beside its low-rank parts.
    pub(crate) extra: HashMap<String, Tensor>,
    /// E.g. `decoder+keywords@0123456789ab.0123456789ab`: the directory's name, the adapter's, fingerprints of their files.
    pub(crate) version: String,
    dir: ModelDir,
}

impl DecoderFiles {
    /// Reads the decoder in `dir` with the adapter for `task`, where one is given.
    pub(crate) fn read(dir: &Path, task: &str, adapter: Option<&Path>, device: &Device) -> Result<Self> {
        let dir = ModelDir::open(dir)?;
        let config = DecoderConfig::from_json(dir.config()).map_err(|error| dir.blame(error))?;
        let tokenizer = read_tokenizer(&dir)?;
        if tokenizer.vocabulary_size() > config.vocab {
            let (own, of_model) = (tokenizer.vocabulary_size(), config.vocab);
            return Err(dir.blame(EngineError::model(format!("its tokenizer has {own} tokens, its weights know {of_model}"))));
        }
        let mut decoder =
            Decoder::from_hf(config, &mut dir.tensors()?, device, compute_dtype(device)).map_err(|error| dir.blame(error))?;
        let mut extra = HashMap::new();
        if let Some(path) = adapter {
            let adapter = Adapter::load(path, device)?;
            if let Some(what) = stranger(&adapter, &read_metadata(path)?, task, &dir)? {
                let remedy = format!("put back the one that was trained on this decoder, or make it with `endcap train {task}`");
                return Err(EngineError::file(path, what, remedy));
            }
            decoder = decoder.with_adapter(&adapter).map_err(|error| match error {
                EngineError::Model(what) => EngineError::file(path, what, "use the adapter that was trained on this decoder"),
                other => other,
            })?;
            extra = adapter.extra;
        }
        let version = load::version(&dir, adapter)?;
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), extra, version, dir })
    }

    /// The value of `key` in the model's `config.json`, if it is there.
    pub(crate) fn setting<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>> {
        setting(&self.dir, key)
    }
}

/// Why an adapter is not the one for `task` on the decoder in `dir`, as far as its file tells; adapters of other houses tell little.
fn stranger(adapter: &Adapter, metadata: &HashMap<String, String>, task: &str, dir: &ModelDir) -> Result<Option<String>> {
    let (keywords, has_head) = (task == "keywords", adapter.extra.contains_key(CANDIDATE_HEAD));
    let origin = metadata.get(Adapter::ORIGIN);
    if let Some(other) = origin.and_then(|origin| origin.split(' ').next()).filter(|other| *other != task) {
        return Ok(Some(format!("it is the adapter for {other}, not for {task}")));
    }
    if let Some(origin) = origin {
        let foreign = *origin != Adapter::origin(task, dir)?;
        return Ok(foreign.then(|| format!("it was trained on another decoder than the one in {}", dir.path().display())));
    }
    Ok(match has_head {
        true if !keywords => Some(format!("it scores candidates, so it is the adapter for keywords, not for {task}")),
        false if keywords && dir.path().join(BASE_HEAD).exists() => Some(format!(
            "it does not score candidates, as the decoder beside {BASE_HEAD} has learnt to: it is not the adapter for keywords"
        )),
        _ => None,
    })
}

/// A decoder that generates.
pub(crate) struct Generator {
    decoder: Decoder,
    /// `[1, hidden]`.
    head: Option<Tensor>,
    caches: Vec<Option<KvCache>>,
    /// Wanted hidden states of the last pass, `[rows, hidden]`.
    kept: Option<Tensor>,
    limits: GenerateLimits,
}

impl Generator {
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

impl Machine for Generator {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KeywordModel, ThemeModel, fixture, load::read_tensors};

    /// Writes the adapter in `path` again, with an origin.
    fn sign(path: &Path, origin: &str) {
        let tensors = read_tensors(path, &Device::Cpu).unwrap();
        let about = HashMap::from([(Adapter::ORIGIN.to_owned(), origin.to_owned())]);
        safetensors::serialize_to_file(&tensors, Some(about), path).unwrap();
    }

    fn refusal(dir: &Path, task: &str) -> Option<String> {
        let path = dir.join(format!("{task}.adapter.safetensors"));
        let refused = match task {
            "themes" => ThemeModel::load(dir, Some(&path), &Device::Cpu).err(),
            _ => KeywordModel::load(dir, Some(&path), &Device::Cpu).err(),
        };
        let text = refused?.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains(&format!("endcap train {task}")), "{text}");
        Some(text)
    }

    #[test]
    fn adapters_of_another_task_or_decoder_are_refused() {
        let own = |dir: &Path| ModelDir::open(dir).unwrap().weights_version().unwrap();
        type Sign = fn(&str) -> Option<String>;
        // Task, whether it holds a head, its origin on this decoder, what is said.
        let cases: [(&str, bool, Sign, Option<&str>); 9] = [
            ("themes", false, |_| None, None),
            ("themes", true, |_| None, Some("it is the adapter for keywords")),
            ("themes", false, |base| Some(format!("themes {base}")), None),
            ("themes", false, |base| Some(format!("keywords {base}")), Some("it is the adapter for keywords, not for themes")),
            ("themes", false, |_| Some("themes 0123456789ab".to_owned()), Some("trained on another decoder")),
            ("keywords", true, |_| None, None),
            ("keywords", false, |_| None, Some("it is not the adapter for keywords")),
            ("keywords", true, |base| Some(format!("keywords {base}")), None),
            ("keywords", false, |base| Some(format!("themes {base}")), Some("it is the adapter for themes, not for keywords")),
        ];
        for (task, head, origin, says) in cases {
            let dir = tempfile::tempdir().unwrap();
            fixture::write_decoder(dir.path(), 3).unwrap();
            std::fs::write(dir.path().join(BASE_HEAD), "").unwrap();
            let path = fixture::write_adapter(dir.path(), task, head, 3).unwrap();
            let origin = origin(&own(dir.path()));
            origin.iter().for_each(|origin| sign(&path, origin));
            let refusal = refusal(dir.path(), task);
            match says {
                Some(says) => assert!(refusal.as_ref().is_some_and(|text| text.contains(says)), "{task} {origin:?}: {refusal:?}"),
                None => assert_eq!(refusal, None, "{task} {origin:?}"),
            }
        }
    }

    #[test]
    fn the_demo_adapters_load_and_do_not_change_places() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/decoder");
        let dir = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(demo).unwrap().map(|file| file.unwrap().path()) {
            std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
        }
        let at = |task: &str| dir.path().join(format!("{task}.adapter.safetensors"));
        for task in ["themes", "keywords"] {
            assert_eq!(Adapter::beside(dir.path(), task).unwrap(), Some(at(task)));
            assert_eq!(refusal(dir.path(), task), None);
        }
        std::fs::rename(at("themes"), at("other")).unwrap();
        std::fs::copy(at("keywords"), at("themes")).unwrap();
        assert!(refusal(dir.path(), "themes").unwrap().contains("adapter for keywords, not for themes"));
        std::fs::rename(at("other"), at("keywords")).unwrap();
        assert!(refusal(dir.path(), "keywords").unwrap().contains("adapter for themes, not for keywords"));
    }

    #[test]
    fn a_decoder_serves_as_it_is_until_its_adapters_are_made_and_not_once_it_lost_them() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), 3).unwrap();
        assert_eq!(Adapter::beside(dir.path(), "themes").unwrap(), None);
        // An adapter with a config of its own says nothing about others.
        let path = fixture::write_adapter(dir.path(), "keywords", true, 3).unwrap();
        let shared = dir.path().join("adapter_config.json");
        std::fs::rename(&shared, path.with_extension("json")).unwrap();
        assert_eq!(Adapter::beside(dir.path(), "keywords").unwrap(), Some(path.clone()));
        assert_eq!(Adapter::beside(dir.path(), "themes").unwrap(), None);

        // One without any config is not finished; the config for all says nothing about one that was never made.
        std::fs::rename(path.with_extension("json"), dir.path().join("kept")).unwrap();
        assert_eq!(Adapter::beside(dir.path(), "keywords").unwrap(), None);
        std::fs::rename(dir.path().join("kept"), &shared).unwrap();
        assert_eq!(Adapter::beside(dir.path(), "keywords").unwrap(), Some(path.clone()));
        assert_eq!(Adapter::beside(dir.path(), "themes").unwrap(), None);

        std::fs::copy(&shared, dir.path().join("themes.adapter.json")).unwrap();
        let error = Adapter::beside(dir.path(), "themes").unwrap_err().to_string();
        assert!(error.contains("themes.adapter.safetensors") && error.contains("endcap train themes"), "{error}");
        std::fs::remove_file(path).unwrap();
        assert!(Adapter::beside(dir.path(), "keywords").is_err(), "the config for all is alone");
    }

    #[test]
    fn a_tokenizer_that_is_cut_short_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), 3).unwrap();
        let path = dir.path().join("tokenizer.json");
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() / 2]).unwrap();
        let by_model = ThemeModel::load(dir.path(), None, &Device::Cpu).err().unwrap().to_string();
        let alone = Tokenizer::from_file(&path).err().unwrap().to_string();
        for error in [by_model, alone] {
            assert_eq!(error.matches(path.to_str().unwrap()).count(), 1, "{error}");
            assert!(error.contains("use the tokenizer.json that belongs to the model"), "{error}");
        }
    }
}
