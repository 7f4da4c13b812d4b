//! What finished units of work leave in the directory, so that nothing is done twice.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// What came of a unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    /// Figures by name.
    pub(super) figures: BTreeMap<String, f64>,
    /// The best order of each slate, where others ask for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) best: Vec<usize>,
}

impl Outcome {
    /// Adds a figure.
    pub(super) fn set(&mut self, name: impl Into<String>, figure: f64) {
        self.figures.insert(name.into(), figure);
    }
}

/// The folder of finished units.
pub(super) struct Keep(PathBuf);

impl Keep {
    /// The folder under `out`; `settings` say what the results are of.
    ///
    /// # Errors
    /// When it holds results of other settings, or cannot be written.
    pub(super) fn open(out: &Path, settings: &str) -> Result<Self> {
        let folder = out.join("units");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join("settings");
        match fs::read_to_string(&path) {
            Ok(there) if there != settings => bail!(
                "{} holds results of other settings: name another directory with --out, or remove {}",
                out.display(),
                folder.display()
            ),
            Ok(_) => {}
            Err(_) => write(&path, settings.as_bytes())?,
        }
        Ok(Self(folder))
    }

    /// What came of a unit, if it is finished.
    pub(super) fn outcome(&self, unit: &str, seed: u64) -> Option<Outcome> {
        serde_json::from_slice(&fs::read(self.path(unit, seed, "json")).ok()?).ok()
    }

    /// Keeps the weights of a unit that others go on with.
    pub(super) fn put_weights(&self, unit: &str, seed: u64, weights: &[u8]) -> Result<()> {
        write(&self.weights_path(unit, seed), weights)
    }

    /// Keeps what came of a unit: it is finished.
    pub(super) fn put(&self, unit: &str, seed: u64, outcome: &Outcome) -> Result<()> {
        write(&self.path(unit, seed, "json"), &serde_json::to_vec_pretty(outcome).context("cannot write figures")?)
    }

    /// Weights that a unit has left.
    pub(super) fn weights(&self, unit: &str, seed: u64) -> Result<Vec<u8>> {
        let path = self.weights_path(unit, seed);
        fs::read(&path)
            .with_context(|| format!("cannot read {}: remove {unit}-{seed}.json beside it, and it is made anew", path.display()))
    }

    pub(super) fn weights_path(&self, unit: &str, seed: u64) -> PathBuf {
        self.path(unit, seed, "safetensors")
    }

    fn path(&self, unit: &str, seed: u64, ending: &str) -> PathBuf {
        self.0.join(format!("{unit}-{seed}.{ending}"))
    }
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("part");
    fs::write(&unfinished, bytes)
        .and_then(|()| fs::rename(&unfinished, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
