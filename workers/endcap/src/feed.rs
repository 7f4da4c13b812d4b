//! The feeder: simulated shoppers, or the market's imported events, into the log. How far it is, is noted with the events themselves,
//! so that a new start goes on where the last one stopped, whatever ended it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail};
use endcap_market::Shoppers;
use endcap_runtime::{Broker, Clock, LogError, Outgoing, Shutdown};
use endcap_schemas::ShopperEvent;

use crate::intake::outgoing_of;

/// Events of one append.
const BATCH: u64 = 100;
/// How long to wait when the stages are too far behind.
const FULL_WAIT: Duration = Duration::from_millis(250);
/// When the simulation of a bounded run begins: Monday, 3 March 2025, 08:00 UTC. Fixed, so that the same seed gives the same events.
pub const BOUNDED_START_MS: i64 = 1_740_988_800_000;
/// Time between the events of a run without a rate.
const STEP_MS: i64 = 60_000;

/// Where events come from.
pub trait Source: Send {
    /// Its name: progress is noted under it.
    fn name(&self) -> String;

    /// The `n`-th event (from 0) and its successors, at most `max`; fewer only at the end.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&mut self, n: u64, max: u64) -> Result<Batch>;

    /// What is being fed, for people.
    fn describe(&self) -> String;
}

/// Some of a source's events.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// In order.
    pub events: Vec<ShopperEvent>,
    /// How many of them count: what a source adds to its events does not.
    pub counted: u64,
}

/// Limits of a feed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Events per second; `None` is without limit.
    pub rate: Option<f64>,
    /// Events in all, counted from the first start on this data directory; `None` is until the source ends.
    pub events: Option<u64>,
}

/// How a feed is getting on.
#[derive(Debug, Default)]
pub struct FeedState {
    fed: AtomicU64,
    done: AtomicBool,
}

impl FeedState {
    /// Events fed, in all starts.
    pub fn fed(&self) -> u64 {
        self.fed.load(Ordering::SeqCst)
    }

    /// Whether there will be no more.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::SeqCst)
    }
}

/// Feeds `source` into the log until it ends, its bound is reached or somebody asks to finish.
///
/// # Errors
/// When the source or the log fail for good.
pub fn feed(
    source: &mut dyn Source,
    log: &dyn Broker,
    pace: Pace,
    clock: &dyn Clock,
    state: &FeedState,
    shutdown: &Shutdown,
) -> Result<()> {
    let name = source.name();
    let mut next = fed_so_far(&name, log)?;
    state.fed.store(next, Ordering::SeqCst);
    let (first, start) = (next, clock.monotonic());
    while !shutdown.is_triggered() {
        let left = pace.events.map_or(u64::MAX, |events| events.saturating_sub(next));
        let due = pace
            .rate
            .map_or(BATCH, |rate| due_events(rate, clock.monotonic().saturating_sub(start)).saturating_sub(next - first));
        if left == 0 {
            break;
        }
        if due == 0 {
            shutdown.wait(Duration::from_secs_f64((0.5 / pace.rate.unwrap_or(1.0)).clamp(0.002, 0.25)));
            continue;
        }
        let wanted = due.min(left).min(BATCH);
        let batch = source.read(next, wanted)?;
        if batch.counted > 0 {
            next += batch.counted;
            if !append(log, &outgoing(&batch.events)?, &name, &next.to_string(), shutdown)? {
                break;
            }
            state.fed.store(next, Ordering::SeqCst);
        }
        if batch.counted < wanted {
            break;
        }
    }
    state.done.store(!shutdown.is_triggered(), Ordering::SeqCst);
    Ok(())
}

/// How far the source `name` was fed by earlier starts.
fn fed_so_far(name: &str, log: &dyn Broker) -> Result<u64> {
    match log.progress(name).context("cannot read how far the feed is")? {
        Some(text) => text.parse().with_context(|| format!("cannot read how far the feed is: {text:?}")),
        None => Ok(0),
    }
}

/// Events that a rate makes due after `passed`: the first at once.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of seconds times events")]
fn due_events(rate: f64, passed: Duration) -> u64 {
    (passed.as_secs_f64() * rate).floor() as u64 + 1
}

fn outgoing(events: &[ShopperEvent]) -> Result<Vec<Outgoing>> {
    events.iter().map(|event| outgoing_of(event).with_context(|| format!("cannot feed event {}", event.id))).collect()
}

/// Appends, waiting for as long as the log is full or cannot be reached. Answers `false` when somebody asked to finish meanwhile: whether the last
/// try was written the next start reads from the progress that is noted with it.
pub(crate) fn append(log: &dyn Broker, records: &[Outgoing], name: &str, next: &str, shutdown: &Shutdown) -> Result<bool> {
    loop {
        match log.append(records, Some((name, next))) {
            Ok(()) => return Ok(true),
            Err(LogError::Full { .. } | LogError::Unavailable(_)) => {
                if shutdown.wait(FULL_WAIT) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error).context("cannot append records"),
        }
    }
}

/// When a start of a simulation without end began, and with which event. Never kept: after a pause, or at another rate, time goes
/// on from the new start.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Anchor {
    first: u64,
    at_ms: i64,
    rate: Option<f64>,
}

impl Anchor {
    /// When the `n`-th event happens: as it becomes due, so that none comes from the future.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "milliseconds far below 2^52")]
    fn stamp(&self, n: u64) -> i64 {
        let passed_ms = self.rate.map_or(0.0, |rate| n.saturating_sub(self.first) as f64 * 1_000.0 / rate);
        self.at_ms + passed_ms as i64
    }

    /// Start and step of the shoppers' own calendar, which here decides over their season alone.
    fn calendar(&self) -> (i64, i64) {
        let step_ms = self.stamp(self.first + 1) - self.at_ms;
        (self.at_ms - i64::try_from(self.first).unwrap_or(0) * step_ms, step_ms)
    }
}

/// Simulated shoppers of the demo market.
pub struct Simulated {
    shoppers: Shoppers,
    name: String,
    words: String,
    /// `None` for a bounded run.
    anchor: Option<Anchor>,
}

impl Simulated {
    /// `count` shoppers of `seed`. A bounded run begins at a fixed date; one without end goes on at the clock's time at every
    /// start.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn new(
        market: Arc<endcap_market::Market>,
        seed: u64,
        count: u32,
        pace: Pace,
        log: &dyn Broker,
        clock: &dyn Clock,
    ) -> Result<Self> {
        if count == 0 {
            bail!("no shoppers to simulate");
        }
        let kind = if pace.events.is_some() { "bounded" } else { "live" };
        let name = format!("shoppers/{kind}/{seed}/{count}");
        let anchor = match pace.events {
            Some(_) => None,
            None => Some(Anchor { first: fed_so_far(&name, log)?, at_ms: clock.now_ms(), rate: pace.rate }),
        };
        let (start_ms, step_ms) = anchor.map_or((BOUNDED_START_MS, STEP_MS), |anchor| anchor.calendar());
        let rate = pace.rate.map_or_else(
            || "as fast as the stages allow".to_owned(),
            |rate| {
                let events = if rate == 1.0 { "event" } else { "events" };
                format!("{rate} {events} a second")
            },
        );
        let words = format!("{count} simulated shoppers, {rate}");
        Ok(Self { shoppers: Shoppers::new(market, seed, count, start_ms, step_ms), name, words, anchor })
    }
}

impl Source for Simulated {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn read(&mut self, n: u64, max: u64) -> Result<Batch> {
        let event = |n| {
            let mut event = self.shoppers.event(n);
            // Another simulation in the same data directory has other events: its ids must not look like repeats of these.
            event.id = format!("{}/{}", self.name, event.id);
            if let Some(anchor) = &self.anchor {
                event.at_ms = anchor.stamp(n);
            }
            event
        };
        Ok(Batch { events: (n..n + max).map(event).collect(), counted: max })
    }

    fn describe(&self) -> String {
        self.words.clone()
    }
}

#[cfg(test)]
mod tests {
    use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock};
    use endcap_schemas::{EventKind, Line, topics::Topic};

    use super::*;

    /// A source of `0..self.0`.
    struct Counting(u64);

    impl Source for Counting {
        fn name(&self) -> String {
            "counting".to_owned()
        }

        fn read(&mut self, n: u64, max: u64) -> Result<Batch> {
            let event = |n: u64| ShopperEvent {
                id: format!("e{n}"),
                tenant: "default".to_owned(),
                user: "u".to_owned(),
                at_ms: 1,
                kind: EventKind::Purchase,
                lines: vec![Line { product: "p".to_owned(), quantity: 1 }],
                preference: None,
                personalise: None,
            };
            let events: Vec<ShopperEvent> = (n..(n + max).min(self.0)).map(event).collect();
            Ok(Batch { counted: events.len() as u64, events })
        }

        fn describe(&self) -> String {
            String::new()
        }
    }

    fn run(file: &Embedded, events: Option<u64>) -> FeedState {
        let state = FeedState::default();
        let pace = Pace { rate: None, events };
        feed(&mut Counting(250), file, pace, &ManualClock::at(0), &state, &Shutdown::new()).unwrap();
        state
    }

    #[test]
    fn a_feed_goes_on_where_the_last_one_stopped_and_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), Arc::new(ManualClock::at(9))).unwrap();
        for (bound, fed) in [(Some(30), 30), (Some(30), 30), (Some(120), 120), (None, 250), (None, 250)] {
            let state = run(&file, bound);
            assert_eq!((state.fed(), state.is_done()), (fed, true));
        }
        let ids: Vec<String> =
            file.records(Topic::EVENTS, 0, 1_000).unwrap().into_iter().map(|record| record.headers.id).collect();
        assert_eq!(ids, (0..250).map(|n| format!("e{n}")).collect::<Vec<_>>());
    }

    #[test]
    fn a_simulation_without_end_goes_on_at_the_clocks_time_at_every_start() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(1_700_000_000_000));
        let file = Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), clock.clone()).unwrap();
        let market = Arc::new(endcap_market::Market::generate(endcap_market::DEMO_SEED));
        let mut ids = Vec::new();
        for (first, rate) in [(0, 0.5), (10, 4_000.0), (20, 3.0)] {
            clock.advance(Duration::from_secs(7 * 86_400));
            let pace = Pace { rate: Some(rate), events: None };
            let mut source = Simulated::new(market.clone(), 1, 5, pace, &file, clock.as_ref()).unwrap();
            let batch = source.read(first, 10).unwrap();
            for (n, event) in (0_u32..).zip(&batch.events) {
                let due_ms = clock.now_ms() + (f64::from(n) * 1_000.0 / rate) as i64;
                assert_eq!(event.at_ms, due_ms, "event {n} at {rate} a second");
            }
            ids.extend(batch.events.iter().map(|event| event.id.clone()));
            let next = (first + 10).to_string();
            Broker::append(&file, &outgoing(&batch.events).unwrap(), Some((&source.name(), &next))).unwrap();
        }
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 30);
    }

    #[test]
    fn a_rate_makes_events_due_one_by_one() {
        for (rate, ms, due) in
            [(2.0, 0, 1), (2.0, 499, 1), (2.0, 500, 2), (0.5, 1_999, 1), (0.5, 2_000, 2), (1_000.0, 1_000, 1_001)]
        {
            assert_eq!(due_events(rate, Duration::from_millis(ms)), due, "{rate} a second after {ms} ms");
        }
    }
}
