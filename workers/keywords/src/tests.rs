//! Tests of candidates, answers, keys and stage.

use std::{
    collections::HashSet,
    sync::{LazyLock, Mutex},
};

use endcap_inference::{Limits, TokenCounts, prompts, spawn};
use endcap_market::DEMO_SEED;
use endcap_retrieval::{IndexOptions, MarketDir, build_index, words, write_demo};
use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock};
use endcap_schemas::{Brief, Budget, Cause, Descriptor, Diet, DietSet, Head, Origin, Season, Term, Theme, UserKey};

use super::*;

static DEMO: LazyLock<endcap_market::Market> = LazyLock::new(|| endcap_market::Market::generate(DEMO_SEED));
/// The leaves whose terms the market of these tests has.
const LEAVES: [&str; 8] = ["hard cheese", "pasta", "bread loaves", "plant milk", "porridge", "tea", "red wine", "nut butter"];

fn brief(diets: &[Diet], dislikes: &[&str]) -> Brief {
    Brief {
        diets: diets.iter().copied().collect(),
        budget: Budget::Middle,
        locale: "en".into(),
        season: Season::Winter,
        dislikes: dislikes.iter().map(|word| (*word).to_owned()).collect(),
        personalise: true,
    }
}

fn theme(title: &str, concepts: &[&str]) -> Theme {
    let concepts = concepts.iter().map(|concept| (*concept).to_owned()).collect();
    Theme { title: title.to_owned(), intent: "eat well".into(), concepts, origin: Origin::Model }
}

fn page(user: &str, brief: Brief, themes: Vec<Theme>) -> ThemesWritten {
    let cause = Cause { event_id: "e1".into(), event_ms: 1, accepted_ms: 2 };
    let head = Head { user: UserKey::of(user), context_ms: 1, generation: 0, cause, expires_ms: 100 };
    ThemesWritten {
        head,
        brief,
        persona: "a household that cooks".into(),
        themes,
        rejected: Vec::new(),
        versions: [("themes".into(), "writer@1".into())].into(),
    }
}

fn term(text: &str, descriptor: Descriptor, category: &str, violates: &[Diet]) -> Term {
    let violates = violates.iter().copied().collect();
    Term { text: text.into(), descriptor, category: Some(category.into()), violates, popularity: 0.5, tier: 1 }
}

fn found(concept: usize, id: i64, cosine: f32, term: Term) -> Found {
    Found { concept, id, term, cosine, age_restricted: false }
}

const BOTH: [Descriptor; 2] = [Descriptor::Node, Descriptor::Query];

fn texts(list: &Shortlist) -> Vec<(&str, Vec<&str>)> {
    list.groups.iter().map(|group| (group.concept.as_str(), group.terms.iter().map(String::as_str).collect())).collect()
}

#[test]
fn candidates_are_the_best_neighbours_under_the_concept_that_found_them() {
    let query = |text: &str| term(text, Descriptor::Query, "x", &[]);
    let all = vec![
        found(0, 1, 0.9, query("cheddar")),
        found(0, 2, 0.5, query("rye bread")),
        found(1, 2, 0.8, query("rye bread")),
        found(1, 3, 0.7, query("Crusty: loaf")),
        found(1, 4, 0.1, query("too far")),
    ];
    let list = shortlist(&["cheese".into(), "Bread".into()], all, &brief(&[], &[]), &BOTH, 3);
    assert_eq!(texts(&list), [("cheese", vec!["cheddar"]), ("bread", vec!["rye bread", "crusty loaf"])]);
    assert_eq!(list.terms.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 3], "terms stand in the order of the texts");
    assert_eq!(list.considered, 5);
}

#[test]
fn a_node_stands_for_a_query_of_its_text() {
    let all = vec![
        found(0, 1, 0.9, term("pasta", Descriptor::Query, "pasta", &[])),
        found(0, 2, 0.9, term("pasta", Descriptor::Node, "pasta", &[])),
    ];
    for (kinds, id) in [(&BOTH[..], 2), (&[Descriptor::Query][..], 1), (&[Descriptor::Node][..], 2)] {
        let list = shortlist(&["pasta".into()], all.clone(), &brief(&[], &[]), kinds, 64);
        assert_eq!(list.terms.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id], "{kinds:?}");
    }
}

#[test]
fn what_the_household_may_not_have_is_no_candidate() {
    let mut adult = found(0, 4, 0.6, term("merlot", Descriptor::Query, "red wine", &[]));
    adult.age_restricted = true;
    let all = vec![
        found(0, 1, 0.9, term("cheddar", Descriptor::Query, "hard cheese", &[Diet::Vegan, Diet::DairyFree])),
        found(0, 2, 0.8, term("mushroom soup", Descriptor::Query, "soup", &[])),
        found(0, 3, 0.7, term("tomato soup", Descriptor::Query, "soup", &[])),
        adult,
    ];
    let list = shortlist(&["dinner".into()], all, &brief(&[Diet::Vegan], &["mushrooms"]), &BOTH, 64);
    assert_eq!(texts(&list), [("dinner", vec!["tomato soup"])]);
    assert_eq!((list.considered, list.against_diet, list.against_policy), (4, 1, 2));
}

fn cheeses() -> Shortlist {
    let names = ["cheddar", "gouda", "edam", "comte", "manchego"];
    let all = (1..).zip(names).map(|(id, name)| found(0, id, 0.9, term(name, Descriptor::Query, "hard cheese", &[]))).collect();
    shortlist(&["hard cheese".into()], all, &brief(&[], &[]), &BOTH, 64)
}

#[test]
fn an_answer_that_cannot_be_used_is_the_merchandisers() {
    let config = KeywordsConfig { keywords_min: 3, keywords_max: 4, ..KeywordsConfig::default() };
    let merchandiser = Merchandiser::new(DEMO.categories.clone());
    let theme = theme("For the cheese board", &["hard cheese"]);
    let page = page("anna", brief(&[], &[]), vec![theme.clone()]);
    let picks = |picks: &[usize]| Ok(ChosenKeywords { picks: picks.to_vec(), tokens: TokenCounts::default() });
    for (chosen, source) in [
        (picks(&[4, 0, 2]), Source::Model),
        (picks(&[0, 1, 2, 3]), Source::Model),
        (picks(&[0, 1]), Source::Fallback),
        (picks(&[0, 1, 2, 3, 4]), Source::Fallback),
        (picks(&[0, 1, 5]), Source::Fallback),
        (picks(&[0, 1, 1]), Source::Fallback),
        (Err(ModelError::Request("too long".into())), Source::Fallback),
    ] {
        let what = format!("{chosen:?}");
        let answered = answer(&page, &theme, &cheeses(), chosen, &config, &merchandiser);
        assert_eq!(answered.source, source, "{what}");
        assert_eq!(answered.fault.is_some(), source == Source::Fallback, "{what}");
        assert!((3..=4).contains(&answered.keywords.len()), "{what}: {:?}", answered.keywords);
    }
    let answered = answer(&page, &theme, &cheeses(), picks(&[4, 0, 2]), &config, &merchandiser);
    let chosen: Vec<(i64, &str)> = answered.keywords.iter().map(|keyword| (keyword.id, keyword.text.as_str())).collect();
    assert_eq!(chosen, [(5, "manchego"), (1, "cheddar"), (3, "edam")], "in the model's order");
}

#[test]
fn a_question_is_known_by_what_its_answer_depends_on_and_by_nobodys_name() {
    let config = KeywordsConfig::default();
    let versions = Versions { chooser: "c1", encoder: "e1", market: "m1" };
    let theme_one = theme("Tea time", &["tea", "biscuits"]);
    let key = |persona: &str, brief: &Brief, theme: &Theme| question(persona, brief, theme, &config, versions);
    let base = key("a baker", &brief(&[], &["figs", "dates"]), &theme_one);
    assert_eq!(base, key("A  baker!", &brief(&[], &["dates", "figs"]), &theme_one), "spelling and order are nothing");
    let other_title = theme("Tea times", &["tea", "biscuits"]);
    let other_order = theme("Tea time", &["biscuits", "tea"]);
    let locale = Brief { locale: "de".into(), ..brief(&[], &["figs", "dates"]) };
    let known = brief(&[], &["figs", "dates"]);
    let mut keys = HashSet::from([base]);
    for other in [
        key("a cook", &known, &theme_one),
        key("a baker", &brief(&[Diet::Vegan], &["figs", "dates"]), &theme_one),
        key("a baker", &brief(&[], &["figs"]), &theme_one),
        key("a baker", &Brief { budget: Budget::Low, ..known.clone() }, &theme_one),
        key("a baker", &Brief { season: Season::Summer, ..known.clone() }, &theme_one),
        key("a baker", &locale, &theme_one),
        key("a baker", &known, &other_title),
        key("a baker", &known, &other_order),
        question("a baker", &known, &theme_one, &config, Versions { chooser: "c2", ..versions }),
        question("a baker", &known, &theme_one, &config, Versions { encoder: "e2", ..versions }),
        question("a baker", &known, &theme_one, &config, Versions { market: "m2", ..versions }),
        question(
            "a baker",
            &known,
            &theme_one,
            &KeywordsConfig { descriptors: vec![Descriptor::Node], ..config.clone() },
            versions,
        ),
        question("a baker", &known, &theme_one, &KeywordsConfig { keywords_max: 5, ..config.clone() }, versions),
    ] {
        assert!(keys.insert(other), "every part counts");
    }
}

/// Vectors by words, and by the category of a known term: so a leaf's name is near its terms.
struct Encoder {
    asked: Arc<Mutex<usize>>,
}

fn embed(text: &str) -> Vec<f32> {
    let category = DEMO.terms.iter().find(|term| term.text == text).and_then(|term| term.category.clone());
    let mut vector = vec![0.0; 64];
    let mut add = |text: &str, weight: f32| {
        let hash = blake3::hash(text.as_bytes());
        vector.iter_mut().zip(hash.as_bytes().iter().cycle().enumerate()).for_each(|(x, (i, byte))| {
            *x += weight * (f32::from(byte.rotate_left(i as u32 / 8)) - 127.5);
        });
    };
    words::words(text).iter().for_each(|word| add(word, 1.0));
    add(category.as_deref().unwrap_or(text), 3.0);
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter().map(|x| x / norm).collect()
}

impl Model for Encoder {
    type Request = Embed;
    type Answer = Embedding;

    fn tokens(&self, _: &Embed) -> usize {
        8
    }

    fn answer(&mut self, batch: Vec<Embed>) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        *self.asked.lock().unwrap() += batch.len();
        Ok(batch.iter().map(|request| Ok(Embedding(embed(&request.text)))).collect())
    }

    fn version(&self) -> &str {
        "words@1"
    }
}

/// Picks the last candidates, fewer for longer prompts; refuses prompts about `porridge`.
struct Chooser {
    asked: Arc<Mutex<Vec<ChooseKeywords>>>,
    fails: bool,
}

impl Model for Chooser {
    type Request = ChooseKeywords;
    type Answer = ChosenKeywords;

    fn tokens(&self, _: &ChooseKeywords) -> usize {
        100
    }

    fn answer(&mut self, batch: Vec<ChooseKeywords>) -> Result<Vec<Result<ChosenKeywords, ModelError>>, ModelError> {
        if self.fails {
            return Err(ModelError::Failed("device lost".into()));
        }
        self.asked.lock().unwrap().extend(batch.iter().cloned());
        let answer = |request: ChooseKeywords| {
            if request.prompt.contains("porridge") {
                return Err(ModelError::Request("no".into()));
            }
            let last = request.terms().count();
            let count = 3 + request.prompt.len() % 3;
            Ok(ChosenKeywords {
                picks: (0..last).rev().take(count).collect(),
                tokens: TokenCounts { prefilled: 7, generated: 2, forced: 1 },
            })
        };
        Ok(batch.into_iter().map(answer).collect())
    }

    fn version(&self) -> &str {
        "last@1"
    }
}

/// A market directory with the terms of [`LEAVES`], indexed; made once.
static MARKET: LazyLock<(Market, tempfile::TempDir)> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(place.path()).unwrap();
    let of_leaves = |category: &str| LEAVES.contains(&category);
    let products: Vec<_> = DEMO.products.iter().filter(|product| of_leaves(product.category())).step_by(10).cloned().collect();
    let terms: Vec<_> = DEMO.terms.iter().filter(|term| term.category.as_deref().is_some_and(of_leaves)).cloned().collect();
    write_demo(&dir, &products, &DEMO.categories, &terms).unwrap();
    let mut encoder = |texts: &[String]| Ok(texts.iter().map(|text| embed(text)).collect());
    build_index(&dir, "words@1", &mut encoder, &IndexOptions::default(), &mut |_| {}).unwrap();
    (Market::open(place.path()).unwrap(), place)
});

/// A stage with its twins and a store of its own.
struct Bench {
    stage: KeywordsStage<Encoder, Chooser>,
    asked: Arc<Mutex<Vec<ChooseKeywords>>>,
    embedded: Arc<Mutex<usize>>,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new(fails: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Embedded::open(dir.path().join("endcap.sqlite"), EmbeddedConfig::default(), Arc::new(ManualClock::at(0))).unwrap();
        let (asked, embedded) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let encoder = spawn("encoder", Encoder { asked: embedded.clone() }, Limits::default()).unwrap();
        let chooser = spawn("chooser", Chooser { asked: asked.clone(), fails }, Limits::default()).unwrap();
        let count = Box::new(|text: &str| text.split_whitespace().count());
        let stage = KeywordsStage::new(KeywordsConfig::default(), MARKET.0.clone(), Arc::new(store), encoder, chooser, count);
        Self { stage, asked, embedded, _dir: dir }
    }

    fn process(&mut self, pages: Vec<ThemesWritten>) -> Vec<(KeywordsChosen, HashMap<&'static str, u64>)> {
        let input = |value| Input { value, partition: 0, offset: 0, appended_ms: 2 };
        let verdicts = self.stage.process(&pages.into_iter().map(input).collect::<Vec<_>>()).unwrap();
        let passed = |verdict| match verdict {
            Verdict::Passed(passed) => (passed.out, passed.counters.into_iter().collect()),
            other => panic!("passed on: {other:?}"),
        };
        verdicts.into_iter().map(passed).collect()
    }
}

fn tea_page(user: &str) -> ThemesWritten {
    page(
        user,
        brief(&[], &[]),
        vec![theme("Tea time", &["tea", "nut butter"]), theme("Pasta and cheese", &["pasta", "hard cheese"])],
    )
}

#[test]
fn questions_of_all_shoppers_are_asked_once_and_remembered() {
    let mut bench = Bench::new(false);
    let first = bench.process(vec![tea_page("anna"), tea_page("ben")]);
    assert_eq!((bench.asked.lock().unwrap().len(), *bench.embedded.lock().unwrap()), (2, 4));
    assert_eq!(first[0].0.drafts, first[1].0.drafts);
    assert_eq!((first[0].1["keywords.asked"], first[0].1["keywords.tokens_prefilled"]), (2, 14));
    assert_eq!((first[1].1["keywords.shared"], first[1].1.get("keywords.asked")), (2, None), "who came first pays");

    let again = bench.process(vec![tea_page("carla")]);
    assert_eq!(bench.asked.lock().unwrap().len(), 2, "nothing is asked twice");
    assert_eq!(again[0].0.drafts, first[0].0.drafts, "a remembered answer is the computed one");
    assert_eq!((again[0].1["keywords.cache_hits"], again[0].1["keywords.tokens_prefilled"]), (2, 0));
    assert_eq!((again[0].1["keywords.considered"], again[0].1["keywords.candidates"]), (0, 0), "nothing was looked up");
    let candidates = |bench: &mut Bench| {
        let input = Input { value: tea_page("dora"), partition: 0, offset: 0, appended_ms: 2 };
        match bench.stage.process(&[input]).unwrap().remove(0) {
            Verdict::Passed(passed) => passed.explanation["themes"][0]["candidates"].clone(),
            other => panic!("passed on: {other:?}"),
        }
    };
    let (remembered, computed) = (candidates(&mut bench), candidates(&mut Bench::new(false)));
    assert!(remembered == computed && remembered[0]["terms"].as_array().is_some_and(|terms| !terms.is_empty()), "{remembered}");
}

#[test]
fn a_page_has_the_same_keywords_alone_and_in_company() {
    let pages = || {
        let vegan = page("ben", brief(&[Diet::Vegan], &[]), vec![theme("Tea time", &["tea", "hard cheese"])]);
        vec![tea_page("anna"), vegan, page("carla", brief(&[], &["rye"]), vec![theme("Toast", &["bread loaves"])])]
    };
    let company: Vec<_> = Bench::new(false).process(pages()).into_iter().map(|(out, _)| out).collect();
    for (together, page) in company.into_iter().zip(pages()) {
        assert_eq!(Bench::new(false).process(vec![page]).remove(0).0, together);
    }
}

#[test]
fn the_model_sees_at_most_64_distinct_candidates_that_keep_the_diet() {
    let mut bench = Bench::new(false);
    let themes = vec![theme("Everything", &["hard cheese", "pasta", "bread loaves", "plant milk", "red wine"])];
    let out = bench.process(vec![page("anna", brief(&[Diet::DairyFree, Diet::GlutenFree], &[]), themes)]).remove(0);
    let asked = bench.asked.lock().unwrap();
    let terms: Vec<&str> = asked[0].terms().collect();
    assert_eq!(terms.len(), 64);
    assert_eq!(terms.iter().collect::<HashSet<_>>().len(), 64);
    let diets = DietSet::NONE.with(Diet::DairyFree).with(Diet::GlutenFree);
    for text in terms {
        let term = DEMO.terms.iter().find(|term| term.text == text).unwrap();
        assert!(!term.violates.intersects(diets), "{text}");
        assert_ne!(term.category.as_deref(), Some("red wine"), "{text} is for adults only");
    }
    assert!(out.1["keywords.against_diet"] > 0);
    let tokens = |name: &str| out.1[name];
    assert!(tokens("keywords.prompt_tokens_retrieved") < tokens("keywords.prompt_tokens_corpus"));
    let own = prompts::candidate_list(asked[0].candidates.iter().map(|group| (group.concept.as_str(), group.terms.as_slice())));
    let head = format!("{}{}", asked[0].prompt, prompts::mark::OUT);
    let counted = [head, own].iter().map(|text| text.split_whitespace().count() as u64).sum::<u64>();
    assert_eq!(tokens("keywords.prompt_tokens_retrieved"), counted);
}

#[test]
fn a_refused_theme_falls_back_and_is_not_remembered() {
    let mut bench = Bench::new(false);
    let pages = || vec![page("anna", brief(&[], &[]), vec![theme("Warm porridge", &["porridge"]), theme("Tea time", &["tea"])])];
    for _ in 0..2 {
        let (out, counters) = bench.process(pages()).remove(0);
        let origins: Vec<Origin> = out.drafts.iter().map(|draft| draft.theme.origin).collect();
        assert_eq!(origins, [Origin::ThemeFallback, Origin::Model]);
        assert_eq!(counters["keywords.fallback"], 1);
        assert!(out.drafts[0].keywords.len() >= 3);
    }
    assert_eq!(bench.asked.lock().unwrap().len(), 3, "the refused question is asked again");
}

#[test]
fn a_theme_without_candidates_has_no_draft_and_is_not_asked() {
    let mut bench = Bench::new(false);
    bench.stage.config.descriptors = Vec::new();
    let (out, counters) = bench.process(vec![tea_page("anna")]).remove(0);
    assert_eq!((out.drafts.len(), counters["keywords.without_candidates"]), (0, 2));
    assert!(bench.asked.lock().unwrap().is_empty());
}

#[test]
fn a_model_that_fails_makes_the_stage_falter() {
    let input = Input { value: tea_page("anna"), partition: 0, offset: 0, appended_ms: 2 };
    assert!(matches!(Bench::new(true).stage.process(&[input]), Err(StageError::Faltered("keyword model", _))));
}
