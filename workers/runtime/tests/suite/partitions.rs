//! The loop on a log whose partitions come and go, with a toy log that takes one away when it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use endcap_runtime::{Backlog, Commit, Log, LogError, Outgoing, Received, Shutdown};
use endcap_schemas::ThemesWritten;

use crate::toys::{Bench, Compose, NOW_MS, Toy, context, sent};

/// What the toy log takes away, and when.
#[derive(Clone, Copy, PartialEq)]
enum Takes {
    /// Partition 1, by refusing the first commit that holds it.
    AtCommit,
    /// Partition 1, told after the first commit.
    Between,
    /// Both, by refusing the first commit.
    Everything,
}

/// Two partitions that take turns, all polled at once; a second poll ends the run.
struct Partitioned {
    records: Vec<Received>,
    takes: Takes,
    commits: Arc<Mutex<Vec<Commit>>>,
    told: bool,
    shutdown: Shutdown,
}

impl Log for Partitioned {
    fn poll(&mut self, _: usize, _: Duration) -> Result<Vec<Received>, LogError> {
        if self.records.is_empty() && !self.commits.lock().unwrap().is_empty() {
            self.shutdown.trigger();
        }
        Ok(std::mem::take(&mut self.records))
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        let gone: &[i32] = match self.takes {
            Takes::AtCommit => &[1],
            Takes::Everything => &[0, 1],
            Takes::Between => &[],
        };
        let taken: Vec<i32> = gone.iter().copied().filter(|partition| commit.through.contains_key(partition)).collect();
        if !taken.is_empty() {
            if self.takes == Takes::Everything {
                self.shutdown.trigger();
            }
            return Err(LogError::Revoked { group: "g".into(), partitions: taken });
        }
        self.commits.lock().unwrap().push(commit.clone());
        Ok(())
    }

    fn backlog(&mut self) -> Result<Backlog, LogError> {
        Ok(Backlog::default())
    }

    fn revoked(&mut self) -> Vec<i32> {
        let due = self.takes == Takes::Between && !self.told && !self.commits.lock().unwrap().is_empty();
        self.told |= due;
        if due { vec![1] } else { Vec::new() }
    }

    fn group(&self) -> &str {
        "g"
    }
}

/// Users u0…u5, the even ones in partition 0.
fn records() -> Vec<Received> {
    let received = |n: i64| {
        let Outgoing { topic, key, headers, value } = sent(&context(&format!("u{n}"), NOW_MS, "e"), &format!("r{n}"));
        let (partition, offset) = (i32::try_from(n % 2).unwrap(), n / 2);
        Received { topic, partition, offset, appended_ms: NOW_MS, key: key.to_string(), headers, value }
    };
    (0..6).map(received).collect()
}

/// Runs a stage on the toy log in batches of at most `batch`; answers its commits and the users whom the stage saw.
fn run(takes: Takes, batch: usize) -> (Vec<Commit>, Vec<String>) {
    let mut bench = Bench::new();
    bench.env.config.batch_records_max = batch;
    let (commits, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
    let shutdown = bench.env.shutdown.clone();
    let mut log = Partitioned { records: records(), takes, commits: commits.clone(), told: false, shutdown };
    let note = seen.clone();
    let mut stage = Toy::<Compose>::with(move |batch| {
        note.lock().unwrap().extend(batch.iter().map(|input| input.value.head.user.user.clone()));
        Ok(None)
    });
    endcap_runtime::run_stage(&mut stage, &mut log, &bench.env).unwrap();
    let taken = bench.env.stats.snapshot().tally;
    let committed: u64 = commits.lock().unwrap().iter().map(|commit| commit.tally.received).sum();
    assert_eq!(taken.received, committed, "only what was committed is counted");
    let (commits, seen) = (commits.lock().unwrap().clone(), seen.lock().unwrap().clone());
    (commits, seen)
}

fn users(commit: &Commit) -> Vec<&str> {
    commit.outputs.iter().map(|output| output.key.user.as_str()).collect()
}

#[test]
fn a_commit_goes_through_without_the_partition_that_went_away() {
    let (commits, seen) = run(Takes::AtCommit, 64);
    assert_eq!(seen.len(), 6);
    assert_eq!(commits.len(), 1);
    assert_eq!((users(&commits[0]), &commits[0].through), (vec!["u0", "u2", "u4"], &BTreeMap::from([(0, 3)])));
    assert!(commits[0].outputs.iter().all(|output| output.topic == <ThemesWritten as endcap_schemas::Message>::TOPIC));
    let tally = &commits[0].tally;
    assert_eq!((tally.received, tally.passed, tally.counters["hops"], tally.batches), (3, 3, 3, 1));
}

#[test]
fn records_that_are_held_of_a_partition_that_goes_never_reach_the_stage() {
    let (commits, seen) = run(Takes::Between, 2);
    assert_eq!(seen, ["u0", "u1", "u2", "u4"]);
    assert_eq!(commits.iter().map(users).collect::<Vec<_>>(), [vec!["u0", "u1"], vec!["u2", "u4"]]);
    assert_eq!(commits[1].through, BTreeMap::from([(0, 3)]));
}

#[test]
fn nothing_is_committed_of_a_batch_whose_partitions_are_all_gone() {
    let (commits, seen) = run(Takes::Everything, 64);
    assert_eq!((commits.len(), seen.len()), (0, 6));
}
