//! A stage on both of its lanes.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{
    Backlog, BreakerConfig, Broker, Clocks, Commit, Embedded, EmbeddedConfig, Input, Log, LogError, Outgoing, Received, StageEnv,
    StageError, SystemClock,
    contract::poll_all,
    embedded::{Consumer, DeadLetterFilter},
    run_lanes, run_stage,
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
    assert_eq!((stats.live.tally.passed, stats.backfill.tally.passed), (40, 12));
    assert_eq!((stats.live.held, stats.backfill.held), (0, 0));
}

#[test]
fn a_live_record_waits_for_one_backfill_batch_at_most() {
    for (live, gather_s) in [(1, 0), (1, 3), (4, 3)] {
        let mut bench = Bench::new();
        bench.env.config.batch_records_max = 8;
        bench.env.config.gather_under_load = Duration::from_secs(gather_s);
        bench.append(&contexts(Lane::Backfill, 20));
        let (order, producer) = (Order::default(), bench.file.producer());
        bench.run_lanes(noted(&order, move |first| {
            if first.head.user.user == "b6" {
                producer.append(&contexts(Lane::Live, live), None).unwrap();
            }
        }));
        assert_eq!(
            *order.lock().unwrap(),
            "bbbblbbbbbb",
            "{live} come while the fourth batch is in work, gathered for {gather_s} s"
        );
    }
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
    let (live, slow) = (Box::new(consumer(Lane::Live)), Box::new(consumer(Lane::Backfill)));
    bench.append(&contexts(Lane::Backfill, 1));
    let env = bench.env.clone();
    let working = thread::spawn(move || run_lanes(&mut stage, live, slow, &env).unwrap());
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

/// The backfill lane's log. It notes its commits as `c` and its end as `.`.
struct Noted {
    log: Consumer,
    order: Order,
    /// How many polls and commits it refuses at first.
    refuses: (u32, u32),
}

impl Noted {
    fn of(bench: &Bench, order: &Order, refuses: (u32, u32)) -> Box<dyn Log> {
        let log = bench.file.consumer("endcap.themes.backfill", SLOW).unwrap();
        Box::new(Self { log, order: order.clone(), refuses })
    }

    fn note(&self, what: char) {
        self.order.lock().unwrap().push(what);
    }
}

fn refuse(left: &mut u32) -> Result<(), LogError> {
    let Some(less) = left.checked_sub(1) else { return Ok(()) };
    *left = less;
    Err(LogError::Unavailable("toy log is down".into()))
}

impl Log for Noted {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Received>, LogError> {
        refuse(&mut self.refuses.0)?;
        self.log.poll(max, wait)
    }
    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        refuse(&mut self.refuses.1)?;
        self.note('c');
        self.log.commit(commit)
    }
    fn backlog(&mut self) -> Result<Backlog, LogError> {
        self.log.backlog()
    }
    fn group(&self) -> &str {
        self.log.group()
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.note('.');
    }
}

#[test]
fn a_backfill_lane_whose_records_all_fail_stops_and_the_live_lane_goes_on() {
    let mut bench = Bench::new();
    bench.env.config.breaker = BreakerConfig { consecutive_max: 5, ..BreakerConfig::default() };
    bench.append(&contexts(Lane::Backfill, 30));
    let (order, producer, stats) = (Order::default(), bench.file.producer(), bench.env.stats.clone());
    let note = order.clone();
    let stage = Toy::<Compose>::with(move |batch| {
        let lane = &batch[0].value.head.user.user[..1];
        note.lock().unwrap().push_str(lane);
        if lane == "l" { Ok(None) } else { Err(StageError::Failed("no such shelf".into())) }
    });
    let mut later = Some(contexts(Lane::Live, 3));
    let done = move || {
        let stopped = stats.snapshot().backfill.stopped;
        let Some(later) = later.take_if(|_| stopped) else { return stopped };
        producer.append(&later, None).unwrap();
        false
    };
    let backfill = Noted::of(&bench, &order, (0, 0));
    bench.run_lanes_over(backfill, stage, Duration::ZERO, done);
    assert_eq!(users(&bench, Topic::THEMES), ["l0", "l1", "l2"]);
    let order = order.lock().unwrap().clone();
    assert_eq!(order.split_once('.').map(|(_, after)| after), Some("l"), "its log has gone when the lane has stopped: {order}");
    let snapshot = bench.env.stats.snapshot();
    let cause = "5 of its last 5 records failed, last with `no such shelf`; mend the cause and start the stage again";
    assert_eq!((snapshot.backfill.trouble.as_deref(), snapshot.live.trouble), (Some(cause), None));
    assert_eq!(bench.file.dead_letters(&DeadLetterFilter::default()).unwrap().len(), 4);
    bench.run_lanes(Toy::<Compose>::new());
    assert_eq!(users(&bench, Topic::THEMES.on(Lane::Backfill)).len(), 26, "the others pass once the cause is mended");
}

/// What does not answer to the backfill lane, once.
#[derive(Debug, Clone, Copy)]
enum Silent {
    Poll,
    Erasures,
    Model(fn(&'static str, String) -> StageError),
    Store,
    Commit,
}

/// The trouble that the lanes tell: the backfill lane, the live one.
type Troubles = (Option<String>, Option<String>);

/// A live record that comes while a backfill one is in work, to which something does not answer. Gives the order of things, and what the
/// lanes told when the live record was processed.
fn put_off(silent: Silent) -> (String, Vec<Troubles>) {
    let mut bench = Bench::new();
    bench.append(&contexts(Lane::Backfill, 1));
    let order = Order::default();
    let refuses = (u32::from(matches!(silent, Silent::Poll)), u32::from(matches!(silent, Silent::Commit)));
    let backfill = Noted::of(&bench, &order, refuses);
    bench.faults.store.store(u32::from(matches!(silent, Silent::Erasures)), Ordering::SeqCst);
    let (note, stats, faults) = (order.clone(), bench.env.stats.clone(), bench.faults.clone());
    let told: Arc<Mutex<Vec<_>>> = Arc::default();
    let (tells, mut first) = (told.clone(), true);
    let stage = Toy::<Compose>::with(move |batch| {
        let lane = &batch[0].value.head.user.user[..1];
        note.lock().unwrap().push_str(lane);
        if lane == "l" {
            let snapshot = stats.snapshot();
            tells.lock().unwrap().push((snapshot.backfill.trouble, snapshot.live.trouble));
        } else if std::mem::take(&mut first) {
            match silent {
                Silent::Model(error) => return Err(error("model", "warming up".into())),
                Silent::Store => faults.store.store(1, Ordering::SeqCst),
                _ => {}
            }
        }
        Ok(None)
    });
    let (file, mut live) = (bench.file.clone(), Some(contexts(Lane::Live, 1)));
    let done = move || match live.take() {
        Some(live) => file.producer().append(&live, None).is_err(),
        None => file.groups().unwrap().iter().all(|group| group.backlog.waiting == 0),
    };
    bench.run_lanes_over(backfill, stage, Duration::from_secs(1), done);
    let snapshot = bench.env.stats.snapshot();
    assert_eq!((snapshot.backfill.trouble, snapshot.live.trouble), (None, None), "{silent:?}: it is over");
    assert_eq!(
        (users(&bench, Topic::THEMES), users(&bench, Topic::THEMES.on(Lane::Backfill))),
        (vec!["l0".into()], vec!["b0".into()])
    );
    let (order, told) = (order.lock().unwrap().clone(), told.lock().unwrap().clone());
    (order, told)
}

#[test]
fn a_backfill_batch_to_which_something_does_not_answer_lets_live_records_pass_and_tells_its_own_trouble() {
    for (silent, order, trouble) in [
        (Silent::Poll, "lbc.", None),
        (Silent::Erasures, "lbc.", Some("store: toy store is down")),
        (Silent::Model(StageError::Faltered), "blbc.", Some("model: warming up")),
        (Silent::Model(StageError::Unavailable), "blbc.", Some("model: warming up")),
        (Silent::Store, "blc.", Some("store: toy store is down")),
        (Silent::Commit, "blc.", Some("log: toy log is down")),
    ] {
        let told = vec![(trouble.map(str::to_owned), None)];
        assert_eq!(put_off(silent), (order.to_owned(), told), "{silent:?}");
    }
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
    let live = bench.file.consumer("endcap.themes.live", Topic::CONTEXTS).unwrap();
    run_lanes(&mut stage, Box::new(live), Box::new(Down), &bench.env).unwrap();
    assert_eq!(users(&bench, Topic::THEMES).len(), 9);
    let snapshot = bench.env.stats.snapshot();
    assert_eq!((snapshot.backfill.trouble.as_deref(), snapshot.live.trouble), (Some("log: toy lane is not declared"), None));
}

/// A log whose group is divided when it is polled for the third time. Notes what the stage told of its live lane before each poll.
struct Joining {
    env: StageEnv,
    told: Arc<Mutex<Vec<Option<String>>>>,
}

impl Joining {
    fn polls(&self) -> usize {
        self.told.lock().unwrap().len()
    }
}

impl Log for Joining {
    fn poll(&mut self, _: usize, _: Duration) -> Result<Vec<Received>, LogError> {
        self.told.lock().unwrap().push(self.env.stats.snapshot().live.awaits);
        if self.polls() == 4 {
            self.env.shutdown.trigger();
        }
        Ok(Vec::new())
    }
    fn commit(&mut self, _: &Commit) -> Result<(), LogError> {
        unreachable!("nothing is polled")
    }
    fn backlog(&mut self) -> Result<Backlog, LogError> {
        Ok(Backlog::default())
    }
    fn awaits(&self) -> Option<String> {
        (self.polls() < 3).then(|| "group g is being divided".to_owned())
    }
    fn group(&self) -> &str {
        "g"
    }
}

#[test]
fn a_stage_tells_that_it_waits_for_its_group() {
    let bench = Bench::new();
    let told = Arc::new(Mutex::new(Vec::new()));
    let log = Joining { env: bench.env.clone(), told: told.clone() };
    run_stage(&mut noted(&Order::default(), |_| ()), Box::new(log), &bench.env).unwrap();
    let waits = Some("group g is being divided".to_owned());
    assert_eq!(*told.lock().unwrap(), [None, waits.clone(), waits, None]);
    assert_eq!(bench.env.stats.snapshot().live.trouble, None, "it is no trouble");
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
