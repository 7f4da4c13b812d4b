//! The serving kernel: it says what the candle model says, selects what FPSM selects, and refuses what cannot be.

mod exact;
mod refusals;
mod scores;
mod world;
