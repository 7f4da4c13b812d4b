//! The Kafka side of the log: the only crate that knows rdkafka.
//!
//! - [`Kafka`] is the log as a whole, the [`Broker`](endcap_runtime::Broker) that the binary works with.
//! - [`KafkaLog`] is one stage's connection, the [`Log`](endcap_runtime::Log) that the loop works with: a consumer that never stops polling,
//!   and one transaction per commit.
//! - [`Topics`] declares the topics of the path.
//! - [`KafkaConfig`] says where the brokers are and how they are talked to.
//!
//! Guarantees: outputs, dead letters, tallies and positions are committed together; readers see committed records alone; records of one
//! key stand in one partition, chosen as Java producers choose it.

mod asker;
mod broker;
mod client;
mod config;
mod dead_letters;
mod hand;
mod headers;
mod inspect;
mod lock;
mod log;
mod names;
mod notes;
mod plan;
mod poller;
mod producer;
mod reader;
mod record;
mod registry;
mod tender;
mod tokens;
mod topics;
mod writer;

pub use broker::Kafka;
pub use config::{KafkaConfig, KafkaFaults, KafkaSettings, Mechanism, RegistrySettings, Security};
pub use log::KafkaLog;
pub use plan::{Plan, Step, TopicSettings};
pub use topics::Topics;
