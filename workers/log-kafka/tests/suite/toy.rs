//! A toy stage that makes a context of every event: none of them supersedes another, so that outputs can be counted.

use std::{sync::Arc, time::Duration};

use endcap_log_kafka::Kafka;
use endcap_runtime::{
    Broker, Clocks, Embedded, Headers, Input, LoopConfig, ManualClock, Outgoing, Passed, Received, Shutdown, Stage, StageEnv,
    StageError, StageStats, StageStopped, Stamp, Verdict, Write, run_stage,
};
use endcap_schemas::{
    Brief, Budget, Cause, ContextChanged, DietSet, EventKind, Head, Message, Season, ShopperEvent, UserKey, topics::Topic, wire,
};
use serde_json::json;

/// The group of the toy stage.
pub(crate) const GROUP: &str = "endcap.context.live";
/// The time of all events, ms, and of the clock that they are compared with.
const NOW_MS: i64 = 1_700_000_000_000;

/// Event → context.
pub(crate) struct Fold;

impl Stage for Fold {
    type In = ShopperEvent;
    type Out = ContextChanged;
    const NAME: &'static str = "context";

    fn process(&mut self, batch: &[Input<ShopperEvent>]) -> Result<Vec<Verdict<ContextChanged>>, StageError> {
        let verdict = |input: &Input<ShopperEvent>| {
            let out = context(&input.value);
            let (stamp, state) = (Stamp::of(out.head.context_ms, 1), out.head.cause.event_id.clone().into_bytes());
            let writes = vec![Write::State { user: out.head.user.clone(), stamp, state }];
            let (explanation, counters) = (json!({ "toy": true }), vec![("hops", 1)]);
            Verdict::Passed(Box::new(Passed { out, explanation, writes, counters }))
        };
        Ok(batch.iter().map(verdict).collect())
    }
}

fn context(event: &ShopperEvent) -> ContextChanged {
    let cause = Cause { event_id: event.id.clone(), event_ms: event.at_ms, accepted_ms: event.at_ms };
    let head = Head { user: event.key(), context_ms: event.at_ms, generation: 1, cause, expires_ms: NOW_MS + 3_600_000 };
    let brief = Brief {
        diets: DietSet::NONE,
        budget: Budget::Middle,
        locale: "en".to_owned(),
        season: Season::Winter,
        dislikes: Vec::new(),
        personalise: true,
    };
    ContextChanged { head, brief, favourites: Vec::new(), recent: Vec::new() }
}

/// The `n`-th event, of one of `users`.
pub(crate) fn event(n: i64, users: i64) -> Outgoing {
    let event = ShopperEvent {
        id: format!("e{n}"),
        tenant: UserKey::DEFAULT_TENANT.to_owned(),
        user: format!("u{}", n % users),
        at_ms: NOW_MS + n,
        kind: EventKind::Erase,
        lines: Vec::new(),
        preference: None,
        personalise: None,
    };
    let headers = Headers::root(event.id.clone(), Topic::EVENTS, event.at_ms);
    Outgoing { topic: Topic::EVENTS, key: event.key(), headers, value: wire::encode(&event).expect("a toy fits the wire") }
}

/// Runs the toy stage until `shutdown`, in batches of at most `batch` records.
pub(crate) fn fold(kafka: &Kafka, store: &Embedded, batch: usize, shutdown: &Shutdown) -> Result<(), StageStopped> {
    let env = StageEnv {
        store: Arc::new(store.clone()),
        clocks: Clocks { events: Arc::new(ManualClock::at(NOW_MS)), ..Clocks::system() },
        config: LoopConfig {
            batch_records_max: batch,
            poll_max: batch,
            poll_wait: Duration::from_millis(10),
            ..LoopConfig::default()
        },
        stats: Arc::new(StageStats::default()),
        shutdown: shutdown.clone(),
    };
    let log = kafka.log(GROUP, Topic::EVENTS).expect("a consumer");
    run_stage(&mut Fold, Box::new(log), &env)
}

/// Everything in a topic, partition by partition.
pub(crate) fn all(kafka: &Kafka, topic: Topic) -> Vec<Received> {
    let ends = kafka.ends(topic).expect("ends are told");
    let records = |partition| kafka.records(topic, partition, 0, usize::MAX).expect("records are read");
    ends.into_keys().flat_map(records).collect()
}

/// Checks that every one of the first `events` events of `users` has one context, in its user's order.
pub(crate) fn check_contexts(kafka: &Kafka, events: i64, users: i64) {
    let contexts = all(kafka, Topic::CONTEXTS);
    let mut seen: Vec<i64> = Vec::new();
    let mut last: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
    for record in &contexts {
        let context: ContextChanged = wire::decode(&record.value).expect("a context");
        let n: i64 = context.head.cause.event_id[1..].parse().expect("a toy's id");
        seen.push(n);
        let before = last.insert(record.key.clone(), n);
        assert!(before.is_none_or(|before| before < n), "{} has its contexts in order: {before:?}, then {n}", record.key);
        assert_eq!(record.headers, event(n, users).headers.child("context", ContextChanged::TOPIC));
    }
    seen.sort_unstable();
    let wanted: Vec<i64> = (0..events).collect();
    let missing: Vec<i64> = wanted.iter().copied().filter(|n| seen.binary_search(n).is_err()).take(10).collect();
    let doubled: Vec<i64> = seen.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).take(10).collect();
    assert!(seen == wanted, "{} contexts of {events} events; missing {missing:?}, doubled {doubled:?}", seen.len());
    let tally = &kafka.tallies().expect("tallies are read")["context"];
    assert!(tally.is_balanced());
    assert_eq!((tally.received, tally.passed, tally.counters["hops"]), {
        let events = events.unsigned_abs();
        (events, events, events)
    });
}
