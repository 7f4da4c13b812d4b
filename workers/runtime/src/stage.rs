//! The stage contract: what a worker is.
//!
//! A stage turns a batch of inputs into one verdict each. It reads no topic and writes none; the loop does. It keeps nothing between
//! batches that a restart would lose.

use std::fmt;

use endcap_inference::ModelError;
use endcap_schemas::{Message, UserKey};
use serde_json::Value;
use thiserror::Error;

use crate::StoreError;

/// A worker of the path.
pub trait Stage: Send {
    /// What it takes.
    type In: Message;
    /// What it passes on.
    type Out: Message;
    /// Its name in metrics, groups and the store.
    const NAME: &'static str;

    /// Gives every input of `batch` exactly one verdict, in order.
    ///
    /// # Errors
    /// [`StageError::Unavailable`] when a dependency is down (the loop retries the batch); [`StageError::Failed`] when the batch as a
    /// whole cannot be done (the loop halves it until the culprit is alone); [`StageError::Faltered`] when it may be either;
    /// [`StageError::Broken`] when no record can be done any more (the loop ends).
    fn process(&mut self, batch: &[Input<Self::In>]) -> Result<Vec<Verdict<Self::Out>>, StageError>;

    /// Roughly how much work `value` is, in the unit of [`LoopConfig::batch_tokens_max`](crate::LoopConfig); 1 where records are alike.
    fn tokens(&self, _value: &Self::In) -> usize {
        1
    }
}

/// One record that a stage is asked about.
#[derive(Debug, Clone)]
pub struct Input<T> {
    /// The decoded value.
    pub value: T,
    /// Partition it came from.
    pub partition: i32,
    /// Its place in the partition.
    pub offset: i64,
    /// When the log took it, ms.
    pub appended_ms: i64,
}

/// What becomes of an input.
#[derive(Debug)]
pub enum Verdict<Out> {
    /// It is passed on.
    Passed(Box<Passed<Out>>),
    /// It ends here, as it should.
    Dropped(DropReason),
    /// It ends here, as it should, and something is stored.
    Settled(Box<Settled>),
    /// It cannot be processed: a dead letter.
    Rejected(Rejection),
}

/// An input that is passed on.
#[derive(Debug)]
pub struct Passed<Out> {
    /// What the next stage gets.
    pub out: Out,
    /// How it came about, for `explain`: prompt, candidates, output, reasons.
    pub explanation: Value,
    /// What else is stored before the commit.
    pub writes: Vec<Write>,
    /// What it adds to the log's tallies, summed in the commit's transaction: name → amount. Empty where nothing is counted.
    pub counters: Vec<(&'static str, u64)>,
}

/// An input that ends here, as it should, and leaves writes behind: an erasure, the withdrawal of a page.
#[derive(Debug)]
pub struct Settled {
    /// Why nothing is passed on; counted as a drop.
    pub reason: DropReason,
    /// How it came about, for `explain`; null where nothing may be kept.
    pub explanation: Value,
    /// What is stored before the commit.
    pub writes: Vec<Write>,
    /// What it adds to the log's tallies, as [`Passed::counters`].
    pub counters: Vec<(&'static str, u64)>,
}

/// A write to the store. May be repeated and may arrive in any order: the newest stamp wins.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The context stage's fold state of a user.
    State {
        /// Whose.
        user: UserKey,
        /// When.
        stamp: Stamp,
        /// Encoded by the context stage.
        state: Vec<u8>,
    },
    /// A page (or its withdrawal).
    Page {
        /// Whose.
        user: UserKey,
        /// When.
        stamp: Stamp,
        /// The page as the store holds it; `None` withdraws the older one.
        page: Option<Vec<u8>>,
    },
    /// Everything of a user is removed up to the stamp.
    Erase {
        /// Whose.
        user: UserKey,
        /// Up to when, beyond the largest skew allowed.
        stamp: Stamp,
        /// Where in the log it was asked for: partition and offset; `None` where it was not asked for in the log.
        at: Option<(i32, i64)>,
    },
}

/// Write timestamp: `context_ms × 1000 + generation`. Greater wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

impl Stamp {
    /// The stamp of a context under a generation (0…999).
    pub fn of(context_ms: i64, generation: i32) -> Self {
        Self(context_ms * 1_000 + i64::from(generation.clamp(0, 999)))
    }
}

/// Why an input ends at a stage although nothing is wrong with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// A newer context of the same user waits behind it.
    Superseded,
    /// Its id was seen before.
    Duplicate,
    /// Nobody needs its page any more.
    Expired,
    /// The user does not consent.
    NoConsent,
    /// The user was erased after it, or by it.
    Erased,
    /// Too little was left for a page; the older one stays or is withdrawn.
    BelowFloor,
    /// The ranking policy knows it now.
    Learnt,
}

impl DropReason {
    /// The reason as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            DropReason::Superseded => "superseded",
            DropReason::Duplicate => "duplicate",
            DropReason::Expired => "expired",
            DropReason::NoConsent => "no_consent",
            DropReason::Erased => "erased",
            DropReason::BelowFloor => "below_floor",
            DropReason::Learnt => "learnt",
        }
    }
}

/// Why an input becomes a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// The kind of fault, as a metric label: `malformed`, `unknown_product`, `future`, ….
    pub kind: &'static str,
    /// What is wrong and what would mend it.
    pub message: String,
}

/// Why a batch could not be processed.
#[derive(Debug, Error)]
pub enum StageError {
    /// A dependency is down: retry.
    #[error("{0} is unavailable: {1}")]
    Unavailable(&'static str, String),
    /// A dependency answers with a failure that may be its own or the records': retry a few times, then take it as the records'.
    #[error("{0} failed: {1}")]
    Faltered(&'static str, String),
    /// The batch cannot be done as a whole.
    #[error("batch failed: {0}")]
    Failed(String),
    /// No record can be done until somebody mends the cause, which names its remedy: stop.
    #[error("{0}")]
    Broken(String),
}

impl StageError {
    /// Of a `model` that has no answer.
    pub fn model(model: &'static str, error: &ModelError) -> Self {
        match error {
            ModelError::Gone => StageError::Broken(format!("{model}: {error}; find its panic in the log and start again")),
            ModelError::Failed(_) | ModelError::Request(_) => StageError::Faltered(model, error.to_string()),
        }
    }

    /// Of a dependency whose fault mends without the record.
    pub fn unavailable(what: &'static str, error: impl fmt::Display) -> Self {
        StageError::Unavailable(what, error.to_string())
    }
}

impl From<StoreError> for StageError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(cause) => StageError::Unavailable("store", cause),
            StoreError::TooLarge(_) => StageError::Failed(error.to_string()),
            // No record is to blame for it, and the next one would meet it too.
            StoreError::Corrupt(_) => StageError::Broken(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_an_answer_makes_a_stage_falter_and_one_that_is_gone_ends_it() {
        let cases = [
            (ModelError::Failed("out of memory".into()), "encoder failed: model failed: out of memory"),
            (ModelError::Request("too long".into()), "encoder failed: too long"),
            (ModelError::Gone, "encoder: model thread has ended; find its panic in the log and start again"),
        ];
        for (error, text) in cases {
            let gone = matches!(error, ModelError::Gone);
            let stopped = StageError::model("encoder", &error);
            assert_eq!((stopped.to_string().as_str(), matches!(stopped, StageError::Broken(_))), (text, gone));
        }
    }
}
