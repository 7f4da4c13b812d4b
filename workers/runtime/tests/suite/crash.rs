//! Real processes, killed at any moment: nothing is lost and nothing is written twice.
//!
//! The children are this test binary itself, run as the ignored test `child` with their orders in the environment.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use endcap_runtime::{
    Clocks, Embedded, EmbeddedConfig, LoopConfig, Outgoing, Shutdown, StageEnv, StageStats, Store, SystemClock, Tally,
    embedded::DeadLetterFilter, run_lanes, run_stage,
};
use endcap_schemas::{
    ContextChanged, KeywordsChosen, Message, UserKey,
    topics::{Lane, Topic},
    wire,
};

use crate::toys::{Choose, Compose, Fold, Hop, NOW_MS, Toy, context, event, sent};

const FILE: &str = "ENDCAP_CRASH_FILE";
const ROLES: &str = "ENDCAP_CRASH_ROLES";
const UP_TO: &str = "ENDCAP_CRASH_UP_TO";
const SEED: u64 = 20_260_117;
const EVENTS: i64 = 3_000;
const USERS: i64 = 40;
const ROUNDS: u64 = 8;

fn open(path: &Path) -> Embedded {
    Embedded::open(path, EmbeddedConfig::default(), Arc::new(SystemClock::default())).expect("the file opens")
}

fn environment(file: &Embedded) -> StageEnv {
    let config = LoopConfig { batch_records_max: 8, poll_max: 32, poll_wait: Duration::from_millis(5), ..LoopConfig::default() };
    let clocks = Clocks { events: Arc::new(endcap_runtime::ManualClock::at(NOW_MS)), ..Clocks::system() };
    StageEnv { store: Arc::new(file.clone()), clocks, config, stats: Arc::new(StageStats::default()), shutdown: Shutdown::new() }
}

/// Appends events from where the last producer was stopped to the `up_to`-th, a few at a time, and as many contexts of other users to the
/// backfill lane.
fn produce(file: &Embedded, up_to: i64, shutdown: &Shutdown) {
    let producer = file.producer();
    while !shutdown.is_triggered() {
        let from: i64 = producer.progress("toy").unwrap().map_or(0, |text| text.parse().unwrap());
        let to = (from + 7).min(up_to);
        if from == to {
            return;
        }
        let live = |n: i64| sent(&event(&format!("u{}", n % USERS), NOW_MS + n, &format!("e{n}")), &format!("e{n}"));
        let slow = |n: i64| {
            let message = context(&format!("b{n}"), NOW_MS, &format!("e{n}"));
            Outgoing { topic: Topic::CONTEXTS.on(Lane::Backfill), ..sent(&message, &format!("b{n}")) }
        };
        let records: Vec<_> = (from..to).flat_map(|n| [live(n), slow(n)]).collect();
        producer.append(&records, Some(("toy", &to.to_string()))).unwrap();
    }
}

fn consume<H: Hop>(file: &Embedded, shutdown: &Shutdown) {
    let env = StageEnv { shutdown: shutdown.clone(), ..environment(file) };
    let log = |lane| file.consumer(&format!("endcap.{}.{lane}", H::NAME), H::In::TOPIC.on(lane)).unwrap();
    let (mut stage, live) = (Toy::<H>::new(), Box::new(log(Lane::Live)));
    if H::In::TOPIC == Topic::EVENTS {
        run_stage(&mut stage, live, &env).unwrap();
    } else {
        run_lanes(&mut stage, live, Box::new(log(Lane::Backfill)), &env).unwrap();
    }
}

/// Plays `roles`, one thread each, until `shutdown`; events are produced up to the `up_to`-th.
fn play(file: &Embedded, roles: &str, up_to: i64, shutdown: &Shutdown) {
    thread::scope(|scope| {
        for role in roles.split(',').map(str::to_owned) {
            scope.spawn(move || match &role[..] {
                "produce" => produce(file, up_to, shutdown),
                "context" => consume::<Fold>(file, shutdown),
                "themes" => consume::<Compose>(file, shutdown),
                "keywords" => consume::<Choose>(file, shutdown),
                other => panic!("no role {other}"),
            });
        }
    });
}

#[test]
#[ignore = "what the crash test's children run"]
fn child() {
    let (Ok(path), Ok(roles)) = (env::var(FILE), env::var(ROLES)) else { return };
    let up_to = env::var(UP_TO).expect("how many events").parse().expect("a number");
    play(&open(Path::new(&path)), &roles, up_to, &Shutdown::new());
}

/// A child that is killed at the latest when its handle goes.
struct Doomed(Child);

impl Doomed {
    fn start(path: &Path, roles: &str, up_to: i64) -> Self {
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "crash::child", "--ignored", "--nocapture"])
            .env(FILE, path)
            .env(ROLES, roles)
            .env(UP_TO, up_to.to_string())
            .stdout(Stdio::null())
            .spawn()
            .expect("a child starts");
        Self(child)
    }

    fn kill(mut self) {
        assert!(self.0.try_wait().expect("a child has a status").is_none(), "a child ended by itself");
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a killed child ends");
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `n`-th number of the seed's sequence, below `below`.
fn drawn(n: u64, below: u64) -> u64 {
    let mut x = SEED.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) % below
}

#[test]
fn killed_processes_lose_nothing_and_repeat_nothing() {
    println!("seed {SEED}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("endcap.db");
    let file = open(&path);
    let end = |topic| file.end(topic).unwrap();
    for round in 0..ROUNDS {
        // Each round has events of its own, however fast the machine is: something is at work when it is killed.
        let up_to = EVENTS * (round.cast_signed() + 1) / ROUNDS.cast_signed();
        let before = end(Topic::EVENTS) + end(Topic::KEYWORDS);
        let one = Doomed::start(&path, "produce,context,themes", up_to);
        let two = Doomed::start(&path, "context,keywords", up_to);
        // The moment is random; that the processes have got to work by then is not.
        while end(Topic::EVENTS) + end(Topic::KEYWORDS) == before {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(drawn(2 * round, 150)));
        one.kill();
        thread::sleep(Duration::from_millis(drawn(2 * round + 1, 40)));
        two.kill();
    }
    let shutdown = Shutdown::new();
    thread::scope(|scope| {
        scope.spawn(|| play(&file, "produce,context,themes,keywords", EVENTS, &shutdown));
        while end(Topic::EVENTS) < EVENTS || file.groups().unwrap().iter().any(|group| group.backlog.waiting > 0) {
            thread::sleep(Duration::from_millis(5));
        }
        shutdown.trigger();
    });
    check(&file);
}

fn check(file: &Embedded) {
    let contexts: Vec<ContextChanged> = all(file);
    let ids: Vec<_> = contexts.iter().map(|context| context.head.cause.event_id.clone()).collect();
    assert_eq!(ids, (0..EVENTS).map(|n| format!("e{n}")).collect::<Vec<_>>(), "every event once, in order");

    let tallies = file.tallies().unwrap();
    let of = |stage: &str| -> &Tally { &tallies[stage] };
    assert!(tallies.values().all(Tally::is_balanced), "{tallies:?}");
    assert_eq!((of("context").received, of("context").passed), (EVENTS.unsigned_abs(), EVENTS.unsigned_abs()));
    assert_eq!(of("themes").received, of("context").passed);
    assert_eq!(of("keywords").received, of("themes").passed);

    let pages: Vec<KeywordsChosen> = all(file);
    assert_eq!(pages.len() as u64, of("keywords").passed);
    let records = file.records(Topic::KEYWORDS, 0, usize::MAX).unwrap();
    let distinct: BTreeSet<_> = records.iter().map(|record| &record.headers.id).collect();
    assert_eq!(distinct.len(), records.len(), "no output twice");
    let mut newest: BTreeMap<UserKey, i64> = BTreeMap::new();
    for page in &pages {
        let before = newest.insert(page.head.user.clone(), page.head.context_ms);
        assert!(before.is_none_or(|before| before < page.head.context_ms), "a user's order is kept");
    }
    for n in EVENTS - USERS..EVENTS {
        let user = UserKey::of(format!("u{}", n % USERS));
        assert_eq!(newest[&user], NOW_MS + n, "everybody's last context arrives");
        assert_eq!(file.state(&user).unwrap(), Some(format!("e{n}").into_bytes()), "and is what the store ends with");
    }
    assert!(file.dead_letters(&DeadLetterFilter::default()).unwrap().is_empty());
    check_backfill(file);
    println!(
        "{} contexts, {} pages, {} superseded",
        contexts.len(),
        pages.len(),
        of("themes").dropped_total() + of("keywords").dropped_total()
    );
}

/// Every user of the backfill lane came through it once.
fn check_backfill(file: &Embedded) {
    let records = file.records(Topic::KEYWORDS.on(Lane::Backfill), 0, usize::MAX).unwrap();
    let mut users: Vec<&str> = records.iter().map(|record| record.key.as_str()).collect();
    users.sort_unstable();
    let mut wanted: Vec<String> = (0..EVENTS).map(|n| UserKey::of(format!("b{n}")).to_string()).collect();
    wanted.sort_unstable();
    assert_eq!(users, wanted);
    let tallies = file.tallies().unwrap();
    for stage in ["themes.backfill", "keywords.backfill"] {
        assert_eq!((tallies[stage].received, tallies[stage].passed), (EVENTS.unsigned_abs(), EVENTS.unsigned_abs()), "{stage}");
    }
}

fn all<M: Message>(file: &Embedded) -> Vec<M> {
    file.records(M::TOPIC, 0, usize::MAX).unwrap().iter().map(|record| wire::decode(&record.value).expect("a message")).collect()
}
