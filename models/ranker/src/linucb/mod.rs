//! Synchronised two-stage LinUCB (Hron, Krauth, Jordan and Kilbertus: Exploration in two-stage recommender systems, 2020).
//!
//! [`Posterior`] is a belief over the weights of a linear reward (Eq. 2), [`LinUcb`] a stage that chooses by mean and bonus (Eq. 3),
//! [`TwoStage`] nominators before a ranker (section 2, Algorithm 1), [`snapshot`] its form in bytes, and [`experiment`] the paper's section 3.1.

pub mod experiment;
mod policy;
mod posterior;
pub mod snapshot;
mod stage;

pub use policy::{Item, Nomination, Placed, RankedList, Shown, Sync, TwoStage};
pub use posterior::Posterior;
pub use stage::{LinUcb, Score, sqrt_beta};

/// Largest magnitude of a feature; most are about 1.
pub const FEATURE_MAX: f64 = 1_000.0;
/// Largest magnitude of a reward; most are within 0…1.
pub const REWARD_MAX: f64 = 1_000.0;
