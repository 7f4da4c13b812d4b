//! OCPM and FPSM for serving: the arithmetic of the models in `nets`, without tensors, for one slate at a time.
//!
//! A [`Kernel`] holds packed weights. A [`History`] is what they make of a shopper's clicked pages: whoever asks keeps it, as it is good for
//! every slate of that shopper. A [`Scratch`] takes the numbers of one thread; with one that has seen a slate of that size, scoring allocates
//! nothing. All orders of a slate are scored with exact sharing: what two orders have in common is worked out once (`attention.rs` says how).
//!
//! Log-odds and probabilities are those of the candle model to 10⁻⁵; a test holds them together, over random weights and slates of both sizes
//! of the paper.

mod arrange;
mod attention;
mod file;
mod kernel;
mod lanes;
mod layer;
mod request;
mod score;
mod select;

pub use arrange::Arranged;
pub use file::{read, write};
pub use kernel::Kernel;
pub use request::{ClickedPage, History, Orders, RerankRequest};
pub use score::{Scores, Scratch};
pub use select::{Interest, Selector, Wanted};

/// Most items of a slate.
pub const ITEMS_MAX: usize = 64;
/// Up to so many orders all are scored: then the best is found for sure, at a cost that a page can bear.
pub const EXACT_MAX: usize = 1_000;
/// Most orders that are listed.
pub const ORDERS_MAX: usize = 100_000;
/// Most fields of an item.
pub const FIELDS_MAX: usize = 32;
/// Point-wise log-odds beyond these are a mistake: they would mean that nobody knows of a click since there are shops.
pub const POINT_MAX: f32 = 100.0;
/// A weight beyond this is a mistake.
pub const WEIGHT_MAX: f32 = 1e4;
