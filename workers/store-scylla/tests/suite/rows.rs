//! What lies in the tables, and what a server's own rules would have made of it.

use std::sync::Arc;

use endcap_runtime::{ManualClock, Remain, StageResult, Stamp, Store, StoreError, StoreOverview, Write};
use endcap_schemas::UserKey;
use endcap_store_scylla::ScyllaStore;
use scylla::value::CqlTimestamp;
use serde_json::json;

use crate::real::{Keyspace, NOW_MS, server};

fn anna() -> UserKey {
    UserKey::of("anna")
}

fn page(stamp: i64, page: Option<&[u8]>) -> Write {
    Write::Page { user: anna(), stamp: Stamp(stamp), page: page.map(<[u8]>::to_vec) }
}

fn state(stamp: i64, state: &[u8]) -> Write {
    Write::State { user: anna(), stamp: Stamp(stamp), state: state.to_vec() }
}

fn put(store: &ScyllaStore, write: Write) {
    store.put_all(&[write], &[]).expect("a write is taken");
}

fn shown(store: &ScyllaStore) -> Option<(i64, Option<Vec<u8>>)> {
    store.page(&anna()).expect("a read is answered").map(|page| (page.stamp.0, page.page))
}

fn entries(keyspace: &Keyspace) -> usize {
    let rows = keyspace.cql("SELECT versions FROM $.pages").expect("a query gives rows");
    let (versions,) = rows.single_row::<(std::collections::HashMap<(i64, Vec<u8>), Vec<u8>>,)>().expect("one page");
    versions.len()
}

#[test]
fn a_page_is_a_documented_row_that_plain_cql_reads() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    put(&store, page(5_000, Some(b"older")));
    put(&store, page(7_000, Some(b"page")));
    type Row = (String, String, String, i64, CqlTimestamp, i32, i64, i32);
    let rows = keyspace
        .cql("SELECT tenant, user_id, surface, stamp, written, bytes, writetime(stamp), ttl(stamp) FROM $.pages")
        .expect("a query gives rows");
    let (tenant, user, surface, stamp, written, bytes, timestamp, ttl) = rows.single_row::<Row>().expect("one page");
    assert_eq!((&*tenant, &*user, &*surface), ("default", "anna", "home"));
    assert_eq!((stamp, timestamp, written.0, bytes), (7_000, 7_000, NOW_MS, 4));
    assert!((90 * 86_400 - 600..=90 * 86_400).contains(&ttl), "a page lives for 90 days, {ttl} s are left");
    assert_eq!(entries(&keyspace), 1, "what is older is gone");
}

#[test]
fn equal_stamps_end_in_the_greater_bytes_also_where_the_lesser_live_longer() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let [short, long] = ["1days", "30days"].map(|ttl| keyspace.store_with(json!({ "ttl": { "pages": ttl, "states": ttl } })));
    for (greater, lesser) in [(&short, &long), (&long, &short)] {
        put(greater, page(7, Some(b"b")));
        put(lesser, page(7, Some(b"a")));
        put(lesser, page(7, None));
        assert_eq!(shown(&short), Some((7, Some(b"b".to_vec()))));
        put(greater, state(7, b"b"));
        put(lesser, state(7, b"a"));
        assert_eq!(short.state(&anna()).unwrap().as_deref(), Some(&b"b"[..]));
    }
}

#[test]
fn a_plain_overwrite_would_have_let_the_later_expiry_win() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::named(&server);
    keyspace.cql("CREATE KEYSPACE $ WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 1}");
    keyspace.cql("CREATE TABLE $.plain (k text PRIMARY KEY, v text)");
    keyspace.cql("INSERT INTO $.plain (k, v) VALUES ('k', 'b') USING TIMESTAMP 7 AND TTL 1000");
    keyspace.cql("INSERT INTO $.plain (k, v) VALUES ('k', 'a') USING TIMESTAMP 7 AND TTL 2000");
    assert_eq!(keyspace.texts("SELECT v FROM $.plain"), ["a".to_owned()].into(), "this is why there is a map");
}

#[test]
fn what_a_server_has_forgotten_to_delete_does_not_count() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    put(&store, page(7, Some(b"page")));
    // A late write, as if the deletion that came with stamp 7 had been compacted away.
    keyspace.cql(
        "UPDATE $.pages USING TIMESTAMP 8 SET versions[(5, 0x00)] = 0xFF
         WHERE tenant = 'default' AND user_id = 'anna' AND surface = 'home'",
    );
    assert_eq!(entries(&keyspace), 2);
    assert_eq!(shown(&store), Some((7, Some(b"page".to_vec()))), "the older entry has the greater bytes, and does not count");
    put(&store, page(9, None));
    assert_eq!(shown(&store), Some((9, None)));
}

#[test]
fn many_writes_of_one_stamp_are_pruned_by_a_reader() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    (0..12_u8).for_each(|n| put(&store, page(7, Some(&[n]))));
    assert_eq!(entries(&keyspace), 12);
    for _ in 0..2 {
        assert_eq!(shown(&store), Some((7, Some(vec![11]))));
        assert_eq!(entries(&keyspace), 1);
    }
    put(&store, page(7, Some(&[3])));
    assert_eq!(shown(&store), Some((7, Some(vec![11]))), "what was pruned may come again");
    put(&store, page(8, Some(&[3])));
    assert_eq!(shown(&store), Some((8, Some(vec![3]))));
}

#[test]
fn late_writes_of_an_erased_user_are_refused_when_the_tombstones_are_gone() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    put(&store, Write::Erase { user: anna(), stamp: Stamp(10), at: Some((0, 8)) });
    assert_eq!(store.remains(&anna()).unwrap(), []);
    // Tables without tombstones, as after their grace: what is left is the erasure's row.
    for table in ["pages", "states", "results"] {
        keyspace.cql(&format!("TRUNCATE $.{table}"));
    }
    put(&store, page(10, Some(b"late")));
    put(&store, state(9, b"late"));
    let result =
        |stamp| StageResult { user: anna(), stage: "themes".into(), stamp: Stamp(stamp), explanation: "{}".into(), at_ms: stamp };
    store.put_all(&[], &[result(10)]).unwrap();
    for table in ["pages", "states", "results"] {
        assert!(keyspace.texts(&format!("SELECT user_id FROM $.{table}")).is_empty(), "{table}");
    }
    store.put_all(&[page(11, Some(b"new")), state(11, b"new")], &[result(11)]).unwrap();
    let remains = store.remains(&anna()).unwrap();
    assert!(
        remains.len() == 3 && remains.iter().all(|row| row.stamp == Some(Stamp(11))),
        "a new life has rows of its own: {remains:?}"
    );
    keyspace.cql("INSERT INTO $.states (tenant, user_id, stamp) VALUES ('default', 'anna', 3) USING TIMESTAMP 12");
    let remains = store.remains(&anna()).unwrap();
    assert!(
        remains.contains(&Remain { table: "states", stamp: Some(Stamp(3)) }),
        "a row of before the erasure is found: {remains:?}"
    );
}

#[test]
fn a_store_may_be_asked_and_dropped_inside_another_runtime() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async move {
        put(&store, page(7, Some(b"page")));
        assert_eq!(shown(&store), Some((7, Some(b"page".to_vec()))));
        drop(store);
    });
}

#[test]
fn a_row_of_another_shape_is_unreadable() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    keyspace.cql("INSERT INTO $.erasures (tenant, user_id, stamp, place) VALUES ('default', 'anna', 3, 0x00)");
    let told = keyspace.store().erasure(&anna());
    assert!(matches!(told, Err(StoreError::Corrupt(_))), "{told:?}");
    let clock = Arc::new(ManualClock::at(NOW_MS));
    assert!(ScyllaStore::open(&keyspace.config(json!({})), clock).is_ok(), "one bad row does not keep a process from starting");
}
