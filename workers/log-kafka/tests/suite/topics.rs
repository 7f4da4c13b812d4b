//! Topics, declared.

use endcap_log_kafka::{Kafka, Step, TopicSettings, Topics};
use endcap_runtime::{Embedded, EmbeddedConfig, LogError, SystemClock};
use endcap_schemas::topics::Topic;
use std::sync::Arc;

use crate::server::{address, checked, settings, small};

/// Topics on the live lane: each has another one for backfill and one for dead letters; three more are beside them.
const LIVE: usize = Topic::LIVE.len();

#[test]
fn applying_twice_changes_nothing_and_what_cannot_be_changed_is_told() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let config = checked(settings(&broker));
    let topics = Topics::connect(&config, &small(3)).expect("a connection");
    let plan = topics.plan().expect("a plan");
    assert!(plan.steps.len() == 3 * LIVE + 3 && plan.steps.iter().all(|step| matches!(step, Step::Create { .. })), "{plan}");
    assert_eq!(topics.apply().expect("topics are made"), plan);
    let again = topics.plan().expect("a plan");
    assert!(again.is_empty(), "{again}");
    assert!(topics.apply().expect("an answer").is_empty());

    let longer = Topics::connect(&config, &TopicSettings { retention_h: 1, ..small(3) }).expect("a connection");
    let plan = longer.plan().expect("a plan");
    assert!(plan.steps.len() == LIVE && plan.to_string().contains("retention.ms from 604800000 to 3600000"), "{plan}");
    longer.apply().expect("settings are changed");
    let left = longer.plan().expect("a plan");
    assert!(left.is_empty(), "the other settings stay: {left}");

    let more = Topics::connect(&config, &TopicSettings { retention_h: 1, ..small(4) }).expect("a connection");
    let plan = more.plan().expect("a plan");
    assert_eq!(plan.obstacles().count(), 3 * LIVE, "{plan}");
    let refused = more.apply().expect_err("another number of partitions is refused").to_string();
    assert!(refused.contains("has 3 partitions and 4 are declared") && refused.contains("20 more, which"), "{refused}");
}

#[test]
fn a_log_without_topics_says_what_to_do() {
    let Some(broker) = address("ENDCAP_TEST_KAFKA") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(SystemClock::default());
    let store = Embedded::open(dir.path().join("s.db"), EmbeddedConfig::default(), clock.clone()).expect("a store");
    let error = Kafka::connect(checked(settings(&broker)), clock, Arc::new(store)).expect_err("there are no topics");
    assert!(matches!(error, LogError::Unavailable(_)) && error.to_string().contains("endcap topics apply"), "{error}");
}
