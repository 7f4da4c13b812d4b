//! One stage's connection: records from a thread that never stops polling, and one transaction per commit.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use endcap_runtime::{Backlog, Commit, Log, LogError, Received, Tally};
use endcap_schemas::topics::Topic;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    asker,
    broker::Shared,
    client,
    hand::Holding,
    headers,
    notes::{self, Notes},
    poller::Poller,
    record::{self, Record},
    writer::{Positions, Stopped, Writer},
};

/// A group's connection to its topic. Each consumer of the group has partitions of its own.
pub struct KafkaLog {
    shared: Arc<Shared>,
    group: String,
    topic: Topic,
    /// The topic on the brokers.
    name: String,
    poller: Poller,
    writer: Writer,
    /// What this writer has counted, by stage, as the log has it; empty after a transaction whose end is not known.
    counted: BTreeMap<String, Tally>,
    /// Whether the end of the last transaction is not known.
    unclear: bool,
    /// Taken over from the polling thread, but the registry, where there is one, did not say what they are.
    unread: VecDeque<Received>,
}

impl KafkaLog {
    /// Joins `group` on `topic`. First it ends the transaction that an earlier process of this name may have left open: until then nobody
    /// would get the partitions that it was about.
    pub(crate) fn start(shared: Arc<Shared>, group: &str, topic: Topic) -> Result<Self, LogError> {
        let name = shared.names.topic(topic);
        let mut writer = Writer::new(shared.config.clone(), shared.names.transactional_id(group), shared.tender.clone());
        writer.ready()?;
        let poller = Poller::start(&shared.config, &shared.names.group(group), topic, name.clone())?;
        let (group, counted) = (group.to_owned(), BTreeMap::new());
        Ok(Self { shared, group, topic, name, poller, writer, counted, unclear: false, unread: VecDeque::new() })
    }

    /// What this writer has counted for `stage`. Whoever wrote under its id before is fenced first, so that nothing is added any more.
    fn counted(&mut self, stage: &str) -> Result<Tally, LogError> {
        if let Some(tally) = self.counted.get(stage) {
            return Ok(tally.clone());
        }
        self.writer.ready()?;
        let key = notes::tally_key(stage, self.writer.id());
        let reader = self.shared.inspector.readers().lend()?;
        let tallies = Notes::new(self.shared.names.tallies());
        let tally = tallies.whole(&reader, |latest| notes::tally_of(latest, &key))??;
        self.counted.insert(stage.to_owned(), tally.clone());
        Ok(tally)
    }

    fn list(&self, through: &BTreeMap<i32, i64>) -> Result<TopicPartitionList, KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, next) in through {
            list.add_partition_offset(&self.name, *partition, Offset::Offset(*next))?;
        }
        Ok(list)
    }

    /// The group's positions on `partitions`, where it has any.
    fn positions(&self, partitions: impl Iterator<Item = i32>) -> Result<BTreeMap<i32, i64>, LogError> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.name, partition);
        }
        asker::committed_offsets(&self.poller.consumer, list, self.shared.config.request_timeout())
    }

    /// Records of `behind` that the brokers have and that were not polled. Offsets are taken for records, although the ends of
    /// transactions take offsets too.
    fn unpolled(&self, behind: &[Holding]) -> Result<u64, LogError> {
        let partitions: Vec<i32> = behind.iter().map(|holding| holding.partition).collect();
        let at = |which| {
            let timeout = self.shared.config.request_timeout();
            asker::offsets_at(&self.poller.consumer, &self.name, &partitions, which, timeout)
        };
        let (ends, unseen) = (at(Offset::End)?, behind.iter().filter(|holding| holding.next.is_none()));
        let unseen: Vec<i32> = unseen.map(|holding| holding.partition).collect();
        let (positions, firsts) =
            if unseen.is_empty() { Default::default() } else { (self.positions(unseen.into_iter())?, at(Offset::Beginning)?) };
        let offsets = behind.iter().map(|Holding { partition, next, .. }| {
            let next = next.or_else(|| positions.get(partition).copied()).or_else(|| firsts.get(partition).copied());
            let end = ends.get(partition).copied();
            end.zip(next).map_or(0, |(end, next)| (end - next).max(0).unsigned_abs())
        });
        Ok(offsets.sum())
    }

    /// Whether the transaction in question, which this commit repeats, went through after all.
    fn went_through(&mut self, commit: &Commit) -> Result<bool, LogError> {
        if !self.unclear {
            return Ok(false);
        }
        self.writer.ready()?; // ends the transaction in question, one way or the other
        let positions = self.positions(commit.through.keys().copied())?;
        self.unclear = false;
        Ok(!commit.through.is_empty() && commit.through.iter().all(|(partition, next)| positions.get(partition) == Some(next)))
    }

    /// The generation of the group that this consumer is in now.
    fn generation(&self) -> Result<ConsumerGroupMetadata, LogError> {
        self.poller.consumer.group_metadata().ok_or_else(|| {
            let missing = KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownGroup);
            client::failure("cannot commit", &missing)
        })
    }

    fn transact(&mut self, commit: &Commit, counted: &Tally, group: &ConsumerGroupMetadata) -> Result<(), Stopped> {
        let list = self.list(&commit.through).map_err(|error| Stopped::Nothing(client::failure("cannot commit", &error)))?;
        let positions = (list.count() > 0).then_some(Positions { list: &list, group });
        let (names, registry) = (&self.shared.names, self.shared.registry.as_deref());
        let (source, now_ms) = (headers::source_of(&commit.stage), self.shared.clock.now_ms());
        let outputs = commit.outputs.iter().map(|output| Record::passed(names, registry, output, &source));
        let letters = commit.dead_letters.iter().map(|letter| Ok(Record::dead(names, letter, now_ms)));
        let key = notes::tally_key(&commit.stage, self.writer.id());
        let tally = Record::note(names.tallies(), &key, &notes::write_tally(counted));
        // The tally first: its partition joins the transaction with those of the outputs, as a rule in one request.
        self.writer.transact([Ok(tally)].into_iter().chain(outputs).chain(letters), positions)
    }
}

impl Log for KafkaLog {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Received>, LogError> {
        let Some(registry) = self.shared.registry.as_deref() else { return self.poller.hand.take(max, wait) };
        if self.unread.is_empty() {
            self.unread.extend(self.poller.hand.take(max, wait)?);
        }
        let mut records = Vec::with_capacity(self.unread.len());
        while let Some(next) = self.unread.front_mut() {
            match record::unframe(registry, next) {
                Ok(()) => records.extend(self.unread.pop_front()),
                Err(error) if records.is_empty() => return Err(error),
                Err(_) => break, // told by the next poll
            }
        }
        Ok(records)
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), LogError> {
        // Asked for before the partitions are looked at: should one of them go, and even come back, before the end of the transaction, the
        // brokers refuse this generation, and nothing is written that comes again.
        let generation = self.generation()?;
        let partitions = self.poller.hand.refused(commit.through.keys().copied());
        if !partitions.is_empty() {
            self.unread.retain(|record| !partitions.contains(&record.partition));
            return Err(LogError::Revoked { group: self.group.clone(), partitions });
        }
        if !self.went_through(commit)? {
            let mut counted = self.counted(&commit.stage)?;
            counted += &commit.tally;
            match self.transact(commit, &counted, &generation) {
                Ok(()) => drop(self.counted.insert(commit.stage.clone(), counted)),
                Err(stopped) => {
                    self.unclear = matches!(stopped, Stopped::Unclear(_));
                    if self.unclear {
                        self.counted.clear();
                    }
                    return Err(stopped.into_error());
                }
            }
        }
        self.poller.hand.committed(&commit.through);
        Ok(())
    }

    fn backlog(&mut self) -> Result<Backlog, LogError> {
        let holdings = self.poller.hand.holdings();
        let held: u64 = holdings.iter().map(|holding| holding.held).sum();
        let oldest_ms = holdings.iter().filter_map(|holding| holding.oldest_ms).min();
        let behind: Vec<Holding> = holdings.into_iter().filter(|holding| !holding.ended).collect();
        Ok(Backlog { waiting: held + self.unpolled(&behind)?, oldest_ms })
    }

    fn revoked(&mut self) -> Vec<i32> {
        let partitions = self.poller.hand.revoked();
        self.unread.retain(|record| !partitions.contains(&record.partition));
        partitions
    }

    fn awaits(&self) -> Option<String> {
        let session_s = self.shared.config.settings().session_timeout_s;
        (!self.poller.hand.is_divided()).then(|| {
            format!(
                "group {} is being divided anew; where one of its processes was killed or the brokers hang, that takes up to {session_s} s, until its \
                 session is over",
                self.group
            )
        })
    }

    fn group(&self) -> &str {
        &self.group
    }
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("group", &self.group).field("topic", &self.topic).finish_non_exhaustive()
    }
}
