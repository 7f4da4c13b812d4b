//! What a run left behind: the log's records, its tallies, the store's rows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use endcap::sides::Sides;
use endcap_runtime::{DeadLetterFilter, Received, StoredPage, Tally};
use endcap_schemas::{
    ContextChanged, KeywordsChosen, Message, PagePublished, ThemesDeduped, ThemesWritten, UserKey,
    topics::{Lane, Topic},
    wire,
};

use crate::fleet::STAGES;

/// Records that are read at once.
const READ: usize = 256;

/// Everything that is judged.
pub(crate) struct Facts {
    /// The events' topic as it is, partition by partition.
    pub(crate) events: Vec<Received>,
    /// On the live lane alone.
    pub(crate) contexts: Vec<ContextChanged>,
    /// On both lanes.
    pub(crate) deduped: Vec<ThemesDeduped>,
    /// Published pages with their bytes, on both lanes.
    pub(crate) pages: Vec<(Vec<u8>, PagePublished)>,
    /// Records of each topic, and how many of them repeat an earlier one.
    pub(crate) records: BTreeMap<Topic, Records>,
    pub(crate) tallies: BTreeMap<String, Tally>,
    /// What the first stage gave up: where each record stands in the events' topic, and the kind.
    pub(crate) letters: Vec<(Place, String)>,
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
        let topics = Topics::read(sides)?;
        let events = &topics.0[&Topic::EVENTS];
        let mut records = BTreeMap::from([(Topic::EVENTS, Records { count: events.len() as u64, doubled: 0 })]);
        for lane in Lane::ALL {
            records.extend([
                topics.counted::<ContextChanged>(lane)?,
                topics.counted::<ThemesWritten>(lane)?,
                topics.counted::<KeywordsChosen>(lane)?,
                topics.counted::<ThemesDeduped>(lane)?,
                topics.counted::<PagePublished>(lane)?,
            ]);
        }
        let [live, backfill] = Lane::ALL.map(|lane| topics.pages(lane));
        let [deduped, replayed] = Lane::ALL.map(|lane| topics.decoded::<ThemesDeduped>(lane));
        let mut facts = Self {
            records,
            contexts: topics.decoded(Lane::Live)?,
            deduped: [deduped?, replayed?].concat(),
            pages: [live?, backfill?].concat(),
            tallies: sides.tallies()?,
            letters: letters(sides)?,
            rows: BTreeMap::new(),
            events: events.clone(),
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

/// Partition and offset of an event.
pub(crate) type Place = (i32, i64);

/// Where a record stands.
pub(crate) fn place_of(record: &Received) -> Place {
    (record.partition, record.offset)
}

fn letters(sides: &Sides) -> Result<Vec<(Place, String)>> {
    let of_first = DeadLetterFilter { stage: Some(STAGES[0].to_owned()), limit: usize::MAX, ..DeadLetterFilter::default() };
    let letters = sides.log.dead_letters(&of_first).context("cannot read dead letters")?;
    Ok(letters.into_iter().map(|letter| ((letter.partition, letter.offset), letter.kind)).collect())
}

/// Whose record it is.
pub(crate) fn key_of(record: &Received) -> UserKey {
    UserKey::named(&record.key)
}

/// The records of every topic, on both lanes.
struct Topics(BTreeMap<Topic, Vec<Received>>);

impl Topics {
    fn read(sides: &Sides) -> Result<Self> {
        let mut topics: BTreeMap<Topic, Vec<Received>> = BTreeMap::new();
        for topic in Topic::all() {
            let records = topics.entry(topic).or_default();
            sides.each_record(topic, READ, &mut |record| {
                records.push(record.clone());
                Ok(())
            })?;
        }
        Ok(Self(topics))
    }

    fn decoded<M: Message>(&self, lane: Lane) -> Result<Vec<M>> {
        let read = |record: &Received| {
            wire::decode(&record.value)
                .with_context(|| format!("cannot read {} partition {} offset {}", record.topic, record.partition, record.offset))
        };
        self.0[&M::TOPIC.on(lane)].iter().map(read).collect()
    }

    fn pages(&self, lane: Lane) -> Result<Vec<(Vec<u8>, PagePublished)>> {
        let values = self.0[&Topic::PAGES.on(lane)].iter().map(|record| record.value.clone());
        Ok(values.zip(self.decoded::<PagePublished>(lane)?).collect())
    }

    /// A record is another one when its id or its context is. An id alone may come again: behind an erasure, so may the event that it is made
    /// of.
    fn counted<M: Message>(&self, lane: Lane) -> Result<(Topic, Records)> {
        let topic = M::TOPIC.on(lane);
        let (records, messages) = (&self.0[&topic], self.decoded::<M>(lane)?);
        let context_ms = |message: &M| message.head().map(|head| head.context_ms);
        let names = records.iter().zip(&messages);
        let names = names.map(|(record, message)| (&record.headers.id, &record.key, context_ms(message)));
        let distinct = names.collect::<BTreeSet<_>>().len();
        Ok((topic, Records { count: records.len() as u64, doubled: (records.len() - distinct) as u64 }))
    }
}
