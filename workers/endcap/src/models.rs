//! Loads the models and gives each a thread of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use endcap_engine::{Adapter, Device, EmbedModel, KeywordModel, RelevanceModel, ThemeModel, Tokenizer, parse_device};
use endcap_inference::{Handle, Limits, Model, spawn};
use endcap_keywords::TokenCounter;

use crate::{
    config::Config,
    path::{Fleet, StageName},
    places::{ModelName, Places},
};

/// The path's models as the engine makes them.
pub type Engine = Fleet<ThemeModel, KeywordModel, EmbedModel, RelevanceModel>;

/// Loads models one by one, each onto a thread of its own.
pub struct Loader {
    places: Places,
    device: Device,
    batch_tokens: usize,
}

impl Loader {
    /// Loads from where `config` says; the binary's own are laid out below `laid_out`.
    ///
    /// # Errors
    /// As [`Places::of`] and [`Loader::at`].
    pub fn new(config: &Config, laid_out: &Path) -> Result<Self> {
        Self::at(Places::of(config, laid_out)?, config)
    }

    /// Loads from `places`.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn at(places: Places, config: &Config) -> Result<Self> {
        Ok(Self { places, device: parse_device(config.device.name())?, batch_tokens: config.batch_tokens })
    }

    /// LLM 1.
    ///
    /// # Errors
    /// When a file is missing, cut short or foreign.
    pub fn themes(&self) -> Result<Handle<ThemeModel>> {
        let decoder = self.places.dir(ModelName::Themes);
        let adapter = adapter(&decoder, "themes")?;
        self.start(ModelName::Themes, ThemeModel::load(&decoder, adapter.as_deref(), &self.device)?)
    }

    /// LLM 2, and what counts tokens as it does. A text that its tokenizer refuses counts nothing: it would not get into a prompt either.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn keywords(&self) -> Result<(Handle<KeywordModel>, TokenCounter)> {
        let decoder = self.places.dir(ModelName::Keywords);
        let adapter = adapter(&decoder, "keywords")?;
        let model = self.start(ModelName::Keywords, KeywordModel::load(&decoder, adapter.as_deref(), &self.device)?)?;
        let tokenizer = Tokenizer::from_file(&decoder.join("tokenizer.json"))?;
        Ok((model, Box::new(move |text| tokenizer.encode(text).map_or(0, |ids| ids.len()))))
    }

    /// The encoder.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn encoder(&self) -> Result<Handle<EmbedModel>> {
        self.start(ModelName::Encoder, EmbedModel::load(&self.places.dir(ModelName::Encoder), &self.device)?)
    }

    /// The cross-encoder, and the probability from which its pairs are relevant.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn judge(&self) -> Result<(Handle<RelevanceModel>, f32)> {
        let judge = RelevanceModel::load(&self.places.dir(ModelName::CrossEncoder), &self.device)?;
        let threshold = judge.threshold();
        Ok((self.start(ModelName::CrossEncoder, judge)?, threshold))
    }

    fn start<M: Model>(&self, name: ModelName, model: M) -> Result<Handle<M>> {
        tracing::info!(model = %name, version = model.version(), "loaded");
        let limits = Limits { batch_tokens_max: self.batch_tokens, ..Limits::default() };
        spawn(&format!("model-{name}"), model, limits).with_context(|| format!("cannot start the thread of model {name}"))
    }
}

/// Loads from `places` the models that a process needs which runs `stages`.
///
/// # Errors
/// When a file is missing, cut short or foreign, or the device is not there.
pub fn load(config: &Config, places: Places, stages: &[StageName]) -> Result<Engine> {
    let loader = Loader::at(places, config)?;
    let wanted = |name: ModelName| name.is_loaded_for(stages);
    Ok(Fleet {
        judge: wanted(ModelName::CrossEncoder).then(|| loader.judge()).transpose()?,
        themes: wanted(ModelName::Themes).then(|| loader.themes()).transpose()?,
        keywords: wanted(ModelName::Keywords).then(|| loader.keywords()).transpose()?,
        encoder: loader.encoder()?,
    })
}

/// The adapter beside a decoder for `task`. Says that it is missing where the decoder has one for another task, as training leaves it in
/// between: the decoder then serves that stage as it is.
fn adapter(decoder: &Path, task: &str) -> Result<Option<PathBuf>> {
    const TASKS: [&str; 2] = ["themes", "keywords"];
    let found = Adapter::beside(decoder, task)?;
    let file = |task: &str| decoder.join(format!("{task}.adapter.safetensors"));
    let missing = file(task);
    if found.is_none() && missing.exists() {
        tracing::warn!(adapter = %missing.display(), "an adapter has no config and is left out: make it with `endcap train {task}`");
    } else if found.is_none() && TASKS.into_iter().any(|task| file(task).exists()) {
        tracing::warn!(adapter = %missing.display(), "an adapter is missing, the decoder serves without: make it with `endcap train {task}`");
    }
    Ok(found)
}

/// Loads the encoder alone, for imports.
///
/// # Errors
/// As [`load`].
pub fn load_encoder(config: &Config, laid_out: &Path) -> Result<Handle<EmbedModel>> {
    Loader::new(config, laid_out)?.encoder()
}
