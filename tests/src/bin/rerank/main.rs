//! What it takes to arrange a slate: the serving kernel beside the candle model and beside the same model in PyTorch, on the same weights and
//! slates, with outputs compared.
//!
//! `cargo run --release -p endcap-tests --bin rerank -- --report FILE`. Slates come from the simulated shop, for shoppers whose histories are
//! full, in both sizes of the paper: 5 of 5 (120 orders, K = 10) and 3 of 10 (720 orders, K = 100). Weights are as they are before training:
//! what they are is nothing to the time. Rounds of all sides alternate; a round times single slates, one after the other, and histories are
//! encoded before, but for the candle model, which has no other way. PyTorch's Python is named by `--python` or `ENDCAP_TEST_TORCH`; without
//! it the report has none and says so.

mod ours;
mod slates;
mod torch;

use std::{collections::BTreeMap, fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use endcap_evaluation::quantile;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    ours::Ours,
    slates::{Size, World},
    torch::Torch,
};

/// Quiet before each part of a round, so that threads that still wait for more work go to sleep.
const QUIET: Duration = Duration::from_millis(50);
/// Furthest that outputs may lie apart.
const OFF_MAX: f64 = 1e-5;
/// Ways of PyTorch.
const WAYS: [&str; 6] = ["batched", "shared", "traced-batched", "traced-shared", "compiled-batched", "compiled-shared"];

#[derive(Parser)]
struct Args {
    /// Where the figures go; without it they are only printed.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Python that has torch.
    #[arg(long, value_name = "FILE", env = "ENDCAP_TEST_TORCH")]
    python: Option<PathBuf>,
    /// Rounds of each side.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Slates of a round of the kernel.
    #[arg(long, default_value_t = 1_000)]
    slates: usize,
    /// Slates of a round of the candle model and of PyTorch.
    #[arg(long, default_value_t = 40)]
    slates_slow: usize,
    /// Seed of the shop and of the weights.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Times of the slates of one round, µs.
#[derive(Debug, Clone, Copy, Serialize)]
struct Round {
    p50_us: f64,
    p99_us: f64,
}

impl Round {
    fn of(mut times_us: Vec<f64>) -> Self {
        times_us.sort_by(f64::total_cmp);
        let at = |share: f64| quantile(&times_us, share).unwrap_or(f64::NAN);
        Self { p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// Rounds by what was timed.
type Rounds = BTreeMap<String, Vec<Round>>;

fn main() -> Result<()> {
    let args = Args::parse();
    if args.python.is_none() {
        println!("PyTorch is not timed: name a Python that has torch by --python or ENDCAP_TEST_TORCH");
    }
    let mut sizes = serde_json::Map::new();
    for size in Size::BOTH {
        sizes.insert(size.name.to_owned(), bench(&args, size).with_context(|| format!("the size {} failed", size.name))?);
    }
    let report = json!({ "rounds": args.rounds, "slates": args.slates, "slates_slow": args.slates_slow, "seed": args.seed, "sizes": sizes });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    args.report.map_or(Ok(()), |path| fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display())))
}

fn bench(args: &Args, size: Size) -> Result<Value> {
    let world = World::new(size, args.seed)?;
    let mut ours = Ours::new(&world)?;
    let dir = tempfile::tempdir()?;
    let start = |threads: usize| args.python.as_ref().map(|python| Torch::start(python, dir.path(), threads)).transpose();
    world.write(dir.path(), ours.selected())?;
    let mut theirs = vec![];
    for threads in [1, 2] {
        theirs.extend(start(threads)?.map(|torch| (threads, torch)));
    }
    let compared = compare(&world, &mut ours, theirs.first_mut().map(|(_, torch)| torch))?;
    let mut rounds = Rounds::new();
    // The first round warms everything up, and is not counted.
    for round in 0..=args.rounds {
        let mut add = |name: String, times_us: Vec<f64>| {
            if round > 0 {
                rounds.entry(name).or_default().push(Round::of(times_us));
            }
        };
        for (name, times_us) in ours.kernel(args.slates)? {
            add(format!("kernel {name}"), times_us);
        }
        for (name, times_us) in ours.candle(args.slates_slow)? {
            add(format!("candle {name}"), times_us);
        }
        for (threads, torch) in &mut theirs {
            for (way, orders) in WAYS.iter().flat_map(|way| ["some", "all"].map(|orders| (way, orders))) {
                thread::sleep(QUIET);
                add(format!("torch {way} {threads} threads, {orders}"), torch.time(way, orders, args.slates_slow)?);
            }
        }
        println!("{}: round {round} of {}", size.name, args.rounds);
    }
    let figures: BTreeMap<_, _> = rounds.iter().map(|(name, rounds)| (name, figures(rounds))).collect();
    let (version, shared) = (theirs.first().map(|(_, torch)| torch.version.clone()), ours.sharing());
    Ok(json!({
        "items": size.items, "places": size.places, "orders": size.orders(), "some": size.some, "fields": world.fields(),
        "torch": version, "off": compared, "sequences_share": shared, "us": figures,
    }))
}

/// How far outputs lie apart: the kernel's from the candle model's, and PyTorch's from the kernel's.
fn compare(world: &World, ours: &mut Ours, torch: Option<&mut Torch>) -> Result<Value> {
    let (kernel, candle) = (ours.values_all()?, ours.candle_values_all()?);
    let off = |a: &[Vec<f64>], b: &[Vec<f64>]| -> f64 {
        let pairs = a.iter().flatten().zip(b.iter().flatten());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    let from_candle = off(&kernel, &candle);
    ensure!(from_candle < OFF_MAX, "the kernel is off the candle model by {from_candle}");
    let mut found = json!({ "orders": kernel.len() * world.size.orders(), "kernel_candle": from_candle });
    if let Some(torch) = torch {
        for (way, values) in torch.values("all")? {
            let from_kernel = off(&kernel, &values);
            ensure!(values.len() == kernel.len() && from_kernel < OFF_MAX, "torch {way} is off the kernel by {from_kernel}");
            found[format!("kernel_torch_{way}")] = json!(from_kernel);
        }
    }
    Ok(found)
}

/// The median of the rounds, the fastest and the slowest.
fn figures(rounds: &[Round]) -> Value {
    let sorted = |of: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.iter().map(|value| (value * 10.0).round() / 10.0).collect::<Vec<_>>()
    };
    let (p50, p99) = (sorted(|round| round.p50_us), sorted(|round| round.p99_us));
    json!({ "p50": quantile(&p50, 0.5), "p50_min": p50.first(), "p50_max": p50.last(), "p99": quantile(&p99, 0.5) })
}
