//! Finds the models, loads them and gives each a thread of its own.
//!
//! They come from a directory (`models`), part by part from others (`decoder`, `encoder`, `cross_encoder`: real checkpoints), from what was
//! trained for the market, or from inside this binary: then they are laid out once in a folder named by their contents.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use endcap_engine::{Adapter, EmbedModel, KeywordModel, RelevanceModel, ThemeModel, Tokenizer, parse_device};
use endcap_inference::{Handle, Limits, Model, spawn};

use crate::{config::Config, data::DataDir, grounds, path::Fleet};

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

/// Loads every model of the path.
///
/// # Errors
/// When a file is missing, cut short or foreign, or the device is not there.
pub fn load(config: &Config, data: &DataDir) -> Result<Engine> {
    let places = Places::of(config, &data.models())?;
    let device = parse_device(config.device.name())?;
    let [themes_adapter, keywords_adapter] = adapters(&places.decoder)?;
    let judge = RelevanceModel::load(&places.cross_encoder, &device)?;
    let tokenizer = Tokenizer::from_file(&places.decoder.join("tokenizer.json"))?;
    Ok(Fleet {
        threshold: judge.threshold(),
        judge: start("cross-encoder", judge, config)?,
        themes: start("themes", ThemeModel::load(&places.decoder, themes_adapter.as_deref(), &device)?, config)?,
        keywords: start("keywords", KeywordModel::load(&places.decoder, keywords_adapter.as_deref(), &device)?, config)?,
        encoder: start("encoder", EmbedModel::load(&places.encoder, &device)?, config)?,
        // A text that the tokenizer refuses counts nothing: it would not get into a prompt either.
        count: Box::new(move |text| tokenizer.encode(text).map_or(0, |ids| ids.len())),
    })
}

/// The adapters beside a decoder, for themes and for keywords. Says which one is missing where it has one of them only, as training leaves it
/// in between: the decoder then serves that stage as it is.
fn adapters(decoder: &Path) -> Result<[Option<PathBuf>; 2]> {
    const TASKS: [&str; 2] = ["themes", "keywords"];
    let found = [Adapter::beside(decoder, TASKS[0])?, Adapter::beside(decoder, TASKS[1])?];
    for (task, adapter) in TASKS.into_iter().zip(&found) {
        let file = decoder.join(format!("{task}.adapter.safetensors"));
        if adapter.is_none() && file.exists() {
            tracing::warn!(adapter = %file.display(), "an adapter has no config and is left out: make it with `endcap train {task}`");
        } else if adapter.is_none() && found.iter().any(Option::is_some) {
            tracing::warn!(adapter = %file.display(), "an adapter is missing, the decoder serves without: make it with `endcap train {task}`");
        }
    }
    Ok(found)
}

/// Loads the encoder alone, for imports.
///
/// # Errors
/// As [`load`].
pub fn load_encoder(config: &Config, built_in: &Path) -> Result<Handle<EmbedModel>> {
    let places = Places::of(config, built_in)?;
    start("encoder", EmbedModel::load(&places.encoder, &parse_device(config.device.name())?)?, config)
}

fn start<M: Model>(name: &str, model: M, config: &Config) -> Result<Handle<M>> {
    tracing::info!(model = name, version = model.version(), "loaded");
    let limits = Limits { batch_tokens_max: config.batch_tokens, ..Limits::default() };
    spawn(&format!("model-{name}"), model, limits).with_context(|| format!("cannot start the thread of model {name}"))
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
