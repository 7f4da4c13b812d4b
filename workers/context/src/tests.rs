//! Tests of the fold and of the stage over the embedded store.

use endcap_runtime::{Embedded, EmbeddedConfig, Erasure, ManualClock, Stamp};
use endcap_schemas::{Diet, DietSet, EventKind, Line, Preference, Season};

use super::*;

const DAY_MS: i64 = 86_400_000;
/// 15 November 2023.
const NOW_MS: i64 = 1_700_000_000_000;
const SKEW_MS: i64 = 300_000;

/// The catalogue of these tests: `gouda` is a product of category `cheese`, and so on.
fn catalogue(id: &str) -> Option<Product> {
    let (category, department) = match id {
        "gouda" | "brie" | "feta" => ("cheese", "dairy"),
        "oat bread" | "rye bread" => ("bread", "bakery"),
        "cola" => ("soft drinks", "drinks"),
        _ => return None,
    };
    Some(Product {
        id: id.to_owned(),
        name: format!("fine {id}"),
        brand: "House".into(),
        size: "1 kg".into(),
        price_cents: Some(199),
        category_path: vec![department.to_owned(), category.to_owned()],
        violates: DietSet::NONE,
        age_restricted: false,
        popularity: 0.5,
        in_stock: true,
    })
}

fn event(id: &str, kind: EventKind, at_ms: i64, products: &[&str]) -> ShopperEvent {
    let line = |product: &&str| Line { product: (*product).to_owned(), quantity: 1 };
    ShopperEvent {
        id: id.to_owned(),
        tenant: "default".into(),
        user: "anna".into(),
        at_ms,
        kind,
        lines: products.iter().map(line).collect(),
        preference: None,
        personalise: None,
    }
}

fn purchase(id: &str, at_ms: i64, products: &[&str]) -> ShopperEvent {
    event(id, EventKind::Purchase, at_ms, products)
}

fn consent(id: &str, at_ms: i64, personalise: bool) -> ShopperEvent {
    ShopperEvent { personalise: Some(personalise), ..event(id, EventKind::Consent, at_ms, &[]) }
}

/// Folds events at offsets 0, 1, …, each taken by the log when it happened.
fn fold_all(events: &[ShopperEvent], config: &ContextConfig) -> (Known, Vec<Folded>) {
    let mut known = Known::default();
    let mut all = Vec::new();
    for (offset, event) in (0..).zip(events) {
        let at = Position { partition: 0, offset, appended_ms: event.at_ms };
        let folded = fold(&known, event, at, config, catalogue);
        match &folded {
            Folded::Changed(state) => known.state = Some((**state).clone()),
            Folded::Erase(until_ms) => known = known.erase(*until_ms, at),
            _ => {}
        }
        all.push(folded);
    }
    (known, all)
}

fn snapshot_of(events: &[ShopperEvent]) -> ContextChanged {
    let config = ContextConfig::default();
    let (known, _) = fold_all(events, &config);
    known.state.unwrap().snapshot(&UserKey::of("anna"), 3, &config)
}

#[test]
fn favourites_weigh_by_kind_and_halve_in_sixty_days() {
    let context = snapshot_of(&[
        purchase("e1", NOW_MS - 60 * DAY_MS, &["gouda", "brie"]),
        event("e2", EventKind::CartAdd, NOW_MS, &["oat bread"]),
        event("e3", EventKind::View, NOW_MS, &["oat bread", "cola"]),
    ]);
    let weights: Vec<(String, f64)> =
        context.favourites.into_iter().map(|favourite| (favourite.category, (favourite.weight * 1e4).round() / 1e4)).collect();
    assert_eq!(weights, [("cheese".to_owned(), 1.0), ("bread".to_owned(), 0.7), ("soft drinks".to_owned(), 0.2)]);
    assert_eq!(context.brief.season, Season::Autumn);
}

#[test]
fn a_late_event_weighs_what_it_would_have_weighed_in_time() {
    let early = purchase("e1", NOW_MS - 30 * DAY_MS, &["gouda"]);
    let late = purchase("e2", NOW_MS, &["brie"]);
    let in_time = snapshot_of(&[early.clone(), late.clone()]);
    let out_of_time = snapshot_of(&[late, early]);
    let weight = |context: &ContextChanged| context.favourites[0].weight;
    assert!((weight(&in_time) - weight(&out_of_time)).abs() < 2e-6);
    let names = |context: &ContextChanged| context.recent.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&in_time), ["fine brie", "fine gouda"]);
    assert_eq!(names(&out_of_time), names(&in_time));
}

#[test]
fn recent_purchases_are_distinct_and_newest_first() {
    let context = snapshot_of(&[
        purchase("e1", NOW_MS, &["gouda", "cola"]),
        purchase("e2", NOW_MS + 1, &["brie"]),
        purchase("e3", NOW_MS + 2, &["gouda"]),
    ]);
    let recent: Vec<(&str, i32, i64)> =
        context.recent.iter().map(|p| (p.product.as_str(), p.count, p.last_ms - NOW_MS)).collect();
    assert_eq!(recent, [("gouda", 2, 2), ("brie", 1, 1), ("cola", 1, 0)]);
}

#[test]
fn the_clock_grows_by_a_millisecond_where_events_do_not() {
    let config = ContextConfig::default();
    let times = [NOW_MS, NOW_MS, NOW_MS - DAY_MS, NOW_MS + 5];
    let events: Vec<_> = times.iter().enumerate().map(|(i, at)| purchase(&format!("e{i}"), *at, &["gouda"])).collect();
    let (_, folded) = fold_all(&events, &config);
    let clocks: Vec<i64> = folded
        .iter()
        .map(|folded| match folded {
            Folded::Changed(state) => state.snapshot(&UserKey::of("anna"), 0, &config).head.context_ms - NOW_MS,
            other => panic!("folded: {other:?}"),
        })
        .collect();
    assert_eq!(clocks, [0, 1, 2, 5]);
}

#[test]
fn what_cannot_be_taken_is_rejected_with_a_reason_that_helps() {
    let no_lines = event("e1", EventKind::Purchase, NOW_MS, &[]);
    for (event, kind, says) in [
        (no_lines, "malformed", "needs `lines`"),
        (purchase("e2", NOW_MS + SKEW_MS + 1_000, &["gouda"]), "future", "301 s"),
        (purchase("e3", NOW_MS, &["unicorn", "griffin"]), "unknown_product", "`unicorn`, `griffin`;"),
        (purchase("e5", NOW_MS, &["x"; 10]), "unknown_product", "`x`, `x` and 2 more;"),
    ] {
        let at = Position { partition: 0, offset: 0, appended_ms: NOW_MS };
        match fold(&Known::default(), &event, at, &ContextConfig::default(), catalogue) {
            Folded::Rejected(rejection) => {
                assert_eq!(rejection.kind, kind);
                assert!(rejection.message.contains(says), "{}", rejection.message);
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
    let just_in_time = purchase("e4", NOW_MS + SKEW_MS, &["gouda"]);
    let at = Position { partition: 0, offset: 0, appended_ms: NOW_MS };
    assert!(matches!(fold(&Known::default(), &just_in_time, at, &ContextConfig::default(), catalogue), Folded::Changed(_)));
}

#[test]
fn a_known_id_at_a_new_place_is_a_duplicate_until_it_is_forgotten() {
    let config = ContextConfig { ids_max: 2, ..ContextConfig::default() };
    let ids = ["a", "a", "b", "c", "a"];
    let events: Vec<_> = (0..).zip(ids).map(|(i, id)| purchase(id, NOW_MS + i, &["gouda"])).collect();
    let (known, folded) = fold_all(&events, &config);
    let duplicates: Vec<bool> = folded.iter().map(|folded| *folded == Folded::Dropped(DropReason::Duplicate)).collect();
    assert_eq!(duplicates, [false, true, false, false, false], "two ids are remembered: the first `a` is forgotten at `c`");
    assert_eq!(known.state.unwrap().snapshot(&UserKey::of("anna"), 0, &config).recent[0].count, 4);
}

#[test]
fn withdrawn_consent_forgets_the_history_and_keeps_what_protects() {
    let config = ContextConfig::default();
    let diets = DietSet::NONE.with(Diet::NutFree);
    let preference = Some(Preference { diets: Some(diets), ..Preference::default() });
    let events = [
        purchase("e1", NOW_MS, &["gouda"]),
        ShopperEvent { preference, ..event("e2", EventKind::Preference, NOW_MS + 1, &[]) },
        consent("e3", NOW_MS + 2, false),
        purchase("e4", NOW_MS + 3, &["cola"]),
        consent("e5", NOW_MS + 4, true),
    ];
    let (_, folded) = fold_all(&events, &config);
    let snapshot = |folded: &Folded| match folded {
        Folded::Changed(state) => state.snapshot(&UserKey::of("anna"), 0, &config),
        other => panic!("changed: {other:?}"),
    };
    let without = snapshot(&folded[2]);
    assert!(!without.brief.personalise && without.favourites.is_empty() && without.recent.is_empty());
    assert_eq!(without.brief.diets, diets);
    assert_eq!(folded[3], Folded::Dropped(DropReason::NoConsent));
    let again = snapshot(&folded[4]);
    assert!(again.brief.personalise && again.recent.is_empty(), "nothing comes back");
}

#[test]
fn the_state_stays_within_its_limits_and_reads_back_as_it_was() {
    let config = ContextConfig { leaves_max: 2, recent_max: 2, ids_max: 3, ..ContextConfig::default() };
    let products = ["gouda", "brie", "oat bread", "cola", "rye bread", "feta"];
    let events: Vec<_> =
        (0..).zip(products).map(|(i, product)| purchase(&"x".repeat(200 + i), NOW_MS + i as i64 * DAY_MS, &[product])).collect();
    let (known, _) = fold_all(&events, &config);
    let state = known.state.unwrap();
    let bytes = state.encode();
    assert!(bytes.len() < 2_000, "{} bytes", bytes.len());
    assert_eq!(FoldState::decode(&bytes).unwrap(), state);
    let snapshot = state.snapshot(&UserKey::of("anna"), 0, &config);
    assert_eq!((snapshot.favourites.len(), snapshot.recent.len()), (2, 2));
    let newer = String::from_utf8(bytes).unwrap().replacen("\"version\":2", "\"version\":9", 1);
    assert!(matches!(FoldState::decode(newer.as_bytes()), Err(StateError::Version(9))));
}

/// A store in a directory of its own.
struct Place {
    store: Arc<Embedded>,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::at(NOW_MS));
        let store = Arc::new(Embedded::open(dir.path().join("endcap.sqlite"), EmbeddedConfig::default(), clock).unwrap());
        Self { store, _dir: dir }
    }

    /// Processes events as one batch and, as the loop does, stores what the verdicts write. The log took each a millisecond after
    /// the last.
    fn process(&self, events: &[(i64, ShopperEvent)]) -> Vec<Verdict<ContextChanged>> {
        self.process_taken(events, |offset| NOW_MS + offset)
    }

    fn process_taken(&self, events: &[(i64, ShopperEvent)], taken_ms: impl Fn(i64) -> i64) -> Vec<Verdict<ContextChanged>> {
        let mut stage = ContextStage::new(ContextConfig::default(), 7, self.store.clone(), Box::new(|id| Ok(catalogue(id))));
        let input = |(offset, event): &(i64, ShopperEvent)| Input {
            value: event.clone(),
            partition: 0,
            offset: *offset,
            appended_ms: taken_ms(*offset),
        };
        let batch: Vec<_> = events.iter().map(input).collect();
        let verdicts = stage.process(&batch).unwrap();
        for verdict in &verdicts {
            match verdict {
                Verdict::Passed(passed) => self.store.put_all(&passed.writes, &[]).unwrap(),
                Verdict::Settled(settled) => self.store.put_all(&settled.writes, &[]).unwrap(),
                Verdict::Dropped(_) | Verdict::Rejected(_) => {}
            }
        }
        verdicts
    }
}

/// What became of each event, in a word.
fn words(verdicts: &[Verdict<ContextChanged>]) -> Vec<&'static str> {
    verdicts
        .iter()
        .map(|verdict| match verdict {
            Verdict::Passed(_) => "passed",
            Verdict::Dropped(reason) => reason.label(),
            Verdict::Settled(settled) => settled.reason.label(),
            Verdict::Rejected(rejection) => rejection.kind,
        })
        .collect()
}

fn outs(verdicts: &[Verdict<ContextChanged>]) -> Vec<ContextChanged> {
    verdicts
        .iter()
        .filter_map(|verdict| if let Verdict::Passed(passed) = verdict { Some(passed.out.clone()) } else { None })
        .collect()
}

fn week() -> Vec<(i64, ShopperEvent)> {
    let products = ["gouda", "brie", "cola", "oat bread", "feta", "gouda", "rye bread"];
    (0..).zip(products).map(|(i, product)| (i, purchase(&format!("e{i}"), NOW_MS + i / 2, &[product]))).collect()
}

#[test]
fn batches_cut_anywhere_fold_to_the_same_snapshots() {
    let whole = outs(&Place::new().process(&week()));
    assert_eq!(whole.len(), 7);
    assert!(whole.windows(2).all(|pair| pair[0].head.context_ms < pair[1].head.context_ms));
    for cut in 1..7 {
        let place = Place::new();
        let mut parts = outs(&place.process(&week()[..cut]));
        parts.extend(outs(&place.process(&week()[cut..])));
        assert_eq!(parts, whole, "cut at {cut}");
    }
}

#[test]
fn what_was_stored_but_not_committed_is_emitted_once_more_and_folded_once() {
    let place = Place::new();
    let first = place.process(&week()[..4]);
    // The commit never happened: the same events come again, with more behind them.
    let again = place.process(&week());
    assert_eq!(words(&again), ["superseded", "superseded", "superseded", "passed", "passed", "passed", "passed"]);
    assert_eq!(outs(&again)[0], outs(&first)[3], "the snapshot is emitted as it was");
    assert_eq!(outs(&again)[1..], outs(&Place::new().process(&week()))[4..]);
    assert_eq!(words(&place.process(&week()[6..])), ["passed"]);
    assert_eq!(words(&place.process(&[(7, purchase("e3", NOW_MS + 9, &["brie"]))])), ["duplicate"]);
}

#[test]
fn a_basket_with_an_unknown_article_is_folded_without_it_and_told_so() {
    let place = Place::new();
    let basket = [(0, purchase("e0", NOW_MS, &["unicorn", "gouda", "griffin"]))];
    let [Verdict::Passed(passed)] = &place.process(&basket)[..] else { panic!("one verdict, passed") };
    let bought: Vec<&str> = passed.out.recent.iter().map(|purchase| purchase.product.as_str()).collect();
    assert_eq!(bought, ["gouda"]);
    assert_eq!(passed.explanation["event"]["unknown_products"], json!(["unicorn", "griffin"]));
    assert_eq!(passed.counters, [("context.lines_unknown", 2)]);
    let again = outs(&place.process(&basket));
    assert_eq!(again, std::slice::from_ref(&passed.out), "a redelivery is the same snapshot");
}

#[test]
fn a_redelivered_dead_letter_is_one_again() {
    let place = Place::new();
    let events = [(0, purchase("e0", NOW_MS, &["unicorn"])), (1, purchase("e1", NOW_MS, &["gouda"]))];
    assert_eq!(words(&place.process(&events)), ["unknown_product", "passed"]);
    assert_eq!(words(&place.process(&events)), ["unknown_product", "passed"]);
}

#[test]
fn an_erased_shopper_is_gone_and_a_new_life_begins_beyond_the_stamp() {
    let place = Place::new();
    let life = [(0, purchase("e0", NOW_MS, &["gouda"])), (1, event("e1", EventKind::Erase, NOW_MS + 1, &[]))];
    assert_eq!(words(&place.process(&life)), ["passed", "erased"]);
    let user = UserKey::of("anna");
    assert_eq!(place.store.state(&user).unwrap(), None);
    let erasure = place.store.erasure(&user).unwrap().unwrap();
    let erased = erasure.stamp;
    assert!(erased >= Stamp::of(NOW_MS + 1 + SKEW_MS, 999), "beyond the largest skew");
    assert_eq!(words(&place.process(&life)), ["erased", "erased"], "a redelivery resurrects nothing");
    assert_eq!(place.store.erasure(&user).unwrap(), Some(erasure), "and moves nothing");

    let next = [(2, purchase("e0", NOW_MS + 2, &["cola"]))];
    let out = outs(&place.process(&next)).remove(0);
    assert!(Stamp::of(out.head.context_ms, 0) > erased);
    let names: Vec<&str> = out.recent.iter().map(|purchase| purchase.product.as_str()).collect();
    assert_eq!(names, ["cola"], "nothing of the first life");
    assert!(place.store.state(&user).unwrap().is_some());
    assert_eq!(words(&place.process(&life)), ["erased", "erased"], "the first life stays erased beside the second");
    assert!(place.store.state(&user).unwrap().is_some(), "and the second is not touched");
}

#[test]
fn an_erasure_within_a_batch_separates_two_lives() {
    let batch = [
        (0, purchase("e0", NOW_MS, &["gouda"])),
        (1, event("e1", EventKind::Erase, NOW_MS, &[])),
        (2, purchase("e2", NOW_MS, &["cola"])),
    ];
    let place = Place::new();
    let verdicts = place.process(&batch);
    assert_eq!(words(&verdicts), ["passed", "erased", "passed"]);
    let second = outs(&verdicts).remove(1);
    assert_eq!(second.recent.len(), 1);
    assert_eq!(outs(&place.process(&batch[2..])), [second], "the state of the second life is the one that stays");
}

#[test]
fn an_erasure_separates_what_one_append_took() {
    let append = [
        (4, purchase("e4", NOW_MS, &["gouda"])),
        (5, event("e5", EventKind::Erase, NOW_MS, &[])),
        (6, purchase("e6", NOW_MS, &["cola"])),
        (7, purchase("e7", NOW_MS, &["brie"])),
    ];
    let words_of = |place: &Place, events: &[_]| words(&place.process_taken(events, |_| NOW_MS));
    for cut in 0..append.len() {
        let place = Place::new();
        let mut all = words_of(&place, &append[..cut]);
        all.extend(words_of(&place, &append[cut..]));
        assert_eq!(all, ["passed", "erased", "passed", "passed"], "cut at {cut}");
        assert_eq!(words_of(&place, &append), ["erased", "erased", "superseded", "passed"], "all of it again, cut at {cut}");
    }
    let place = Place::new();
    assert_eq!(words_of(&place, &append[..2]), ["passed", "erased"]);
    assert_eq!(words_of(&place, &append), ["erased", "erased", "passed", "passed"], "before the new life began");
}

#[test]
fn an_unreadable_state_fails_the_batch_and_a_malformed_event_needs_no_store() {
    let place = Place::new();
    let user = UserKey::of("anna");
    place.store.put_all(&[Write::State { user, stamp: Stamp::of(1, 0), state: b"{}".to_vec() }], &[]).unwrap();
    let mut stage = ContextStage::new(ContextConfig::default(), 0, place.store.clone(), Box::new(|id| Ok(catalogue(id))));
    let mut input = Input { value: purchase("e0", NOW_MS, &["gouda"]), partition: 0, offset: 0, appended_ms: NOW_MS };
    assert!(matches!(stage.process(std::slice::from_ref(&input)), Err(StageError::Failed(_))));
    let user = UserKey::of("anna");
    place.store.put_all(&[Write::State { user, stamp: Stamp::of(2, 0), state: b"{\"version\":9}".to_vec() }], &[]).unwrap();
    let stopped = stage.process(std::slice::from_ref(&input)).unwrap_err();
    assert!(matches!(&stopped, StageError::Broken(cause) if cause.contains("roll the deployment forward")), "{stopped}");
    input.value.lines.clear();
    assert_eq!(words(&stage.process(&[input]).unwrap()), ["malformed"]);
}

#[test]
fn a_catalogue_that_does_not_answer_is_retried_and_blames_no_event() {
    let place = Place::new();
    let broken: ProductLookup = Box::new(|_| Err("database is locked".to_owned()));
    let mut stage = ContextStage::new(ContextConfig::default(), 0, place.store.clone(), broken);
    let input = Input { value: purchase("e0", NOW_MS, &["gouda"]), partition: 0, offset: 0, appended_ms: NOW_MS };
    assert!(matches!(stage.process(&[input]), Err(StageError::Unavailable("catalogue", _))));
}

/// Folds events at their places anew, knowing of `erasure`.
fn refold(events: &[(i64, ShopperEvent)], erasure: Option<Erasure>, catalogue: impl Fn(&str) -> Option<Product>) -> Refold {
    let mut refold = Refold::new(erasure);
    for (offset, event) in events {
        let at = Position { partition: 0, offset: *offset, appended_ms: event.at_ms };
        refold.take(event, at, &ContextConfig::default(), &catalogue);
    }
    refold
}

fn placed(events: &[ShopperEvent]) -> Vec<(i64, ShopperEvent)> {
    (0..).zip(events.iter().cloned()).collect()
}

/// The state as a fold that was never replayed has it.
fn first_epoch(state: &FoldState) -> FoldState {
    let mut state = state.clone();
    state.epoch = 0;
    state
}

const EPOCH: i64 = 1_750_000_000_000;

#[test]
fn the_same_events_folded_anew_are_the_same_state_and_win_by_their_epoch() {
    let events = [purchase("e1", NOW_MS, &["gouda"]), purchase("e2", NOW_MS - 9, &["cola"]), purchase("e1", NOW_MS, &["feta"])];
    let live = fold_all(&events, &ContextConfig::default()).0.state.unwrap();
    let again = refold(&placed(&events), None, catalogue);
    let [state, later] = [EPOCH, EPOCH + 1].map(|epoch| again.in_place_of(Some(&live), epoch).unwrap());
    assert_eq!(first_epoch(&state), live);
    assert_eq!(state.stamp(3), live.stamp(3));
    assert!(later.encode() > state.encode() && state.encode() > live.encode(), "a store keeps the greater bytes of one stamp");
    let goes_on = |state: &FoldState| {
        let known = Known { state: Some(state.clone()), ..Known::default() };
        let at = Position { partition: 0, offset: 3, appended_ms: NOW_MS };
        let Folded::Changed(next) = fold(&known, &purchase("e4", NOW_MS, &["brie"]), at, &ContextConfig::default(), catalogue)
        else {
            panic!("a new event changes a state")
        };
        next
    };
    let (kept, old) = (goes_on(&state), goes_on(&live));
    assert_eq!((kept.epoch(), kept.stamp(3)), (EPOCH, old.stamp(3)));
    assert!(
        old.stamp(3) > state.stamp(3),
        "a live fold that goes on from the old state wins, until the replay has its event too"
    );
    assert!(again.is_overtaken_by(&old) && !again.is_overtaken_by(&live));
}

#[test]
fn a_state_without_an_epoch_is_read_and_gives_way_to_one_that_has_it() {
    let state = fold_all(&[purchase("e1", NOW_MS, &["gouda"])], &ContextConfig::default()).0.state.unwrap();
    let mut text = String::from_utf8(state.encode()).unwrap();
    text = text.replace("\"version\":2,\"epoch\":0,", "\"version\":1,");
    assert_eq!(FoldState::decode(text.as_bytes()).unwrap(), state);
    assert!(state.encode() > text.into_bytes());
}

#[test]
fn a_fold_of_a_shorter_log_keeps_the_clock_that_pages_were_stamped_with() {
    let events = [purchase("e1", NOW_MS + 50, &["gouda"]), purchase("e2", NOW_MS, &["cola"]), purchase("e3", NOW_MS, &["feta"])];
    let live = fold_all(&events, &ContextConfig::default()).0.state.unwrap();
    let rest = refold(&placed(&events)[1..], None, catalogue);
    assert!(rest.in_place_of(None, EPOCH).unwrap().stamp(3) < live.stamp(3));
    assert_eq!(rest.in_place_of(Some(&live), EPOCH).unwrap().stamp(3), live.stamp(3));
    let fewer = refold(&placed(&events), None, |id| catalogue(id).filter(|product| product.id != "feta"));
    let state = fewer.in_place_of(Some(&live), EPOCH).unwrap();
    assert_eq!((state.stamp(3), state.offset), (live.stamp(3), 2), "an event that is not taken any more was seen all the same");
    assert_eq!(refold(&[], None, catalogue).in_place_of(Some(&live), EPOCH), None);
}

#[test]
fn a_fold_that_takes_more_than_the_live_one_did_does_not_run_ahead_of_it() {
    let events = [purchase("e1", NOW_MS, &["gouda"]), purchase("e2", NOW_MS + 50, &["feta"])];
    let place = |offset| Position { partition: 0, offset, appended_ms: NOW_MS };
    let without_feta = |id: &str| catalogue(id).filter(|product| product.id != "feta");
    let (mut known, config) = (Known::default(), ContextConfig::default());
    let live = |known: &Known, event: &ShopperEvent, offset, products: &dyn Fn(&str) -> Option<Product>| match fold(
        known,
        event,
        place(offset),
        &config,
        products,
    ) {
        Folded::Changed(state) => Some(*state),
        _ => None,
    };
    known.state = live(&known, &events[0], 0, &without_feta);
    assert_eq!(live(&known, &events[1], 1, &without_feta), None, "the live fold does not know the product yet");
    let old = known.state.clone().unwrap();
    let again = refold(&placed(&events), None, catalogue);
    let state = again.in_place_of(Some(&old), EPOCH).unwrap();
    assert_eq!(state.stamp(3), old.stamp(3));
    let next = live(&known, &purchase("e3", NOW_MS, &["cola"]), 2, &catalogue).unwrap();
    assert!(next.stamp(1) > state.stamp(3), "what the live fold makes of a late event stays, whatever the generations");
    assert!(again.is_overtaken_by(&next));
}

#[test]
fn a_fold_anew_begins_behind_the_shoppers_erasure() {
    let mut events =
        vec![purchase("e1", NOW_MS, &["gouda"]), event("gone", EventKind::Erase, NOW_MS, &[]), purchase("e1", NOW_MS, &["cola"])];
    let live = fold_all(&events, &ContextConfig::default()).0.state.unwrap();
    let erasure = Erasure { stamp: erasure_stamp(NOW_MS + SKEW_MS + 1), at: Some((0, 1)) };
    for known in [None, Some(erasure)] {
        let again = refold(&placed(&events), known, catalogue).in_place_of(Some(&live), EPOCH).unwrap();
        assert_eq!(first_epoch(&again), live, "{known:?}");
    }
    events.truncate(2);
    assert_eq!(refold(&placed(&events), None, catalogue).in_place_of(None, EPOCH), None);
    assert_eq!(
        refold(&placed(&events[..1]), Some(erasure), catalogue).in_place_of(None, EPOCH),
        None,
        "whoever was erased stays so"
    );
}
