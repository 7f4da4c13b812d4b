//! What every implementation of [`Log`] and [`Store`] keeps, as checks that any of them can be run against.
//!
//! A check panics with what was broken. They draw no randomness of their own and read no clock.

use std::{collections::BTreeMap, time::Duration};

use endcap_schemas::{UserKey, topics::Topic};

use crate::{
    Commit, DeadLetter, DropReason, Erasure, Headers, Log, LogError, Outgoing, Received, StageResult, Stamp, Store, Tally, Write,
};

/// Longest that a check waits for a record that must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A log with nothing in it, as [`check_log`] sees it.
pub trait LogUnderTest {
    /// A new consumer of `topic` for `group`, as a process that has just started would get it.
    fn consumer(&self, group: &str, topic: Topic) -> Box<dyn Log>;
    /// Appends records from outside, durably.
    fn append(&self, records: &[Outgoing]);
    /// How many dead letters there are.
    fn dead_letters(&self) -> Vec<DeadLetter>;
    /// The tally of a stage, as its commits added it up.
    fn tally(&self, stage: &str) -> Tally;
}

/// Checks the contract of [`Log`] on logs that `make` gives, each empty.
pub fn check_log<L: LogUnderTest>(make: impl Fn() -> L) {
    records_come_in_order_once_and_as_they_were(&make());
    a_commit_is_all_or_nothing(&make());
    what_was_not_committed_comes_again(&make());
    of_two_consumers_one_commits(&make());
    groups_do_not_disturb_each_other(&make());
}

/// A record for `user` with value `value`.
pub fn record(topic: Topic, user: &str, value: &[u8]) -> Outgoing {
    let id = format!("{user}-{}", String::from_utf8_lossy(value));
    Outgoing { topic, key: UserKey::of(user), headers: Headers::root(id, topic, 1_000), value: value.to_vec() }
}

/// Polls until `count` records came.
///
/// # Panics
/// When they do not come.
pub fn poll_all(log: &mut dyn Log, count: usize) -> Vec<Received> {
    let mut records = Vec::new();
    while records.len() < count {
        let polled = log.poll(count - records.len(), PATIENCE).expect("a poll is answered");
        assert!(!polled.is_empty(), "{count} records were appended, {} came", records.len());
        records.extend(polled);
    }
    records
}

/// A commit of everything up to and including `last`.
pub fn through(stage: &str, last: &Received) -> Commit {
    Commit { stage: stage.to_owned(), through: BTreeMap::from([(last.partition, last.offset + 1)]), ..Commit::default() }
}

fn values(records: &[Received]) -> Vec<&[u8]> {
    records.iter().map(|record| &record.value[..]).collect()
}

fn records_come_in_order_once_and_as_they_were(log: &impl LogUnderTest) {
    let mut sent = record(Topic::EVENTS, "anna", b"1");
    sent.headers.causation = Some("cause".to_owned());
    sent.headers.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let not_text = [0xC3, 0x01, 0x00, 0xFF];
    log.append(&[sent.clone(), record(Topic::EVENTS, "anna", b"2"), record(Topic::EVENTS, "anna", &not_text)]);
    let mut consumer = log.consumer("g", Topic::EVENTS);
    let got = poll_all(&mut *consumer, 3);
    assert_eq!(values(&got), [&b"1"[..], b"2", &not_text], "records of one key come in the order they were appended");
    assert!(got.windows(2).all(|pair| pair[0].offset < pair[1].offset), "offsets grow");
    assert_eq!((&got[0].headers, &got[0].key[..], got[0].topic), (&sent.headers, "default/anna", Topic::EVENTS));
    assert!(consumer.poll(10, Duration::ZERO).expect("an empty poll is answered").is_empty(), "a record comes once");
    assert_eq!(consumer.backlog().expect("a backlog is answered").waiting, 3, "polled is not done");
    consumer.commit(&through("s", &got[2])).expect("a commit is taken");
    assert_eq!(consumer.backlog().expect("a backlog is answered").waiting, 0);
    assert_eq!(consumer.backlog().expect("a backlog is answered").oldest_ms, None);
}

fn a_commit_is_all_or_nothing(log: &impl LogUnderTest) {
    log.append(&[
        record(Topic::CONTEXTS, "anna", b"a"),
        record(Topic::CONTEXTS, "bert", b"b"),
        record(Topic::CONTEXTS, "carl", b"c"),
    ]);
    let mut consumer = log.consumer("g", Topic::CONTEXTS);
    let mut late = log.consumer("g", Topic::CONTEXTS);
    let (got, same) = (poll_all(&mut *consumer, 3), poll_all(&mut *late, 3));
    let mut commit = through("s", &got[2]);
    commit.outputs = vec![record(Topic::THEMES, "anna", b"out")];
    commit.dead_letters = vec![letter(&got[1])];
    commit.tally.pass();
    commit.tally.dead_letter("malformed");
    commit.tally.drop_for(DropReason::Expired);
    commit.tally.count("tokens", 5);
    consumer.commit(&commit).expect("a commit is taken");

    let mut second = commit.clone();
    second.through = through("s", &same[2]).through;
    let refused = late.commit(&second);
    assert!(matches!(refused, Err(LogError::Conflict(_))), "a second commit of the same range conflicts: {refused:?}");
    assert_eq!(log.dead_letters(), [letter(&got[1])], "dead letters are those of the one commit, with all they had");
    assert_eq!(log.tally("s"), commit.tally, "the tally is that of the one commit");
    assert_eq!(values(&poll_all(&mut *log.consumer("h", Topic::THEMES), 1)), [b"out"]);
    let mut next = log.consumer("h", Topic::THEMES);
    assert_eq!(next.backlog().expect("a backlog is answered").waiting, 1, "no output was written twice");
    assert!(poll_all(&mut *next, 1)[0].headers.id == "anna-out");
}

fn letter(record: &Received) -> DeadLetter {
    DeadLetter {
        record: record.clone(),
        group: "g".to_owned(),
        stage: "s".to_owned(),
        attempts: 2,
        kind: "malformed".to_owned(),
        message: "not a message".to_owned(),
    }
}

fn what_was_not_committed_comes_again(log: &impl LogUnderTest) {
    let all: Vec<_> = (0..10).map(|n| record(Topic::EVENTS, "anna", format!("{n}").as_bytes())).collect();
    log.append(&all);
    let mut first = log.consumer("g", Topic::EVENTS);
    let got = poll_all(&mut *first, 10);
    first.commit(&through("s", &got[3])).expect("a commit is taken");
    drop(first);
    let again = poll_all(&mut *log.consumer("g", Topic::EVENTS), 6);
    assert_eq!(again, got[4..], "a new consumer begins behind the last commit");
}

fn of_two_consumers_one_commits(log: &impl LogUnderTest) {
    log.append(&[record(Topic::EVENTS, "anna", b"1"), record(Topic::EVENTS, "anna", b"2")]);
    let (mut a, mut b) = (log.consumer("g", Topic::EVENTS), log.consumer("g", Topic::EVENTS));
    let (got_a, got_b) = (poll_all(&mut *a, 2), poll_all(&mut *b, 1));
    a.commit(&through("s", &got_a[0])).expect("the first commit is taken");
    assert!(matches!(b.commit(&through("s", &got_b[0])), Err(LogError::Conflict(_))), "the second one is not");
    let rest = poll_all(&mut *b, 1);
    assert_eq!(values(&rest), [b"2"], "the loser goes on behind the winner");
    b.commit(&through("s", &rest[0])).expect("and commits what is left");
    assert!(matches!(a.commit(&through("s", &got_a[1])), Err(LogError::Conflict(_))), "so that the winner is the loser now");
}

fn groups_do_not_disturb_each_other(log: &impl LogUnderTest) {
    log.append(&[record(Topic::EVENTS, "anna", b"1")]);
    let mut one = log.consumer("one", Topic::EVENTS);
    let got = poll_all(&mut *one, 1);
    one.commit(&through("s", &got[0])).expect("a commit is taken");
    assert_eq!(values(&poll_all(&mut *log.consumer("two", Topic::EVENTS), 1)), [b"1"]);
}

/// Checks the contract of [`Store`] on stores that `make` gives, each empty.
pub fn check_store<S: Store>(make: impl Fn() -> S) {
    the_greatest_write_stays_whatever_the_order(&make);
    an_erased_user_stays_erased(&make());
    results_are_the_latest_of_each_stage_in_path_order(&make());
    caches_answer_in_order(&make());
}

/// Checks that a store ends in the same rows whatever the order and repetition of `writes`: `orders` holds lists of places in `writes`,
/// each of which must name every place at least once.
///
/// # Panics
/// When two orders end differently.
pub fn check_any_order<S: Store>(make: impl Fn() -> S, writes: &[Write], orders: &[Vec<usize>]) {
    let ends: Vec<_> = orders
        .iter()
        .map(|order| {
            let store = make();
            for place in order {
                store.put_all(&writes[*place..=*place], &[]).expect("a write is taken");
            }
            rows(&store, writes)
        })
        .collect();
    for (order, end) in orders.iter().zip(&ends) {
        assert_eq!(end, &ends[0], "order {order:?} ends differently from {:?}", orders[0]);
    }
}

/// State, page with its stamp, and erasure of every user that `writes` names.
type Rows = BTreeMap<UserKey, (Option<Vec<u8>>, Option<(Stamp, Option<Vec<u8>>)>, Option<Erasure>)>;

fn rows(store: &impl Store, writes: &[Write]) -> Rows {
    writes
        .iter()
        .map(|write| match write {
            Write::State { user, .. } | Write::Page { user, .. } | Write::Erase { user, .. } => user,
        })
        .map(|user| {
            let page = store.page(user).expect("a read is answered").map(|page| (page.stamp, page.page));
            let state = store.state(user).expect("a read is answered");
            (user.clone(), (state, page, store.erasure(user).expect("a read is answered")))
        })
        .collect()
}

fn state(user: &str, stamp: i64, state: &[u8]) -> Write {
    Write::State { user: UserKey::of(user), stamp: Stamp(stamp), state: state.to_vec() }
}

fn page(user: &str, stamp: i64, page: Option<&[u8]>) -> Write {
    Write::Page { user: UserKey::of(user), stamp: Stamp(stamp), page: page.map(<[u8]>::to_vec) }
}

fn the_greatest_write_stays_whatever_the_order<S: Store>(make: &impl Fn() -> S) {
    let anna = UserKey::of("anna");
    let writes = [
        state("anna", 5, b"old"),
        state("anna", 7, b"b"),
        state("anna", 7, b"a"),
        page("anna", 7, Some(b"page")),
        page("anna", 6, None),
    ];
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]] {
        let store = make();
        for place in order.into_iter().chain(order) {
            store.put_all(&writes[place..=place], &[]).expect("a write is taken");
        }
        assert_eq!(store.state(&anna).expect("a read is answered").as_deref(), Some(&b"b"[..]), "order {order:?}");
        let stored = store.page(&anna).expect("a read is answered").expect("the page is there");
        assert_eq!((stored.stamp, stored.page.as_deref()), (Stamp(7), Some(&b"page"[..])), "order {order:?}");
    }
    let store = make();
    store.put_all(&[page("anna", 7, Some(b"page")), page("anna", 8, None)], &[]).expect("a write is taken");
    assert_eq!(
        store.page(&anna).expect("a read is answered").map(|p| p.page),
        Some(None),
        "a withdrawn page is remembered as withdrawn"
    );
    assert_eq!(store.state(&UserKey::of("bert")).expect("a read is answered"), None);
}

fn an_erased_user_stays_erased(store: &impl Store) {
    let anna = UserKey::of("anna");
    store.put_all(&[state("anna", 5, b"s"), page("anna", 5, Some(b"p")), state("bert", 5, b"s")], &[]).expect("a write is taken");
    store.put_all(&[], &[result("anna", "context", 5)]).expect("a result is taken");
    store.put_all(&[Write::Erase { user: anna.clone(), stamp: Stamp(10), at: Some((0, 8)) }], &[]).expect("an erasure is taken");
    store
        .put_all(&[Write::Erase { user: anna.clone(), stamp: Stamp(9), at: Some((0, 9)) }], &[])
        .expect("an older erasure is taken");
    store.put_all(&[state("anna", 10, b"late"), page("anna", 9, Some(b"late"))], &[]).expect("a late write is taken");
    store.put_all(&[], &[result("anna", "themes", 10)]).expect("a late result is taken");
    let erasure = Erasure { stamp: Stamp(10), at: Some((0, 8)) };
    assert_eq!(store.erasure(&anna).expect("a read is answered"), Some(erasure));
    assert_eq!(store.state(&anna).expect("a read is answered"), None);
    assert_eq!(store.page(&anna).expect("a read is answered"), None);
    assert!(store.results(&anna).expect("a read is answered").is_empty());
    assert!(store.state(&UserKey::of("bert")).expect("a read is answered").is_some(), "others stay");
    store.put_all(&[state("anna", 11, b"new")], &[]).expect("a write is taken");
    assert_eq!(
        store.state(&anna).expect("a read is answered").as_deref(),
        Some(&b"new"[..]),
        "a new life begins after the erasure"
    );
}

fn result(user: &str, stage: &str, stamp: i64) -> StageResult {
    StageResult {
        user: UserKey::of(user),
        stage: stage.to_owned(),
        stamp: Stamp(stamp),
        explanation: format!("{{\"stamp\":{stamp}}}"),
        at_ms: stamp,
    }
}

fn results_are_the_latest_of_each_stage_in_path_order(store: &impl Store) {
    let results =
        [result("anna", "aiqa", 2), result("anna", "themes", 3), result("anna", "context", 9), result("anna", "themes", 1)];
    store.put_all(&[], &results).expect("results are taken");
    let got = store.results(&UserKey::of("anna")).expect("a read is answered");
    assert_eq!(got, [results[2].clone(), results[1].clone(), results[0].clone()]);
}

fn caches_answer_in_order(store: &impl Store) {
    store.remember("c", &[([1; 32], b"one".to_vec()), ([2; 32], b"two".to_vec())]).expect("answers are taken");
    store.remember("c", &[([1; 32], b"uno".to_vec())]).expect("answers are taken");
    let got = store.cached("c", &[[2; 32], [3; 32], [1; 32]]).expect("a read is answered");
    assert_eq!(got, [Some(b"two".to_vec()), None, Some(b"uno".to_vec())]);
    assert_eq!(store.cached("d", &[[1; 32]]).expect("a read is answered"), [None], "caches are apart");
}
