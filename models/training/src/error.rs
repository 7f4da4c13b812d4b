//! What can go wrong in a training run.

use std::path::PathBuf;

use thiserror::Error;

/// Why a run ended without a model.
#[derive(Debug, Error)]
pub enum TrainError {
    /// A file could not be read or written.
    #[error("cannot {verb} {}", path.display())]
    File {
        /// What was tried: `read`, `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file was read, but does not hold what it should.
    #[error("{} is not usable: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what helps.
        reason: String,
    },
    /// The run was asked for something that cannot be.
    #[error("cannot train: {0}")]
    Setting(String),
    /// The tokenizer could not be trained, read or applied.
    #[error("tokenizer failed: {0}")]
    Tokenizer(String),
    /// A tensor operation failed; a defect, not a fault of the data.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The loss is not a number any more.
    #[error("loss is {0} at step {1}; resume from the last checkpoint with a lower learning rate")]
    Diverged(f32, u64),
    /// Somebody asked the run to end. What it had learnt is in its checkpoint, if it keeps one; no model was written.
    #[error("stopped; the same run goes on from its checkpoint")]
    Stopped,
}

impl TrainError {
    pub(crate) fn read(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb: "read", path, source }
    }

    pub(crate) fn write(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { verb: "write", path, source }
    }

    pub(crate) fn content(path: impl Into<PathBuf>, reason: impl ToString) -> Self {
        Self::Content { path: path.into(), reason: reason.to_string() }
    }
}

/// Result of this crate.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;
