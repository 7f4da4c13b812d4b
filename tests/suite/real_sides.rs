//! The path on a real Kafka and a real CQL server: declared, run by several processes, looked into and erased through the program alone. Where
//! `tests/services` has not been started, it says that it is skipped.

use std::{collections::BTreeSet, env, fs, path::Path};

use endcap_runtime::real_servers;
use endcap_tests::{Endcap, Run};
use serde_json::{Value, json};

use crate::{
    program::{PROGRAM, Place, place, purchase},
    replay,
};

/// The configuration of a namespace and a keyspace called after `test`; `None` where no servers are known. Its limits of time are wide: the
/// servers share a busy machine with other tests, and what does not answer in time is another test's.
fn config(dir: &Path, test: &str) -> Option<String> {
    let of = |name: &str| env::var(name).ok();
    let (kafka, cql) = (real_servers::named("ENDCAP_TEST_KAFKA")?, real_servers::named("ENDCAP_TEST_CQL")?);
    let own = format!("e2e{test}{}", std::process::id());
    let text = format!(
        "shoppers = 0\ndebounce = \"0s\"\n[kafka]\nbrokers = [\"{kafka}\"]\nnamespace = \"{own}\"\nrequest_timeout_s = 30\n\
         [topics]\npartitions = 4\nreplication = 1\nmin_in_sync = 1\n[scylla]\ncontact_points = [\"{cql}\"]\nkeyspace = \"{own}\"\n\
         replication = 1\nuser = \"{}\"\npassword = \"{}\"\n[scylla.timeouts]\nread = \"20s\"\ndecide = \"20s\"\nwrite = \"20s\"\n\
         scan = \"60s\"\n",
        of("ENDCAP_TEST_CQL_USER").unwrap_or_else(|| "cassandra".to_owned()),
        of("ENDCAP_TEST_CQL_PASSWORD").unwrap_or_else(|| "cassandra".to_owned()),
    );
    let path = dir.join("endcap.toml");
    fs::write(&path, text).expect("a file");
    Some(path.display().to_string())
}

/// The program without a data directory of its own.
fn ask(args: &[&str]) -> (Option<i32>, String) {
    let output = Run::new(PROGRAM, Path::new("")).plain(args).expect("the program runs");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

fn succeed(args: &[&str]) -> String {
    let (code, said) = ask(args);
    assert_eq!(code, Some(0), "{args:?}: {said}");
    said
}

/// A process of the fleet with a data directory of its own, as if it stood on a machine of its own.
fn start(place: &Place, name: &str, stages: &[&str], config: &str) -> Endcap {
    let program = Run::new(PROGRAM, &place.dir.path().join(name));
    program.stages(stages, &["--models", &place.models, "--config", config]).expect("a running endcap")
}

fn titles(endcap: &Endcap, shopper: &str) -> Vec<String> {
    let path = format!("/v1/pages/{shopper}");
    let placements = endcap.wait_for(&path, |page| page["placements"].as_array().cloned()).expect("a page");
    placements.iter().map(|placement| placement["title"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_fleet_on_real_servers_makes_the_pages_of_one_process() {
    let place = place();
    let Some(config) = config(place.dir.path(), "fleet") else { return };
    let with = |args: &[&'static str]| {
        [args, &["--config", config.as_str()]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |args: &[&'static str]| {
        let args = with(args);
        succeed(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let early = Run::new(PROGRAM, &place.dir.path().join("early"));
    let refused = early.output(&["run", "context"], &["--models", &place.models, "--config", &config]).expect("the program runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("endcap store migrate"), "nothing is made in passing: {said}");
    assert!(run(&["store", "plan"]).contains("none → schema version"));
    run(&["store", "migrate"]);
    assert!(run(&["store", "migrate"]).contains("nothing to do"));
    assert!(run(&["topics", "plan"]).contains("steps to do"));
    run(&["topics", "apply"]);
    assert!(run(&["topics", "plan"]).contains("as they should be"));

    let front = start(&place, "front", &["context", "themes"], &config);
    let twin = start(&place, "twin", &["context"], &config);
    let back = start(&place, "back", &["keywords", "dedup", "aiqa"], &config);
    let shoppers: Vec<String> = (0..8).map(|n| format!("shopper-{n}")).collect();
    let mut events: Vec<Value> =
        (0..24).map(|n| purchase(&format!("e{n}"), &shoppers[n % 8], &format!("d0000{}", 1 + n % 9))).collect();
    events.push(purchase("unknown", "shopper-0", "no-such-product"));
    let (status, answer) = twin.post("/v1/events", json!(events).to_string()).unwrap();
    assert_eq!((status, &answer["accepted"]), (200, &json!(25)), "{answer}");

    let alone =
        place.program().up(&["--models", &place.models, "--shoppers", "0", "--debounce", "0s"]).expect("a running endcap");
    alone.post("/v1/events", json!(events).to_string()).unwrap();
    for endcap in [&front, &alone] {
        endcap.wait_for("/v1/dead-letters", |answer| (answer["total"] == 1).then_some(())).expect("the dead letter");
    }
    for shopper in &shoppers {
        // The last event decides; earlier pages may be read before it.
        let last = titles(&alone, shopper);
        let path = format!("/v1/pages/{shopper}");
        let same = |page: &Value| {
            let found: Vec<&str> =
                page["placements"].as_array()?.iter().filter_map(|placement| placement["title"].as_str()).collect();
            (found == last).then_some(())
        };
        back.wait_for(&path, same).unwrap_or_else(|error| panic!("{shopper} has another page than in one process: {error}"));
    }

    let listed = run(&["dlq", "ls", "--json"]);
    let letter: Value = serde_json::from_str(listed.lines().next().expect("a dead letter")).expect("JSON");
    assert_eq!((&letter["reason"], &letter["user"]), (&json!("unknown_product"), &json!("default/shopper-0")));
    assert!(run(&["dlq", "redrive", "--reason", "unknown_product"]).contains("1 sent again"));
    front.wait_for("/v1/dead-letters", |answer| (answer["total"] == 1).then_some(())).expect("the letter comes again");

    let erased = run(&["erase", "shopper-3", "--verify"]);
    assert!(erased.contains("no row is left in the store"), "{erased}");
    assert_eq!(back.get("/v1/pages/shopper-3").unwrap().0, 404);

    let names: BTreeSet<String> =
        back.get("/v1/pages/shopper-1").unwrap().1["versions"].as_object().expect("versions").keys().cloned().collect();
    assert!(["themes", "keywords", "encoder", "cross-encoder"].iter().all(|name| names.contains(*name)), "{names:?}");
    check_rollback(&place, &config);
    front.interrupt().unwrap();
    front.wait().expect("a process that is told to end ends well");
}

/// Another configuration is another generation for whoever runs it; a rollback ends its process, and the next start runs what was before.
fn check_rollback(place: &Place, config: &str) {
    let listed = |count: usize| {
        let listed = succeed(&["manifests", "--config", config]);
        assert_eq!(listed.matches("\ngeneration ").count() + 1, count, "{listed}");
        listed
    };
    assert!(listed(1).starts_with("generation 1, "), "three processes of one configuration");
    let other = format!("{}[aiqa]\nproducts_max = 9\n", fs::read_to_string(config).expect("the configuration"));
    let other = place.file("other.toml", &other);
    let changed = start(place, "changed", &["dedup"], &other);
    assert!(listed(2).contains("aiqa.products_max: 20 → 9"));
    let said = succeed(&["rollback", "--config", config]);
    assert!(said.contains("generation 3 is active: the manifest of generation 1 in place of 2"), "{said}");
    let ended = changed.wait().expect_err("a process that was rolled back ends").to_string();
    assert!(ended.contains("exit status: 75"), "{ended}");
    let again = start(place, "changed", &["dedup"], &other);
    assert!(listed(3).contains("back to generation 1, active"));
    assert!(again.text("/metrics").expect("metrics").1.contains("endcap_generation 3"));
}

#[test]
fn replays_do_on_real_servers_what_they_do_on_a_file() {
    let place = place();
    let Some(config) = config(place.dir.path(), "replay") else { return };
    for declared in [["store", "migrate"], ["topics", "apply"]] {
        succeed(&[&declared[..], &["--config", &config]].concat());
    }
    replay::check_beside_a_running_path(&place, &place.dir.path().join("data"), &["--config", &config]);
}
