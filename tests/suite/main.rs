//! What must hold across crates, one module per subject.

mod architecture;
mod market;
mod path;
mod program;
mod web;
