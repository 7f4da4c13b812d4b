//! What a run left behind: the log's records, its tallies, the store's rows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use endcap::sides::Sides;
use endcap_runtime::{Received, StoredPage, Tally};
use endcap_schemas::{
    ContextChanged, KeywordsChosen, Message, PagePublished, ThemesDeduped, ThemesWritten, UserKey, topics::Topic, wire,
};

/// Records that are read at once.
const READ: usize = 256;

/// Everything that is judged.
pub(crate) struct Facts {
    /// The events' topic as it is, partition by partition.
    pub(crate) events: Vec<Received>,
    pub(crate) contexts: Vec<ContextChanged>,
    pub(crate) deduped: Vec<ThemesDeduped>,
    /// Published pages with their bytes.
    pub(crate) pages: Vec<(Vec<u8>, PagePublished)>,
    /// Records of each topic, and how many of them repeat an earlier one.
    pub(crate) records: BTreeMap<Topic, Records>,
    pub(crate) tallies: BTreeMap<String, Tally>,
    /// State and page of everybody who has an event.
    pub(crate) rows: BTreeMap<UserKey, Rows>,
}

/// Counts of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Records {
    pub(crate) count: u64,
    pub(crate) doubled: u64,
}

/// What the store holds of a shopper.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Rows {
    pub(crate) state: Option<Vec<u8>>,
    pub(crate) page: Option<StoredPage>,
}

impl Facts {
    /// Reads all of it.
    ///
    /// # Errors
    /// When log or store do not answer, or the log holds a record on the path that cannot be read.
    pub(crate) fn read(sides: &Sides) -> Result<Self> {
        let mut topics: BTreeMap<Topic, Vec<Received>> = BTreeMap::new();
        for topic in Topic::PATH {
            let records = topics.entry(topic).or_default();
            sides.each_record(topic, READ, &mut |record| {
                records.push(record.clone());
                Ok(())
            })?;
        }
        let pages = decoded::<PagePublished>(&topics)?;
        let values = topics[&Topic::PAGES].iter().map(|record| record.value.clone());
        let mut facts = Self {
            records: BTreeMap::from([
                (Topic::EVENTS, Records { count: topics[&Topic::EVENTS].len() as u64, doubled: 0 }),
                counted(&topics, &decoded::<ContextChanged>(&topics)?),
                counted(&topics, &decoded::<ThemesWritten>(&topics)?),
                counted(&topics, &decoded::<KeywordsChosen>(&topics)?),
                counted(&topics, &decoded::<ThemesDeduped>(&topics)?),
                counted(&topics, &pages),
            ]),
            contexts: decoded(&topics)?,
            deduped: decoded(&topics)?,
            pages: values.zip(pages).collect(),
            tallies: sides.tallies()?,
            rows: BTreeMap::new(),
            events: topics.remove(&Topic::EVENTS).unwrap_or_default(),
        };
        let users: BTreeSet<UserKey> = facts.events.iter().map(key_of).collect();
        for user in users {
            let state = sides.store.state(&user).context("cannot read a state")?;
            let page = sides.store.page(&user).context("cannot read a page")?;
            facts.rows.insert(user, Rows { state, page });
        }
        Ok(facts)
    }
}

/// Whose record it is.
pub(crate) fn key_of(record: &Received) -> UserKey {
    record.key.parse().unwrap_or_else(|never| match never {})
}

/// A record is another one when its id or its context is. An id alone may come again: behind an erasure, so may the event that it is made of.
fn counted<M: Message>(topics: &BTreeMap<Topic, Vec<Received>>, messages: &[M]) -> (Topic, Records) {
    let records = &topics[&M::TOPIC];
    let context_ms = |message: &M| message.head().map(|head| head.context_ms);
    let names = records.iter().zip(messages).map(|(record, message)| (&record.headers.id, &record.key, context_ms(message)));
    let distinct = names.collect::<BTreeSet<_>>().len();
    (M::TOPIC, Records { count: records.len() as u64, doubled: (records.len() - distinct) as u64 })
}

fn decoded<M: Message>(topics: &BTreeMap<Topic, Vec<Received>>) -> Result<Vec<M>> {
    let read = |record: &Received| {
        wire::decode(&record.value)
            .with_context(|| format!("cannot read {} partition {} offset {}", record.topic, record.partition, record.offset))
    };
    topics[&M::TOPIC].iter().map(read).collect()
}
