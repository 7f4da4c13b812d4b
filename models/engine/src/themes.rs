//! LLM 1 (paper 4.2): writes a page of themes as JSON.

use std::{path::Path, sync::Arc};

use candle_core::Device;
use endcap_inference::{Model, ModelError, WriteThemes, WrittenThemes};

use crate::{
    EngineError, GenerateLimits, JsonConstraint, JsonGrammar, Result, TextLimits, Tokenizer,
    generate::{Job, Machine},
    generator::{DecoderFiles, Generator},
};

/// Longest document where `config.json` does not say otherwise, in tokens.
const ANSWER_TOKENS_MAX: usize = 1_024;

/// The theme model: a decoder held to the schema of [`endcap_inference::prompts::ThemesDocument`].
pub struct ThemeModel {
    generator: Generator,
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
        let files = DecoderFiles::read(dir, "themes", adapter, device)?;
        let texts: TextLimits = files.setting("endcap_text_chars")?.unwrap_or_default();
        let answer_tokens_max = files.setting("endcap_answer_tokens_max")?.unwrap_or(ANSWER_TOKENS_MAX);
        let grammar = JsonGrammar::new(files.tokenizer.clone(), texts).map_err(|e| EngineError::model(e.to_string()))?;
        let generator = Generator::new(files.decoder, None, GenerateLimits::for_device(device))?;
        Ok(Self { generator, tokenizer: files.tokenizer, grammar, answer_tokens_max, version: files.version })
    }

    /// The model with other limits of its loop.
    #[must_use]
    pub fn with_limits(mut self, limits: GenerateLimits) -> Self {
        self.generator = self.generator.with_limits(limits);
        self
    }

    fn job(&mut self, request: &WriteThemes) -> Result<Job<JsonConstraint>, ModelError> {
        let refuse = |error: &dyn std::error::Error| ModelError::Request(error.to_string());
        let prompt = self.tokenizer.encode(&request.prompt).map_err(|e| refuse(&e))?;
        Ok(Job {
            answer_tokens_max: self.answer_tokens_max.min(self.generator.positions().saturating_sub(prompt.len())),
            prompt,
            probes: Vec::new(),
            constraint: self.grammar.document(request.themes).map_err(|e| refuse(&e))?,
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
        let done = self.generator.write(jobs)?;
        Ok(done
            .into_iter()
            .map(|done| done.map(|done| WrittenThemes { json: self.tokenizer.decode(&done.tokens), tokens: done.counts }))
            .collect())
    }

    fn version(&self) -> &str {
        &self.version
    }
}

#[cfg(test)]
mod tests {
    use endcap_inference::{TokenCounts, prompts::ThemesDocument};

    use super::*;
    use crate::fixture;

    fn request(n: usize) -> WriteThemes {
        let favourites = ["smoked gouda;", "oat milk;", "dark chocolate; lentil soup;", ""][n % 4];
        WriteThemes {
            prompt: format!("<themes><diet><season> winter<budget> low<favourites> {favourites}<recent><out>"),
            themes: 1 + n % 3,
        }
    }

    fn model(seed: u64) -> ThemeModel {
        let dir = tempfile::tempdir().unwrap();
        fixture::write_decoder(dir.path(), seed).unwrap();
        ThemeModel::load(dir.path(), None, &Device::Cpu).unwrap()
    }

    #[test]
    fn documents_are_valid_and_the_same_alone_and_in_any_company() {
        let mut model = model(1);
        let mut alone = Vec::new();
        for n in 0..6 {
            alone.extend(model.answer(vec![request(n)]).unwrap());
        }
        for step_tokens_max in [512, 9] {
            model = model.with_limits(GenerateLimits { step_tokens_max, ..GenerateLimits::default() });
            let together = model.answer((0..6).map(request).collect()).unwrap();
            for (n, (one, all)) in alone.iter().zip(&together).enumerate() {
                let (one, all) = (one.as_ref().unwrap(), all.as_ref().unwrap());
                assert_eq!(one, all, "request {n} in steps of {step_tokens_max}");
                let document: ThemesDocument = serde_json::from_str(&one.json).unwrap();
                assert_eq!(document.themes.len(), 1 + n % 3);
                let TokenCounts { prefilled, generated, forced } = one.tokens;
                assert!(prefilled > 5 && generated > 5 && forced > 1, "{:?}", one.tokens);
            }
        }
    }

    #[test]
    fn a_bad_request_fails_alone() {
        let mut model = model(2);
        let bad = [
            WriteThemes { themes: 0, ..request(0) },
            WriteThemes { prompt: String::new(), ..request(0) },
            WriteThemes { prompt: "oat ".repeat(4_000), themes: 1 },
        ];
        let good = model.answer(vec![request(1)]).unwrap().remove(0).unwrap();
        let answers = model.answer(bad.into_iter().chain([request(1)]).collect()).unwrap();
        assert!(answers[..3].iter().all(|answer| matches!(answer, Err(ModelError::Request(_)))), "{answers:?}");
        assert_eq!(*answers[3].as_ref().unwrap(), good);
    }

    #[test]
    fn versions_name_the_model_and_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("decoder");
        fixture::write_decoder(&path, 1).unwrap();
        let adapter = fixture::write_adapter(&path, "themes", false, 1).unwrap();
        let load = |adapter: Option<&Path>| ThemeModel::load(&path, adapter, &Device::Cpu).unwrap();
        let (bare, with) = (load(None), load(Some(&adapter)));
        assert!(bare.version().starts_with("decoder@"), "{}", bare.version());
        assert!(with.version().starts_with("decoder+themes@"), "{}", with.version());
        assert_eq!(load(Some(&adapter)).version(), with.version());
        let told = [None, Some(adapter.as_path())].map(|adapter| crate::model_version(&path, adapter).unwrap());
        assert_eq!(told, [bare.version(), with.version()], "files alone tell the same");
        fixture::write_adapter(&path, "themes", false, 2).unwrap();
        assert_ne!(load(Some(&adapter)).version(), with.version());
        let error = ThemeModel::load(&dir.path().join("nowhere"), None, &Device::Cpu).err().unwrap();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
