//! Real processes, killed between store and commit or anywhere else: nothing is lost and nothing is written twice.
//!
//! The children are this test binary itself, run as the ignored test `child` with their orders in the environment.

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use endcap_log_kafka::KafkaSettings;
use endcap_runtime::{Broker, Embedded, EmbeddedConfig, Shutdown, SystemClock};
use endcap_schemas::topics::Topic;

use crate::{
    groups::until,
    server::{Server, connect, settings},
    toy::{check_contexts, event, fold},
};

const ORDERS: &str = "ENDCAP_CRASH_ORDERS";
const EVENTS: i64 = 3_000;
const USERS: i64 = 60;
const ROUNDS: u64 = 4;

fn open(path: &Path) -> Embedded {
    Embedded::open(path, EmbeddedConfig::default(), Arc::new(SystemClock::default())).expect("the store opens")
}

#[test]
#[ignore = "what the crash test's children run"]
fn child() {
    let Ok(orders) = env::var(ORDERS) else { return };
    let parts: Vec<&str> = orders.split('|').collect();
    let [broker, namespace, instance, store] = parts[..] else { panic!("orders are four parts: {orders}") };
    let settings = KafkaSettings { namespace: namespace.to_owned(), instance: instance.to_owned(), ..settings(broker) };
    let store = open(Path::new(store));
    fold(&connect(&settings, &store), &store, 8, &Shutdown::new()).expect("a child goes on until it is killed");
}

/// A child that is killed at the latest when its handle goes.
struct Doomed(Child);

impl Doomed {
    fn start(server: &Server, instance: &str, store: &Path) -> Self {
        let KafkaSettings { brokers, namespace, .. } = &server.settings;
        let orders = format!("{}|{namespace}|{instance}|{}", brokers[0], store.display());
        let child = Command::new(env::current_exe().expect("this binary has a path"))
            .args(["--exact", "crash::child", "--ignored", "--nocapture"])
            .env(ORDERS, orders)
            .stdout(Stdio::null())
            .spawn()
            .expect("a child starts");
        Self(child)
    }

    fn kill(mut self) {
        assert!(self.0.try_wait().expect("a child has a status").is_none(), "a child ended by itself");
        self.0.kill().expect("a child can be killed");
        self.0.wait().expect("a killed child ends");
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The `n`-th number of a seed's sequence, below `below`.
fn drawn(seed: u64, n: u64, below: u64) -> u64 {
    let mut x = seed.wrapping_add(n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (x ^ (x >> 31)) % below
}

#[test]
fn killed_processes_lose_nothing_and_repeat_nothing() {
    let Some(server) = Server::fresh(4) else { return };
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("seed {seed}");
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store.db");
    drop(open(&store));
    for from in (0..EVENTS).step_by(500) {
        let events: Vec<_> = (from..from + 500).map(|n| event(n, USERS)).collect();
        server.kafka.append(&events, None).expect("events are taken");
    }
    let written = || server.kafka.ends(Topic::CONTEXTS).expect("ends are told").values().sum::<i64>();
    let mut grew = 0;
    for round in 0..ROUNDS {
        let before = written();
        // The same names in every round: who starts anew ends what its predecessor has left open.
        let children = ["a", "b"].map(|instance| Doomed::start(&server, instance, &store));
        until("a child's first commit", || written() > before);
        Shutdown::new().wait(Duration::from_millis(drawn(seed, round, 150)));
        children.into_iter().for_each(Doomed::kill);
        grew += u64::from(received(&server) < EVENTS.unsigned_abs());
    }
    assert!(grew > 1, "all events were done before the kills began; make them more");
    let end = Shutdown::new();
    std::thread::scope(|scope| {
        for instance in ["a", "b"] {
            let (server, store, end) = (&server, &store, &end);
            scope.spawn(move || fold(&server.elsewhere(instance), &open(store), 50, end).expect("the last ones end as asked"));
        }
        until("the rest", || received(&server) >= EVENTS.unsigned_abs());
        end.trigger();
    });
    check_contexts(&server.kafka, EVENTS, USERS);
}

fn received(server: &Server) -> u64 {
    server.kafka.tallies().expect("tallies are read").get("context").map_or(0, |tally| tally.received)
}
