//! The two sides that a process works on: the log and the store.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use endcap_log_kafka::{Kafka, KafkaConfig};
use endcap_runtime::{
    Broker, Clock, Embedded, EmbeddedConfig, GroupState, Received, StoreOverview, SystemClock, Tally, embedded::Retention,
    unique_name,
};
use endcap_schemas::topics::Topic;
use endcap_store_scylla::ScyllaStore;

use crate::{config::Config, data};

/// How often figures are read of a file, and of servers.
const READ_FILE_EVERY: Duration = Duration::from_millis(500);
const READ_SERVERS_EVERY: Duration = Duration::from_secs(5);
const CANNOT_READ: &str = "cannot read the log";

/// Log and store. Clones share them.
#[derive(Clone)]
pub struct Sides {
    /// The log as a whole.
    pub log: Arc<dyn Broker>,
    /// The store as a whole.
    pub store: Arc<dyn StoreOverview>,
    /// How often figures are read of both, at most.
    pub read_every: Duration,
}

impl Sides {
    /// Both in one file.
    pub fn embedded(file: Embedded) -> Self {
        Self { log: Arc::new(file.clone()), store: Arc::new(file), read_every: READ_FILE_EVERY }
    }

    /// What `config` names. The file in the data directory is made where it is missing; topics and tables are not.
    ///
    /// # Errors
    /// When it cannot be opened, with the remedy.
    pub fn open(config: &Config, clock: &Arc<dyn Clock>) -> Result<Self> {
        let retention = Retention { records_age: config.retention, results_age: config.retention, ..Retention::default() };
        let limits = EmbeddedConfig { retention, ..EmbeddedConfig::default() };
        Self::over(config, config.kafka.clone(), clock, || {
            Ok(Embedded::open(data::file_in(&config.data), limits, clock.clone())?)
        })
    }

    /// What `config` names, where it is there already: for commands that look.
    ///
    /// # Errors
    /// When there is none, or it cannot be opened.
    pub fn open_existing(config: &Config) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        // Under a name of its own: under that of a running process or another command, in whichever container, it would take its place.
        let kafka = config.kafka.as_ref().map(|kafka| kafka.beside(&format!("command-{}", unique_name())));
        Self::over(config, kafka, &clock, || {
            data::must_exist(&config.data)?;
            let path = data::file_in(&config.data);
            if !path.is_file() {
                bail!("{} holds no log: `endcap up` makes one, --data names another directory", config.data.display());
            }
            Ok(Embedded::open(&path, EmbeddedConfig::default(), clock.clone())?)
        })
    }

    /// `file` is opened where log or store are in it.
    fn over(
        config: &Config,
        kafka: Option<KafkaConfig>,
        clock: &Arc<dyn Clock>,
        file: impl FnOnce() -> Result<Embedded>,
    ) -> Result<Self> {
        let file = if config.kafka.is_some() && config.scylla.is_some() { None } else { Some(file()?) };
        let in_file = || file.clone().expect("the file is opened where it is needed");
        let store: Arc<dyn StoreOverview> = match &config.scylla {
            Some(scylla) => Arc::new(ScyllaStore::open(scylla, clock.clone())?),
            None => Arc::new(in_file()),
        };
        let log: Arc<dyn Broker> = match kafka {
            Some(kafka) => Arc::new(Kafka::connect(kafka, clock.clone(), store.clone())?),
            None => Arc::new(in_file()),
        };
        // A log on servers has its store there too.
        let read_every = if config.scylla.is_some() { READ_SERVERS_EVERY } else { READ_FILE_EVERY };
        Ok(Self { log, store, read_every })
    }

    /// What every stage did, by name.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn tallies(&self) -> Result<BTreeMap<String, Tally>> {
        self.log.tallies().context("cannot read the tallies")
    }

    /// How every group stands.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn groups(&self) -> Result<Vec<GroupState>> {
        self.log.groups().context("cannot read the positions")
    }

    /// Hands every record that `topic` still holds to `see`, partition by partition, `at_once` at most read at once.
    ///
    /// # Errors
    /// When the log does not answer, or of `see`.
    pub fn each_record(&self, topic: Topic, at_once: usize, see: &mut dyn FnMut(&Received) -> Result<()>) -> Result<()> {
        for partition in self.log.ends(topic).context(CANNOT_READ)?.into_keys() {
            let mut next = 0;
            loop {
                let records = self.log.records(topic, partition, next, at_once).context(CANNOT_READ)?;
                let Some(last) = records.last() else { break };
                next = last.offset + 1;
                records.iter().try_for_each(&mut *see)?;
            }
        }
        Ok(())
    }

    /// When the first record of `topic` behind `ends` was appended, ms; `None` where none is there.
    ///
    /// # Errors
    /// When the log does not answer.
    pub fn first_after(&self, topic: Topic, ends: &BTreeMap<i32, i64>) -> Result<Option<i64>> {
        let mut first = None;
        for partition in self.log.ends(topic).context(CANNOT_READ)?.into_keys() {
            let from = ends.get(&partition).copied().unwrap_or(0);
            let records = self.log.records(topic, partition, from, 1).context(CANNOT_READ)?;
            first = records.iter().map(|record| record.appended_ms).chain(first).min();
        }
        Ok(first)
    }
}
