//! What must hold across crates, one module per subject.

mod architecture;
mod convergence;
mod fleet;
mod generations;
mod hostile;
mod import_docs;
mod lab;
mod lanes;
mod market;
mod path;
mod program;
mod ranking;
mod real_sides;
mod replay;
mod serving;
mod web;
