//! Each fault is found, and named by its figure.

use endcap_context::{ContextConfig, Folded, Known, Position, fold};
use endcap_runtime::{Headers, Received};
use endcap_schemas::{
    Draft, EventKind, Line, Page, Placement, Product, ShopperEvent, ShownProduct, Versions, topics::Topic, wire,
};

use super::*;
use crate::facts::Records;

const NOW_MS: i64 = 1_700_000_000_000;
const STAMP: fn(&PagePublished) -> Stamp = |page| Stamp::of(page.head.context_ms, page.head.generation);

fn anna() -> UserKey {
    UserKey::of("anna")
}

fn purchase(id: &str) -> ShopperEvent {
    ShopperEvent {
        id: id.to_owned(),
        tenant: anna().tenant,
        user: anna().user,
        at_ms: NOW_MS,
        kind: EventKind::Purchase,
        lines: vec![Line { product: "d00001".to_owned(), quantity: 1 }],
        preference: None,
        personalise: None,
    }
}

fn product(id: &str) -> Option<Product> {
    Market::generate(DEMO_SEED).products.into_iter().find(|product| product.id == id)
}

fn record(event: &ShopperEvent) -> Received {
    Received {
        topic: Topic::EVENTS,
        partition: 0,
        offset: 0,
        appended_ms: NOW_MS,
        key: event.key().to_string(),
        headers: Headers::root(event.id.clone(), Topic::EVENTS, event.at_ms),
        value: wire::encode(event).expect("an event is written"),
    }
}

/// What a run leaves behind in which one purchase became one page.
fn whole() -> Facts {
    let (event, config) = (purchase("e1"), ContextConfig::default());
    let at = Position { partition: 0, offset: 0, appended_ms: NOW_MS };
    let Folded::Changed(state) = fold(&Known::default(), &event, at, &config, product) else { panic!("a purchase is folded") };
    let context = state.snapshot(&anna(), 1, &config);
    let concepts = vec!["apples".to_owned()];
    let theme = Theme { title: "Apples".to_owned(), intent: "eat apples".to_owned(), concepts, origin: Origin::Model };
    let deduped = ThemesDeduped {
        head: context.head.clone(),
        brief: context.brief.clone(),
        persona: "a shopper".to_owned(),
        drafts: vec![Draft { theme: theme.clone(), keywords: Vec::new() }],
        dropped: Vec::new(),
        versions: Versions::new(),
    };
    let shown = ShownProduct { product: "d00001".to_owned(), score: 0.9 };
    let page = Page {
        persona: deduped.persona.clone(),
        diets: context.brief.diets,
        placements: vec![Placement { theme, keywords: Vec::new(), products: vec![shown], retrieved: 1 }],
        versions: Versions::new(),
    };
    let page = PagePublished { head: context.head.clone(), page };
    let bytes = wire::encode(&page).expect("a page is written");
    let stored = StoredPage { stamp: STAMP(&page), page: Some(bytes.clone()), written_ms: NOW_MS };
    let mut tally = Tally::default();
    tally.pass();
    Facts {
        events: vec![record(&event)],
        contexts: vec![context],
        deduped: vec![deduped],
        pages: vec![(bytes, page)],
        records: Topic::all()
            .map(|topic| (topic, Records { count: u64::from(topic == topic.on(Lane::Live)), doubled: 0 }))
            .collect(),
        letters: Vec::new(),
        tallies: STAGES.iter().map(|stage| ((*stage).to_owned(), tally.clone())).collect(),
        rows: BTreeMap::from([(anna(), Rows { state: Some(state.encode()), page: Some(stored) })]),
    }
}

fn judged(run: &Facts) -> Figures {
    let sent = Sent { accepted: BTreeSet::from(["e1".to_owned()]), ..Sent::default() };
    judge(&sent, run, &whole())
}

/// The figures of a run that `spoil` has spoilt: lost, duplicated, torn, differing pages, unbalanced.
fn check(what: &str, spoil: impl FnOnce(&mut Facts), [lost, duplicated, torn, differing, unbalanced]: [bool; 5]) {
    let mut run = whole();
    spoil(&mut run);
    let figures = judged(&run);
    let found =
        [figures.lost, figures.duplicated, figures.torn, figures.differing_pages, figures.unbalanced].map(|count| count > 0);
    assert_eq!(found, [lost, duplicated, torn, differing, unbalanced], "{what}: {:?}", figures.findings);
}

/// Puts `change` into the published page, in the log and in the store alike.
fn change_page(run: &mut Facts, change: impl FnOnce(&mut PagePublished)) {
    let (bytes, page) = &mut run.pages[0];
    change(page);
    *bytes = wire::encode(page).expect("a page is written");
    let rows = run.rows.get_mut(&anna()).expect("anna has rows");
    rows.page = Some(StoredPage { stamp: STAMP(page), page: Some(bytes.clone()), written_ms: NOW_MS });
}

#[test]
fn every_fault_is_found_and_named() {
    const NONE: [bool; 5] = [false; 5];
    const LOST: [bool; 5] = [true, false, false, false, false];
    const DOUBLED: [bool; 5] = [false, true, false, false, false];
    check("nothing", |_| {}, NONE);
    check("an event that is not in the log", |run| run.events[0] = record(&purchase("e2")), LOST);
    check("a purchase that is not in the state", |run| run.events.push(record(&purchase("e0"))), LOST);
    let twice = |run: &mut Facts| {
        let state = run.rows.get_mut(&anna()).and_then(|rows| rows.state.as_mut()).expect("anna has a state");
        let text = String::from_utf8_lossy(state).replace("\"count\":1", "\"count\":2");
        *state = text.into_bytes();
    };
    check("a purchase that counts twice", twice, DOUBLED);
    check("no state", |run| run.rows.get_mut(&anna()).expect("anna has rows").state = None, LOST);
    check("a context twice", |run| run.contexts.push(run.contexts[0].clone()), DOUBLED);
    check("no context", |run| run.contexts.clear(), LOST);
    let output = |count, doubled| {
        move |run: &mut Facts| {
            run.records.insert(Topic::PAGES, Records { count, doubled });
        }
    };
    check("an output that is not there", output(0, 0), LOST);
    check("an output too many", output(2, 0), DOUBLED);
    check("an output with the id of another one", output(1, 1), DOUBLED);
    let again = |run: &mut Facts| {
        run.records.insert(Topic::CONTEXTS.on(Lane::Backfill), Records { count: 0, doubled: 1 });
    };
    check("a context that a replay sent twice", again, DOUBLED);
    let unbalanced = |run: &mut Facts| run.tallies.get_mut("dedup").expect("a tally").received += 1;
    check("a record without a verdict", unbalanced, [false, true, false, false, true]);
    let private = |run: &mut Facts| {
        run.events.push(record(&ShopperEvent { kind: EventKind::Erase, lines: Vec::new(), ..purchase("x") }));
    };
    check("rows of an erased shopper", private, DOUBLED);
}

#[test]
fn a_page_that_is_torn_or_another_one_is_found() {
    let store = |run: &mut Facts, bytes: &[u8]| {
        let page = run.rows.get_mut(&anna()).and_then(|rows| rows.page.as_mut()).expect("anna has a page");
        page.page = Some(bytes.to_vec());
    };
    check("a page cut off", |run| store(run, &run.pages[0].0.clone()[..20]), [false, false, true, true, false]);
    let other = |run: &mut Facts| change_page(run, |page| page.page.persona = "somebody else".to_owned());
    check("a persona of another context", other, [false, false, true, true, false]);
    let strange = |run: &mut Facts| change_page(run, |page| page.page.placements[0].theme.title = "Pears".to_owned());
    check("a placement of another context", strange, [false, false, true, true, false]);
    let fewer = |run: &mut Facts| change_page(run, |page| page.page.placements[0].products.clear());
    check("other products", fewer, [false, false, false, true, false]);
    let headless = |run: &mut Facts| run.deduped[0].head.cause.event_id = "e0".to_owned();
    check("drafts of another context", headless, [false, false, true, false, false]);
    let none = |run: &mut Facts| run.rows.get_mut(&anna()).expect("anna has rows").page = None;
    check("no page", none, [false, false, false, true, false]);
    check("a page that the log does not tell of", |run| run.pages.clear(), LOST_PAGE);
}

const LOST_PAGE: [bool; 5] = [true, false, false, false, false];

#[test]
fn a_dead_letter_may_be_a_drop_where_an_erasure_followed_and_it_came_again() {
    const UNKNOWN: &str = "unknown_product";
    // Anna, Bert and Carl bought what nobody knows, and Bert was erased.
    let events = |is_erased: bool| {
        let of = |user: &str, kind, product: &str| ShopperEvent {
            user: user.to_owned(),
            kind,
            lines: vec![Line { product: product.to_owned(), quantity: 1 }],
            ..purchase("b1")
        };
        let bought = ["bert", "carl"].map(|user| of(user, EventKind::Purchase, "none"));
        let erased = is_erased.then(|| ShopperEvent { lines: Vec::new(), ..of("bert", EventKind::Erase, "") });
        let events = bought.into_iter().chain(erased);
        events.zip(1..).map(|(event, offset)| Received { offset, ..record(&event) }).collect::<Vec<_>>()
    };
    // How much is lost and doubled, where the letters of the events at `written` are there, and so many were dropped as erased.
    let found = |is_erased: bool, written: &[i64], dropped: usize| {
        let (mut run, events) = (whole(), events(is_erased));
        run.records.get_mut(&Topic::EVENTS).expect("the topic is counted").count += events.len() as u64;
        let tally = run.tallies.get_mut(STAGES[0]).expect("the stage has a tally");
        written.iter().for_each(|_| tally.dead_letter(UNKNOWN));
        (0..dropped).for_each(|_| tally.drop_for(DropReason::Erased));
        (written.len() + dropped..events.len()).for_each(|_| tally.drop_for(DropReason::Duplicate));
        run.letters = written.iter().map(|offset| ((0, *offset), UNKNOWN.to_owned())).collect();
        run.events.extend(events);
        let figures = judged(&run);
        (figures.lost, figures.duplicated)
    };
    assert_eq!(found(true, &[1, 2], 1), (0, 0), "as it is without a crash");
    assert_eq!(found(true, &[2], 2), (0, 0), "Bert's came again behind his erasure");
    assert_eq!(found(true, &[1], 2), (1, 0), "Carl was not erased");
    assert_eq!(found(true, &[2], 1), (1, 0), "nothing came again");
    assert_eq!(found(false, &[2], 1), (1, 0), "no erasure followed");
    assert_eq!(found(true, &[1, 2, 2], 0).1, 1, "a letter twice");
    let mut run = whole();
    run.letters.push(((0, 0), UNKNOWN.to_owned()));
    assert!(judged(&run).duplicated > 0, "a letter that is not due");
}
