//! The contract of the border, run against the real side.

use std::cell::Cell;

use endcap_runtime::{
    Stamp, Write,
    contract::{check_any_order, check_policies, check_store},
};
use endcap_schemas::UserKey;
use endcap_store_scylla::ScyllaStore;

use crate::real::{Apart, Draw, Keyspace, seed, server};

/// Gives empty stores.
fn stores<'a>(store: &'a ScyllaStore) -> impl Fn() -> Apart<'a> {
    let count = Cell::new(0);
    move || {
        count.set(count.get() + 1);
        Apart { store, number: count.get() }
    }
}

#[test]
fn the_store_keeps_its_contract() {
    let Some((server, _guard)) = server() else { return };
    let keyspace = Keyspace::migrated(&server);
    check_store(stores(&keyspace.store()));
}

#[test]
fn the_server_keeps_policies() {
    let Some((server, _guard)) = server() else { return };
    check_policies(&Keyspace::migrated(&server).store());
}

fn write(draw: &mut Draw) -> Write {
    let user = UserKey::of(["anna", "bert"][draw.place(2)]);
    let stamp = Stamp(1 + i64::from(u8::try_from(draw.below(5)).expect("a small number")));
    let bytes = (draw.below(3) > 0).then(|| vec![u8::try_from(draw.below(3)).expect("a small number"); draw.place(3)]);
    match draw.below(3) {
        0 => Write::State { user, stamp, state: bytes.unwrap_or_default() },
        1 => Write::Page { user, stamp, page: bytes },
        _ => Write::Erase { user, stamp, at: bytes.map(|bytes| (0, i64::try_from(bytes.len()).expect("a small number"))) },
    }
}

/// Every place at least twice, in an order of its own.
fn order(draw: &mut Draw, len: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).chain(0..len).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, draw.place(last + 1));
    }
    order
}

#[test]
fn writes_end_in_the_same_rows_in_any_order() {
    let Some((server, _guard)) = server() else { return };
    let (keyspace, mut draw) = (Keyspace::migrated(&server), Draw(seed()));
    let store = keyspace.store();
    let stores = stores(&store);
    for _ in 0..25 {
        let writes: Vec<_> = (0..=draw.below(10)).map(|_| write(&mut draw)).collect();
        let orders: Vec<_> = (0..3).map(|_| order(&mut draw, writes.len())).collect();
        check_any_order(&stores, &writes, &orders);
    }
}
