use std::{sync::Arc, thread};

use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock};

use super::*;
use crate::manifest::tests::manifest;

fn store(dir: &tempfile::TempDir) -> Embedded {
    Embedded::open(dir.path().join("endcap.sqlite"), EmbeddedConfig::default(), Arc::new(ManualClock::at(5))).unwrap()
}

/// The plan of a process that is configured as `wanted` and will run `running`.
fn plan(wanted: &Manifest, running: &Manifest) -> Plan {
    let places = running.models.iter().map(|(name, model)| (*name, model.place.clone())).collect();
    Plan {
        places: Places::told(places, PathBuf::new().as_path()).unwrap(),
        path: PathConfig::default(),
        wanted: wanted.clone(),
        running: running.clone(),
    }
}

fn deploy(store: &Embedded, wanted: &Manifest) -> i32 {
    plan(wanted, wanted).deploy(store, &ManualClock::at(5)).unwrap()
}

fn roll_back(store: &Embedded, to: i32) -> Generation {
    let active = generation(store, None).unwrap().unwrap();
    let made = Generation::rolled_back(&named(store, to).unwrap(), &active, 9).unwrap();
    add(store, made).unwrap()
}

#[test]
fn whoever_deploys_at_once_has_a_number_that_stands_for_the_same_everywhere() {
    let (old, new) = (manifest("one", 5), manifest("two", 5));
    let at_once = |each: Vec<&Manifest>| {
        let dir = tempfile::tempdir().unwrap();
        let file = store(&dir);
        let numbers: Vec<i32> = thread::scope(|scope| {
            let each: Vec<_> = each.iter().map(|wanted| scope.spawn(|| deploy(&store(&dir), wanted))).collect();
            each.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (wanted, number) in each.iter().zip(&numbers) {
            assert_eq!(named(&file, *number).unwrap().manifest, **wanted, "{numbers:?}");
        }
        numbers
    };
    assert_eq!(at_once(vec![&old; 6]), [1; 6]);
    at_once([&old, &new].into_iter().cycle().take(6).collect());
}

#[test]
fn a_plan_that_something_else_came_before_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let (file, clock) = (store(&dir), ManualClock::at(5));
    let (old, new, third) = (manifest("one", 5), manifest("two", 5), manifest("three", 5));
    deploy(&file, &old);
    assert_eq!(deploy(&file, &new), 2);
    roll_back(&file, 1);
    let refusal = plan(&new, &new).deploy(&file, &clock).unwrap_err().to_string();
    assert_eq!(refusal, "generation 3 became active while this process was starting: start it again");
    let taken_up = plan(&new, &old);
    assert_eq!(taken_up.deploy(&file, &clock).unwrap(), 3);
    deploy(&file, &third);
    assert!(taken_up.deploy(&file, &clock).unwrap_err().to_string().starts_with("generation 4 became active"));
    assert_eq!(deploy(&file, &new), 5, "a deployment in between ends the rollback");
}

/// Of a process that is configured as `wanted` and runs `running`, the newest generation.
fn watch(store: &Embedded, wanted: &Manifest, running: &Manifest) -> Watch {
    Watch::new(&plan(wanted, running), generation(store, None).unwrap().unwrap().number)
}

fn told(watch: &mut Watch, store: &Embedded) -> Option<i32> {
    watch.look(store).unwrap().map(|newest| newest.number)
}

#[test]
fn a_running_process_is_told_once_of_a_rollback_that_a_start_would_take_up() {
    let dir = tempfile::tempdir().unwrap();
    let (file, old, new) = (store(&dir), manifest("one", 5), manifest("two", 5));
    deploy(&file, &old);
    let mut first = watch(&file, &old, &old);
    deploy(&file, &new);
    let mut second = watch(&file, &new, &new);
    assert_eq!((told(&mut first, &file), told(&mut second, &file)), (None, None));
    roll_back(&file, 1);
    assert_eq!((told(&mut first, &file), told(&mut second, &file), told(&mut second, &file)), (None, Some(3), None));
    file.add_generation(4, "rubbish").unwrap();
    assert!(first.look(&file).is_err() && first.look(&file).is_ok(), "told once");
}

#[test]
fn a_rollback_of_a_rollback_reaches_processes_that_were_configured_as_it_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (file, old, new, third) = (store(&dir), manifest("one", 5), manifest("two", 5), manifest("three", 5));
    deploy(&file, &old);
    deploy(&file, &new);
    roll_back(&file, 1);
    let mut stayed = watch(&file, &new, &old);
    let mut anew = watch(&file, &old, &old);
    roll_back(&file, 2);
    assert_eq!((told(&mut stayed, &file), told(&mut anew, &file)), (Some(4), Some(4)));
    for configured in [&old, &new] {
        assert_eq!(plan(configured, &new).deploy(&file, &ManualClock::at(5)).unwrap(), 4, "nobody deploys again what was left");
    }
    assert_eq!(deploy(&file, &third), 5, "another configuration is a deployment still");
}

#[test]
fn a_rollback_reaches_processes_that_have_run_since_before_a_replay() {
    let dir = tempfile::tempdir().unwrap();
    let (file, old, new) = (store(&dir), manifest("one", 5), manifest("two", 5));
    deploy(&file, &old);
    deploy(&file, &new);
    let mut running = watch(&file, &new, &new);
    assert_eq!(again(&file, &new, &ManualClock::at(5)).unwrap(), 3);
    assert_eq!(told(&mut running, &file), None, "a replay ends nobody");
    roll_back(&file, 1);
    assert_eq!(told(&mut running, &file), Some(4));
}
