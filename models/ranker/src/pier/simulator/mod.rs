//! A shop whose shoppers answer to the arrangement of a slate, and whose truth is known: no public data holds whole pages with the clicks that
//! other arrangements would have had.
//!
//! Three parts that know no more than they may: [`Catalogue`] is what everybody sees, the log is made from it by a randomised policy that
//! never sees the truth, and [`Truth`] gives every order of every slate its click probabilities. Everything is a function of seeds.

mod catalogue;
mod log;
mod shop;
mod truth;

pub use catalogue::{CandidateSet, Catalogue, CatalogueSize, FIELDS, Product};
pub use log::{Page, arrange, page, propensity};
pub use shop::{Shop, ShopSize};
pub use truth::{LOOKS, Shopper, Truth};

/// Items of a slate; all of them are shown, in one of 120 orders.
pub const SLATE: usize = 5;
/// Time between two pages of a shopper, in milliseconds: a day, give or take half of it.
pub const SESSION_MS: i64 = 86_400_000;
