//! How fast storefronts are answered under an open load: requests come at their times whether or not earlier ones were answered, and each is
//! timed from the moment at which it was due.
//!
//! `cargo run --release -p endcap-tests --bin storefronts -- --report FILE` makes shoppers with a history and pages of 10 placements of 20
//! products each in a fresh data directory, starts `endcap serve` on it, lets every pool be completed (not with `--cold`), and then
//!
//! 1. asks for storefronts of scattered shoppers at a steady rate, with feedback on some of them; five seconds of that are not timed;
//! 2. asks as fast as answers come, which says what the machine can do (the capacity);
//! 3. asks at three times that rate: what cannot be answered is to be refused at once, and what is answered is not to be late.
//!
//! The load and the program share the machine.

mod load;
mod make;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use endcap_runtime::Shutdown;
use endcap_schemas::UserKey;
use endcap_tests::{Endcap, Run};
use serde_json::{Value, json};

use load::{Load, Pace, round, run};

/// How often it is looked whether all pools are complete.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Requests come so many times as fast as they can be answered, where they are too many.
const OVERLOAD: f64 = 3.0;
/// How long the load goes on before it is timed, s: the first requests at once open threads and connections to the file.
const WARM_UP_S: u64 = 5;
const SECONDS: &str = "endcap_storefront_seconds";
const PARTS: [&str; 5] = ["read", "nominate", "rank", "rerank", "whole"];

#[derive(Parser)]
struct Args {
    /// Where the figures go; without it they are only printed.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Storefronts a second.
    #[arg(long, default_value_t = 300.0)]
    rate: f64,
    /// How long each load is measured, s.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Shoppers with a page.
    #[arg(long, default_value_t = 200)]
    shoppers: u32,
    /// Begin when nothing has been looked up yet: shoppers are seen for the first time while they come.
    #[arg(long)]
    cold: bool,
    /// One storefront in so many is followed by feedback on its first placements; 0 for none.
    #[arg(long, default_value_t = 10)]
    feedback_every: u64,
    /// Threads that ask: requests that may be open at once.
    #[arg(long, default_value_t = 32)]
    threads: usize,
    /// Threads that ask where they ask for too much.
    #[arg(long, default_value_t = 256)]
    overload_threads: usize,
    /// Directory of the models [default: those inside the program].
    #[arg(long, value_name = "DIR")]
    models: Option<String>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (data, market) = (dir.path().join("data"), dir.path().join("market"));
    let users = make::make(&data, &market, args.shoppers)?;
    let program = std::env::current_exe()?.with_file_name("endcap-under-test");
    ensure!(program.is_file(), "build {} too: `cargo build --release --workspace --bins`", program.display());
    let market = market.display().to_string();
    let models = args.models.as_ref().map(|models| ["--models", models.as_str()]);
    let flags: Vec<&str> = ["--market", &market].into_iter().chain(models.into_iter().flatten()).collect();
    let up = Run::new(&program.display().to_string(), &data).serve(&flags)?;
    let warm = if args.cold { Duration::ZERO } else { warm(&up, &users)? };
    let load_for = |seconds, pace, threads| Load {
        pace,
        threads,
        time: Duration::from_secs(seconds),
        feedback_every: args.feedback_every,
        address: up.address(),
        users: &users,
    };
    let load = |pace, threads| load_for(args.seconds, pace, threads);
    run(&load_for(WARM_UP_S, Pace::Open(args.rate), args.threads));
    let before = pools(&up.text("/metrics")?.1);
    let steady = run(&load(Pace::Open(args.rate), args.threads));
    let metrics = up.text("/metrics")?.1;
    let (with_parts, [whole, partial]) = (parts(&metrics), pools(&metrics));
    let with_pools = json!({ "whole": whole - before[0], "partial": partial - before[1] });
    let steady_memory = memory(up.id())?;
    let fastest = run(&load(Pace::Closed, args.threads.min(8)));
    let capacity = fastest.per_second();
    let overload = run(&load(Pace::Open(OVERLOAD * capacity), args.overload_threads));
    let report = json!({
        "shoppers": users.len(), "warm_up_s": round(warm.as_secs_f64()), "seconds": args.seconds,
        "steady": { "rate": args.rate, "seen": steady.report(), "pools": with_pools, "parts_ms": with_parts, "memory": steady_memory },
        "capacity": { "per_second": round(capacity), "seen": fastest.report() },
        "overload": { "rate": round(OVERLOAD * capacity), "seen": overload.report(), "memory": memory(up.id())? },
    });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    args.report.map_or(Ok(()), |path| fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display())))
}

/// Asks for every storefront until no pool is left that is not complete; answers how long that took.
fn warm(up: &Endcap, users: &[UserKey]) -> Result<Duration> {
    let (start, patience) = (Instant::now(), Shutdown::new());
    let partial = || Ok::<_, anyhow::Error>(pools(&up.text("/metrics")?.1)[1]);
    loop {
        let before = partial()?;
        for user in users {
            let (status, answer) = up.get(&format!("/v1/storefronts/{}", user.user))?;
            ensure!(status == 200, "{status} {answer}");
        }
        if partial()? == before {
            return Ok(start.elapsed());
        }
        if start.elapsed() > Duration::from_secs(1_800) {
            bail!("pools are not complete after half an hour");
        }
        patience.wait(LOOK_EVERY);
    }
}

/// Placements that were ranked so far with all that was found for them, and with what the page has alone.
fn pools(metrics: &str) -> [u64; 2] {
    ["whole", "partial"].map(|pool| count(metrics, &format!("endcap_storefront_pools_total{{pool=\"{pool}\"}}")))
}

/// The value of a counter.
fn count(metrics: &str, name: &str) -> u64 {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// Median and 99th percentile of each part within the program, ms, of the last minute.
fn parts(metrics: &str) -> BTreeMap<&'static str, BTreeMap<&'static str, f64>> {
    let value = |part: &str, quantile: &str| {
        let name = format!("{SECONDS}{{part=\"{part}\",quantile=\"{quantile}\"}}");
        let found = metrics.lines().find_map(|line| line.strip_prefix(&name)?.trim().parse::<f64>().ok());
        found.map_or(f64::NAN, |seconds| round(seconds * 1e3))
    };
    PARTS.map(|part| (part, BTreeMap::from([("p50", value(part, "0.5")), ("p99", value(part, "0.99"))]))).into()
}

/// Resident memory of a process now and at most so far, bytes.
fn memory(id: u32) -> Result<Value> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("cannot read the program's memory")?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        line.map(|kilobytes| kilobytes * 1_024).context("cannot read the program's memory")
    };
    Ok(json!({ "now_bytes": bytes("VmRSS:")?, "most_bytes": bytes("VmHWM:")? }))
}
