//! What can go wrong with a market directory.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why a market directory did not do what it was asked. The text holds the cause, so there is no source to print it again.
#[derive(Debug, Error)]
pub enum MarketError {
    /// There is no market in the directory.
    #[error(
        "no market in {0}: make one with `endcap import` or let `endcap up` generate the demo market; beside processes that run, name the data directory of one of them"
    )]
    Absent(PathBuf),
    /// The directory was written by a newer version.
    #[error(
        "market in {dir} has format {found}, this version reads up to {known}: use the newer version, or import into a new directory"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// Format found.
        found: i64,
        /// Newest format that this version knows.
        known: i64,
    },
    /// There is no index over the terms yet.
    #[error("the keyword corpus in {0} is not indexed: build the index first")]
    NoIndex(PathBuf),
    /// The index and the question differ in their dimensions.
    #[error("the index holds vectors of {index} dimensions, {asked} were asked for: build the index with the encoder in use")]
    Dimensions {
        /// Dimensions of the index.
        index: usize,
        /// Dimensions of the question.
        asked: usize,
    },
    /// Another process is writing the directory.
    #[error("market in {0} is being written by another process: wait until it has finished")]
    Busy(PathBuf),
    /// A file of the index is not as it was written.
    #[error("cannot use index file {path}: {what}: start `endcap up` on this market, it makes the file again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The market's database is none, or damaged.
    #[error(
        "cannot read market database {path}: {fault}: move it away and import again, or remove the whole directory of a demo \
         market, which `endcap up` writes anew"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        fault: rusqlite::Error,
    },
    /// The file in the market database's place is another program's.
    #[error("{0} is a database, but no market's: name another directory")]
    Foreign(PathBuf),
    /// The database did not do what it was asked.
    #[error("market database failed: {0}")]
    Database(rusqlite::Error),
    /// A file could not be read or written.
    #[error("cannot access {path}: {fault}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        fault: std::io::Error,
    },
    /// The nearest-neighbour index failed.
    #[error("nearest-neighbour index failed: {0}")]
    Index(String),
    /// The encoder failed while terms were embedded.
    #[error("cannot embed terms: {0}")]
    Encoder(String),
    /// Something stored cannot be read.
    #[error("market holds unreadable data: {0}: import the catalogue again into a new directory")]
    Corrupt(String),
    /// A product, category or term that was handed over cannot be stored.
    #[error("cannot store {0}")]
    Unfit(String),
}

impl MarketError {
    pub(crate) fn file(path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |fault| Self::File { path, fault }
    }
}

impl From<rusqlite::Error> for MarketError {
    fn from(fault: rusqlite::Error) -> Self {
        Self::Database(fault)
    }
}
