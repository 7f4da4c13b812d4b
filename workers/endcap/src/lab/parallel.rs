//! Independent jobs on several threads, with their results in order.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// The results of jobs 0…`count`, in that order whoever did them; `done` hears after each how many there are.
pub(super) fn in_parallel<T: Send>(
    count: usize,
    threads: usize,
    job: impl Fn(usize) -> T + Sync,
    mut done: impl FnMut(usize),
) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    thread::scope(|scope| {
        let (give, take) = mpsc::sync_channel(threads);
        for _ in 0..threads.min(count) {
            let (give, next, job) = (give.clone(), &next, &job);
            scope.spawn(move || {
                loop {
                    let mine = next.fetch_add(1, Ordering::Relaxed);
                    // Nobody takes results any more where the taking thread has panicked.
                    if mine >= count || give.send((mine, job(mine))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(give);
        for (ready, (index, result)) in take.into_iter().enumerate() {
            results[index] = Some(result);
            done(ready + 1);
        }
    });
    // A job that panicked has ended the scope with its panic.
    results.into_iter().map(|result| result.expect("every job was done")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_whatever_the_number_of_threads() {
        for (count, threads) in [(0, 3), (1, 3), (100, 1), (100, 7)] {
            let mut heard = Vec::new();
            let results = in_parallel(count, threads, |job| job * job, |ready| heard.push(ready));
            assert_eq!(results, (0..count).map(|job| job * job).collect::<Vec<_>>(), "{count} jobs, {threads} threads");
            assert_eq!(heard, (1..=count).collect::<Vec<_>>());
        }
    }
}
