//! Tests of slates, floor, keys and stage.

use std::{
    collections::HashSet,
    sync::{LazyLock, Mutex},
};

use endcap_inference::{
    Limits, ModelError, spawn,
    verdicts::{pair, verdict_key},
};
use endcap_market::DEMO_SEED;
use endcap_retrieval::{MarketDir, write_demo};
use endcap_runtime::{DropReason, Embedded, EmbeddedConfig, ManualClock, Write};
use endcap_schemas::{
    Brief, Budget, Cause, Descriptor, Diet, DietSet, Draft, Head, Keyword, Origin, Placement, Product, Season, ShownProduct,
    Theme, UserKey,
};

use super::*;

static DEMO: LazyLock<endcap_market::Market> = LazyLock::new(|| endcap_market::Market::generate(DEMO_SEED));

fn product(id: &str) -> Arc<Product> {
    let demo = &DEMO.products[0];
    Arc::new(Product { id: id.to_owned(), ..demo.clone() })
}

fn products(ids: &[&str]) -> Vec<Arc<Product>> {
    ids.iter().map(|id| product(id)).collect()
}

fn ids(products: &[Arc<Product>]) -> Vec<&str> {
    products.iter().map(|product| product.id.as_str()).collect()
}

fn theme(title: &str, concepts: &[&str], origin: Origin) -> Theme {
    let concepts = concepts.iter().map(|concept| (*concept).to_owned()).collect();
    Theme { title: title.to_owned(), intent: "eat well".into(), concepts, origin }
}

fn brief(diets: &[Diet]) -> Brief {
    Brief {
        diets: diets.iter().copied().collect(),
        budget: Budget::Middle,
        locale: "en".into(),
        season: Season::Winter,
        dislikes: Vec::new(),
        personalise: true,
    }
}

#[test]
fn every_keyword_has_its_say_in_turn_and_every_product_comes_once() {
    let lists = [products(&["a", "b", "c", "d"]), products(&["x"]), products(&["b", "y"])];
    assert_eq!(ids(&interleave(&lists)), ["a", "x", "b", "y", "c", "d"]);
    assert!(interleave(&[]).is_empty());
}

#[test]
fn a_placement_stays_with_enough_relevant_products_and_a_large_enough_share() {
    let config = AiqaConfig::default();
    for (good, bad, fate) in [
        (20, 0, Fate::Kept),
        (12, 8, Fate::Kept),
        (11, 9, Fate::TooMixed),
        (4, 0, Fate::Kept),
        (4, 3, Fate::TooMixed),
        (3, 0, Fate::TooFew),
        (0, 0, Fate::TooFew),
    ] {
        let names: Vec<String> = (0..good + bad).map(|i| format!("p{i}")).collect();
        let found = names.iter().map(|name| product(name)).collect();
        let mut slate = Slate::new(theme("t", &["tea"], Origin::Model), Vec::new(), &[found], 0, &config);
        slate.scores = [vec![0.5; good], vec![0.499; bad]].concat();
        assert_eq!(slate.fate(&config), fate, "{good} of {}", good + bad);
        assert_eq!(slate.placement(&config).products.len(), good);
    }
}

#[test]
fn a_slate_is_cut_widened_and_ordered_by_score() {
    let config = AiqaConfig { products_max: 4, ..AiqaConfig::default() };
    let mut slate = Slate::new(theme("t", &["tea"], Origin::Model), Vec::new(), &[products(&["a", "b"])], 0, &config);
    slate.scores = vec![0.9, 0.1];
    slate.widen(&[products(&["b", "c", "d", "e"])], &config);
    assert_eq!((ids(&slate.products), slate.widened, slate.retrieved), (vec!["a", "b", "c", "d"], 2, 2));
    slate.scores.extend([0.95, 0.9]);
    let shown: Vec<String> = slate.placement(&config).products.into_iter().map(|shown| shown.product).collect();
    assert_eq!(shown, ["c", "a", "d"]);
    let many: Vec<Arc<Product>> = products(&["a", "b", "c", "d", "e", "f"]);
    let full = Slate::new(theme("t", &["tea"], Origin::Model), Vec::new(), &[many], 0, &config);
    assert_eq!((full.products.len(), full.retrieved), (4, 6));
}

#[test]
fn keywords_that_bring_what_does_not_fit_are_given_up_with_what_they_alone_brought() {
    let config = AiqaConfig::default();
    let keywords = ["good tea", "fluid", "mixed bag"].map(query);
    let lists = vec![products(&["a", "b", "both"]), products(&["x", "y", "z", "both"]), products(&["a", "x"])];
    let slate = |scores: [f32; 6]| {
        let mut slate = Slate::new(theme("t", &["tea"], Origin::Model), keywords.to_vec(), &lists, 0, &config);
        assert_eq!(ids(&slate.products), ["a", "x", "b", "y", "both", "z"]);
        slate.scores = scores.to_vec();
        slate
    };
    let mut some = slate([0.9, 0.1, 0.8, 0.2, 0.7, 0.3]);
    assert_eq!(some.fate(&config), Fate::TooFew);
    let left = some.correct(lists.clone(), &config);
    assert_eq!(left, lists[..1]);
    assert_eq!((ids(&some.products), some.scores.clone()), (vec!["a", "b", "both"], vec![0.9, 0.8, 0.7]));
    assert_eq!((some.keywords.len(), some.given_up.len(), some.retrieved, some.gone), (1, 2, 3, 3));
    let mut none = slate([0.1; 6]);
    let before = none.clone();
    assert_eq!(none.correct(lists.clone(), &config), lists);
    assert_eq!(none, before, "where no keyword is better, all stay");
}

#[test]
fn a_page_below_the_floor_yields_to_an_older_one_that_fits() {
    for (placements, older_fits, expected) in [
        (5, true, Outcome::Publish),
        (5, false, Outcome::Publish),
        (4, true, Outcome::KeepOlder),
        (4, false, Outcome::Publish),
        (0, true, Outcome::KeepOlder),
        (0, false, Outcome::Withdraw),
    ] {
        assert_eq!(outcome(placements, 5, older_fits), expected, "{placements} placements, older fits: {older_fits}");
    }
    assert_eq!(outcome(0, 0, false), Outcome::Withdraw, "an empty page is none, whatever the floor");
}

fn page_of(origin: Origin, placements: &[&[&str]]) -> Page {
    let placement = |ids: &&[&str]| Placement {
        theme: theme("t", &["tea"], origin),
        keywords: Vec::new(),
        products: ids.iter().map(|id| ShownProduct { product: (*id).to_owned(), score: 0.9 }).collect(),
        retrieved: 9,
    };
    let placements = placements.iter().map(placement).collect();
    Page { persona: String::new(), diets: DietSet::NONE, placements, versions: BTreeMap::new() }
}

#[test]
fn an_older_page_fits_while_diet_consent_and_stock_allow() {
    let allowed = |id: &str| match id {
        "gone" => Allowed::NotNow,
        "harm" => Allowed::Never,
        _ => Allowed::Yes,
    };
    let consents = brief(&[]);
    let refuses = Brief { personalise: false, ..brief(&[]) };
    for (name, page, brief, expected) in [
        ("all well", page_of(Origin::Model, &[&["a", "b"], &["c", "d"]]), &consents, true),
        ("one product sold out of three", page_of(Origin::Model, &[&["a", "b", "gone"]]), &consents, true),
        ("a placement sold out", page_of(Origin::Model, &[&["a", "b"], &["c", "gone"]]), &consents, false),
        ("one product against the diet", page_of(Origin::Model, &[&["a", "b", "c", "harm"]]), &consents, false),
        ("personal without consent", page_of(Origin::Model, &[&["a", "b"]]), &refuses, false),
        ("seasonal without consent", page_of(Origin::Cold, &[&["a", "b"]]), &refuses, true),
        ("only the floor, origin unknown", page_of(Origin::FloorFallback, &[&["a", "b"]]), &refuses, false),
        ("empty", page_of(Origin::Cold, &[]), &consents, false),
    ] {
        assert_eq!(fits(&page, brief, 2, allowed), expected, "{name}");
    }
}

#[test]
fn replacements_are_new_ideas_near_the_page() {
    let merchandiser = Merchandiser::new(DEMO.categories.clone());
    let tried = [theme("Tea time", &["tea"], Origin::Model), theme("Pasta", &["pasta"], Origin::Model)];
    let head = head("anna", 1);
    let themes = replacements(&head, &brief(&[Diet::Vegan]), &tried, 6, &merchandiser);
    assert_eq!(themes.len(), 6);
    assert!(themes.iter().all(|theme| theme.origin == Origin::FloorFallback));
    let anchors: HashSet<&str> = themes.iter().chain(&tried).map(|theme| theme.concepts[0].as_str()).collect();
    assert_eq!(anchors.len(), 8, "no anchor twice");
}

#[test]
fn a_verdict_is_known_by_the_texts_and_the_model() {
    let (first, other) = (&DEMO.products[0], DEMO.products.last().unwrap());
    let sibling = Product { id: "another".into(), brand: "Other".into(), size: "2 kg".into(), ..first.clone() };
    let key = |theme: &str, product: &Product, model: &str| verdict_key(&pair(theme, product), model);
    let base = key("tea time ; tea", first, "m1");
    assert_eq!(base, key("tea time ; tea", &sibling, "m1"), "another size of the same thing");
    let mut keys = HashSet::from([base]);
    for key in [key("tea time ; tea", first, "m2"), key("tea time ; tea", other, "m1"), key("coffee time ; tea", first, "m1")] {
        assert!(keys.insert(key));
    }
}

/// Says that a product is relevant when the theme names its category: the truth of the demo market. Refuses nothing.
struct Truth {
    asked: Arc<Mutex<Vec<Pair>>>,
    /// Categories that nothing of is relevant.
    blind: &'static [&'static str],
    fails: bool,
}

impl Model for Truth {
    type Request = Pair;
    type Answer = Relevance;

    fn tokens(&self, _: &Pair) -> usize {
        16
    }

    fn answer(&mut self, batch: Vec<Pair>) -> Result<Vec<Result<Relevance, ModelError>>, ModelError> {
        if self.fails {
            return Err(ModelError::Failed("device lost".into()));
        }
        self.asked.lock().unwrap().extend(batch.iter().cloned());
        let judge = |pair: &Pair| {
            let category = pair.product.rsplit(" ; ").next().unwrap_or("");
            let named = pair.theme.split(" ; ").skip(1).any(|concept| concept == category) && !self.blind.contains(&category);
            // Scores differ from product to product, so that order matters.
            let spread = pair.product.len() as f32 / 1_000.0;
            Ok(Relevance { probability: if named { 0.8 + spread } else { 0.1 + spread }, tokens: 16 })
        };
        Ok(batch.iter().map(judge).collect())
    }

    fn version(&self) -> &str {
        if self.blind.is_empty() { "truth@1" } else { "blind@1" }
    }
}

fn head(user: &str, context_ms: i64) -> Head {
    let cause = Cause { event_id: "e1".into(), event_ms: 1, accepted_ms: 2 };
    Head { user: UserKey::of(user), context_ms, generation: 0, cause, expires_ms: 100 }
}

fn node(name: &str) -> Keyword {
    let at = DEMO.terms.iter().position(|term| term.text == name && term.descriptor == Descriptor::Node).unwrap();
    Keyword { id: at as i64 + 1, text: name.to_owned(), descriptor: Descriptor::Node }
}

fn query(text: &str) -> Keyword {
    Keyword { id: 0, text: text.to_owned(), descriptor: Descriptor::Query }
}

fn draft(anchor: &str, keywords: Vec<Keyword>) -> Draft {
    Draft { theme: theme(&format!("More {anchor}"), &[anchor], Origin::Model), keywords }
}

fn deduped(user: &str, context_ms: i64, brief: Brief, drafts: Vec<Draft>) -> ThemesDeduped {
    let versions = Versions::from([("themes".to_owned(), "writer@1".to_owned())]);
    ThemesDeduped { head: head(user, context_ms), brief, persona: "a cook".into(), drafts, dropped: Vec::new(), versions }
}

/// Anchors that no diet of the demo market objects to.
const PLAIN: [&str; 6] = ["tea", "plant milk", "porridge", "apples and pears", "berries", "citrus fruit"];

fn six(user: &str) -> ThemesDeduped {
    deduped(user, 1_000, brief(&[]), PLAIN.iter().map(|anchor| draft(anchor, vec![node(anchor)])).collect())
}

/// A market directory with the demo market; made once.
static MARKET: LazyLock<(Market, tempfile::TempDir)> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(place.path()).unwrap();
    write_demo(&dir, &DEMO.products, &DEMO.categories, &DEMO.terms).unwrap();
    (Market::open(place.path()).unwrap(), place)
});

/// A stage with its twin and a store of its own.
struct Bench {
    stage: AiqaStage<Truth>,
    store: Arc<Embedded>,
    asked: Arc<Mutex<Vec<Pair>>>,
    dir: Arc<tempfile::TempDir>,
}

impl Bench {
    fn new(blind: &'static [&'static str], fails: bool) -> Self {
        Self::over(Arc::new(tempfile::tempdir().unwrap()), blind, fails)
    }

    fn over(dir: Arc<tempfile::TempDir>, blind: &'static [&'static str], fails: bool) -> Self {
        let clock = Arc::new(ManualClock::at(0));
        let store = Arc::new(Embedded::open(dir.path().join("endcap.sqlite"), EmbeddedConfig::default(), clock).unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let model = spawn("truth", Truth { asked: asked.clone(), blind, fails }, Limits::default()).unwrap();
        let stage = AiqaStage::new(AiqaConfig::default(), MARKET.0.clone(), store.clone(), model);
        Self { stage, store, asked, dir }
    }

    /// Processes pages as one batch and, as the loop does, stores what the verdicts write.
    fn process(&mut self, pages: Vec<ThemesDeduped>) -> Vec<Verdict<PagePublished>> {
        let input = |value| Input { value, partition: 0, offset: 0, appended_ms: 2 };
        let verdicts = self.stage.process(&pages.into_iter().map(input).collect::<Vec<_>>()).unwrap();
        for verdict in &verdicts {
            match verdict {
                Verdict::Passed(passed) => self.store.put_all(&passed.writes, &[]).unwrap(),
                Verdict::Settled(settled) => self.store.put_all(&settled.writes, &[]).unwrap(),
                other => panic!("passed or settled: {other:?}"),
            }
        }
        verdicts
    }

    fn page(&mut self, page: ThemesDeduped) -> PagePublished {
        published(self.process(vec![page]).remove(0))
    }
}

fn published(verdict: Verdict<PagePublished>) -> PagePublished {
    match verdict {
        Verdict::Passed(passed) => passed.out,
        other => panic!("published: {other:?}"),
    }
}

fn demo_product(id: &str) -> &'static Product {
    DEMO.products.iter().find(|product| product.id == id).unwrap()
}

#[test]
fn a_published_page_is_what_the_store_holds_and_says_what_made_it() {
    let mut bench = Bench::new(&[], false);
    let out = bench.page(six("anna"));
    assert_eq!(out.page.placements.len(), 6);
    let names: Vec<&str> = out.page.versions.keys().map(String::as_str).collect();
    assert_eq!(names, ["catalogue", "cross-encoder", "index", "policy", "prompts", "themes"]);
    let stored = bench.store.page(&UserKey::of("anna")).unwrap().unwrap();
    assert_eq!(stored.stamp, Stamp::of(1_000, 0));
    assert_eq!(wire::decode::<PagePublished>(&stored.page.unwrap()).unwrap(), out);
    for placement in &out.page.placements {
        assert!((4..=20).contains(&placement.products.len()), "{}", placement.theme.title);
        assert!(placement.products.windows(2).all(|pair| pair[0].score >= pair[1].score));
        assert!(placement.products.iter().all(|shown| demo_product(&shown.product).category() == placement.theme.concepts[0]));
        assert!(placement.retrieved >= 20, "{} retrieved", placement.retrieved);
    }
}

#[test]
fn nothing_the_household_may_not_have_is_shown_or_even_judged() {
    let mut bench = Bench::new(&[], false);
    let anchors = ["bread loaves", "porridge", "berries", "tea", "plant milk", "red wine"];
    let drafts = anchors.iter().map(|anchor| draft(anchor, vec![node(anchor)])).collect();
    let out = bench.page(deduped("anna", 1, brief(&[Diet::GlutenFree, Diet::NutFree]), drafts));
    let kept = DietSet::NONE.with(Diet::GlutenFree).with(Diet::NutFree);
    for shown in out.page.placements.iter().flat_map(|placement| &placement.products) {
        let product = demo_product(&shown.product);
        assert!(!product.violates.intersects(kept) && !product.age_restricted && product.in_stock, "{}", product.name);
    }
    assert!(bench.asked.lock().unwrap().iter().all(|pair| !pair.product.ends_with("; red wine")));
    assert!(out.page.placements.len() >= 5);
}

#[test]
fn pairs_of_all_shoppers_are_judged_once_and_remembered() {
    let mut bench = Bench::new(&[], false);
    let first: Vec<_> = bench.process(vec![six("anna"), six("ben")]).into_iter().map(published).collect();
    assert_eq!(first[0].page, first[1].page);
    let asked = bench.asked.lock().unwrap().clone();
    assert_eq!(asked.iter().collect::<HashSet<_>>().len(), asked.len(), "no pair twice");
    let again = bench.page(six("carla"));
    assert_eq!(bench.asked.lock().unwrap().len(), asked.len(), "all of it is remembered");
    assert_eq!(again.page, first[0].page, "a remembered verdict is the computed one");
}

#[test]
fn a_page_is_the_same_alone_and_in_company() {
    let pages = || {
        let vegan = deduped("ben", 1, brief(&[Diet::Vegan]), vec![draft("tea", vec![query("green tea"), node("tea")])]);
        vec![six("anna"), vegan, deduped("carla", 1, brief(&[]), vec![draft("pasta", vec![node("tea")])])]
    };
    let company: Vec<_> = Bench::new(&[], false).process(pages()).into_iter().map(published).collect();
    for (together, page) in company.into_iter().zip(pages()) {
        assert_eq!(Bench::new(&[], false).page(page), together);
    }
}

#[test]
fn what_is_not_relevant_is_pruned_and_the_floor_is_filled() {
    let mut bench = Bench::new(&[], false);
    // Keywords of other leaves: the theme is about berries, what they retrieve is not.
    let astray = draft("berries", vec![node("tea"), node("porridge"), node("plant milk"), node("citrus fruit")]);
    let verdict = bench.process(vec![deduped("anna", 1, brief(&[]), vec![draft("tea", vec![node("tea")]), astray])]).remove(0);
    let Verdict::Passed(passed) = verdict else { panic!("published") };
    let origins: Vec<Origin> = passed.out.page.placements.iter().map(|placement| placement.theme.origin).collect();
    assert_eq!(
        origins,
        [Origin::Model, Origin::FloorFallback, Origin::FloorFallback, Origin::FloorFallback, Origin::FloorFallback]
    );
    let counters: BTreeMap<&str, u64> = passed.counters.into_iter().collect();
    assert_eq!((counters["aiqa.drafts_kept"], counters["aiqa.placements_filled"], counters["aiqa.placements"]), (1, 4, 5));
    let explained = &passed.explanation["placements"][1];
    assert_eq!(explained["fate"], "too_few_products");
    assert_eq!(explained["pruned"]["irrelevant"], 20);
}

#[test]
fn thin_recall_is_widened_before_a_placement_is_given_up() {
    let mut bench = Bench::new(&[], false);
    let mut page = six("anna");
    page.drafts[0].keywords = vec![query("zzyzx tea of no shop")];
    page.drafts[1].keywords = Vec::new();
    let out = bench.page(page);
    assert_eq!(out.page.placements.len(), 6);
    assert!(out.page.placements[1].products.len() >= 4, "the concept's own leaf stands in for keywords that find nothing");
    assert_eq!(out.page.placements[1].retrieved, 0, "density counts what the keywords found");
}

/// Nothing is relevant to anybody.
static ALL_BLIND: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| DEMO.categories.iter().map(|category| category.name.as_str()).collect());

#[test]
fn an_older_page_stays_while_it_fits_and_is_withdrawn_when_it_does_not() {
    let older = six("anna");
    for (name, newer, stays) in [
        ("same household", brief(&[]), true),
        ("consent withdrawn", Brief { personalise: false, ..brief(&[]) }, false),
        ("berries disliked", Brief { dislikes: vec!["berries".into()], ..brief(&[]) }, false),
    ] {
        let mut before = Bench::new(&[], false);
        before.page(older.clone());
        // Another judge over the same store: with its own version, so that the older verdicts are none of its own.
        let mut bench = Bench::over(before.dir.clone(), &ALL_BLIND, false);
        let drafts = vec![draft("mineral water", vec![node("mineral water")])];
        let verdict = bench.process(vec![deduped("anna", 2_000, newer, drafts)]).remove(0);
        let Verdict::Settled(settled) = verdict else { panic!("{name}: settled") };
        assert_eq!(settled.reason, DropReason::BelowFloor);
        assert_eq!(settled.writes.is_empty(), stays, "{name}");
        let stored = bench.store.page(&UserKey::of("anna")).unwrap().unwrap();
        assert_eq!(stored.page.is_some(), stays, "{name}");
    }
}

#[test]
fn a_short_page_is_published_where_there_is_no_older_one_and_again_when_it_is_redelivered() {
    // Everything but tea is irrelevant, so no replacement helps.
    static BUT_TEA: LazyLock<Vec<&'static str>> =
        LazyLock::new(|| ALL_BLIND.iter().filter(|name| **name != "tea").copied().collect());
    let mut bench = Bench::new(&BUT_TEA, false);
    let page = deduped("anna", 1, brief(&[]), vec![draft("tea", vec![node("tea")])]);
    let first = bench.page(page.clone());
    assert_eq!(first.page.placements.len(), 1);
    assert_eq!(bench.page(page), first, "its own earlier self is no older page");
}

#[test]
fn a_lost_device_is_retried() {
    let mut bench = Bench::new(&[], true);
    let input = Input { value: six("anna"), partition: 0, offset: 0, appended_ms: 2 };
    assert!(matches!(bench.stage.process(&[input]), Err(StageError::Faltered("cross-encoder", _))));
}

#[test]
fn the_store_write_carries_the_contexts_stamp() {
    let mut bench = Bench::new(&[], false);
    let mut page = six("anna");
    page.head.generation = 3;
    let Verdict::Passed(passed) = bench.process(vec![page]).remove(0) else { panic!("published") };
    assert!(matches!(passed.writes[..], [Write::Page { stamp, page: Some(_), .. }] if stamp == Stamp::of(1_000, 3)));
}
