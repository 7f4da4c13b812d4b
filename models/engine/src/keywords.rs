//! LLM 2 (paper 4.3): chooses and orders keywords among candidates.

mod prompt;

use std::{path::Path, sync::Arc};

use candle_core::Device;
use endcap_inference::{ChooseKeywords, ChosenKeywords, Model, ModelError};

pub use prompt::{KeywordEncoder, KeywordPrompt, KeywordPromptError};

use crate::{
    EngineError, GenerateLimits, KeywordLimits, Result, TrieConstraint,
    generate::Job,
    generator::{DecoderFiles, Generator},
};

/// Name of the candidate head's weight `[1, hidden]` in an adapter's file.
pub const CANDIDATE_HEAD: &str = "candidate_head.weight";

/// What multiplies the head's scores where `config.json` does not say otherwise.
const BIAS_WEIGHT: f32 = 1.0;

/// The keyword model: a decoder that can only say candidates.
pub struct KeywordModel {
    generator: Generator,
    encoder: KeywordEncoder,
    bias_weight: f32,
    version: String,
}

impl KeywordModel {
    /// Reads the decoder in `dir`, with `adapter` merged where one is given. An adapter that holds [`CANDIDATE_HEAD`] scores the candidates;
    /// one without decodes by its logits alone.
    ///
    /// `config.json` may set `endcap_bias_weight`.
    ///
    /// # Errors
    /// [`EngineError`] when a file is missing or does not fit.
    pub fn load(dir: &Path, adapter: Option<&Path>, device: &Device) -> Result<Self> {
        let mut files = DecoderFiles::read(dir, "keywords", adapter, device)?;
        let bias_weight = files.setting("endcap_bias_weight")?.unwrap_or(BIAS_WEIGHT);
        let encoder = KeywordEncoder::new(files.tokenizer.clone()).map_err(|e| EngineError::model(e.to_string()))?;
        let head = files.extra.remove(CANDIDATE_HEAD);
        let generator = Generator::new(files.decoder, head, GenerateLimits::for_device(device))?;
        Ok(Self { generator, encoder, bias_weight, version: files.version })
    }

    /// The model with other limits of its loop.
    #[must_use]
    pub fn with_limits(mut self, limits: GenerateLimits) -> Self {
        self.generator = self.generator.with_limits(limits);
        self
    }

    /// Whether candidates are scored.
    pub fn has_head(&self) -> bool {
        self.generator.has_head()
    }

    fn job(&mut self, request: &ChooseKeywords) -> Result<Job<TrieConstraint>, ModelError> {
        let prompt = self.encoder.prompt(request).map_err(|e| ModelError::Request(e.to_string()))?;
        let terms: Vec<&[u32]> = prompt.terms.iter().map(Arc::as_ref).collect();
        let limits = KeywordLimits { min: request.keywords_min, max: request.keywords_max };
        let constraint = TrieConstraint::new(&terms, self.encoder.end(), limits, self.bias_weight)
            .map_err(|e| ModelError::Request(e.to_string()))?;
        let longest = terms.iter().map(|term| term.len()).max().unwrap_or(0);
        // One more keeps a list that is full from counting as cut short.
        let answer_tokens_max = request.keywords_max.min(terms.len()) * longest + self.encoder.end().len() + 1;
        let probes = if self.generator.has_head() { prompt.ends } else { Vec::new() };
        Ok(Job { prompt: prompt.tokens, probes, constraint, answer_tokens_max })
    }
}

impl Model for KeywordModel {
    type Request = ChooseKeywords;
    type Answer = ChosenKeywords;

    fn tokens(&self, request: &ChooseKeywords) -> usize {
        let terms: usize = request.terms().map(|term| term.len() / 4 + 2).sum();
        request.prompt.len() / 4 + terms + 8
    }

    fn answer(&mut self, batch: Vec<ChooseKeywords>) -> Result<Vec<Result<ChosenKeywords, ModelError>>, ModelError> {
        let jobs = batch.iter().map(|request| self.job(request)).collect();
        let done = self.generator.write(jobs)?;
        Ok(done
            .into_iter()
            .map(|done| done.map(|done| ChosenKeywords { picks: done.constraint.picks().to_vec(), tokens: done.counts }))
            .collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use endcap_inference::Candidates;

    use super::*;
    use crate::fixture;

    fn request(n: usize) -> ChooseKeywords {
        let words: Vec<&str> = fixture::WORDS.split_whitespace().collect();
        let term = |i: usize| match i % 3 {
            0 => words[i * 7 % words.len()].to_owned(),
            1 => format!("{} {}", words[i * 5 % words.len()], words[(i + n) % words.len()]),
            _ => format!("rare{i} {}", words[(i * 3 + n) % words.len()]),
        };
        let terms: BTreeSet<String> = (0..6 + 3 * n).map(term).collect();
        let terms: Vec<String> = terms.into_iter().collect();
        let (first, second) = terms.split_at(terms.len() / 2);
        ChooseKeywords {
            prompt: "<keywords><diet> vegan;<season> winter<budget> low<persona> busy family<title> winter warmers".into(),
            candidates: vec![
                Candidates { concept: "lentil soup".into(), terms: first.to_vec() },
                Candidates { concept: "oat milk".into(), terms: second.to_vec() },
            ],
            keywords_min: 3.min(n),
            keywords_max: 8,
        }
    }

    /// A model with its own decoder and, perhaps, an adapter with or without a head.
    fn model(head: Option<bool>) -> KeywordModel {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), 3).unwrap();
        let adapter = head.map(|head| fixture::write_adapter(dir.path(), "keywords", head, 3).unwrap());
        KeywordModel::load(dir.path(), adapter.as_deref(), &Device::Cpu).unwrap()
    }

    #[test]
    fn picks_are_valid_and_the_same_alone_and_in_any_company() {
        for head in [None, Some(false), Some(true)] {
            let mut model = model(head);
            assert_eq!(model.has_head(), head == Some(true));
            let mut alone = Vec::new();
            for n in 0..8 {
                alone.extend(model.answer(vec![request(n)]).unwrap());
            }
            for step_tokens_max in [512, 17] {
                model = model.with_limits(GenerateLimits { step_tokens_max, ..GenerateLimits::default() });
                let together = model.answer((0..8).map(request).collect()).unwrap();
                for (n, (one, all)) in alone.iter().zip(&together).enumerate() {
                    let one = one.as_ref().unwrap();
                    assert_eq!(one, all.as_ref().unwrap(), "request {n}, head {head:?}, steps of {step_tokens_max}");
                    check(one, &request(n));
                }
            }
        }
    }

    fn check(answer: &ChosenKeywords, request: &ChooseKeywords) {
        let terms: Vec<&str> = request.terms().collect();
        let distinct: BTreeSet<&str> = answer.picks.iter().map(|&pick| terms[pick]).collect();
        assert_eq!(distinct.len(), answer.picks.len(), "no repeats");
        let least = request.keywords_min.min(terms.len());
        assert!((least..=request.keywords_max).contains(&answer.picks.len()), "{:?}", answer.picks);
        let chosen = answer.picks.len() as u64;
        assert!(answer.tokens.generated <= 3 * chosen + 1, "{:?} for {chosen} keywords", answer.tokens);
    }

    #[test]
    fn a_strong_head_decides() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), 3).unwrap();
        let path = dir.path().join("config.json");
        let mut config: serde_json::Value = crate::read_json(&path).unwrap();
        config["endcap_bias_weight"] = 1e6.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let adapter = fixture::write_adapter(dir.path(), "keywords", true, 3).unwrap();
        let mut model = KeywordModel::load(dir.path(), Some(&adapter), &Device::Cpu).unwrap();
        let request = ChooseKeywords { keywords_min: 8, ..request(5) };
        let prompt = model.encoder.prompt(&request).unwrap();
        let mut cache = model.generator.decoder().cache(prompt.tokens.len());
        let step = crate::StepInput { seq: 0, tokens: &prompt.tokens };
        let output = model.generator.decoder().step(&mut [&mut cache], &[step], &crate::Want::rows(&prompt.ends)).unwrap();
        let head = crate::read_tensors(&adapter, &Device::Cpu).unwrap().remove(CANDIDATE_HEAD).unwrap();
        let scores: Vec<f32> = output.hidden.matmul(&head.t().unwrap()).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let mut best: Vec<usize> = (0..scores.len()).collect();
        best.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        assert_eq!(model.answer(vec![request]).unwrap().remove(0).unwrap().picks, best[..8]);
    }

    #[test]
    fn bad_requests_fail_alone_and_no_candidates_give_no_keywords() {
        let mut model = model(Some(true));
        let mut textless = request(2);
        textless.candidates[0].terms.push("<>".into());
        let impossible = ChooseKeywords { keywords_min: 9, ..request(2) };
        let none = ChooseKeywords { candidates: Vec::new(), ..request(2) };
        let good = model.answer(vec![request(2)]).unwrap().remove(0).unwrap();
        let answers = model.answer(vec![textless, impossible, none, request(2)]).unwrap();
        assert!(matches!(answers[0], Err(ModelError::Request(_))), "{answers:?}");
        assert!(matches!(answers[1], Err(ModelError::Request(_))), "{answers:?}");
        assert!(answers[2].as_ref().unwrap().picks.is_empty());
        assert_eq!(*answers[3].as_ref().unwrap(), good);
    }

    #[test]
    fn the_version_follows_the_adapters_config_and_faults_name_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("llama-3.2-1b");
        fixture::write_decoder(&home, 3).unwrap();
        let adapter = fixture::write_adapter(&home, "keywords", true, 3).unwrap();
        let load = || KeywordModel::load(&home, Some(&adapter), &Device::Cpu);
        let version = || load().unwrap().version().to_owned();
        let before = version();
        assert!(before.starts_with("llama-3.2-1b+keywords@"), "{before}");
        assert_eq!(version(), before);
        let path = home.join("adapter_config.json");
        let mut config: serde_json::Value = crate::read_json(&path).unwrap();
        config["lora_alpha"] = 2.0.into();
        std::fs::write(&path, config.to_string()).unwrap();
        let after = version();
        assert_ne!(after, before);
        std::fs::rename(&path, home.join("keywords.adapter.json")).unwrap();
        assert_eq!(version(), after, "its own config is read first");
        std::fs::remove_file(home.join("keywords.adapter.json")).unwrap();
        let error = load().err().unwrap().to_string();
        assert!(error.contains("adapter_config.json") && error.contains("beside the weights"), "{error}");

        std::fs::write(&path, config.to_string()).unwrap();
        let mut tensors = crate::read_tensors(&adapter, &Device::Cpu).unwrap();
        tensors = tensors.into_iter().map(|(name, tensor)| (name.replace("layers.0", "layers.7"), tensor)).collect();
        crate::write_tensors(&adapter, &tensors).unwrap();
        let error = load().err().unwrap().to_string();
        assert!(error.contains("keywords.adapter.safetensors"), "{error}");
    }

    #[test]
    fn a_head_of_another_width_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), 3).unwrap();
        let adapter = fixture::write_adapter(dir.path(), "keywords", true, 3).unwrap();
        let mut tensors = crate::read_tensors(&adapter, &Device::Cpu).unwrap();
        tensors.insert(CANDIDATE_HEAD.into(), candle_core::Tensor::zeros((1, 5), candle_core::DType::F32, &Device::Cpu).unwrap());
        crate::write_tensors(&adapter, &tensors).unwrap();
        let error = KeywordModel::load(dir.path(), Some(&adapter), &Device::Cpu).err().unwrap();
        assert!(error.to_string().contains("[1, 5]"), "{error}");
    }
}
