//! The stage contract, the loop, and the two borders (Log, Store) with their embedded twins.

mod stage;
mod store;

pub use stage::{DropReason, Input, Passed, Rejection, Stage, StageError, Stamp, Verdict, Write};
pub use store::{StageResult, Store, StoreError, StoredPage};
