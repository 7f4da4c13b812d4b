//! The loop of one stage, with toy stages whose faults are knobs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    thread,
    time::Duration,
};

use endcap_runtime::{
    BreakerConfig, CAME_UNDER, Clocks, DropReason, Input, LoopConfig, ManualClock, PAGE_MAX_BYTES, ROW_MAX_BYTES, Rejection,
    Settled, Shutdown, StageError, StageStopped, Stamp, Store, StoreError, StoredDeadLetter, Verdict, Write,
    embedded::DeadLetterFilter,
};
use endcap_schemas::{ContextChanged, KeywordsChosen, Message, ShopperEvent, ThemesWritten, UserKey, topics::Topic};
use serde_json::json;

use crate::toys::{Bench, Choose, Compose, Fold, NOW_MS, Toy, context, event, now_ms, pass, sent};

/// Contexts of `count` users, `u0` first.
fn contexts(count: i64) -> Vec<endcap_runtime::Outgoing> {
    (0..count).map(|n| sent(&context(&format!("u{n}"), NOW_MS, &format!("e{n}")), &format!("r{n}"))).collect()
}

fn users<M: Message>(bench: &Bench) -> Vec<String> {
    bench.all::<M>().iter().map(|message| message.user().user).collect()
}

fn kinds(bench: &Bench) -> Vec<(i64, String, u32)> {
    let filter = DeadLetterFilter { limit: 1_000, ..DeadLetterFilter::default() };
    let mut letters = bench.file.dead_letters(&filter).unwrap();
    letters.reverse();
    letters.into_iter().map(|letter| (letter.offset, letter.kind, letter.attempts)).collect()
}

#[test]
fn every_record_gets_one_verdict_and_every_verdict_its_consequence() {
    let mut bench = Bench::new();
    let mut records = contexts(5);
    records[0].headers.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    bench.append(&records);
    let erase = Write::Erase { user: UserKey::of("u2"), stamp: Stamp::of(NOW_MS, 999), at: None };
    bench.run(Toy::<Compose>::with(move |batch| {
        let verdict = |input: &Input<ContextChanged>| match input.value.head.user.user.as_str() {
            "u1" => Verdict::Dropped(DropReason::NoConsent),
            "u2" => Verdict::Settled(Box::new(Settled {
                reason: DropReason::Erased,
                explanation: serde_json::Value::Null,
                writes: vec![erase.clone()],
                counters: vec![("erasures", 1)],
            })),
            "u3" => Verdict::Rejected(Rejection { kind: "unknown_product", message: "no such product".into() }),
            _ => pass::<Compose>(&input.value),
        };
        Ok(Some(batch.iter().map(verdict).collect()))
    }));
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u4"]);
    assert_eq!(kinds(&bench), [(3, "unknown_product".to_owned(), 1)]);
    let tally = bench.tally::<Compose>();
    assert_eq!((tally.received, tally.passed, tally.dropped_total(), tally.dead_lettered_total()), (5, 2, 2, 1));
    assert_eq!(
        (tally.dropped["no_consent"], tally.dropped["erased"], tally.counters["hops"], tally.counters["erasures"]),
        (1, 1, 2, 1)
    );
    assert_eq!(bench.file.erasure(&UserKey::of("u2")).unwrap().map(|erasure| erasure.stamp), Some(Stamp::of(NOW_MS, 999)));

    let out = &bench.records(Topic::THEMES)[0];
    let child = records[0].headers.clone().child("themes", Topic::THEMES);
    assert_eq!(out.headers, child, "headers are derived from the parent's");
    assert_eq!((out.headers.causation.as_deref(), &out.headers.traceparent), (Some("r0"), &records[0].headers.traceparent));
    let told = |user: &str| bench.file.results(&UserKey::of(user)).unwrap().pop().map(|result| result.explanation);
    let story: serde_json::Value = serde_json::from_str(&told("u0").unwrap()).unwrap();
    assert_eq!(
        (&story["verdict"], &story["batch_records"], &story["explanation"]),
        (&json!("passed"), &json!(5), &json!({ "toy": true }))
    );
    assert!(told("u3").unwrap().contains("no such product"));
    assert_eq!(told("u2"), None, "a null explanation leaves nothing behind");
}

#[test]
fn bytes_that_cannot_be_read_become_a_dead_letter_as_they_are() {
    let mut bench = Bench::new();
    let mut records = contexts(4);
    records[1].value = b"{\"hello\": 1}".to_vec();
    records[2].value.truncate(20);
    bench.append(&records);
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u3"]);
    assert_eq!(kinds(&bench), [(1, "malformed".to_owned(), 1), (2, "malformed".to_owned(), 1)]);
    let listed = bench.file.dead_letters(&DeadLetterFilter::default()).unwrap();
    let letter = bench.file.dead_letter(&listed[1].id).unwrap().unwrap();
    assert_eq!(
        (&letter.value[..], &letter.headers, &letter.topic[..]),
        (&b"{\"hello\": 1}"[..], &records[1].headers, Topic::CONTEXTS.name())
    );
    assert_eq!((&letter.group[..], &letter.stage[..]), ("endcap.themes.live", "themes"));
}

#[test]
fn a_record_under_another_key_than_its_users_is_filed_under_its_user_and_stops_nothing() {
    let mut bench = Bench::new();
    bench.env.config.breaker = BreakerConfig { consecutive_max: 5, ..BreakerConfig::default() };
    let mut records = contexts(30);
    records[1..29].iter_mut().for_each(|record| record.key = UserKey::of("somebody"));
    bench.append(&records);
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u29"], "a sender's faults do not trip the breaker");
    assert_eq!(bench.tally::<Compose>().dead_lettered, BTreeMap::from([("wrong_key".to_owned(), 28)]));
    let letters = |user: &str| {
        let filter = DeadLetterFilter { user: Some(UserKey::of(user)), ..DeadLetterFilter::default() };
        bench.file.dead_letters(&filter).unwrap()
    };
    assert!(letters("somebody").is_empty());
    let letter = bench.file.dead_letter(&letters("u7")[0].id).unwrap().unwrap();
    assert_eq!((&letter.value, letter.offset), (&records[7].value, 7));
    assert_eq!(letter.headers.foreign, [(CAME_UNDER.to_owned(), b"default/somebody".to_vec())]);
    assert!(!letter.message.contains("u7") && !letter.message.contains("somebody"), "log lines repeat it: {}", letter.message);

    assert_eq!(bench.file.redrive(&[letter.id]).unwrap(), 1);
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u29", "u7"], "sent again it goes where its user's records are");

    let erase = |user: &str| {
        let erase = Write::Erase { user: UserKey::of(user), stamp: Stamp::of(NOW_MS, 999), at: None };
        bench.file.put_all(&[erase], &[]).unwrap();
        let all = DeadLetterFilter { limit: 100, ..DeadLetterFilter::default() };
        bench.file.dead_letters(&all).unwrap()
    };
    let masked = |letters: &[StoredDeadLetter]| -> Vec<i64> {
        letters.iter().filter(|letter| letter.masked).map(|letter| letter.offset).collect()
    };
    assert_eq!(masked(&erase("u8")), [8], "erasing its user masks it");
    let listed = erase("somebody");
    assert_eq!(masked(&listed), [8], "the others are not theirs");
    let whole = listed.iter().map(|letter| bench.file.dead_letter(&letter.id).unwrap().unwrap());
    let mut naming = listed.iter().cloned().chain(whole).filter(|letter| letter.headers.came_under().next().is_some());
    assert_eq!(naming.next(), None, "but name them no more");
}

#[test]
fn a_culprit_is_found_and_its_neighbours_pass_in_order() {
    for panics in [false, true] {
        let mut bench = Bench::new();
        bench.append(&contexts(100));
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        bench.run(Toy::<Compose>::with(move |batch| {
            seen.lock().unwrap().push(batch.len());
            if batch.iter().any(|input| ["u37", "u38", "u90"].contains(&&input.value.head.user.user[..])) {
                assert!(!panics, "toy panics");
                return Err(StageError::Failed("toy fails".into()));
            }
            Ok(None)
        }));
        let expected: Vec<_> = (0..100).filter(|n| ![37, 38, 90].contains(n)).map(|n| format!("u{n}")).collect();
        assert_eq!(users::<ThemesWritten>(&bench), expected);
        let letters = kinds(&bench);
        assert_eq!(letters.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), [37, 38, 90]);
        assert!(letters.iter().all(|(_, kind, attempts)| kind == "stage_failed" && *attempts > 1), "{letters:?}");
        let asked = sizes.lock().unwrap().len();
        assert!(asked < 40, "halving takes few attempts: {asked}");
        assert!(bench.tally::<Compose>().is_balanced());
    }
}

/// A page of so many bytes for `input`, beside the hop.
fn page_of(input: &Input<ContextChanged>, bytes: usize) -> Verdict<ThemesWritten> {
    let Verdict::Passed(mut passed) = pass::<Compose>(&input.value) else { unreachable!("a toy passes") };
    passed.writes = vec![Write::Page { user: input.value.user(), stamp: Stamp::of(NOW_MS, 1), page: Some(vec![7; bytes]) }];
    Verdict::Passed(passed)
}

#[test]
fn a_page_that_no_store_takes_is_a_dead_letter_and_its_neighbours_pass() {
    let mut bench = Bench::new();
    bench.append(&contexts(5));
    bench.run(Toy::<Compose>::with(|batch| {
        let bytes = |input: &Input<ContextChanged>| PAGE_MAX_BYTES + usize::from(input.value.head.user.user == "u2");
        Ok(Some(batch.iter().map(|input| page_of(input, bytes(input))).collect()))
    }));
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u1", "u3", "u4"]);
    assert_eq!(kinds(&bench), [(2, "too_large".to_owned(), 1)]);
    let page = |user: &str| bench.file.page(&UserKey::of(user)).unwrap().map(|page| page.page.map(|page| page.len()));
    assert_eq!((page("u2"), page("u3")), (None, Some(Some(PAGE_MAX_BYTES))));
    let letter = &bench.file.dead_letters(&DeadLetterFilter::default()).unwrap()[0];
    let says = "page has 65537 bytes, at most 65536 are stored: configure fewer placements, or fewer products in each";
    assert_eq!(letter.message, says);

    bench.env.config.breaker = BreakerConfig { consecutive_max: 5, ..BreakerConfig::default() };
    bench.append(&contexts(9));
    let all = |batch: &[Input<ContextChanged>]| batch.iter().map(|input| page_of(input, PAGE_MAX_BYTES + 1)).collect();
    let stopped = bench.run_ticking(Toy::<Compose>::with(move |batch| Ok(Some(all(batch)))), Duration::ZERO);
    assert!(matches!(stopped, Err(StageStopped::Breaker { faults: 5, .. })), "when no page fits any more: {stopped:?}");
}

#[test]
fn an_explanation_that_no_store_takes_is_left_out_and_its_record_passes() {
    let mut bench = Bench::new();
    bench.append(&contexts(2));
    bench.run(Toy::<Compose>::with(|batch| {
        let explained = |input: &Input<ContextChanged>| {
            let Verdict::Passed(mut passed) = pass::<Compose>(&input.value) else { unreachable!("a toy passes") };
            passed.explanation = json!({ "prompt": "x".repeat(ROW_MAX_BYTES) });
            Verdict::Passed(passed)
        };
        Ok(Some(batch.iter().map(explained).collect()))
    }));
    assert_eq!(users::<ThemesWritten>(&bench), ["u0", "u1"]);
    let told = bench.file.results(&UserKey::of("u0")).unwrap().pop().unwrap().explanation;
    let story: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&story["verdict"], &story["explanation"]["stored_bytes_max"]), (&json!("passed"), &json!(ROW_MAX_BYTES)));
}

#[test]
fn a_stage_that_fails_on_everything_stops_instead_of_draining_its_topic() {
    let mut bench = Bench::new();
    bench.env.config.breaker = BreakerConfig { consecutive_max: 5, ..BreakerConfig::default() };
    bench.append(&contexts(100));
    let stopped = bench.run_ticking(Toy::<Compose>::with(|_| Err(StageError::Failed("no model".into()))), Duration::ZERO);
    let Err(StageStopped::Breaker { faults: 5, of: 5, last, .. }) = stopped else { panic!("{stopped:?}") };
    assert_eq!(last, "no model");
    assert_eq!(kinds(&bench).len(), 4, "the fifth fault stops the stage before it is committed");
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench).len(), 96, "the others pass once the cause is mended");
}

#[test]
fn a_sender_of_rejected_records_cannot_stop_a_stage() {
    let mut bench = Bench::new();
    bench.append(&contexts(300));
    bench.run(Toy::<Compose>::with(|batch| {
        let reject = |_: &Input<ContextChanged>| Verdict::Rejected(Rejection { kind: "unknown_product", message: "none".into() });
        Ok(Some(batch.iter().map(reject).collect()))
    }));
    assert_eq!(kinds(&bench).len(), 300);
}

#[test]
fn what_is_unavailable_is_tried_again_until_it_is_there() {
    let mut bench = Bench::new();
    bench.append(&contexts(10));
    for border in [&bench.faults.poll, &bench.faults.store, &bench.faults.commit] {
        border.store(3, Ordering::SeqCst);
    }
    let mut down = 4;
    bench.run(Toy::<Compose>::with(move |_| {
        down -= 1;
        if down >= 0 { Err(StageError::Unavailable("model", "warming up".into())) } else { Ok(None) }
    }));
    assert_eq!(users::<ThemesWritten>(&bench).len(), 10);
    assert!(kinds(&bench).is_empty());
    let snapshot = bench.env.stats.snapshot();
    assert_eq!((snapshot.live.tally.passed, snapshot.live.trouble, snapshot.running), (10, None, false));
}

#[test]
fn a_dependency_that_falters_is_tried_again_until_the_records_are_to_blame() {
    for (falters, passed) in [(5, 8), (u32::MAX, 7)] {
        let mut bench = Bench::new();
        bench.append(&contexts(8));
        let mut left = falters;
        bench.run(Toy::<Compose>::with(move |batch| {
            if batch.iter().any(|input| input.value.head.user.user == "u3") && left > 0 {
                left -= 1;
                return Err(StageError::Faltered("model", "out of memory".into()));
            }
            Ok(None)
        }));
        assert_eq!((users::<ThemesWritten>(&bench).len(), kinds(&bench).len()), (passed, 8 - passed), "{falters} failures");
        assert_eq!(bench.env.stats.snapshot().live.trouble, None);
    }
}

#[test]
fn what_breaks_or_panics_in_the_loop_stops_the_stage_and_blames_no_record() {
    let mut bench = Bench::new();
    bench.append(&contexts(3));
    let stopped =
        bench.run_ticking(Toy::<Compose>::with(|_| Err(StageError::Broken("no model: load it".into()))), Duration::ZERO);
    assert_eq!(stopped.unwrap_err().to_string(), "stage themes stopped: no model: load it");
    let stopped = bench.run_ticking(Toy::<Compose>::with(|_| Err(StoreError::Corrupt("rows".into()).into())), Duration::ZERO);
    assert!(matches!(stopped, Err(StageStopped::Broken { .. })), "{stopped:?}");
    bench.env.clocks.wall =
        Arc::new(Observed { clock: bench.clock.clone(), seen: Mutex::new(Box::new(|_| panic!("toy clock"))) });
    let stopped = bench.run_ticking(Toy::<Compose>::new(), Duration::ZERO);
    assert!(matches!(&stopped, Err(StageStopped::Panicked { cause, .. }) if cause == "toy clock"), "{stopped:?}");
    assert!(!bench.env.stats.snapshot().running && kinds(&bench).is_empty());
}

#[test]
fn a_log_that_answers_again_is_no_trouble_even_while_nothing_comes() {
    let mut bench = Bench::new();
    bench.faults.poll.store(3, Ordering::SeqCst);
    bench.run(Toy::<Compose>::new());
    assert_eq!(bench.env.stats.snapshot().live.trouble, None);
}

#[test]
fn a_shutdown_ends_the_waiting_and_loses_nothing() {
    let mut bench = Bench::new();
    bench.append(&contexts(10));
    let asked: Arc<Mutex<Option<Shutdown>>> = Arc::default();
    let shutdown = asked.clone();
    bench.env.config.retry.first = Duration::from_secs(3_600);
    bench.env.config.retry.longest = Duration::from_secs(3_600);
    bench.env.shutdown = Shutdown::new();
    *asked.lock().unwrap() = Some(bench.env.shutdown.clone());
    let mut stage = Toy::<Compose>::with(move |_| {
        if let Some(shutdown) = shutdown.lock().unwrap().as_ref() {
            shutdown.trigger();
        }
        Err(StageError::Unavailable("model", "gone".into()))
    });
    let log = bench.file.consumer("endcap.themes.live", Topic::CONTEXTS).unwrap();
    endcap_runtime::run_stage(&mut stage, Box::new(log), &bench.env).unwrap();
    assert_eq!(bench.tally::<Compose>().received, 0);
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench).len(), 10);
}

#[test]
fn a_stage_without_a_verdict_for_each_record_is_stopped() {
    let mut bench = Bench::new();
    bench.append(&contexts(3));
    let stopped =
        bench.run_ticking(Toy::<Compose>::with(|batch| Ok(Some(vec![pass::<Compose>(&batch[0].value)]))), Duration::ZERO);
    assert!(matches!(stopped, Err(StageStopped::Verdicts { got: 1, records: 3, .. })), "{stopped:?}");
    assert!(bench.all::<ThemesWritten>().is_empty());
}

#[test]
fn a_newer_context_supersedes_the_one_that_waits_in_whatever_order_they_come() {
    let mut bench = Bench::new();
    let at = |user: &str, ms: i64| sent(&context(user, NOW_MS + ms, "e"), &format!("{user}{ms}"));
    bench.append(&[at("anna", 1), at("bert", 1), at("anna", 3), at("anna", 2), at("bert", 1), at("carl", 9)]);
    bench.run(Toy::<Compose>::new());
    let left: Vec<_> =
        bench.all::<ThemesWritten>().iter().map(|out| (out.head.user.user.clone(), out.head.context_ms - NOW_MS)).collect();
    assert_eq!(left, [("anna".to_owned(), 3), ("bert".to_owned(), 1), ("carl".to_owned(), 9)]);
    let tally = bench.tally::<Compose>();
    assert_eq!((tally.received, tally.dropped["superseded"]), (6, 3));
}

#[test]
fn shopper_events_never_supersede_each_other() {
    let mut bench = Bench::new();
    let events: Vec<_> = (0..20).map(|n| sent(&event("anna", NOW_MS + n, &format!("e{n}")), &format!("e{n}"))).collect();
    bench.append(&events);
    bench.run(Toy::<Fold>::new());
    let ids: Vec<_> = bench.all::<ContextChanged>().iter().map(|out| out.head.cause.event_id.clone()).collect();
    assert_eq!(ids, (0..20).map(|n| format!("e{n}")).collect::<Vec<_>>());
    assert_eq!(bench.file.state(&UserKey::of("anna")).unwrap().as_deref(), Some(&b"e19"[..]));
}

/// Appends a context every second for ten seconds, each of the user of that second, and answers which seconds' contexts were processed, and
/// when. A second's context comes just after the loop's poll of that second.
fn paced(user: fn(i64) -> String, configure: impl FnOnce(&mut LoopConfig)) -> Vec<(i64, i64)> {
    let mut bench = Bench::new();
    configure(&mut bench.env.config);
    bench.append(&[sent(&context(&user(0), NOW_MS, "e"), "0")]);
    let done = Arc::new(Mutex::new(Vec::new()));
    let (producer, clock, note) = (bench.file.producer(), bench.clock.clone(), done.clone());
    // A second consumer group would do as well; the clock is what drives the shopper here.
    let mut shopper = ShopperOnTheClock { user, producer, last_s: 0 };
    let ticking = clock.clone();
    let stage = Toy::<Compose>::with(move |batch| {
        let now_s = (endcap_runtime::Clock::now_ms(&*clock) - NOW_MS) / 1_000;
        note.lock().unwrap().extend(batch.iter().map(|input| ((input.value.head.context_ms - NOW_MS) / 1_000, now_s)));
        Ok(None)
    });
    bench.env.clocks.wall = Arc::new(Observed { clock: ticking, seen: Mutex::new(Box::new(move |now_s| shopper.at(now_s))) });
    bench.run_ticking(stage, Duration::from_secs(1)).unwrap();
    let done = done.lock().unwrap();
    done.clone()
}

/// Buys once a second until the tenth.
struct ShopperOnTheClock {
    user: fn(i64) -> String,
    producer: endcap_runtime::embedded::Producer,
    last_s: i64,
}

impl ShopperOnTheClock {
    fn at(&mut self, now_s: i64) {
        while self.last_s < now_s.min(10) {
            self.last_s += 1;
            let record = sent(&context(&(self.user)(self.last_s), NOW_MS + self.last_s * 1_000, "e"), &self.last_s.to_string());
            self.producer.append(&[record], None).unwrap();
        }
    }
}

/// A clock that lets somebody act on its time before it tells it.
struct Observed {
    clock: Arc<ManualClock>,
    seen: Mutex<Box<dyn FnMut(i64) + Send>>,
}

impl endcap_runtime::Clock for Observed {
    fn now_ms(&self) -> i64 {
        let now_ms = self.clock.now_ms();
        (self.seen.lock().unwrap())((now_ms - NOW_MS) / 1_000);
        now_ms
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic()
    }
}

#[test]
fn a_debounced_context_waits_for_newer_ones_but_not_for_ever() {
    let debounced = |seconds, seconds_max| {
        paced(
            |_| "anna".to_owned(),
            |config| {
                config.debounce = Duration::from_secs(seconds);
                config.debounce_max = Duration::from_secs(seconds_max);
            },
        )
    };
    assert_eq!(debounced(3, 100), [(10, 13)], "a pause of three seconds comes after the tenth");
    let early = debounced(3, 5);
    assert_eq!(early, [(4, 5), (9, 10), (10, 13)], "five seconds after the first one of a row it is time anyway");
}

#[test]
fn records_are_gathered_until_the_oldest_has_waited_long_enough() {
    let gathered = paced(|second| format!("u{second}"), |config| config.gather = Duration::from_secs(3));
    let expected = [(0, 3), (1, 3), (2, 3), (3, 6), (4, 6), (5, 6), (6, 9), (7, 9), (8, 9), (9, 12), (10, 12)];
    assert_eq!(gathered, expected);
    let cut = paced(
        |second| format!("u{second}"),
        |config| {
            config.gather = Duration::from_secs(3);
            config.batch_records_max = 2;
        },
    );
    assert!(cut.iter().map(|(second, _)| *second).eq(0..=10), "{cut:?}");
    assert!(
        cut.iter().all(|(second, at)| (2..=5).contains(&(at - second)) || *second == 10),
        "what a batch has no room for waits no longer: {cut:?}"
    );
}

#[test]
fn many_records_are_gathered_until_a_batch_is_full_and_few_wait_for_nothing() {
    let batches = |records| {
        let mut bench = Bench::new();
        bench.env.config.batch_records_max = 16;
        bench.env.config.gather_under_load = Duration::from_secs(3);
        bench.append(&contexts(records));
        let (producer, clock, done) = (bench.file.producer(), bench.clock.clone(), Arc::new(Mutex::new(Vec::new())));
        let note = done.clone();
        let stage = Toy::<Compose>::with(move |batch| {
            let mut done = note.lock().unwrap();
            done.push((batch.len(), (endcap_runtime::Clock::now_ms(&*clock) - NOW_MS) / 1_000));
            // Two more, the second behind the first.
            let late = done.len() - 1;
            if (1..3).contains(&late) {
                producer.append(&[sent(&context(&format!("late{late}"), NOW_MS, "e"), &format!("late{late}"))], None).unwrap();
            }
            Ok(None)
        });
        bench.run_ticking(stage, Duration::from_secs(1)).unwrap();
        let done = done.lock().unwrap();
        done.clone()
    };
    assert_eq!(batches(20), [(16, 0), (4, 3), (1, 3), (1, 3)]);
    assert_eq!(batches(32), [(16, 0), (16, 1), (1, 1), (1, 1)], "a full batch waits for nothing but the poll before it");
}

#[test]
fn records_of_a_log_whose_clock_is_ahead_are_due_at_once() {
    let mut bench = Bench::new();
    bench.append(&contexts(3));
    // The stage's clock is an hour behind that of the log.
    let behind = Arc::new(ManualClock::at(NOW_MS - 3_600_000));
    bench.env.clocks.wall = behind.clone();
    bench.clock = behind.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (clock, note) = (behind, seen.clone());
    let stage = Toy::<Compose>::with(move |batch| {
        let at_ms = endcap_runtime::Clock::now_ms(&*clock);
        note.lock().unwrap().extend(batch.iter().map(|_| at_ms));
        Ok(None)
    });
    bench.run_ticking(stage, Duration::from_secs(60)).unwrap();
    assert_eq!(*seen.lock().unwrap(), [NOW_MS - 3_600_000; 3]);
}

#[test]
fn expired_and_erased_contexts_are_dropped_before_the_stage_sees_them() {
    let mut bench = Bench::new();
    let mut old = context("old", NOW_MS, "e");
    old.head.expires_ms = NOW_MS - 1;
    let mut last = context("last", NOW_MS, "e");
    last.head.expires_ms = NOW_MS;
    let records = [
        sent(&old, "1"),
        sent(&last, "2"),
        sent(&context("gone", NOW_MS, "e"), "3"),
        sent(&context("back", NOW_MS + 1, "e"), "4"),
    ];
    bench.append(&records);
    let erase = |user| Write::Erase { user: UserKey::of(user), stamp: Stamp::of(NOW_MS, 999), at: None };
    bench.file.put_all(&[erase("gone"), erase("back")], &[]).unwrap();
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench), ["last", "back"]);
    let tally = bench.tally::<Compose>();
    assert_eq!((tally.dropped["expired"], tally.dropped["erased"]), (1, 1));
}

#[test]
fn expiry_is_measured_on_the_events_clock() {
    let mut bench = Bench::new();
    bench.clock.advance(Duration::from_secs(365 * 24 * 3_600));
    bench.env.clocks = Clocks { wall: bench.clock.clone(), events: Arc::new(ManualClock::at(NOW_MS)) };
    bench.append(&contexts(2));
    bench.run(Toy::<Compose>::new());
    assert_eq!(users::<ThemesWritten>(&bench).len(), 2, "a replay of last year: nothing has expired there");
    assert!(now_ms(&bench) > NOW_MS + 3_600_000);
}

#[test]
fn batches_are_cut_by_records_and_by_tokens() {
    let mut bench = Bench::new();
    bench.env.config.batch_records_max = 7;
    bench.append(&contexts(20));
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    bench.run(Toy::<Compose>::with(move |batch| {
        seen.lock().unwrap().push(batch.len());
        Ok(None)
    }));
    assert_eq!(*sizes.lock().unwrap(), [7, 7, 6]);
    bench.env.config.batch_tokens_max = 3;
    sizes.lock().unwrap().clear();
    let seen = sizes.clone();
    bench.run(Toy::<Choose>::with(move |batch| {
        seen.lock().unwrap().push(batch.len());
        Ok(None)
    }));
    assert_eq!(*sizes.lock().unwrap(), [3, 3, 3, 3, 3, 3, 2], "a record is a token unless the stage says otherwise");
    assert_eq!(bench.all::<KeywordsChosen>().len(), 20);
}

#[test]
fn what_waits_is_bounded_by_its_bytes_too() {
    let mut bench = Bench::new();
    let records = contexts(9);
    bench.append(&records);
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    bench.env.config.debounce = Duration::from_secs(3_600);
    bench.env.config.debounce_max = Duration::from_secs(3_600);
    bench.env.config.poll_max = 1;
    bench.env.config.held_bytes_max = 2 * records[0].value.len() + 1;
    bench.run(Toy::<Compose>::with(move |batch| {
        seen.lock().unwrap().push(batch.len());
        Ok(None)
    }));
    assert_eq!(*sizes.lock().unwrap(), [3, 3, 3], "nobody waits for company when so much is held");
}

#[test]
fn two_processes_of_one_stage_write_every_output_once() {
    let bench = Bench::new();
    let events: Vec<_> = (0..600).map(|n| sent(&event(&format!("u{n}"), NOW_MS, &format!("e{n}")), &format!("e{n}"))).collect();
    bench.append(&events);
    let mut env = bench.env.clone();
    env.config.batch_records_max = 5;
    env.config.poll_max = 20;
    env.config.held_max = 40;
    thread::scope(|scope| {
        for _ in 0..2 {
            let (log, env) = (bench.file.consumer("endcap.context.live", Topic::EVENTS).unwrap(), env.clone());
            scope.spawn(move || endcap_runtime::run_stage(&mut Toy::<Fold>::new(), Box::new(log), &env).unwrap());
        }
        while bench.file.groups().unwrap()[0].backlog.waiting > 0 {
            assert!(!env.shutdown.wait(Duration::from_millis(5)));
        }
        env.shutdown.trigger();
    });
    let ids: Vec<_> = bench.all::<ContextChanged>().iter().map(|out| out.head.cause.event_id.clone()).collect();
    assert_eq!(ids, (0..600).map(|n| format!("e{n}")).collect::<Vec<_>>());
    assert_eq!(bench.tally::<Fold>().received, 600);
    let _: Vec<ShopperEvent> = bench.all();
}
