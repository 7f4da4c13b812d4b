//! The stage contract, the loop, and the two borders (Log, Store) with their embedded twins.

mod clock;
pub mod contract;
pub mod embedded;
mod limits;
mod log;
pub mod metric;
mod retry;
mod run;
mod shutdown;
mod stage;
mod store;
mod tally;

pub use clock::{Clock, Clocks, ManualClock, SystemClock};
pub use embedded::{DeadLetterFilter, Embedded, EmbeddedConfig, StoredDeadLetter};
pub use limits::outside;
pub use log::{Backlog, Commit, DeadLetter, Headers, Log, LogError, Outgoing, Received};
pub use retry::RetryConfig;
pub use run::{BreakerConfig, LoopConfig, StageEnv, StageStopped, run_stage};
pub use shutdown::Shutdown;
pub use stage::{DropReason, Input, Passed, Rejection, Settled, Stage, StageError, Stamp, Verdict, Write};
pub use store::{Erasure, StageResult, Store, StoreError, StoredPage};
pub use tally::{Phase, StageSnapshot, StageStats, Tally};
