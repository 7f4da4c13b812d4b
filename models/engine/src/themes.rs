//! LLM 1 (paper 4.2): writes a page of themes as JSON.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use endcap_inference::{Model, ModelError, WriteThemes, WrittenThemes};

use crate::{
    EngineError, GenerateLimits, JsonConstraint, JsonGrammar, Result, TextLimits, Tokenizer,
    generate::Job,
    writer::{Writer, WriterFiles},
};

/// Longest document where `config.json` does not say otherwise, in tokens.
const ANSWER_TOKENS_MAX: usize = 2_048;

/// The theme model: a decoder held to the schema of [`endcap_inference::prompts::ThemesDocument`].
pub struct ThemeModel {
    writer: Writer,
    tokenizer: Arc<Tokenizer>,
    grammar: JsonGrammar,
    answer_tokens_max: usize,
    version: String,
}

impl ThemeModel {
    /// Reads the decoder in `dir`, with `adapter` merged where one is given.
    ///
    /// `config.json` may set `endcap_answer_tokens_max` and `endcap_text_chars` (`{"persona", "title", "intent", "concept"}`).
    ///
    /// # Errors
    /// [`EngineError`] when a file is missing or does not fit.
    pub fn load(dir: &Path, adapter: Option<&Path>, device: &Device) -> Result<Self> {
        let files = WriterFiles::read(dir, adapter, device)?;
        let texts: TextLimits = files.setting("endcap_text_chars")?.unwrap_or_default();
        let answer_tokens_max = files.setting("endcap_answer_tokens_max")?.unwrap_or(ANSWER_TOKENS_MAX);
        let grammar = JsonGrammar::new(files.tokenizer.clone(), texts).map_err(|e| EngineError::model(e.to_string()))?;
        let writer = Writer::new(files.decoder, None, GenerateLimits::for_device(device))?;
        Ok(Self { writer, tokenizer: files.tokenizer, grammar, answer_tokens_max, version: files.version })
    }

    /// The model with other limits of its loop.
    ///
    /// # Errors
    /// [`EngineError`] when the cache cannot be made.
    pub fn with_limits(mut self, limits: GenerateLimits) -> Result<Self> {
        self.writer = self.writer.with_limits(limits)?;
        Ok(self)
    }

    fn job(&mut self, request: &WriteThemes) -> Result<Job<JsonConstraint>, ModelError> {
        let refuse = |error: &dyn std::error::Error| ModelError::Request(error.to_string());
        Ok(Job {
            prompt: self.tokenizer.encode(&request.prompt).map_err(|e| refuse(&e))?,
            probes: Vec::new(),
            constraint: self.grammar.document(request.themes).map_err(|e| refuse(&e))?,
            answer_tokens_max: self.answer_tokens_max,
        })
    }
}

impl Model for ThemeModel {
    type Request = WriteThemes;
    type Answer = WrittenThemes;

    fn tokens(&self, request: &WriteThemes) -> usize {
        request.prompt.len() / 4 + 32 * request.themes
    }

    fn answer(&mut self, batch: Vec<WriteThemes>) -> Result<Vec<Result<WrittenThemes, ModelError>>, ModelError> {
        let jobs = batch.iter().map(|request| self.job(request)).collect();
        let done = self.writer.write(jobs)?;
        Ok(done
            .into_iter()
            .map(|done| done.map(|done| WrittenThemes { json: self.tokenizer.decode(&done.tokens), tokens: done.counts }))
            .collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}
