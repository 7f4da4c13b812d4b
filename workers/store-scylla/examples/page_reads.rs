//! How fast a page is read while pages are written: percentiles of single-partition reads, with and without load.
//!
//! `cargo run -p endcap-store-scylla --example page_reads -- <seconds> <writers> <page bytes>`, with the server of `tests/services` in
//! the environment. Makes a keyspace of its own and leaves it to be dropped.

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{Stamp, Store, SystemClock, Write};
use endcap_schemas::UserKey;
use endcap_store_scylla::{ScyllaConfig, ScyllaStore, migrate};
use serde_json::json;

/// Shoppers whose pages are written and read.
const USERS: u64 = 5_000;
/// Pages of one call, as a batch of the last stage has them.
const BATCH: u64 = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u64> = env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let &[seconds, writers, bytes] = &numbers[..] else {
        return Err("usage: page_reads <seconds> <writers> <page bytes>".into());
    };
    let time = Duration::from_secs(seconds);
    let config: ScyllaConfig = serde_json::from_value(json!({
        "contact_points": [env::var("ENDCAP_TEST_CQL")?], "keyspace": "endcap_page_reads", "replication": 1,
        "user": env::var("ENDCAP_TEST_CQL_USER")?, "password": env::var("ENDCAP_TEST_CQL_PASSWORD")?,
        "timeouts": { "read": "10s", "write": "10s", "decide": "10s" },
    }))?;
    let clock = SystemClock::default();
    migrate(&config, &clock)?;
    let store = ScyllaStore::open(&config, Arc::new(clock))?;
    let load = Load {
        stamp: AtomicI64::new(1),
        written: AtomicI64::new(0),
        ends: AtomicBool::new(false),
        page: vec![7; usize::try_from(bytes)?],
    };
    (0..USERS).step_by(usize::try_from(BATCH)?).for_each(|from| load.write(&store, from));
    println!("{USERS} pages of {bytes} bytes");
    report("pages, no writes", &reads(time, |user| store.page(user).map(drop)));
    report("states and erasures, no writes", &reads(time, |user| store.erasure(user).map(drop)));
    thread::scope(|scope| {
        for writer in 0..writers {
            let (load, store) = (&load, &store);
            scope.spawn(move || load.run(store, writer * 977));
        }
        let (before, start) = (load.written.load(Ordering::Relaxed), Instant::now());
        report("pages, under writes", &reads(time, |user| store.page(user).map(drop)));
        report("states and erasures, under writes", &reads(time, |user| store.erasure(user).map(drop)));
        let written = load.written.load(Ordering::Relaxed) - before;
        println!("writes beside the reads: {:.0}/s by {writers} writers", rate(written, start.elapsed()));
        load.ends.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Who writes pages while they are read.
struct Load {
    stamp: AtomicI64,
    written: AtomicI64,
    ends: AtomicBool,
    page: Vec<u8>,
}

impl Load {
    fn run(&self, store: &ScyllaStore, from: u64) {
        let mut user = from;
        while !self.ends.load(Ordering::Relaxed) {
            self.write(store, user);
            user += BATCH;
        }
    }

    /// One batch of new pages.
    fn write(&self, store: &ScyllaStore, from: u64) {
        let stamp = Stamp(self.stamp.fetch_add(1, Ordering::Relaxed));
        let page = |n: u64| Write::Page { user: user(n % USERS), stamp, page: Some(self.page.clone()) };
        let writes: Vec<_> = (from..from + BATCH).map(page).collect();
        store.put_all(&writes, &[]).expect("the server takes pages");
        self.written.fetch_add(i64::try_from(BATCH).expect("a small number"), Ordering::Relaxed);
    }
}

fn user(n: u64) -> UserKey {
    UserKey::of(format!("shopper-{n}"))
}

/// Times of reads, one after the other, over scattered users.
fn reads<E: std::fmt::Debug>(time: Duration, read: impl Fn(&UserKey) -> Result<(), E>) -> Vec<Duration> {
    let (start, mut times, mut n) = (Instant::now(), Vec::new(), 0_u64);
    while start.elapsed() < time {
        n = n.wrapping_add(2_654_435_761);
        let user = user(n % USERS);
        let asked = Instant::now();
        read(&user).expect("the server answers");
        times.push(asked.elapsed());
    }
    times.sort();
    times
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn rate(count: i64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn report(what: &str, times: &[Duration]) {
    let at = |per_mille: usize| times[(times.len() * per_mille / 1_000).min(times.len() - 1)];
    let [half, p99, p999, most] = [at(500), at(990), at(999), times[times.len() - 1]];
    println!("{what}: {} reads, p50 {half:.2?}, p99 {p99:.2?}, p99.9 {p999:.2?}, longest {most:.2?}", times.len());
}
