//! Keyspaces are made, brought up to date by one process at a time, and never by the way.

use std::{sync::Arc, thread};

use endcap_runtime::{ManualClock, Stamp, Store, Write};
use endcap_schemas::UserKey;
use endcap_store_scylla::{OpenError, Plan, ScyllaConfig, ScyllaStore, migrate, plan};
use serde_json::json;

use crate::real::{Keyspace, NOW_MS, server};

fn migrated(config: &ScyllaConfig) -> Result<Plan, OpenError> {
    migrate(config, &ManualClock::at(NOW_MS))
}

fn opened(config: &ScyllaConfig) -> Result<ScyllaStore, OpenError> {
    ScyllaStore::open(config, Arc::new(ManualClock::at(NOW_MS)))
}

fn refused(config: &ScyllaConfig) -> String {
    opened(config).err().expect("the keyspace is not ready").to_string()
}

#[test]
fn a_keyspace_is_made_by_a_migration_alone_and_a_second_one_does_nothing() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::named(&server);
    let config = keyspace.config(json!({}));
    let planned = plan(&config).unwrap();
    assert_eq!((planned.found, planned.statements.len()), (None, 11), "{planned}");
    assert!(planned.statements[0].starts_with("CREATE KEYSPACE"), "{planned}");
    let error = refused(&config);
    assert!(error.contains("is not there") && error.contains("run `endcap store migrate`"), "{error}");

    assert_eq!(migrated(&config).unwrap(), planned, "it does what it said");
    assert_eq!(plan(&config).unwrap().to_string(), format!("keyspace `{}` has schema version 3, nothing to do", keyspace.name));
    let store = opened(&config).unwrap();
    store.put_all(&[Write::State { user: UserKey::of("anna"), stamp: Stamp(1), state: vec![1] }], &[]).unwrap();
    assert!(migrated(&config).unwrap().statements.is_empty());
    assert_eq!(store.state(&UserKey::of("anna")).unwrap(), Some(vec![1]), "rows stay");
}

#[test]
fn a_data_centre_that_nobody_is_in_is_told_with_those_that_there_are() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::named(&server);
    let error = plan(&keyspace.config(json!({ "datacenter": "nowhere" }))).expect_err("nobody is there").to_string();
    assert!(error.contains("`nowhere`") && error.contains("set `datacenter` to one of `datacenter1`"), "{error}");
    plan(&keyspace.config(json!({ "datacenter": "datacenter1" }))).unwrap();
}

#[test]
fn a_keyspace_that_keeps_other_copies_than_it_should_is_told() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::named(&server);
    keyspace.cql("CREATE KEYSPACE $ WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}");
    let planned = plan(&keyspace.config(json!({}))).unwrap().to_string();
    assert!(planned.contains("keeps copies by SimpleStrategy: 1") && planned.contains("ALTER KEYSPACE"), "{planned}");
    plan(&keyspace.config(json!({ "datacenter": "datacenter1" }))).expect("they are near, as there is one data centre");

    keyspace.cql("ALTER KEYSPACE $ WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 1}");
    let config = keyspace.config(json!({ "datacenter": "datacenter1", "replication": { "datacenter1": 1 } }));
    assert_eq!(plan(&config).unwrap().copies, None);
    let more = plan(&keyspace.config(json!({ "replication": 2 }))).unwrap().copies.expect("there is one");
    assert!(more.contains("keeps copies: 1 in `datacenter1`"), "{more}");
}

#[test]
fn several_at_once_do_it_once() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::named(&server);
    let config = keyspace.config(json!({}));
    thread::scope(|scope| {
        let all = [(); 4].map(|()| scope.spawn(|| migrated(&config)));
        all.into_iter().for_each(|one| {
            one.join().unwrap().unwrap();
        });
    });
    let names = ["0001_store", "0002_generations", "0003_policies"].map(str::to_owned);
    assert_eq!(keyspace.texts("SELECT name FROM $.schema_versions"), names.into());
    assert!(keyspace.texts("SELECT owner FROM $.schema_lock").is_empty(), "the lock is given back");
    opened(&config).unwrap();
}

#[test]
fn a_migration_that_was_cut_short_is_finished_by_the_next() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let config = keyspace.config(json!({}));
    keyspace.cql("DROP TABLE $.cache");
    keyspace.cql("TRUNCATE $.schema_versions");
    let error = refused(&config);
    assert!(error.contains("has no tables"), "{error}");
    migrated(&config).unwrap();
    opened(&config).unwrap().remember("c", &[([1; 32], vec![1])]).unwrap();
}

#[test]
fn a_newer_schema_is_refused_with_the_remedy() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let config = keyspace.config(json!({}));
    keyspace.cql("INSERT INTO $.schema_versions (scope, version, name) VALUES ('endcap', 99, '0099_beyond')");
    let errors = [opened(&config).err(), plan(&config).err(), migrated(&config).err()];
    for error in errors.map(|error| error.expect("a newer schema is refused")) {
        assert!(matches!(error, OpenError::Newer { found: 99, known: 3, .. }), "{error}");
        assert!(error.to_string().contains("use the newer release, or another keyspace"), "{error}");
    }
}

#[test]
fn who_holds_the_lock_for_too_long_is_named() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    keyspace.cql("TRUNCATE $.schema_versions");
    keyspace.cql("INSERT INTO $.schema_lock (scope, owner) VALUES ('endcap', '4711-feed')");
    let config = keyspace.config(json!({ "timeouts": { "migrate": "3s", "scan": "20s" } }));
    let error = migrated(&config).unwrap_err();
    assert!(matches!(&error, OpenError::Busy { owner, .. } if owner == "4711-feed"), "{error}");
    keyspace.cql("DELETE FROM $.schema_lock WHERE scope = 'endcap'");
    migrated(&keyspace.config(json!({}))).unwrap();
}

#[test]
fn tables_have_the_compaction_strategy_that_the_server_gives() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    keyspace.cql("CREATE TABLE $.plain (k text PRIMARY KEY)");
    let classes = |table: &str| {
        let query = "SELECT compaction['class'] FROM system_schema.tables WHERE keyspace_name = '$'";
        keyspace.texts(&format!("{query} AND table_name = '{table}'"))
    };
    let own = classes("pages");
    let is_incremental = own.iter().all(|class| class.ends_with("IncrementalCompactionStrategy"));
    assert!(is_incremental || own == classes("plain"), "{own:?}");
}
