//! PIER (Shi et al.: PIER: Permutation-Level Interest-Based End-to-End Re-ranking Framework in E-commerce, KDD 2023).
//!
//! The selection of orders by SimHash (FPSM, section 4.1), the evaluation of orders (OCPM, section 4.2) and its baselines, their training
//! (section 4.3), generators of candidates (section 5.3.1), what a selection is worth, and a simulator that knows each order's true value.
//! On candle, f32, CPU, one thread; the same seeds give the same weights on the same machine. [`serve`] scores without candle.

mod batch;
mod contrast;
mod dataset;
pub mod fpsm;
mod generate;
mod measure;
mod model;
mod net;
mod nets;
mod orders;
mod selection;
pub mod serve;
pub mod simulator;
mod train;

pub use crate::error::PierError;
pub use contrast::{Contrast, Joint};
pub use dataset::{Cuts, Dataset, HISTORY, PLACES, PageView, Visit, Vocabulary};
pub use generate::{Found, beam, guided};
pub use measure::{auc, best, best_first, best_of, hits, log_loss, random_choice, value_ratio};
pub use model::{Model, Reader, log_odds, of_page, probability};
pub use net::Weights;
pub use nets::{DIMS, Kind, Ocpm};
pub use orders::{Order, count, orders};
pub use selection::{Fpsm, FpsmSetting};
pub use train::{Progress, Schedule, known, train};
