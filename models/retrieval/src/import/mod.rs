//! What brings catalogues, keywords and purchases in: files of other houses' forms, streamed, row by row.
//!
//! A row that cannot be taken is counted and written to `rejects-<file>.tsv` with its line number and the reason, and never stops an
//! import; ids to withdraw that no product has go to `rejects-withdraw-<file>.tsv`. A file that is not of the form it is said to be is one error before anything is changed. An import is one transaction:
//! readers see all of it or nothing, and one that was killed leaves nothing behind.

mod catalog;
mod completejourney;
mod events;
mod keywords;
mod rejects;
mod source;

use std::{
    io,
    path::{Path, PathBuf},
    str::FromStr,
};

use thiserror::Error;

pub use catalog::{Offer, catalog, products, withdraw};
pub use events::{Events, events, purchases};
pub use keywords::{keywords, terms};
pub use source::Rows;

use crate::{CatalogueChange, MarketError};

/// Form of a catalogue file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CatalogFormat {
    /// Tab-separated products of Open Food Facts; ids become `off:<barcode>`.
    OpenFoodFacts,
    /// Tab-separated products of Complete Journey; ids become `cj:<product_id>`.
    CompleteJourney,
    /// One JSON object a line, as [`endcap_schemas::Product`], with an optional `"withdrawn": true`.
    EndcapJson,
}

/// Form of a keyword file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeywordFormat {
    /// Tab-separated `term`, `band`, `tier`.
    Tsv,
    /// One JSON object a line, as [`endcap_schemas::Term`].
    EndcapJson,
}

/// Form of an event file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventFormat {
    /// Tab-separated purchase lines of Complete Journey; shoppers become `household-<id>`, products `cj:<product_id>`.
    CompleteJourney,
    /// One JSON object a line, as [`endcap_schemas::ShopperEvent`].
    EndcapJson,
}

macro_rules! named {
    ($format:ty, $what:literal, $($name:literal => $value:ident),+) => {
        impl $format {
            /// Names as the command line writes them.
            pub const NAMES: &[&str] = &[$($name),+];
        }

        impl FromStr for $format {
            type Err = ImportError;

            fn from_str(name: &str) -> Result<Self, ImportError> {
                match name {
                    $($name => Ok(Self::$value),)+
                    _ => Err(ImportError::Format { what: $what, name: name.to_owned(), known: Self::NAMES.join(", ") }),
                }
            }
        }
    };
}

named!(CatalogFormat, "catalogue", "openfoodfacts" => OpenFoodFacts, "completejourney" => CompleteJourney, "endcap-json" => EndcapJson);
named!(KeywordFormat, "keyword", "tsv" => Tsv, "endcap-json" => EndcapJson);
named!(EventFormat, "event", "completejourney" => CompleteJourney, "endcap-json" => EndcapJson);

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes of the file (as it lies on disk) that are read.
    pub bytes_done: u64,
    /// Bytes of the file; 0 where nobody knows, as of a pipe.
    pub bytes_total: u64,
    /// Rows read so far.
    pub rows: u64,
    /// Rows of them that were rejected.
    pub rejected: u64,
}

/// What an import is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Rows are read.
    Reading,
    /// Categories, popularity and the full-text index are brought up to date; no rows to count.
    Deriving,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// Rows taken.
    pub accepted: u64,
    /// Rows that could not be taken.
    pub rejected: u64,
    /// What changed in the market.
    pub change: CatalogueChange,
    /// Where the rejected rows are listed; `None` when there were none.
    pub rejects_file: Option<PathBuf>,
    /// Ids to withdraw that no product has.
    pub unknown: Unknown,
}

/// Ids that were to be withdrawn and that no product has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unknown {
    /// How many.
    pub count: u64,
    /// The first few.
    pub first: Vec<String>,
    /// Where all are listed; `None` when there were none.
    pub list: Option<PathBuf>,
}

/// Why an import did not happen; the market is as it was. The text holds the cause, so there is no source to print it again.
#[derive(Debug, Error)]
pub enum ImportError {
    /// There is no such format.
    #[error("no {what} format is called `{name}`: known are {known}")]
    Format {
        /// Catalogue, keyword or event.
        what: &'static str,
        /// The name given.
        name: String,
        /// The names known.
        known: String,
    },
    /// The file is not of the form it is said to be.
    #[error("{file} is not of this format: expected {expected}, found {found}")]
    WrongForm {
        /// The file.
        file: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file cannot be read to its end.
    #[error("cannot read {file} at line {line}: {fault}")]
    Read {
        /// The file.
        file: PathBuf,
        /// Line that could not be read.
        line: u64,
        /// Why.
        fault: io::Error,
    },
    /// The market cannot be written.
    #[error(transparent)]
    Market(#[from] MarketError),
}

impl From<rusqlite::Error> for ImportError {
    fn from(fault: rusqlite::Error) -> Self {
        Self::Market(fault.into())
    }
}

/// Where the rows of `file` that a market in `dir` could not take are listed: `rejects-<file>.tsv`.
pub fn rejects_file(dir: &Path, file: &Path) -> PathBuf {
    list_in(dir, "rejects", file)
}

/// Where the ids of `file` that were to be withdrawn from a market in `dir`, and that no product has, are listed:
/// `rejects-withdraw-<file>.tsv`, as a catalogue may lie in a file of the same name.
pub fn unknown_file(dir: &Path, file: &Path) -> PathBuf {
    list_in(dir, "rejects-withdraw", file)
}

fn list_in(dir: &Path, kind: &str, file: &Path) -> PathBuf {
    dir.join(format!("{kind}-{}.tsv", file.file_name().unwrap_or_default().to_string_lossy()))
}
