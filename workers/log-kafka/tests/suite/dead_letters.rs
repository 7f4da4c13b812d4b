//! Dead letters on Kafka, beyond the contract: foreign records as they were, erased users, other processes.

use std::{thread, time::Duration};

use endcap_log_kafka::KafkaSettings;
use endcap_runtime::{
    Broker, CAME_UNDER, Commit, DeadLetter, DeadLetterFilter, Log, LogError, Received, Shutdown, Stamp, Store, Write,
    contract::{poll_all, record, through},
};
use endcap_schemas::{UserKey, topics::Topic};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
    message::{Header, Headers as _, Message, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::{
    groups::until,
    server::{Server, connect},
    tallies::open_transaction,
    toy::{all, event, fold},
};

fn letter(record: &Received) -> DeadLetter {
    DeadLetter {
        record: record.clone(),
        group: "g".to_owned(),
        stage: "s".to_owned(),
        attempts: 1,
        kind: "malformed".to_owned(),
        message: "no".to_owned(),
    }
}

/// Sends a record as no producer of ours would, with a header of its own.
fn send_foreign(server: &Server, topic: &str, key: &[u8], value: &[u8]) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &server.settings.brokers[0]).create().expect("a producer");
    let headers = OwnedHeaders::new().insert(Header { key: "shop", value: Some("berlin") });
    let record = BaseRecord::<[u8], [u8]>::to(topic).key(key).payload(value).headers(headers);
    producer.send(record).map_err(|(error, _)| error).expect("a record is queued");
    producer.flush(std::time::Duration::from_secs(10)).expect("a record arrives");
}

#[test]
fn a_foreign_record_goes_to_the_dead_letters_and_back_with_its_key_bytes_and_headers() {
    let Some(server) = Server::fresh(2) else { return };
    let topic = format!("{}.{}", server.settings.namespace, Topic::EVENTS);
    send_foreign(&server, &topic, &[0xFF, 0x01], &[0x00, 0xFE]);
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 1).remove(0);
    assert_eq!(got.headers.id, format!("{topic}/{}/{}", got.partition, got.offset), "an id is derived from its place");
    log.commit(&Commit { dead_letters: vec![letter(&got)], ..through("s", &got) }).expect("a commit is taken");

    let raw: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &server.settings.brokers[0])
        .set("group.id", "raw")
        .set("auto.offset.reset", "earliest")
        .create()
        .expect("a consumer");
    raw.subscribe(&[&format!("{topic}.dlq")]).expect("a subscription");
    let message = loop {
        if let Some(Ok(message)) = raw.poll(std::time::Duration::from_secs(30)) {
            break message;
        }
    };
    assert_eq!((message.key(), message.payload()), (Some(&[0xFF, 0x01][..]), Some(&[0x00, 0xFE][..])));
    let headers = message.headers().expect("headers");
    let value = |name: &str| {
        let found = headers.iter().find(|header| header.key == name);
        found.and_then(|header| header.value).map(|value| String::from_utf8_lossy(value).into_owned())
    };
    assert_eq!(value("shop").as_deref(), Some("berlin"));
    assert_eq!(value("__dlq.errors.topic").as_deref(), Some(Topic::EVENTS.name()));
    assert_eq!(value("__dlq.errors.offset"), Some(got.offset.to_string()));
    assert_eq!(value("__dlq.errors.kind").as_deref(), Some("malformed"));

    let listed = server.kafka.dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    assert_eq!(server.elsewhere("clerk").redrive(&[listed[0].id.clone()]).expect("it is sent"), 1);
    assert!(server.kafka.dead_letters(&DeadLetterFilter::default()).expect("a list").is_empty(), "seen by other processes");
    let again = poll_all(&mut log, 1).remove(0);
    assert_eq!((&again.key, &again.value, &again.headers), (&got.key, &got.value, &got.headers));
}

#[test]
fn records_under_another_key_than_their_shoppers_are_filed_under_their_shopper() {
    let Some(server) = Server::fresh(2) else { return };
    let topic = format!("{}.{}", server.settings.namespace, Topic::EVENTS);
    for (n, key) in [&b"default/somebody"[..], &[0xFF, 0x01], b""].into_iter().enumerate() {
        send_foreign(&server, &topic, key, &event(n as i64, 1).value);
    }
    let fold_until = |received: u64| {
        let end = Shutdown::new();
        thread::scope(|scope| {
            scope.spawn(|| fold(&server.kafka, &server.store, 10, &end).expect("the worker ends as it was asked to"));
            until("every record's fate", || {
                server.kafka.tallies().expect("tallies").get("context").is_some_and(|tally| tally.received == received)
            });
            end.trigger();
        });
    };
    fold_until(3);
    let theirs = DeadLetterFilter { user: Some(UserKey::of("u0")), kind: Some("wrong_key".to_owned()), ..Default::default() };
    let ids: Vec<_> = server.kafka.dead_letters(&theirs).expect("a list").into_iter().map(|letter| letter.id).collect();
    let came_under = |id| {
        let letter = server.kafka.dead_letter(id).expect("an answer").expect("a letter");
        letter.headers.foreign.into_iter().find(|(name, _)| name == CAME_UNDER).expect("its own key is kept").1
    };
    let mut keys: Vec<Vec<u8>> = ids.iter().map(came_under).collect();
    keys.sort_unstable();
    assert_eq!(keys, [b"".to_vec(), b"default/somebody".to_vec(), vec![0xFF, 0x01]]);
    let erase = Write::Erase { user: UserKey::of("somebody"), stamp: Stamp(i64::MAX), at: None };
    server.store.put_all(&[erase], &[]).expect("an erasure is taken");
    let listed = server.kafka.dead_letters(&theirs).expect("a list");
    let named: usize = listed.iter().map(|letter| letter.headers.came_under().count()).sum();
    assert_eq!((listed.len(), named), (3, 2), "who is erased is named no more");
    assert_eq!(server.kafka.redrive(&ids).expect("they are sent"), 3);
    fold_until(6);
    let contexts = all(&server.kafka, Topic::CONTEXTS);
    assert_eq!(contexts.len(), 3, "sent again they go where their shopper's records are");
    assert!(contexts.iter().all(|context| context.key == "default/u0"));
}

#[test]
fn letters_of_an_erased_user_say_nothing_and_stay() {
    let Some(server) = Server::fresh(2) else { return };
    let records = [record(Topic::EVENTS, "anna", b"1"), record(Topic::EVENTS, "bert", b"2")];
    server.kafka.append(&records, None).expect("events are taken");
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    for got in poll_all(&mut log, 2) {
        log.commit(&Commit { dead_letters: vec![letter(&got)], ..through("s", &got) }).expect("a commit is taken");
    }
    let erase = Write::Erase { user: UserKey::of("bert"), stamp: Stamp::of(records[1].headers.time_ms, 0), at: None };
    server.store.put_all(&[erase], &[]).expect("an erasure is taken");
    let listed = server.kafka.dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    let masked: Vec<(bool, bool)> = listed.iter().map(|letter| (letter.masked, letter.key.is_empty())).collect();
    assert_eq!(masked.iter().filter(|pair| **pair == (true, true)).count(), 1, "{masked:?}");
    let ids: Vec<_> = listed.iter().map(|letter| letter.id.clone()).collect();
    assert_eq!(server.kafka.redrive(&ids).expect("an answer"), 1, "what belongs to an erased user stays");
    assert_eq!(poll_all(&mut log, 1)[0].key, "default/anna");
}

#[test]
fn a_letter_that_may_have_been_sent_already_is_not_sent_again_before_that_is_known() {
    let Some(server) = Server::fresh(1) else { return };
    server.kafka.append(&[record(Topic::EVENTS, "anna", b"1")], None).expect("an event is taken");
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 1).remove(0);
    log.commit(&Commit { dead_letters: vec![letter(&got)], ..through("s", &got) }).expect("a commit is taken");
    let listed = || server.kafka.dead_letters(&DeadLetterFilter::default()).expect("letters are listed");
    until("the letter", || listed().len() == 1);
    let id = listed().remove(0).id;

    let settings = KafkaSettings { instance: "hasty".to_owned(), request_timeout_s: 6, ..server.settings.clone() };
    let hasty = connect(&settings, &server.store);
    let another = open_transaction(&server, "another", "endcap.redriven.v1", (id.as_str(), "1"));
    let early = hasty.redrive(std::slice::from_ref(&id));
    assert!(matches!(&early, Err(LogError::Unavailable(cause)) if cause.contains("is not over yet")), "{early:?}");
    another.abort_transaction(Duration::from_secs(30)).expect("the other transaction ends");

    let _own = open_transaction(&server, "endcap.ingest.hasty", "endcap.redriven.v1", (id.as_str(), "2"));
    let anew = connect(&settings, &server.store);
    assert_eq!(anew.redrive(std::slice::from_ref(&id)).expect("what a killed process has left open is ended"), 1);
    assert_eq!(anew.redrive(&[id.clone(), id]).expect("nothing is left to be sent"), 0);
}
