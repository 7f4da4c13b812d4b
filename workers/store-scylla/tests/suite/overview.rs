//! Lists, searches and counts over many users.

use std::{cell::RefCell, collections::BTreeSet};

use endcap_runtime::{Stamp, Store, StoreOverview, Write, contract::check_overview};
use endcap_schemas::UserKey;

use crate::real::{Keyspace, server};

fn page(user: UserKey, page: Option<Vec<u8>>) -> Write {
    Write::Page { user, stamp: Stamp(7), page }
}

#[test]
fn the_store_keeps_the_contract_of_an_overview() {
    let Some((server, _guard)) = server() else { return };
    let kept = RefCell::new(Vec::new()); // a keyspace ends with its name
    check_overview(|| {
        let keyspace = Keyspace::migrated(&server);
        let store = keyspace.store();
        kept.borrow_mut().push(keyspace);
        store
    });
}

#[test]
fn pages_are_listed_once_each_and_found_by_a_part_of_the_key() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    let named = |user: &str| UserKey::of(user);
    let elsewhere = UserKey { tenant: "alpine".into(), user: "eve".into() };
    let mut writes: Vec<_> = ["Ada", "cleo", "dora"].map(|user| page(named(user), Some(vec![1]))).into();
    writes.extend([page(named("bob"), None), page(elsewhere.clone(), Some(vec![5]))]);
    writes.push(Write::State { user: named("bob"), stamp: Stamp(7), state: vec![1] });
    store.put_all(&writes, &[]).unwrap();

    let all = BTreeSet::from([named("Ada"), named("cleo"), named("dora"), elsewhere]);
    for limit in [1, 2, 3, 100] {
        let mut listed: Vec<UserKey> = Vec::new();
        loop {
            let rows = store.pages_after(listed.last(), limit).unwrap();
            assert!(rows.len() <= limit);
            if rows.is_empty() {
                break;
            }
            listed.extend(rows.into_iter().map(|(user, _)| user));
        }
        assert_eq!((listed.len(), listed.iter().cloned().collect()), (4, all.clone()), "a page of {limit}");
    }
    let found =
        |part: &str| -> Vec<String> { store.pages_like(part, 9).unwrap().into_iter().map(|(user, _)| user.user).collect() };
    for (part, users) in [("ADA", &["Ada"][..]), ("a", &["eve", "Ada", "dora"]), ("bob", &[]), ("alp", &["eve"]), ("fault", &[])]
    {
        assert_eq!(found(part), users, "{part}");
    }
    assert_eq!(store.pages_like("", 2).unwrap().len(), 2);
    assert_eq!((store.pages_count().unwrap(), store.states_count().unwrap()), (4, 1), "a withdrawn page is none");
}

#[test]
fn many_states_are_estimated_within_a_few_percent() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    let store = keyspace.store();
    let many = 12_000_u64;
    for from in (0..many).step_by(2_000) {
        let state = |n: u64| Write::State { user: UserKey::of(format!("u{n}")), stamp: Stamp(1), state: vec![1] };
        store.put_all(&(from..from + 2_000).map(state).collect::<Vec<_>>(), &[]).unwrap();
    }
    let count = store.states_count().unwrap();
    println!("{count} of {many}");
    assert!(count != many && count.abs_diff(many) < many / 20, "{count}");
}
