//! A broker that dies and comes back. It stops everybody else's tests too, so it runs on demand, alone:
//! `ENDCAP_TEST_SERVICES=…/services cargo test -p endcap-log-kafka -- --ignored outage`.

use std::{env, process::Command, time::Duration};

use endcap_runtime::{Broker, Log, LogError, Shutdown, contract::poll_all};
use endcap_schemas::topics::Topic;

use crate::{
    groups::until,
    server::{Server, address},
    toy::{GROUP, check_contexts, event, fold},
};

const EVENTS: i64 = 2_000;
const USERS: i64 = 50;

fn services(args: &[&str]) {
    let script =
        env::var("ENDCAP_TEST_SERVICES").expect("ENDCAP_TEST_SERVICES names the script that starts and stops the broker");
    assert!(Command::new(script).args(args).status().expect("the script runs").success(), "services {args:?}");
}

#[test]
#[ignore = "stops the broker"]
fn a_broker_that_dies_is_unavailable_and_nothing_is_lost_or_doubled_when_it_is_back() {
    let Some(server) = Server::fresh(3) else { return };
    let all: Vec<_> = (0..EVENTS).map(|n| event(n, USERS)).collect();
    server.kafka.append(&all[..1_000], None).expect("events are taken");
    let end = Shutdown::new();
    std::thread::scope(|scope| {
        let (kafka, store, shutdown) = (server.elsewhere("worker"), server.store.clone(), end.clone());
        scope.spawn(move || fold(&kafka, &store, 60, &shutdown).expect("the worker outlives the outage"));
        until("some work", || received(&server) > 200);
        services(&["kill", "kafka"]);
        let down = server.kafka.append(&all[1_000..1_001], Some(("feed", "1001")));
        assert!(matches!(down, Err(LogError::Unavailable(_))), "{down:?}");
        services(&["start", "kafka"]);
        let mut next = 1_000;
        until("the feed", || {
            let to = (next + 100).min(EVENTS);
            let some = &all[usize::try_from(next).unwrap()..usize::try_from(to).unwrap()];
            // The first one repeats what was tried in the outage, with the same progress.
            let some = if next == 1_000 { &some[..1] } else { some };
            let noted = (next + i64::try_from(some.len()).unwrap()).to_string();
            if server.kafka.append(some, Some(("feed", &noted))).is_ok() {
                next = noted.parse().unwrap();
            }
            next == EVENTS
        });
        let mut done = received(&server);
        while done < EVENTS.unsigned_abs() {
            until("progress", || received(&server) > done);
            done = received(&server);
            println!("{done} events are done");
        }
        end.trigger();
    });
    check_contexts(&server.kafka, EVENTS, USERS);
}

fn received(server: &Server) -> u64 {
    server.kafka.tallies().ok().and_then(|tallies| tallies.get("context").map(|tally| tally.received)).unwrap_or(0)
}

#[test]
#[ignore = "stops the broker"]
fn an_idle_consumer_tells_of_an_outage_and_of_its_end() {
    if address("ENDCAP_TEST_KAFKA").is_none() {
        return;
    }
    let server = Server::fresh(1).expect("a broker was named before");
    let mut log = server.kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    server.kafka.append(&[event(0, 1)], None).expect("an event is taken");
    poll_all(&mut log, 1);
    services(&["kill", "kafka"]);
    until("an error", || matches!(log.poll(1, Duration::from_secs(1)), Err(LogError::Unavailable(_))));
    services(&["start", "kafka"]);
    until("an answer", || log.poll(1, Duration::from_secs(1)).is_ok());
}
