//! A backfill lane that has stopped: the program around it.

use std::sync::Arc;

use endcap_runtime::{Embedded, EmbeddedConfig, Headers, Outgoing, SystemClock};
use endcap_schemas::{
    UserKey,
    topics::{Lane, Topic},
};

use crate::program::{place, purchase};

/// More than the breaker lets fail one after the other.
const UNREADABLE: usize = 30;

#[test]
fn a_backfill_lane_that_has_stopped_is_told_and_keeps_no_run_from_its_end() {
    let place = place();
    let base = ["--models", &place.models, "--shoppers", "0", "--debounce", "0s"];
    let to_the_end = [&base[..], &["--exit-when-drained"]].concat();
    place.program().finish(&to_the_end).expect("a run with nothing to do");

    let path = endcap::data::file_in(&place.dir.path().join("data"));
    let topic = Topic::CONTEXTS.on(Lane::Backfill);
    let unreadable = |n: usize| {
        let headers = Headers::root(format!("r{n}"), Topic::CONTEXTS, 0);
        Outgoing { topic, key: UserKey::of(format!("u{n}")), headers, value: b"{}".to_vec() }
    };
    let file = Embedded::open(&path, EmbeddedConfig::default(), Arc::new(SystemClock::default())).expect("the file opens");
    file.producer().append(&(0..UNREADABLE).map(unreadable).collect::<Vec<_>>(), None).expect("records are taken");
    drop(file);

    let up = place.program().up(&base).expect("a running endcap");
    let told = up.wait_for("/v1/pipeline", |figures| {
        let rows = figures["stages"].as_array()?;
        rows.iter().find(|row| row["stopped"] == true && row["lane"] == "backfill").cloned()
    });
    let row = told.expect("a lane that has stopped");
    let cause = row["trouble"].as_str().expect("why");
    assert_eq!((&row["name"], &row["waiting"]), (&"themes".into(), &UNREADABLE.into()));
    assert!(
        cause.starts_with("20 of its last 20 records failed, last with `") && cause.ends_with("start the stage again"),
        "{cause}"
    );
    let (status, ready) = up.get("/health/ready").expect("an answer");
    let trouble = format!("the backfill lane of stage themes has stopped: {cause}");
    assert_eq!((status, &ready["ok"], &ready["troubles"]), (200, &true.into(), &[trouble].as_slice().into()));
    let metrics = up.text("/metrics").expect("metrics").1;
    assert!(metrics.contains("endcap_stage_lane_stopped{stage=\"themes\",lane=\"backfill\"} 1"), "{metrics}");
    up.post("/v1/events", purchase("e1", "ada", "d00001").to_string()).expect("an answer");
    up.wait_for("/v1/pages/ada", |page| (page["event_id"] == "e1").then_some(())).expect("the live lane goes on");
    up.interrupt().expect("a signal");
    up.wait().expect("who asks to end waits for the live lane alone");

    let args = [&to_the_end[..], &["--bind", "127.0.0.1:0"]].concat();
    let output = place.program().output(&["up"], &args).expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let says = "not all is worked off: on the backfill lane wait 30 for stage themes, which has stopped there: 20 of its last 20 records failed";
    assert!(output.status.code() == Some(1) && said.contains(says), "{said}");
}
