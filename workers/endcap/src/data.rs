//! The data directory: who may use it, and what lies where.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// How a process uses a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Alone: nobody else runs stages on it.
    Alone,
    /// Beside others that run stages on it.
    Beside,
}

/// A data directory that is in use by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    const LOCK: &str = "up.lock";

    /// Opens `path`, making it where there is none, and keeps others out until it is dropped, as far as `how` says.
    ///
    /// # Errors
    /// When it cannot be written, or another process uses it in a way that does not allow this one.
    pub fn open(path: &Path, how: Use) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let lock_path = path.join(Self::LOCK);
        let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
        let locked = match how {
            Use::Alone => lock.try_lock(),
            Use::Beside => lock.try_lock_shared(),
        };
        match locked {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                let other = if how == Use::Alone { "`endcap up` or `endcap run`" } else { "`endcap up`" };
                bail!("another {other} uses the data directory {}: end it, or name another with --data", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
    }

    /// Waits until no other process makes what is missing here; the others wait until the answer is dropped.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn turn(&self) -> Result<File> {
        let path = self.path.join("making.lock");
        let lock = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(lock)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the demo market lies.
    pub fn market(&self) -> PathBuf {
        market_in(&self.path)
    }

    /// Where models from inside the binary are laid out, one folder per version.
    pub fn models(&self) -> PathBuf {
        models_in(&self.path)
    }

    /// Where versions of models are remembered.
    pub fn model_versions(&self) -> PathBuf {
        self.path.join("model-versions.json")
    }
}

/// The log and the store in a data directory.
pub fn file_in(data: &Path) -> PathBuf {
    data.join("endcap.sqlite")
}

/// Models from inside binaries, laid out in a data directory.
pub fn models_in(data: &Path) -> PathBuf {
    data.join("models")
}

/// The demo market in a data directory.
pub fn market_in(data: &Path) -> PathBuf {
    data.join("market")
}

/// Refuses to read a directory that holds no data.
///
/// # Errors
/// When there is no data directory at `path`.
pub fn must_exist(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    bail!("no data directory at {}: `endcap up` makes one, --data names another", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_one_user_or_several_that_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let refused = |how| DataDir::open(&path, how).unwrap_err().to_string();
        let first = DataDir::open(&path, Use::Alone).unwrap();
        for how in [Use::Alone, Use::Beside] {
            assert!(refused(how).contains("uses the data directory"), "{how:?}");
        }
        drop(first);
        let _one = DataDir::open(&path, Use::Beside).unwrap();
        let _other = DataDir::open(&path, Use::Beside).unwrap();
        assert!(refused(Use::Alone).contains("another `endcap up` or `endcap run` uses"));
    }
}
