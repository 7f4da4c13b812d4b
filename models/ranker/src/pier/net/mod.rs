//! What the models are made of: weights as plain numbers, a few fused operations with gradients on candle (f32, CPU, one thread), and Adam.
//!
//! Operations are few and large: candle's cost for each is what a small model would spend its time on.

mod adam;
mod layers;
mod ops;
mod weights;

pub(crate) use adam::Adam;
pub(crate) use layers::{Graph, Mlp};
pub(crate) use ops::{angle, cross_entropy, self_attention, sigmoid, standardise};
pub use weights::Weights;
