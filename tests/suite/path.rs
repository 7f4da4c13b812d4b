//! The whole path over twins of the models: everything but weights is real.

use std::{
    collections::BTreeMap,
    path::Path as Dir,
    sync::{Arc, mpsc::channel},
    time::Duration,
};

use endcap::{
    desk,
    feed::{self, FeedState, Pace, Simulated},
    figures::Figures,
    monitor::Monitor,
    path::{Ground, Path, PathConfig, StageName},
    report::{self, Began, Report},
    sides::Sides,
};
use endcap_market::{DEMO_SEED, Market};
use endcap_retrieval::{IndexOptions, MarketDir, build_index, write_demo};
use endcap_runtime::{Clock, Clocks, Embedded, EmbeddedConfig, Shutdown, StoreOverview, SystemClock};
use endcap_schemas::Page;
use endcap_tests::twins;

const SHOPPERS: u32 = 12;

/// A demo market with an index by the twin encoder.
pub(crate) fn market(dir: &Dir) -> endcap_retrieval::Market {
    let market = Market::generate(DEMO_SEED);
    let out = MarketDir::create(dir).unwrap();
    write_demo(&out, &market.products, &market.categories, &market.terms).unwrap();
    let encoder = twins::fleet().unwrap().encoder;
    let mut embed = |texts: &[String]| Ok(texts.iter().map(|text| twins::embed(text)).collect());
    build_index(&out, encoder.version(), &mut embed, &IndexOptions::default(), &mut |_| {}).unwrap();
    endcap_retrieval::Market::over(out).unwrap()
}

/// Runs the path on `data` until the simulation's first `events` events are worked off, or (with `cut`) only until it is under way.
fn run(market: &endcap_retrieval::Market, data: &Dir, events: u64, cut: bool) -> (Embedded, Report) {
    run_at(Arc::new(SystemClock::default()), market, data, events, cut)
}

fn run_at(clock: Arc<dyn Clock>, market: &endcap_retrieval::Market, data: &Dir, events: u64, cut: bool) -> (Embedded, Report) {
    let file = Embedded::open(data, EmbeddedConfig::default(), clock.clone()).unwrap();
    let (sides, shutdown) = (Sides::embedded(file.clone()), Shutdown::new());
    let ground = Ground {
        generation: 1,
        sides: sides.clone(),
        market: market.clone(),
        clocks: Clocks::of(clock.clone()),
        shutdown: shutdown.clone(),
    };
    let (ended, heard) = channel();
    let began = Began::note(&sides, clock.now_ms()).unwrap();
    let path = Path::start(&StageName::ALL, twins::fleet().unwrap(), &PathConfig::default(), &ground, &ended).unwrap();
    let pace = Pace { rate: None, events: Some(events) };
    let demo = Arc::new(Market::generate(DEMO_SEED));
    let mut source = Simulated::new(demo, 5, SHOPPERS, pace, &file, clock.as_ref()).unwrap();
    feed::feed(&mut source, &file, pace, clock.as_ref(), &FeedState::default(), &shutdown).unwrap();
    let mut monitor = Monitor::new(ground.generation, sides.clone(), path.stages.clone());
    let received = |figures: &Figures| figures.stages[2].received;
    let before = received(&monitor.read(clock.monotonic(), clock.now_ms(), None).unwrap());
    loop {
        let figures = monitor.read(clock.monotonic(), clock.now_ms(), None).unwrap();
        let under_way = received(&figures) > before;
        if figures.stages.iter().all(|stage| stage.waiting == 0) || (cut && under_way) {
            break;
        }
        assert!(heard.recv_timeout(Duration::from_millis(20)).is_err(), "no stage ends by itself");
    }
    shutdown.trigger();
    let stages = path.stages.clone();
    path.join();
    let report = report::make(&sides, market, &began, &stages).unwrap();
    (file, report)
}

fn pages(file: &Embedded) -> BTreeMap<String, Page> {
    let stored = file.pages_after(None, 1_000).unwrap();
    stored.into_iter().map(|(user, row)| (user.to_string(), desk::decode(&row.page.unwrap()).unwrap().page)).collect()
}

#[test]
fn events_become_pages_and_a_run_that_was_cut_ends_in_the_same_ones() {
    let dir = tempfile::tempdir().unwrap();
    let market = market(&dir.path().join("market"));
    let (whole, report) = run(&market, &dir.path().join("whole"), 60, false);
    check(&report);

    run(&market, &dir.path().join("cut"), 25, true);
    run(&market, &dir.path().join("cut"), 60, true);
    let (cut, again) = run(&market, &dir.path().join("cut"), 60, false);
    assert_eq!(again.events_accepted, 60, "no event is lost or repeated");
    assert_eq!(pages(&whole), pages(&cut));
}

/// The real time, some hours on.
struct Later(SystemClock);

impl Clock for Later {
    fn now_ms(&self) -> i64 {
        self.0.now_ms() + 5 * 3_600_000
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
}

#[test]
fn a_report_gives_the_time_and_the_rate_of_its_own_run() {
    let dir = tempfile::tempdir().unwrap();
    let market = market(&dir.path().join("market"));
    let data = dir.path().join("data");
    let (_, first) = run(&market, &data, 20, false);
    assert_eq!((first.events_in_run, first.pages_in_run), (20, first.pages_published));
    let later: Arc<dyn Clock> = Arc::new(Later(SystemClock::default()));
    let (_, second) = run_at(later.clone(), &market, &data, 40, false);
    assert_eq!((second.events_accepted, second.events_in_run), (40, 20));
    assert_eq!(second.pages_in_run, second.pages_published - first.pages_published);
    assert!((0.001..3_600.0).contains(&second.seconds), "{} s, hours of rest included?", second.seconds);
    assert!((second.pages_per_second * second.seconds - second.pages_in_run as f64).abs() < 1e-6);
    let (_, third) = run_at(later, &market, &data, 40, false);
    assert_eq!((third.pages_in_run, third.seconds, third.pages_per_second), (0, 0.0, 0.0));
}

fn check(report: &Report) {
    assert_eq!(report.events_accepted, 60);
    assert_eq!(report.shoppers_changed, u64::from(SHOPPERS));
    assert_eq!(report.shoppers_with_page, u64::from(SHOPPERS));
    assert_eq!((report.keywords_outside_candidates, report.dietary_contradictions), (0, 0));
    assert!(report.pages_published >= u64::from(SHOPPERS) && report.placements_published >= 5 * report.pages_published);
    assert_eq!(report.freshness_seconds.count as u64, report.pages_published);
    assert!(report.dead_letters.is_empty() && !report.log_trimmed);
    let json = serde_json::to_value(report).unwrap();
    for (stage, counts) in json["stages"].as_object().unwrap() {
        let dropped: u64 = counts["dropped"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        let settled = counts["passed"].as_u64().unwrap() + dropped + counts["dead_lettered"].as_u64().unwrap();
        assert_eq!(counts["in"].as_u64().unwrap(), settled, "{stage}");
    }
}
