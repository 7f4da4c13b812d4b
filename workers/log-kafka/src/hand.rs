//! The bounded hand-over from the thread that polls to the stage that works, and what both must agree on: which partitions are this
//! consumer's, which of them are being taken away, and what the stage holds of each.
//!
//! A partition that is taken away waits for the stage, up to a deadline: the batch in work may still be committed. Then the stage is told
//! (`revoked`), drops what it holds, and lets it go. Until it was told, it gets no further record, and a commit over the partition is
//! refused: even if the group has given it back meanwhile, its records come again from the group's position.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use endcap_runtime::{LogError, Received};

use crate::lock::lock;

/// How much is fetched ahead: beyond the first mark fetching stops, below half of it it goes on. Stopping throws away what librdkafka has
/// fetched, so it must not be done for every record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    pub(crate) records_max: usize,
    pub(crate) bytes_max: usize,
}

/// The hand-over.
pub(crate) struct Hand {
    ahead: Ahead,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Polled, not yet given to the stage.
    queue: VecDeque<Received>,
    bytes: usize,
    /// Whether fetching is stopped.
    full: bool,
    /// Whether the group has said which partitions are this consumer's, be it none.
    divided: bool,
    /// This consumer's partitions, those that are leaving included.
    owned: BTreeSet<i32>,
    /// Per partition, the offset behind the last record that was polled.
    next: BTreeMap<i32, i64>,
    /// Partitions whose end, as the brokers told it, was polled: nothing came after it since.
    ended: BTreeSet<i32>,
    /// Per partition, what the stage holds: offset and time of append, in order.
    given: BTreeMap<i32, VecDeque<(i64, i64)>>,
    /// How often partitions have left, and at which of these times each left last.
    departures: u64,
    left: BTreeMap<i32, u64>,
    /// Being taken away; the stage may still commit.
    leaving: BTreeSet<i32>,
    /// Taken away while the stage held records, and it was not told yet.
    gone: BTreeSet<i32>,
    trouble: Option<LogError>,
    closing: bool,
}

/// Records of one partition that the stage holds, and where what it has not seen begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) partition: i32,
    pub(crate) held: u64,
    /// When the oldest of them was appended, ms.
    pub(crate) oldest_ms: Option<i64>,
    /// Offset behind the last record that was polled; `None` before the first.
    pub(crate) next: Option<i64>,
    /// Whether nothing comes after that, as far as the brokers have told: not for as long as fetching is stopped.
    pub(crate) ended: bool,
}

impl Hand {
    pub(crate) fn new(ahead: Ahead) -> Self {
        Self { ahead, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How often partitions have left so far: what is polled from now on is put in with this number.
    pub(crate) fn departures(&self) -> u64 {
        self.lock().departures
    }

    /// Takes records in that were polled since so many `departures`. One of a partition that is not this consumer's is dropped, and one of a
    /// partition that has left since: even if it has come back, the record comes again from the group's position.
    pub(crate) fn put(&self, records: impl IntoIterator<Item = Received>, departures: u64) {
        let mut state = self.lock();
        for record in records {
            let has_left = state.left.get(&record.partition).is_some_and(|at| *at > departures);
            if state.owned.contains(&record.partition) && !state.leaving.contains(&record.partition) && !has_left {
                state.bytes += weight(&record);
                state.next.insert(record.partition, record.offset + 1);
                state.ended.remove(&record.partition);
                state.queue.push_back(record);
            }
        }
        state.full |= state.queue.len() >= self.ahead.records_max || state.bytes >= self.ahead.bytes_max;
        self.changed.notify_all();
    }

    /// Everything that the brokers have of `partition` was polled.
    pub(crate) fn at_end(&self, partition: i32) {
        let mut state = self.lock();
        if state.owned.contains(&partition) {
            state.ended.insert(partition);
        }
    }

    /// How many records still fit, waiting up to `patience` for room; `None` when there is none.
    pub(crate) fn room(&self, patience: Duration) -> Option<usize> {
        let has_none = |state: &mut State| state.full && !state.closing;
        let waited = self.changed.wait_timeout_while(self.lock(), patience, has_none);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (!state.full).then(|| self.ahead.records_max.saturating_sub(state.queue.len()).max(1))
    }

    /// The next records, at most `max`; waits up to `wait` for the first. Nothing while the stage has to be told of partitions.
    pub(crate) fn take(&self, max: usize, wait: Duration) -> Result<Vec<Received>, LogError> {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            if state.must_tell() {
                return Ok(Vec::new());
            }
            if !state.queue.is_empty() {
                let records = state.give(max, self.ahead);
                self.changed.notify_all();
                return Ok(records);
            }
            if let Some(trouble) = &state.trouble {
                return Err(again(trouble));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Vec::new());
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What keeps records from coming; `None` when they come again.
    pub(crate) fn tell_trouble(&self, trouble: Option<LogError>) {
        self.lock().trouble = trouble;
        self.changed.notify_all();
    }

    /// The group has given `partitions` to this consumer.
    pub(crate) fn assigned(&self, partitions: impl IntoIterator<Item = i32>) {
        let mut state = self.lock();
        state.divided = true;
        state.owned.extend(partitions);
    }

    /// Whether the group has said which partitions are this consumer's.
    pub(crate) fn is_divided(&self) -> bool {
        self.lock().divided
    }

    /// The group has given `partitions` to others already, and this consumer has to be given some anew.
    pub(crate) fn lose(&self, partitions: &[i32]) {
        let mut state = self.lock();
        state.divided = false;
        self.leave_from(state, partitions, Duration::ZERO);
    }

    /// The group takes `partitions` away. Comes back when the stage has let them go, or after `patience`.
    pub(crate) fn leave(&self, partitions: &[i32], patience: Duration) {
        self.leave_from(self.lock(), partitions, patience);
    }

    fn leave_from<'a>(&'a self, mut state: MutexGuard<'a, State>, partitions: &[i32], patience: Duration) {
        let deadline = Instant::now() + patience;
        state.departures += 1;
        let departures = state.departures;
        state.left.extend(partitions.iter().map(|partition| (*partition, departures)));
        state.forget_queued(partitions, self.ahead);
        let held: Vec<i32> = partitions.iter().copied().filter(|partition| state.holds(*partition)).collect();
        state.leaving.extend(&held);
        self.changed.notify_all();
        while !state.closing && held.iter().any(|partition| state.leaving.contains(partition) && state.holds(*partition)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        for partition in partitions {
            state.owned.remove(partition);
            state.next.remove(partition);
            state.ended.remove(partition);
            if state.leaving.remove(partition) && state.holds(*partition) {
                state.gone.insert(*partition);
            } else {
                state.given.remove(partition);
            }
        }
        self.changed.notify_all();
    }

    /// Tells the stage which partitions it has to let go; with the answer they are.
    pub(crate) fn revoked(&self) -> Vec<i32> {
        let mut state = self.lock();
        let mut told: BTreeSet<i32> = std::mem::take(&mut state.gone);
        told.extend(state.leaving.iter().copied().filter(|partition| state.holds(*partition)).collect::<Vec<_>>());
        for partition in &told {
            state.given.remove(partition);
            state.leaving.remove(partition);
        }
        self.changed.notify_all();
        told.into_iter().collect()
    }

    /// Those of `partitions` that a commit may not touch; the stage is told of them by this answer.
    pub(crate) fn refused(&self, partitions: impl IntoIterator<Item = i32>) -> Vec<i32> {
        let mut state = self.lock();
        let mut refused: Vec<i32> = Vec::new();
        for partition in partitions {
            if state.gone.remove(&partition) || !state.owned.contains(&partition) {
                state.given.remove(&partition);
                refused.push(partition);
            }
        }
        refused
    }

    /// A commit has moved the positions.
    pub(crate) fn committed(&self, through: &BTreeMap<i32, i64>) {
        let mut state = self.lock();
        for (partition, next) in through {
            if let Some(given) = state.given.get_mut(partition) {
                let done = given.partition_point(|(offset, _)| offset < next);
                given.drain(..done);
            }
        }
        let left: BTreeSet<i32> = state.gone.iter().copied().filter(|partition| state.holds(*partition)).collect();
        state.gone = left; // of the others nothing is left that would have to be dropped
        self.changed.notify_all();
    }

    /// What is held of each partition of this consumer, polled and not yet committed.
    pub(crate) fn holdings(&self) -> Vec<Holding> {
        let state = self.lock();
        let holding = |partition: i32| {
            let given = state.given.get(&partition).into_iter().flatten().copied();
            let queued = state.queue.iter().filter(|record| record.partition == partition);
            let all: Vec<(i64, i64)> = given.chain(queued.map(|record| (record.offset, record.appended_ms))).collect();
            Holding {
                partition,
                held: all.len() as u64,
                oldest_ms: all.first().map(|(_, appended_ms)| *appended_ms),
                next: state.next.get(&partition).copied(),
                ended: !state.full && state.ended.contains(&partition),
            }
        };
        state.owned.iter().copied().map(holding).collect()
    }

    /// Nobody waits for the stage any more.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.lock().closing
    }
}

impl State {
    /// Whether the stage holds what it has to drop before it gets more.
    fn must_tell(&self) -> bool {
        !self.gone.is_empty() || self.leaving.iter().any(|partition| self.holds(*partition))
    }

    fn holds(&self, partition: i32) -> bool {
        self.given.get(&partition).is_some_and(|given| !given.is_empty())
    }

    fn give(&mut self, max: usize, ahead: Ahead) -> Vec<Received> {
        let count = self.queue.len().min(max);
        let records: Vec<Received> = self.queue.drain(..count).collect();
        for record in &records {
            self.bytes -= weight(record);
            self.given.entry(record.partition).or_default().push_back((record.offset, record.appended_ms));
        }
        self.settle_mark(ahead);
        records
    }

    fn forget_queued(&mut self, partitions: &[i32], ahead: Ahead) {
        self.queue.retain(|record| !partitions.contains(&record.partition));
        self.bytes = self.queue.iter().map(weight).sum();
        self.settle_mark(ahead);
    }

    fn settle_mark(&mut self, ahead: Ahead) {
        self.full &= self.queue.len() > ahead.records_max / 2 || self.bytes > ahead.bytes_max / 2;
    }
}

/// Bytes that a record takes up here, roughly.
fn weight(record: &Received) -> usize {
    record.value.len() + record.key.len() + 256
}

/// The same trouble once more: errors are not cloned elsewhere.
fn again(trouble: &LogError) -> LogError {
    match trouble {
        LogError::Fenced(name) => LogError::Fenced(name.clone()),
        LogError::Refused(cause) => LogError::Refused(cause.clone()),
        LogError::Unavailable(cause) => LogError::Unavailable(cause.clone()),
        other => LogError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use endcap_runtime::Headers;
    use endcap_schemas::topics::Topic;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn record(partition: i32, offset: i64) -> Received {
        let headers = Headers::default();
        let (key, value) = ("default/anna".to_owned(), vec![0; 100]);
        Received { topic: Topic::EVENTS, partition, offset, appended_ms: offset * 10, key, headers, value }
    }

    /// A hand over partitions 0 and 1 with three records of each, all given to the stage.
    fn hand() -> Arc<Hand> {
        let hand = Hand::new(Ahead { records_max: 100, bytes_max: 1 << 20 });
        hand.assigned([0, 1]);
        for n in 0..3 {
            hand.put([record(0, n)], 0);
            hand.put([record(1, n)], 0);
        }
        assert_eq!(hand.take(10, Duration::ZERO).unwrap().len(), 6);
        Arc::new(hand)
    }

    fn places(records: &[Received]) -> Vec<(i32, i64)> {
        records.iter().map(|record| (record.partition, record.offset)).collect()
    }

    #[test]
    fn fetching_stops_at_the_mark_and_goes_on_at_half_of_it() {
        let hand = Hand::new(Ahead { records_max: 4, bytes_max: 1 << 20 });
        hand.assigned([0]);
        let stops = |hand: &Hand, n| {
            hand.put([record(0, n)], 0);
            hand.room(Duration::ZERO).is_none()
        };
        assert_eq!((0..4).map(|n| stops(&hand, n)).collect::<Vec<_>>(), [false, false, false, true]);
        hand.take(1, Duration::ZERO).unwrap();
        assert_eq!(hand.room(Duration::ZERO), None, "three of four is not half");
        hand.take(1, Duration::ZERO).unwrap();
        assert_eq!(hand.room(Duration::ZERO), Some(2));
        let heavy = Hand::new(Ahead { records_max: 100, bytes_max: 1_000 });
        heavy.assigned([0]);
        assert_eq!((0..3).map(|n| stops(&heavy, n)).collect::<Vec<_>>(), [false, false, true], "368 bytes each");
    }

    #[test]
    fn a_partition_that_leaves_waits_for_the_commit_of_what_is_held() {
        let hand = hand();
        let hook = {
            let hand = hand.clone();
            thread::spawn(move || hand.leave(&[1], LONG))
        };
        assert!(hand.take(10, LONG).unwrap().is_empty(), "the stage is woken and gets nothing more");
        assert!(hand.refused([0, 1]).is_empty(), "it may commit while the partition waits");
        hand.committed(&BTreeMap::from([(0, 1), (1, 3)]));
        hook.join().unwrap();
        assert!(hand.revoked().is_empty(), "everything is committed, there is nothing to drop");
        assert_eq!(hand.refused([0, 1]), [1]);
    }

    #[test]
    fn a_stage_that_was_told_lets_the_partition_go_at_once() {
        let hand = hand();
        let hook = {
            let hand = hand.clone();
            thread::spawn(move || hand.leave(&[1], LONG))
        };
        assert!(hand.take(10, LONG).unwrap().is_empty());
        assert_eq!(hand.revoked(), [1]);
        hook.join().unwrap();
        assert!(hand.revoked().is_empty(), "it is told once");
        hand.put([record(0, 3)], hand.departures());
        hand.put([record(1, 3)], hand.departures());
        assert_eq!(places(&hand.take(10, Duration::ZERO).unwrap()), [(0, 3)], "records that come late are dropped");
    }

    #[test]
    fn a_commit_over_a_lost_partition_is_refused_even_when_it_came_back() {
        let hand = hand();
        hand.lose(&[1]);
        hand.assigned([1]);
        hand.put([record(1, 0)], hand.departures());
        assert!(hand.take(10, Duration::ZERO).unwrap().is_empty(), "nothing new before the stage was told");
        assert_eq!(hand.refused([0, 1]), [1]);
        assert_eq!(places(&hand.take(10, Duration::ZERO).unwrap()), [(1, 0)], "its records come again");
        assert!(hand.refused([0, 1]).is_empty(), "and may be committed now");
        assert!(hand.revoked().is_empty());
    }

    #[test]
    fn a_record_that_was_polled_before_its_partition_left_is_dropped_even_when_it_came_back() {
        let hand = Hand::new(Ahead { records_max: 100, bytes_max: 1 << 20 });
        hand.assigned([0, 1]);
        let before = hand.departures();
        hand.lose(&[1]);
        hand.assigned([1]);
        hand.put([record(0, 0), record(1, 0)], before);
        hand.put([record(1, 0)], hand.departures());
        assert_eq!(places(&hand.take(10, Duration::ZERO).unwrap()), [(0, 0), (1, 0)]);
    }

    #[test]
    fn a_commit_that_was_under_way_when_its_partition_went_leaves_nothing_to_drop() {
        let hand = hand();
        assert!(hand.refused([0, 1]).is_empty());
        hand.lose(&[1]);
        hand.committed(&BTreeMap::from([(0, 3), (1, 3)]));
        assert!(hand.revoked().is_empty());
        assert_eq!(hand.refused([1]), [1], "the partition is gone all the same");
    }

    #[test]
    fn nobody_waits_for_a_stage_that_holds_nothing_or_has_ended() {
        let hand = hand();
        hand.committed(&BTreeMap::from([(1, 3)]));
        hand.put([record(1, 3)], 0);
        hand.leave(&[1], LONG);
        assert!(hand.take(10, Duration::ZERO).unwrap().is_empty(), "what was only queued is forgotten");
        hand.close();
        hand.leave(&[0], LONG);
        assert_eq!(hand.refused([0]), [0]);
    }

    #[test]
    fn whoever_was_given_no_partition_waits_for_none_and_whoever_lost_some_does() {
        let hand = Hand::new(Ahead { records_max: 1, bytes_max: 1 });
        assert!(!hand.is_divided());
        hand.assigned([]);
        assert!(hand.is_divided());
        hand.assigned([0]);
        hand.leave(&[0], LONG);
        assert!(hand.is_divided(), "the group has taken it away, and says what comes next at once");
        hand.lose(&[0]);
        assert!(!hand.is_divided());
    }

    #[test]
    fn what_is_held_is_counted_per_partition() {
        let hand = hand();
        hand.put([record(1, 3)], 0);
        hand.committed(&BTreeMap::from([(0, 3), (1, 2)]));
        let of = |partition, held, oldest_ms, next| Holding { partition, held, oldest_ms, next, ended: false };
        assert_eq!(hand.holdings(), [of(0, 0, None, Some(3)), of(1, 2, Some(20), Some(4))]);
    }

    #[test]
    fn an_end_that_was_told_holds_until_the_next_record_and_not_while_fetching_is_stopped() {
        let hand = Hand::new(Ahead { records_max: 2, bytes_max: 1 << 20 });
        hand.assigned([0]);
        let ended = || hand.holdings()[0].ended;
        hand.at_end(0);
        hand.at_end(1);
        assert_eq!((ended(), hand.holdings().len()), (true, 1), "the end of somebody else's partition says nothing");
        hand.put([record(0, 0)], 0);
        assert!(!ended());
        hand.at_end(0);
        assert!(ended());
        hand.put([record(0, 1)], 0);
        hand.at_end(0);
        assert!(!ended(), "enough waits: what comes now is not fetched");
        hand.take(2, Duration::ZERO).unwrap();
        assert!(ended());
        hand.lose(&[0]);
        hand.assigned([0]);
        assert!(!ended(), "a partition that came back has been elsewhere");
    }

    #[test]
    fn trouble_is_told_when_nothing_is_left_until_it_is_over() {
        let hand = Hand::new(Ahead { records_max: 4, bytes_max: 1 << 20 });
        hand.assigned([0]);
        hand.put([record(0, 0)], 0);
        hand.tell_trouble(Some(LogError::Unavailable("down".into())));
        assert_eq!(hand.take(10, LONG).unwrap().len(), 1, "what is there is given first");
        for _ in 0..2 {
            assert!(matches!(hand.take(10, LONG), Err(LogError::Unavailable(_))));
        }
        hand.tell_trouble(None);
        assert!(hand.take(10, Duration::ZERO).unwrap().is_empty());
    }
}
