//! What must hold across crates, one module per subject.

mod architecture;
mod path;
mod program;
