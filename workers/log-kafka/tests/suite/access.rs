//! Logins and certificates: what fits works, and what does not is one clear error within seconds that shows no secret.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use endcap_log_kafka::{Kafka, KafkaLog, KafkaSettings, Mechanism, Security, Topics};
use endcap_runtime::{
    Broker, Log, LogError, Secret,
    contract::{poll_all, record, through_all},
};
use endcap_schemas::topics::Topic;

use crate::{
    groups::until,
    server::{Server, address, checked, connect, settings, small},
    toy::GROUP,
};

/// Longest time until an error is told.
const SOON: Duration = Duration::from_secs(8);

/// What no error and no print may show.
const SECRET: &str = "hunter2";

/// Settings for the broker's TLS port, with the login that the environment names.
fn login(broker: &str, mechanism: Mechanism) -> KafkaSettings {
    KafkaSettings {
        security: Security::SaslSsl,
        ca: Some(path("ENDCAP_TEST_CA")),
        mechanism: Some(mechanism),
        user: Some(named("ENDCAP_TEST_USER")),
        password: Some(Secret::new(named("ENDCAP_TEST_PASSWORD"))),
        ..settings(broker)
    }
}

/// Settings for the broker's port that asks for a certificate, with that of the name.
fn certified(broker: &str, client: &str, key_password: Option<&str>) -> KafkaSettings {
    KafkaSettings {
        security: Security::Ssl,
        ca: Some(path("ENDCAP_TEST_CA")),
        certificate: Some(path(client)),
        key: Some(path(&format!("{client}_KEY"))),
        key_password: key_password.map(Secret::new),
        ..settings(broker)
    }
}

/// Settings for the broker's TLS port with the token in `file`.
fn with_token(broker: &str, file: &Path) -> KafkaSettings {
    let token_file = Some(file.to_owned());
    KafkaSettings { user: None, password: None, token_file, ..login(broker, Mechanism::OauthBearer) }
}

fn named(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: `tests/services/services env` prints it"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(named(name))
}

/// Checks that these settings are refused soon, in words that have `parts`.
fn check_refused(settings: KafkaSettings, parts: &[&str]) {
    let (start, config) = (Instant::now(), checked(settings));
    let error = Topics::connect(&config, &small(1)).expect_err("such settings are refused");
    let text = error.to_string();
    assert!(start.elapsed() < SOON, "{:?}: {text}", start.elapsed());
    assert!(matches!(error, LogError::Refused(_)), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    let shown = format!("{config:?} {error:?} {text}");
    assert!(!shown.contains(SECRET), "{shown}");
    println!("{text}");
}

/// Checks that events go in and come out with these settings.
fn check_works(settings: KafkaSettings) {
    let server = Server::with(settings, 2);
    let mut log = server.kafka.log("g", Topic::EVENTS).expect("a consumer");
    check_round(&server.kafka, &mut log);
}

fn check_round(kafka: &Kafka, log: &mut KafkaLog) {
    kafka.append(&[record(Topic::EVENTS, "anna", b"1")], None).expect("an event is taken");
    let got = poll_all(log, 1);
    log.commit(&through_all("s", &got)).expect("a commit is taken");
}

#[test]
fn every_password_login_works_over_tls_and_a_wrong_password_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    for mechanism in [Mechanism::ScramSha512, Mechanism::ScramSha256, Mechanism::Plain] {
        check_works(login(&broker, mechanism));
        let right = login(&broker, mechanism);
        let user = right.user.clone().expect("a user");
        let wrong = KafkaSettings { password: Some(Secret::new(SECRET)), ..right };
        check_refused(wrong, &[&format!("login of {user} is not accepted"), &broker]);
    }
}

#[test]
fn a_certificate_is_a_login_and_a_wrong_one_or_none_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_MUTUAL") else { return };
    check_works(certified(&broker, "ENDCAP_TEST_CLIENT", Some(&named("ENDCAP_TEST_PASSWORD"))));
    check_refused(certified(&broker, "ENDCAP_TEST_CLIENT", Some(SECRET)), &["check `key` and `key_password`"]);
    for wrong in ["ENDCAP_TEST_STRANGER", "ENDCAP_TEST_EXPIRED"] {
        check_refused(certified(&broker, wrong, None), &["check `certificate` and `key`", &broker]);
    }
    let none = KafkaSettings { certificate: None, key: None, ..certified(&broker, "ENDCAP_TEST_STRANGER", None) };
    check_refused(none, &["check `certificate` and `key`", &broker]);
}

#[test]
fn a_token_is_renewed_on_every_client_before_it_ends() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    // Topics are made with a password, so that a short token has the time for what is tested.
    let server = Server::with(login(&broker, Mechanism::ScramSha512), 2);
    let namespace = server.settings.namespace.clone();
    let settings = KafkaSettings { namespace, instance: "token".to_owned(), ..with_token(&broker, &file) };
    let end_s = now_s() + 30;
    fs::write(&file, token("endcap", end_s)).expect("a file");
    let kafka = connect(&settings, &server.store);
    let mut log = kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    check_round(&kafka, &mut log);
    kafka.groups().expect("groups are told");
    assert!(now_s() < end_s, "this machine is too slow for a token of 30 s");
    fs::write(&file, token("endcap", now_s() + 3_600)).expect("a file");
    until("the end of the first token, at which the broker closes its connections", || now_s() > end_s + 2);
    check_round(&kafka, &mut log);
    kafka.groups().expect("groups are told");
    kafka.dead_letter_counts().expect("dead letters are counted");
    assert!(kafka.tallies().expect("tallies are read").contains_key("s"));
    let plan = Topics::connect(&checked(settings), &small(2)).expect("a connection").plan();
    assert!(plan.expect("a plan").steps.is_empty());
}

#[test]
fn a_token_that_is_none_has_expired_or_is_not_taken_is_one_clear_error_that_does_not_show_it() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    let refused = |parts: &[&str]| check_refused(with_token(&broker, &file), parts);
    refused(&["cannot read the token file", &file.display().to_string()]);
    for (text, part) in [
        (format!("{SECRET} {SECRET}"), "holds no token"),
        (token(SECRET, now_s() - 60), "has expired 6"),
        (SECRET.to_owned(), "no token is accepted"),
    ] {
        fs::write(&file, &text).expect("a file");
        refused(&[part, &broker]);
    }
}

/// A token of `user` without a signature, as a test broker takes it.
fn token(user: &str, end_s: u64) -> String {
    let part = |text: String| {
        let bits: String = text.bytes().map(|byte| format!("{byte:08b}")).collect();
        let six = |bits: &[u8]| {
            let bits = bits.iter().chain(std::iter::repeat(&b'0')).take(6);
            bits.fold(0_usize, |number, bit| number * 2 + usize::from(*bit == b'1'))
        };
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        bits.as_bytes().chunks(6).map(|bits| char::from(letters[six(bits)])).collect::<String>()
    };
    let claims = format!(r#"{{"sub":"{user}","iat":{},"exp":{end_s}}}"#, end_s - 7_200);
    format!("{}.{}.", part(r#"{"alg":"none"}"#.to_owned()), part(claims))
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[test]
fn a_wrong_authority_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    check_refused(
        KafkaSettings { ca: Some(path("ENDCAP_TEST_OTHER_CA")), ..login(&broker, Mechanism::ScramSha512) },
        &["cannot be verified: its authority is not the one in `ca`", &broker],
    );
}

#[test]
fn an_expired_certificate_is_one_clear_error() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_EXPIRED") else { return };
    let settings = KafkaSettings { security: Security::Ssl, ca: Some(path("ENDCAP_TEST_CA")), ..settings(&broker) };
    check_refused(settings, &["cannot be verified", "it has expired", &broker]);
}

#[test]
fn a_broker_that_is_not_there_is_one_clear_error() {
    check_unavailable("127.0.0.1:1", |cause| cause.contains("127.0.0.1:1") && !cause.contains("TLS"));
}

#[test]
fn a_plain_client_at_a_port_for_tls_is_told_of_it() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA_TLS") else { return };
    check_unavailable(&broker, |cause| cause.contains("if TLS is spoken at this port, set `security`"));
}

/// Checks that a client without TLS gives `broker` up soon, for such a cause.
fn check_unavailable(broker: &str, is_told: impl Fn(&str) -> bool) {
    let config = checked(KafkaSettings { request_timeout_s: 1, ..settings(broker) });
    let start = Instant::now();
    let error = Topics::connect(&config, &small(1)).expect_err("nobody answers");
    assert!(matches!(&error, LogError::Unavailable(cause) if is_told(cause)), "{error}");
    assert!(start.elapsed() < SOON);
}
