//! The ranking service (paper 4.5): reads a shopper's page, ranks its placements and their products for this request, and learns from what
//! shoppers do with them.
//!
//! [`Ranking::storefront`] serves: page and history are read, each placement's pool is what the page has and what [`Preparer`] found beside the
//! requests (`pool`, `lookups`), nominators choose and the ranker orders (`rank`, over the features of [`features`]), the first rows are arranged as a whole ([`Rerank`], by [`Pier`]),
//! and each slate goes out sealed ([`slate`]), so
//! that whoever hears of it needs no memory of it. [`feedback::read`] takes it back in, [`Learner`] learns from it and keeps policies by
//! version, and [`Ranking::refresh`] takes them up while requests go on.

mod answer;
mod cold;
mod compose;
mod config;
pub mod features;
pub mod feedback;
mod kept;
mod learner;
mod ledger;
mod lookups;
pub mod metric;
mod pier;
mod pool;
mod prepare;
mod rank;
mod rerank;
mod serving;
mod shopper;
pub mod slate;
mod storefront;

pub use answer::{KeywordCard, ProductCard, Storefront, StorefrontPlacement, StorefrontProduct};
pub use cold::merchandised;
pub use config::RankingConfig;
pub use kept::{KeptPolicy, can_be_put_back};
pub use learner::Learner;
pub use pier::{Pier, RowInput, vocabulary};
pub use prepare::{Checks, Preparer};
pub use rerank::{ARRANGED, Rerank, Row, Seen};
pub use storefront::{Ground, History, Ranking, RankingError, Request, Turn};

/// The service's description for programs (OpenAPI 3.1, JSON).
pub const OPENAPI: &str = include_str!("../openapi.json");
