//! Where each model lies: in a directory (`models`), part by part in others (`decoder`, `encoder`, `cross_encoder`: real checkpoints), in
//! what was trained for the market, or inside this binary: then it is laid out once in a folder named by its contents.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};
use endcap_runtime::unique_name;
use serde::{Deserialize, Serialize};

use crate::{config::Config, grounds, path::StageName};

/// What the build put into the binary: (path below the models' directory, contents).
static BUILT_IN: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/demo_models.rs"));

/// A model of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModelName {
    /// LLM 1: the decoder with its adapter for themes.
    Themes,
    /// LLM 2: the decoder with its adapter for keywords.
    Keywords,
    /// The encoder.
    Encoder,
    /// The cross-encoder.
    CrossEncoder,
}

impl ModelName {
    /// All of them.
    pub const ALL: [ModelName; 4] = [Self::Themes, Self::Keywords, Self::Encoder, Self::CrossEncoder];

    /// Its name, as pages tell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Themes => "themes",
            Self::Keywords => "keywords",
            Self::Encoder => "encoder",
            Self::CrossEncoder => "cross-encoder",
        }
    }

    /// Its folder in a directory of models.
    fn folder(self) -> &'static str {
        match self {
            Self::Themes | Self::Keywords => "decoder",
            Self::Encoder | Self::CrossEncoder => self.name(),
        }
    }

    /// Whose adapter it takes from beside its weights.
    pub fn task(self) -> Option<&'static str> {
        matches!(self, Self::Themes | Self::Keywords).then(|| self.name())
    }

    /// Whether a process that runs `stages` loads it. Every process opens its market with the encoder.
    pub fn is_loaded_for(self, stages: &[StageName]) -> bool {
        match self {
            Self::Themes => stages.contains(&StageName::Themes),
            Self::Keywords => stages.contains(&StageName::Keywords),
            Self::CrossEncoder => stages.contains(&StageName::Aiqa),
            Self::Encoder => true,
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a model lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Inside a binary, which lays its models out in a folder of this name.
    BuiltIn(String),
    /// In a directory of its own.
    Directory(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(folder) => write!(f, "{folder} (from inside another release of this program)"),
            Self::Directory(dir) => write!(f, "{}", dir.display()),
        }
    }
}

/// Where every model lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    of: BTreeMap<ModelName, Place>,
    /// Where models from inside binaries are laid out.
    laid_out: PathBuf,
}

impl Places {
    /// Where `config` says, else those trained for the market, else below `laid_out`, where the binary's own are laid out first.
    ///
    /// # Errors
    /// When the binary's own are wanted but cannot be written, or there are none.
    pub fn of(config: &Config, laid_out: &Path) -> Result<Self> {
        let named = |name| match name {
            ModelName::Themes | ModelName::Keywords => config.decoder.clone(),
            ModelName::Encoder => config.encoder.clone(),
            ModelName::CrossEncoder => config.cross_encoder.clone(),
        };
        let whole = config.models.clone().or_else(|| trained(config));
        let mut of = BTreeMap::new();
        for name in ModelName::ALL {
            let in_whole = || whole.as_ref().map(|dir| dir.join(name.folder()));
            let place = match named(name).or_else(in_whole) {
                // By its true name, which stays when a link is turned to another one.
                Some(dir) => Place::Directory(dir.canonicalize().unwrap_or(dir)),
                None => Place::BuiltIn(own_folder()?),
            };
            of.insert(name, place);
        }
        let places = Self { of, laid_out: laid_out.to_owned() };
        places.lay_out_own()?;
        Ok(places)
    }

    /// Those of `places`, as a manifest tells them.
    ///
    /// # Errors
    /// When the binary's own are among them and cannot be written.
    pub fn told(of: BTreeMap<ModelName, Place>, laid_out: &Path) -> Result<Self> {
        let places = Self { of, laid_out: laid_out.to_owned() };
        places.lay_out_own()?;
        Ok(places)
    }

    /// Where `name` lies.
    ///
    /// # Panics
    /// When a manifest told no place of it.
    pub fn place(&self, name: ModelName) -> &Place {
        self.of.get(&name).expect("every model has a place")
    }

    /// The directory of `name`.
    pub fn dir(&self, name: ModelName) -> PathBuf {
        dir_of(self.place(name), name, &self.laid_out)
    }

    fn lay_out_own(&self) -> Result<()> {
        let is_own = |place: &Place| matches!(place, Place::BuiltIn(folder) if is_own(folder));
        if self.of.values().any(is_own) { lay_out(BUILT_IN, &self.laid_out).map(|_| ()) } else { Ok(()) }
    }
}

/// The directory of the model `name` at `place`; those of binaries lie below `laid_out`, where such a binary has run.
pub fn dir_of(place: &Place, name: ModelName, laid_out: &Path) -> PathBuf {
    match place {
        Place::BuiltIn(folder) => laid_out.join(folder).join(name.folder()),
        Place::Directory(dir) => dir.clone(),
    }
}

/// Whether `folder` is that of the models inside this binary.
pub fn is_own(folder: &str) -> bool {
    own_folder().is_ok_and(|own| own == folder)
}

/// The folder of the models inside this binary; its name is made of some 50 MB, once.
fn own_folder() -> Result<String> {
    static OWN: OnceLock<String> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own.clone());
    }
    let own = folder_of(BUILT_IN)?;
    Ok(OWN.get_or_init(|| own).clone())
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
    let all_named = config.decoder.is_some() && config.encoder.is_some() && config.cross_encoder.is_some();
    let dir = config.market.as_deref().filter(|_| !all_named).map(grounds::trained_in)?;
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

/// The models' directory: the one that `config` names, or the binary's own, laid out below `laid_out`.
///
/// # Errors
/// When the binary's own cannot be written, or there are none.
pub fn directory(config: &Config, laid_out: &Path) -> Result<PathBuf> {
    config.models.clone().map_or_else(|| lay_out(BUILT_IN, laid_out), Ok)
}

/// The folder of the re-ranking model: in the models' directory that `config` names, else beside those that were trained for the market, else among
/// the binary's own, which are laid out below `laid_out` by then.
///
/// # Errors
/// When the binary's own are wanted and there are none.
pub fn reranker(config: &Config, laid_out: &Path) -> Result<PathBuf> {
    let whole = config.models.clone().or_else(|| config.market.as_deref().map(grounds::trained_in));
    Ok(whole.map_or_else(|| own_folder().map(|own| laid_out.join(own)), Ok)?.join("reranker"))
}

/// The folder that `files` are laid out in: named by their contents.
///
/// # Errors
/// When there are no files.
fn folder_of(files: &[(&str, &[u8])]) -> Result<String> {
    if files.is_empty() {
        bail!("this program was built without models: name a directory of models with --models");
    }
    let mut hasher = blake3::Hasher::new();
    for (name, contents) in files {
        hasher.update(name.as_bytes()).update(&[0]).update(contents);
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Writes `files` below `under`, in a folder named by their contents; gives the folder. Where it is there already, only files that are missing
/// or were changed are written.
///
/// # Errors
/// When there are no files, or they cannot be written.
fn lay_out(files: &[(&str, &[u8])], under: &Path) -> Result<PathBuf> {
    let folder = under.join(folder_of(files)?);
    if folder.is_dir() {
        files.iter().try_for_each(|(name, contents)| mend(&folder.join(name), contents))?;
        return Ok(folder);
    }
    // Written beside and moved into place, so that a folder that is there is whole.
    let draft = under.join(format!("draft-{}", unique_name()));
    let write = |(name, contents): &(&str, &[u8])| {
        let path = draft.join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder"))?;
        fs::write(path, contents)
    };
    let written = files.iter().try_for_each(write).and_then(|()| fs::rename(&draft, &folder));
    if written.is_err() {
        // What cannot be cleared is in nobody's way but that of other files.
        let _ = fs::remove_dir_all(&draft);
    }
    // Another process may have been faster.
    if !folder.is_dir() {
        written.with_context(|| format!("cannot write the models to {}", folder.display()))?;
    }
    Ok(folder)
}

/// Writes a file of the binary's own again, where it is not as it was.
fn mend(path: &Path, contents: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == contents) {
        return Ok(());
    }
    tracing::warn!(file = %path.display(), "a file of the program's own models is damaged: writing it again");
    // Moved into place, so that a process that has the file open keeps what it sees.
    let draft = path.with_extension(format!("draft-{}", unique_name()));
    let written = fs::create_dir_all(path.parent().expect("a file has a folder"))
        .and_then(|()| fs::write(&draft, contents))
        .and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
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
