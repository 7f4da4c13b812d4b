//! THE binary as a library: configuration, the path's wiring, subcommands and the web page.
//!
//! Only this crate knows all the others. [`main`] is the whole program; tests start the same code.

pub mod cli;
pub mod config;
pub mod control;
pub mod data;
pub mod declare;
pub mod deploy;
pub mod desk;
pub mod dlq;
pub mod erase;
pub mod eval;
pub mod explain;
pub mod feed;
pub mod figures;
pub mod figures_cache;
pub mod grounds;
pub mod import;
pub mod imported;
pub mod intake;
pub mod lab;
pub mod logging;
pub mod manifest;
mod memory;
pub mod models;
pub mod monitor;
pub mod path;
pub mod places;
pub mod policy;
mod printable;
pub mod progress;
pub mod replay;
pub mod report;
pub mod reranker;
pub mod rollback;
pub mod running;
pub mod schooling;
pub mod send;
pub mod serve;
pub mod sides;
mod signals;
mod times;
pub mod train;
pub mod up;
pub mod versions;
pub mod view;
pub mod visits;
pub mod web;

use std::{env, fs, io, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use tracing::Level;

use crate::{
    cli::{Cli, Command, Flags, RunArgs},
    config::{Faults, Layer, LogFormat},
    running::{ROLLED_BACK, RolledBack},
    up::Role,
};

/// Configuration file that is read where none is named.
const CONFIG_FILE: &str = "endcap.toml";
/// Exit code of wrong usage and wrong configuration.
const USAGE: u8 = 2;

/// The program: reads the command line, does what it says, and tells in one line what went wrong.
pub fn main() -> ExitCode {
    keep_candle_to_its_callers();
    let cli = Cli::parse();
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads us has seen enough: `endcap dlq ls | head` is no failure.
            if error
                .chain()
                .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
            {
                return ExitCode::SUCCESS;
            }
            logging::tell(Level::ERROR, &format!("{error:#}"));
            if error.is::<Faults>() {
                ExitCode::from(USAGE)
            } else if error.is::<RolledBack>() {
                ExitCode::from(ROLLED_BACK)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Every model and every training thread has a core of its own here. candle's own threads would be one more pool that all of them wait for
/// in turn, at a barrier that spins: two training threads made 2,120 tokens/s with it and 2,820 without.
fn keep_candle_to_its_callers() {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if env::var_os(THREADS).is_none() {
        // SAFETY: `main` does it before anything that starts a thread; nobody reads the environment meanwhile.
        unsafe { env::set_var(THREADS, "1") };
    }
}

fn run(cli: &Cli) -> Result<()> {
    let config = |flags: Flags| Ok::<_, anyhow::Error>(settings(cli, &[], &flags)?.config);
    let models = |models: &Option<String>| models.iter().map(|models| ("models", models.clone())).collect::<Flags>();
    match &cli.command {
        Command::Up(args) => up::work(settings(cli, &[], &args.flags())?, Role::Everything(args), models::load),
        Command::Run(args) => {
            up::work(settings(cli, &RunArgs::DEFAULTS, &args.flags())?, Role::Stages(&args.stages), models::load)
        }
        Command::Serve(args) => up::work(settings(cli, &[], &args.flags())?, Role::Serving, models::load),
        Command::Send(args) => send::send(args),
        Command::Import(args) => import::import(args, &config(models(&args.models))?),
        Command::Explain(args) => {
            let market = args.market.iter().map(|market| ("market", market.clone()));
            explain::command(args, &config(args.data.flags().into_iter().chain(market).collect())?)
        }
        Command::Train(args) => train::train(args, &config([args.data.flags(), models(&args.from)].concat())?),
        Command::Eval(args) => {
            let config = config([args.data.flags(), models(&args.models)].concat())?;
            eval::demo(&config, args.households, args.report.as_deref())
        }
        Command::Lab { command } => lab::run(command, |flags| settings(cli, &[], &flags)),
        Command::Topics { command } => declare::topics(*command, &config(Flags::new())?),
        Command::Store { command } => declare::store(*command, &config(Flags::new())?),
        Command::Erase(args) => erase::command(args, &config(args.data.flags())?),
        Command::Manifests(args) => rollback::manifests(args, &config(args.data.flags())?),
        Command::Rollback(args) => rollback::rollback(args, &config(args.data.flags())?),
        Command::Replay { command } => replay::command(command, |flags| settings(cli, &[], &flags)),
        Command::Policy { command } => policy::command(command, |data| config(data.flags())),
        Command::Dlq(args) => dlq::command(&args.command, |data| config(data.flags())),
    }
}

/// Everything that file, environment and flags say, over `defaults` of the subcommand.
fn settings(cli: &Cli, defaults: &[(&str, &str)], flags: &Flags) -> Result<config::Settings> {
    let file = match &cli.config {
        Some(path) => Some(path.as_path()),
        None => Some(Path::new(CONFIG_FILE)).filter(|path| path.exists()),
    };
    let text =
        file.map(|path| fs::read_to_string(path).with_context(|| format!("cannot read the configuration {}", path.display())));
    let mut layers = vec![Layer::of_defaults(defaults)];
    if let (Some(path), Some(Ok(text))) = (file, &text) {
        layers.push(Layer::of_file(path, text));
    }
    layers.push(Layer::of_env(
        env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
    ));
    layers.push(Layer::of_flags(flags, cli.log_format.as_ref()));
    logging::start(LogFormat::of(&layers)); // before the first error
    text.transpose()?;
    Ok(config::Settings::resolve(&layers)?)
}
