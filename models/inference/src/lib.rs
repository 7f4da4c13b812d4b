//! What the stages know of models: requests and answers, the text of prompts, and the thread that batches. No candle here.
//!
//! A stage holds a [`Handle`]; behind it a thread owns the model and works through a bounded channel. The engine
//! (or a twin in tests) implements [`Model`].

mod batcher;
pub mod prompts;
mod requests;
pub mod verdicts;

pub use batcher::{Handle, Limits, spawn};
pub use requests::{
    Candidates, ChooseKeywords, ChosenKeywords, Embed, Embedding, NEIGHBOURS, Pair, Relevance, TokenCounts, WriteThemes,
    WrittenThemes,
};

use thiserror::Error;

/// A model that answers batches of requests.
///
/// The answer to a request must not depend on the company it has in its batch (a test of every model shows it).
pub trait Model: Send + 'static {
    /// What it is asked.
    type Request: Send + 'static;
    /// What it answers.
    type Answer: Send + 'static;

    /// Tokens that `request` costs, for batching; an estimate is enough.
    fn tokens(&self, request: &Self::Request) -> usize;

    /// Answers `batch`, one answer per request, in order.
    ///
    /// # Errors
    /// [`ModelError::Failed`] when the device fails. What is wrong with one request alone is that request's `Err`.
    fn answer(&mut self, batch: Vec<Self::Request>) -> Result<Vec<Result<Self::Answer, ModelError>>, ModelError>;

    /// Name and version, e.g. `demo-keywords@3f9a…`: part of cache keys and of every page.
    fn version(&self) -> &str;
}

/// Why there is no answer.
#[derive(Debug, Clone, Error)]
pub enum ModelError {
    /// The request cannot be answered, now or later.
    #[error("{0}")]
    Request(String),
    /// The model or its device failed.
    #[error("model failed: {0}")]
    Failed(String),
    /// The model's thread has ended.
    #[error("model thread has ended")]
    Gone,
}
