//! Where the brokers are and how they are talked to, checked once into values that cannot be wrong.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use endcap_runtime::{Secret, outside};
use serde::Deserialize;
use thiserror::Error;

use crate::registry::Registry;

/// librdkafka properties that this crate sets itself, because exactly-once rests on them or because a setting of its own names them.
pub(crate) const OWN: [&str; 30] = [
    "auto.offset.reset",
    "bootstrap.servers",
    "delivery.report.only.error",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.id",
    "group.protocol",
    "isolation.level",
    "linger.ms",
    "message.max.bytes",
    "partition.assignment.strategy",
    "partitioner",
    "queue.buffering.max.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "transaction.timeout.ms",
    "transactional.id",
    "metadata.broker.list",
];

/// Longest namespace: Kafka's names of topics have 249 characters at most, ours up to 49 behind it.
const NAMESPACE_MAX_BYTES: usize = 200;

/// What names of properties hold that carry a secret.
const SECRETS: [&str; 4] = ["password", "secret", "token", ".pem"];

/// The settings as they are written; [`KafkaConfig`] is what they become.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSettings {
    /// Brokers to begin with, `host:port`; the others are learnt from them.
    pub brokers: Vec<String>,
    /// Put before the name of every topic, group and transactional id, with a dot: two installations on one cluster differ in it.
    pub namespace: String,
    /// Name of this process among those that run the same stage: its producers work under it, and one that starts under the same name
    /// takes its place.
    pub instance: String,
    /// How connections are made.
    pub security: Security,
    /// Authorities that the brokers' certificates are checked against, PEM; the system's where none is named.
    pub ca: Option<PathBuf>,
    /// Certificate of this client, PEM.
    pub certificate: Option<PathBuf>,
    /// Its key, PEM.
    pub key: Option<PathBuf>,
    /// What the key is encrypted with.
    pub key_password: Option<Secret>,
    /// How this client shows who it is.
    pub mechanism: Option<Mechanism>,
    /// Who it is.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// File that holds the current token of `OAUTHBEARER`, which somebody else renews; it is read again long before the token ends, and at
    /// least every four minutes.
    pub token_file: Option<PathBuf>,
    /// Silence after which the group takes a consumer for dead, s.
    pub session_timeout_s: u32,
    /// How long partitions that are taken away wait for the batch in work, s; shorter than the session.
    pub drain_s: u32,
    /// Age at which the brokers abort a transaction, s: records behind one that was left open wait so long.
    pub transaction_timeout_s: u32,
    /// How long one request may take, s.
    pub request_timeout_s: u32,
    /// Records that are fetched ahead of the stage.
    pub ahead_records_max: u32,
    /// Bytes that are fetched ahead of the stage.
    pub ahead_bytes_max: u32,
    /// Events that may wait for a group before a producer is told that the log is full.
    pub waiting_max: u64,
    /// A schema registry that values are framed for; without one they travel in Avro's single-object encoding.
    pub registry: Option<RegistrySettings>,
    /// Further properties of librdkafka, as it names them.
    pub properties: BTreeMap<String, String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            namespace: String::new(),
            instance: String::new(),
            security: Security::Plaintext,
            ca: None,
            certificate: None,
            key: None,
            key_password: None,
            mechanism: None,
            user: None,
            password: None,
            token_file: None,
            session_timeout_s: 45,
            drain_s: 20,
            transaction_timeout_s: 30,
            request_timeout_s: 10,
            ahead_records_max: 1_024,
            ahead_bytes_max: 32 * 1024 * 1024,
            waiting_max: 500_000,
            registry: None,
            properties: BTreeMap::new(),
        }
    }
}

/// Where a schema registry is (Confluent's HTTP API).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistrySettings {
    /// Its address with the path before `/subjects`, `http://…`.
    pub url: String,
    /// What it is shown as a bearer token.
    pub token: Option<Secret>,
}

/// How connections are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// In the clear, without a login.
    Plaintext,
    /// Over TLS, with a client certificate or without a login.
    Ssl,
    /// Over TLS, with a login.
    SaslSsl,
}

impl Security {
    /// As librdkafka calls it.
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Security::Plaintext => "plaintext",
            Security::Ssl => "ssl",
            Security::SaslSsl => "sasl_ssl",
        }
    }
}

/// How a client shows who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// A password that is never sent.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// A password that is never sent.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
    /// A password that is sent, protected by TLS alone.
    #[serde(rename = "PLAIN")]
    Plain,
    /// A token that somebody else puts into a file.
    #[serde(rename = "OAUTHBEARER")]
    OauthBearer,
}

impl Mechanism {
    /// As Kafka calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::Plain => "PLAIN",
            Mechanism::OauthBearer => "OAUTHBEARER",
        }
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", .0.join("; "))]
pub struct KafkaFaults(pub Vec<String>);

/// Settings in which everything fits together.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "KafkaSettings")]
pub struct KafkaConfig(KafkaSettings);

impl TryFrom<KafkaSettings> for KafkaConfig {
    type Error = KafkaFaults;

    fn try_from(settings: KafkaSettings) -> Result<Self, KafkaFaults> {
        let faults = settings.check();
        if faults.is_empty() { Ok(Self(settings)) } else { Err(KafkaFaults(faults)) }
    }
}

impl KafkaSettings {
    /// What is wrong with the settings: each key with what it may be.
    pub fn check(&self) -> Vec<String> {
        let mut faults = self.name_faults();
        faults.extend(self.access_faults());
        let ranges = [
            outside("session_timeout_s", self.session_timeout_s, 6..=300),
            outside("drain_s", self.drain_s, 1..=self.session_timeout_s.saturating_sub(1).max(1)),
            outside("transaction_timeout_s", self.transaction_timeout_s, 5..=300),
            outside("request_timeout_s", self.request_timeout_s, 1..=self.transaction_timeout_s.max(1)),
            outside("ahead_records_max", self.ahead_records_max, 1..=1_000_000),
            outside("ahead_bytes_max", self.ahead_bytes_max, 1_048_576..=1_073_741_824),
            outside("waiting_max", self.waiting_max, 1..=u64::MAX),
        ];
        faults.extend(ranges.into_iter().flatten());
        if let Some(registry) = &self.registry {
            if !registry.url.starts_with("http://") {
                faults.push("`registry.url` must begin with http:// (this build speaks no TLS there)".to_owned());
            }
            if registry.url.contains('@') {
                faults.push("`registry.url` must hold no login: give `registry.token`".to_owned());
            }
        }
        let secret = |key: &&String| SECRETS.iter().any(|word| key.contains(word));
        let secrets = self.properties.keys().filter(secret);
        faults.extend(
            secrets.map(|key| format!("`properties` must hold no secret such as `{key}`: errors and logs may show them")),
        );
        let own = self.properties.keys().filter(|key| OWN.contains(&key.as_str()));
        faults.extend(
            own.map(|key| format!("`properties` must not set `{key}`: it is set by a key of its own or rests on a promise")),
        );
        if self.properties.contains_key("compression.codec") {
            faults.push("`properties` must not set `compression.codec`: set `compression.type`, its other name".to_owned());
        }
        faults
    }

    fn name_faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.brokers.is_empty() {
            faults.push("`brokers` is empty: name at least one as host:port".to_owned());
        }
        let bad = self.brokers.iter().filter(|broker| !is_address(broker));
        faults.extend(bad.map(|broker| format!("`brokers` holds `{broker}`, host:port is needed")));
        if !self.namespace.chars().all(is_name) {
            faults
                .push(format!("`namespace` may hold letters, digits, `.`, `_` and `-`, `{}` is not such a name", self.namespace));
        }
        if self.namespace.len() > NAMESPACE_MAX_BYTES {
            faults.push(format!("`namespace` is longer than {NAMESPACE_MAX_BYTES} characters: topics' names begin with it"));
        }
        if self.instance.is_empty() {
            faults.push("`instance` is empty: name this process, unlike every other one".to_owned());
        } else if !self.instance.chars().all(is_name) {
            faults.push(format!("`instance` may hold letters, digits, `.`, `_` and `-`, `{}` is not such a name", self.instance));
        }
        faults
    }

    /// What of the login is missing, or given in vain.
    fn access_faults(&self) -> Vec<String> {
        let tls = self.security != Security::Plaintext;
        let sasl = self.security == Security::SaslSsl;
        let oauth = self.mechanism == Some(Mechanism::OauthBearer);
        let word = self.security.protocol();
        let needs = |key: &str, given: bool, needed: bool| {
            (needed && !given).then(|| format!("`{key}` is missing: security {word} needs it here"))
        };
        let vain = |key: &str, given: bool, useful: bool| {
            (given && !useful)
                .then(|| format!("`{key}` has no effect with security {word} as it is set: take it away or change that"))
        };
        [
            needs("mechanism", self.mechanism.is_some(), sasl),
            needs("user", self.user.is_some(), sasl && !oauth),
            needs("password", self.password.is_some(), sasl && !oauth),
            needs("token_file", self.token_file.is_some(), sasl && oauth),
            needs("certificate", self.certificate.is_some(), tls && self.key.is_some()),
            needs("key", self.key.is_some(), tls && self.certificate.is_some()),
            vain("mechanism", self.mechanism.is_some(), sasl),
            vain("user", self.user.is_some(), sasl && !oauth),
            vain("password", self.password.is_some(), sasl && !oauth),
            vain("token_file", self.token_file.is_some(), sasl && oauth),
            vain("ca", self.ca.is_some(), tls),
            vain("certificate", self.certificate.is_some(), tls),
            vain("key", self.key.is_some(), tls),
            vain("key_password", self.key_password.is_some(), tls && self.key.is_some()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

impl KafkaConfig {
    /// The same under another instance's name: for a process that works beside the one of these settings and must not take its place.
    #[must_use]
    pub fn beside(&self, instance: &str) -> Self {
        Self(KafkaSettings { instance: format!("{}.{instance}", self.0.instance), ..self.0.clone() })
    }

    /// The settings.
    pub fn settings(&self) -> &KafkaSettings {
        &self.0
    }

    /// How long partitions that are taken away wait for the batch in work.
    pub(crate) fn drain(&self) -> Duration {
        seconds(self.0.drain_s)
    }

    /// The schema registry, where there is one.
    pub(crate) fn registry(&self) -> Option<Registry> {
        self.0.registry.as_ref().map(|settings| Registry::new(settings, self.request_timeout()))
    }

    /// How long one request may take.
    pub(crate) fn request_timeout(&self) -> Duration {
        seconds(self.0.request_timeout_s)
    }
}

fn seconds(s: u32) -> Duration {
    Duration::from_secs(u64::from(s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<KafkaConfig, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn settings_that_fit_together_are_taken() {
        for text in [
            "brokers = ['a:9092', 'b:9092']\ninstance = 'pod-0'",
            "brokers = ['[::1]:9093']\ninstance = 'x'\nsecurity = 'ssl'\nca = 'ca.pem'\ncertificate = 'c.pem'\nkey = 'k.pem'",
            "brokers = ['a:1']\ninstance = 'x'\nsecurity = 'sasl_ssl'\nmechanism = 'SCRAM-SHA-512'\nuser = 'u'\npassword = 'p'",
            "brokers = ['a:1']\ninstance = 'x'\nsecurity = 'sasl_ssl'\nmechanism = 'OAUTHBEARER'\ntoken_file = 't'",
            "brokers = ['a:1']\ninstance = 'x'\n[properties]\n'client.rack' = 'r1'",
        ] {
            parsed(text).unwrap_or_else(|faults| panic!("{text}: {faults}"));
        }
    }

    #[test]
    fn every_fault_is_told_with_its_key_and_all_of_them_together() {
        let text =
            "brokers = ['nowhere']\nnamespace = 'a b'\nsecurity = 'sasl_ssl'\nkey_password = 'hunter2'\nsession_timeout_s = 5
            drain_s = 60\n[registry]\nurl = 'ftp://x'\n[properties]\n'enable.idempotence' = 'false'
            'compression.codec' = 'lz4'";
        let faults = parsed(text).unwrap_err();
        for part in [
            "`brokers` holds `nowhere`",
            "`namespace` may hold",
            "`instance` is empty",
            "`mechanism` is missing",
            "`user` is missing",
            "`password` is missing",
            "`key_password` has no effect",
            "`session_timeout_s` must be 6 to 300",
            "`drain_s` must be 1 to 4",
            "`registry.url` must begin with http://",
            "`properties` must not set `enable.idempotence`",
            "set `compression.type`",
        ] {
            assert!(faults.contains(part), "{part}: {faults}");
        }
        assert_eq!(faults.split("; ").count(), 12, "{faults}");
        assert!(!faults.contains("hunter2"));
        assert!(parsed("brokers = ['a:1']\ninstance = 'x'\nbroker = 'b'").unwrap_err().contains("unknown field `broker`"));
    }

    #[test]
    fn a_secret_is_never_printed() {
        let settings = KafkaSettings { password: Some(Secret::new("hunter2")), ..KafkaSettings::default() };
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
