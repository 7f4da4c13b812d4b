//! The path converges: events that come again, contexts that are replayed, and processes that end at any moment change neither the states nor
//! the pages in the end. The stages and their loop are the real ones, the models their twins.

use std::{
    collections::BTreeMap,
    env,
    hash::{BuildHasher, Hasher, RandomState},
    path::Path as Dir,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use endcap::{
    desk,
    monitor::group_of,
    path::{Fleet, declare},
};
use endcap_aiqa::{AiqaConfig, AiqaStage};
use endcap_context::{ContextConfig, ContextStage};
use endcap_dedup::{DedupConfig, DedupStage};
use endcap_keywords::{KeywordsConfig, KeywordsStage};
use endcap_retrieval::Market;
use endcap_runtime::{
    Backlog, Clocks, Commit, Embedded, EmbeddedConfig, Erasure, Headers, Log, LogError, LoopConfig, ManualClock, Outgoing,
    Received, RetryConfig, Shutdown, Stage, StageEnv, StageResult, StageStats, Store, StoreError, StoredPage, Tally, Write,
    run_stage,
};
use endcap_schemas::{
    Message, Page, ShopperEvent, UserKey,
    topics::{Lane, Topic},
    wire,
};
use endcap_tests::{Draw, Shoppers, twins};
use endcap_themes::{ThemesConfig, ThemesStage};
use serde_json::Value;

use crate::path::market;

/// Schedules of a run; `ENDCAP_TEST_SCHEDULES` sets another number.
const SCHEDULES: u64 = 25;
/// Replays of one schedule.
const REPLAYS_MAX: u64 = 5;
/// Shoppers of a schedule, and most of its events.
const SHOPPERS: u64 = 3;
const EVENTS: u64 = 14;
/// What the clocks show, ms.
const NOW_MS: i64 = 1_700_000_000_000;
const STAGES: u64 = 5;
/// What a process that lives on has before it would end: more steps than it takes.
const LONG: u64 = u64::MAX;

/// When a process ends: so many steps from now. A step is a write to the store or a commit.
#[derive(Clone)]
struct Fuse {
    left: Arc<Mutex<(u64, Draw)>>,
    shutdown: Shutdown,
}

/// How far the last step of a process comes.
enum Last {
    Nothing,
    Some,
    AllButTheAnswer,
}

impl Fuse {
    fn of(steps: u64, draw: Draw) -> Self {
        Self { left: Arc::new(Mutex::new((steps, draw))), shutdown: Shutdown::new() }
    }

    /// `None` while the process lives, else how far this step comes; the first one after the end comes nowhere.
    fn burn(&self) -> Option<Last> {
        let mut left = self.left.lock().expect("nobody panics with the fuse");
        if left.0 > 0 {
            left.0 -= 1;
            return None;
        }
        if self.shutdown.is_triggered() {
            return Some(Last::Nothing);
        }
        self.shutdown.trigger();
        Some(match left.1.below(3) {
            0 => Last::Nothing,
            1 => Last::Some,
            _ => Last::AllButTheAnswer,
        })
    }
}

/// A process's connection to its topic, which ends when there is nothing left to do.
struct Mortal<L> {
    log: L,
    fuse: Fuse,
}

impl<L: Log> Log for Mortal<L> {
    fn poll(&mut self, max: usize, _wait: Duration) -> Result<Vec<Received>, LogError> {
        let polled = self.log.poll(max, Duration::ZERO)?;
        if polled.is_empty() {
            self.fuse.shutdown.trigger();
        }
        Ok(polled)
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        match self.fuse.burn() {
            None => return self.log.commit(commit),
            Some(Last::AllButTheAnswer) => self.log.commit(commit)?,
            // A commit is all or nothing.
            Some(Last::Nothing | Last::Some) => {}
        }
        Err(LogError::Unavailable("the process ends".to_owned()))
    }

    fn backlog(&mut self) -> Result<Backlog, LogError> {
        self.log.backlog()
    }

    fn group(&self) -> &str {
        self.log.group()
    }
}

/// A process's store: its last write may come halfway.
struct MortalStore {
    store: Embedded,
    fuse: Fuse,
}

impl Store for MortalStore {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        match self.fuse.burn() {
            None => return self.store.put_all(writes, results),
            Some(Last::AllButTheAnswer) => self.store.put_all(writes, results)?,
            Some(Last::Some) => self.store.put_all(&writes[writes.len() / 2..], &[])?,
            Some(Last::Nothing) => {}
        }
        Err(StoreError::Unavailable("the process ends".to_owned()))
    }

    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.store.states(users)
    }

    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        self.store.page(user)
    }

    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        self.store.results(user)
    }

    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.store.erasures(users)
    }

    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.store.cached(cache, keys)
    }

    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        self.store.remember(cache, entries)
    }
}

/// The path over one file.
struct World {
    file: Embedded,
    market: Market,
    fleet: Fleet<twins::ThemesTwin, twins::KeywordsTwin, twins::EncoderTwin, twins::JudgeTwin>,
}

impl World {
    fn new(dir: &Dir, market: &Market) -> Self {
        let file = Embedded::open(dir, EmbeddedConfig::default(), Arc::new(ManualClock::at(NOW_MS))).expect("a file");
        // What waits for a stage that has not run yet is seen all the same.
        declare(&file).expect("groups");
        Self { file, market: market.clone(), fleet: twins::fleet().expect("models") }
    }

    /// A process runs the `nth` stage until nothing is left to do, or until `fuse` ends it.
    fn work(&self, nth: u64, fuse: &Fuse) {
        let store: Arc<dyn Store> = Arc::new(MortalStore { store: self.file.clone(), fuse: fuse.clone() });
        let market = self.market.clone();
        match nth {
            0 => {
                let lookup = move |id: &str| market.snapshot().product(id).map_err(|error| error.to_string());
                self.run(ContextStage::new(ContextConfig::default(), 1, store.clone(), Box::new(lookup)), store, fuse);
            }
            1 => {
                let model = self.fleet.themes.clone().expect("a model");
                self.run(ThemesStage::new(ThemesConfig::default(), market, model), store, fuse);
            }
            2 => {
                let (model, encoder) = (self.fleet.keywords.as_ref().expect("a model").0.clone(), self.fleet.encoder.clone());
                let count = Box::new(|text: &str| text.split_whitespace().count());
                let config = KeywordsConfig::default();
                self.run(KeywordsStage::new(config, market, store.clone(), encoder, model, count), store, fuse);
            }
            3 => self.run(DedupStage::new(DedupConfig::default(), self.fleet.encoder.clone()), store, fuse),
            _ => {
                let (judge, threshold) = self.fleet.judge.clone().expect("a model");
                let config = AiqaConfig { threshold: Some(threshold), ..AiqaConfig::default() };
                self.run(AiqaStage::new(config, market, store.clone(), judge), store, fuse);
            }
        }
    }

    fn run<S: Stage>(&self, mut stage: S, store: Arc<dyn Store>, fuse: &Fuse) {
        let consumer = self.file.consumer(&group_of(S::NAME, Lane::Live), S::In::TOPIC).expect("a consumer");
        let retry = RetryConfig { first: Duration::from_millis(1), longest: Duration::from_millis(1) };
        let env = StageEnv {
            store,
            clocks: Clocks::of(Arc::new(ManualClock::at(NOW_MS))),
            config: LoopConfig { batch_records_max: 4, gather_under_load: Duration::ZERO, retry, ..LoopConfig::default() },
            stats: Arc::new(StageStats::default()),
            shutdown: fuse.shutdown.clone(),
        };
        let log = Mortal { log: consumer, fuse: fuse.clone() };
        run_stage(&mut stage, Box::new(log), &env).expect("no stage stops by itself");
    }

    fn waiting(&self) -> u64 {
        self.file.groups().expect("groups").iter().map(|group| group.backlog.waiting).sum()
    }

    /// Works off everything, without a fault.
    fn drain(&self, draw: &Draw) {
        loop {
            (0..STAGES).for_each(|stage| self.work(stage, &Fuse::of(LONG, draw.clone())));
            if self.waiting() == 0 {
                return;
            }
        }
    }

    fn append(&self, records: &[Outgoing]) {
        self.file.producer().append(records, None).expect("records are taken");
    }

    /// What is known of a shopper: the state without the places of its events in the log, and the page with the event behind it.
    fn known(&self, user: &UserKey) -> (Option<Value>, Option<(String, Page)>) {
        let state = self.file.state(user).expect("a read is answered").map(|bytes| {
            let mut state: Value = serde_json::from_slice(&bytes).expect("a state is JSON");
            let fields = state.as_object_mut().expect("a state has fields");
            for place in ["offset", "erased_at"] {
                fields.remove(place);
            }
            for seen in fields["seen"].as_array_mut().expect("ids") {
                *seen = seen[0].clone();
            }
            state
        });
        let page = self.file.page(user).expect("a read is answered").and_then(|stored| stored.page);
        let page = page.map(|bytes| desk::decode(&bytes).expect("a page")).map(|page| (page.head.cause.event_id, page.page));
        (state, page)
    }
}

fn outgoing(event: &ShopperEvent) -> Outgoing {
    let headers = Headers::root(event.id.clone(), Topic::EVENTS, event.at_ms);
    Outgoing { topic: Topic::EVENTS, key: event.key(), headers, value: wire::encode(event).expect("an event is written") }
}

/// Events as a log gets them that takes some twice: each shopper's in order, the second time behind the first.
fn delivered(events: &[ShopperEvent], draw: &mut Draw) -> Vec<ShopperEvent> {
    let mut delivered: Vec<ShopperEvent> = Vec::new();
    for event in events {
        delivered.push(event.clone());
        if draw.per_mille(300) {
            delivered.push(delivered[draw.place(delivered.len())].clone());
        }
    }
    delivered
}

/// The same events, one shopper's behind another's.
fn regrouped(events: &[ShopperEvent]) -> Vec<ShopperEvent> {
    let mut shoppers: BTreeMap<UserKey, Vec<ShopperEvent>> = BTreeMap::new();
    events.iter().for_each(|event| shoppers.entry(event.key()).or_default().push(event.clone()));
    shoppers.into_values().flatten().collect()
}

/// Contexts of before, as a replay would bring them again.
fn replayed(world: &World, from: i64, draw: &mut Draw) -> Vec<Outgoing> {
    let records = world.file.records(Topic::CONTEXTS, from, usize::MAX).expect("records");
    let some = records.into_iter().filter(|_| draw.per_mille(150));
    let again = |record: Received| Outgoing {
        topic: Topic::CONTEXTS,
        key: UserKey::named(&record.key),
        headers: record.headers,
        value: record.value,
    };
    some.map(again).collect()
}

/// Runs `events` in pieces, between which processes of any stage come and end at any step.
fn disturb(world: &World, events: &[ShopperEvent], draw: &mut Draw) {
    let from = world.file.end(Topic::CONTEXTS).expect("an end");
    // What is replayed is replayed again with the rest: without an end to it there would soon be nothing else.
    let (mut left, mut replays) = (events, draw.below(REPLAYS_MAX + 1));
    while !left.is_empty() || world.waiting() > 0 {
        let (now, later) = left.split_at(draw.place(left.len() + 1));
        left = later;
        world.append(&now.iter().map(outgoing).collect::<Vec<_>>());
        if replays > 0 && draw.per_mille(300) {
            replays -= 1;
            world.append(&replayed(world, from, draw));
        }
        let (stage, steps) = (draw.below(STAGES), draw.below(6));
        world.work(stage, &Fuse::of(steps, draw.clone()));
    }
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a whole number")))
}

#[test]
fn the_path_ends_in_the_same_states_and_pages_whatever_comes_again_and_whoever_ends_when() {
    let seed = number("ENDCAP_TEST_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let schedules = number("ENDCAP_TEST_SCHEDULES").unwrap_or(SCHEDULES);
    println!("ENDCAP_TEST_SEED={seed}");
    let (dir, start) = (tempfile::tempdir().unwrap(), Instant::now());
    let market = market(&dir.path().join("market"));
    let (calm, wild) = (World::new(&dir.path().join("calm"), &market), World::new(&dir.path().join("wild"), &market));
    let (mut shoppers, mut draw) = (Shoppers::of(seed, SHOPPERS), Draw::new(seed, "schedules"));
    let mut with_page = 0;
    for schedule in 0..schedules {
        shoppers.anew(&format!("s{schedule}"));
        let events: Vec<ShopperEvent> =
            (0..draw.between(1, EVENTS + 1)).map(|_| shoppers.next_event(&ManualClock::at(NOW_MS))).collect();
        let delivered = delivered(&events, &mut draw);
        calm.append(&regrouped(&delivered).iter().map(outgoing).collect::<Vec<_>>());
        calm.drain(&draw);
        disturb(&wild, &delivered, &mut draw);
        for user in events.iter().map(ShopperEvent::key) {
            let (known, got) = (calm.known(&user), wild.known(&user));
            with_page += u64::from(known.1.is_some());
            assert_eq!(got.0, known.0, "schedule {schedule}: the state of {user}");
            // A page is long; the event behind it tells most.
            let event = |page: &Option<(String, Page)>| page.as_ref().map(|(event, _)| event.clone());
            assert_eq!(event(&got.1), event(&known.1), "schedule {schedule}: the event behind the page of {user}");
            assert!(got.1 == known.1, "schedule {schedule}: the page of {user} is another one for the same event");
        }
    }
    let tallies = wild.file.tallies().unwrap();
    assert!(tallies.values().all(Tally::is_balanced) && with_page > 0, "{tallies:?}");
    println!("{schedules} schedules in {:.1} s", start.elapsed().as_secs_f64());
}
