//! Finds the models, loads them and gives each a thread of its own.
//!
//! They come from a directory (`models`), part by part from others (`decoder`, `encoder`, `cross_encoder`: real checkpoints), from what was
//! trained for the market, or from inside this binary: then they are laid out once in a folder named by their contents.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use endcap_engine::{Adapter, Device, EmbedModel, KeywordModel, RelevanceModel, ThemeModel, Tokenizer, parse_device};
use endcap_inference::{Handle, Limits, Model, spawn};
use endcap_keywords::TokenCounter;

use crate::{
    config::Config,
    data::DataDir,
    grounds,
    path::{Fleet, StageName},
};

/// What the build put into the binary: (path below the models' directory, contents).
static BUILT_IN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/demo_models.rs"));

/// The path's models as the engine makes them.
pub type Engine = Fleet<ThemeModel, KeywordModel, EmbedModel, RelevanceModel>;

/// Where each model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    decoder: PathBuf,
    encoder: PathBuf,
    cross_encoder: PathBuf,
}

impl Places {
    /// Where `config` says, else those trained for the market, else below `built_in`, where the binary's own are laid out first.
    ///
    /// # Errors
    /// When the binary's own are wanted but cannot be written, or there are none.
    pub fn of(config: &Config, built_in: &Path) -> Result<Self> {
        let all_named = config.decoder.is_some() && config.encoder.is_some() && config.cross_encoder.is_some();
        let base = match trained(config) {
            _ if all_named => PathBuf::new(),
            Some(dir) => dir,
            None => directory(config, built_in)?,
        };
        let part = |named: &Option<PathBuf>, name: &str| named.clone().unwrap_or_else(|| base.join(name));
        Ok(Self {
            decoder: part(&config.decoder, "decoder"),
            encoder: part(&config.encoder, "encoder"),
            cross_encoder: part(&config.cross_encoder, "cross-encoder"),
        })
    }
}

/// The models that were trained for the market, where no others are named and all of them are there. Says what is missing of them: a training
/// that was stopped leaves some.
fn trained(config: &Config) -> Option<PathBuf> {
    const WHOLE: [&str; 4] = [
        "encoder/model.safetensors",
        "cross-encoder/model.safetensors",
        "decoder/themes.adapter.safetensors",
        "decoder/keywords.adapter.safetensors",
    ];
    let dir = config.market.as_deref().filter(|_| config.models.is_none()).map(grounds::trained_in)?;
    let missing: Vec<_> = WHOLE.into_iter().filter(|file| !dir.join(file).is_file()).collect();
    if !missing.is_empty() && dir.is_dir() {
        tracing::warn!(
            models = %dir.display(),
            missing = missing.join(", "),
            "the market's own models are not finished and are left out: `endcap train --market` goes on with them"
        );
    }
    missing.is_empty().then_some(dir)
}

/// The models' directory: the one that `config` names, or the binary's own, laid out below `built_in`.
///
/// # Errors
/// When the binary's own cannot be written, or there are none.
pub fn directory(config: &Config, built_in: &Path) -> Result<PathBuf> {
    config.models.clone().map_or_else(|| lay_out(BUILT_IN, built_in), Ok)
}

/// Loads models one by one, each onto a thread of its own.
pub struct Loader {
    places: Places,
    device: Device,
    batch_tokens: usize,
}

impl Loader {
    /// Loads from where `config` says; the binary's own are laid out below `built_in`.
    ///
    /// # Errors
    /// As [`Places::of`]; when the device is not there.
    pub fn new(config: &Config, built_in: &Path) -> Result<Self> {
        let places = Places::of(config, built_in)?;
        Ok(Self { places, device: parse_device(config.device.name())?, batch_tokens: config.batch_tokens })
    }

    /// LLM 1.
    ///
    /// # Errors
    /// When a file is missing, cut short or foreign.
    pub fn themes(&self) -> Result<Handle<ThemeModel>> {
        let adapter = adapter(&self.places.decoder, "themes")?;
        self.start("themes", ThemeModel::load(&self.places.decoder, adapter.as_deref(), &self.device)?)
    }

    /// LLM 2, and what counts tokens as it does. A text that its tokenizer refuses counts nothing: it would not get into a prompt either.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn keywords(&self) -> Result<(Handle<KeywordModel>, TokenCounter)> {
        let adapter = adapter(&self.places.decoder, "keywords")?;
        let model = self.start("keywords", KeywordModel::load(&self.places.decoder, adapter.as_deref(), &self.device)?)?;
        let tokenizer = Tokenizer::from_file(&self.places.decoder.join("tokenizer.json"))?;
        Ok((model, Box::new(move |text| tokenizer.encode(text).map_or(0, |ids| ids.len()))))
    }

    /// The encoder.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn encoder(&self) -> Result<Handle<EmbedModel>> {
        self.start("encoder", EmbedModel::load(&self.places.encoder, &self.device)?)
    }

    /// The cross-encoder, and the probability from which its pairs are relevant.
    ///
    /// # Errors
    /// As [`Loader::themes`].
    pub fn judge(&self) -> Result<(Handle<RelevanceModel>, f32)> {
        let judge = RelevanceModel::load(&self.places.cross_encoder, &self.device)?;
        let threshold = judge.threshold();
        Ok((self.start("cross-encoder", judge)?, threshold))
    }

    fn start<M: Model>(&self, name: &str, model: M) -> Result<Handle<M>> {
        tracing::info!(model = name, version = model.version(), "loaded");
        let limits = Limits { batch_tokens_max: self.batch_tokens, ..Limits::default() };
        spawn(&format!("model-{name}"), model, limits).with_context(|| format!("cannot start the thread of model {name}"))
    }
}

/// Loads the models of `stages`, and the encoder, which every process opens its market with.
///
/// # Errors
/// When a file is missing, cut short or foreign, or the device is not there.
pub fn load(config: &Config, data: &DataDir, stages: &[StageName]) -> Result<Engine> {
    let loader = Loader::new(config, &data.models())?;
    let wanted = |stage| stages.contains(&stage);
    Ok(Fleet {
        judge: wanted(StageName::Aiqa).then(|| loader.judge()).transpose()?,
        themes: wanted(StageName::Themes).then(|| loader.themes()).transpose()?,
        keywords: wanted(StageName::Keywords).then(|| loader.keywords()).transpose()?,
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
pub fn load_encoder(config: &Config, built_in: &Path) -> Result<Handle<EmbedModel>> {
    Loader::new(config, built_in)?.encoder()
}

/// Writes `files` below `under`, in a folder named by their contents; gives the folder. Where it is there already, only files that are missing
/// or were changed are written.
///
/// # Errors
/// When there are no files, or they cannot be written.
fn lay_out(files: &[(&str, &[u8])], under: &Path) -> Result<PathBuf> {
    if files.is_empty() {
        bail!("this program was built without models: name a directory of models with --models");
    }
    let mut hasher = blake3::Hasher::new();
    for (name, contents) in files {
        hasher.update(name.as_bytes()).update(&[0]).update(contents);
    }
    let folder = under.join(&hasher.finalize().to_hex()[..16]);
    if folder.is_dir() {
        files.iter().try_for_each(|(name, contents)| mend(&folder.join(name), contents))?;
        return Ok(folder);
    }
    // Written beside and moved into place, so that a folder that is there is whole.
    let draft = under.join(format!("draft-{}", std::process::id()));
    let write = |(name, contents): &(&str, &[u8])| {
        let path = draft.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder"))?;
        fs::write(path, contents)
    };
    let written = files.iter().try_for_each(write).and_then(|()| fs::rename(&draft, &folder));
    if written.is_err() && folder.is_dir() {
        // Another process was faster.
        fs::remove_dir_all(&draft).with_context(|| format!("cannot clear {}", draft.display()))?;
        return Ok(folder);
    }
    written.with_context(|| format!("cannot write the models to {}", folder.display()))?;
    Ok(folder)
}

/// Writes a file of the binary's own again, where it is not as it was.
fn mend(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == contents) {
        return Ok(());
    }
    tracing::warn!(file = %path.display(), "a file of the program's own models is damaged: writing it again");
    // Moved into place, so that a process that has the file open keeps what it sees.
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    fs::create_dir_all(path.parent().expect("a file has a folder"))
        .and_then(|()| fs::write(&draft, contents))
        .and_then(|()| fs::rename(&draft, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_from_the_binary_are_laid_out_once_per_content() {
        let dir = tempfile::tempdir().unwrap();
        let first = lay_out(&[("decoder/config.json", b"{}"), ("a", b"1")], dir.path()).unwrap();
        assert_eq!(fs::read(first.join("decoder/config.json")).unwrap(), b"{}");
        fs::write(first.join("mine"), "kept").unwrap();
        fs::write(first.join("a"), "damaged").unwrap();
        fs::remove_dir_all(first.join("decoder")).unwrap();
        assert_eq!(lay_out(&[("decoder/config.json", b"{}"), ("a", b"1")], dir.path()).unwrap(), first);
        assert_eq!(fs::read(first.join("a")).unwrap(), b"1", "what was damaged is written again");
        assert_eq!(fs::read(first.join("decoder/config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(first.join("mine")).unwrap(), b"kept");
        assert_eq!(fs::read_dir(&first).unwrap().count(), 3);
        assert_ne!(lay_out(&[("a", b"2")], dir.path()).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no drafts are left");
        let refusal = lay_out(&[], dir.path()).unwrap_err().to_string();
        assert!(refusal.contains("--models"), "{refusal}");
    }
}
