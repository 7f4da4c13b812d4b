//! Requests at their times, and what became of them.

use std::{
    collections::BTreeMap,
    sync::{
        Barrier, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use endcap_evaluation::quantile;
use endcap_schemas::UserKey;
use serde_json::{Value, json};

/// Strides through the shoppers that visit all of them, scattered.
const STRIDE: u64 = 2_654_435_761;
/// Placements of a storefront that feedback tells of, and products of each that were in sight.
const TOLD: usize = 3;
const IN_SIGHT: usize = 5;

/// When requests come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many a second, whatever becomes of earlier ones.
    Open(f64),
    /// Each thread's next one when its last one is answered.
    Closed,
}

/// A load.
pub(crate) struct Load<'a> {
    pub(crate) pace: Pace,
    /// Threads that ask: requests that may be open at once.
    pub(crate) threads: usize,
    /// How long.
    pub(crate) time: Duration,
    /// One storefront in so many is followed by feedback; 0 for none.
    pub(crate) feedback_every: u64,
    pub(crate) address: &'a str,
    pub(crate) users: &'a [UserKey],
}

/// What a load saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// Of storefronts that were answered: from when they were due, and from when they were asked for, to the whole answer.
    due: Vec<Duration>,
    asked: Vec<Duration>,
    /// The same of those that were refused, from when they were asked for.
    refused: Vec<Duration>,
    /// Answers by status; 0 for none.
    statuses: BTreeMap<u16, u64>,
    placements: usize,
    products: usize,
    /// Storefronts that were told of, and of those the ones whose feedback was not taken.
    told: u64,
    not_taken: u64,
    time: Duration,
}

/// Does `load`, from when every thread has its connection. With more requests open than it has threads the load itself is late, and the times from
/// when they were due say so.
pub(crate) fn run(load: &Load<'_>) -> Seen {
    let (next, seen) = (AtomicU64::new(0), Mutex::new(Seen::default()));
    let (connected, begun) = (Barrier::new(load.threads + 1), OnceLock::new());
    let start = || *begun.get_or_init(Instant::now);
    thread::scope(|scope| {
        for _ in 0..load.threads {
            scope.spawn(|| {
                let agent = connect(load.address);
                connected.wait();
                let mut own = Seen::default();
                own.ask_all(load, &agent, &next, start());
                seen.lock().expect("no thread of the load panics").add(own);
            });
        }
        connected.wait();
        start();
    });
    let mut seen = seen.into_inner().expect("no thread of the load panics");
    seen.time = start().elapsed();
    seen
}

/// A client that has asked once: making one takes longer than a storefront.
fn connect(address: &str) -> ureq::Agent {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    // Whether anybody answers is what the load itself finds out.
    let _ = agent.get(format!("{address}/health/live")).call().map(|mut response| response.body_mut().read_to_string());
    agent
}

impl Seen {
    fn ask_all(&mut self, load: &Load<'_>, agent: &ureq::Agent, next: &AtomicU64, start: Instant) {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let due = match load.pace {
                Pace::Open(rate) => start + Duration::from_secs_f64(n as f64 / rate),
                Pace::Closed => Instant::now(),
            };
            if due > start + load.time {
                return;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let user = &load.users[(n.wrapping_mul(STRIDE) % load.users.len() as u64) as usize];
            let text = self.ask(agent, &format!("{}/v1/storefronts/{}", load.address, user.user), due);
            if let Some(text) = text.filter(|_| load.feedback_every > 0 && n.is_multiple_of(load.feedback_every)) {
                self.tell(agent, &format!("{}/v1/feedback", load.address), &text);
            }
        }
    }

    /// A storefront as it was answered. It is not taken apart: that would be the load's own work, on the program's cores.
    fn ask(&mut self, agent: &ureq::Agent, address: &str, due: Instant) -> Option<String> {
        let asked = Instant::now();
        let (status, text) = match agent.get(address).call() {
            Ok(mut response) => (response.status().as_u16(), response.body_mut().read_to_string().unwrap_or_default()),
            Err(_) => (0, String::new()),
        };
        *self.statuses.entry(status).or_default() += 1;
        if status == 503 {
            self.refused.push(asked.elapsed());
        }
        if status != 200 {
            return None;
        }
        self.due.push(due.elapsed());
        self.asked.push(asked.elapsed());
        self.placements += text.matches("\"slate\":").count();
        self.products += text.matches("\"nominators\":").count();
        Some(text)
    }

    /// What a shopper would have done with the first placements.
    fn tell(&mut self, agent: &ureq::Agent, address: &str, text: &str) {
        let front: Value = serde_json::from_str(text).unwrap_or_default();
        let placements = front["placements"].as_array().into_iter().flatten().take(TOLD);
        let entries: Vec<Value> = placements
            .map(|placement| {
                let products = placement["products"].as_array().into_iter().flatten();
                let in_sight: Vec<&str> = products.filter_map(|product| product["id"].as_str()).take(IN_SIGHT).collect();
                json!({ "slate": placement["slate"], "impressions": in_sight, "clicks": in_sight.first().into_iter().collect::<Vec<_>>() })
            })
            .collect();
        let sent = agent.post(address).header("content-type", "application/json").send(json!(entries).to_string());
        self.told += 1;
        self.not_taken += u64::from(!sent.is_ok_and(|response| response.status().as_u16() == 200));
    }

    fn add(&mut self, other: Seen) {
        self.due.extend(other.due);
        self.asked.extend(other.asked);
        self.refused.extend(other.refused);
        other.statuses.into_iter().for_each(|(status, count)| *self.statuses.entry(status).or_default() += count);
        self.placements += other.placements;
        self.products += other.products;
        self.told += other.told;
        self.not_taken += other.not_taken;
    }

    /// Storefronts that were answered in a second.
    pub(crate) fn per_second(&self) -> f64 {
        self.due.len() as f64 / self.time.as_secs_f64()
    }

    pub(crate) fn report(&self) -> Value {
        let ratio = |sum: usize, count: usize| round(sum as f64 / count.max(1) as f64);
        json!({
            "statuses": self.statuses, "answered_per_second": round(self.per_second()),
            "placements_per_page": ratio(self.placements, self.due.len()),
            "products_per_placement": ratio(self.products, self.placements),
            "answered_from_due": times(&self.due), "answered_from_asked": times(&self.asked), "refused": times(&self.refused),
            "told": self.told, "feedback_not_taken": self.not_taken,
        })
    }
}

fn times(times: &[Duration]) -> Value {
    let mut times = times.to_vec();
    times.sort();
    let at = |share: f64| quantile(&times, share).map(|time| round(time.as_secs_f64() * 1e3));
    json!({ "count": times.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999), "longest_ms": at(1.0) })
}

pub(crate) fn round(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}
