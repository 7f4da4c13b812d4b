//! The stage contract, the loop, and the borders (Log, Broker, Store, Policies, StoreOverview) with their embedded twins.

mod broker;
mod clock;
pub mod contract;
pub mod embedded;
mod limits;
mod log;
pub mod metric;
mod overview;
mod policies;
pub mod real_servers;
mod retry;
mod run;
mod secret;
mod shutdown;
mod stage;
mod store;
mod tally;
mod unique;

pub use broker::{Broker, DeadLetterFilter, DeadLetterId, GroupState, INGEST, StoredDeadLetter};
pub use clock::{Clock, Clocks, ManualClock, SystemClock};
pub use embedded::{Embedded, EmbeddedConfig};
pub use limits::outside;
pub use log::{Backlog, CAME_UNDER, Commit, DeadLetter, Headers, Log, LogError, Outgoing, Received, in_place_of};
pub use overview::{Remain, StoreOverview};
pub use policies::{Policies, StoredPolicy};
pub use retry::RetryConfig;
pub use run::{BreakerConfig, LoopConfig, StageEnv, StageStopped, run_lanes, run_stage};
pub use secret::Secret;
pub use shutdown::Shutdown;
pub use stage::{DropReason, Input, Passed, Rejection, Settled, Stage, StageError, Stamp, Verdict, Write};
pub use store::{Erasure, PAGE_MAX_BYTES, ROW_MAX_BYTES, StageResult, Store, StoreError, StoredPage, TooLarge, check_sizes};
pub use tally::{AtWork, LaneSnapshot, Phase, StageSnapshot, StageStats, Tally};
pub use unique::unique_name;
