//! `endcap lab`: the ranking papers' experiments, run anew, and the closed loop of this product's own ranking.

use std::{
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

pub mod closed;
mod interval;
mod linucb;
mod parallel;
mod pier;
mod plot;

pub use interval::Interval;
pub use pier::PierArgs;

use parallel::in_parallel;

use crate::{cli::Flags, config::Settings};

/// The experiments.
#[derive(Debug, Clone, Subcommand)]
pub enum LabCommand {
    /// Exploration in two stages: naive and synchronised LinUCB, and a single stage (figures 2 and 3 of Hron et al., 2020).
    Linucb(LinucbArgs),
    /// The closed loop: simulated shoppers click on ranked storefronts, and the ranking learns, beside one that does not and one that does not explore.
    Loop(closed::LoopArgs),
    /// Re-ranking by permutations: PIER, its baselines and its parts on a simulated shop (tables 2 to 5 of Shi et al., 2023). Goes on where it was stopped.
    Pier(PierArgs),
}

/// `endcap lab linucb`.
#[derive(Debug, Clone, Args)]
pub struct LinucbArgs {
    /// Runs of each setting, 2 at least; the paper has 400.
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u64).range(2..=1_000_000))]
    pub runs: u64,
    /// Directory for tables and figures, made where there is none.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Seed of all that is drawn.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Threads; the result does not depend on them [default: one for each core].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
}

/// Runs an experiment, writes its tables and figures, and prints what they come to. `settings` resolves the flags of a command.
///
/// # Errors
/// When the configuration has faults, the directory cannot be written, or what the closed loop needs does not answer.
pub fn run(command: &LabCommand, settings: impl Fn(Flags) -> Result<Settings>) -> Result<()> {
    match command {
        LabCommand::Linucb(args) => {
            settings(Flags::new())?; // logs as they say
            linucb::linucb(args)
        }
        LabCommand::Pier(args) => {
            settings(Flags::new())?;
            pier::pier(args)
        }
        LabCommand::Loop(args) => closed::closed(args, &settings(args.flags())?),
    }
}

/// Threads to use where nobody says how many.
fn threads(wanted: Option<NonZeroUsize>) -> usize {
    wanted.or_else(|| thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
}

/// Makes sure that results can be written to `out` before they are computed.
fn prepare(out: &Path) -> Result<()> {
    let probe = out.join(".endcap-lab");
    fs::create_dir_all(out)
        .and_then(|()| fs::write(&probe, ""))
        .and_then(|()| fs::remove_file(&probe))
        .with_context(|| format!("cannot write results to {}: name a directory that can be written with --out", out.display()))
}

/// Writes one result.
fn write(out: &Path, name: &str, text: &str) -> Result<()> {
    let path = out.join(name);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
