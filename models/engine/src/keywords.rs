//! LLM 2 (paper 4.3): chooses and orders keywords among candidates.

mod prompt;

use std::{path::Path, sync::Arc};

use candle_core::Device;
use endcap_inference::{ChooseKeywords, ChosenKeywords, Model, ModelError};

pub use prompt::{KeywordEncoder, KeywordPrompt, KeywordPromptError};

use crate::{
    EngineError, GenerateLimits, KeywordLimits, Result, TrieConstraint,
    generate::Job,
    writer::{Writer, WriterFiles},
};

/// Name of the candidate head's weight `[1, hidden]` in an adapter's file.
pub const CANDIDATE_HEAD: &str = "candidate_head.weight";

/// What multiplies the head's scores where `config.json` does not say otherwise.
const BIAS_WEIGHT: f32 = 1.0;

/// The keyword model: a decoder that can only say candidates.
pub struct KeywordModel {
    writer: Writer,
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
        let mut files = WriterFiles::read(dir, adapter, device)?;
        let bias_weight = files.setting("endcap_bias_weight")?.unwrap_or(BIAS_WEIGHT);
        let encoder = KeywordEncoder::new(files.tokenizer.clone()).map_err(|e| EngineError::model(e.to_string()))?;
        let head = files.extra.remove(CANDIDATE_HEAD);
        let writer = Writer::new(files.decoder, head, GenerateLimits::for_device(device))?;
        Ok(Self { writer, encoder, bias_weight, version: files.version })
    }

    /// The model with other limits of its loop.
    ///
    /// # Errors
    /// [`EngineError`] when the cache cannot be made.
    pub fn with_limits(mut self, limits: GenerateLimits) -> Result<Self> {
        self.writer = self.writer.with_limits(limits)?;
        Ok(self)
    }

    /// Whether candidates are scored.
    pub fn has_head(&self) -> bool {
        self.writer.has_head()
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
        let probes = if self.writer.has_head() { prompt.ends } else { Vec::new() };
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
        let done = self.writer.write(jobs)?;
        Ok(done
            .into_iter()
            .map(|done| done.map(|done| ChosenKeywords { picks: done.constraint.picks().to_vec(), tokens: done.counts }))
            .collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}
