//! How the store is reached and what it keeps, in values that cannot be wrong: `text.rs` makes them.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use endcap_runtime::Secret;
use serde::Deserialize;

use crate::text::ScyllaText;

/// The connection, its limits and the lifetimes of what is stored. Made from [`ScyllaText`], by serde or by [`TryFrom`]; what is wrong
/// in it is told all at once.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ScyllaText")]
pub struct ScyllaConfig {
    pub(crate) contact_points: Vec<String>,
    pub(crate) datacenter: Option<String>,
    pub(crate) keyspace: String,
    pub(crate) replication: Replication,
    pub(crate) login: Option<Login>,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) timeouts: Timeouts,
    pub(crate) ttl: Lifetimes,
    pub(crate) in_flight_max: usize,
}

impl ScyllaConfig {
    /// Name of the keyspace.
    pub fn keyspace(&self) -> &str {
        &self.keyspace
    }

    /// Where the first connection is tried: `host:port` each.
    pub fn contact_points(&self) -> &[String] {
        &self.contact_points
    }
}

/// How many copies there are of a row.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Replication {
    /// So many in every data centre.
    Everywhere(u32),
    /// So many per named data centre.
    PerDatacenter(BTreeMap<String, u32>),
}

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: Secret,
}

/// Files of the TLS connection, PEM each.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Authorities that a server's certificate may come from.
    pub ca: PathBuf,
    /// The client's own certificate, where the server wants one.
    pub certificate: Option<PathBuf>,
    /// The key of that certificate.
    pub key: Option<PathBuf>,
}

/// How long each kind of request may take, all attempts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeouts {
    /// Making a connection.
    pub(crate) connect: Duration,
    /// Reading a page, results or a cached answer.
    pub(crate) read: Duration,
    /// A read that has no answer after so long is asked of another replica as well.
    pub(crate) speculate: Duration,
    /// Reading what decides: states and erasures.
    pub(crate) decide: Duration,
    /// Writing.
    pub(crate) write: Duration,
    /// One page of a scan over many users.
    pub(crate) scan: Duration,
    /// Waiting for another process that migrates, and for the servers to agree on a schema.
    pub(crate) migrate: Duration,
}

/// How long rows are kept; `None` is without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lifetimes {
    pub(crate) pages: Option<Duration>,
    pub(crate) states: Option<Duration>,
    pub(crate) results: Option<Duration>,
    pub(crate) cache: Option<Duration>,
}
