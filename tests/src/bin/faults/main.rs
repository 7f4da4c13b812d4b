//! The path under faults: what was accepted is reflected once, whatever happens on the way.
//!
//! `cargo run --release -p endcap-tests --bin faults -- --seed S --kills N --report FILE`. The real stages run as `endcap run` processes, on
//! one file and, where `ENDCAP_TEST_KAFKA`, `ENDCAP_TEST_CQL` and `ENDCAP_TEST_SERVICES` name servers (`tests/services/services` prints
//! them), on Kafka and CQL. Events come in all the while; a seeded schedule kills processes, takes servers away and fills the disk. Then
//! the log is read: an undisturbed process gets the same events, and what both leave behind is compared. `docs/faults.md` says what is
//! injected and what the figures mean.
//!
//! Life: arguments → for each side: declare, start, load and faults, drain, judge → report. This binary is also the program under test:
//! called by the name `endcap` it is nothing else.

mod calm;
mod expect;
mod facts;
mod fleet;
mod inject;
mod judge;
mod load;
mod patience;
mod replays;
mod report;
mod schedule;
mod side;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{
    facts::Facts,
    fleet::Fleet,
    inject::Injector,
    load::Load,
    patience::Patience,
    report::{Report, SideReport},
    schedule::{Schedule, Wish},
    side::{Place, Side},
};

/// What this binary is called when it is the program under test.
const PROGRAM: &str = "endcap";

#[derive(Debug, Parser)]
struct Args {
    /// What the schedule and the events are drawn from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Processes that are killed, all sides together.
    #[arg(long, default_value_t = 20)]
    kills: u32,
    /// Where the figures go.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How long the store is down at once, s.
    #[arg(long, default_value_t = 60)]
    outage_s: u64,
    /// Directory of the models [default: tiny random ones, whose pages are the merchandiser's].
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// What the path runs on [default: a file and, where the environment names them, servers].
    #[arg(long)]
    side: Option<Side>,
    /// How long a side may take, s [default: 600, and 15 more for every kill].
    #[arg(long)]
    within_s: Option<u64>,
}

fn main() -> ExitCode {
    if env::args_os().next().is_some_and(|name| Path::new(&name).file_name().is_some_and(|name| name == PROGRAM)) {
        return endcap::main();
    }
    match work(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs every side; answers whether nothing was lost, doubled, torn or different.
fn work(args: &Args) -> Result<bool> {
    let stop = patience::listen_to_signals()?;
    let sides = side::wanted(args.side)?;
    let mut report = Report::of(args.seed);
    for (place, side) in sides.iter().enumerate() {
        let kills = share(args.kills, sides.len() as u32, place as u32);
        let within = Duration::from_secs(args.within_s.unwrap_or(600 + 15 * u64::from(kills)));
        let patience = Patience::new(stop.clone(), within);
        let wish = Wish { seed: args.seed, kills, outage: Duration::from_secs(args.outage_s), side: *side };
        let figures = run(&wish, args.models.as_deref(), &patience).with_context(|| format!("the run on {side} failed"))?;
        report.add(*side, figures);
    }
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    if let Some(path) = &args.report {
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(report.is_clean())
}

/// What falls to the `place`-th of `of` when `whole` is shared out.
fn share(whole: u32, of: u32, place: u32) -> u32 {
    whole / of + u32::from(place < whole % of)
}

fn run(wish: &Wish, models: Option<&Path>, patience: &Patience) -> Result<SideReport> {
    let schedule = Schedule::draw(wish);
    patience.tell(&format!("{}: seed {}, {} kills in about {} s", wish.side, wish.seed, wish.kills, schedule.seconds()));
    let place = Place::make(wish.side, models)?;
    place.declare(patience)?;
    let mut fleet = Fleet::new(&place);
    fleet.wait_until_ready(patience)?;
    let sides = place.sides()?;
    let load = Load::start(wish.seed, fleet.doors(), sides.clone(), patience)?;
    let mut injector = Injector::new(&place);
    injector.follow(&schedule, &mut fleet, patience)?;
    patience.tell("all faults are injected; the rest is worked off");
    let sent = load.finish(&mut fleet, patience)?;
    fleet.wait_until_drained(&sides, patience)?;
    let (faults, stopped) = (injector.into_entries(), fleet.end());
    let disturbed = Facts::read(&sides)?;
    patience.tell("the same events without a fault");
    let calm = calm::run(&place, &disturbed, patience)?;
    let mut figures = judge::judge(&sent, &disturbed, &calm);
    figures.stopped = stopped;
    Ok(SideReport::of(wish, patience.elapsed(), figures, faults, &sent, &disturbed))
}
