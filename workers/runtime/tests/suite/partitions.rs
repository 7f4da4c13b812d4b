//! The loop on a log whose partitions come and go, with a toy log that takes one away when it is told to.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use endcap_runtime::{Backlog, Commit, Log, LogError, Outgoing, Received, Shutdown, StageError};
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
    /// Partition 1, told when a batch of everything has been put off.
    WhileItRests,
}

/// Two partitions that take turns, all polled at once; a second poll ends the run.
struct Partitioned {
    records: Vec<Received>,
    takes: Takes,
    commits: Arc<Mutex<Vec<Commit>>>,
    told: bool,
    /// Commits that are refused first, as the log is down.
    down: u32,
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
        if let Some(less) = self.down.checked_sub(1) {
            self.down = less;
            return Err(LogError::Unavailable("toy log is down".into()));
        }
        let gone: &[i32] = match self.takes {
            Takes::AtCommit => &[1],
            Takes::Everything => &[0, 1],
            Takes::Between | Takes::WhileItRests => &[],
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
        let is_time = match self.takes {
            Takes::Between => !self.commits.lock().unwrap().is_empty(),
            Takes::WhileItRests => self.records.is_empty(),
            _ => false,
        };
        let due = is_time && !self.told;
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
    let log = Partitioned { records: records(), takes, commits: commits.clone(), told: false, down: 0, shutdown };
    let note = seen.clone();
    let mut stage = Toy::<Compose>::with(move |batch| {
        note.lock().unwrap().extend(batch.iter().map(|input| input.value.head.user.user.clone()));
        Ok(None)
    });
    endcap_runtime::run_stage(&mut stage, Box::new(log), &bench.env).unwrap();
    let taken = bench.env.stats.snapshot().live.tally;
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

/// What does not answer to the backfill lane, once.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Silent {
    Erasures,
    Model,
    Store,
    Commit,
}

#[test]
fn a_batch_that_was_put_off_goes_on_without_the_partition_that_went_away_meanwhile() {
    let (all, left) = (["u0", "u1", "u2", "u3", "u4", "u5"], ["u0", "u2", "u4"]);
    for (silent, asked) in [
        (Silent::Erasures, left.to_vec()),
        (Silent::Model, [&all[..], &left].concat()),
        (Silent::Store, all.to_vec()),
        (Silent::Commit, all.to_vec()),
    ] {
        let mut bench = Bench::new();
        let commits: Arc<Mutex<Vec<Commit>>> = Arc::default();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (down, shutdown) = (u32::from(silent == Silent::Commit), Shutdown::new());
        let takes = Takes::WhileItRests;
        let log = Partitioned { records: records(), takes, commits: commits.clone(), told: false, down, shutdown };
        bench.faults.store.store(u32::from(silent == Silent::Erasures), Ordering::SeqCst);
        let (note, faults, mut first) = (seen.clone(), bench.faults.clone(), true);
        let stage = Toy::<Compose>::with(move |batch| {
            note.lock().unwrap().extend(batch.iter().map(|input| input.value.head.user.user.clone()));
            match silent {
                Silent::Model if std::mem::take(&mut first) => {
                    return Err(StageError::Unavailable("model", "warming up".into()));
                }
                Silent::Store => faults.store.store(1, Ordering::SeqCst),
                _ => {}
            }
            Ok(None)
        });
        let done = commits.clone();
        bench.run_lanes_over(Box::new(log), stage, Duration::from_secs(1), move || !done.lock().unwrap().is_empty());
        let commits = commits.lock().unwrap();
        assert_eq!(*seen.lock().unwrap(), asked, "{silent:?}");
        assert_eq!(commits.len(), 1, "{silent:?}");
        assert_eq!((users(&commits[0]), &commits[0].through), (left.to_vec(), &BTreeMap::from([(0, 3)])), "{silent:?}");
        let (told, tally) = (bench.env.stats.snapshot().backfill, &commits[0].tally);
        assert_eq!((tally.received, tally.passed, told.tally.received, told.held), (3, 3, 3, 0), "{silent:?}");
    }
}
