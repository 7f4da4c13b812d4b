//! What was counted survives its process.

use endcap_runtime::{
    Broker, Log,
    contract::{poll_all, record, through},
};
use endcap_schemas::topics::Topic;

use crate::server::Server;

#[test]
fn a_tally_goes_on_after_a_new_start_and_is_summed_over_processes() {
    let Some(server) = Server::fresh(1) else { return };
    let events: Vec<_> = (0..6).map(|n| record(Topic::EVENTS, "anna", &[n])).collect();
    server.kafka.append(&events, None).expect("events are taken");
    for (instance, passed) in [("a", 1), ("a", 2), ("b", 1)] {
        let kafka = server.elsewhere(instance);
        let mut log = kafka.log("g", Topic::EVENTS).expect("a consumer");
        let got = poll_all(&mut log, passed);
        let mut commit = through("s", &got[passed - 1]);
        (0..passed).for_each(|_| commit.tally.pass());
        commit.tally.count("tokens", 10);
        log.commit(&commit).expect("a commit is taken");
    }
    let tallies = server.kafka.tallies().expect("tallies are read");
    assert_eq!((tallies["s"].received, tallies["s"].passed, tallies["s"].counters["tokens"]), (4, 4, 30));
    server.kafka.admit(&events[..2], &[]).expect("events are taken");
    server.elsewhere("first").admit(&events[..1], &[]).expect("events are taken");
    let tallies = server.kafka.tallies().expect("tallies are read");
    assert_eq!(tallies[endcap_runtime::INGEST].passed, 3);
    let fenced = server.kafka.admit(&events[..1], &[]);
    assert!(fenced.is_err(), "the door's first owner has lost its name: {fenced:?}");
}
