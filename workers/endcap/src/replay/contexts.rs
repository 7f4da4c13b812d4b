//! A replay of contexts: each shopper's latest snapshot goes through the backfill lane under the current generation.
//!
//! Two passes over the log, which ends for both where it ended at the start: the first one finds where each shopper's latest snapshot
//! stands, the second one sends those. Snapshots of earlier replays stand on the backfill lane: where a replay of events has made a newer one
//! of the same context, that one is sent.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result};
use endcap_runtime::{Clock, Erasure, Headers, Outgoing, Received, Stamp};
use endcap_schemas::{
    ContextChanged, UserKey,
    topics::{Lane, Topic},
    wire,
};

use super::run::{Note, Place, Sender};
use crate::{progress, sides::Sides};

/// Shoppers whose erasures are asked for together.
const ASKED_MAX: usize = 1_000;

/// What a replay of contexts works with.
pub(super) struct Contexts<'a> {
    pub(super) sides: &'a Sides,
    pub(super) clock: &'a dyn Clock,
    pub(super) generation: i32,
    /// How long a page is worth making, ms, on the replay's clock.
    pub(super) expires_ms: i64,
}

/// What the first pass has found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Snapshots in the range, of those who are meant.
    pub(super) records: u64,
    pub(super) unreadable: u64,
    /// Beside it, whether any of the shopper's snapshots in the range is a live one.
    latest: HashMap<String, (Latest, bool)>,
}

/// A shopper's latest snapshot: the newer context, then the higher generation, then what was sent later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Latest {
    context_ms: i64,
    generation: i32,
    stretch: usize,
    offset: i64,
}

impl Found {
    pub(super) fn shoppers(&self) -> u64 {
        self.latest.len() as u64
    }

    fn take(&mut self, stretch: usize, record: &Received) {
        let is_live = record.topic.lane() == Lane::Live;
        self.records += 1;
        let context = wire::decode::<ContextChanged>(&record.value).ok();
        let Some(context) = context.filter(|context| context.head.user.to_string() == record.key) else {
            self.unreadable += 1;
            return;
        };
        let (context_ms, generation) = (context.head.context_ms, context.head.generation);
        let latest = Latest { context_ms, generation, stretch, offset: record.offset };
        let (kept, has_live) = self.latest.entry(record.key.clone()).or_insert((latest, is_live));
        *kept = (*kept).max(latest);
        *has_live |= is_live;
    }
}

impl Contexts<'_> {
    /// Finds where the latest snapshot of each shopper stands whom `note` means.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(super) fn find(&self, note: &Note) -> Result<Found> {
        let (mut found, bar) = (Found::default(), progress::steps("reading contexts", 0));
        for (place, stretch) in note.stretches.iter().enumerate() {
            stretch.read(&*self.sides.log, 0, &mut |records| {
                for record in records.iter().filter(|record| note.is_meant(&record.key)) {
                    found.take(place, record);
                }
                bar.at("reading contexts", found.records, 0);
                Ok(())
            })?;
        }
        bar.finish();
        found.latest.retain(|_, (_, has_live)| *has_live || note.is_whole);
        Ok(found)
    }

    /// How many of the shoppers are erased since.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) fn erased(&self, found: &Found) -> Result<u64> {
        let all: Vec<(UserKey, i64)> =
            found.latest.iter().map(|(key, (latest, _))| (UserKey::named(key), latest.context_ms)).collect();
        let mut erased = 0;
        for some in all.chunks(ASKED_MAX) {
            erased += self.are_erased(some)?.into_iter().map(u64::from).sum::<u64>();
        }
        Ok(erased)
    }

    /// Whether each of these contexts, by shopper and time, is of a life before an erasure; asked for together.
    fn are_erased(&self, contexts: &[(UserKey, i64)]) -> Result<Vec<bool>> {
        let users: Vec<UserKey> = contexts.iter().map(|(user, _)| user.clone()).collect();
        let erasures = self.sides.store.erasures(&users).context("cannot read the store")?;
        let is_erased = |(erasure, (_, context_ms)): (Option<Erasure>, &(UserKey, i64))| {
            erasure.is_some_and(|erasure| Stamp::of(*context_ms, self.generation) <= erasure.stamp)
        };
        Ok(erasures.into_iter().zip(contexts).map(is_erased).collect())
    }

    /// Sends what was found, from where `note` says on: the context of each shopper who is not erased since.
    ///
    /// # Errors
    /// When log or store do not answer, or somebody asks to end.
    pub(super) fn send(&self, found: &Found, note: &mut Note, sender: &mut Sender<'_>) -> Result<()> {
        let chosen: HashSet<(usize, i64)> = found.latest.values().map(|(latest, _)| (latest.stretch, latest.offset)).collect();
        let bar = progress::steps("sending contexts", found.shoppers());
        let (first, from) = match note.place {
            Place::Contexts { stretch, next } => (stretch, next),
            _ => (0, 0),
        };
        for (at, stretch) in note.stretches.clone().iter().enumerate().skip(first) {
            let from = if at == first { from } else { 0 };
            stretch.read(&*self.sides.log, from, &mut |records| {
                let ours: Vec<&Received> = records.iter().filter(|record| chosen.contains(&(at, record.offset))).collect();
                for some in ours.chunks(sender.batch_max()) {
                    let next = some.last().map_or(0, |record| record.offset + 1);
                    note.place = Place::Contexts { stretch: at, next };
                    let outgoing = self.outgoing(some, note.run)?;
                    note.erased += (some.len() - outgoing.len()) as u64;
                    sender.send(&outgoing, note)?;
                    bar.at("sending contexts", note.sent, found.shoppers());
                }
                sender.go_on(Duration::ZERO)
            })?;
        }
        note.finish();
        sender.send(&[], note)?;
        bar.finish();
        Ok(())
    }

    /// The snapshots as they are sent again, without those of shoppers who were erased since.
    fn outgoing(&self, records: &[&Received], run: i64) -> Result<Vec<Outgoing>> {
        let read = |record: &&Received| wire::decode::<ContextChanged>(&record.value).context("cannot read a context");
        let contexts: Vec<ContextChanged> = records.iter().map(read).collect::<Result<_>>()?;
        let heads: Vec<(UserKey, i64)> =
            contexts.iter().map(|context| (context.head.user.clone(), context.head.context_ms)).collect();
        let erased = self.are_erased(&heads)?;
        let expires_ms = self.clock.now_ms() + self.expires_ms;
        let again = |(mut context, record): (ContextChanged, &&Received)| {
            let headers = record.headers.clone().child(&format!("replay/{run}"), Topic::CONTEXTS);
            renew(&mut context, self.generation, expires_ms);
            outgoing_of(&context, headers)
        };
        let all = contexts.into_iter().zip(records).zip(erased);
        all.filter(|(_, is_erased)| !is_erased).map(|(each, _)| again(each)).collect()
    }
}

/// Brings a context to this generation and to the replay's clock.
pub(super) fn renew(context: &mut ContextChanged, generation: i32, expires_ms: i64) {
    context.head.generation = generation;
    context.head.expires_ms = expires_ms;
}

/// A context as a replay sends it.
pub(super) fn outgoing_of(context: &ContextChanged, headers: Headers) -> Result<Outgoing> {
    let value = wire::encode(context).context("cannot send a context")?;
    Ok(Outgoing { topic: Topic::CONTEXTS.on(Lane::Backfill), key: context.head.user.clone(), headers, value })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use endcap_runtime::{Broker, Embedded, EmbeddedConfig, ManualClock, Shutdown, Store, Write};
    use endcap_schemas::{Brief, Budget, Cause, DietSet, Head, Season};

    use super::*;
    use crate::replay::{
        bounds::{Bound, Wanted},
        twin::Counting,
    };

    const NOW_MS: i64 = 1_700_000_000_000;

    fn context(user: &str, context_ms: i64, event_id: &str, lane: Lane) -> Outgoing {
        let cause = Cause { event_id: event_id.to_owned(), event_ms: 1, accepted_ms: 1 };
        let head = Head { user: UserKey::of(user), context_ms, generation: 1, cause, expires_ms: 2 };
        let brief = Brief {
            diets: DietSet::NONE,
            budget: Budget::Middle,
            locale: "en".to_owned(),
            season: Season::Winter,
            dislikes: Vec::new(),
            personalise: true,
        };
        let message = ContextChanged { head, brief, favourites: Vec::new(), recent: Vec::new() };
        let outgoing = outgoing_of(&message, Headers::root(event_id, Topic::CONTEXTS, 1)).unwrap();
        Outgoing { topic: Topic::CONTEXTS.on(lane), ..outgoing }
    }

    fn file(dir: &tempfile::TempDir) -> Embedded {
        Embedded::open(dir.path().join("file"), EmbeddedConfig::default(), Arc::new(ManualClock::at(NOW_MS))).unwrap()
    }

    /// A replay of `from` on the log in `file` that has not begun.
    fn note(file: &Embedded, from: Bound) -> Note {
        let wanted = Wanted { from, to: None, partitions: Vec::new() };
        let mut stretches = wanted.stretches(file, Topic::CONTEXTS, NOW_MS).unwrap();
        stretches.extend(wanted.behind().stretches(file, Topic::CONTEXTS.on(Lane::Backfill), NOW_MS).unwrap());
        let (is_whole, place) = (wanted.is_whole(), Place::Contexts { stretch: 0, next: 0 });
        Note { run: 5, generation: Some(2), stretches, users: Vec::new(), is_whole, rate: None, sent: 0, erased: 0, place }
    }

    /// What a replay of `from` sends: event, generation and expiry.
    fn sent(file: &Embedded, from: Bound) -> Vec<(String, i32, i64)> {
        let (sides, clock, shutdown) = (Sides::embedded(file.clone()), ManualClock::at(NOW_MS), Shutdown::new());
        let (slow, mut note) = (Topic::CONTEXTS.on(Lane::Backfill), note(file, from));
        let contexts = Contexts { sides: &sides, clock: &clock, generation: 7, expires_ms: 60 };
        let (found, end) = (contexts.find(&note).unwrap(), file.end(slow).unwrap());
        contexts.send(&found, &mut note, &mut Sender::new(file, &clock, &shutdown, None)).unwrap();
        assert_eq!(Note::of(file, 5).unwrap().place, Place::Done);
        let records = file.records(slow, end, 99).unwrap();
        let read = |record: &Received| wire::decode::<ContextChanged>(&record.value).unwrap().head;
        records.iter().map(read).map(|head| (head.cause.event_id, head.generation, head.expires_ms)).collect()
    }

    #[test]
    fn of_each_shopper_the_latest_context_is_sent_wherever_it_stands() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        let mut records = vec![
            context("anna", 1, "old", Lane::Live),
            context("anna", 2, "anna", Lane::Live),
            context("bert", 9, "bert", Lane::Live),
            context("gone", 1, "gone", Lane::Live),
            context("anna", 2, "anna again", Lane::Backfill),
            context("bert", 8, "bert before", Lane::Backfill),
            context("carl", 1, "carl", Lane::Backfill),
        ];
        records.push(Outgoing { key: UserKey::of("else"), ..records[0].clone() });
        Broker::append(&file, &records, None).unwrap();
        let erase = Write::Erase { user: UserKey::of("gone"), stamp: Stamp::of(1, 999), at: None };
        file.put_all(&[erase], &[]).unwrap();
        let told = |event: &str| (event.to_owned(), 7, NOW_MS + 60);
        let changed = sent(&file, Bound::Last(Duration::from_secs(1)));
        assert_eq!(changed, [told("bert"), told("anna again")], "carl's live context is not in the range");
        assert_eq!(sent(&file, Bound::Offset(2)), [told("bert")]);
        let whole = sent(&file, Bound::Earliest);
        assert_eq!(whole.len(), 3, "{whole:?}");
        assert!(whole.contains(&told("carl")));
    }

    #[test]
    fn erasures_of_many_shoppers_are_asked_for_together() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(&dir);
        let records: Vec<Outgoing> = (0..250).map(|n| context(&format!("u{n}"), 1, "event", Lane::Live)).collect();
        Broker::append(&file, &records, None).unwrap();
        let (store, clock, shutdown) = (Arc::new(Counting::of(file.clone())), ManualClock::at(NOW_MS), Shutdown::new());
        let sides = Sides { store: store.clone(), ..Sides::embedded(file.clone()) };
        let contexts = Contexts { sides: &sides, clock: &clock, generation: 7, expires_ms: 60 };
        let mut note = note(&file, Bound::Earliest);
        let found = contexts.find(&note).unwrap();
        assert_eq!((contexts.erased(&found).unwrap(), store.asked()), (0, 1));
        contexts.send(&found, &mut note, &mut Sender::new(&file, &clock, &shutdown, None)).unwrap();
        assert_eq!((note.sent, store.asked()), (250, 3), "once for every append");
    }
}
