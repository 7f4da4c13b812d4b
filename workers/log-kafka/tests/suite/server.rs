//! The broker that the environment names, and logs of their own on it.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use endcap_log_kafka::{Kafka, KafkaConfig, KafkaSettings, TopicSettings, Topics};
use endcap_runtime::{Embedded, EmbeddedConfig, SystemClock};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

pub(crate) use endcap_runtime::real_servers::named as address;

/// A log of its own on the broker, and a store that knows who was erased.
pub(crate) struct Server {
    pub(crate) settings: KafkaSettings,
    pub(crate) kafka: Kafka,
    pub(crate) store: Embedded,
    /// The broker's address without a login.
    plain: String,
    _dir: tempfile::TempDir,
}

/// Small topics, as many partitions as named.
pub(crate) fn small(partitions: u16) -> TopicSettings {
    TopicSettings { partitions, replication: 1, min_in_sync: 1, ..TopicSettings::default() }
}

/// Something that no other test has.
pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!("t{nanos:x}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::SeqCst))
}

/// Settings for a namespace of its own. Sessions are as short as brokers allow, requests may take long: a busy machine is no fault.
pub(crate) fn settings(broker: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: vec![broker.to_owned()],
        namespace: unique(),
        instance: "first".to_owned(),
        session_timeout_s: 6,
        drain_s: 3,
        request_timeout_s: 30,
        ..KafkaSettings::default()
    }
}

pub(crate) fn checked(settings: KafkaSettings) -> KafkaConfig {
    settings.try_into().expect("settings without faults")
}

impl Server {
    /// A fresh log with its topics; `None` where there is no broker.
    pub(crate) fn fresh(partitions: u16) -> Option<Self> {
        Some(Self::with(settings(&address("ENDCAP_TEST_KAFKA")?), partitions))
    }

    /// A fresh log of these settings.
    pub(crate) fn with(settings: KafkaSettings, partitions: u16) -> Self {
        // A busy machine makes two dozen topics slowly, and that is no fault here.
        let config = checked(KafkaSettings { request_timeout_s: settings.transaction_timeout_s, ..settings.clone() });
        Topics::connect(&config, &small(partitions)).expect("a connection").apply().expect("topics are made");
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(SystemClock::default());
        let store = Embedded::open(dir.path().join("store.db"), EmbeddedConfig::default(), clock).expect("a store");
        let kafka = connect(&settings, &store);
        let plain = address("ENDCAP_TEST_KAFKA").unwrap_or_default();
        Self { settings, kafka, store, plain, _dir: dir }
    }

    /// The same log, as another process has it.
    pub(crate) fn elsewhere(&self, instance: &str) -> Kafka {
        connect(&KafkaSettings { instance: instance.to_owned(), ..self.settings.clone() }, &self.store)
    }
}

impl Drop for Server {
    /// Takes its topics away: a broker with thousands of them starts slowly.
    fn drop(&mut self) {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.plain);
        let Ok(admin) = client.create::<AdminClient<DefaultClientContext>>() else { return };
        let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(5)) else { return };
        let names = metadata.topics().iter().map(|topic| topic.name()).filter(|name| name.starts_with(&self.settings.namespace));
        let names: Vec<&str> = names.collect();
        let _ = pollster::block_on(admin.delete_topics(&names, &AdminOptions::new()));
    }
}

pub(crate) fn connect(settings: &KafkaSettings, store: &Embedded) -> Kafka {
    let clock = Arc::new(SystemClock::default());
    Kafka::connect(checked(settings.clone()), clock, Arc::new(store.clone())).expect("a connection")
}
