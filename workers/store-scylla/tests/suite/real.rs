//! The real server, and a keyspace of each test's own.

use std::{
    collections::HashSet,
    env,
    hash::{BuildHasher, Hasher, RandomState},
    process::Command,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use endcap_runtime::{Erasure, ManualClock, StageResult, Store, StoreError, StoredPage, Write, real_servers};
use endcap_schemas::UserKey;
use endcap_store_scylla::{ScyllaConfig, ScyllaStore, migrate};
use scylla::{
    client::{session::Session, session_builder::SessionBuilder},
    response::query_result::QueryRowsResult,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// What the stores' clock shows, ms.
pub(crate) const NOW_MS: i64 = 1_700_000_000_000;

/// Tests share the server; those that hold it still have it for themselves.
static SERVER: RwLock<()> = RwLock::new(());

/// Where the server is and who may do everything there.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) user: String,
    pub(crate) password: String,
}

/// The server, for a test that minds its neighbours; `None` where none is known, which is said.
pub(crate) fn server() -> Option<(Server, RwLockReadGuard<'static, ()>)> {
    found().map(|server| (server, SERVER.read().unwrap_or_else(PoisonError::into_inner)))
}

/// The server, for a test that disturbs it.
pub(crate) fn server_alone() -> Option<(Server, RwLockWriteGuard<'static, ()>)> {
    found().map(|server| (server, SERVER.write().unwrap_or_else(PoisonError::into_inner)))
}

fn found() -> Option<Server> {
    let address = real_servers::named("ENDCAP_TEST_CQL")?;
    let login = |name| env::var(name).unwrap_or_else(|_| "cassandra".to_owned());
    Some(Server { address, user: login("ENDCAP_TEST_CQL_USER"), password: login("ENDCAP_TEST_CQL_PASSWORD") })
}

/// Has the services' script do something.
pub(crate) fn order(services: &str, args: &[&str]) {
    let status = Command::new(services).args(args).status().expect("the services' script runs");
    assert!(status.success(), "services {args:?}: {status}");
}

/// A seed: the one in the environment, or a new one; printed.
pub(crate) fn seed() -> u64 {
    let given = env::var("ENDCAP_TEST_SEED").ok().map(|text| text.parse().expect("ENDCAP_TEST_SEED is a whole number"));
    let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("ENDCAP_TEST_SEED={seed}");
    seed
}

/// Numbers of a seed's sequence.
pub(crate) struct Draw(pub(crate) u64);

impl Draw {
    /// The next one, below `below`.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % below
    }

    /// A place in a list of `len`.
    pub(crate) fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("a place is a small number")
    }
}

/// A keyspace with a name that no other test has. Dropped with the value.
pub(crate) struct Keyspace {
    pub(crate) name: String,
    pub(crate) server: Server,
    session: Session,
    runtime: Runtime,
}

impl Keyspace {
    /// A name without a keyspace yet.
    pub(crate) fn named(server: &Server) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let builder = SessionBuilder::new().known_node(&server.address).user(&server.user, &server.password);
        let session = runtime.block_on(builder.build()).expect("the server lets the tests in");
        let name = format!("endcap_test_{:016x}", RandomState::new().build_hasher().finish());
        println!("keyspace {name}");
        Self { name, server: server.clone(), session, runtime }
    }

    /// With this release's tables.
    pub(crate) fn migrated(server: &Server) -> Self {
        let keyspace = Self::named(server);
        migrate(&keyspace.config(json!({})), &ManualClock::at(NOW_MS)).expect("an empty server takes the schema");
        keyspace
    }

    /// How to reach it, and `more` settings.
    pub(crate) fn config(&self, more: Value) -> ScyllaConfig {
        let mut settings = json!({
            "contact_points": [self.server.address], "keyspace": self.name, "replication": 1,
            "user": self.server.user, "password": self.server.password,
            // A busy machine is slow, and that is no fault here.
            "timeouts": { "read": "20s", "decide": "20s", "write": "20s", "scan": "60s" },
        });
        let Value::Object(more) = more else { panic!("settings are an object") };
        settings.as_object_mut().expect("settings are an object").extend(more);
        serde_json::from_value(settings).expect("the tests' settings are valid")
    }

    /// A store on it.
    pub(crate) fn store(&self) -> ScyllaStore {
        self.store_with(json!({}))
    }

    /// A store on it with `more` settings.
    pub(crate) fn store_with(&self, more: Value) -> ScyllaStore {
        ScyllaStore::open(&self.config(more), Arc::new(ManualClock::at(NOW_MS))).expect("a migrated keyspace opens")
    }

    /// Plain CQL; `$` stands for the keyspace.
    pub(crate) fn cql(&self, statement: &str) -> Option<QueryRowsResult> {
        let statement = statement.replace('$', &self.name);
        let answer = self.runtime.block_on(self.session.query_unpaged(statement.as_str(), ()));
        answer.unwrap_or_else(|error| panic!("{statement}: {error}")).into_rows_result().ok()
    }

    /// The first column of every row that plain CQL gives.
    pub(crate) fn texts(&self, query: &str) -> HashSet<String> {
        let rows = self.cql(query).expect("a query gives rows");
        rows.rows::<(String,)>().expect("a column of texts").map(|row| row.expect("a text").0).collect()
    }
}

impl Drop for Keyspace {
    fn drop(&mut self) {
        let statement = format!("DROP KEYSPACE IF EXISTS {}", self.name);
        if let Err(error) = self.runtime.block_on(self.session.query_unpaged(statement, ())) {
            println!("keyspace {} is left behind: {error}", self.name);
        }
    }
}

/// An empty store: the users and cached answers of one number, which nobody else has.
pub(crate) struct Apart<'a> {
    pub(crate) store: &'a ScyllaStore,
    pub(crate) number: u64,
}

impl Apart<'_> {
    fn inside(&self, user: &UserKey) -> UserKey {
        UserKey { tenant: format!("{}.{}", self.number, user.tenant), user: user.user.clone() }
    }

    fn write(&self, write: &Write) -> Write {
        let mut write = write.clone();
        let (Write::State { user, .. } | Write::Page { user, .. } | Write::Erase { user, .. }) = &mut write;
        *user = self.inside(user);
        write
    }

    fn key(&self, key: &[u8; 32]) -> [u8; 32] {
        let mut key = *key;
        key[..8].iter_mut().zip(self.number.to_be_bytes()).for_each(|(byte, more)| *byte ^= more);
        key
    }
}

impl Store for Apart<'_> {
    fn put_all(&self, writes: &[Write], results: &[StageResult]) -> Result<(), StoreError> {
        let writes: Vec<_> = writes.iter().map(|write| self.write(write)).collect();
        let results: Vec<_> =
            results.iter().map(|result| StageResult { user: self.inside(&result.user), ..result.clone() }).collect();
        self.store.put_all(&writes, &results)
    }
    fn states(&self, users: &[UserKey]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.store.states(&users.iter().map(|user| self.inside(user)).collect::<Vec<_>>())
    }
    fn page(&self, user: &UserKey) -> Result<Option<StoredPage>, StoreError> {
        self.store.page(&self.inside(user))
    }
    fn results(&self, user: &UserKey) -> Result<Vec<StageResult>, StoreError> {
        let results = self.store.results(&self.inside(user))?;
        Ok(results.into_iter().map(|result| StageResult { user: user.clone(), ..result }).collect())
    }
    fn erasures(&self, users: &[UserKey]) -> Result<Vec<Option<Erasure>>, StoreError> {
        self.store.erasures(&users.iter().map(|user| self.inside(user)).collect::<Vec<_>>())
    }
    fn cached(&self, cache: &'static str, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, StoreError> {
        self.store.cached(cache, &keys.iter().map(|key| self.key(key)).collect::<Vec<_>>())
    }
    fn remember(&self, cache: &'static str, entries: &[([u8; 32], Vec<u8>)]) -> Result<(), StoreError> {
        self.store.remember(cache, &entries.iter().map(|(key, value)| (self.key(key), value.clone())).collect::<Vec<_>>())
    }
}
