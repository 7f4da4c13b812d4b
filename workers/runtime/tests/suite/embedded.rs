//! What the embedded side does beyond the contracts.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use endcap_runtime::{
    Clock, Commit, DeadLetter, Embedded, EmbeddedConfig, Log, LogError, ManualClock, Stamp, Store, Write,
    contract::{poll_all, record, through},
    embedded::{DeadLetterFilter, INGEST, OpenError, Retention},
};
use endcap_schemas::{UserKey, topics::Topic};

const HOUR: Duration = Duration::from_secs(3_600);

struct File {
    file: Embedded,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
}

fn file(config: EmbeddedConfig) -> File {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Arc::new(ManualClock::at(1_000_000)));
    File { file: Embedded::open(dir.path().join("endcap.db"), config, clock.clone()).unwrap(), clock, dir }
}

fn append(file: &Embedded, values: std::ops::Range<u32>) {
    let records: Vec<_> = values.map(|n| record(Topic::EVENTS, "anna", n.to_string().as_bytes())).collect();
    file.producer().append(&records, None).unwrap();
}

fn offsets(file: &Embedded) -> Vec<i64> {
    file.records(Topic::EVENTS, 0, 1_000).unwrap().iter().map(|record| record.offset).collect()
}

fn retain_all(file: &Embedded) {
    while file.retain().unwrap().total() > 0 {}
}

#[test]
fn a_new_file_is_opened_by_many_at_once() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("endcap.db");
        let open = || Embedded::open(&path, EmbeddedConfig::default(), Arc::new(ManualClock::at(1_000_000))).map(|_| ());
        thread::scope(|scope| {
            let opened: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            opened.into_iter().for_each(|opened| opened.join().unwrap().unwrap());
        });
    }
}

#[test]
fn old_and_surplus_records_go_but_never_unread_ones() {
    let retention = Retention { records_age: HOUR, records_max: 6, step: 2, ..Retention::default() };
    let File { file, clock, dir: _dir } = file(EmbeddedConfig { retention, ..EmbeddedConfig::default() });
    let (mut fast, mut slow) = (file.consumer("fast", Topic::EVENTS).unwrap(), file.consumer("slow", Topic::EVENTS).unwrap());
    append(&file, 0..10);
    let got = poll_all(&mut fast, 10);
    fast.commit(&through("s", &got[9])).unwrap();
    retain_all(&file);
    assert_eq!(offsets(&file).len(), 10, "the slow group has read nothing");

    let got = poll_all(&mut slow, 10);
    slow.commit(&through("s", &got[2])).unwrap();
    assert_eq!(file.retain().unwrap().records, 2, "a step is bounded");
    retain_all(&file);
    assert_eq!(offsets(&file), [3, 4, 5, 6, 7, 8, 9], "four are too many, three of them are read");

    slow.commit(&through("s", &got[9])).unwrap();
    retain_all(&file);
    assert_eq!(offsets(&file), [4, 5, 6, 7, 8, 9]);
    clock.advance(HOUR / 2);
    append(&file, 10..11);
    clock.advance(HOUR / 2 + Duration::from_secs(1));
    let last = poll_all(&mut fast, 1);
    assert_eq!(last[0].offset, 10);
    fast.commit(&through("s", &last[0])).unwrap();
    retain_all(&file);
    assert_eq!(offsets(&file), [10], "an hour is over for the others");
    slow = file.consumer("slow", Topic::EVENTS).unwrap();
    let last = poll_all(&mut slow, 1);
    slow.commit(&through("s", &last[0])).unwrap();
    clock.advance(HOUR);
    retain_all(&file);
    append(&file, 11..12);
    assert_eq!(offsets(&file), [11], "an emptied topic goes on counting");
}

#[test]
fn results_dead_letters_and_caches_have_an_end() {
    let retention = Retention { dead_letters_max: 2, cached_max: 3, results_age: HOUR, step: 2, ..Retention::default() };
    let File { file, clock, dir: _dir } = file(EmbeddedConfig { retention, ..EmbeddedConfig::default() });
    append(&file, 0..5);
    let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
    let got = poll_all(&mut consumer, 5);
    let letters = got.iter().map(|record| letter(record.clone(), "malformed")).collect();
    consumer.commit(&Commit { dead_letters: letters, ..through("s", &got[4]) }).unwrap();
    let result = endcap_runtime::StageResult {
        user: UserKey::of("anna"),
        stage: "s".into(),
        stamp: Stamp(1),
        explanation: "{}".into(),
        at_ms: clock.now_ms(),
    };
    file.put_all(&[], &[result]).unwrap();
    for n in 0..8 {
        file.remember("c", &[([n; 32], vec![n])]).unwrap();
    }
    retain_all(&file);
    let left: Vec<_> = file.dead_letters(&DeadLetterFilter::default()).unwrap().iter().map(|letter| letter.offset).collect();
    assert_eq!(left, [4, 3]);
    let cached = file.cached("c", &[[4; 32], [5; 32], [7; 32]]).unwrap();
    assert_eq!(cached, [None, Some(vec![5]), Some(vec![7])]);
    assert_eq!(file.results(&UserKey::of("anna")).unwrap().len(), 1);
    clock.advance(HOUR * 2);
    retain_all(&file);
    assert!(file.results(&UserKey::of("anna")).unwrap().is_empty());
}

fn letter(record: endcap_runtime::Received, kind: &str) -> DeadLetter {
    DeadLetter { record, group: "g".into(), stage: "s".into(), attempts: 1, kind: kind.into(), message: "about anna".into() }
}

#[test]
fn a_full_log_says_so_and_takes_more_when_it_was_read() {
    let File { file, clock: _clock, dir: _dir } = file(EmbeddedConfig { waiting_max: 3, ..EmbeddedConfig::default() });
    let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
    append(&file, 0..3);
    let refused = file.producer().append(&[record(Topic::EVENTS, "anna", b"4")], Some(("import", "4")));
    assert!(matches!(refused, Err(LogError::Full { waiting: 3, limit: 3, .. })), "{refused:?}");
    assert_eq!(file.producer().progress("import").unwrap(), None, "progress is noted with the records or not at all");
    let got = poll_all(&mut consumer, 3);
    consumer.commit(&through("s", &got[0])).unwrap();
    assert_eq!(file.producer().append(&[record(Topic::EVENTS, "anna", b"4")], Some(("import", "4"))).unwrap(), [3]);
    assert_eq!(file.producer().progress("import").unwrap().as_deref(), Some("4"));
}

#[test]
fn dead_letters_are_filtered_masked_and_sent_again() {
    let File { file, clock, dir: _dir } = file(EmbeddedConfig::default());
    let records =
        [record(Topic::EVENTS, "anna", b"\xC3\x01x"), record(Topic::EVENTS, "bert", b"2"), record(Topic::EVENTS, "anna", b"3")];
    file.producer().append(&records, None).unwrap();
    let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
    let got = poll_all(&mut consumer, 3);
    let letters =
        vec![letter(got[0].clone(), "malformed"), letter(got[1].clone(), "malformed"), letter(got[2].clone(), "stage_failed")];
    consumer.commit(&Commit { dead_letters: letters, ..through("s", &got[2]) }).unwrap();
    let list = |filter: DeadLetterFilter| -> Vec<i64> {
        file.dead_letters(&filter).unwrap().iter().map(|letter| letter.offset).collect()
    };
    let any = DeadLetterFilter::default;
    assert_eq!(list(any()), [2, 1, 0]);
    assert_eq!(list(DeadLetterFilter { limit: 1, ..any() }), [2]);
    assert_eq!(list(DeadLetterFilter { kind: Some("malformed".into()), ..any() }), [1, 0]);
    assert_eq!(list(DeadLetterFilter { user: Some(UserKey::of("anna")), ..any() }), [2, 0]);
    assert_eq!(list(DeadLetterFilter { stage: Some("other".into()), ..any() }), [0_i64; 0]);
    assert_eq!(list(DeadLetterFilter { since_ms: Some(clock.now_ms() + 1), ..any() }), [0_i64; 0]);

    let ids: Vec<_> = file.dead_letters(&any()).unwrap().iter().map(|letter| letter.id.clone()).collect();
    let whole = file.dead_letter(&ids[2]).unwrap().unwrap();
    assert_eq!((&whole.value[..], &whole.headers, whole.masked), (&b"\xC3\x01x"[..], &records[0].headers, false));
    file.put_all(&[Write::Erase { user: UserKey::of("bert"), stamp: Stamp::of(records[1].headers.time_ms, 0), at: None }], &[])
        .unwrap();
    let masked = file.dead_letter(&ids[1]).unwrap().unwrap();
    assert!(masked.masked && masked.value.is_empty() && masked.key.is_empty() && masked.message.is_empty(), "{masked:?}");

    assert_eq!(file.redrive(&ids).unwrap(), 2, "what belongs to an erased user stays");
    let again = poll_all(&mut consumer, 2);
    assert_eq!((&again[0].value, &again[0].key, &again[0].headers), (&got[2].value, &got[2].key, &got[2].headers));
    assert_eq!((&again[1].value, &again[1].headers), (&got[0].value, &got[0].headers));
    assert_eq!(file.redrive(&ids).unwrap(), 0);
}

#[test]
fn a_letter_from_the_future_is_masked_by_an_erasure_of_today() {
    let File { file, clock, dir: _dir } = file(EmbeddedConfig::default());
    let mut ahead = record(Topic::EVENTS, "anna", b"1");
    ahead.headers.time_ms = clock.now_ms() + 86_400_000;
    file.producer().append(&[ahead], None).unwrap();
    let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
    let got = poll_all(&mut consumer, 1);
    consumer.commit(&Commit { dead_letters: vec![letter(got[0].clone(), "future")], ..through("s", &got[0]) }).unwrap();
    let masked = || file.dead_letters(&DeadLetterFilter::default()).unwrap()[0].masked;
    assert!(!masked());
    let erase = Write::Erase { user: UserKey::of("anna"), stamp: Stamp::of(clock.now_ms(), 999), at: None };
    file.put_all(&[erase], &[]).unwrap();
    assert!(masked());
}

#[test]
fn refused_events_are_kept_with_those_that_are_taken_or_not_at_all() {
    let File { file, clock: _clock, dir: _dir } = file(EmbeddedConfig { waiting_max: 1, ..EmbeddedConfig::default() });
    let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
    let admit = || {
        let refused = endcap_runtime::Received {
            topic: Topic::EVENTS,
            partition: 0,
            offset: -1,
            appended_ms: 0,
            key: "default/anna".into(),
            headers: endcap_runtime::Headers::default(),
            value: b"{}".to_vec(),
        };
        file.producer().admit(&[record(Topic::EVENTS, "anna", b"1")], &[letter(refused, "malformed")])
    };
    let letters = || file.dead_letters(&DeadLetterFilter::default()).unwrap().len();
    admit().unwrap();
    assert!(matches!(admit(), Err(LogError::Full { .. })));
    assert_eq!((letters(), offsets(&file).len()), (1, 1));
    let got = poll_all(&mut consumer, 1);
    consumer.commit(&through("s", &got[0])).unwrap();
    admit().unwrap();
    assert_eq!((letters(), offsets(&file).len()), (2, 2));
    let counted = &file.tallies().unwrap()[INGEST];
    assert_eq!((counted.received, counted.passed, counted.dead_lettered_total()), (4, 2, 2), "only what was kept is counted");
}

#[test]
fn an_idle_consumer_wakes_when_something_is_appended_here_or_elsewhere() {
    let File { file, clock, dir } = file(EmbeddedConfig::default());
    let elsewhere = Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock).unwrap();
    for appender in [file.clone(), elsewhere] {
        let mut consumer = file.consumer("g", Topic::EVENTS).unwrap();
        let (started, start) = crossbeam_channel::bounded(0);
        let waiting = thread::spawn(move || {
            started.send(()).unwrap();
            let records = consumer.poll(1, Duration::from_secs(600)).unwrap();
            consumer.commit(&through("s", &records[0])).unwrap();
            records.len()
        });
        start.recv().unwrap();
        let since = Instant::now();
        append(&appender, 0..1);
        assert_eq!(waiting.join().unwrap(), 1);
        assert!(since.elapsed() < Duration::from_secs(300), "it would have slept for 600 s");
    }
}

#[test]
fn groups_tell_how_far_they_are_behind() {
    let File { file, clock, dir: _dir } = file(EmbeddedConfig::default());
    file.declare("endcap.context.live", Topic::EVENTS).unwrap();
    append(&file, 0..2);
    clock.advance(HOUR);
    append(&file, 2..3);
    let groups = file.groups().unwrap();
    assert_eq!((groups.len(), groups[0].position, groups[0].end), (1, 0, 3));
    assert_eq!((groups[0].backlog.waiting, groups[0].backlog.oldest_ms), (3, Some(1_000_000)));
    let mut consumer = file.consumer("endcap.context.live", Topic::EVENTS).unwrap();
    let got = poll_all(&mut consumer, 3);
    consumer.commit(&through("s", &got[1])).unwrap();
    let backlog = file.groups().unwrap()[0].backlog;
    assert_eq!((backlog.waiting, backlog.oldest_ms), (1, Some(1_000_000 + 3_600_000)));
}

#[test]
fn a_file_of_another_kind_or_time_is_refused_by_name_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Embedded::open(dir.path().join(name), EmbeddedConfig::default(), Arc::new(ManualClock::at(0))).err();
    let refused = |name: &str, remedy: &str| {
        let path = dir.path().join(name);
        let before = std::fs::read(&path).ok();
        let error = open(name).unwrap();
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()) && text.contains(remedy), "{text}");
        assert!(std::fs::read(&path).ok() == before, "{name} stays as it was");
        error
    };
    let sql = |name: &str, sql: &str| rusqlite::Connection::open(dir.path().join(name)).unwrap().execute_batch(sql).unwrap();
    sql("photos.db", "CREATE TABLE photos (x)");
    sql("other.db", "CREATE TABLE topics (name, next); CREATE TABLE meta (name, value); PRAGMA user_version = 2");
    for name in ["photos.db", "other.db"] {
        assert!(matches!(refused(name, "choose another place"), OpenError::Foreign(_)));
    }
    let letter = "Dear Anna, this is no database, although it is long enough to be one.".repeat(20);
    std::fs::write(dir.path().join("letter.db"), letter).unwrap();
    assert!(matches!(refused("letter.db", "move it away"), OpenError::Unreadable { .. }));
    std::fs::remove_file(dir.path().join("letter.db")).unwrap();
    assert!(open("letter.db").is_none(), "the remedy helps");

    sql("letter.db", "PRAGMA user_version = 99");
    assert!(matches!(refused("letter.db", "newer release"), OpenError::Newer { found: 99, .. }));
    assert!(matches!(refused("no/such/dir.db", "check that its directory"), OpenError::Unusable { .. }));
}
