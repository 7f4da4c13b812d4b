//! How fast a page is read while pages are written: times of single reads on an idle store and beside writers, and what it saves to ask
//! for many shoppers together.
//!
//! `cargo run --release -p endcap-tests --bin page_reads -- --report FILE`, with the CQL server that the environment names
//! (`tests/services`). Makes a keyspace of its own and leaves it to be dropped. Reads are one after the other, as one storefront's are;
//! each writer writes batches as the last stage does, without a pause.

use std::{
    collections::BTreeMap,
    env, fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Parser;
use endcap_evaluation::quantile;
use endcap_runtime::{Stamp, Store, StoreError, SystemClock, Write};
use endcap_schemas::UserKey;
use endcap_store_scylla::{ScyllaConfig, ScyllaStore, migrate};
use serde::Serialize;
use serde_json::json;

/// Pages of one write, as a batch of the last stage has them.
const WRITTEN_AT_ONCE: u64 = 32;
/// Shoppers of a batch in the stages' loop.
const BATCH: u64 = 64;
/// Batches that are timed.
const BATCHES: u64 = 50;
/// Strides through the shoppers that visit all of them, scattered.
const STRIDE: u64 = 2_654_435_761;

#[derive(Parser)]
struct Args {
    /// Where the figures go; without it they are only printed.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// How long each kind of read is timed, s.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Threads that write beside the reads.
    #[arg(long, default_value_t = 2)]
    writers: u64,
    /// Shoppers with a page.
    #[arg(long, default_value_t = 5_000)]
    shoppers: u64,
    /// Bytes of a page; those of the demo market have about so many.
    #[arg(long, default_value_t = 5_000)]
    bytes: usize,
}

/// Times of one kind of read, µs.
#[derive(Debug, Clone, Copy, Serialize)]
struct Times {
    reads: usize,
    p50_us: u128,
    p99_us: u128,
    p999_us: u128,
    longest_us: u128,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let store = store()?;
    let load = Load::new(&args);
    (0..args.shoppers).step_by(WRITTEN_AT_ONCE as usize).try_for_each(|from| load.write(&store, from))?;
    let time = Duration::from_secs(args.seconds);
    let timed = || reads(time, args.shoppers, |user| store.page(user).map(drop));
    let idle = timed()?;
    let (busy, writes_per_second) = thread::scope(|scope| {
        for writer in 0..args.writers {
            let (load, store) = (&load, &store);
            scope.spawn(move || load.run(store, writer * 977).expect("the server takes pages"));
        }
        let (before, start) = (load.written.load(Ordering::Relaxed), Instant::now());
        let busy = timed();
        let written = load.written.load(Ordering::Relaxed) - before;
        load.ends.store(true, Ordering::Relaxed);
        anyhow::Ok((busy?, written as f64 / start.elapsed().as_secs_f64()))
    })?;
    let report = json!({
        "pages": args.shoppers, "page_bytes": args.bytes, "writers": args.writers, "writes_per_second": writes_per_second.round(),
        "idle": idle, "under_writes": busy, "p99_ratio": ratio(busy.p99_us, idle.p99_us), "batch": batches(&store)?,
    });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    args.report.map_or(Ok(()), |path| fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display())))
}

fn store() -> Result<ScyllaStore> {
    let of = |name: &str| env::var(name).with_context(|| format!("{name} is not set: see tests/services"));
    let config: ScyllaConfig = serde_json::from_value(json!({
        "contact_points": [of("ENDCAP_TEST_CQL")?], "keyspace": "endcap_page_reads", "replication": 1,
        "user": of("ENDCAP_TEST_CQL_USER")?, "password": of("ENDCAP_TEST_CQL_PASSWORD")?,
        // A read that takes longer is a figure here, not a fault.
        "timeouts": { "read": "10s", "write": "10s", "decide": "10s" },
    }))?;
    let clock = SystemClock::default();
    migrate(&config, &clock)?;
    Ok(ScyllaStore::open(&config, Arc::new(clock))?)
}

/// Who writes pages while they are read.
struct Load {
    shoppers: u64,
    page: Vec<u8>,
    stamp: AtomicI64,
    written: AtomicI64,
    ends: AtomicBool,
}

impl Load {
    fn new(args: &Args) -> Self {
        let (stamp, written, ends) = (AtomicI64::new(1), AtomicI64::new(0), AtomicBool::new(false));
        Self { shoppers: args.shoppers, page: vec![7; args.bytes], stamp, written, ends }
    }

    fn run(&self, store: &ScyllaStore, from: u64) -> Result<(), StoreError> {
        let mut next = from;
        while !self.ends.load(Ordering::Relaxed) {
            self.write(store, next)?;
            next += WRITTEN_AT_ONCE;
        }
        Ok(())
    }

    /// One batch of new pages.
    fn write(&self, store: &ScyllaStore, from: u64) -> Result<(), StoreError> {
        let stamp = Stamp(self.stamp.fetch_add(1, Ordering::Relaxed));
        let page = |n: u64| Write::Page { user: user(n % self.shoppers), stamp, page: Some(self.page.clone()) };
        let writes: Vec<_> = (from..from + WRITTEN_AT_ONCE).map(page).collect();
        store.put_all(&writes, &[])?;
        self.written.fetch_add(WRITTEN_AT_ONCE as i64, Ordering::Relaxed);
        Ok(())
    }
}

fn user(n: u64) -> UserKey {
    UserKey::of(format!("shopper-{n}"))
}

/// Times of reads, one after the other, over scattered shoppers.
fn reads(time: Duration, shoppers: u64, read: impl Fn(&UserKey) -> Result<(), StoreError>) -> Result<Times> {
    let (start, mut times, mut n) = (Instant::now(), Vec::new(), 0_u64);
    while start.elapsed() < time {
        n = n.wrapping_add(STRIDE);
        let user = user(n % shoppers);
        let asked = Instant::now();
        read(&user)?;
        times.push(asked.elapsed());
    }
    times.sort();
    let at = |share: f64| quantile(&times, share).unwrap_or_default().as_micros();
    Ok(Times { reads: times.len(), p50_us: at(0.5), p99_us: at(0.99), p999_us: at(0.999), longest_us: at(1.0) })
}

/// What the loop asks about a batch of shoppers before a stage sees it: one after the other, and together; medians, µs.
fn batches(store: &ScyllaStore) -> Result<BTreeMap<&'static str, f64>> {
    let (mut single, mut together) = (Vec::new(), Vec::new());
    for batch in 0..BATCHES {
        let users: Vec<UserKey> = (batch * BATCH..(batch + 1) * BATCH).map(user).collect();
        let start = Instant::now();
        users.iter().try_for_each(|user| store.erasure(user).map(drop))?;
        single.push(start.elapsed());
        let start = Instant::now();
        store.erasures(&users)?;
        together.push(start.elapsed());
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        quantile(times, 0.5).unwrap_or_default().as_micros()
    };
    let (single, together) = (median(&mut single), median(&mut together));
    let figures = [("shoppers", BATCH as f64), ("one_by_one_us", single as f64), ("together_us", together as f64)];
    Ok(figures.into_iter().chain([("ratio", ratio(single, together))]).collect())
}

fn ratio(more: u128, less: u128) -> f64 {
    (more as f64 / less.max(1) as f64 * 100.0).round() / 100.0
}
