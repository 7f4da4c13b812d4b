//! Holds what a disturbed run left behind against what must be, and against an undisturbed run.

use std::collections::{BTreeMap, BTreeSet};

use endcap_context::FoldState;
use endcap_market::{DEMO_SEED, Market};
use endcap_runtime::{DropReason, INGEST, Stamp, StoredPage, Tally};
use endcap_schemas::{
    Origin, PagePublished, Theme, ThemesDeduped, UserKey,
    topics::{Lane, Topic},
    wire,
};
use serde::Deserialize;

use crate::{
    expect::{Expected, Shopper},
    facts::{Facts, Rows},
    fleet::STAGES,
    load::Sent,
};

/// What was found. Everything but the first and the last is a fault.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) accepted: u64,
    /// Events, effects and records that must be there and are not.
    pub(crate) lost: u64,
    /// Effects and records that are there more often than they must be.
    pub(crate) duplicated: u64,
    /// Pages that cannot be read, or whose parts are not of one context.
    pub(crate) torn: u64,
    /// Shoppers whose page is another one than in the undisturbed run.
    pub(crate) differing_pages: u64,
    /// Stages whose verdicts are not as many as their records.
    pub(crate) unbalanced: u64,
    /// What was wrong, in words; the first few.
    pub(crate) findings: Vec<String>,
    /// Processes that had been at work and ended by themselves.
    pub(crate) stopped: u64,
}

/// Findings that are kept in words.
const FINDINGS: usize = 40;

impl Figures {
    fn find(&mut self, count: u64, field: fn(&mut Self) -> &mut u64, words: impl FnOnce() -> String) {
        if count == 0 {
            return;
        }
        *field(self) += count;
        if self.findings.len() < FINDINGS {
            self.findings.push(words());
        }
    }

    fn lose(&mut self, count: u64, words: impl FnOnce() -> String) {
        self.find(count, |figures| &mut figures.lost, words);
    }

    fn double(&mut self, count: u64, words: impl FnOnce() -> String) {
        self.find(count, |figures| &mut figures.duplicated, words);
    }

    /// `got` must be `wanted`: less is lost, more is doubled.
    fn weigh(&mut self, got: u64, wanted: u64, what: impl Fn() -> String) {
        self.lose(wanted.saturating_sub(got), || format!("{}: {got}, {wanted} are due", what()));
        self.double(got.saturating_sub(wanted), || format!("{}: {got}, {wanted} are due", what()));
    }
}

/// Judges a run.
pub(crate) fn judge(sent: &Sent, run: &Facts, calm: &Facts) -> Figures {
    let catalogue: BTreeSet<String> = Market::generate(DEMO_SEED).products.into_iter().map(|product| product.id).collect();
    let expected = Expected::of(&run.events, |product| catalogue.contains(product));
    let mut figures = Figures { accepted: sent.accepted.len() as u64, ..Figures::default() };
    let missing: Vec<&String> = sent.accepted.difference(&expected.ids).collect();
    figures.lose(missing.len() as u64, || format!("accepted, but not in the log: {missing:?}"));
    stages(&mut figures, run, &expected);
    for (user, shopper) in &expected.shoppers {
        effects(&mut figures, user, shopper, run);
    }
    pages(&mut figures, run);
    compare(&mut figures, run, calm);
    figures
}

/// Every stage has one verdict for each record of its topic, and one record of the next topic for each that it passed on.
fn stages(figures: &mut Figures, run: &Facts, expected: &Expected) {
    let none = Tally::default();
    for lane in Lane::ALL {
        // A shopper's events have one order: the first stage has one lane.
        let first = usize::from(lane == Lane::Backfill);
        for (place, stage) in STAGES.iter().enumerate().skip(first) {
            let stage = lane.named(stage);
            let tally = run.tallies.get(&stage).unwrap_or(&none);
            let [before, after] = [place, place + 1].map(|place| run.records[&Topic::PATH[place].on(lane)]);
            figures.find(u64::from(!tally.is_balanced()), |figures| &mut figures.unbalanced, || format!("{stage}: {tally:?}"));
            figures.weigh(tally.received, before.count, || format!("records with a verdict of {stage}"));
            figures.weigh(after.count, tally.passed, || format!("records that {stage} passed on"));
            figures.double(after.doubled, || format!("{} records of {stage} stand in the log twice", after.doubled));
        }
        let replayed = run.records[&Topic::CONTEXTS.on(lane)].doubled * first as u64;
        figures.double(replayed, || format!("{replayed} contexts were replayed twice in one run"));
    }
    letters(figures, run, expected, run.tallies.get(STAGES[0]).unwrap_or(&none));
    let door = run.tallies.get(INGEST).unwrap_or(&none);
    figures.find(u64::from(!door.is_balanced()), |figures| &mut figures.unbalanced, || format!("{INGEST}: {door:?}"));
}

/// Every dead letter of the first stage is due, written once, and counted in its `tally`. One that an erasure follows may have come again behind it.
fn letters(figures: &mut Figures, run: &Facts, expected: &Expected, tally: &Tally) {
    // An erasure is dropped as erased itself; beside them stand events that came again behind theirs.
    let erased = tally.dropped.get(DropReason::Erased.label()).copied().unwrap_or(0);
    let mut came_again = erased.saturating_sub(expected.erasures);
    for (place, due) in &expected.letters {
        let written = run.letters.iter().filter(|(at, kind)| at == place && kind == due.kind).count() as u64;
        if written == 0 && due.is_erasable && came_again > 0 {
            came_again -= 1; // each of them explains one alone
            continue;
        }
        figures.weigh(written, 1, || format!("dead letters `{}` of the event at {place:?}", due.kind));
    }
    let others = run.letters.iter().filter(|(at, kind)| expected.letters.get(at).is_none_or(|due| due.kind != kind));
    let others: Vec<_> = others.collect();
    figures.double(others.len() as u64, || format!("dead letters that are not due: {others:?}"));
    let kinds: BTreeSet<&String> = run.letters.iter().map(|(_, kind)| kind).chain(tally.dead_lettered.keys()).collect();
    for kind in kinds {
        let written = run.letters.iter().filter(|(_, of)| of == kind).count() as u64;
        let counted = tally.dead_lettered.get(kind).copied().unwrap_or(0);
        figures.weigh(counted, written, || format!("counted dead letters `{kind}`"));
    }
}

/// The part of a fold state that is judged.
#[derive(Debug, Deserialize)]
struct State {
    clock_ms: i64,
    cause: Cause,
    purchases: Vec<Purchase>,
}

#[derive(Debug, Deserialize)]
struct Cause {
    event_id: String,
}

#[derive(Debug, Deserialize)]
struct Purchase {
    product: String,
    count: i64,
}

/// Everything that a shopper did is in their state, once.
fn effects(figures: &mut Figures, user: &UserKey, shopper: &Shopper, run: &Facts) {
    let rows = run.rows.get(user).cloned().unwrap_or_default();
    let Some(last) = &shopper.last else {
        figures.double(u64::from(rows != Rows::default()), || format!("{user} has rows, and none is due: {rows:?}"));
        return;
    };
    let Some(state) = rows.state.as_deref().and_then(state_of) else {
        figures.lose(1, || format!("{user} has no state that can be read, and one is due"));
        return;
    };
    figures.lose(u64::from(state.cause.event_id != *last), || {
        format!("the last event of {user} is {}, {last} is due", state.cause.event_id)
    });
    let bought: BTreeMap<&str, i64> =
        state.purchases.iter().map(|purchase| (purchase.product.as_str(), purchase.count)).collect();
    let products: BTreeSet<&str> = bought.keys().copied().chain(shopper.bought.keys().map(String::as_str)).collect();
    for product in products {
        let got = bought.get(product).copied().unwrap_or(0).unsigned_abs();
        let due = shopper.bought.get(product).copied().unwrap_or(0).unsigned_abs();
        figures.weigh(got, due, || format!("purchases of {product} by {user}"));
    }
    let newest = run.contexts.iter().filter(|context| context.head.user == *user).max_by_key(|context| context.head.context_ms);
    let is_told = newest
        .is_some_and(|context| context.head.context_ms == state.clock_ms && context.head.cause.event_id == state.cause.event_id);
    figures.lose(u64::from(!is_told), || format!("the last context of {user} is not in the log"));
    let mut clocks = BTreeSet::new();
    let doubled = run.contexts.iter().filter(|context| context.head.user == *user);
    let doubled = doubled.filter(|context| !clocks.insert(context.head.context_ms)).count();
    figures.double(doubled as u64, || format!("{doubled} contexts of {user} stand in the log twice"));
}

/// State as the store holds it: one that the context stage itself reads.
fn state_of(bytes: &[u8]) -> Option<State> {
    FoldState::decode(bytes).ok()?;
    serde_json::from_slice(bytes).ok()
}

/// Whose, and of which context.
type Name = (UserKey, i64);

/// Every page, in the log and in the store, is whole and of one context.
fn pages(figures: &mut Figures, run: &Facts) {
    // A replay makes further pages of a context, on the other lane.
    let mut drafts: BTreeMap<Name, Vec<&ThemesDeduped>> = BTreeMap::new();
    for page in &run.deduped {
        drafts.entry((page.head.user.clone(), page.head.context_ms)).or_default().push(page);
    }
    let mut published: BTreeMap<Name, BTreeSet<&[u8]>> = BTreeMap::new();
    for (bytes, page) in &run.pages {
        let name = (page.head.user.clone(), page.head.context_ms);
        let is_own = drafts.get(&name).is_some_and(|drafts| drafts.iter().any(|drafts| is_of(page, drafts)));
        figures.find(u64::from(!is_own), |figures| &mut figures.torn, || format!("a part of page {name:?} is of no draft of it"));
        published.entry(name).or_default().insert(bytes);
    }
    for (user, rows) in &run.rows {
        if let Some(StoredPage { stamp, page: Some(bytes), .. }) = &rows.page {
            stored(figures, user, *stamp, bytes, &published);
        }
    }
}

/// Whether a page goes back to these drafts in all its parts.
fn is_of(page: &PagePublished, drafts: &ThemesDeduped) -> bool {
    let themes: BTreeSet<&str> = drafts.drafts.iter().map(|draft| draft.theme.title.as_str()).collect();
    let is_own = |theme: &Theme| theme.origin == Origin::FloorFallback || themes.contains(theme.title.as_str());
    page.head == drafts.head
        && page.page.diets == drafts.brief.diets
        && page.page.persona == drafts.persona
        && page.page.placements.iter().all(|placement| is_own(&placement.theme))
}

/// The page in the store is one that the log tells of.
fn stored(figures: &mut Figures, user: &UserKey, stamp: Stamp, bytes: &[u8], published: &BTreeMap<Name, BTreeSet<&[u8]>>) {
    let is_whole =
        |page: &PagePublished| page.head.user == *user && stamp == Stamp::of(page.head.context_ms, page.head.generation);
    let Some(page) = wire::decode::<PagePublished>(bytes).ok().filter(is_whole) else {
        return figures.find(1, |figures| &mut figures.torn, || format!("the stored page of {user} is not whole"));
    };
    match published.get(&(user.clone(), page.head.context_ms)) {
        None => figures.lose(1, || format!("the stored page of {user} is not in the log")),
        Some(pages) => figures.find(
            u64::from(!pages.contains(bytes)),
            |figures| &mut figures.torn,
            || format!("the stored page of {user} is not the one in the log"),
        ),
    }
}

/// Both runs end in the same pages, made for the same last event.
fn compare(figures: &mut Figures, run: &Facts, calm: &Facts) {
    let users: BTreeSet<&UserKey> = run.rows.keys().chain(calm.rows.keys()).collect();
    for user in users {
        let (ours, theirs) = (shown(run, user), shown(calm, user));
        figures.find(
            u64::from(ours != theirs),
            |figures| &mut figures.differing_pages,
            || {
                let cause = |page: &Option<(String, endcap_schemas::Page)>| page.as_ref().map(|(cause, _)| cause.clone());
                format!("the page of {user} differs: it is of {:?}, undisturbed of {:?}", cause(&ours), cause(&theirs))
            },
        );
    }
}

/// What a shopper sees, and the event behind it.
fn shown(facts: &Facts, user: &UserKey) -> Option<(String, endcap_schemas::Page)> {
    let bytes = facts.rows.get(user)?.page.as_ref()?.page.as_ref()?;
    let published = wire::decode::<PagePublished>(bytes).ok()?;
    Some((published.head.cause.event_id, published.page))
}

#[cfg(test)]
mod tests;
