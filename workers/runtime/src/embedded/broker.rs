//! The embedded side of [`Broker`]: every topic has the one partition 0.

use std::collections::BTreeMap;

use endcap_schemas::topics::Topic;

use super::Embedded;
use crate::{
    Broker, DeadLetter, DeadLetterFilter, DeadLetterId, GroupState, Log, LogError, Outgoing, Received, StoredDeadLetter, Tally,
};

impl Broker for Embedded {
    fn declare(&self, group: &str, topic: Topic) -> Result<(), LogError> {
        Embedded::declare(self, group, topic)
    }

    fn consumer(&self, group: &str, topic: Topic) -> Result<Box<dyn Log>, LogError> {
        Ok(Box::new(Embedded::consumer(self, group, topic)?))
    }

    fn append(&self, records: &[Outgoing], progress: Option<(&str, &str)>) -> Result<(), LogError> {
        self.producer().append(records, progress).map(|_| ())
    }

    fn admit(&self, records: &[Outgoing], refused: &[DeadLetter]) -> Result<(), LogError> {
        self.producer().admit(records, refused)
    }

    fn insist(&self, records: &[Outgoing]) -> Result<(), LogError> {
        self.producer().insist(records)
    }

    fn progress(&self, name: &str) -> Result<Option<String>, LogError> {
        self.producer().progress(name)
    }

    fn tallies(&self) -> Result<BTreeMap<String, Tally>, LogError> {
        Embedded::tallies(self)
    }

    fn groups(&self) -> Result<Vec<GroupState>, LogError> {
        Embedded::groups(self)
    }

    fn group(&self, group: &str, topic: Topic) -> Result<Vec<GroupState>, LogError> {
        Ok(vec![Embedded::group(self, group, topic)?])
    }

    fn ends(&self, topic: Topic) -> Result<BTreeMap<i32, i64>, LogError> {
        Ok(BTreeMap::from([(0, self.end(topic)?)]))
    }

    fn offsets_at(&self, topic: Topic, at_ms: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        Ok(BTreeMap::from([(0, self.offset_at(topic, at_ms)?)]))
    }

    fn records(&self, topic: Topic, partition: i32, from: i64, max: usize) -> Result<Vec<Received>, LogError> {
        if partition == 0 { Embedded::records(self, topic, from, max) } else { Ok(Vec::new()) }
    }

    fn dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<StoredDeadLetter>, LogError> {
        Embedded::dead_letters(self, filter)
    }

    fn dead_letter(&self, id: &DeadLetterId) -> Result<Option<StoredDeadLetter>, LogError> {
        Embedded::dead_letter(self, id)
    }

    fn dead_letter_counts(&self) -> Result<BTreeMap<(String, String), u64>, LogError> {
        Embedded::dead_letter_counts(self)
    }

    fn redrive(&self, ids: &[DeadLetterId]) -> Result<usize, LogError> {
        Embedded::redrive(self, ids)
    }
}
