//! `endcap lab pier`: PIER and its baselines on a simulated shop, or on Avito's files, as the paper's Tables 2 to 5 have them
//! (Shi et al., 2023), searches among more orders than can be evaluated, and what a history can tell at most. `docs/ranking.md` compares the outcome with the paper.
//!
//! The work is a list of units for each seed (`plan.rs`). A unit that is finished has left a file in the directory, and is not done again.

mod avito;
mod candidates;
mod judge;
mod keep;
mod oracle;
mod page;
mod paper;
mod plan;
mod search;
mod tables;
mod work;
mod world;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use clap::Args;
use endcap_ranker::pier::PierError;

use super::{in_parallel, prepare, threads, write};
use crate::{progress, signals::stop_on_signals};
use keep::{Keep, Outcome};
use plan::{Scale, Unit, Work, steps};
use tables::{Results, tables};
use work::Job;
use world::World;

/// Version of what is trained and measured: results of another one are not gone on with.
const FORM: u32 = 3;

/// `endcap lab pier`.
#[derive(Debug, Clone, Args)]
pub struct PierArgs {
    /// Seeds: each has a shop, a log and weights of its own [default: 5, with --quick 1].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: Option<u64>,
    /// Directory for tables, and for finished work that is not done again; made where there is none.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// A small version that takes a minute or two.
    #[arg(long)]
    pub quick: bool,
    /// Directory with Avito's files (Kaggle, avito-context-ad-clicks), instead of the simulated shop.
    #[arg(long, value_name = "DIR")]
    pub avito: Option<PathBuf>,
    /// Share of Avito's users that are read, by their ids, above 0 and up to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, requires = "avito", value_parser = share)]
    pub avito_share: f64,
    /// Threads; the result does not depend on them, but for times [default: one for each core].
    #[arg(long, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share: &f64| *share > 0.0 && *share <= 1.0);
    share.ok_or_else(|| "must be above 0 and up to 1".to_owned())
}

/// Set when somebody asks to end.
#[derive(Clone, Copy)]
struct Stop<'a>(&'a AtomicBool);

impl Stop<'_> {
    fn heed(self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(PierError::Stopped.into()) } else { Ok(()) }
    }
}

/// Does what is not done yet, then writes `table2.csv` to `table5.csv`, `readings.csv`, `search.csv`, `oracle.csv` and `pier.md`.
///
/// # Errors
/// When the directory cannot be written or holds results of other settings, or Avito's files cannot be read.
pub(super) fn pier(args: &PierArgs) -> Result<()> {
    if let Some(files) = &args.avito {
        avito::check(files)?;
    }
    prepare(&args.out)?;
    let scale = if args.quick { Scale::QUICK } else { Scale::WHOLE };
    let keep = Keep::open(&args.out, &format!("form {FORM}\navito {:?} {}\n{scale:?}\n", args.avito, args.avito_share))?;
    let seeds: Vec<u64> = (1..=args.seeds.unwrap_or(if args.quick { 1 } else { 5 })).collect();
    let stop = stop_on_signals()?;
    let lab = Lab { args, scale, keep, seeds, stop };
    match lab.work() {
        Err(error) if error.chain().any(|cause| matches!(cause.downcast_ref(), Some(PierError::Stopped))) => {
            println!("stopped; the same command goes on from here");
            Ok(())
        }
        done => done.and_then(|()| lab.report()),
    }
}

struct Lab<'a> {
    args: &'a PierArgs,
    scale: Scale,
    keep: Keep,
    seeds: Vec<u64>,
    stop: Arc<AtomicBool>,
}

impl Lab<'_> {
    /// Does every unit that is not done, step by step.
    fn work(&self) -> Result<()> {
        let worlds: Vec<OnceLock<World>> = self.seeds.iter().map(|_| OnceLock::new()).collect();
        let steps = steps(self.args.avito.is_none());
        let of_step = |units: &[Unit]| -> Vec<(usize, Unit)> {
            let seeds = 0..self.seeds.len();
            let all = units.iter().flat_map(|unit| seeds.clone().map(move |seed| (seed, *unit)));
            all.filter(|(seed, unit)| self.keep.outcome(unit.name, self.seeds[*seed]).is_none()).collect()
        };
        let left: Vec<Vec<(usize, Unit)>> = steps.iter().map(|units| of_step(units)).collect();
        let weight = |unit: &Unit| match unit.work {
            Work::Alone(_) => self.scale.epochs,
            Work::Joint(_) => self.scale.joint_epochs,
            Work::Search | Work::Oracle(_) => 0,
        };
        let epoch = OnceLock::new();
        let epochs: usize = left.iter().flatten().map(|(_, unit)| weight(unit)).sum();
        let (bar, gone) = (Mutex::new(progress::steps("pages trained on", 0)), AtomicU64::new(0));
        let tell = |more: usize| {
            let gone = gone.fetch_add(more as u64, Ordering::Relaxed) + more as u64;
            let most = (epochs * epoch.get().copied().unwrap_or(0)) as u64;
            bar.lock().unwrap_or_else(PoisonError::into_inner).at("pages trained on, of at most", gone, most);
        };
        for jobs in &left {
            let job = |number: usize| -> Result<()> {
                let (place, unit) = jobs[number];
                Stop(&self.stop).heed()?;
                let world = self.world(&worlds, place)?;
                let pages = *epoch.get_or_init(|| world.dataset.train.len());
                let told = AtomicU64::new(0);
                let heard = |more: usize| {
                    told.fetch_add(more as u64, Ordering::Relaxed);
                    tell(more);
                };
                let stop = Stop(&self.stop);
                Job { unit, world, scale: &self.scale, keep: &self.keep, stop, pages: &heard }.run()?;
                // What a training that ended early has not needed.
                tell((weight(&unit) * pages).saturating_sub(told.into_inner() as usize));
                Ok(())
            };
            in_parallel(jobs.len(), threads(self.args.threads), job, |_| {}).into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    fn world<'w>(&self, worlds: &'w [OnceLock<World>], place: usize) -> Result<&'w World> {
        let world = &worlds[place];
        if world.get().is_none() {
            let seed = self.seeds[place];
            let made = match &self.args.avito {
                None => World::simulated(seed, &self.scale)?,
                Some(files) => World::new(seed, avito::read(files, self.args.avito_share)?, None, &self.scale),
            };
            // Whoever came first has made the same.
            let _ = world.set(made);
        }
        world.get().context("the data are not there")
    }

    fn report(&self) -> Result<()> {
        let simulated = self.args.avito.is_none();
        let units = steps(simulated).concat();
        let outcome = |unit: &Unit, seed: &u64| self.keep.outcome(unit.name, *seed).unwrap_or_default();
        let of_unit = |unit: &Unit| -> Vec<Outcome> { self.seeds.iter().map(|seed| outcome(unit, seed)).collect() };
        let results = Results::new(units.iter().map(|unit| (unit.name, of_unit(unit))).collect());
        for table in tables(simulated) {
            write(&self.args.out, table.file, &table.csv(&results))?;
        }
        let page = page::page(self.args, &self.scale, &results);
        write(&self.args.out, "pier.md", &page)?;
        println!("{page}\ntables and this page are in {}", self.args.out.display());
        Ok(())
    }
}
