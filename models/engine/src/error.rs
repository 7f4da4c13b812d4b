//! What can go wrong in the engine, told so that somebody can act on it.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why the engine could not do what it was asked. The text holds the cause, so there is no source to print it again.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A file is missing, cut short, or not what its name says.
    #[error("cannot use {}: {what}; {remedy}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A model's configuration or weights do not fit together.
    #[error("cannot build the model: {0}")]
    Model(String),
    /// A device that does not exist here.
    #[error("cannot use device {name}: {what}")]
    Device {
        /// The device as it was asked for.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The tensor library refused an operation or the device failed.
    #[error("tensor operation failed: {0}")]
    Tensor(candle_core::Error),
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error)
    }
}

impl EngineError {
    pub(crate) fn file(path: &Path, what: impl ToString, remedy: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), what: what.to_string(), remedy: remedy.into() }
    }

    pub(crate) fn model(what: impl Into<String>) -> Self {
        Self::Model(what.into())
    }
}

/// The engine's result.
pub type Result<T, E = EngineError> = std::result::Result<T, E>;
