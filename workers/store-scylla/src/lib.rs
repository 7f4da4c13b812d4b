//! The store on ScyllaDB, or on any other server that speaks CQL, such as Apache Cassandra. The only crate that knows the driver.
//!
//! [`migrate()`] makes a keyspace and brings its tables to this release's schema (`schemas/cql`), [`plan()`] says beforehand what it
//! would do, [`ScyllaStore`] is the [`Store`](endcap_runtime::Store) of the running stages and the
//! [`StoreOverview`](endcap_runtime::StoreOverview) that lists, reports and proofs ask.
//!
//! **Order.** A stamp is the write timestamp, so that the newest stamp wins in any order of arrival. Writes of one stamp meet in a map of
//! the row, of which the reader takes the greatest (`versions.rs` says why a plain overwrite would not do). A read is one partition read.
//!
//! **Erasure.** A row in `erasures`, then a tombstone per table with the erasure's timestamp. The tombstone stops writes that are under
//! way; when the server has forgotten it, the row stops those that come later: every write is checked against it.
//!
//! **Generations.** The numbers of the pipeline's manifests are the one thing that processes must agree on. They are added by lightweight
//! transactions, a few in a deployment's life; nothing that happens for an event uses any.
//!
//! **TLS.** The driver has a node's certificate checked against the *address* that it connects to, also where a contact point is a
//! name, as the other nodes are known by their addresses alone. A node's certificate must therefore name its address.
//!
//! **Waiting.** The driver runs on a small runtime of its own. Every request has a limit of time; one that passes it is
//! [`StoreError::Unavailable`](endcap_runtime::StoreError), which the loop retries.

mod blocking;
mod conditional;
mod config;
mod connect;
mod copies;
mod migrate;
mod overview;
mod policies;
mod rows;
mod schema;
mod statements;
mod store;
mod text;
mod versions;

pub use config::{Replication, ScyllaConfig, TlsFiles};
pub use connect::OpenError;
pub use migrate::{Plan, migrate, plan};
pub use overview::{COUNTED_MAX, SEARCHED_MAX};
pub use store::ScyllaStore;
pub use text::{ConfigFaults, LifetimesText, ScyllaText, TimeoutsText};
