//! What was counted survives its process.

use std::time::Duration;

use endcap_log_kafka::KafkaSettings;
use endcap_runtime::{
    Broker, Commit, Log, LogError, Received,
    contract::{poll_all, record, through},
};
use endcap_schemas::topics::Topic;
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::server::{Server, connect};

#[test]
fn a_tally_goes_on_after_a_new_start_and_is_summed_over_processes() {
    let Some(server) = Server::fresh(1) else { return };
    let events: Vec<_> = (0..6).map(|n| record(Topic::EVENTS, "anna", &[n])).collect();
    server.kafka.append(&events, None).expect("events are taken");
    for (instance, passed) in [("a", 1), ("a", 2), ("b", 1)] {
        let kafka = server.elsewhere(instance);
        let mut log = kafka.log("g", Topic::EVENTS).expect("a consumer");
        let got = poll_all(&mut log, passed);
        let mut commit = through("s", &got[passed - 1]);
        (0..passed).for_each(|_| commit.tally.pass());
        commit.tally.count("tokens", 10);
        log.commit(&commit).expect("a commit is taken");
    }
    let tallies = server.kafka.tallies().expect("tallies are read");
    assert_eq!((tallies["s"].received, tallies["s"].passed, tallies["s"].counters["tokens"]), (4, 4, 30));
    server.kafka.admit(&events[..2], &[]).expect("events are taken");
    server.elsewhere("first").admit(&events[..1], &[]).expect("events are taken");
    let tallies = server.kafka.tallies().expect("tallies are read");
    assert_eq!(tallies[endcap_runtime::INGEST].passed, 3);
    let fenced = server.kafka.admit(&events[..1], &[]);
    assert!(fenced.is_err(), "the door's first owner has lost its name: {fenced:?}");
}

/// A commit of `record` that counts it.
fn counted(record: &Received) -> Commit {
    let mut commit = through("s", record);
    commit.tally.pass();
    commit
}

/// A record that the writer `id` has written to `topic`, in a transaction that is still open.
pub(crate) fn open_transaction(server: &Server, id: &str, topic: &str, (key, value): (&str, &str)) -> BaseProducer {
    let namespace = &server.settings.namespace;
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &server.settings.brokers[0])
        .set("transactional.id", format!("{namespace}.{id}"))
        .create()
        .expect("a producer");
    producer.init_transactions(Duration::from_secs(30)).expect("a writer");
    producer.begin_transaction().expect("a transaction");
    producer.send(BaseRecord::to(&format!("{namespace}.{topic}")).key(key).payload(value)).expect("a record is taken");
    producer.flush(Duration::from_secs(30)).expect("a record is written");
    producer
}

#[test]
fn a_sum_that_stands_behind_an_open_transaction_of_another_writer_is_waited_for_and_not_gone_by() {
    let Some(server) = Server::fresh(1) else { return };
    let events: Vec<_> = (0..3).map(|n| record(Topic::EVENTS, "anna", &[n])).collect();
    server.kafka.append(&events, None).expect("events are taken");
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 3);
    log.commit(&counted(&got[0])).expect("a commit is taken");
    let another = open_transaction(&server, "another", "endcap.tallies.v1", ("s@another", "{}"));
    log.commit(&counted(&got[1])).expect("a commit behind the open transaction is taken");
    drop(log);

    // Less patient: what it waits for does not come by itself.
    let settings = KafkaSettings { request_timeout_s: 6, ..server.settings.clone() };
    let mut log = connect(&settings, &server.store).log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 1);
    let early = log.commit(&counted(&got[0]));
    assert!(matches!(&early, Err(LogError::Unavailable(cause)) if cause.contains("is not over yet")), "{early:?}");
    another.abort_transaction(Duration::from_secs(30)).expect("the other transaction ends");
    log.commit(&counted(&got[0])).expect("a commit is taken");
    assert_eq!(server.kafka.tallies().expect("tallies are read")["s"].received, 3);
}

#[test]
fn who_starts_anew_ends_what_its_predecessor_has_left_open() {
    let Some(server) = Server::fresh(1) else { return };
    // What a process leaves behind that dies between its records and its commit.
    let _producer = open_transaction(&server, "g.first", Topic::EVENTS.name(), ("default/anna", "x"));

    let _log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    server.elsewhere("door").append(&[record(Topic::EVENTS, "anna", b"1")], None).expect("an event is taken");
    let mut reader = server.elsewhere("reader").log("h", Topic::EVENTS).expect("a consumer");
    assert_eq!(poll_all(&mut reader, 1)[0].value, b"1", "nothing stands before it any more");
}
