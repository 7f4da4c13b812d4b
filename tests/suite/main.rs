//! What must hold across crates, one module per subject.

mod architecture;
mod convergence;
mod fleet;
mod market;
mod path;
mod program;
mod real_sides;
mod web;
