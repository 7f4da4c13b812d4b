//! Every statement of the store, prepared once, each with the execution profile that its use asks for.

use std::{sync::Arc, time::Duration};

use scylla::{
    client::{
        execution_profile::{ExecutionProfile, ExecutionProfileHandle},
        session::Session,
    },
    policies::speculative_execution::SimpleSpeculativeExecutionPolicy,
    statement::{Consistency, SerialConsistency, Statement, prepared::PreparedStatement},
};

use crate::{
    config::ScyllaConfig,
    connect::{OpenError, balancing},
    schema::USER_TABLES,
};

/// Further replicas that a slow read is asked of.
const SPECULATIONS_MAX: usize = 2;

/// The statements. Each binds every column of its partition key, so that it goes straight to a replica, and may be repeated.
pub(crate) struct Statements {
    pub(crate) put_page: PreparedStatement,
    pub(crate) put_state: PreparedStatement,
    pub(crate) put_result: PreparedStatement,
    pub(crate) put_erasure: PreparedStatement,
    pub(crate) put_cached: PreparedStatement,
    pub(crate) put_note: PreparedStatement,
    /// One per table of [`USER_TABLES`].
    pub(crate) erase: Vec<PreparedStatement>,
    pub(crate) page: PreparedStatement,
    pub(crate) state: PreparedStatement,
    pub(crate) results: PreparedStatement,
    pub(crate) erasure: PreparedStatement,
    pub(crate) cached: PreparedStatement,
    pub(crate) note: PreparedStatement,
    /// Not prepared: a ScyllaDB whose keyspace takes no lightweight transactions refuses that already, and with it whoever only looks.
    pub(crate) add_generation: Statement,
    pub(crate) generation: PreparedStatement,
    /// The highest first.
    pub(crate) generations: PreparedStatement,
    pub(crate) put_policy: PreparedStatement,
    pub(crate) forget_policy: PreparedStatement,
    pub(crate) policy: PreparedStatement,
    /// The newest first.
    pub(crate) policy_versions: PreparedStatement,
    pub(crate) prune_page: PreparedStatement,
    pub(crate) prune_state: PreparedStatement,
    pub(crate) prune_result: PreparedStatement,
    pub(crate) scan: Scans,
}

/// Statements that look over many users, or over all that is left of one.
pub(crate) struct Scans {
    /// Pages from the first user on.
    pub(crate) first_pages: PreparedStatement,
    /// Pages behind a user.
    pub(crate) next_pages: PreparedStatement,
    /// Users and sizes of all pages.
    pub(crate) page_keys: PreparedStatement,
    /// Tokens and sizes of all pages.
    pub(crate) page_tokens: PreparedStatement,
    /// Tokens of all states.
    pub(crate) state_tokens: PreparedStatement,
    /// What is left of a user, per table of [`USER_TABLES`], on every replica.
    pub(crate) left: Vec<PreparedStatement>,
}

/// Limits and guarantees by use.
struct Profiles {
    /// A page or an explanation may be a moment old: the nearest replica answers, or the next one when it is slow.
    read: ExecutionProfileHandle,
    /// States and erasures decide what is folded and what is dropped. A quorum of reads meets a quorum of writes: a state that was
    /// stored is seen by whoever takes the partition over, and an erasure by every later write.
    decide: ExecutionProfileHandle,
    write: ExecutionProfileHandle,
    scan: ExecutionProfileHandle,
    /// Every replica answers, or none is believed: a proof that nothing is left.
    prove: ExecutionProfileHandle,
}

impl Profiles {
    fn of(config: &ScyllaConfig) -> Self {
        let times = config.timeouts;
        let profile = |consistency, timeout: Duration| {
            ExecutionProfile::builder()
                .consistency(consistency)
                .request_timeout(Some(timeout))
                .load_balancing_policy(balancing(config))
        };
        let speculation = SimpleSpeculativeExecutionPolicy { max_retry_count: SPECULATIONS_MAX, retry_interval: times.speculate };
        let read = profile(Consistency::LocalOne, times.read).speculative_execution_policy(Some(Arc::new(speculation)));
        Self {
            read: read.build().into_handle(),
            decide: profile(Consistency::LocalQuorum, times.decide).build().into_handle(),
            write: profile(Consistency::LocalQuorum, times.write).build().into_handle(),
            scan: profile(Consistency::LocalOne, times.scan).build().into_handle(),
            prove: profile(Consistency::All, times.scan).build().into_handle(),
        }
    }
}

impl Statements {
    /// Prepares every statement.
    pub(crate) async fn prepare(session: &Session, config: &ScyllaConfig) -> Result<Self, OpenError> {
        let (maker, profiles) = (Maker { session, config }, Profiles::of(config));
        let (read, decide, write) = (&profiles.read, &profiles.decide, &profiles.write);
        let user = "tenant = ? AND user_id = ?";
        let put = |table: &str, row: &str, more: &str| {
            format!("UPDATE {table} USING TIMESTAMP ? AND TTL ? SET stamp = ?, {more}versions = ? WHERE {user}{row}")
        };
        let prune =
            |table: &str, row: &str| format!("UPDATE {table} USING TIMESTAMP ? SET versions = versions - ? WHERE {user}{row}");
        let (surface, stage) = (" AND surface = ?", " AND stage = ?");
        Ok(Self {
            put_page: maker.make(write, &put("pages", surface, "written = ?, bytes = ?, titles = ?, ")).await?,
            put_state: maker.make(write, &put("states", "", "")).await?,
            put_result: maker.make(write, &put("results", stage, "")).await?,
            put_erasure: maker
                .make(write, "INSERT INTO erasures (tenant, user_id, stamp, place) VALUES (?, ?, ?, ?) USING TIMESTAMP ?")
                .await?,
            put_cached: maker.make(write, "INSERT INTO cache (cache, key, value) VALUES (?, ?, ?) USING TTL ?").await?,
            put_note: maker.make(write, "INSERT INTO notes (name, value) VALUES (?, ?)").await?,
            erase: maker.per_table(write, |table| format!("DELETE FROM {table} USING TIMESTAMP ? WHERE {user}")).await?,
            page: maker.make(read, &format!("SELECT stamp, written, versions FROM pages WHERE {user}{surface}")).await?,
            state: maker.make(decide, &format!("SELECT stamp, versions FROM states WHERE {user}")).await?,
            results: maker.make(read, &format!("SELECT stage, stamp, versions FROM results WHERE {user}")).await?,
            erasure: maker.make(decide, &format!("SELECT stamp, place FROM erasures WHERE {user}")).await?,
            cached: maker.make(read, "SELECT value FROM cache WHERE cache = ? AND key = ?").await?,
            note: maker.make(decide, "SELECT value FROM notes WHERE name = ?").await?,
            add_generation: conditional(
                write,
                "INSERT INTO generations (scope, generation, manifest) VALUES (?, ?, ?) IF NOT EXISTS",
            ),
            generation: maker
                .make(decide, "SELECT generation, manifest FROM generations WHERE scope = ? AND generation = ?")
                .await?,
            generations: maker.make(decide, "SELECT generation, manifest FROM generations WHERE scope = ? LIMIT ?").await?,
            put_policy: maker
                .make(write, "INSERT INTO policies (scope, version, snapshot, ledger) VALUES (?, ?, ?, ?) USING TIMESTAMP ?")
                .await?,
            forget_policy: maker.make(write, "DELETE FROM policies USING TIMESTAMP ? WHERE scope = ? AND version = ?").await?,
            policy: maker.make(decide, "SELECT snapshot, ledger FROM policies WHERE scope = ? AND version = ?").await?,
            policy_versions: maker.make(decide, "SELECT version FROM policies WHERE scope = ?").await?,
            prune_page: maker.make(write, &prune("pages", surface)).await?,
            prune_state: maker.make(write, &prune("states", "")).await?,
            prune_result: maker.make(write, &prune("results", stage)).await?,
            scan: Scans::prepare(&maker, &profiles).await?,
        })
    }
}

impl Scans {
    async fn prepare(maker: &Maker<'_>, profiles: &Profiles) -> Result<Self, OpenError> {
        let scan = &profiles.scan;
        let pages = "SELECT tenant, user_id, surface, stamp, written, versions FROM pages";
        Ok(Self {
            first_pages: maker.make(scan, pages).await?,
            next_pages: maker.make(scan, &format!("{pages} WHERE token(tenant, user_id) > token(?, ?)")).await?,
            page_keys: maker.make(scan, "SELECT tenant, user_id, surface, bytes FROM pages").await?,
            page_tokens: maker.make(scan, "SELECT token(tenant, user_id), surface, bytes FROM pages").await?,
            state_tokens: maker.make(scan, "SELECT token(tenant, user_id) FROM states").await?,
            left: maker
                .per_table(&profiles.prove, |table| format!("SELECT stamp FROM {table} WHERE tenant = ? AND user_id = ?"))
                .await?,
        })
    }
}

/// A statement that all data centres agree on.
fn conditional(profile: &ExecutionProfileHandle, text: &str) -> Statement {
    let mut statement = Statement::new(text);
    statement.set_is_idempotent(true);
    statement.set_serial_consistency(Some(SerialConsistency::Serial));
    statement.set_execution_profile_handle(Some(profile.clone()));
    statement
}

struct Maker<'a> {
    session: &'a Session,
    config: &'a ScyllaConfig,
}

impl Maker<'_> {
    /// Prepares `text`, whose tables stand without their keyspace.
    async fn make(&self, profile: &ExecutionProfileHandle, text: &str) -> Result<PreparedStatement, OpenError> {
        let failed = |cause: String| OpenError::Failed { what: format!("prepare `{text}`"), cause };
        let limit = self.config.timeouts.scan;
        let mut prepared = match tokio::time::timeout(limit, self.session.prepare(text)).await {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(error)) => return Err(failed(error.to_string())),
            Err(_) => return Err(failed(format!("no answer within {limit:?}"))),
        };
        prepared.set_is_idempotent(true);
        prepared.set_execution_profile_handle(Some(profile.clone()));
        Ok(prepared)
    }

    async fn per_table(
        &self,
        profile: &ExecutionProfileHandle,
        text: impl Fn(&str) -> String,
    ) -> Result<Vec<PreparedStatement>, OpenError> {
        let mut all = Vec::with_capacity(USER_TABLES.len());
        for table in USER_TABLES {
            all.push(self.make(profile, &text(table)).await?);
        }
        Ok(all)
    }
}
