//! Whatever arrives in whatever order, the rows are those that the greatest writes name: those of the embedded side, which keeps the same
//! contract.

use std::{env, time::Instant};

use endcap_runtime::contract::check_schedules;
use serde_json::json;

use crate::real::{Draw, Keyspace, seed, server};

/// Schedules of a run; `ENDCAP_TEST_SCHEDULES` sets another number.
const SCHEDULES: u64 = 400;

#[test]
fn random_schedules_end_in_the_rows_that_their_greatest_writes_name() {
    let Some((server, _guard)) = server() else { return };
    let schedules = env::var("ENDCAP_TEST_SCHEDULES").ok().map_or(SCHEDULES, |text| text.parse().expect("a number of schedules"));
    let (keyspace, mut draw, start) = (Keyspace::migrated(&server), Draw(seed()), Instant::now());
    // Two lifetimes: a server that decides equal stamps by the later expiry would be found out.
    let stores =
        ["30days", "never"].map(|ttl| keyspace.store_with(json!({ "ttl": { "pages": ttl, "states": ttl, "results": ttl } })));
    check_schedules(&stores, schedules, &mut |below| draw.below(below));
    println!("{schedules} schedules in {:.1} s", start.elapsed().as_secs_f64());
}
