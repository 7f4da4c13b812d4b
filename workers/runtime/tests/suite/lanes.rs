//! A stage on both of its lanes.

use std::{
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{
    Backlog, BreakerConfig, Broker, Clocks, Commit, Embedded, EmbeddedConfig, Input, Log, LogError, Outgoing, Received,
    StageError, SystemClock, contract::poll_all, embedded::DeadLetterFilter, run_lanes,
};
use endcap_schemas::{
    ContextChanged, ThemesWritten,
    topics::{Lane, Topic},
    wire,
};

use crate::toys::{Bench, Compose, NOW_MS, Toy, context, sent};

const SLOW: Topic = Topic::CONTEXTS.on(Lane::Backfill);

/// Contexts of `count` users of their own on `lane`: `l0` and on, or `b0` and on.
fn contexts(lane: Lane, count: i64) -> Vec<Outgoing> {
    let letter = &lane.name()[..1];
    let record = |n| {
        let message = context(&format!("{letter}{n}"), NOW_MS + n, &format!("e{n}"));
        Outgoing { topic: Topic::CONTEXTS.on(lane), ..sent(&message, &format!("{letter}{n}")) }
    };
    (0..count).map(record).collect()
}

/// The first letter of every batch's users, in the order of the batches.
type Order = Arc<Mutex<String>>;

fn noted(order: &Order, mut knob: impl FnMut(&ContextChanged) + Send + 'static) -> Toy<Compose> {
    let order = order.clone();
    Toy::with(move |batch: &[Input<ContextChanged>]| {
        let first = &batch[0].value;
        order.lock().unwrap().push_str(&first.head.user.user[..1]);
        knob(first);
        Ok(None)
    })
}

fn users(bench: &Bench, topic: Topic) -> Vec<String> {
    let themes = |record: &Received| wire::decode::<ThemesWritten>(&record.value).expect("a message").head.user.user;
    bench.records(topic).iter().map(themes).collect()
}

#[test]
fn live_goes_first_and_backfill_gets_one_batch_in_so_many_and_all_that_is_left() {
    let mut bench = Bench::new();
    bench.env.config.batch_records_max = 4;
    bench.env.config.backfill_share = 4;
    bench.append(&contexts(Lane::Backfill, 12));
    bench.append(&contexts(Lane::Live, 40));
    let order = Order::default();
    bench.run_lanes(noted(&order, |_| {}));
    assert_eq!(*order.lock().unwrap(), "lllblllblllblbbbbbbbbb", "a backfill batch is a quarter of a live one");
    for (lane, count) in [(Lane::Live, 40_i64), (Lane::Backfill, 12)] {
        let wanted: Vec<String> = (0..count).map(|n| format!("{}{n}", &lane.name()[..1])).collect();
        assert_eq!(users(&bench, Topic::THEMES.on(lane)), wanted, "what comes of a lane's records goes to the same lane");
        let tally = &bench.file.tallies().unwrap()[&lane.named("themes")];
        assert!(tally.is_balanced());
        assert_eq!((tally.received, tally.passed), (count.unsigned_abs(), count.unsigned_abs()), "{lane}");
    }
    let stats = bench.env.stats.snapshot();
    assert_eq!((stats.tally.passed, stats.backfill.tally.passed, stats.held), (40, 12, 0));
}

#[test]
fn a_live_record_waits_for_one_backfill_batch_at_most() {
    let mut bench = Bench::new();
    bench.env.config.batch_records_max = 8;
    bench.append(&contexts(Lane::Backfill, 20));
    let (order, producer) = (Order::default(), bench.file.producer());
    bench.run_lanes(noted(&order, move |first| {
        if first.head.user.user == "b6" {
            producer.append(&contexts(Lane::Live, 1), None).unwrap();
        }
    }));
    assert_eq!(*order.lock().unwrap(), "bbbblbbbbbb", "it comes while the fourth batch is in work");
}

#[test]
fn a_live_record_that_rests_lets_the_backfill_lane_pass() {
    let mut bench = Bench::new();
    bench.env.config.debounce = Duration::from_secs(3);
    bench.append(&contexts(Lane::Live, 1));
    bench.append(&contexts(Lane::Backfill, 1));
    let order = Order::default();
    bench.run_lanes_ticking(noted(&order, |_| {}), Duration::from_secs(1));
    assert_eq!(*order.lock().unwrap(), "bl", "the backfill lane has no debounce");
}

#[test]
fn a_live_record_is_taken_at_once_while_both_lanes_idle() {
    let mut bench = Bench::new();
    bench.env.config.poll_wait = Duration::from_secs(60);
    bench.env.clocks = Clocks { wall: Arc::new(SystemClock::default()), events: bench.clock.clone() };
    let (order, asked) = (Order::default(), bench.env.shutdown.clone());
    let mut stage = noted(&order, move |first| {
        if first.head.user.user == "l0" {
            asked.trigger();
        }
    });
    let consumer = |lane| bench.file.consumer(&format!("endcap.themes.{lane}"), Topic::CONTEXTS.on(lane)).unwrap();
    let (mut live, mut slow) = (consumer(Lane::Live), consumer(Lane::Backfill));
    bench.append(&contexts(Lane::Backfill, 1));
    let env = bench.env.clone();
    let working = thread::spawn(move || run_lanes(&mut stage, &mut live, &mut slow, &env).unwrap());
    while bench.env.stats.snapshot().backfill.tally.passed == 0 {
        thread::yield_now();
    }
    let since = Instant::now();
    bench.append(&contexts(Lane::Live, 1));
    working.join().unwrap();
    assert!(since.elapsed() < Duration::from_secs(10), "it would have waited for a minute");
    assert_eq!(*order.lock().unwrap(), "bl");
}

#[test]
fn a_dead_letter_of_the_backfill_lane_goes_back_to_it() {
    let mut bench = Bench::new();
    let mut records = contexts(Lane::Backfill, 2);
    records[0].value = b"{}".to_vec();
    bench.append(&records);
    bench.run_lanes(Toy::<Compose>::new());
    let letters = bench.file.dead_letters(&DeadLetterFilter::default()).unwrap();
    let told = (&letters[0].stage[..], &letters[0].group[..], &letters[0].topic[..]);
    assert_eq!(told, ("themes", "endcap.themes.backfill", SLOW.name()));
    let tallies = bench.file.tallies().unwrap();
    assert_eq!((tallies["themes.backfill"].dead_lettered_total(), tallies.get("themes")), (1, None));
    assert_eq!(bench.file.redrive(&[letters[0].id.clone()]).unwrap(), 1);
    let again = poll_all(&mut bench.file.consumer("endcap.themes.backfill", SLOW).unwrap(), 1);
    assert_eq!((again[0].topic, &again[0].value, &again[0].headers), (SLOW, &records[0].value, &records[0].headers));
}

#[test]
fn a_backfill_lane_whose_records_all_fail_stops_and_the_live_lane_goes_on() {
    let mut bench = Bench::new();
    bench.env.config.breaker = BreakerConfig { consecutive_max: 5, ..BreakerConfig::default() };
    bench.append(&contexts(Lane::Backfill, 30));
    let (producer, stats) = (bench.file.producer(), bench.env.stats.clone());
    let mut failed = 0;
    let stage = Toy::<Compose>::with(move |batch| {
        if batch[0].value.head.user.user.starts_with('l') {
            return Ok(None);
        }
        failed += 1;
        if failed == 1 {
            producer.append(&contexts(Lane::Live, 3), None).unwrap();
        }
        Err(StageError::Failed("no such shelf".into()))
    });
    bench.run_lanes_until(stage, Duration::ZERO, move || stats.snapshot().backfill.trouble.is_some());
    assert_eq!(users(&bench, Topic::THEMES), ["l0", "l1", "l2"]);
    let snapshot = bench.env.stats.snapshot();
    assert!(snapshot.backfill.trouble.unwrap().contains("no such shelf"));
    assert_eq!((snapshot.trouble, bench.file.dead_letters(&DeadLetterFilter::default()).unwrap().len()), (None, 4));
    bench.run_lanes(Toy::<Compose>::new());
    assert_eq!(users(&bench, Topic::THEMES.on(Lane::Backfill)).len(), 26, "the others pass once the cause is mended");
}

/// A log that never answers.
struct Down;

impl Log for Down {
    fn poll(&mut self, _: usize, _: Duration) -> Result<Vec<Received>, LogError> {
        Err(LogError::Unavailable("toy lane is not declared".into()))
    }
    fn commit(&mut self, _: &Commit) -> Result<(), LogError> {
        unreachable!("nothing is polled")
    }
    fn backlog(&mut self) -> Result<Backlog, LogError> {
        Err(LogError::Unavailable("toy lane is not declared".into()))
    }
    fn group(&self) -> &str {
        "down"
    }
}

#[test]
fn a_backfill_lane_that_does_not_answer_holds_nobody_up() {
    let mut bench = Bench::new();
    bench.env.config.retry.first = Duration::from_secs(3_600);
    bench.env.config.retry.longest = Duration::from_secs(3_600);
    bench.env.config.batch_records_max = 1;
    bench.append(&contexts(Lane::Live, 9));
    let asked = bench.env.shutdown.clone();
    let order = Order::default();
    let mut stage = noted(&order, move |first| {
        if first.head.user.user == "l8" {
            asked.trigger();
        }
    });
    let mut live = bench.file.consumer("endcap.themes.live", Topic::CONTEXTS).unwrap();
    run_lanes(&mut stage, &mut live, &mut Down, &bench.env).unwrap();
    assert_eq!(users(&bench, Topic::THEMES).len(), 9);
    let snapshot = bench.env.stats.snapshot();
    assert_eq!((snapshot.backfill.trouble.as_deref(), snapshot.trouble), (Some("log: toy lane is not declared"), None));
}

#[test]
fn a_full_backfill_lane_takes_no_more_and_the_live_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let config = EmbeddedConfig { waiting_max: 3, ..EmbeddedConfig::default() };
    let file = Embedded::open(dir.path().join("endcap.db"), config, Arc::new(SystemClock::default())).unwrap();
    for lane in Lane::ALL {
        file.declare(&format!("endcap.themes.{lane}"), Topic::CONTEXTS.on(lane)).unwrap();
    }
    Broker::append(&file, &contexts(Lane::Backfill, 3), None).unwrap();
    let refused = Broker::append(&file, &contexts(Lane::Backfill, 1), None);
    assert!(matches!(&refused, Err(LogError::Full { topic, .. }) if topic == SLOW.name()), "{refused:?}");
    Broker::append(&file, &contexts(Lane::Live, 3), None).unwrap();
    assert!(matches!(Broker::append(&file, &contexts(Lane::Live, 1), None), Err(LogError::Full { .. })));
}
