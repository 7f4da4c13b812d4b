//! The log as people's own tools see it: Confluent's consumer for Python with the registry's schemas, and kcat.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use endcap_log_kafka::{KafkaSettings, RegistrySettings};
use endcap_runtime::{Broker, Headers, Outgoing};
use endcap_schemas::{UserKey, topics::Topic, wire};
use serde_json::Value;

use crate::server::{Server, address, settings};

/// The place of this repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program that must be there where servers are required; `None`, said aloud, where it is absent and may be.
fn tool(name: &str, program: Option<String>, probe: &[&str], remedy: &str) -> Option<String> {
    let works = |program: &String| Command::new(program).args(probe).output().is_ok_and(|output| output.status.success());
    let found = program.filter(works);
    if found.is_none() {
        assert!(env::var("ENDCAP_REQUIRE_SERVICES").is_err(), "{name} is not there, and it is required: {remedy}");
        println!("skipped: no {name}; {remedy}");
    }
    found
}

fn python() -> Option<String> {
    let program = env::var("ENDCAP_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = ["-c", "import confluent_kafka.schema_registry.avro"];
    tool("Python with confluent-kafka[avro]", Some(program), &probe, "tests/services/services fetch tools, and take on its env")
}

fn said(command: &mut Command) -> String {
    let output = command.output().expect("a program that was found runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it says text")
}

/// What `read_topic.py` says of a topic: brokers, registry and name.
fn read_topic(python: &str, of: [&str; 3]) -> Vec<Value> {
    let printed = said(Command::new(python).arg(root().join("docs/tools/read_topic.py")).args(of));
    printed.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The samples of a topic's schema, a version each, oldest first: the value as it was once written, and what it says.
fn samples(topic: Topic) -> Vec<(Vec<u8>, Value)> {
    let versions = 1..=wire::schemas_of(topic).len();
    let path = |version: usize, kind: &str| root().join("schemas/samples").join(format!("{topic}.{version}.{kind}"));
    let read = |path: PathBuf| fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let says = |version| serde_json::from_slice(&read(path(version, "json"))).expect("a sample's words are JSON");
    versions.map(|version| (read(path(version, "bin")), says(version))).collect()
}

fn outgoing(topic: Topic, value: Vec<u8>) -> Outgoing {
    Outgoing { topic, key: UserKey::of("shopper-0001"), headers: Headers::root("order-17", topic, 1_700_000_000_000), value }
}

/// Whether all that an earlier version said stands in what a later one makes of it; the later one may have more.
fn is_within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(name, value)| whole.get(name).is_some_and(|whole| is_within(value, whole)))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| is_within(part, whole))
        }
        _ => part == whole,
    }
}

#[test]
fn confluents_consumer_reads_every_version_of_every_topic() {
    let (Some(broker), Some(url)) = (address("ENDCAP_TEST_KAFKA"), address("ENDCAP_TEST_REGISTRY")) else { return };
    let Some(python) = python() else { return };
    let registry = Some(RegistrySettings { url: url.clone(), token: None });
    let server = Server::with(KafkaSettings { registry, ..settings(&broker) }, 2);
    for topic in Topic::LIVE {
        let samples = samples(topic);
        let records: Vec<_> = samples.iter().map(|(value, _)| outgoing(topic, value.clone())).collect();
        server.kafka.append(&records, None).expect("records are taken");
        let name = format!("{}.{topic}", server.settings.namespace);
        let read = read_topic(&python, [&broker, &url, &name]);
        assert_eq!(read.len(), samples.len(), "{read:?}");
        for (record, (_, says)) in read.iter().zip(&samples) {
            assert!(is_within(&record["value"], says), "{topic}: {} is not of {says}", record["value"]);
            assert_eq!((&record["key"], &record["headers"]["ce_id"]), (&"default/shopper-0001".into(), &"order-17".into()));
            assert_eq!(record["headers"]["ce_time"], "2023-11-14T22:13:20.000Z");
        }
        let (newest, (_, says)) = (read.last().expect("a record"), samples.last().expect("a sample"));
        assert_eq!(&newest["value"], says, "{topic}: today's version says all");
    }
}

#[test]
fn a_reader_goes_on_behind_values_that_it_cannot_read() {
    let (Some(broker), Some(url)) = (address("ENDCAP_TEST_KAFKA"), address("ENDCAP_TEST_REGISTRY")) else { return };
    let Some(python) = python() else { return };
    let server = Server::with(settings(&broker), 1);
    let unframed = samples(Topic::EVENTS).pop().expect("a sample").0;
    let unknown_id = [&[0, 0x7F, 0xFF, 0xFF, 0xFF], &unframed[..]].concat();
    let values = [unframed, unknown_id, b"noise".to_vec(), Vec::new()];
    let records: Vec<_> = values.iter().map(|value| outgoing(Topic::EVENTS, value.clone())).collect();
    server.kafka.append(&records, None).expect("records are taken");
    let read = read_topic(&python, [&broker, &url, &format!("{}.{}", server.settings.namespace, Topic::EVENTS)]);
    let raw: Vec<_> = read.iter().map(|record| record["raw"].as_str().map(str::to_owned)).collect();
    let hex = |value: &Vec<u8>| Some(value.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    assert_eq!(raw, values.iter().map(hex).collect::<Vec<_>>(), "{read:?}");
}

#[test]
fn kcat_reads_keys_headers_and_values() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let Some(kcat) = tool("kcat", Some("kcat".to_owned()), &["-V"], "Debian: kcat") else { return };
    let server = Server::with(settings(&broker), 1);
    let (value, _) = samples(Topic::EVENTS).pop().expect("a sample");
    server.kafka.append(&[outgoing(Topic::EVENTS, value.clone())], None).expect("a record is taken");
    let name = format!("{}.{}", server.settings.namespace, Topic::EVENTS);
    let format = "%k %o %S %h";
    let printed = said(Command::new(kcat).args(["-C", "-q", "-e", "-b", &broker, "-t", &name, "-f", format]));
    let starts = format!("default/shopper-0001 0 {} ce_specversion=1.0,ce_id=order-17,", value.len());
    assert!(printed.starts_with(&starts) && printed.contains("ce_type=endcap.shopper-events.v1"), "{printed}");
}
