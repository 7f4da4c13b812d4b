//! The ranking models: two-stage LinUCB, which chooses and explores, and PIER, which arranges.
//!
//! Pure: no I/O, no clock, and randomness only from seeds that the caller gives. What the papers leave open is decided where it matters, with
//! section and equation; `docs/ranking.md` has the reasons and the figures.

mod error;
pub mod linucb;
pub mod pier;
mod random;
mod sealed;

pub use error::{RankerError, SlateError, SnapshotError, WeightsError};
pub use random::seed;
