//! Versions of models, told from their files without loading them. Hashing gigabytes takes seconds, so a data directory remembers what the
//! hashes were, for as long as the files are as long and as old as they were.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use endcap_engine::{Adapter, model_files, model_version};
use endcap_runtime::unique_name;

use crate::places::ModelName;

/// Files that were written so shortly before may be written again without looking younger: what they hash to is not remembered.
const SETTLED: Duration = Duration::from_secs(2);
/// Versions that are remembered; beyond, all are forgotten.
const REMEMBERED_MAX: usize = 64;

/// The version of the model `name` that lies in `dir`, as the loaded model would tell it.
///
/// # Errors
/// When a file is missing or cannot be read; with the remedy.
pub fn version_in(dir: &Path, name: ModelName) -> Result<String> {
    Ok(model_version(dir, adapter_in(dir, name)?.as_deref())?)
}

fn adapter_in(dir: &Path, name: ModelName) -> Result<Option<PathBuf>> {
    Ok(name.task().map(|task| Adapter::beside(dir, task)).transpose()?.flatten())
}

/// Versions that a data directory remembers.
#[derive(Debug)]
pub struct Remembered {
    path: PathBuf,
    /// Version by what the files look like.
    known: BTreeMap<String, String>,
    changed: bool,
}

impl Remembered {
    /// Those that stand in the file at `path`. One that cannot be read is as good as none.
    pub fn open(path: PathBuf) -> Self {
        let known = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path, known, changed: false }
    }

    /// As [`version_in`]; read from the files where they are not remembered. `now` is the time of the files' clock.
    ///
    /// # Errors
    /// As [`version_in`].
    pub fn version_in(&mut self, dir: &Path, name: ModelName, now: SystemTime) -> Result<String> {
        let looks = Looks::of(&model_files(dir, adapter_in(dir, name)?.as_deref())?)?;
        if let Some(version) = self.known.get(&looks.key) {
            return Ok(version.clone());
        }
        let version = version_in(dir, name)?;
        if looks.newest + SETTLED <= now {
            if self.known.len() >= REMEMBERED_MAX {
                self.known.clear();
            }
            self.known.insert(looks.key, version.clone());
            self.changed = true;
        }
        Ok(version)
    }

    /// Keeps what was learnt. Where that fails the next start hashes again.
    pub fn keep(&self) {
        if !self.changed {
            return;
        }
        let draft = self.path.with_extension(format!("draft-{}", unique_name()));
        let text = serde_json::to_vec(&self.known).expect("texts are JSON");
        if let Err(error) = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path)) {
            tracing::debug!(file = %self.path.display(), %error, "cannot remember the models' versions");
        }
    }

    /// Forgets all: a model that was loaded is another one than its files looked like.
    pub fn forget(path: &Path) {
        if let Err(error) = fs::remove_file(path) {
            tracing::debug!(file = %path.display(), %error, "cannot forget the models' versions");
        }
    }
}

/// What a model's files look like from outside.
struct Looks {
    key: String,
    newest: SystemTime,
}

impl Looks {
    fn of(files: &[PathBuf]) -> Result<Self> {
        let (mut hasher, mut newest) = (blake3::Hasher::new(), UNIX_EPOCH);
        for file in files {
            let metadata = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
            let modified = metadata.modified().with_context(|| format!("cannot tell how old {} is", file.display()))?;
            let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            hasher.update(file.as_os_str().as_encoded_bytes()).update(&[0]);
            hasher.update(&metadata.len().to_le_bytes()).update(&since.as_nanos().to_le_bytes());
            newest = newest.max(modified);
        }
        Ok(Self { key: hasher.finalize().to_hex().to_string(), newest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The smallest directory whose version can be told.
    fn encoder(dir: &Path, weights: &[u8]) {
        for (name, bytes) in [("config.json", &b"{}"[..]), ("tokenizer.json", b"{}"), ("model.safetensors", weights)] {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    #[test]
    fn a_version_is_remembered_until_a_file_looks_different() {
        let dir = tempfile::tempdir().unwrap();
        let (model, file) = (dir.path().join("encoder"), dir.path().join("versions.json"));
        fs::create_dir(&model).unwrap();
        encoder(&model, b"one");
        let written = fs::metadata(model.join("model.safetensors")).unwrap().modified().unwrap();
        let ask = |later: Duration| {
            let mut remembered = Remembered::open(file.clone());
            let version = remembered.version_in(&model, ModelName::Encoder, written + later).unwrap();
            remembered.keep();
            (version, Remembered::open(file.clone()).known.len())
        };
        let hour = Duration::from_secs(3_600);
        let (first, remembered) = ask(Duration::ZERO);
        assert_eq!((remembered, &first), (0, &version_in(&model, ModelName::Encoder).unwrap()), "too young to be remembered");
        assert_eq!(ask(hour), (first.clone(), 1));

        // Remembered means that the files are not read: put back to the same looks, other weights go unnoticed.
        fs::write(model.join("model.safetensors"), "two").unwrap();
        let weights = fs::File::options().write(true).open(model.join("model.safetensors")).unwrap();
        weights.set_modified(written).unwrap();
        assert_eq!(ask(hour).0, first);
        weights.set_modified(written + Duration::from_secs(1)).unwrap();
        let (second, remembered) = ask(hour);
        assert!(second != first && remembered == 2, "{second}");
        Remembered::forget(&file);
        assert_eq!(ask(hour), (second.clone(), 1));
        fs::write(&file, "rubbish").unwrap();
        assert_eq!(ask(hour), (second, 1), "a file that cannot be read is as good as none");
    }
}
