//! `endcap lab loop`: the closed loop of ranking. Simulated shoppers click on ranked storefronts by the market's truth, the policy learns from it,
//! and they see what it has learnt; beside it, with the same households, pages and chances, a policy that learns nothing and one that does not explore.

mod ab;
mod page;
mod world;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use anyhow::Result;
use clap::Args;
use endcap_market::{DEMO_SEED, Market as Demo};

pub use self::{
    ab::{Arm, run},
    world::{Shop, World},
};
use super::{in_parallel, prepare, threads, write};
use crate::{
    cli::{DataArgs, Flags},
    config::Config,
    data::{DataDir, Use},
    grounds,
    models::Loader,
    progress,
    serve::Models,
};

/// `endcap lab loop`.
#[derive(Debug, Clone, Args)]
pub struct LoopArgs {
    /// Runs with households of their own; intervals are over them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=1_000))]
    pub seeds: u64,
    /// Households of a run.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub households: u64,
    /// Visits of each household.
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub rounds: u64,
    /// Directory for tables and figures, made where there is none.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Threads; the result does not depend on them [default: one for each core].
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Directory of the models [default: the small ones inside this binary].
    #[arg(long, value_name = "DIR")]
    pub models: Option<String>,
    /// Where the data lies: the demo market is there, or made there.
    #[command(flatten)]
    pub data: DataArgs,
}

impl LoopArgs {
    /// What they set.
    pub(super) fn flags(&self) -> Flags {
        self.data.flags().into_iter().chain(self.models.iter().map(|models| ("models", models.clone()))).collect()
    }
}

/// Runs all arms on all seeds and writes `loop.csv`, `loop.svg` and `loop.md`.
///
/// # Errors
/// When the directory cannot be written, or market, models or store do not answer.
pub(super) fn closed(args: &LoopArgs, config: &Config) -> Result<()> {
    prepare(&args.out)?;
    let data = DataDir::open(&config.data, Use::Alone)?;
    let loader = Loader::new(config, &data.models())?;
    let (encoder, (judge, threshold)) = (loader.encoder()?, loader.judge()?);
    let (market, scratch) = (grounds::open(config, &data, &encoder)?, data.scratch("lab-loop")?);
    let (demo, models) = (Arc::new(Demo::generate(DEMO_SEED)), Models { encoder, judge, threshold });
    let world = |seed| World::new(demo.clone(), market.clone(), seed, args.households, scratch.path().to_owned());
    let worlds = (1..=args.seeds).map(world).collect::<Result<Vec<_>>>()?;
    let jobs = worlds.len() * Arm::ALL.len();
    let steps = progress::steps("runs", jobs as u64);
    let job = |job: usize| run(&worlds[job / Arm::ALL.len()], Arm::ALL[job % Arm::ALL.len()], args.rounds, &models);
    let results = in_parallel(jobs, threads(args.threads), job, |ready| steps.at("runs", ready as u64, jobs as u64));
    steps.finish();
    let all = results.into_iter().collect::<Result<Vec<_>>>()?;
    let of_arm = |arm: usize| all.iter().skip(arm).step_by(Arm::ALL.len()).cloned().collect();
    let outcome = page::Outcome { of: [of_arm(0), of_arm(1), of_arm(2)] };
    write(&args.out, "loop.csv", &outcome.csv())?;
    write(&args.out, "loop.svg", &outcome.figure().to_svg())?;
    let text = outcome.page(args);
    write(&args.out, "loop.md", &text)?;
    println!("{text}\ntables and figures are in {}", args.out.display());
    Ok(())
}
