//! The wire form: everything round-trips, everything ever written is read, and nothing else is.

use std::{collections::BTreeMap, fmt::Debug, fs, path::PathBuf};

use endcap_schemas::{
    Action, ActionKind, Brief, Budget, CategoryWeight, Cause, ContextChanged, Descriptor, Diet, DietSet, Draft, DroppedDraft,
    EventKind, Feedback, Head, Keyword, KeywordsChosen, Line, Message, Offer, Origin, Page, PagePublished, Placement, Preference,
    PurchaseMemory, RejectedTheme, Season, ShopperEvent, ShownProduct, Theme, ThemesDeduped, ThemesWritten, UserKey, Versions,
    topics::Topic,
    wire::{self, WireError},
};
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
};

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z ]{0,12}", "\\PC{0,8}"]
}

fn diets() -> impl Strategy<Value = DietSet> {
    any::<u8>().prop_map(DietSet::from_bits)
}

fn budget() -> impl Strategy<Value = Budget> {
    prop_oneof![Just(Budget::Low), Just(Budget::Middle), Just(Budget::High)]
}

fn event() -> impl Strategy<Value = ShopperEvent> {
    use EventKind::{CartAdd, Consent, Erase, Preference as States, Purchase, View};
    let kind = prop_oneof![Just(Purchase), Just(CartAdd), Just(View), Just(States), Just(Consent), Just(Erase)];
    let line = (text(), any::<i32>()).prop_map(|(product, quantity)| Line { product, quantity });
    let preference = (option::of(diets()), option::of(budget()), option::of(text()), option::of(vec(text(), 0..4)))
        .prop_map(|(diets, budget, locale, dislikes)| Preference { diets, budget, locale, dislikes });
    (text(), text(), text(), any::<i64>(), kind, vec(line, 0..4), option::of(preference), option::of(any::<bool>())).prop_map(
        |(id, tenant, user, at_ms, kind, lines, preference, personalise)| ShopperEvent {
            id,
            tenant,
            user,
            at_ms,
            kind,
            lines,
            preference,
            personalise,
        },
    )
}

fn head() -> impl Strategy<Value = Head> {
    (text(), text(), any::<i64>(), 0..1_000_i32, text(), any::<[i64; 3]>()).prop_map(
        |(tenant, user, context_ms, generation, event_id, [event_ms, accepted_ms, expires_ms])| Head {
            user: UserKey { tenant, user },
            context_ms,
            generation,
            cause: Cause { event_id, event_ms, accepted_ms },
            expires_ms,
        },
    )
}

fn brief() -> impl Strategy<Value = Brief> {
    (diets(), budget(), text(), 0..4_usize, vec(text(), 0..4), any::<bool>()).prop_map(
        |(diets, budget, locale, season, dislikes, personalise)| Brief {
            diets,
            budget,
            locale,
            season: Season::ALL[season],
            dislikes,
            personalise,
        },
    )
}

fn theme() -> impl Strategy<Value = Theme> {
    let origins = [Origin::Model, Origin::ThemeFallback, Origin::PageFallback, Origin::FloorFallback, Origin::Cold];
    (text(), text(), vec(text(), 0..4), 0..origins.len()).prop_map(move |(title, intent, concepts, origin)| Theme {
        title,
        intent,
        concepts,
        origin: origins[origin],
    })
}

fn keywords() -> impl Strategy<Value = Vec<Keyword>> {
    let keyword = (any::<i64>(), text(), any::<bool>()).prop_map(|(id, text, node)| Keyword {
        id,
        text,
        descriptor: if node { Descriptor::Node } else { Descriptor::Query },
    });
    vec(keyword, 0..4)
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    vec((theme(), keywords()).prop_map(|(theme, keywords)| Draft { theme, keywords }), 0..4)
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![0.0..1.0, -1e9..1e9, Just(f64::MAX), Just(-0.0)]
}

fn context() -> impl Strategy<Value = ContextChanged> {
    let favourite = (text(), number()).prop_map(|(category, weight)| CategoryWeight { category, weight });
    let memory = (text(), text(), text(), any::<i32>(), any::<i64>())
        .prop_map(|(product, name, category, count, last_ms)| PurchaseMemory { product, name, category, count, last_ms });
    (head(), brief(), vec(favourite, 0..4), vec(memory, 0..4)).prop_map(|(head, brief, favourites, recent)| ContextChanged {
        head,
        brief,
        favourites,
        recent,
    })
}

fn themes() -> impl Strategy<Value = ThemesWritten> {
    let rejected = (text(), text()).prop_map(|(title, reason)| RejectedTheme { title, reason });
    (head(), brief(), text(), vec(theme(), 0..4), vec(rejected, 0..3), made_by()).prop_map(
        |(head, brief, persona, themes, rejected, versions)| ThemesWritten { head, brief, persona, themes, rejected, versions },
    )
}

fn chosen() -> impl Strategy<Value = KeywordsChosen> {
    (head(), brief(), text(), drafts(), made_by()).prop_map(|(head, brief, persona, drafts, versions)| KeywordsChosen {
        head,
        brief,
        persona,
        drafts,
        versions,
    })
}

fn deduped() -> impl Strategy<Value = ThemesDeduped> {
    let dropped = (text(), text(), number()).prop_map(|(title, repeats, cosine)| DroppedDraft { title, repeats, cosine });
    (head(), brief(), text(), drafts(), vec(dropped, 0..3), made_by()).prop_map(
        |(head, brief, persona, drafts, dropped, versions)| ThemesDeduped { head, brief, persona, drafts, dropped, versions },
    )
}

fn made_by() -> impl Strategy<Value = Versions> {
    btree_map(text(), text(), 0..3)
}

fn published() -> impl Strategy<Value = PagePublished> {
    let product = (text(), number()).prop_map(|(product, score)| ShownProduct { product, score });
    let placement = (theme(), keywords(), vec(product, 0..4), any::<i32>())
        .prop_map(|(theme, keywords, products, retrieved)| Placement { theme, keywords, products, retrieved });
    (head(), text(), diets(), vec(placement, 0..3), made_by()).prop_map(|(head, persona, diets, placements, versions)| {
        PagePublished { head, page: Page { persona, diets, placements, versions } }
    })
}

fn feedback() -> impl Strategy<Value = Feedback> {
    let offer = (text(), vec(0..256_i32, 0..4), any::<i32>()).prop_map(|(product, traits, nominators)| Offer {
        product,
        traits,
        nominators,
    });
    let action = (any::<i32>(), 0..3_usize).prop_map(|(offer, kind)| Action { offer, kind: ActionKind::ALL[kind] });
    let head = (text(), any::<[i64; 2]>(), any::<[i32; 2]>(), option::of(number()), option::of(any::<i64>()));
    (head, vec(offer, 0..4), vec(action, 0..4)).prop_map(
        |((slate, [served_ms, policy], [traits_version, shown], propensity, put_back), offers, actions)| Feedback {
            slate,
            served_ms,
            policy,
            traits_version,
            propensity,
            offers,
            shown,
            actions,
            put_back,
        },
    )
}

fn comes_back<M: Message + PartialEq + Debug>(message: &M) {
    let bytes = wire::encode(message).expect("a message can be written");
    assert_eq!(&wire::decode::<M>(&bytes).expect("what was written can be read"), message);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_message_comes_back(
        (event, context, themes) in (event(), context(), themes()),
        (chosen, deduped, published, feedback) in (chosen(), deduped(), published(), feedback()),
    ) {
        comes_back(&event);
        comes_back(&context);
        comes_back(&themes);
        comes_back(&chosen);
        comes_back(&deduped);
        comes_back(&published);
        comes_back(&feedback);
    }

    #[test]
    fn no_part_of_a_value_passes_for_a_whole_one(event in event(), cut in any::<proptest::sample::Index>()) {
        let bytes = wire::encode(&event).unwrap();
        let part = &bytes[..cut.index(bytes.len())];
        prop_assert!(wire::decode::<ShopperEvent>(part).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        let refused = matches!(wire::decode::<ShopperEvent>(&longer), Err(WireError::Length { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn any_bytes_are_answered(mut bytes in vec(any::<u8>(), 0..64), page in published(), at in any::<proptest::sample::Index>(), flip in 1..=255_u8) {
        let _ = wire::decode::<PagePublished>(&bytes);
        let whole = wire::encode(&page).unwrap();
        bytes.splice(0..0, whole[..10].iter().copied());
        let _ = wire::decode::<PagePublished>(&bytes);
        let mut bent = whole;
        let at = at.index(bent.len());
        bent[at] ^= flip;
        let _ = wire::decode::<PagePublished>(&bent);
    }
}

#[test]
fn foreign_framing_is_named() {
    let event = wire::encode(&sample_event()).unwrap();
    let check = |bytes: &[u8], words: &str| {
        let error = wire::decode::<ShopperEvent>(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{bytes:02X?}: {error}");
    };
    check(b"", "starts with nothing");
    check(b"{\"id\":1}", "starts with 7B 22");
    check(&[0xC3, 0x01, 1, 2, 3], "starts with C3 01");
    check(&[0, 0, 0, 1, 44, 9, 9], "registry under id 300");
    check(&[&[0xC3, 0x01][..], &[7; 8], &[0]].concat(), "no version of the schema of endcap.shopper-events.v1");
    check(&[&event[..], &[0]].concat(), "too long");
    check(&vec![0xC3; wire::VALUE_MAX_BYTES + 1], "at most");
    let error = wire::decode::<ThemesWritten>(&event).unwrap_err();
    assert!(matches!(error, WireError::UnknownSchema { topic: Topic::THEMES, .. }), "a value of another topic: {error}");
}

/// A message with a part of each kind that can be forged.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
struct Forged {
    user: String,
    names: Vec<String>,
    known: bool,
    note: Option<String>,
}

const FORGED: &str = r#"{"type": "record", "name": "Forged", "fields": [
    {"name": "user", "type": "string"}, {"name": "names", "type": {"type": "array", "items": "string"}},
    {"name": "known", "type": "boolean"}, {"name": "note", "type": ["null", "string"]}]}"#;

#[test]
fn a_forged_value_is_refused_before_it_costs_anything() {
    let fingerprint = wire::fingerprint_of_schema(FORGED).unwrap();
    let long = |n: i64| {
        let (mut rest, mut bytes) = (((n << 1) ^ (n >> 63)).cast_unsigned(), Vec::new());
        while rest > 0x7F {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    };
    let read = |parts: &[&[u8]]| wire::decode::<Forged>(&wire::value_of(fingerprint, &parts.concat()));
    let (user, none, known, null): (&[u8], &[u8], &[u8], &[u8]) = (&[2, b'a'], &[0], &[1], &[0]);
    let whole = Forged { user: "a".into(), names: vec!["b".into()], known: true, note: None };
    assert_eq!(read(&[user, &[2, 2, b'b', 0], known, null]).unwrap(), whole);
    assert_eq!(read(&[user, &[1, 4, 2, b'b', 0], known, null]).unwrap(), whole, "a block that tells its bytes");
    let cut =
        |what: &str, parts: &[&[u8]]| assert!(matches!(read(parts), Err(WireError::Length { .. })), "{what}: {:?}", read(parts));
    cut("a list without end", &[user, &long(i64::MAX), &[2, b'b']]);
    cut("a list without end that tells its bytes", &[user, &long(i64::MIN), &[0, 2, b'b']]);
    cut("a text of a megabyte", &[&long(1 << 20), b"a"]);
    let bent =
        |what: &str, parts: &[&[u8]]| assert!(matches!(read(parts), Err(WireError::Body { .. })), "{what}: {:?}", read(parts));
    bent("a text of more than any value", &[&long(i64::MAX), b"a"]);
    bent("a text of less than nothing", &[&long(-1), none, known, null]);
    bent("a text that is none", &[&[2, 0xFF], none, known, null]);
    bent("neither true nor false", &[user, none, &[2], null]);
    bent("a branch that is none", &[user, none, known, &long(2)]);
    bent("a branch before the first", &[user, none, known, &long(-1)]);
}

/// Today's event as an earlier release knew it: without consent, and with a field that is gone.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename = "Event")]
struct Earlier {
    id: String,
    user: String,
    shoe_size: i32,
}

const EARLIER: &str = r#"{"type": "record", "name": "Event", "fields": [
    {"name": "id", "type": "string"}, {"name": "user", "type": "string"}, {"name": "shoe_size", "type": "int"}]}"#;
const LATER: &str = r#"{"type": "record", "name": "Event", "fields": [
    {"name": "id", "type": "string"}, {"name": "user", "type": "string"},
    {"name": "personalise", "type": ["null", "boolean"], "default": null}]}"#;

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename = "Event")]
struct Later {
    id: String,
    user: String,
    personalise: Option<bool>,
}

macro_rules! stand_in {
    ($type:ty, $schema:expr, $past:expr) => {
        impl Message for $type {
            const TOPIC: Topic = Topic::EVENTS;
            const SCHEMA: &'static str = $schema;
            const PAST: &'static [&'static str] = $past;

            fn head(&self) -> Option<&Head> {
                None
            }

            fn user(&self) -> UserKey {
                UserKey::of(&self.user)
            }
        }
    };
}

stand_in!(Forged, FORGED, &[]);
stand_in!(Earlier, EARLIER, &[]);
stand_in!(Later, LATER, &[EARLIER]);

#[test]
fn an_earlier_version_is_read_by_its_own_schema() {
    wire::check_backward(EARLIER, LATER).expect("the later schema reads what the earlier one wrote");
    let bytes = wire::encode(&Earlier { id: "e".into(), user: "anna".into(), shoe_size: 39 }).unwrap();
    let later: Later = wire::decode(&bytes).unwrap();
    assert_eq!(later, Later { id: "e".into(), user: "anna".into(), personalise: None });
    comes_back(&later);
    let newer = wire::encode(&later).unwrap();
    assert!(matches!(wire::decode::<Earlier>(&newer), Err(WireError::UnknownSchema { .. })));
    assert!(wire::check_backward(LATER, EARLIER).is_err(), "a field without default cannot be made up");
}

/// The first pair of versions, counted from 1, of which the later one cannot read the earlier one: what BACKWARD_TRANSITIVE forbids.
fn first_break(versions: &[&str]) -> Option<(usize, usize)> {
    let pairs = (0..versions.len()).flat_map(|later| (0..later).map(move |earlier| (earlier, later)));
    let mut broken = pairs.filter(|(earlier, later)| wire::check_backward(versions[*earlier], versions[*later]).is_err());
    broken.next().map(|(earlier, later)| (earlier + 1, later + 1))
}

#[test]
fn every_version_of_every_schema_reads_all_earlier_ones() {
    for topic in Topic::LIVE {
        assert_eq!(first_break(&wire::schemas_of(topic)), None, "{topic}");
    }
    let kinds = |symbols: &str| format!(r#"{{"type": "enum", "name": "Kind", "symbols": [{symbols}]}}"#);
    let (fewer, more) = (kinds(r#""seen""#), kinds(r#""seen", "bought""#));
    assert_eq!(first_break(&[&fewer, &more]), None, "a kind that comes breaks nothing");
    assert_eq!(first_break(&[&more, &fewer]), Some((1, 2)), "values of the kind that went can be read no more");
    let without_default = LATER.replace(r#", "default": null"#, "").replace("personalise", "consent");
    assert_eq!(first_break(&[EARLIER, LATER, &without_default]), Some((1, 3)), "a field without default breaks with the first");
}

/// What a file's name says of it: topic and version.
fn named(path: &std::path::Path) -> Option<(String, usize)> {
    let (topic, version) = path.file_stem()?.to_str()?.rsplit_once('.')?;
    Some((topic.to_owned(), version.parse().ok()?))
}

fn files(folder: &str, kind: &str) -> Vec<(String, usize)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|end| end == kind)).filter_map(|p| named(&p)).collect();
    names.sort();
    names
}

#[test]
fn every_version_has_its_schema_and_one_sample_that_it_wrote_and_no_file_is_left_over() {
    let mut versions: Vec<_> = Topic::LIVE
        .into_iter()
        .flat_map(|topic| (1..=wire::schemas_of(topic).len()).map(move |version| (topic.name().to_owned(), version)))
        .collect();
    versions.sort();
    assert_eq!((files("samples", "bin"), files("samples", "json")), (versions.clone(), versions.clone()));
    let is_past = |(topic, version): &(String, usize)| versions.contains(&(topic.clone(), version + 1));
    let past: Vec<_> = versions.iter().filter(|version| is_past(version)).cloned().collect();
    assert_eq!(files("avro/past", "avsc"), past, "the newest version lies in avro/ itself");
    for topic in Topic::LIVE {
        for (place, schema) in wire::schemas_of(topic).into_iter().enumerate() {
            let path = format!("{}/samples/{topic}.{}.bin", env!("CARGO_MANIFEST_DIR"), place + 1);
            let sample = fs::read(&path).unwrap();
            let (fingerprint, _) = wire::parts_of(&sample).expect("single-object encoding");
            assert_eq!(Ok(fingerprint), wire::fingerprint_of_schema(schema), "{path} was written by another version");
        }
    }
}

// One sample per version of each topic's schema: `<topic>.<version>.bin` as it was once written, and `.json` with what it says. They are
// never written again. A new version adds files: count it in `versions`, run `cargo test -p endcap-schemas -- --ignored`.

fn sample_path<M: Message>(version: usize, kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("samples").join(format!("{}.{version}.{kind}", M::TOPIC))
}

fn versions<M: Message>() -> usize {
    M::PAST.len() + 1
}

fn reads_its_samples<M: Message + PartialEq + Debug>() {
    for version in 1..=versions::<M>() {
        let bytes = fs::read(sample_path::<M>(version, "bin")).unwrap();
        let words = fs::read_to_string(sample_path::<M>(version, "json")).unwrap();
        let read: M = wire::decode(&bytes).unwrap_or_else(|error| panic!("{} {version}: {error}", M::TOPIC));
        assert_eq!(read, serde_json::from_str(&words).unwrap(), "{} {version}", M::TOPIC);
    }
}

#[test]
fn every_sample_ever_kept_is_read() {
    reads_its_samples::<ShopperEvent>();
    reads_its_samples::<ContextChanged>();
    reads_its_samples::<ThemesWritten>();
    reads_its_samples::<KeywordsChosen>();
    reads_its_samples::<ThemesDeduped>();
    reads_its_samples::<PagePublished>();
    reads_its_samples::<Feedback>();
}

#[test]
#[ignore = "writes the samples of new schema versions"]
fn writes_samples_that_are_missing() {
    fn write<M: Message>(message: &M) {
        let (bytes, words) = (sample_path::<M>(versions::<M>(), "bin"), sample_path::<M>(versions::<M>(), "json"));
        if !bytes.exists() {
            fs::write(bytes, wire::encode(message).unwrap()).unwrap();
            fs::write(words, serde_json::to_string_pretty(message).unwrap() + "\n").unwrap();
        }
    }
    let (head, brief, persona) = (sample_head(), sample_brief(), "likes to cook".to_owned());
    let (theme, drafts) = (sample_theme(), vec![sample_draft()]);
    write(&sample_event());
    write(&ContextChanged {
        head: head.clone(),
        brief: brief.clone(),
        favourites: vec![CategoryWeight { category: "fresh pasta".into(), weight: 2.5 }],
        recent: vec![PurchaseMemory {
            product: "d00007".into(),
            name: "spinach ravioli".into(),
            category: "fresh pasta".into(),
            count: 3,
            last_ms: 1_700_000_000_000,
        }],
    });
    let rejected = vec![RejectedTheme { title: "Cure Your Cold".into(), reason: "medical_claim".into() }];
    let versions = Versions::from([("themes".to_owned(), "writer@1".to_owned())]);
    write(&ThemesWritten {
        head: head.clone(),
        brief: brief.clone(),
        persona: persona.clone(),
        themes: vec![theme],
        rejected,
        versions: versions.clone(),
    });
    write(&KeywordsChosen {
        head: head.clone(),
        brief: brief.clone(),
        persona: persona.clone(),
        drafts: drafts.clone(),
        versions: versions.clone(),
    });
    let dropped = vec![DroppedDraft { title: "Pasta Night".into(), repeats: "Sunday Pasta".into(), cosine: 0.93 }];
    write(&ThemesDeduped { head: head.clone(), brief, persona: persona.clone(), drafts, dropped, versions });
    let Draft { theme, keywords } = sample_draft();
    let products =
        vec![ShownProduct { product: "d00007".into(), score: 0.97 }, ShownProduct { product: "d00011".into(), score: 0.8 }];
    let placements = vec![Placement { theme, keywords, products, retrieved: 41 }];
    let versions = BTreeMap::from([("cross-encoder".to_owned(), "demo 1".to_owned())]);
    write(&PagePublished { head, page: Page { persona, diets: DietSet::NONE.with(Diet::Vegetarian), placements, versions } });
    write(&sample_feedback());
}

fn sample_event() -> ShopperEvent {
    ShopperEvent {
        id: "order-17".into(),
        tenant: "default".into(),
        user: "shopper-0001".into(),
        at_ms: 1_700_000_000_000,
        kind: EventKind::Purchase,
        lines: vec![Line { product: "d00007".into(), quantity: 2 }],
        preference: Some(Preference {
            diets: Some([Diet::Vegetarian, Diet::Halal].into_iter().collect()),
            budget: Some(Budget::High),
            locale: Some("de-CH".into()),
            dislikes: Some(vec!["olives".into()]),
        }),
        personalise: Some(true),
    }
}

fn sample_feedback() -> Feedback {
    let offer = |product: &str, last| Offer { product: product.into(), traits: vec![0, 128, last], nominators: 5 };
    Feedback {
        slate: "00112233445566778899aabbccddeeff".into(),
        served_ms: 1_700_000_000_000,
        policy: 41,
        traits_version: 1,
        propensity: Some(0.5),
        offers: vec![offer("d00007", 255), offer("d00011", 7), offer("", 0)],
        shown: 2,
        actions: vec![Action { offer: 0, kind: ActionKind::Impression }, Action { offer: 0, kind: ActionKind::CartAdd }],
        put_back: None,
    }
}

fn sample_head() -> Head {
    Head {
        user: UserKey::of("shopper-0001"),
        context_ms: 1_700_000_000_001,
        generation: 4,
        cause: Cause { event_id: "order-17".into(), event_ms: 1_700_000_000_000, accepted_ms: 1_700_000_000_120 },
        expires_ms: 1_700_086_400_000,
    }
}

fn sample_brief() -> Brief {
    Brief {
        diets: [Diet::Vegetarian, Diet::Halal].into_iter().collect(),
        budget: Budget::High,
        locale: "de-CH".into(),
        season: Season::Autumn,
        dislikes: vec!["olives".into()],
        personalise: true,
    }
}

fn sample_theme() -> Theme {
    Theme {
        title: "Sunday Pasta".into(),
        intent: "cook for the family".into(),
        concepts: vec!["fresh pasta".into(), "tomato sauces".into(), "grated cheese".into()],
        origin: Origin::Model,
    }
}

fn sample_draft() -> Draft {
    let keywords = vec![
        Keyword { id: 12, text: "fresh pasta".into(), descriptor: Descriptor::Node },
        Keyword { id: 901, text: "tomato passata".into(), descriptor: Descriptor::Query },
    ];
    Draft { theme: sample_theme(), keywords }
}
