//! What can be wrong with what this crate is given. Nothing here mends itself by trying again.

use thiserror::Error;

use crate::linucb::{FEATURE_MAX, REWARD_MAX};

/// Why a request or a lesson was refused. The policy is as it was before.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum RankerError {
    /// An item has more or fewer features than a stage takes.
    #[error("item {item} has {got} features for {stage}, which takes {wanted}: it was made for another policy")]
    Shape {
        /// Id of the item.
        item: u64,
        /// The stage, such as `the ranker` or `nominator 2`.
        stage: String,
        /// Features that it has.
        got: usize,
        /// Features that the stage takes.
        wanted: usize,
    },
    /// A feature is no number, or far from what features are.
    #[error("feature {place} of item {item} for {stage} is {value}: features are finite and within ±{FEATURE_MAX}")]
    Feature {
        /// Id of the item.
        item: u64,
        /// The stage.
        stage: String,
        /// Which feature, from 0.
        place: usize,
        /// What it is.
        value: f64,
    },
    /// A reward is no number, or far from what rewards are.
    #[error("reward of item {item} is {value}: rewards are finite and within ±{REWARD_MAX}")]
    Reward {
        /// Id of the item.
        item: u64,
        /// What it is.
        value: f64,
    },
    /// An item has features for more or fewer nominators than there are.
    #[error("item {item} has features for {got} nominators, the policy has {wanted}: it was made for another policy")]
    Nominators {
        /// Id of the item.
        item: u64,
        /// Nominators that it has features for.
        got: usize,
        /// Nominators of the policy.
        wanted: usize,
    },
    /// A nomination names a nominator that the policy does not have.
    #[error("there is no nominator {nominator}: the policy has {have}, counted from 0")]
    NoNominator {
        /// The nominator that was named.
        nominator: usize,
        /// How many there are.
        have: usize,
    },
}

/// Why the bytes are no policy that can be used. The last good one should go on serving.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// The bytes begin with something else.
    #[error("not a snapshot of a ranking policy: its first bytes are of something else")]
    Foreign,
    /// Another release wrote it.
    #[error("snapshot has the form {got} and this release reads form {reads}: have the learner write it anew")]
    Form {
        /// Its form.
        got: u32,
        /// The form that is read.
        reads: u32,
    },
    /// It is shorter or longer than it says.
    #[error("snapshot has {got} bytes and says that it has {wanted}: copy it again, whole")]
    Length {
        /// Bytes that there are.
        got: u64,
        /// Bytes that there should be.
        wanted: u64,
    },
    /// Its checksum does not fit its bytes.
    #[error("snapshot is damaged: its checksum does not fit its bytes; copy it again, or put an earlier one back")]
    Damaged,
    /// Its features mean something else.
    #[error("snapshot is over version {got} of the features and this release computes version {wanted}: train on the new ones")]
    Features {
        /// The version it was made for.
        got: u32,
        /// The version that is computed.
        wanted: u32,
    },
    /// The bytes are whole, but no policy.
    #[error("snapshot holds no policy: {0}")]
    Content(&'static str),
}

/// Why a re-ranking model could not be made, trained or asked.
#[derive(Debug, Error)]
pub enum PierError {
    /// An item does not fit the vocabulary.
    #[error("item {item} has fields that the vocabulary does not have: count the values of each field before")]
    Item {
        /// Its number.
        item: usize,
    },
    /// A page names an item or a shopper that is not there.
    #[error("page {page} names an item or a shopper that is not there")]
    Page {
        /// Which of the pages as they were given, from 0.
        page: usize,
    },
    /// A part of the data is empty.
    #[error("there is no page {0}: give pages of a longer time")]
    NoPages(&'static str),
    /// Bytes that are no weights of this model.
    #[error("cannot read weights: {0}; they were made for another model or are damaged: train it anew")]
    Weights(String),
    /// Whoever listened wanted no more.
    #[error("training was stopped")]
    Stopped,
    /// The tensors' own error: a broken promise of this crate.
    #[error("cannot compute")]
    Tensor(#[from] candle_core::Error),
}
