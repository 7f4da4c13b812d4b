//! Retrieval: the product catalogue and the keyword corpus of a market, their indexes, and what brings them in.
//!
//! A *market directory* holds `market.sqlite` (products, categories, terms, full-text index over product words), one file of
//! term vectors and one nearest-neighbour index over them. [`MarketDir`] writes, [`Market`] reads: any number of processes may
//! read while one writes, and a reader notices a new catalogue or index without a restart. [`Market::snapshot`] gives a
//! [`Snapshot`], which never changes while it is held: everything asked of it comes from one version.

mod build;
mod categories;
mod derive;
mod dir;
mod error;
mod facts;
pub mod import;
mod index;
mod market;
mod per_version;
mod pool;
mod rows;
mod search;
mod snapshot;
mod vectors;
pub mod words;
mod write;

pub use build::{Encoder, IndexOptions, IndexProgress, IndexReport, build_index};
pub use dir::MarketDir;
pub use error::MarketError;
pub use facts::{Facts, facts_of};
pub use market::Market;
pub use per_version::PerVersion;
pub use search::{Banned, Filter, ProductWords, has_disliked, plan_words};
pub use snapshot::{Counts, Near, PRODUCTS_MAX, Snapshot};
pub use write::{CatalogueChange, write_demo};
