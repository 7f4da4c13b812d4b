//! How fast storefronts are answered under an open load: requests come at their times whether or not earlier ones were answered, and each is
//! timed from the moment at which it was due.
//!
//! `cargo run --release -p endcap-tests --bin storefronts -- --report FILE` makes shoppers with a history and pages of 10 placements of 20
//! products each in a fresh data directory, starts `endcap serve` on it, lets every pool be completed, and then asks for storefronts of
//! scattered shoppers at a steady rate, with feedback on some of them. The load and the program share the machine.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use endcap_context::{ContextConfig, ContextStage};
use endcap_market::{DEMO_SEED, Market, Merchandiser, Shoppers};
use endcap_retrieval::{MarketDir, Snapshot, write_demo};
use endcap_runtime::{
    Clock, Embedded, EmbeddedConfig, Input, Passed, Shutdown, Stage, Stamp, Store, SystemClock, Verdict, Write,
};
use endcap_schemas::{
    ContextChanged, Descriptor, Keyword, Page, PagePublished, Placement, ShownProduct, Theme, UserKey, Versions, wire,
};
use endcap_tests::{Endcap, Run};
use serde::Serialize;
use serde_json::{Value, json};

/// Placements of a page, and products of a placement.
const PLACEMENTS: usize = 10;
const PRODUCTS: usize = 20;
/// Strides through the shoppers that visit all of them, scattered.
const STRIDE: u64 = 2_654_435_761;
/// Products of a slate that feedback says were in sight.
const IN_SIGHT: usize = 5;
/// How often it is looked whether all pools are complete.
const LOOK_EVERY: Duration = Duration::from_secs(1);
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
    /// How long the load is measured, s.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Shoppers with a page.
    #[arg(long, default_value_t = 200)]
    shoppers: u32,
    /// One storefront in so many is followed by feedback on its first placements; 0 for none.
    #[arg(long, default_value_t = 10)]
    feedback_every: u64,
    /// Threads that ask: requests that may be open at once.
    #[arg(long, default_value_t = 32)]
    threads: usize,
    /// Directory of the models [default: those inside the program].
    #[arg(long, value_name = "DIR")]
    models: Option<String>,
}

/// Times of the requests, ms, from when each was due to the whole answer.
#[derive(Debug, Serialize)]
struct Times {
    answered: usize,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    longest_ms: f64,
}

/// What the load saw.
#[derive(Default)]
struct Seen {
    times: Vec<Duration>,
    /// Answers by status.
    statuses: BTreeMap<u16, u64>,
    placements: u64,
    products: u64,
    feedback: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir().context("cannot make a temporary directory")?;
    let (data, market) = (dir.path().join("data"), dir.path().join("market"));
    let users = make(&data, &market, args.shoppers)?;
    let program = std::env::current_exe()?.with_file_name("endcap-under-test");
    ensure!(program.is_file(), "build {} too: `cargo build --release --workspace --bins`", program.display());
    let market = market.display().to_string();
    let models = args.models.as_ref().map(|models| ["--models", models.as_str()]);
    let flags: Vec<&str> = ["--market", &market].into_iter().chain(models.into_iter().flatten()).collect();
    let up = Run::new(&program.display().to_string(), &data).serve(&flags)?;
    let warm = warm(&up, &users)?;
    let before = memory(up.id())?;
    let seen = load(&args, up.address(), &users)?;
    let report = json!({
        "rate": args.rate, "seconds": args.seconds, "shoppers": users.len(), "warm_up_s": warm.as_secs_f64(),
        "statuses": seen.statuses, "placements_per_page": ratio(seen.placements, seen.times.len()),
        "products_per_placement": ratio(seen.products, usize::try_from(seen.placements)?), "feedback": seen.feedback,
        "request": times(seen.times), "parts_ms": parts(&up.text("/metrics")?.1),
        "memory_bytes": { "before": before, "after": memory(up.id())? },
    });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    args.report.map_or(Ok(()), |path| fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display())))
}

/// Makes a market, shoppers with states by the context stage's own fold, and a page for each.
fn make(data: &std::path::Path, dir: &std::path::Path, count: u32) -> Result<Vec<UserKey>> {
    let (market, out) = (Arc::new(Market::generate(DEMO_SEED)), MarketDir::create(dir)?);
    write_demo(&out, &market.products, &market.categories, &market.terms)?;
    let opened = endcap_retrieval::Market::over(out)?;
    fs::create_dir_all(data)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let file = Embedded::open(endcap::data::file_in(data), EmbeddedConfig::default(), clock.clone())?;
    let (merchandiser, snapshot) = (market.merchandiser(), opened.snapshot());
    let contexts = contexts(&file, &opened, market, count, clock.now_ms())?;
    let writes = contexts.values().map(|context| page(context, &merchandiser, &snapshot)).collect::<Result<Vec<_>>>()?;
    file.put_all(&writes, &[])?;
    Ok(contexts.into_keys().collect())
}

/// What the context stage makes of some purchases of every shopper.
fn contexts(
    file: &Embedded,
    opened: &endcap_retrieval::Market,
    market: Arc<Market>,
    count: u32,
    now_ms: i64,
) -> Result<BTreeMap<UserKey, ContextChanged>> {
    let lookup = opened.clone();
    let product = Box::new(move |id: &str| lookup.snapshot().product(id).map_err(|error| error.to_string()));
    let mut stage = ContextStage::new(ContextConfig::default(), 1, Arc::new(file.clone()), product);
    let events = Shoppers::new(market, 1, count, now_ms - 86_400_000, 1_000);
    let mut contexts = BTreeMap::new();
    for from in (0..u64::from(count) * 6).step_by(200) {
        let input = |n: u64| Input { value: events.event(n), partition: 0, offset: n as i64, appended_ms: now_ms };
        let batch: Vec<_> = (from..from + 200).map(input).collect();
        for verdict in stage.process(&batch)? {
            if let Verdict::Passed(passed) = verdict {
                let Passed { out, writes, .. } = *passed;
                file.put_all(&writes, &[])?;
                contexts.insert(out.head.user.clone(), out);
            }
        }
    }
    Ok(contexts)
}

/// A page of the merchandiser's themes, with what sells on their shelves.
fn page(context: &ContextChanged, merchandiser: &Merchandiser, market: &Snapshot) -> Result<Write> {
    let made = merchandiser.page(context, PLACEMENTS);
    let placements = made.themes.into_iter().map(|theme| placement(theme, context, market)).collect::<Result<Vec<_>>>()?;
    let page = Page { persona: made.persona, diets: context.brief.diets, placements, versions: Versions::new() };
    let stamp = Stamp::of(context.head.context_ms, 1);
    let bytes = wire::encode(&PagePublished { head: context.head.clone(), page })?;
    Ok(Write::Page { user: context.head.user.clone(), stamp, page: Some(bytes) })
}

fn placement(theme: Theme, context: &ContextChanged, market: &Snapshot) -> Result<Placement> {
    let filter = endcap_retrieval::Filter::of_page(context.brief.diets, &context.brief.dislikes);
    let (mut products, mut keywords) = (Vec::new(), Vec::new());
    for concept in &theme.concepts {
        let found = market.popular(concept, &filter, PRODUCTS.div_ceil(theme.concepts.len()))?;
        products.extend(found.into_iter().map(|product| ShownProduct { product: product.id, score: 0.9 }));
        if let Some((id, term)) = market.node_term(concept)? {
            keywords.push(Keyword { id, text: term.text, descriptor: Descriptor::Node });
        }
    }
    products.truncate(PRODUCTS);
    Ok(Placement { theme, keywords, retrieved: i32::try_from(products.len())?, products })
}

/// Asks for every storefront until no pool is left that is not complete; answers how long that took.
fn warm(up: &Endcap, users: &[UserKey]) -> Result<Duration> {
    let (start, patience) = (Instant::now(), Shutdown::new());
    let partial = || Ok::<_, anyhow::Error>(count(&up.text("/metrics")?.1, "endcap_storefront_pools_total{pool=\"partial\"}"));
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

/// The value of a counter.
fn count(metrics: &str, name: &str) -> u64 {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// Lets requests come at their times, `args.threads` of them open at most: with more than that the load itself is late, and the times say so.
fn load(args: &Args, address: &str, users: &[UserKey]) -> Result<Seen> {
    let (next, seen, start) = (AtomicU64::new(0), Mutex::new(Seen::default()), Instant::now());
    let (all, every) = ((args.rate * args.seconds as f64) as u64, Duration::from_secs_f64(1.0 / args.rate));
    thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
                let mut own = Seen::default();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= all {
                        break;
                    }
                    let due = start + every * u32::try_from(n).unwrap_or(u32::MAX);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    let user = &users[(n.wrapping_mul(STRIDE) % users.len() as u64) as usize];
                    let front = own.ask(&agent, &format!("{address}/v1/storefronts/{}", user.user), due);
                    if let Some(front) = front.filter(|_| args.feedback_every > 0 && n.is_multiple_of(args.feedback_every)) {
                        own.tell(&agent, &format!("{address}/v1/feedback"), &front);
                    }
                }
                seen.lock().expect("no thread of the load panics").add(own);
            });
        }
    });
    Ok(seen.into_inner().expect("no thread of the load panics"))
}

impl Seen {
    /// A storefront, where it was answered.
    fn ask(&mut self, agent: &ureq::Agent, address: &str, due: Instant) -> Option<Value> {
        let (status, text) = match agent.get(address).call() {
            Ok(mut response) => (response.status().as_u16(), response.body_mut().read_to_string().unwrap_or_default()),
            Err(_) => (0, String::new()),
        };
        let time = due.elapsed();
        *self.statuses.entry(status).or_default() += 1;
        let front: Value = serde_json::from_str(&text).ok().filter(|_| status == 200)?;
        self.times.push(time);
        let placements = front["placements"].as_array()?;
        self.placements += placements.len() as u64;
        self.products +=
            placements.iter().filter_map(|placement| Some(placement["products"].as_array()?.len() as u64)).sum::<u64>();
        Some(front)
    }

    /// What a shopper would have done with the first placements.
    fn tell(&mut self, agent: &ureq::Agent, address: &str, front: &Value) {
        let entries: Vec<Value> = front["placements"]
            .as_array()
            .into_iter()
            .flatten()
            .take(3)
            .map(|placement| {
                let ids: Vec<&str> =
                    placement["products"].as_array().into_iter().flatten().filter_map(|product| product["id"].as_str()).collect();
                let in_sight = &ids[..ids.len().min(IN_SIGHT)];
                json!({ "slate": placement["slate"], "impressions": in_sight, "clicks": &in_sight[..in_sight.len().min(1)] })
            })
            .collect();
        let sent = agent.post(address).header("content-type", "application/json").send(json!(entries).to_string());
        self.feedback += u64::from(sent.is_ok_and(|response| response.status().as_u16() == 200));
    }

    fn add(&mut self, other: Seen) {
        self.times.extend(other.times);
        other.statuses.into_iter().for_each(|(status, count)| *self.statuses.entry(status).or_default() += count);
        self.placements += other.placements;
        self.products += other.products;
        self.feedback += other.feedback;
    }
}

fn times(mut times: Vec<Duration>) -> Times {
    times.sort();
    let at = |per_mille: usize| {
        let place = (times.len() * per_mille / 1_000).min(times.len().saturating_sub(1));
        times.get(place).map_or(f64::NAN, |time| round(time.as_secs_f64() * 1e3))
    };
    Times { answered: times.len(), p50_ms: at(500), p99_ms: at(990), p999_ms: at(999), longest_ms: at(1_000) }
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

/// Resident memory of a process, bytes.
fn memory(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("cannot read the program's memory")?;
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.map(|kilobytes| kilobytes * 1_024).context("cannot read the program's memory")
}

fn ratio(sum: u64, count: usize) -> f64 {
    round(sum as f64 / count.max(1) as f64)
}

fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
