//! The ground of PIER (Shi et al.: PIER: Permutation-Level Interest-Based End-to-End Re-ranking Framework in E-commerce, KDD 2023): every order
//! of a slate, a simulator that knows each order's true value, the selection of orders by SimHash (FPSM, section 4.1), and what a selection is
//! worth.
//!
//! Nothing here is trained yet: the embeddings that FPSM hashes are the caller's.

pub mod fpsm;
mod measure;
mod orders;
pub mod simulator;

pub use measure::{best, hits, random_choice, value_ratio};
pub use orders::{Order, orders};
