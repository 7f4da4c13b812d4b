//! Groups whose consumers come and go.

use std::{
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use endcap_log_kafka::{Kafka, KafkaSettings};
use endcap_runtime::{
    Broker, Log, LogError, Received, Shutdown,
    contract::{poll_all, record, through_all},
};
use endcap_schemas::topics::Topic;
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

use crate::{
    server::{Server, address, settings},
    toy::{GROUP, check_contexts, event, fold},
};

const EVENTS: i64 = 4_000;
const USERS: i64 = 150;
/// Longest wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(60);

fn received(kafka: &Kafka) -> u64 {
    kafka.tallies().expect("tallies are read").get("context").map_or(0, |tally| tally.received)
}

/// Looks again until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let (start, pause) = (Instant::now(), Shutdown::new());
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        pause.wait(Duration::from_millis(10));
    }
}

#[test]
fn consumers_come_and_go_and_nothing_is_lost_or_doubled() {
    let Some(server) = Server::fresh(6) else { return };
    let ends: Vec<Shutdown> = (0..4).map(|_| Shutdown::new()).collect();
    thread::scope(|scope| {
        let start = |n: usize| {
            let (kafka, store, end) = (server.elsewhere(&format!("worker-{n}")), server.store.clone(), ends[n].clone());
            scope.spawn(move || fold(&kafka, &store, 20, &end).expect("a worker ends as it was asked to"));
        };
        let until_received = |count: u64| until("progress", || received(&server.kafka) >= count);
        start(0);
        for from in (0..EVENTS).step_by(500) {
            let events: Vec<_> = (from..from + 500).map(|n| event(n, USERS)).collect();
            server.kafka.append(&events, Some(("feed", &(from + 500).to_string()))).expect("events are taken");
        }
        start(1);
        until_received(800);
        start(2);
        until_received(1_600);
        ends[0].trigger();
        until_received(2_200);
        start(3);
        until_received(2_800);
        ends[1].trigger();
        until_received(4_000);
        ends.iter().for_each(Shutdown::trigger);
    });
    check_contexts(&server.kafka, EVENTS, USERS);
    let waiting: u64 = server.kafka.groups().expect("groups").iter().map(|state| state.backlog.waiting).sum();
    assert_eq!(waiting, 0);
    assert_eq!(server.kafka.progress("feed").expect("progress").as_deref(), Some("4000"));
}

#[test]
fn a_consumer_that_gets_no_partition_waits_for_its_group_no_longer_either() {
    let Some(server) = Server::fresh(1) else { return };
    let join = |name: &str| server.elsewhere(name).log("g", Topic::EVENTS).expect("a consumer");
    let (one, two) = (join("one"), join("two"));
    for log in [&one, &two] {
        until("the group is divided", || log.awaits().is_none());
    }
}

#[test]
fn a_commit_over_a_lost_partition_is_refused_and_the_rest_goes_through() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let server = Server::with(KafkaSettings { drain_s: 1, ..settings(&broker) }, 4);
    let events: Vec<_> = (0..40).map(|n| record(Topic::EVENTS, &format!("u{n}"), b"x")).collect();
    server.kafka.append(&events, None).expect("events are taken");
    let mut first = server.kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    let held = poll_all(&mut first, 40);
    // The first one does not ask what is taken away, as one whose batch takes too long.
    let mut second = server.elsewhere("second").log(GROUP, Topic::EVENTS).expect("a consumer");
    let mut theirs = poll_all(&mut second, 1);
    let Err(LogError::Revoked { partitions, .. }) = first.commit(&through_all("s", &held)) else {
        panic!("a commit over partitions that went away must be refused");
    };
    let gone = held.iter().filter(|record| partitions.contains(&record.partition)).count();
    theirs.extend(poll_all(&mut second, gone - 1));
    assert!(theirs.iter().all(|record| partitions.contains(&record.partition)), "what was refused is what the other one has");
    let mut rest = through_all("s", &held);
    rest.through.retain(|partition, _| !partitions.contains(partition));
    assert!(!rest.through.is_empty(), "the first one has kept some");
    first.commit(&rest).expect("what is left goes through");
    second.commit(&through_all("s", &theirs)).expect("the other one commits what it has");
}

#[test]
fn a_partition_waits_for_the_commit_of_what_is_held_of_it() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let server = Server::with(KafkaSettings { drain_s: 5, ..settings(&broker) }, 2);
    let events: Vec<_> = (0..20).map(|n| record(Topic::EVENTS, &format!("u{n}"), b"x")).collect();
    server.kafka.append(&events, None).expect("events are taken");
    let mut first = server.kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    let held = poll_all(&mut first, 20);
    let mut second = server.elsewhere("second").log(GROUP, Topic::EVENTS).expect("a consumer");
    // An empty poll before its time tells that something is being taken away.
    until("a rebalance", || {
        let start = Instant::now();
        first.poll(1, Duration::from_secs(5)).expect("a poll is answered").is_empty() && start.elapsed() < Duration::from_secs(4)
    });
    first.commit(&through_all("s", &held)).expect("the batch in work is still committed");
    assert!(first.revoked().is_empty(), "nothing is left to drop");
    server.kafka.append(&events, None).expect("events are taken");
    let fresh = poll_all(&mut second, 1);
    assert!(
        !fresh.is_empty()
            && fresh.iter().all(|record| held.iter().all(|old| (old.partition, old.offset) != (record.partition, record.offset))),
        "the other one goes on behind the commit"
    );
}

#[test]
fn the_one_who_starts_under_the_same_name_takes_the_place_of_the_other() {
    let Some(server) = Server::fresh(1) else { return };
    let events: Vec<_> = (0..2).map(|n| record(Topic::EVENTS, "anna", &[n])).collect();
    server.kafka.append(&events, None).expect("events are taken");
    let mut first = server.kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    let held = poll_all(&mut first, 2);
    first.commit(&through_all("s", &held[..1])).expect("a commit is taken");
    let mut twin = server.elsewhere("first").log(GROUP, Topic::CONTEXTS).expect("a consumer");
    twin.commit(&endcap_runtime::Commit { stage: "s".into(), ..Default::default() }).expect("an empty commit is taken");
    let fenced = first.commit(&through_all("s", &held));
    assert!(matches!(&fenced, Err(LogError::Fenced(name)) if name.ends_with(".first")), "{fenced:?}");
}

/// How many members the group has now; `None` while it is divided anew.
fn members(asker: &BaseConsumer, group: &str) -> Option<usize> {
    let list = asker.fetch_group_list(Some(group), PATIENCE).expect("a group is described");
    let found = list.groups().iter().find(|found| found.name() == group && found.state() == "Stable")?;
    Some(found.members().len())
}

#[test]
fn work_slower_than_the_sessions_time_stops_fetching_and_not_the_membership() {
    const AHEAD: u32 = 50;
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let server = Server::with(KafkaSettings { ahead_records_max: AHEAD, ..settings(&broker) }, 2);
    for from in 0..4 {
        let events: Vec<_> =
            (0..250).map(|n| record(Topic::EVENTS, &format!("u{n}"), format!("{from}/{n}").as_bytes())).collect();
        server.kafka.append(&events, None).expect("events are taken");
    }
    let mut log = server.kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    let places = |records: &[Received]| -> Vec<_> { records.iter().map(|record| (record.partition, record.offset)).collect() };
    let (mut got, fetched) = thread::scope(|scope| {
        let ((begun, working), (finish, finished)) = (channel(), channel());
        let stage = scope.spawn(move || {
            let batch = poll_all(&mut log, 30);
            begun.send(()).expect("the test listens");
            finished.recv().expect("the test says when the work is done");
            log.commit(&through_all("s", &batch)).expect("the batch is still this consumer's");
            let ahead = log.poll(1_000, PATIENCE).expect("a poll is answered");
            log.commit(&through_all("s", &ahead)).expect("a commit is taken");
            let (mut got, fetched) = (places(&batch), ahead.len());
            got.extend(places(&ahead));
            while got.len() < 1_000 {
                let polled = log.poll(30, PATIENCE).expect("a poll is answered");
                assert!(!polled.is_empty() && log.revoked().is_empty(), "{} of 1,000 came", got.len());
                log.commit(&through_all("s", &polled)).expect("a commit is taken");
                got.extend(places(&polled));
            }
            (got, fetched)
        });
        working.recv().expect("the stage begins");
        let asker: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &broker).create().expect("a client");
        let group = format!("{}.{GROUP}", server.settings.namespace);
        let (start, session) = (Instant::now(), Duration::from_secs(server.settings.session_timeout_s.into()));
        until("twice the session's time", || {
            assert_eq!(members(&asker, &group), Some(1), "the group is whole after {:?}", start.elapsed());
            start.elapsed() > 2 * session
        });
        finish.send(()).expect("the stage listens");
        stage.join().expect("the stage ends well")
    });
    assert!(fetched <= AHEAD as usize, "{fetched} records were fetched ahead");
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 1_000, "each comes once, however often fetching stops");
}
