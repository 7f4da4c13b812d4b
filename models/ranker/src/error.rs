//! What can be wrong with what this crate is given. Nothing here mends itself by trying again.

use thiserror::Error;

use crate::{
    linucb::{FEATURE_MAX, REWARD_MAX},
    pier::serve::{ITEMS_MAX, ORDERS_MAX, POINT_MAX, WEIGHT_MAX},
};

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

/// Why bytes or tensors are no weights that a kernel can serve with. The last good ones should go on serving.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WeightsError {
    /// The bytes begin with something else.
    #[error("not the weights of a re-ranking model: the first bytes are of something else")]
    Foreign,
    /// Another release wrote them.
    #[error("weights have the form {got} and this release reads form {reads}: write them anew")]
    Form {
        /// Their form.
        got: u32,
        /// The form that is read.
        reads: u32,
    },
    /// They are shorter or longer than they say.
    #[error("weights have {got} bytes and say that they have {wanted}: copy them again, whole")]
    Length {
        /// Bytes that there are.
        got: u64,
        /// Bytes that there should be.
        wanted: u64,
    },
    /// The checksum does not fit the bytes.
    #[error("weights are damaged: their checksum does not fit their bytes; copy them again, or put earlier ones back")]
    Damaged,
    /// What they say of fields, shoppers and places cannot be.
    #[error("weights are of no model: {0}; write them anew")]
    Vocabulary(&'static str),
    /// They hold no tensors.
    #[error("weights hold no tensors: {0}; train the model anew")]
    Tensors(String),
    /// A tensor is missing or has another shape than the whole OCPM has.
    #[error("tensor `{name}` is {}, not {wanted:?}: the weights are of another model or another vocabulary", shape_of(got.as_deref()))]
    Shape {
        /// Its name.
        name: String,
        /// Its shape; none where it is missing.
        got: Option<Vec<usize>>,
        /// The shape that it should have.
        wanted: Vec<usize>,
    },
    /// A tensor has a number that is none, or beyond all measure.
    #[error("tensor `{name}` has a number that is none or beyond ±{WEIGHT_MAX}: train the model anew")]
    Number {
        /// Its name.
        name: String,
    },
}

/// Why a slate was not scored. Nothing has changed; whoever asked can show the slate in the order in which it came.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum SlateError {
    /// There are too few or too many items.
    #[error("slate has {got} items: it needs {shown} at least and {ITEMS_MAX} at most")]
    Items {
        /// Items that it has.
        got: usize,
        /// Items of a page.
        shown: usize,
    },
    /// There are more or fewer numbers of something than there should be.
    #[error("slate has {got} {what}, not {wanted}: it was made for another model")]
    Count {
        /// What it is that is counted.
        what: &'static str,
        /// How many there are.
        got: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A field has a value that the model does not know.
    #[error("field {field} of item {item} is {value}: the model knows {values} values of it, counted from 0")]
    Value {
        /// Place of the item in the slate, from 0.
        item: usize,
        /// Which field, from 0.
        field: usize,
        /// Its value.
        value: u32,
        /// How many values are known.
        values: u32,
    },
    /// The model does not know the shopper.
    #[error("shopper {shopper} is not known: the model has {shoppers}, counted from 0; ask without one")]
    Shopper {
        /// The shopper's number.
        shopper: u32,
        /// How many are known.
        shoppers: u32,
    },
    /// Point-wise log-odds are no number, or far from what they are.
    #[error("point-wise log-odds of item {item} are {value}: they are finite and within ±{POINT_MAX}")]
    Point {
        /// Place of the item in the slate, from 0.
        item: usize,
        /// What they are.
        value: f32,
    },
    /// There are too many orders to list them all.
    #[error("{shown} of {items} items have more orders than {ORDERS_MAX}: name some of them")]
    TooMany {
        /// Items of the slate.
        items: usize,
        /// Items of a page.
        shown: usize,
    },
    /// There is no order to score.
    #[error("there is no order to score: name one at least")]
    NoOrders,
    /// An order does not fit the slate.
    #[error("order {order} is not of {shown} different items out of {items}")]
    Order {
        /// Which order, from 0.
        order: usize,
        /// Items of a page.
        shown: usize,
        /// Items of the slate.
        items: usize,
    },
    /// A history was encoded by other weights.
    #[error("the history was encoded by other weights: encode it anew")]
    Stale,
}

fn shape_of(shape: Option<&[usize]>) -> String {
    shape.map_or_else(|| "missing".to_owned(), |shape| format!("{shape:?}"))
}
