//! The real side and the embedded side end in the same rows, whatever happened to each on the way.

use std::{env, sync::Arc};

use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock, StageResult, Stamp, Store, Write};
use endcap_schemas::UserKey;
use serde_json::json;

use crate::real::{Draw, Keyspace, NOW_MS, seed, server};

/// Schedules of a run; `ENDCAP_TEST_SCHEDULES` sets another number.
const SCHEDULES: u64 = 200;
const STAGES: [&str; 3] = ["context", "themes", "elsewhere"];

/// One thing that is stored.
#[derive(Debug, Clone)]
enum Deed {
    Write(Write),
    Result(StageResult),
}

fn small(draw: &mut Draw, below: u64) -> i64 {
    i64::try_from(draw.below(below)).expect("a small number")
}

fn deed(draw: &mut Draw, users: &[UserKey]) -> Deed {
    let user = users[draw.place(users.len())].clone();
    let stamp = Stamp(1 + small(draw, 6));
    let bytes = vec![u8::try_from(draw.below(4)).expect("a small number"); draw.place(3)];
    match draw.below(10) {
        0..3 => Deed::Write(Write::State { user, stamp, state: bytes }),
        3..6 => Deed::Write(Write::Page { user, stamp, page: (draw.below(4) > 0).then_some(bytes) }),
        6..9 => {
            // When a result was made follows from its text, so that equal results are equal in all.
            let at_ms = small(draw, 4);
            let stage = STAGES[draw.place(STAGES.len())].to_owned();
            Deed::Result(StageResult { user, stage, stamp, explanation: format!("{{\"at\":{at_ms}}}"), at_ms })
        }
        _ => Deed::Write(Write::Erase { user, stamp, at: (draw.below(3) > 0).then(|| (0, small(draw, 4))) }),
    }
}

fn put(store: &dyn Store, deeds: &[Deed]) {
    let writes = deeds.iter().filter_map(|deed| if let Deed::Write(write) = deed { Some(write.clone()) } else { None });
    let results = deeds.iter().filter_map(|deed| if let Deed::Result(result) = deed { Some(result.clone()) } else { None });
    store.put_all(&writes.collect::<Vec<_>>(), &results.collect::<Vec<_>>()).expect("deeds are taken");
}

/// The deeds, some of them twice, in an order of their own.
fn shuffled(draw: &mut Draw, deeds: &[Deed]) -> Vec<Deed> {
    let mut all = deeds.to_vec();
    for _ in 0..draw.place(deeds.len() + 1) {
        all.push(deeds[draw.place(deeds.len())].clone());
    }
    for last in (1..all.len()).rev() {
        all.swap(last, draw.place(last + 1));
    }
    all
}

/// Everything that a store tells of a user.
fn told(store: &dyn Store, user: &UserKey) -> String {
    let page = store.page(user).expect("a read is answered").map(|page| (page.stamp, page.page));
    let state = store.state(user).expect("a read is answered");
    let erasure = store.erasure(user).expect("a read is answered");
    format!("{state:?} {page:?} {erasure:?} {:?}", store.results(user).expect("a read is answered"))
}

#[test]
fn random_schedules_end_as_on_the_embedded_side() {
    let Some((server, _guard)) = server() else { return };
    let schedules = env::var("ENDCAP_TEST_SCHEDULES").ok().map_or(SCHEDULES, |text| text.parse().expect("a number of schedules"));
    let (keyspace, mut draw, dir) = (Keyspace::migrated(&server), Draw(seed()), tempfile::tempdir().unwrap());
    let twin =
        Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), Arc::new(ManualClock::at(NOW_MS))).unwrap();
    // Two lifetimes: a server that decides equal stamps by the later expiry would be found out.
    let real =
        ["30days", "never"].map(|ttl| keyspace.store_with(json!({ "ttl": { "pages": ttl, "states": ttl, "results": ttl } })));
    for schedule in 0..schedules {
        let users = ["anna", "bert"].map(|user| UserKey { tenant: format!("s{schedule}"), user: user.to_owned() });
        let deeds: Vec<_> = (0..=draw.below(14)).map(|_| deed(&mut draw, &users)).collect();
        let arrived = shuffled(&mut draw, &deeds);
        put(&twin, &deeds);
        let mut left = &arrived[..];
        while !left.is_empty() {
            let (now, later) = left.split_at(1 + draw.place(left.len().min(5)));
            put(&real[draw.place(2)], now);
            left = later;
        }
        for user in &users {
            assert_eq!(told(&real[0], user), told(&twin, user), "schedule {schedule}: {arrived:?}");
        }
    }
    println!("{schedules} schedules");
}
