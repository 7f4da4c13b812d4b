//! What the topics should be like, and what differs from that. Pure.

use std::{collections::BTreeMap, fmt};

use endcap_runtime::outside;
use endcap_schemas::topics::{Lane, Topic};
use serde::Deserialize;

use crate::{client::RECORD_MAX_BYTES, names::Names};

/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
const DAY_H: u32 = 24;

/// What the topics should be like.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TopicSettings {
    /// Partitions of every topic of the path, so that a key keeps its place along it. Cannot be changed later.
    pub partitions: u16,
    /// Copies of every partition. Cannot be changed here later.
    pub replication: u16,
    /// Copies that must have a record before it counts.
    pub min_in_sync: u16,
    /// How long records of the path are kept, h.
    pub retention_h: u32,
    /// How long records of the slow lane are kept, h.
    pub backfill_retention_h: u32,
    /// How long dead letters are kept, h.
    pub dead_letters_retention_h: u32,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            partitions: 12,
            replication: 3,
            min_in_sync: 2,
            retention_h: 7 * 24,
            backfill_retention_h: 24,
            dead_letters_retention_h: 30 * 24,
        }
    }
}

impl TopicSettings {
    /// What is wrong with the settings: each key with the range that it may have.
    pub fn check(&self) -> Vec<String> {
        [
            outside("partitions", self.partitions, 1..=1_024),
            outside("replication", self.replication, 1..=15),
            outside("min_in_sync", self.min_in_sync, 1..=self.replication.max(1)),
            outside("retention_h", self.retention_h, 1..=87_600),
            outside("backfill_retention_h", self.backfill_retention_h, 1..=87_600),
            outside("dead_letters_retention_h", self.dead_letters_retention_h, 1..=87_600),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) name: String,
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    pub(crate) configs: BTreeMap<&'static str, String>,
}

/// A topic as the cluster has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) partitions: i32,
    pub(crate) replication: i32,
    /// All settings, and whether each was set for this topic.
    pub(crate) configs: BTreeMap<String, (String, bool)>,
}

/// One thing that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The topic is not there.
    Create {
        /// Its name.
        topic: String,
        /// How many partitions it gets.
        partitions: i32,
        /// How many copies of each.
        replication: i32,
    },
    /// A setting has another value.
    Change {
        /// The topic.
        topic: String,
        /// The setting, as Kafka calls it.
        key: String,
        /// Its value now.
        from: String,
        /// Its value then.
        to: String,
    },
    /// It cannot be changed here: somebody has to decide.
    Cannot {
        /// The topic.
        topic: String,
        /// What differs, why it stays, and what can be done.
        why: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Create { topic, partitions, replication } => {
                write!(f, "create {topic}: {partitions} partitions, {replication} copies of each")
            }
            Step::Change { topic, key, from, to } => write!(f, "change {topic}: {key} from {from} to {to}"),
            Step::Cannot { topic, why } => write!(f, "cannot change {topic}: {why}"),
        }
    }
}

/// What differs between the topics as they are and as they should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Step by step, in path order.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What only a person can resolve.
    pub fn obstacles(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| matches!(step, Step::Cannot { .. }))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing to do: the topics are as they should be");
        }
        self.steps.iter().enumerate().try_for_each(|(n, step)| write!(f, "{}{step}", if n == 0 { "" } else { "\n" }))
    }
}

/// The topics as they should be, in path order.
pub(crate) fn declared(names: &Names, settings: &TopicSettings) -> Vec<Declared> {
    let common = || {
        BTreeMap::from([
            ("max.message.bytes", RECORD_MAX_BYTES.to_string()),
            ("min.insync.replicas", settings.min_in_sync.to_string()),
        ])
    };
    let topic = |name: String, partitions: u16, own: &[(&'static str, String)]| {
        let configs = common().into_iter().chain(own.iter().cloned()).collect();
        Declared { name, partitions: i32::from(partitions), replication: i32::from(settings.replication), configs }
    };
    let lane = |name: String, hours: u32| {
        let own = [
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", (u64::from(hours) * HOUR_MS).to_string()),
            // When the log took a record is told by the log.
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            // What is beyond its time goes within a day: a letter must not outlive the note that it was sent again.
            ("segment.ms", (u64::from(DAY_H) * HOUR_MS).to_string()),
        ];
        topic(name, settings.partitions, &own)
    };
    let compacted = |name: String, policy: &str, hours: Option<u32>| {
        let mut own = vec![
            ("cleanup.policy", policy.to_owned()),
            // Small segments, soon compacted: the whole topic is read at a start.
            ("segment.bytes", (16 * 1024 * 1024).to_string()),
            ("segment.ms", HOUR_MS.to_string()),
            ("min.cleanable.dirty.ratio", "0.1".to_owned()),
        ];
        own.extend(hours.map(|hours| ("retention.ms", (u64::from(hours) * HOUR_MS).to_string())));
        topic(name, 1, &own)
    };
    let mut all = Vec::new();
    for each in Topic::LIVE {
        all.push(lane(names.topic(each), settings.retention_h));
        all.push(lane(names.topic(each.on(Lane::Backfill)), settings.backfill_retention_h));
        all.push(lane(names.dead_letters(each), settings.dead_letters_retention_h));
    }
    all.push(compacted(names.tallies(), "compact", None));
    all.push(compacted(names.progress(), "compact", None));
    all.push(compacted(names.redriven(), "compact,delete", Some(settings.dead_letters_retention_h.saturating_add(2 * DAY_H))));
    all
}

/// What makes a topic as it is the one that it should be.
pub(crate) fn steps(declared: &Declared, found: Option<&Found>) -> Vec<Step> {
    let topic = || declared.name.clone();
    let Some(found) = found else {
        let Declared { partitions, replication, .. } = *declared;
        return vec![Step::Create { topic: topic(), partitions, replication }];
    };
    let mut steps = Vec::new();
    if found.partitions != declared.partitions {
        let (has, wants) = (found.partitions, declared.partitions);
        steps.push(Step::Cannot {
            topic: topic(),
            why: format!(
                "it has {has} partitions and {wants} are declared, but another number would send shoppers to other partitions and \
                 break their order: declare {has}, or begin anew in another namespace"
            ),
        });
    }
    if found.replication != declared.replication {
        let (has, wants) = (found.replication, declared.replication);
        steps.push(Step::Cannot {
            topic: topic(),
            why: format!(
                "it has {has} copies and {wants} are declared: move its replicas with the cluster's own tools, or declare {has}"
            ),
        });
    }
    for (key, to) in &declared.configs {
        let from = found.configs.get(*key).map(|(value, _)| value.as_str());
        if from.is_none_or(|from| !is_same(from, to)) {
            let from = from.unwrap_or("nothing").to_owned();
            steps.push(Step::Change { topic: topic(), key: (*key).to_owned(), from, to: to.clone() });
        }
    }
    steps
}

/// Whether two values mean the same: lists in any order.
fn is_same(a: &str, b: &str) -> bool {
    let sorted = |text: &str| {
        let mut parts: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
        parts.sort_unstable();
        parts
    };
    sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::KafkaSettings;

    fn names() -> Names {
        Names::of(&KafkaSettings { namespace: "t".into(), instance: "x".into(), ..KafkaSettings::default() })
    }

    fn found(declared: &Declared) -> Found {
        let configs = declared.configs.iter().map(|(key, value)| ((*key).to_owned(), (value.clone(), true))).collect();
        Found { partitions: declared.partitions, replication: declared.replication, configs }
    }

    #[test]
    fn the_path_has_equal_partitions_and_every_topic_its_lanes() {
        let all = declared(&names(), &TopicSettings::default());
        assert_eq!(all.len(), 7 * 3 + 3);
        let lanes = all.iter().filter(|topic| topic.configs["cleanup.policy"] == "delete");
        assert!(lanes.clone().all(|topic| topic.partitions == 12) && lanes.count() == 21);
        let told: Vec<&str> = all.iter().take(3).map(|topic| topic.name.as_str()).collect();
        assert_eq!(told, ["t.endcap.shopper-events.v1", "t.endcap.shopper-events.v1.backfill", "t.endcap.shopper-events.v1.dlq"]);
    }

    #[test]
    fn what_differs_is_told_in_words() {
        let all = declared(&names(), &TopicSettings::default());
        let (events, redriven) = (&all[0], &all[23]);
        assert_eq!(steps(events, None)[0].to_string(), "create t.endcap.shopper-events.v1: 12 partitions, 3 copies of each");
        let mut same = found(redriven);
        same.configs.insert("cleanup.policy".into(), ("delete,compact".into(), true));
        same.configs.insert("something.else".into(), ("7".into(), true));
        assert!(steps(redriven, Some(&same)).is_empty());
        let mut other = found(events);
        (other.partitions, other.replication) = (6, 1);
        other.configs.insert("retention.ms".into(), ("1000".into(), false));
        let told: Vec<String> = steps(events, Some(&other)).iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told[0].contains("has 6 partitions and 12 are declared"), "{told:?}");
        assert!(told[1].contains("has 1 copies and 3 are declared"), "{told:?}");
        assert_eq!(told[2], "change t.endcap.shopper-events.v1: retention.ms from 1000 to 604800000");
    }

    #[test]
    fn settings_out_of_range_are_told_together() {
        let settings = TopicSettings { partitions: 0, min_in_sync: 4, ..TopicSettings::default() };
        assert_eq!(settings.check().len(), 2);
    }
}
