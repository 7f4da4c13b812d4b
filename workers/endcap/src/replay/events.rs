//! A replay of events: the shoppers' events are folded from scratch, the new states take the old ones' place, and their contexts go through
//! the backfill lane.
//!
//! The folding is done here and not by the context stage: nothing half folded has to be stored, and no event gets a second verdict. A new
//! state is written under the clock of the one that it replaces (`Refold::in_place_of`), so the store keeps it unless the live fold has
//! gone on from the old one meanwhile. Whether it has is known when the context stage has come past the end that the log had after the
//! write: whatever it had in work then is stored. Shoppers whose states were overtaken are folded again, up to that end: a further pass.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use endcap_context::{ContextConfig, FoldState, Folded, Position, Refold};
use endcap_retrieval::Market;
use endcap_runtime::{Broker, Clock, Headers, Outgoing, Received, Store, StoreOverview, Write};
use endcap_schemas::{Product, ShopperEvent, UserKey, topics::Topic, wire};

use super::{
    bounds::Stretch,
    contexts::{outgoing_of, renew},
    live,
    run::{Mark, Note, Place, Sender},
};
use crate::{deploy, manifest::Manifest, progress, sides::Sides};

/// Shoppers whose events are folded in one reading of their partition: bounds the memory, some kilobytes each.
const SHOPPERS_MAX: usize = 25_000;
/// States that are read at once.
const READ_MAX: usize = 1_000;
/// Passes in a row that bring nobody further, after which those who are left are taken for shoppers who never pause.
const PASSES_IN_VAIN_MAX: u32 = 20;
const CANNOT_READ: &str = "cannot read the store";

/// What a replay of events works with.
pub(super) struct Events<'a> {
    pub(super) sides: &'a Sides,
    pub(super) market: &'a Market,
    pub(super) config: &'a ContextConfig,
    pub(super) clock: &'a dyn Clock,
    pub(super) generation: i32,
    /// What is deployed under it.
    pub(super) manifest: &'a Manifest,
}

/// The shoppers of a range.
#[derive(Debug, Default)]
pub(super) struct Shoppers {
    /// Their events in the range.
    pub(super) events: u64,
    /// Per stretch, in the order of their marks: a note can tell how far a run is, then, and names nobody.
    by_stretch: Vec<BTreeSet<(Mark, String)>>,
}

impl Shoppers {
    pub(super) fn count(&self) -> u64 {
        self.by_stretch.iter().map(|shoppers| shoppers.len() as u64).sum()
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) passes: u32,
    /// Events by what became of them, over all passes.
    pub(super) events: BTreeMap<&'static str, u64>,
    /// Shoppers of whom nothing is left to be known: their states stay as they are.
    pub(super) kept: HashSet<String>,
    /// Shoppers whom live events have overtaken in every pass: the live fold's states stay.
    pub(super) overtaken: usize,
}

/// How often in a row passes have brought nobody further.
#[derive(Debug, Default)]
struct Vain {
    left: Option<usize>,
    passes: u32,
}

impl Vain {
    /// Takes in that `left` shoppers are left after a pass; answers whether a further one may bring some of them further.
    fn go_on(&mut self, left: usize) -> bool {
        let is_vain = self.left.is_some_and(|before| left >= before);
        self.passes = if is_vain { self.passes + 1 } else { 0 };
        self.left = Some(left);
        self.passes < PASSES_IN_VAIN_MAX
    }
}

impl Events<'_> {
    /// Finds the shoppers of the range whom `note` means.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(super) fn find(&self, note: &Note) -> Result<Shoppers> {
        let (mut found, bar) = (Shoppers::default(), progress::steps("reading events", 0));
        for stretch in &note.stretches {
            let mut shoppers = BTreeSet::new();
            stretch.read(self.log(), 0, &mut |records| {
                for record in records.iter().filter(|record| note.is_meant(&record.key) && event_of(record).is_some()) {
                    found.events += 1;
                    shoppers.insert((note.mark(&record.key), record.key.clone()));
                }
                bar.at("reading events", found.events, 0);
                Ok(())
            })?;
            found.by_stretch.push(shoppers);
        }
        bar.finish();
        Ok(found)
    }

    /// Folds, switches and sends until every shopper's state is of this run, or only those are left who never pause for as long as a pass
    /// takes.
    ///
    /// # Errors
    /// When log, store or catalogue do not answer, somebody asks to end, or a newer generation's states stand in the way.
    pub(super) fn run(&self, found: &Shoppers, note: &mut Note, sender: &mut Sender<'_>) -> Result<Told> {
        let (mut told, mut vain) = (Told::default(), Vain::default());
        loop {
            let Place::Events { pass, to, stretch, after } = note.place.clone() else { return Ok(told) };
            let is_whole = stretch == 0 && after.is_none();
            told.passes = pass;
            told.kept.clear();
            // Nothing is folded that the context stage has not come to. A state ahead of it keeps the clock of the one that it replaces, and the
            // stage would tell of later events under that clock once more.
            live::wait_for(self.log(), &to, self.clock, sender)?;
            self.pass(found, note, sender, &mut told)?;
            let ends = self.log().ends(Topic::EVENTS).context("cannot read the log")?;
            live::wait_for(self.log(), &ends, self.clock, sender)?;
            let all = found.by_stretch.iter().flatten().map(|(_, key)| key).filter(|key| !told.kept.contains(*key));
            let left = self.left(all, note.run)?.len();
            if left > 0 {
                self.check_active(note)?;
            }
            if left > 0 && is_whole && to.iter().all(|(partition, end)| ends.get(partition) == Some(end)) {
                bail!("{left} shoppers keep states that a newer generation has written: replay with the release that runs now");
            }
            if left == 0 || !vain.go_on(left) {
                told.overtaken = left;
                note.finish();
                sender.send(&[], note)?;
                return Ok(told);
            }
            progress::say(&format!("pass {pass}: live events have overtaken {left} shoppers; they are folded again"));
            // Up to now, and not to where it was waited for: the less time lies between, the fewer are overtaken again.
            let ends = self.log().ends(Topic::EVENTS).context("cannot read the log")?;
            note.place = Place::Events { pass: pass + 1, to: ends, stretch: 0, after: None };
            sender.send(&[], note)?;
        }
    }

    /// Refuses to go on for a pipeline that was deployed anew: its states would stand in the way for ever.
    fn check_active(&self, note: &Note) -> Result<()> {
        let active = deploy::generation(self.store_overview(), None)?;
        if !active.is_some_and(|active| active.manifest == *self.manifest) {
            bail!("the pipeline was deployed anew since replay {} began: begin a new one", note.run);
        }
        Ok(())
    }

    fn store_overview(&self) -> &dyn StoreOverview {
        &*self.sides.store
    }

    fn log(&self) -> &dyn Broker {
        &*self.sides.log
    }

    fn store(&self) -> &dyn Store {
        &*self.sides.store
    }

    /// One pass over all stretches, from where `note` says on.
    fn pass(&self, found: &Shoppers, note: &mut Note, sender: &mut Sender<'_>, told: &mut Told) -> Result<()> {
        let Place::Events { pass, to, stretch: first, after } = note.place.clone() else { return Ok(()) };
        let bar = progress::steps("folding events", found.count());
        for (at, shoppers) in found.by_stretch.iter().enumerate().skip(first) {
            let mut stretch = note.stretches[at].clone();
            stretch.to = to.get(&stretch.partition).copied().unwrap_or(stretch.to);
            let after = after.filter(|_| at == first);
            let wanted = shoppers.iter().filter(|(mark, _)| after.is_none_or(|after| *mark > after));
            let mut ours: Vec<String> = wanted.map(|(_, key)| key.clone()).collect();
            // The first pass sends everybody's context.
            if pass > 1 {
                let old = self.left(ours.iter(), note.run)?;
                ours.retain(|key| old.contains(key));
            }
            for some in ours.chunks(SHOPPERS_MAX) {
                let folded = self.fold(&stretch, some, told)?;
                for few in some.chunks(sender.batch_max()) {
                    let (outgoing, writes) = self.replaced(few, &folded, note.run, told)?;
                    let after = few.last().map(|key| note.mark(key));
                    note.place = Place::Events { pass, to: to.clone(), stretch: at, after };
                    // Killed between the two, a run does both again: the first pass takes whoever was not sent, the others whose state is old.
                    if pass == 1 {
                        self.write(&writes)?;
                        sender.send(&outgoing, note)?;
                    } else {
                        sender.send(&outgoing, note)?;
                        self.write(&writes)?;
                    }
                    bar.at("folding events", note.sent, found.count());
                }
            }
        }
        bar.finish();
        Ok(())
    }

    /// Folds the events of `shoppers` in a stretch from scratch.
    fn fold(&self, stretch: &Stretch, shoppers: &[String], told: &mut Told) -> Result<HashMap<String, Refold>> {
        let users: Vec<UserKey> = shoppers.iter().map(|key| UserKey::named(key)).collect();
        let erasures = self.store().erasures(&users).context(CANNOT_READ)?;
        let mut folds: HashMap<String, Refold> = shoppers.iter().cloned().zip(erasures.into_iter().map(Refold::new)).collect();
        stretch.read(self.log(), 0, &mut |records| {
            for record in records {
                let Some(event) = event_of(record) else { continue };
                let Some(fold) = folds.get_mut(&record.key) else { continue };
                let Received { partition, offset, appended_ms, .. } = *record;
                let products = self.products(&event)?;
                let at = Position { partition, offset, appended_ms };
                let became = match fold.take(&event, at, self.config, |id| products.get(id).cloned()) {
                    Folded::Changed(_) => "folded",
                    Folded::Erase(_) => "erasures",
                    Folded::Again => "duplicate",
                    Folded::Dropped(reason) => reason.label(),
                    Folded::Rejected(rejection) => rejection.kind,
                };
                *told.events.entry(became).or_default() += 1;
            }
            Ok(())
        })?;
        Ok(folds)
    }

    /// The products of an event's lines, as far as the catalogue has them.
    fn products(&self, event: &ShopperEvent) -> Result<HashMap<String, Product>> {
        let (market, mut products) = (self.market.snapshot(), HashMap::with_capacity(event.lines.len()));
        for line in &event.lines {
            let found = market.product(&line.product).context("cannot read the catalogue")?;
            products.extend(found.map(|product| (line.product.clone(), product)));
        }
        Ok(products)
    }

    /// The new states in place of the stored ones, and their contexts.
    fn replaced(
        &self,
        shoppers: &[String],
        folds: &HashMap<String, Refold>,
        run: i64,
        told: &mut Told,
    ) -> Result<(Vec<Outgoing>, Vec<Write>)> {
        let (mut writes, mut outgoing) = (Vec::new(), Vec::new());
        let expires_ms = self.clock.now_ms() + self.config.expires_ms();
        for (key, live) in shoppers.iter().zip(self.states(shoppers)?) {
            let user = UserKey::named(key);
            if live.as_ref().is_some_and(|live| live.epoch() > run) {
                continue; // a later replay was here
            }
            let Some(fold) = folds.get(key) else { continue };
            if live.as_ref().is_some_and(|live| fold.is_overtaken_by(live)) {
                continue; // left to the next pass
            }
            let Some(state) = fold.in_place_of(live.as_ref(), run) else {
                told.kept.insert(key.clone());
                continue;
            };
            let mut context = state.snapshot(&user, self.generation, self.config);
            renew(&mut context, self.generation, expires_ms);
            let cause = &context.head.cause;
            let event = Headers::root(cause.event_id.clone(), Topic::EVENTS, cause.event_ms);
            let headers = event.child(&format!("replay/{run}"), Topic::CONTEXTS);
            outgoing.push(outgoing_of(&context, headers)?);
            writes.push(Write::State { user, stamp: state.stamp(self.generation), state: state.encode() });
        }
        Ok((outgoing, writes))
    }

    fn write(&self, states: &[Write]) -> Result<()> {
        self.store().put_all(states, &[]).context("cannot write the new states")
    }

    /// The stored states of shoppers, in their order.
    fn states(&self, shoppers: &[String]) -> Result<Vec<Option<FoldState>>> {
        let users: Vec<UserKey> = shoppers.iter().map(|key| UserKey::named(key)).collect();
        let states = self.store().states(&users).context(CANNOT_READ)?;
        let read = |(key, bytes): (&String, Option<Vec<u8>>)| {
            bytes.map(|bytes| FoldState::decode(&bytes).with_context(|| format!("cannot read the state of {key}"))).transpose()
        };
        shoppers.iter().zip(states).map(read).collect()
    }

    /// Those of `shoppers` whose states go back to an earlier fold than this run's; without a state there is nothing to switch.
    fn left<'k>(&self, shoppers: impl Iterator<Item = &'k String>, run: i64) -> Result<HashSet<String>> {
        let shoppers: Vec<String> = shoppers.cloned().collect();
        let mut left = HashSet::new();
        for some in shoppers.chunks(READ_MAX) {
            let states = some.iter().zip(self.states(some)?);
            let old = states.filter(|(_, state)| state.as_ref().is_some_and(|state| state.epoch() < run));
            left.extend(old.map(|(key, _)| key.clone()));
        }
        Ok(left)
    }

    /// What the log does not tell any more, in words; `None` where it is whole.
    ///
    /// # Errors
    /// When the log does not answer.
    pub(super) fn forgotten(&self, stretches: &[Stretch]) -> Result<Option<String>> {
        let mut first: Option<(i64, i64)> = None;
        for stretch in stretches {
            let records = self.log().records(Topic::EVENTS, stretch.partition, stretch.from, 1).context("cannot read the log")?;
            for record in records.iter().filter(|record| record.offset > 0) {
                first = first.max(Some((record.appended_ms, record.offset)));
            }
        }
        Ok(first.map(|(ms, _)| {
            let at = humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(ms.unsigned_abs()));
            format!("the range does not begin with the log: what shoppers did before {at} is forgotten, preferences and diets included")
        }))
    }
}

/// The event of a record. What cannot be read, or came under another key than its shopper's, became a dead letter then and stays one.
fn event_of(record: &Received) -> Option<ShopperEvent> {
    wire::decode::<ShopperEvent>(&record.value).ok().filter(|event| event.key().to_string() == record.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shoppers_who_never_pause_are_given_up_after_passes_in_vain_in_a_row() {
        let mut vain = Vain::default();
        assert!((0..100).rev().all(|left| vain.go_on(left)), "as long as some get further it goes on");
        let mut vain = Vain { left: Some(9), passes: 0 };
        assert!((1..PASSES_IN_VAIN_MAX).all(|_| vain.go_on(9)));
        assert!(vain.go_on(8), "one more got further");
        assert!((1..PASSES_IN_VAIN_MAX).all(|_| vain.go_on(8)));
        assert!(!vain.go_on(8));
    }
}
