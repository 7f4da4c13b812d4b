//! Values framed for a real schema registry.

use std::time::Duration;

use endcap_log_kafka::{KafkaSettings, RegistrySettings};
use endcap_runtime::{
    Broker, Commit, DeadLetter, DeadLetterFilter, Log, LogError,
    contract::{poll_all, through},
};
use endcap_schemas::{ShopperEvent, topics::Topic, wire};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::{
    server::{Server, address, connect, settings},
    toy::event,
};

/// A fresh log that uses the registry at `url`.
fn server(broker: &str, url: &str) -> Server {
    let registry = Some(RegistrySettings { url: url.to_owned(), token: None });
    Server::with(KafkaSettings { registry, ..settings(broker) }, 1)
}

fn raw_value(server: &Server) -> Vec<u8> {
    let without = KafkaSettings { registry: None, instance: "raw".to_owned(), ..server.settings.clone() };
    connect(&without, &server.store).records(Topic::EVENTS, 0, 0, 1).expect("a record is read").remove(0).value
}

#[test]
fn values_travel_framed_and_arrive_as_they_were() {
    let (Some(broker), Some(url)) = (address("ENDCAP_TEST_KAFKA"), address("ENDCAP_TEST_REGISTRY")) else { return };
    let server = server(&broker, &url);
    let sent = event(7, 10);
    server.kafka.append(std::slice::from_ref(&sent), None).expect("an event is taken");
    let raw = raw_value(&server);
    assert_eq!((raw[0], &raw[5..]), (0, &sent.value[10..]), "framed, with the same body");

    let mut log = server.elsewhere("another").log("g", Topic::EVENTS).expect("a consumer");
    let got = poll_all(&mut log, 1).remove(0);
    assert_eq!(got.value, sent.value, "another process looks the schema up");
    assert_eq!(wire::decode::<ShopperEvent>(&got.value).expect("an event").id, "e7");

    let letter = DeadLetter {
        record: got.clone(),
        group: "g".into(),
        stage: "s".into(),
        attempts: 1,
        kind: "malformed".into(),
        message: "no".into(),
    };
    log.commit(&Commit { dead_letters: vec![letter], ..through("s", &got) }).expect("a commit is taken");
    let listed = server.kafka.dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    let kept = server.kafka.dead_letter(&listed[0].id).expect("an answer").expect("a letter");
    assert_eq!(kept.value, raw, "a dead letter keeps its original bytes");
    assert_eq!(server.kafka.redrive(&[listed[0].id.clone()]).expect("it is sent"), 1);
    let again = poll_all(&mut log, 1).remove(0);
    assert_eq!((&again.value, &again.headers), (&got.value, &got.headers));
}

#[test]
fn a_schema_that_nobody_knows_is_handed_on_as_it_is() {
    let (Some(broker), Some(url)) = (address("ENDCAP_TEST_KAFKA"), address("ENDCAP_TEST_REGISTRY")) else { return };
    let server = server(&broker, &url);
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", &broker).create().expect("a producer");
    let topic = format!("{}.{}", server.settings.namespace, Topic::EVENTS);
    let unknown = [0x00, 0x7F, 0xFF, 0xFF, 0xFE, 0x01];
    let record = BaseRecord::<[u8], [u8]>::to(&topic).key(b"default/anna").payload(&unknown);
    producer.send(record).map_err(|(error, _)| error).expect("a record is queued");
    producer.flush(Duration::from_secs(10)).expect("a record arrives");
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    assert_eq!(poll_all(&mut log, 1)[0].value, unknown);
}

#[test]
fn a_registry_that_is_not_there_keeps_records_waiting() {
    let (Some(broker), Some(url)) = (address("ENDCAP_TEST_KAFKA"), address("ENDCAP_TEST_REGISTRY")) else { return };
    let server = server(&broker, &url);
    server.kafka.append(&[event(1, 10), event(2, 10)], None).expect("events are taken");
    let registry = Some(RegistrySettings { url: "http://127.0.0.1:1".to_owned(), token: None });
    let astray = KafkaSettings { registry, instance: "astray".to_owned(), ..server.settings.clone() };
    let kafka = connect(&astray, &server.store);
    assert!(matches!(kafka.append(&[event(3, 10)], None), Err(LogError::Unavailable(_))));
    let mut log = kafka.log("g", Topic::EVENTS).expect("a consumer");
    let mut polls = (0..200).map(|_| log.poll(10, Duration::from_millis(100)));
    assert!(polls.any(|polled| matches!(polled, Err(LogError::Unavailable(_)))), "nothing is given that was not understood");
    drop(polls);
    assert!(matches!(log.poll(10, Duration::ZERO), Err(LogError::Unavailable(_))), "and it is not lost");
}
