//! The real side of [`Store`]: one partition per user and table, each read one partition read.

use std::{cmp::Ordering, collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use endcap_runtime::{Clock, Erasure, StageResult, Stamp, Store, StoreError, StoredPage, Write, check_sizes};
use endcap_schemas::UserKey;
use futures::stream::{self, StreamExt, TryStreamExt};
use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, MaybeFirstRowError, RequestAttemptError},
    response::query_result::QueryRowsResult,
    serialize::row::SerializeRow,
    statement::prepared::PreparedStatement,
    value::CqlTimestamp,
};

use crate::{
    blocking::Blocking,
    config::{Lifetimes, ScyllaConfig},
    connect::{OpenError, connect, told},
    migrate::version_of,
    rows::{Place, Rows, Value, place_bytes, place_of, titles},
    schema::KNOWN,
    statements::Statements,
    versions::{VersionKey, Versions, key, newest, surplus},
};

/// The one place where pages are shown today.
pub(crate) const SURFACE: &str = "home";
/// Stages in path order, for [`Store::results`]; others come after them, by time.
const PATH: [&str; 5] = ["context", "themes", "keywords", "dedup", "aiqa"];

/// The store. Its methods block the thread that calls them and no other; they may be called from several threads at once.
pub struct ScyllaStore {
    shared: Arc<Shared>,
    blocking: Blocking,
}

/// What requests work with.
pub(crate) struct Shared {
    pub(crate) session: Session,
    pub(crate) statements: Statements,
    pub(crate) in_flight_max: usize,
    ttl: Lifetimes,
    clock: Arc<dyn Clock>,
}

/// What a stage's row holds: when, and the explanation.
type Told = (CqlTimestamp, String);

impl ScyllaStore {
    /// Connects to a keyspace that [`migrate`](crate::migrate()) has brought to this release's schema. `clock` dates what is written.
    ///
    /// # Errors
    /// [`OpenError`] with the remedy, within twice the configured time to connect and the time of a few requests.
    pub fn open(config: &ScyllaConfig, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let blocking = Blocking::start()?;
        let config = config.clone();
        let shared = blocking.run(async move { Shared::open(&config, clock).await })?;
        Ok(Self { shared: Arc::new(shared), blocking })
    }

    /// Does on the store's own threads what `work` makes of the connection, and waits for it.
    pub(crate) fn run<T, W>(&self, work: impl FnOnce(Arc<Shared>) -> W) -> T
    where
        T: Send + 'static,
        W: Future<Output = T> + Send + 'static,
    {
        self.blocking.run(work(self.shared.clone()))
    }
}

impl Store for ScyllaStore {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        check_sizes(writes, results)?;
        let rows = Rows::of(writes, results);
        self.run(|shared| async move { shared.put(rows).await })
    }

    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let users = users.to_vec();
        self.run(|shared| async move { shared.all(users.iter().map(|user| shared.state(user)).collect()).await })
    }

    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        let user = user.clone();
        self.run(|shared| async move { shared.page(&user).await })
    }

    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        let user = user.clone();
        self.run(|shared| async move { shared.results(&user).await })
    }

    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        let users = users.to_vec();
        self.run(|shared| async move { shared.erasures(users.iter()).await })
    }

    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        let keys = keys.to_vec();
        self.run(|shared| async move {
            let reads: Vec<_> = keys.iter().map(|key| shared.cached(cache, key)).collect();
            shared.all(reads).await
        })
    }

    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        let entries = entries.to_vec();
        self.run(|shared| async move {
            let puts: Vec<_> = entries.iter().map(|(key, value)| shared.remember(cache, key, value)).collect();
            shared.all(puts).await.map(|_| ())
        })
    }
}

impl Shared {
    async fn open(config: &ScyllaConfig, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let session = connect(config).await?;
        let keyspace = &config.keyspace;
        let older = |found: String| Err(OpenError::Older { keyspace: keyspace.clone(), found, known: KNOWN });
        match version_of(&session, keyspace).await? {
            None => return older("is not there".to_owned()),
            Some(0) => return older("has no tables".to_owned()),
            Some(found) if found < KNOWN => return older(format!("has schema version {found}")),
            Some(found) if found > KNOWN => {
                return Err(OpenError::Newer { keyspace: keyspace.clone(), found, known: KNOWN });
            }
            Some(_) => {}
        }
        let using = format!("use keyspace `{keyspace}`");
        session.use_keyspace(keyspace, false).await.map_err(|error| OpenError::failed(using)(&error))?;
        let statements = Statements::prepare(&session, config).await?;
        Ok(Self { session, statements, in_flight_max: config.in_flight_max, ttl: config.ttl, clock })
    }

    /// Erasures first: what they cover is not written. Whoever reads no erasure yet and writes meets the tombstone, which has the
    /// erasure's timestamp; when the server has forgotten the tombstone, the erasure's row is long known.
    async fn put(&self, mut rows: Rows) -> Result<(), StoreError> {
        let erasing: Vec<_> = rows.erasures.iter().map(|(user, erasure)| self.erase(user, *erasure)).collect();
        self.all(erasing).await?;
        let known = self.erasures(rows.values.keys()).await?;
        let users = rows.values.keys().cloned().zip(known);
        let erased: BTreeMap<_, _> = users.filter_map(|(user, erasure)| Some((user, erasure?))).collect();
        rows.less(&erased);
        let written = CqlTimestamp(self.clock.now_ms());
        let mut putting = Vec::new();
        for (user, values) in &rows.values {
            putting.extend(values.iter().map(|(place, value)| self.put_value(user, place, value, written)));
        }
        self.all(putting).await.map(|_| ())
    }

    /// Does all of `work`, a bounded part of it at a time; answers in its order.
    pub(crate) async fn all<T>(&self, work: Vec<impl Future<Output = Result<T, StoreError>>>) -> Result<Vec<T>, StoreError> {
        stream::iter(work).buffered(self.in_flight_max).try_collect().await
    }

    async fn put_value(&self, user: &UserKey, place: &Place, value: &Value, written: CqlTimestamp) -> Result<(), StoreError> {
        let (UserKey { tenant, user }, stamp) = (user, value.stamp.0);
        let bytes = value.bytes.as_deref();
        let versions: Versions<&[u8]> = bytes.map(|bytes| (key(value.stamp, bytes), bytes)).into_iter().collect();
        match place {
            Place::State => {
                let values = (stamp, ttl_s(self.ttl.states), stamp, versions, tenant, user);
                self.write(&self.statements.put_state, values).await
            }
            Place::Page => {
                let size = i32::try_from(bytes.map_or(0, <[u8]>::len)).expect("a page has at most 64 KB");
                let titles = bytes.and_then(titles);
                let values = (stamp, ttl_s(self.ttl.pages), stamp, written, size, titles, versions, tenant, user, SURFACE);
                self.write(&self.statements.put_page, values).await
            }
            Place::Result(stage) => {
                let text = std::str::from_utf8(bytes.unwrap_or_default()).expect("explanations are made from text");
                let versions = Versions::from([(key(value.stamp, text.as_bytes()), (CqlTimestamp(value.at_ms), text))]);
                let values = (stamp, ttl_s(self.ttl.results), stamp, versions, tenant, user, stage);
                self.write(&self.statements.put_result, values).await
            }
        }
    }

    /// The erasure's row, then the tombstones.
    async fn erase(&self, user: &UserKey, erasure: Erasure) -> Result<(), StoreError> {
        let (UserKey { tenant, user }, stamp) = (user, erasure.stamp.0);
        let row = (tenant, user, stamp, place_bytes(erasure.at), stamp);
        self.write(&self.statements.put_erasure, row).await?;
        for statement in &self.statements.erase {
            self.write(statement, (stamp, tenant, user)).await?;
        }
        Ok(())
    }

    async fn erasures(&self, users: impl Iterator<Item = &UserKey>) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.all(users.map(|user| self.erasure(user)).collect()).await
    }

    async fn erasure(&self, user: &UserKey) -> Result<Option<Erasure>, StoreError> {
        let rows = self.read(&self.statements.erasure, (&user.tenant, &user.user)).await?;
        let row = rows.maybe_first_row::<(Option<i64>, Option<Vec<u8>>)>().map_err(first_row)?;
        let Some((Some(stamp), place)) = row else { return Ok(None) };
        let at = place.map_or(Ok(None), |bytes| place_of(&bytes))?;
        Ok(Some(Erasure { stamp: Stamp(stamp), at }))
    }

    async fn state(&self, user: &UserKey) -> Result<Option<Vec<u8>>, StoreError> {
        let UserKey { tenant, user } = user;
        let rows = self.read(&self.statements.state, (tenant, user)).await?;
        let row = rows.maybe_first_row::<(Option<i64>, Option<Versions<Vec<u8>>>)>().map_err(first_row)?;
        let Some((Some(stamp), versions)) = row else { return Ok(None) };
        let versions = versions.unwrap_or_default();
        let gone = surplus(stamp, &versions, Vec::cmp);
        self.prune(&self.statements.prune_state, &gone, |gone| (stamp, gone, tenant, user)).await;
        Ok(newest(stamp, versions, Vec::cmp))
    }

    pub(crate) async fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        let UserKey { tenant, user } = user;
        let rows = self.read(&self.statements.page, (tenant, user, SURFACE)).await?;
        let row = rows.maybe_first_row::<PageRow>().map_err(first_row)?;
        let Some((Some(stamp), written, versions)) = row else { return Ok(None) };
        let gone = surplus(stamp, versions.as_ref().unwrap_or(&Versions::new()), Vec::cmp);
        self.prune(&self.statements.prune_page, &gone, |gone| (stamp, gone, tenant, user, SURFACE)).await;
        Ok(Some(stored_page(stamp, written, versions)))
    }

    async fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        let rows = self.read(&self.statements.results, (&user.tenant, &user.user)).await?;
        let rows = rows.rows::<(String, Option<i64>, Option<Versions<Told>>)>().map_err(corrupt)?;
        let mut results = Vec::new();
        for row in rows {
            let (stage, Some(stamp), versions) = row.map_err(corrupt)? else { continue };
            let versions = versions.unwrap_or_default();
            let gone = surplus(stamp, &versions, by_text);
            let place = (&user.tenant, &user.user, &stage);
            self.prune(&self.statements.prune_result, &gone, |gone| (stamp, gone, place.0, place.1, place.2)).await;
            let Some((at, explanation)) = newest(stamp, versions, by_text) else { continue };
            results.push(StageResult { user: user.clone(), stage, stamp: Stamp(stamp), explanation, at_ms: at.0 });
        }
        let place = |stage: &str| PATH.iter().position(|known| *known == stage).unwrap_or(PATH.len());
        results.sort_by_key(|result| (place(&result.stage), result.at_ms));
        Ok(results)
    }

    async fn cached(&self, cache: &'static str, key: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let rows = self.read(&self.statements.cached, (cache, &key[..])).await?;
        let row = rows.maybe_first_row::<(Option<Vec<u8>>,)>().map_err(first_row)?;
        Ok(row.and_then(|(value,)| value))
    }

    async fn remember(&self, cache: &'static str, key: &[u8; 32], value: &[u8]) -> Result<(), StoreError> {
        self.write(&self.statements.put_cached, (cache, &key[..], value, ttl_s(self.ttl.cache))).await
    }

    /// Removes entries that do not count, at the timestamp of the one that does. Where it fails the next reader does it.
    async fn prune<'a, V: SerializeRow>(
        &self,
        statement: &PreparedStatement,
        gone: &'a [VersionKey],
        values: impl FnOnce(&'a [VersionKey]) -> V,
    ) {
        if gone.is_empty() {
            return;
        }
        if let Err(error) = self.write(statement, values(gone)).await {
            tracing::debug!(entries = gone.len(), "cannot remove entries that do not count: {error}");
        }
    }

    pub(crate) async fn write(&self, statement: &PreparedStatement, values: impl SerializeRow) -> Result<(), StoreError> {
        self.session.execute_unpaged(statement, values).await.map(|_| ()).map_err(failed)
    }

    pub(crate) async fn read(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult, StoreError> {
        let answer = self.session.execute_unpaged(statement, values).await.map_err(failed)?;
        answer.into_rows_result().map_err(corrupt)
    }
}

/// Stamp, time of writing and entries of a page.
type PageRow = (Option<i64>, Option<CqlTimestamp>, Option<Versions<Vec<u8>>>);

/// The page that a row holds; without an entry that counts it was withdrawn.
pub(crate) fn stored_page(stamp: i64, written: Option<CqlTimestamp>, versions: Option<Versions<Vec<u8>>>) -> StoredPage {
    let page = newest(stamp, versions.unwrap_or_default(), Vec::cmp);
    StoredPage { stamp: Stamp(stamp), page, written_ms: written.map_or(0, |written| written.0) }
}

fn by_text(a: &Told, b: &Told) -> Ordering {
    (&a.1, a.0.0).cmp(&(&b.1, b.0.0))
}

/// A lifetime as CQL counts it: whole seconds, 0 for none.
fn ttl_s(lifetime: Option<Duration>) -> i32 {
    lifetime.map_or(0, |time| i32::try_from(time.as_secs()).expect("lifetimes are at most twenty years"))
}

/// A request without an answer: mostly the server is down or slow, and asking again helps. What it says is invalid stays so.
pub(crate) fn failed(error: ExecutionError) -> StoreError {
    match &error {
        ExecutionError::BadQuery(_) => corrupt(error),
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid | DbError::SyntaxError, _)) => {
            corrupt(error)
        }
        _ => StoreError::Unavailable(told(&error)),
    }
}

pub(crate) fn corrupt(error: impl std::error::Error) -> StoreError {
    StoreError::Corrupt(told(&error))
}

pub(crate) fn first_row(error: MaybeFirstRowError) -> StoreError {
    corrupt(error)
}
