//! Bringing a keyspace to this release's schema: said first by [`plan`], done by [`migrate`], by one process at a time.

use std::{fmt, time::Duration};

use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
    response::query_result::{QueryResult, QueryRowsResult},
    serialize::row::SerializeRow,
    value::CqlTimestamp,
};
use tokio::time::Instant;

use crate::{
    blocking::Blocking,
    conditional::{decided, standing},
    config::ScyllaConfig,
    connect::{OpenError, connect},
    copies,
    schema::{KNOWN, MIGRATIONS, Migration, RUNNER, ServerKind, create_keyspace},
};
use endcap_runtime::{Clock, unique_name};

/// Whose rows of a shared table these are: another application may keep its own beside them.
pub(crate) const SCOPE: &str = "endcap";
/// A lock whose process has died ends after so long, s. It is renewed before every step.
const LOCK_TTL_S: i32 = 120;
/// Between two looks at a lock that another process holds.
const LOCK_LOOK: Duration = Duration::from_millis(200);
/// How long a table may be listed and not be readable.
const LISTED_WAIT: Duration = Duration::from_secs(10);
/// Between two tries to read it.
const LISTED_LOOK: Duration = Duration::from_millis(50);

/// What a migration does, or would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The keyspace.
    pub keyspace: String,
    /// Its schema version; `None` where it is not there, 0 where it has no tables.
    pub found: Option<i32>,
    /// The version that this release leads to.
    pub known: i32,
    /// The statements, in order. Empty where nothing is to be done.
    pub statements: Vec<String>,
    /// What the keyspace keeps copies of otherwise than it should, and what a person may do: a migration changes none of that.
    pub copies: Option<String>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { keyspace, known, .. } = self;
        match self.found {
            Some(found) if found == *known => write!(f, "keyspace `{keyspace}` has schema version {known}, nothing to do")?,
            Some(found) => write!(f, "keyspace `{keyspace}`: schema version {found} → {known}")?,
            None => write!(f, "keyspace `{keyspace}`: none → schema version {known}")?,
        }
        self.statements.iter().try_for_each(|statement| write!(f, "\n\n{statement};"))?;
        if let Some(copies) = &self.copies {
            write!(f, "\n{copies}")?;
        }
        Ok(())
    }
}

/// What [`migrate`] would do. Changes nothing.
///
/// # Errors
/// [`OpenError`] with the remedy; [`OpenError::Newer`] where a newer release was there.
pub fn plan(config: &ScyllaConfig) -> Result<Plan, OpenError> {
    let config = config.clone();
    Blocking::start()?.run(async move {
        let session = connect(&config).await?;
        plan_on(&session, &config).await
    })
}

/// Makes the keyspace where it is not there, and applies every migration that it lacks. Answers what was done. May be run by several
/// processes at once, and again after it was cut short.
///
/// # Errors
/// [`OpenError`] with the remedy; [`OpenError::Newer`] where a newer release was there.
pub fn migrate(config: &ScyllaConfig, clock: &dyn Clock) -> Result<Plan, OpenError> {
    let (config, now) = (config.clone(), CqlTimestamp(clock.now_ms()));
    Blocking::start()?.run(async move {
        let session = connect(&config).await?;
        let plan = plan_on(&session, &config).await?;
        if !plan.statements.is_empty() {
            apply(&session, &config, now).await?;
        }
        Ok(plan)
    })
}

/// The schema version of a keyspace: `None` where it is not there, 0 where no migration was applied.
pub(crate) async fn version_of(session: &Session, keyspace: &str) -> Result<Option<i32>, OpenError> {
    let what = format!("read the schema version of keyspace `{keyspace}`");
    let keyspaces = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    if rows(session, &what, keyspaces, (keyspace,)).await?.rows_num() == 0 {
        return Ok(None);
    }
    let tables = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'schema_versions'";
    if rows(session, &what, tables, (keyspace,)).await?.rows_num() == 0 {
        return Ok(Some(0));
    }
    let newest = format!("SELECT max(version) FROM {keyspace}.schema_versions WHERE scope = ?");
    let rows = listed(session, &what, &newest, (SCOPE,)).await?;
    let (version,) = rows.single_row::<(Option<i32>,)>().map_err(|error| OpenError::failed(&*what)(&error))?;
    Ok(Some(version.unwrap_or(0)))
}

async fn plan_on(session: &Session, config: &ScyllaConfig) -> Result<Plan, OpenError> {
    let keyspace = config.keyspace.clone();
    let found = version_of(session, &keyspace).await?;
    let kind = kind_of(session).await?;
    let mut statements = Vec::new();
    if found.is_none() {
        statements.push(create_keyspace(&keyspace, &config.replication, &kind));
    }
    if found.unwrap_or(0) == 0 {
        statements.extend(RUNNER.statements(&kind));
    }
    statements.extend(missing(&keyspace, found.unwrap_or(0))?.flat_map(|migration| migration.statements(&kind)));
    let copies = copies::difference(&session.get_cluster_state(), config);
    Ok(Plan { keyspace, found, known: KNOWN, statements, copies })
}

/// Migrations beyond version `found`.
fn missing(keyspace: &str, found: i32) -> Result<impl Iterator<Item = Migration>, OpenError> {
    if found > KNOWN {
        return Err(OpenError::Newer { keyspace: keyspace.to_owned(), found, known: KNOWN });
    }
    Ok(MIGRATIONS.into_iter().filter(move |migration| migration.version > found))
}

/// Does what the plan says. What another process did meanwhile is not done again. ScyllaDB puts schema changes in order itself, by Raft,
/// and takes no lightweight transactions in keyspaces of tablets before 2025.4; elsewhere a lock keeps two processes apart.
async fn apply(session: &Session, config: &ScyllaConfig, now: CqlTimestamp) -> Result<(), OpenError> {
    let keyspace = &config.keyspace;
    let kind = kind_of(session).await?;
    change(session, "make the keyspace", &create_keyspace(keyspace, &config.replication, &kind)).await?;
    let using = format!("use keyspace `{keyspace}`");
    session.use_keyspace(keyspace, false).await.map_err(|error| OpenError::failed(using)(&error))?;
    for statement in RUNNER.statements(&kind) {
        change(session, RUNNER.name, &statement).await?;
    }
    let lock = match kind {
        ServerKind::Scylla(_) => None,
        ServerKind::Other => Some(Lock::take(session, config).await?),
    };
    let found = version_of(session, keyspace).await?.unwrap_or(0);
    for migration in missing(keyspace, found)? {
        if let Some(lock) = &lock {
            lock.renew().await?;
        }
        for statement in migration.statements(&kind) {
            change(session, migration.name, &statement).await?;
        }
        let noted = "INSERT INTO schema_versions (scope, version, name, applied) VALUES (?, ?, ?, ?)";
        execute(session, "note a migration", noted, (SCOPE, migration.version, migration.name, now)).await?;
        tracing::info!(keyspace, version = migration.version, "migrated");
    }
    match lock {
        Some(lock) => lock.release().await,
        None => Ok(()),
    }
}

/// A statement of the schema, after which all servers agree on it.
async fn change(session: &Session, what: &str, statement: &str) -> Result<(), OpenError> {
    execute(session, what, statement, ()).await?;
    let agree = format!("see the servers agree on the schema after {what}");
    session.await_schema_agreement().await.map(|_| ()).map_err(|error| OpenError::failed(agree)(&error))
}

async fn execute(session: &Session, what: &str, statement: &str, values: impl SerializeRow) -> Result<(), OpenError> {
    session.query_unpaged(statement, values).await.map(|_| ()).map_err(|error| OpenError::failed(what)(&error))
}

async fn rows(session: &Session, what: &str, query: &str, values: impl SerializeRow) -> Result<QueryRowsResult, OpenError> {
    of_rows(what, session.query_unpaged(query, values).await)
}

fn of_rows(what: &str, answer: Result<QueryResult, ExecutionError>) -> Result<QueryRowsResult, OpenError> {
    let answer = answer.map_err(|error| OpenError::failed(what)(&error))?;
    answer.into_rows_result().map_err(|error| OpenError::failed(what)(&error))
}

/// Rows of a table that `system_schema` lists. Cassandra 5 lists a table before it can read it, for as long as a flush takes, and calls the
/// question invalid or fails at it in between: such an answer counts once it has stood for [`LISTED_WAIT`].
async fn listed(session: &Session, what: &str, query: &str, values: impl SerializeRow) -> Result<QueryRowsResult, OpenError> {
    let until = Instant::now() + LISTED_WAIT;
    loop {
        match session.query_unpaged(query, &values).await {
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid | DbError::ServerError, _)))
                if Instant::now() < until =>
            {
                tokio::time::sleep(LISTED_LOOK).await;
            }
            answer => return of_rows(what, answer),
        }
    }
}

/// ScyllaDB tells its version in a table that no other server has.
async fn kind_of(session: &Session) -> Result<ServerKind, OpenError> {
    let what = "ask the server for its kind";
    let tables = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system' AND table_name = 'versions'";
    if rows(session, what, tables, ()).await?.rows_num() == 0 {
        return Ok(ServerKind::Other);
    }
    let versions = rows(session, what, "SELECT version FROM system.versions WHERE key = 'local'", ()).await?;
    let row = versions.maybe_first_row::<(String,)>().map_err(|error| OpenError::failed(what)(&error))?;
    Ok(row.map_or(ServerKind::Other, |(version,)| ServerKind::Scylla(version)))
}

/// The right to migrate, held by one process at a time: Cassandra can end in two tables of one name when two processes make it at once.
/// Schema changes are rare, so lightweight transactions may guard them.
struct Lock<'a> {
    session: &'a Session,
    keyspace: &'a str,
    owner: String,
}

impl<'a> Lock<'a> {
    /// Waits until no other process migrates.
    async fn take(session: &'a Session, config: &'a ScyllaConfig) -> Result<Self, OpenError> {
        let lock = Self { session, keyspace: &config.keyspace, owner: unique_name() };
        let waited = config.timeouts.migrate;
        let until = Instant::now() + waited;
        loop {
            let insert = "INSERT INTO schema_lock (scope, owner) VALUES (?, ?) IF NOT EXISTS USING TTL ?";
            let holder = match lock.ask(insert, (SCOPE, &lock.owner, LOCK_TTL_S)).await {
                Ok(Some(holder)) => holder,
                Ok(None) => return Ok(lock),
                Err(error) => {
                    let _ = lock.release().await; // a try that was given up may have taken it; what is wrong is told already
                    return Err(error);
                }
            };
            if Instant::now() >= until {
                return Err(OpenError::Busy { keyspace: config.keyspace.clone(), owner: holder, waited });
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
    }

    /// Holds it for as long again.
    async fn renew(&self) -> Result<(), OpenError> {
        let update = "UPDATE schema_lock USING TTL ? SET owner = ? WHERE scope = ? IF owner = ?";
        match self.ask(update, (LOCK_TTL_S, &self.owner, SCOPE, &self.owner)).await? {
            None => Ok(()),
            Some(owner) => Err(OpenError::Failed {
                what: format!("keep the right to migrate keyspace `{}`", self.keyspace),
                cause: format!("process `{owner}` holds it now; run this again"),
            }),
        }
    }

    async fn release(self) -> Result<(), OpenError> {
        // Where it is lost already there is nothing to give back.
        self.ask("DELETE FROM schema_lock WHERE scope = ? IF owner = ?", (SCOPE, &self.owner)).await.map(|_| ())
    }

    /// A conditional statement: `None` when it was applied, else who else holds the lock.
    async fn ask(&self, statement: &str, values: impl SerializeRow) -> Result<Option<String>, OpenError> {
        let what = format!("lock keyspace `{}` for migrating", self.keyspace);
        let rows = of_rows(&what, decided(self.session, statement, values).await)?;
        let holder = standing(&rows, "owner").map_err(|error| OpenError::failed(&*what)(&error))?;
        Ok(holder.filter(|holder| *holder != self.owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_tells_what_would_be_done() {
        let plan = |found, statements: &[&str]| Plan {
            keyspace: "shop".to_owned(),
            found,
            known: 2,
            statements: statements.iter().map(|statement| (*statement).to_owned()).collect(),
            copies: None,
        };
        assert_eq!(plan(Some(2), &[]).to_string(), "keyspace `shop` has schema version 2, nothing to do");
        assert_eq!(plan(Some(1), &["ALTER x"]).to_string(), "keyspace `shop`: schema version 1 → 2\n\nALTER x;");
        assert_eq!(
            plan(None, &["CREATE x", "CREATE y"]).to_string(),
            "keyspace `shop`: none → schema version 2\n\nCREATE x;\n\nCREATE y;"
        );
        let copies = Some("it keeps too few".to_owned());
        let told = Plan { copies, ..plan(Some(2), &[]) }.to_string();
        assert_eq!(told, "keyspace `shop` has schema version 2, nothing to do\nit keeps too few");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        assert_eq!(missing("shop", 0).unwrap().count(), MIGRATIONS.len());
        assert_eq!(missing("shop", KNOWN).unwrap().count(), 0);
        let error = missing("shop", KNOWN + 1).err().unwrap().to_string();
        assert!(error.contains("use the newer release, or another keyspace"), "{error}");
    }
}
