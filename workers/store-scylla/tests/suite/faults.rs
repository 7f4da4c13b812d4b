//! A server that holds still, and one that is gone.

use std::{
    env, thread,
    time::{Duration, Instant},
};

use endcap_runtime::{Stamp, Store, StoreError, Write};
use endcap_schemas::UserKey;
use serde_json::json;

use crate::real::{Keyspace, order, server_alone};

/// Within this time a server that runs again is used again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program that holds the server still; goes on when the value is dropped.
struct Paused(String);

impl Paused {
    fn now(services: &str) -> Self {
        order(services, &["pause", "cql"]);
        Self(services.to_owned())
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        order(&self.0, &["resume", "cql"]);
    }
}

fn state(stamp: i64) -> Write {
    Write::State { user: UserKey::of("anna"), stamp: Stamp(stamp), state: stamp.to_be_bytes().into() }
}

#[test]
fn a_server_that_holds_still_is_unavailable_and_comes_back() {
    let Some((server, _guard)) = server_alone() else { return };
    let Ok(services) = env::var("ENDCAP_TEST_SERVICES") else {
        println!("skipped: no ENDCAP_TEST_SERVICES to pause the server with; see tests/services");
        return;
    };
    let keyspace = Keyspace::migrated(&server);
    let limits = json!({ "connect": "2s", "read": "1s", "decide": "1s", "write": "1s" });
    let (store, patient) = (keyspace.store_with(json!({ "timeouts": limits })), keyspace.store());
    let anna = UserKey::of("anna");
    patient.put_all(&[state(1)], &[]).unwrap();

    let paused = Paused::now(&services);
    let start = Instant::now();
    let answers = [
        store.put_all(&[state(2)], &[]).err(),
        store.state(&anna).err(),
        store.page(&anna).err(),
        store.erasure(&anna).err(),
        store.cached("c", &[[1; 32]]).err(),
    ];
    assert!(start.elapsed() < Duration::from_secs(10), "five requests of a second each took {:?}", start.elapsed());
    for error in answers {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
    drop(paused);

    let until = Instant::now() + PATIENCE;
    let recovered = Instant::now();
    while let Err(error) = store.put_all(&[state(3)], &[]) {
        assert!(matches!(error, StoreError::Unavailable(_)) && Instant::now() < until, "{error}");
        thread::sleep(Duration::from_millis(20));
    }
    println!("written again after {:?}", recovered.elapsed());
    assert_eq!(patient.state(&anna).unwrap(), Some(3_i64.to_be_bytes().into()));
}
