//! The data directory: who may use it, and what lies where.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// A data directory that is in use by this process, and by no other `endcap up`.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    const LOCK: &str = "up.lock";

    /// Opens `path`, making it where there is none, and keeps other `endcap up`s out until it is dropped.
    ///
    /// # Errors
    /// When it cannot be written, or another `endcap up` uses it.
    pub fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make the data directory {}", path.display()))?;
        let lock_path = path.join(Self::LOCK);
        let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another `endcap up` uses the data directory {}: end it, or name another with --data", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", lock_path.display())),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The log and the store.
    pub fn file(&self) -> PathBuf {
        file_in(&self.path)
    }

    /// Where the demo market lies.
    pub fn market(&self) -> PathBuf {
        market_in(&self.path)
    }

    /// Where models from inside the binary are laid out, one folder per version.
    pub fn models(&self) -> PathBuf {
        self.path.join("models")
    }
}

/// The log and the store in a data directory.
pub fn file_in(data: &Path) -> PathBuf {
    data.join("endcap.sqlite")
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
    fn a_data_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let refusal = DataDir::open(&path).unwrap_err().to_string();
        assert!(refusal.contains("another `endcap up` uses"), "{refusal}");
        drop(first);
        DataDir::open(&path).unwrap();
    }
}
