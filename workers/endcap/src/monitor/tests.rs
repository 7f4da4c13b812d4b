use endcap_runtime::{Embedded, EmbeddedConfig, Headers, ManualClock, Outgoing};
use endcap_schemas::{Cause, DietSet, Head, Page, UserKey, Versions};

use super::*;

const START_MS: i64 = 1_750_000_000_000;

#[test]
fn rates_are_taken_over_half_a_minute_or_the_time_between_two_looks() {
    let mut rates = Rates::default();
    let mut look = |at_s: u64, pages: u64, tokens: u64| {
        let tokens = Some(TokenCounts { prefilled: tokens, ..TokenCounts::default() });
        let mut stages = [StageFigures { name: "themes".into(), tokens, ..StageFigures::default() }];
        let pages_per_second = rates.fill_in(Duration::from_secs(at_s), pages, &mut stages);
        (pages_per_second, stages[0].tokens_per_second)
    };
    assert_eq!(look(0, 100, 1_000), (0.0, 0.0), "nothing to compare with");
    assert_eq!(look(10, 120, 1_500), (2.0, 50.0));
    assert_eq!(look(30, 160, 2_500), (2.0, 50.0), "from the first reading on");
    assert_eq!(look(35, 235, 2_500), (115.0 / 25.0, 40.0), "the first one is too old now");
    assert_eq!(look(3_635, 3_835, 2_500), (1.0, 0.0), "an hour without a look");
    assert_eq!(look(3_640, 3_835, 3_000), (0.0, 100.0), "what was an hour ago tells nothing of now");
}

fn published(n: i64, accepted_ms: i64) -> Outgoing {
    let cause = Cause { event_id: format!("e{n}"), event_ms: accepted_ms, accepted_ms };
    let user = UserKey::of(format!("u{n}"));
    let head = Head { user: user.clone(), context_ms: accepted_ms, generation: 1, cause, expires_ms: accepted_ms + 1 };
    let page = Page { persona: String::new(), diets: DietSet::NONE, placements: Vec::new(), versions: Versions::new() };
    let value = wire::encode(&PagePublished { head, page }).unwrap();
    Outgoing { topic: Topic::PAGES, key: user, headers: Headers::root(format!("p{n}"), Topic::PAGES, accepted_ms), value }
}

#[test]
fn freshness_is_that_of_the_last_pages_however_seldom_somebody_looks() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(START_MS));
    let file = Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock).unwrap();
    let mut monitor = Monitor::new(1, Sides::embedded(file.clone()), Vec::new());
    let mut look = |pages: i64, seconds: i64| {
        let records: Vec<Outgoing> = (0..pages).map(|n| published(n, START_MS - seconds * 1_000)).collect();
        file.producer().append(&records, None).unwrap();
        monitor.read(Duration::ZERO, START_MS, None).unwrap().freshness
    };
    let all = |seconds: f64, count| Freshness { p50: Some(seconds), p99: Some(seconds), count };
    assert_eq!(look(300, 7), all(7.0, 300));
    assert_eq!(look(700, 3), all(3.0, 500), "of what was published since the last look the newest");
    assert_eq!(look(1, 9), Freshness { p50: Some(3.0), p99: Some(3.0), count: 500 });
}
