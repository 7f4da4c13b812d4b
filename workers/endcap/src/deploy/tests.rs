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

fn deploy(store: &Embedded, wanted: &Manifest) -> Deployment {
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
            let each: Vec<_> = each.iter().map(|wanted| scope.spawn(|| deploy(&store(&dir), wanted).generation)).collect();
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
    assert_eq!(deploy(&file, &new), Deployment { generation: 2, configured: 2 });
    roll_back(&file, 1);
    let refusal = plan(&new, &new).deploy(&file, &clock).unwrap_err().to_string();
    assert_eq!(refusal, "generation 3 became active while this process was starting: start it again");
    let taken_up = plan(&new, &old);
    assert_eq!(taken_up.deploy(&file, &clock).unwrap(), Deployment { generation: 3, configured: 2 });
    deploy(&file, &third);
    assert!(taken_up.deploy(&file, &clock).unwrap_err().to_string().starts_with("generation 4 became active"));
    assert_eq!(deploy(&file, &new), Deployment { generation: 5, configured: 5 }, "a deployment in between ends the rollback");
}

#[test]
fn a_running_process_is_told_once_of_a_rollback_that_a_start_would_take_up() {
    let dir = tempfile::tempdir().unwrap();
    let file = store(&dir);
    let (first, second) = (deploy(&file, &manifest("one", 5)), deploy(&file, &manifest("two", 5)));
    let (mut old, mut new) = (Watch::new(first), Watch::new(second));
    let number = |watch: &mut Watch| watch.look(&file).unwrap().map(|newest| newest.number);
    assert_eq!((number(&mut old), number(&mut new)), (None, None));
    roll_back(&file, 1);
    assert_eq!((number(&mut old), number(&mut new), number(&mut new)), (None, Some(3), None));
    file.add_generation(4, "rubbish").unwrap();
    assert!(old.look(&file).is_err() && old.look(&file).is_ok(), "told once");
}
