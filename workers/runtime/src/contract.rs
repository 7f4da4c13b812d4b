//! What every implementation of [`Log`] and [`Store`] keeps, as checks that any of them can be run against.
//!
//! A check panics with what was broken. They draw no randomness of their own and read no clock.

mod convergence;

use std::{collections::BTreeMap, thread, time::Duration};

pub use convergence::check_schedules;
use endcap_schemas::{
    UserKey,
    topics::{Lane, Topic},
};

use crate::{
    Broker, Commit, DeadLetter, DeadLetterFilter, DeadLetterId, DropReason, Erasure, Headers, Log, LogError, Outgoing,
    PAGE_MAX_BYTES, Policies, ROW_MAX_BYTES, Received, StageResult, Stamp, Store, StoreError, StoreOverview, StoredDeadLetter,
    StoredPage, StoredPolicy, Write,
};

/// Longest that a check waits for a record that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// So many records fill any log under test.
const FILLING_MAX: usize = 5_000;
/// How often and how long a check polls a log on which nothing happens until its measures are exact.
const QUIET_POLLS: usize = 100;
const QUIET: Duration = Duration::from_millis(50);

/// A log with nothing in it, as [`check_log`] sees it.
pub trait LogUnderTest {
    /// A new consumer of `topic` for `group`, as a process that has just started would get it.
    fn consumer(&self, group: &str, topic: Topic) -> Box<dyn Log>;
    /// The log as a whole.
    fn broker(&self) -> &dyn Broker;
}

/// Checks the contract of [`Log`] on logs that `make` gives, each empty.
pub fn check_log<L: LogUnderTest>(make: impl Fn() -> L) {
    records_come_in_order_once_and_as_they_were(&make());
    a_commit_is_all_or_nothing(&make());
    what_was_not_committed_comes_again(&make());
    groups_do_not_disturb_each_other(&make());
}

/// Checks what a log keeps whose consumers of one group read the same records.
pub fn check_rivals<L: LogUnderTest>(make: impl Fn() -> L) {
    a_commit_of_the_same_records_is_refused(&make());
    of_two_consumers_one_commits(&make());
}

/// Checks the contract of [`Broker`] on logs that `make` gives, each empty.
pub fn check_broker<L: LogUnderTest>(make: impl Fn() -> L) {
    progress_is_noted_with_its_records(&make());
    what_was_refused_is_kept_and_counted_beside_what_was_taken(&make());
    groups_and_ends_tell_how_far_the_work_is(&make());
    dead_letters_are_listed_shown_and_sent_again(&make());
    a_letter_that_came_under_anothers_key_goes_back_under_its_users(&make());
    lanes_are_apart(&make());
}

/// Checks that a full log takes nothing but what insists, on a log that `make` gives empty and that takes few records until they are read.
pub fn check_full<L: LogUnderTest>(make: impl Fn() -> L) {
    an_erasure_enters_a_full_log(&make());
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

/// A commit of everything in the partition of `last` up to and including it.
pub fn through(stage: &str, last: &Received) -> Commit {
    through_all(stage, std::slice::from_ref(last))
}

/// A commit of `records`, which stand in offset order per partition, and of all before them.
pub fn through_all(stage: &str, records: &[Received]) -> Commit {
    let through = records.iter().map(|record| (record.partition, record.offset + 1)).collect();
    Commit { stage: stage.to_owned(), through, ..Commit::default() }
}

fn values(records: &[Received]) -> Vec<&[u8]> {
    records.iter().map(|record| &record.value[..]).collect()
}

fn records_come_in_order_once_and_as_they_were(log: &impl LogUnderTest) {
    let mut sent = record(Topic::EVENTS, "anna", b"1");
    sent.headers.causation = Some("cause".to_owned());
    sent.headers.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned());
    let not_text = [0xC3, 0x01, 0x00, 0xFF];
    append(log, &[sent.clone(), record(Topic::EVENTS, "anna", b"2"), record(Topic::EVENTS, "anna", &not_text)]);
    let mut consumer = log.consumer("g", Topic::EVENTS);
    let got = poll_all(&mut *consumer, 3);
    assert_eq!(values(&got), [&b"1"[..], b"2", &not_text], "records of one key come in the order they were appended");
    assert!(got.windows(2).all(|pair| pair[0].offset < pair[1].offset), "offsets grow");
    assert!(got.windows(2).all(|pair| pair[0].partition == pair[1].partition), "records of one key share a partition");
    assert_eq!((&got[0].headers, &got[0].key[..], got[0].topic), (&sent.headers, "default/anna", Topic::EVENTS));
    assert!(consumer.poll(10, Duration::ZERO).expect("an empty poll is answered").is_empty(), "a record comes once");
    check_waiting(&mut *consumer, 3, "polled is not done");
    consumer.commit(&through("s", &got[2])).expect("a commit is taken");
    check_waiting(&mut *consumer, 0, "what is committed is done");
    assert_eq!(consumer.backlog().expect("a backlog is answered").oldest_ms, None);
}

fn append(log: &impl LogUnderTest, records: &[Outgoing]) {
    log.broker().append(records, None).expect("records are taken");
}

/// Checks that `count` records wait once the log is quiet, in which no further one comes.
fn check_waiting(consumer: &mut dyn Log, count: u64, why: &str) {
    let mut last = 0;
    for _ in 0..QUIET_POLLS {
        last = consumer.backlog().expect("a backlog is answered").waiting;
        if last == count {
            return;
        }
        assert!(consumer.poll(1, QUIET).expect("an empty poll is answered").is_empty(), "a record comes once");
    }
    panic!("{last} records wait in place of {count}: {why}");
}

/// Three records of different users.
fn three(log: &impl LogUnderTest) {
    append(
        log,
        &[record(Topic::CONTEXTS, "anna", b"a"), record(Topic::CONTEXTS, "bert", b"b"), record(Topic::CONTEXTS, "carl", b"c")],
    );
}

/// A commit of `got` with an output and a dead letter.
fn full_commit(got: &[Received]) -> Commit {
    let mut commit = through_all("s", got);
    commit.outputs = vec![record(Topic::THEMES, "anna", b"out")];
    commit.dead_letters = vec![letter(&got[1])];
    commit.tally.pass();
    commit.tally.dead_letter("malformed");
    commit.tally.drop_for(DropReason::Expired);
    commit.tally.count("tokens", 5);
    commit
}

fn check_written_once(log: &impl LogUnderTest, commit: &Commit) {
    let letters = log.broker().dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    let whole: Vec<DeadLetter> = letters.iter().map(|letter| whole(log, &letter.id)).collect();
    assert_eq!(whole, commit.dead_letters, "dead letters are those of the one commit, with all they had");
    assert_eq!(log.broker().tallies().expect("tallies are read")["s"], commit.tally, "the tally is that of the one commit");
    let mut next = log.consumer("h", Topic::THEMES);
    let out = poll_all(&mut *next, 1);
    assert_eq!((&out[0].value[..], &out[0].headers.id[..]), (&b"out"[..], "anna-out"));
    check_waiting(&mut *next, 1, "no output was written twice");
}

fn whole(log: &impl LogUnderTest, id: &DeadLetterId) -> DeadLetter {
    let letter = log.broker().dead_letter(id).expect("a dead letter is read").expect("a listed dead letter is there");
    let StoredDeadLetter { partition, offset, appended_ms, key, headers, value, group, stage, attempts, kind, message, .. } =
        letter;
    let topic = Topic::named(&letter.topic).expect("a topic of the path");
    let record = Received { topic, partition, offset, appended_ms, key, headers, value };
    DeadLetter { record, group, stage, attempts, kind, message }
}

fn a_commit_is_all_or_nothing(log: &impl LogUnderTest) {
    three(log);
    let mut consumer = log.consumer("g", Topic::CONTEXTS);
    let commit = full_commit(&poll_all(&mut *consumer, 3));
    consumer.commit(&commit).expect("a commit is taken");
    check_waiting(&mut *consumer, 0, "what is committed is done");
    check_written_once(log, &commit);
}

fn a_commit_of_the_same_records_is_refused(log: &impl LogUnderTest) {
    three(log);
    let mut consumer = log.consumer("g", Topic::CONTEXTS);
    let mut late = log.consumer("g", Topic::CONTEXTS);
    let (got, same) = (poll_all(&mut *consumer, 3), poll_all(&mut *late, 3));
    let commit = full_commit(&got);
    consumer.commit(&commit).expect("a commit is taken");
    let refused = late.commit(&full_commit(&same));
    assert!(matches!(refused, Err(LogError::Conflict(_))), "a second commit of the same range conflicts: {refused:?}");
    check_written_once(log, &commit);
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
    append(log, &all);
    let mut first = log.consumer("g", Topic::EVENTS);
    let got = poll_all(&mut *first, 10);
    first.commit(&through("s", &got[3])).expect("a commit is taken");
    drop(first);
    let again = poll_all(&mut *log.consumer("g", Topic::EVENTS), 6);
    assert_eq!(again, got[4..], "a new consumer begins behind the last commit");
}

fn of_two_consumers_one_commits(log: &impl LogUnderTest) {
    append(log, &[record(Topic::EVENTS, "anna", b"1"), record(Topic::EVENTS, "anna", b"2")]);
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
    append(log, &[record(Topic::EVENTS, "anna", b"1")]);
    let mut one = log.consumer("one", Topic::EVENTS);
    let got = poll_all(&mut *one, 1);
    one.commit(&through("s", &got[0])).expect("a commit is taken");
    assert_eq!(values(&poll_all(&mut *log.consumer("two", Topic::EVENTS), 1)), [b"1"]);
}

fn progress_is_noted_with_its_records(log: &impl LogUnderTest) {
    let broker = log.broker();
    let noted = |name: &str| broker.progress(name).expect("progress is read");
    assert_eq!(noted("import"), None);
    broker.append(&[record(Topic::EVENTS, "anna", b"1")], Some(("import", "1"))).expect("records are taken");
    broker.append(&[], Some(("other", "9"))).expect("progress alone is taken");
    broker.append(&[record(Topic::EVENTS, "anna", b"2")], Some(("import", "2"))).expect("records are taken");
    assert_eq!((noted("import").as_deref(), noted("other").as_deref()), (Some("2"), Some("9")));
    let got = poll_all(&mut *log.consumer("g", Topic::EVENTS), 2);
    assert_eq!(values(&got), [b"1", b"2"]);
}

fn what_was_refused_is_kept_and_counted_beside_what_was_taken(log: &impl LogUnderTest) {
    let broker = log.broker();
    let refused = |value: &[u8]| {
        let record = record(Topic::EVENTS, "anna", value);
        let record = Received {
            topic: Topic::EVENTS,
            partition: 0,
            offset: -1,
            appended_ms: 7,
            key: record.key.to_string(),
            headers: record.headers,
            value: value.to_vec(),
        };
        DeadLetter { stage: crate::INGEST.to_owned(), ..letter(&record) }
    };
    broker.admit(&[record(Topic::EVENTS, "anna", b"1")], &[refused(b"{")]).expect("both are kept");
    broker.admit(&[], &[refused(b"}")]).expect("a refused one alone is kept");
    let tally = &broker.tallies().expect("tallies are read")[crate::INGEST];
    assert_eq!((tally.received, tally.passed, tally.dead_lettered_total()), (3, 1, 2));
    let counts = broker.dead_letter_counts().expect("dead letters are counted");
    assert_eq!(counts, BTreeMap::from([((crate::INGEST.to_owned(), "malformed".to_owned()), 2)]));
    let listed = broker.dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    let kept: Vec<DeadLetter> = listed.iter().map(|letter| whole(log, &letter.id)).collect();
    assert_eq!(kept, [refused(b"}"), refused(b"{")], "newest first");
    assert_eq!(values(&poll_all(&mut *log.consumer("g", Topic::EVENTS), 1)), [b"1"]);
}

fn an_erasure_enters_a_full_log(log: &impl LogUnderTest) {
    let broker = log.broker();
    let mut consumer = broker.consumer("endcap.context.live", Topic::EVENTS).expect("a consumer");
    // A log may look at its room from time to time only.
    let mut taken = 0;
    let refused = loop {
        match broker.admit(&[record(Topic::EVENTS, "anna", format!("{taken}").as_bytes())], &[]) {
            Ok(()) if taken < FILLING_MAX => taken += 1,
            answer => break answer,
        }
    };
    assert!(matches!(refused, Err(LogError::Full { .. })), "{refused:?} after {taken} records");
    broker.insist(&[record(Topic::EVENTS, "bert", b"erase")]).expect("what insists is taken");
    let again = broker.append(&[record(Topic::EVENTS, "anna", b"more")], None);
    assert!(matches!(again, Err(LogError::Full { .. })), "{again:?}");
    let got = poll_all(&mut *consumer, taken + 1);
    assert!(values(&got).contains(&&b"erase"[..]), "it came in");
    assert_eq!(broker.tallies().expect("tallies are read")[crate::INGEST].passed, taken as u64 + 1, "and is counted");
}

fn groups_and_ends_tell_how_far_the_work_is(log: &impl LogUnderTest) {
    let broker = log.broker();
    let waiting = |group: &str| -> Option<u64> {
        let states = broker.groups().expect("groups are told");
        let own: Vec<_> = states.iter().filter(|state| state.group == group).collect();
        assert!(own.iter().all(|state| state.topic == Topic::CONTEXTS.name() && state.position <= state.end), "{own:?}");
        (!own.is_empty()).then(|| own.iter().map(|state| state.backlog.waiting).sum())
    };
    three(log);
    let mut consumer = log.broker().consumer("endcap.themes.live", Topic::CONTEXTS).expect("a consumer");
    assert_eq!(waiting("endcap.themes.live"), Some(3), "a group that has done nothing yet is known");
    let got = poll_all(&mut *consumer, 3);
    assert_eq!(waiting("endcap.themes.live"), Some(3), "polled is not done");
    let alone = |group: &str| broker.group(group, Topic::CONTEXTS).expect("a group is told");
    let of_all = || {
        let mut states = broker.groups().expect("groups are told");
        states.retain(|state| state.group == "endcap.themes.live");
        states
    };
    assert_eq!(alone("endcap.themes.live"), of_all(), "a group that is asked for alone is told as among all");
    let stranger: u64 = alone("endcap.stranger.live").iter().map(|state| state.backlog.waiting).sum();
    assert_eq!(stranger, 3, "whoever has done nothing stands at the oldest record");
    consumer.commit(&through_all("s", &got)).expect("a commit is taken");
    assert_eq!(waiting("endcap.themes.live"), Some(0));
    assert_eq!(alone("endcap.themes.live"), of_all());
    for record in &got {
        let end = broker.ends(Topic::CONTEXTS).expect("ends are told")[&record.partition];
        assert!(end > record.offset, "the end lies beyond the last record");
        let same = broker.records(Topic::CONTEXTS, record.partition, record.offset, 1).expect("records are read");
        assert_eq!(same, std::slice::from_ref(record), "inspection shows what a stage gets");
        assert!(broker.records(Topic::CONTEXTS, record.partition, end, 9).expect("records are read").is_empty());
    }
}

fn dead_letters_are_listed_shown_and_sent_again(log: &impl LogUnderTest) {
    let broker = log.broker();
    three(log);
    let mut consumer = log.consumer("g", Topic::CONTEXTS);
    let mut got = poll_all(&mut *consumer, 3);
    got.sort_by(|a, b| a.key.cmp(&b.key));
    let kinds = ["malformed", "future", "malformed"];
    for (record, kind) in got.iter().zip(kinds) {
        let letters = vec![DeadLetter { kind: kind.to_owned(), ..letter(record) }];
        consumer.commit(&Commit { dead_letters: letters, ..through("s", record) }).expect("a commit is taken");
    }
    let list = |filter: DeadLetterFilter| broker.dead_letters(&filter).expect("dead letters are listed");
    let keys = |filter| list(filter).into_iter().map(|letter| letter.key).collect::<Vec<_>>();
    let any = DeadLetterFilter::default;
    assert_eq!(keys(any()), ["default/carl", "default/bert", "default/anna"], "newest first");
    assert_eq!(keys(DeadLetterFilter { limit: 1, ..any() }), ["default/carl"]);
    assert_eq!(keys(DeadLetterFilter { kind: Some("malformed".into()), ..any() }), ["default/carl", "default/anna"]);
    assert_eq!(keys(DeadLetterFilter { user: Some(UserKey::of("bert")), ..any() }), ["default/bert"]);
    assert_eq!(keys(DeadLetterFilter { stage: Some("other".into()), ..any() }), [""; 0]);
    assert_eq!(keys(DeadLetterFilter { since_ms: Some(i64::MAX), ..any() }), [""; 0]);
    assert_eq!(broker.dead_letter(&DeadLetterId::new("no such letter")).expect("an answer"), None);

    let ids: Vec<DeadLetterId> = list(any()).into_iter().map(|letter| letter.id).collect();
    assert_eq!(broker.redrive(&ids[..1]).expect("a letter is sent"), 1);
    assert_eq!(broker.redrive(&ids[..1]).expect("an answer"), 0, "a letter is sent once");
    assert_eq!(keys(any()), ["default/bert", "default/anna"], "and is off the list");
    let again = poll_all(&mut *consumer, 1);
    assert_eq!((&again[0].key, &again[0].headers, &again[0].value), (&got[2].key, &got[2].headers, &got[2].value));
    assert_eq!(broker.redrive(&ids).expect("letters are sent"), 2);
}

fn a_letter_that_came_under_anothers_key_goes_back_under_its_users(log: &impl LogUnderTest) {
    let (broker, anna) = (log.broker(), UserKey::of("anna"));
    let sent = record(Topic::CONTEXTS, "somebody", b"anna's");
    append(log, std::slice::from_ref(&sent));
    let mut consumer = log.consumer("g", Topic::CONTEXTS);
    let got = poll_all(&mut *consumer, 1).remove(0);
    let letters = vec![letter(&got.clone().under(&anna))];
    consumer.commit(&Commit { dead_letters: letters, ..through("s", &got) }).expect("a commit is taken");
    let theirs = DeadLetterFilter { user: Some(anna), ..DeadLetterFilter::default() };
    let listed = broker.dead_letters(&theirs).expect("dead letters are listed").remove(0);
    let came_under: Vec<UserKey> = listed.headers.came_under().collect();
    assert_eq!(came_under, [sent.key], "whoever looks for the producer finds the key");
    assert_eq!(broker.redrive(&[listed.id]).expect("a letter is sent"), 1);
    let again = poll_all(&mut *consumer, 1).remove(0);
    assert_eq!((&again.key[..], again.headers), ("default/anna", sent.headers), "as from an honest sender");
}

fn lanes_are_apart(log: &impl LogUnderTest) {
    let (broker, slow) = (log.broker(), Topic::CONTEXTS.on(Lane::Backfill));
    append(log, &[record(Topic::CONTEXTS, "anna", b"live"), record(slow, "anna", b"slow"), record(slow, "anna", b"bad")]);
    let mut live = broker.consumer("endcap.themes.live", Topic::CONTEXTS).expect("a consumer");
    let mut backfill = broker.consumer("endcap.themes.backfill", slow).expect("a consumer");
    assert_eq!(values(&poll_all(&mut *live, 1)), [b"live"]);
    assert!(live.poll(1, Duration::ZERO).expect("an empty poll is answered").is_empty());
    let got = poll_all(&mut *backfill, 2);
    assert_eq!((values(&got), got[0].topic), (vec![&b"slow"[..], b"bad"], slow));
    assert_eq!(got[0].headers.kind, Topic::CONTEXTS.name(), "a type does not depend on the lane");
    let letters = vec![letter(&got[1])];
    let outputs = vec![record(Topic::THEMES.on(Lane::Backfill), "anna", b"out")];
    let commit = Commit { outputs, dead_letters: letters, ..through("s.backfill", &got[1]) };
    backfill.commit(&commit).expect("a commit is taken");
    check_waiting(&mut *live, 1, "what is polled waits until it is committed");
    check_waiting(&mut *backfill, 0, "what is committed on one lane waits no more, and nothing of the other one counts");
    let groups = broker.groups().expect("groups are told");
    let topics: BTreeMap<&str, &str> = groups.iter().map(|state| (&state.group[..], &state.topic[..])).collect();
    let wanted = [("endcap.themes.backfill", slow.name()), ("endcap.themes.live", Topic::CONTEXTS.name())];
    assert!(wanted.iter().all(|(group, topic)| topics.get(group) == Some(topic)), "{topics:?}");
    let out = poll_all(&mut *log.consumer("h", Topic::THEMES.on(Lane::Backfill)), 1);
    assert_eq!(values(&out), [b"out"]);
    let listed = broker.dead_letters(&DeadLetterFilter::default()).expect("dead letters are listed");
    assert_eq!((listed.len(), &listed[0].topic[..]), (1, slow.name()));
    assert_eq!(broker.redrive(&[listed[0].id.clone()]).expect("a letter is sent"), 1);
    assert_eq!(values(&poll_all(&mut *backfill, 1)), [b"bad"], "a letter goes back to its lane");
    offsets_are_found_by_time(broker, &got);
}

fn offsets_are_found_by_time(broker: &dyn Broker, got: &[Received]) {
    let Received { topic, partition, offset, appended_ms, .. } = got[0];
    let at = |ms| broker.offsets_at(topic, ms).expect("offsets are told");
    assert_eq!((at(0)[&partition], at(appended_ms)[&partition]), (offset, offset));
    let ends = broker.ends(topic).expect("ends are told");
    assert_eq!(at(appended_ms + 86_400_000), ends, "where nothing is as new, the end is meant and not the beginning");
}

/// Checks the contract of [`Store`] on stores that `make` gives, each empty.
pub fn check_store<S: Store>(make: impl Fn() -> S) {
    the_greatest_write_stays_whatever_the_order(&make);
    equal_stamps_are_decided_by_the_bytes(&make);
    an_erased_user_stays_erased(&make());
    one_call_may_erase_and_begin_anew(&make());
    results_are_the_latest_of_each_stage_in_path_order(&make());
    caches_answer_in_order(&make());
    many_users_are_told_in_their_order(&make());
    what_is_too_large_is_refused_as_a_whole_and_the_largest_is_taken(&make());
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

fn equal_stamps_are_decided_by_the_bytes<S: Store>(make: &impl Fn() -> S) {
    let anna = UserKey::of("anna");
    let erase = |at| Write::Erase { user: anna.clone(), stamp: Stamp(3), at };
    let writes = [page("anna", 7, None), page("anna", 7, Some(b"")), erase(None), erase(Some((0, 8))), erase(Some((0, 9)))];
    let results = ["{\"a\":1}", "{}"].map(|text| StageResult { explanation: text.to_owned(), ..result("anna", "themes", 7) });
    for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 1, 4, 0, 2]] {
        let store = make();
        for place in order {
            store.put_all(&writes[place..=place], &results[place % 2..=place % 2]).expect("a write is taken");
        }
        let stored = store.page(&anna).expect("a read is answered").expect("the page is there");
        assert_eq!(stored.page.as_deref(), Some(&b""[..]), "an empty page is more than a withdrawn one, order {order:?}");
        let erasure = Erasure { stamp: Stamp(3), at: Some((0, 9)) };
        assert_eq!(store.erasure(&anna).expect("a read is answered"), Some(erasure), "the later place, order {order:?}");
        assert_eq!(store.results(&anna).expect("a read is answered"), results[1..], "the greater text, order {order:?}");
    }
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

fn one_call_may_erase_and_begin_anew(store: &impl Store) {
    let anna = UserKey::of("anna");
    let erase = Write::Erase { user: anna.clone(), stamp: Stamp(10), at: Some((0, 8)) };
    let writes =
        [state("anna", 9, b"old"), page("anna", 10, Some(b"old")), erase, state("anna", 11, b"new"), state("anna", 12, b"newer")];
    store.put_all(&writes, &[result("anna", "context", 10), result("anna", "themes", 11)]).expect("writes are taken");
    assert_eq!(store.state(&anna).expect("a read is answered").as_deref(), Some(&b"newer"[..]));
    assert_eq!(store.page(&anna).expect("a read is answered"), None);
    assert_eq!(store.results(&anna).expect("a read is answered"), [result("anna", "themes", 11)]);
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

fn many_users_are_told_in_their_order(store: &impl Store) {
    let count = 150_i64; // more than are under way at once
    let name = |n: i64| format!("u{n}");
    let writes: Vec<Write> = (0..count).filter(|n| n % 3 == 0).map(|n| state(&name(n), 5, name(n).as_bytes())).collect();
    store.put_all(&writes, &[]).expect("writes are taken");
    let erase = |n| Write::Erase { user: UserKey::of(name(n)), stamp: Stamp(10 + n), at: Some((0, n)) };
    store.put_all(&(0..count).filter(|n| n % 5 == 0).map(erase).collect::<Vec<_>>(), &[]).expect("erasures are taken");
    let users: Vec<UserKey> = (0..count).rev().chain([3, 3]).map(|n| UserKey::of(name(n))).collect();
    let (states, erasures) = (store.states(&users), store.erasures(&users));
    let (states, erasures) = (states.expect("a read is answered"), erasures.expect("a read is answered"));
    assert_eq!((states.len(), erasures.len()), (users.len(), users.len()), "one answer for each, also of one named twice");
    for ((n, state), erasure) in (0..count).rev().chain([3, 3]).zip(states).zip(erasures) {
        let (is_kept, is_erased) = (n % 3 == 0 && n % 5 != 0, n % 5 == 0);
        assert_eq!(state, is_kept.then(|| name(n).into_bytes()), "{n}");
        assert_eq!(erasure, is_erased.then(|| Erasure { stamp: Stamp(10 + n), at: Some((0, n)) }), "{n}");
    }
    assert!(store.states(&[]).expect("a read is answered").is_empty() && store.erasures(&[]).expect("an answer").is_empty());
}

fn what_is_too_large_is_refused_as_a_whole_and_the_largest_is_taken(store: &impl Store) {
    let (anna, largest) = (UserKey::of("anna"), vec![7; PAGE_MAX_BYTES]);
    store.put_all(&[page("anna", 7, Some(&largest))], &[]).expect("the largest page is taken");
    let longer = [&largest[..], &[7]].concat();
    let explained = StageResult { explanation: "x".repeat(ROW_MAX_BYTES + 1), ..result("anna", "themes", 8) };
    let beyond: [(&[Write], &[StageResult], &str); 3] = [
        (&[state("anna", 8, b"s"), page("anna", 8, Some(&longer))], &[], "page has 65537 bytes, at most 65536 are stored"),
        (&[state("anna", 8, &vec![7; ROW_MAX_BYTES + 1])], &[], "state has 1048577 bytes, at most 1048576"),
        (&[state("anna", 8, b"s")], &[explained], "explanation has 1048577 bytes"),
    ];
    for (writes, results, says) in beyond {
        let refused = store.put_all(writes, results).expect_err("what is too large is refused");
        assert!(matches!(refused, StoreError::TooLarge(_)) && refused.to_string().contains(says), "{refused}");
    }
    assert_eq!(store.page(&anna).expect("a read is answered").and_then(|page| page.page), Some(largest));
    assert_eq!(store.state(&anna).expect("a read is answered"), None, "nothing of a call that was refused is written");
}

/// Checks the contract of [`StoreOverview`] on stores that `make` gives, each empty.
pub fn check_overview<S: StoreOverview>(make: impl Fn() -> S) {
    users_with_a_page_are_listed_once_and_counted(&make());
    users_are_found_by_a_part_of_their_key(&make());
    every_row_of_a_user_is_told_until_they_are_erased(&make());
    a_note_stands_until_another_takes_its_place(&make());
    a_generation_is_kept_once_and_for_good(&make());
    of_several_that_add_a_generation_at_once_one_succeeds(&make());
}

/// Five users, of whom one has had its page withdrawn.
fn shoppers(store: &impl Store) {
    let elsewhere = UserKey { tenant: "alpine".to_owned(), user: "eve".to_owned() };
    let pages = [("Ada", Some(&b"1"[..])), ("bob", None), ("cleo", Some(b"3")), ("dora", Some(b"4"))];
    let mut writes: Vec<Write> = pages.into_iter().map(|(user, bytes)| page(user, 7, bytes)).collect();
    writes.push(Write::Page { user: elsewhere, stamp: Stamp(7), page: Some(b"5".to_vec()) });
    writes.extend([state("Ada", 7, b"s"), state("bob", 7, b"s")]);
    store.put_all(&writes, &[]).expect("writes are taken");
}

fn users_of(found: Vec<(UserKey, StoredPage)>) -> Vec<String> {
    let mut users: Vec<String> = found.into_iter().map(|(user, _)| user.user).collect();
    users.sort();
    users
}

fn users_with_a_page_are_listed_once_and_counted(store: &impl StoreOverview) {
    assert_eq!(store.pages_count().expect("a count is answered"), 0);
    assert!(store.pages_after(None, 9).expect("a list is answered").is_empty());
    shoppers(store);
    assert_eq!(store.pages_count().expect("a count is answered"), 4, "a withdrawn page is none");
    assert_eq!(store.states_count().expect("a count is answered"), 2);
    let (mut listed, mut after) = (Vec::new(), None);
    loop {
        let found = store.pages_after(after.as_ref(), 3).expect("a list is answered");
        let Some((last, stored)) = found.last() else { break };
        assert!(found.len() <= 3 && stored.page.is_some() && stored.stamp == Stamp(7), "a list is short and holds the pages");
        after = Some(last.clone());
        listed.extend(found);
    }
    assert_eq!(users_of(listed), ["Ada", "cleo", "dora", "eve"]);
}

fn users_are_found_by_a_part_of_their_key(store: &impl StoreOverview) {
    shoppers(store);
    let like = |part: &str| users_of(store.pages_like(part, 9).expect("a search is answered"));
    assert_eq!(like("A"), ["Ada", "dora", "eve"], "`default` holds an a, but is not looked at");
    for (part, found) in [("ADA", &["Ada"][..]), ("bob", &[]), ("alp", &["eve"]), ("fault", &[]), ("%", &[]), ("'", &[])] {
        assert_eq!(like(part), found, "{part}");
    }
    assert_eq!(store.pages_like("", 2).expect("a search is answered").len(), 2, "a list is short");
}

fn every_row_of_a_user_is_told_until_they_are_erased(store: &impl StoreOverview) {
    let remains = |user: &str| {
        let rows = store.remains(&UserKey::of(user)).expect("a read is answered");
        rows.into_iter().map(|row| row.stamp).collect::<Vec<_>>()
    };
    shoppers(store);
    store.put_all(&[], &[result("Ada", "themes", 7)]).expect("a result is taken");
    assert_eq!((remains("Ada"), remains("nobody")), (vec![Some(Stamp(7)); 3], Vec::new()));
    store.put_all(&[Write::Erase { user: UserKey::of("Ada"), stamp: Stamp(10), at: None }], &[]).expect("an erasure is taken");
    assert_eq!(remains("Ada"), []);
    store.put_all(&[state("Ada", 11, b"new")], &[]).expect("a write is taken");
    assert_eq!(remains("Ada"), [Some(Stamp(11))], "a new life has rows of its own");
}

fn a_note_stands_until_another_takes_its_place(store: &impl StoreOverview) {
    assert_eq!(store.noted("market").expect("a read is answered"), None);
    store.note("market", "one").expect("a note is taken");
    store.note("market", "other").expect("a note is taken");
    store.note("weather", "fair").expect("a note is taken");
    assert_eq!(store.noted("market").expect("a read is answered").as_deref(), Some("other"));
}

fn a_generation_is_kept_once_and_for_good(store: &impl StoreOverview) {
    let one = |number| store.generation(number).expect("a read is answered");
    let add = |number, manifest: &str| store.add_generation(number, manifest).expect("a generation is taken");
    assert_eq!((one(None), one(Some(1)), store.generations().expect("a list is answered")), (None, None, Vec::new()));
    assert_eq!((add(1, "one"), add(2, "two"), add(10, "ten")), (None, None, None));
    assert_eq!(add(2, "other").as_deref(), Some("two"), "what is kept stays, and is told");
    assert_eq!(add(2, "two"), None, "the same may be added again");
    assert_eq!(one(None), Some((10, "ten".to_owned())), "numbers are ordered as numbers");
    assert_eq!((one(Some(2)), one(Some(3))), (Some((2, "two".to_owned())), None));
    let all: Vec<i32> = store.generations().expect("a list is answered").into_iter().map(|(number, _)| number).collect();
    assert_eq!(all, [10, 2, 1]);
}

fn of_several_that_add_a_generation_at_once_one_succeeds(store: &impl StoreOverview) {
    let names = ["anna", "bert", "cleo", "dora"];
    let told: Vec<Option<String>> = thread::scope(|scope| {
        let adding = names.map(|name| scope.spawn(move || store.add_generation(1, name).expect("a generation is taken")));
        adding.into_iter().map(|thread| thread.join().expect("adding does not panic")).collect()
    });
    let (_, kept) = store.generation(None).expect("a read is answered").expect("one was added");
    let won: Vec<&str> = names.into_iter().zip(&told).filter(|(_, told)| told.is_none()).map(|(name, _)| name).collect();
    assert_eq!(won, [kept.as_str()], "one succeeds, and it is kept");
    assert!(told.iter().flatten().all(|told| *told == kept), "the others are told what is kept: {told:?}");
}

/// Checks the contract of [`Policies`] on a store without any.
pub fn check_policies(store: &impl Policies) {
    let policy = |version: i64, snapshot: &[u8]| StoredPolicy { version, snapshot: snapshot.to_vec(), ledger: vec![9; 3] };
    let versions = || store.policy_versions().expect("a list is answered");
    assert_eq!((versions(), store.policy(7).expect("a read is answered")), (Vec::new(), None));
    for (version, snapshot) in [(7, b"seven"), (40, b"forty"), (9, b"nine!"), (7, b"seven")] {
        store.put_policy(&policy(version, snapshot)).expect("a policy is taken, also again");
    }
    assert_eq!(versions(), [40, 9, 7], "versions are ordered as numbers, the newest first");
    assert_eq!(store.policy(9).expect("a read is answered"), Some(policy(9, b"nine!")));
    store.forget_policies(&[9, 8]).expect("policies are forgotten");
    assert_eq!((versions(), store.policy(9).expect("a read is answered")), (vec![40, 7], None));
    store.put_policy(&StoredPolicy { version: 41, snapshot: vec![1; ROW_MAX_BYTES], ledger: Vec::new() }).expect("the largest");
    for (snapshot, ledger) in [(ROW_MAX_BYTES + 1, 0), (0, ROW_MAX_BYTES + 1)] {
        let large = StoredPolicy { version: 42, snapshot: vec![1; snapshot], ledger: vec![1; ledger] };
        assert!(matches!(store.put_policy(&large), Err(StoreError::TooLarge(_))), "what is too large is refused");
    }
    assert_eq!(versions(), [41, 40, 7]);
}
