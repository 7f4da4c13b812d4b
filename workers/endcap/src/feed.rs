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
use endcap_runtime::{Clock, LogError, Outgoing, Shutdown, embedded::Producer};
use endcap_schemas::ShopperEvent;
use serde::{Deserialize, Serialize};

use crate::desk::outgoing_of;

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
    producer: &Producer,
    pace: Pace,
    clock: &dyn Clock,
    state: &FeedState,
    shutdown: &Shutdown,
) -> Result<()> {
    let name = source.name();
    let noted = producer.progress(&name).context("cannot read how far the feed is")?;
    let mut next: u64 = match noted {
        Some(text) => text.parse().with_context(|| format!("cannot read how far the feed is: {text:?}"))?,
        None => 0,
    };
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
            if !append(producer, &outgoing(&batch.events)?, &name, next, shutdown)? {
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

/// Events that a rate makes due after `passed`: the first at once.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of seconds times events")]
fn due_events(rate: f64, passed: Duration) -> u64 {
    (passed.as_secs_f64() * rate).floor() as u64 + 1
}

fn outgoing(events: &[ShopperEvent]) -> Result<Vec<Outgoing>> {
    events.iter().map(|event| outgoing_of(event).with_context(|| format!("cannot feed event {}", event.id))).collect()
}

/// Appends, waiting for as long as the log is full or cannot be reached. Answers `false` when somebody asked to finish meanwhile: then
/// nothing was appended and no progress noted, so that the next start reads these events again.
fn append(producer: &Producer, records: &[Outgoing], name: &str, next: u64, shutdown: &Shutdown) -> Result<bool> {
    loop {
        match producer.append(records, Some((name, &next.to_string()))) {
            Ok(_) => return Ok(true),
            Err(LogError::Full { .. } | LogError::Unavailable(_)) => {
                if shutdown.wait(FULL_WAIT) {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error).context("cannot append events"),
        }
    }
}

/// When a simulation began, kept in the log so that a new start has the same shoppers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Calendar {
    start_ms: i64,
    step_ms: i64,
}

/// Simulated shoppers of the demo market.
pub struct Simulated {
    shoppers: Shoppers,
    name: String,
    words: String,
}

impl Simulated {
    /// `count` shoppers of `seed`. A bounded run begins at a fixed date; one without end begins when it is first started and keeps pace
    /// with the clock.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn new(
        market: Arc<endcap_market::Market>,
        seed: u64,
        count: u32,
        pace: Pace,
        producer: &Producer,
        clock: &dyn Clock,
    ) -> Result<Self> {
        if count == 0 {
            bail!("no shoppers to simulate");
        }
        let kind = if pace.events.is_some() { "bounded" } else { "live" };
        let name = format!("shoppers/{kind}/{seed}/{count}");
        let calendar = match pace.events {
            Some(_) => Calendar { start_ms: BOUNDED_START_MS, step_ms: STEP_MS },
            None => live_calendar(&name, pace, producer, clock)?,
        };
        let rate = pace.rate.map_or_else(|| "as fast as the stages allow".to_owned(), |rate| format!("{rate} events a second"));
        let words = format!("{count} simulated shoppers, {rate}");
        Ok(Self { shoppers: Shoppers::new(market, seed, count, calendar.start_ms, calendar.step_ms), name, words })
    }
}

fn live_calendar(name: &str, pace: Pace, producer: &Producer, clock: &dyn Clock) -> Result<Calendar> {
    let key = format!("{name}/calendar");
    if let Some(text) = producer.progress(&key).context("cannot read when the simulation began")? {
        return serde_json::from_str(&text).context("cannot read when the simulation began");
    }
    #[expect(clippy::cast_possible_truncation, reason = "milliseconds between two events")]
    let step_ms = (1_000.0 / pace.rate.unwrap_or(1.0)).max(1.0) as i64;
    // Every event lies within its step: one step back, so that none comes from the future.
    let calendar = Calendar { start_ms: clock.now_ms() - step_ms, step_ms };
    let text = serde_json::to_string(&calendar).expect("two numbers are JSON");
    producer.append(&[], Some((&key, &text))).context("cannot note when the simulation began")?;
    Ok(calendar)
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
        feed(&mut Counting(250), &file.producer(), pace, &ManualClock::at(0), &state, &Shutdown::new()).unwrap();
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
    fn a_rate_makes_events_due_one_by_one() {
        for (rate, ms, due) in
            [(2.0, 0, 1), (2.0, 499, 1), (2.0, 500, 2), (0.5, 1_999, 1), (0.5, 2_000, 2), (1_000.0, 1_000, 1_001)]
        {
            assert_eq!(due_events(rate, Duration::from_millis(ms)), due, "{rate} a second after {ms} ms");
        }
    }
}
