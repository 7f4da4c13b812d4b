//! The runtime as its users see it: the borders' contracts on the embedded side, the loop with toy stages, crashes with real processes.

mod contracts;
mod crash;
mod embedded;
mod lanes;
mod partitions;
mod stage_loop;
mod throughput;
mod toys;
