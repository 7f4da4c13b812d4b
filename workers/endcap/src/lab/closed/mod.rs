//! `endcap lab loop`: the closed loop of ranking. Simulated shoppers click on ranked storefronts by the market's truth, the policy learns from it,
//! and they see what it has learnt; beside it, with the same households, pages and chances, a policy that learns nothing and one that does not explore.

mod ab;
mod arrange;
mod page;
mod rows;
mod ways;
mod world;

use std::{num::NonZeroUsize, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use endcap_inference::{Embed, Embedding, Model, Pair, Relevance};
use endcap_ranking::RankingConfig;

pub use self::{
    ab::{Arm, run},
    arrange::{Arranged, Way, compare},
    rows::{FrontRow, RowLog, ValueRatio, Worths, train_ocpm},
    world::{Shop, World, Worlds},
};
use super::{in_parallel, prepare, threads, write};
use crate::{
    cli::{DataArgs, Flags},
    config::Settings,
    progress, reranker,
    serve::Models,
};

/// Households that models of whole rows are trained on, and those that ways to arrange rows are judged by, have seeds from here on: no two are the same.
const LOGGED_FROM: u64 = 5_000;
const JUDGED_FROM: u64 = 10_000;
/// Households that models of whole rows are trained on, where nothing else is said: from a fifth of their rows next to nothing is learnt of orders.
const LOGGED_HOUSEHOLDS: u64 = 200;

/// `endcap lab loop`.
#[derive(Debug, Clone, Args)]
pub struct LoopArgs {
    /// Runs with households of their own, 2 at least; intervals are over them.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..=1_000))]
    pub seeds: u64,
    /// Households of a run.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub households: u64,
    /// Visits of each household, 10 at least.
    #[arg(long, value_name = "N", default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=100_000))]
    pub rounds: u64,
    /// Visits of each household that models of whole rows are trained on, when the ranking has learnt; 0 leaves these models out.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub logged: u64,
    /// Households that models of whole rows are trained on [default: 200, or more where a run has more].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(3..=10_000))]
    pub logged_households: Option<u64>,
    /// How much of the exploration bonus counts where it does [default: as much as the service is set to].
    #[arg(long, value_name = "SHARE")]
    pub exploration: Option<f64>,
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
    /// The settings of the ranking: those of the service, `of`, but for what is set here.
    fn usual(&self, of: &RankingConfig) -> RankingConfig {
        RankingConfig { exploration: self.exploration.unwrap_or(of.exploration), ..of.clone() }
    }

    /// Households that models of whole rows are trained on.
    pub(super) fn logged_households(&self) -> u64 {
        self.logged_households.unwrap_or(LOGGED_HOUSEHOLDS.max(self.households))
    }

    /// What they set.
    pub(super) fn flags(&self) -> Flags {
        self.data.flags().into_iter().chain(self.models.iter().map(|models| ("models", models.clone()))).collect()
    }
}

/// Runs all arms on all seeds, then all ways to arrange rows, and writes `loop.csv`, `loop.svg`, `ways.csv` and `loop.md`.
///
/// # Errors
/// When the directory cannot be written, or market, models or store do not answer.
pub(super) fn closed(args: &LoopArgs, settings: &Settings) -> Result<()> {
    let usual = args.usual(&settings.ranking);
    if let Some(fault) = usual.check().first() {
        bail!("{fault}");
    }
    prepare(&args.out)?;
    let ground = Worlds::open(&settings.config, "lab-loop")?;
    let models = &ground.models;
    let of_seeds = |from: u64, households| -> Result<Vec<World>> {
        (1..=args.seeds).map(|seed| ground.world(from + seed, households)).collect()
    };
    let worlds = of_seeds(0, args.households)?;
    let arms = all("runs", args, worlds.len() * Arm::ALL.len(), |job| {
        run(&worlds[job / Arm::ALL.len()], Arm::ALL[job % Arm::ALL.len()], &usual, args.rounds, models)
    })?;
    let of_arm = |arm: usize| arms.iter().skip(arm).step_by(Arm::ALL.len()).cloned().collect();
    let outcome = page::Outcome { of: [of_arm(0), of_arm(1), of_arm(2)] };
    write(&args.out, "loop.csv", &outcome.csv())?;
    write(&args.out, "loop.svg", &outcome.figure().to_svg())?;
    let mut text = outcome.page(args);
    if args.logged > 0 {
        let (logged, judged) = (of_seeds(LOGGED_FROM, args.logged_households())?, of_seeds(JUDGED_FROM, args.households)?);
        let of = all("ways to arrange", args, worlds.len(), |job| {
            let of = [&worlds[job], &logged[job], &judged[job]];
            arranged(of, &Arm::Greedy.config(&usual), args.logged, models)
        })?;
        let ways = ways::Ways { of };
        write(&args.out, "ways.csv", &ways.csv())?;
        text = text + "\n" + &ways.page(args);
    }
    write(&args.out, "loop.md", &text)?;
    println!("{text}\ntables and figures are in {}", args.out.display());
    Ok(())
}

/// The results of all jobs.
fn all<T: Send>(what: &str, args: &LoopArgs, jobs: usize, job: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let steps = progress::steps(what, jobs as u64);
    let results = in_parallel(jobs, threads(args.threads), job, |ready| steps.at(what, ready as u64, jobs as u64));
    steps.finish();
    results.into_iter().collect()
}

/// All ways to arrange what the households of `judged` see when the ranking has learnt from those of `taught`, by models that were trained on what
/// those of `logged` do on so many `visits`.
fn arranged<'w, E, X>(
    [taught, logged, judged]: [&'w World; 3],
    config: &RankingConfig,
    visits: u64,
    models: &Models<E, X>,
) -> Result<Vec<Arranged>>
where
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    let shop = |of: &'w World| of.shop(taught.policies(Arm::Learning)?, config.clone(), models, None);
    compare(&shop(logged)?, &shop(judged)?, visits, &reranker::schedule(taught.seed()))
}
