//! Tests of guardrails, page and stage.

use std::sync::{LazyLock, Mutex};

use endcap_inference::{
    Limits,
    prompts::{ThemeDocument, ThemesDocument},
    spawn,
};
use endcap_market::DEMO_SEED;
use endcap_retrieval::{MarketDir, write_demo};
use endcap_schemas::{Brief, Budget, CategoryWeight, Cause, Diet, Head, Season, Theme, UserKey};

use super::*;

static MARKET: LazyLock<endcap_market::Market> = LazyLock::new(|| endcap_market::Market::generate(DEMO_SEED));

fn guard() -> Guard {
    Guard::new(GuardConfig::default(), &MARKET.categories)
}

fn merchandiser() -> Merchandiser {
    Merchandiser::new(MARKET.categories.clone())
}

fn brief(diets: &[Diet], dislikes: &[&str]) -> Brief {
    Brief {
        diets: diets.iter().copied().collect(),
        budget: Budget::Middle,
        locale: "en".into(),
        season: Season::Autumn,
        dislikes: dislikes.iter().map(|word| (*word).to_owned()).collect(),
        personalise: true,
    }
}

fn context(user: &str, brief: Brief, favourites: &[&str]) -> ContextChanged {
    let cause = Cause { event_id: "e1".into(), event_ms: 1, accepted_ms: 2 };
    let head = Head { user: UserKey::of(user), context_ms: 1, generation: 0, cause, expires_ms: 100 };
    let favourite = |category: &&str| CategoryWeight { category: (*category).to_owned(), weight: 1.0 };
    ContextChanged { head, brief, favourites: favourites.iter().map(favourite).collect(), recent: Vec::new() }
}

fn theme(title: &str, concepts: &[&str]) -> Theme {
    Theme {
        title: title.to_owned(),
        intent: "stock up for the week".to_owned(),
        concepts: concepts.iter().map(|concept| (*concept).to_owned()).collect(),
        origin: Origin::Model,
    }
}

fn document(themes: &[Theme]) -> String {
    let theme = |theme: &Theme| ThemeDocument {
        title: theme.title.clone(),
        intent: theme.intent.clone(),
        concepts: theme.concepts.clone(),
    };
    ThemesDocument { persona: "a household that cooks".into(), themes: themes.iter().map(theme).collect() }.to_training_text()
}

/// Eight themes that no guardrail objects to.
fn good_page() -> Vec<Theme> {
    ["bread loaves", "hard cheese", "berries", "pasta", "tea", "eggs", "fresh fish", "soup"]
        .map(|anchor| theme(&format!("More {anchor} for the week"), &[anchor]))
        .to_vec()
}

#[test]
fn every_guardrail_says_its_own_reason() {
    let guard = guard();
    let everybody = brief(&[], &[]);
    let long = "a".repeat(30) + " " + &"b".repeat(40);
    for (title, concepts, reason) in [
        ("Cosy pasta nights", vec!["pasta", "hard cheese"], None),
        ("Crème brûlée & café au lait", vec!["cream", "coffee"], None),
        ("Free-from baking, 100% fun!", vec!["free from bakery"], None),
        ("Ab", vec!["pasta"], Some(Reason::TitleLength)),
        (long.as_str(), vec!["pasta"], Some(Reason::TitleLength)),
        ("one two three four five six seven eight nine", vec!["pasta"], Some(Reason::TitleLength)),
        ("Pasta <end> night", vec!["pasta"], Some(Reason::Charset)),
        ("Паста на ужин", vec!["pasta"], Some(Reason::Charset)),
        ("Pasta \u{fffd}\u{fffd} night", vec!["pasta"], Some(Reason::Charset)),
        ("Xkcdq zzzt bvgtrw", vec!["pasta"], Some(Reason::Language)),
        ("Pasta pasta pasta pasta", vec!["pasta"], Some(Reason::Language)),
        ("Cannabis corner", vec!["tea"], Some(Reason::Banned)),
        ("Oreos and friends", vec!["biscuits"], Some(Reason::Brand)),
        ("Teas that heal", vec!["tea"], Some(Reason::Medical)),
        ("Weight-loss favourites", vec!["salad leaves"], Some(Reason::Medical)),
        ("A glass of red wine", vec!["hard cheese"], Some(Reason::AgeRestricted)),
        ("For the cheese board", vec!["hard cheese", "red wine"], Some(Reason::AgeRestricted)),
        ("Vegan feast for friends", vec!["hard cheese"], Some(Reason::Diet)),
        ("Nothing at all", vec![], Some(Reason::ConceptCount)),
        ("Too much at once", vec!["a", "b", "c", "d", "e", "f", "g"], Some(Reason::ConceptCount)),
        ("Pasta twice", vec!["pasta", "Pasta"], Some(Reason::ConceptRepeated)),
        ("An empty idea", vec!["pasta", " "], Some(Reason::TextLength)),
    ] {
        assert_eq!(guard.theme(&theme(title, &concepts), &everybody).err(), reason, "{title}");
    }
}

#[test]
fn diets_and_dislikes_of_the_household_bind_titles_and_concepts() {
    let guard = guard();
    for (diets, dislikes, title, concepts, reason) in [
        (vec![Diet::Vegan], vec![], "Plant milk for the morning", vec!["plant milk", "porridge"], None),
        (vec![Diet::Vegan], vec![], "Good mornings", vec!["porridge", "yoghurt"], Some(Reason::Diet)),
        (vec![Diet::Vegan], vec![], "Cheese for everyone", vec!["tea"], Some(Reason::Diet)),
        (vec![Diet::Vegan], vec![], "Vegan cheese for everyone", vec!["meat alternatives"], None),
        (vec![Diet::Vegan], vec![], "Snacks", vec!["smoked salmon bites"], Some(Reason::Diet)),
        (vec![Diet::NutFree], vec![], "Sandwich time", vec!["nut butter"], Some(Reason::Diet)),
        (vec![Diet::GlutenFree], vec![], "Sandwich time", vec!["bread loaves"], Some(Reason::Diet)),
        (vec![Diet::Halal], vec![], "Grill night", vec!["pork"], Some(Reason::Diet)),
        (vec![], vec!["mushrooms"], "Creamy mushroom soups", vec!["soup"], Some(Reason::Dislike)),
        (vec![], vec!["fish"], "Dinner for two", vec!["fresh fish"], Some(Reason::Dislike)),
        (vec![], vec!["bakery"], "Toast and more", vec!["bread loaves"], Some(Reason::Dislike)),
        (vec![], vec!["rye"], "Toast and more", vec!["bread loaves"], None),
    ] {
        let verdict = guard.theme(&theme(title, &concepts), &brief(&diets, &dislikes)).err();
        assert_eq!(verdict, reason, "{title} {concepts:?} for {diets:?} without {dislikes:?}");
    }
}

#[test]
fn a_page_repeats_neither_titles_nor_anchors_and_mixes_departments() {
    let guard = guard();
    let page = [theme("Toast time", &["bread loaves"]), theme("Buns", &["rolls and buns"]), theme("Wraps", &["flatbread"])];
    let page: Vec<&Theme> = page.iter().collect();
    for (theme, reason) in [
        (theme("Toast time!", &["pasta"]), Some(Reason::TitleRepeated)),
        (theme("Other toast", &["bread loaves", "butter"]), Some(Reason::AnchorRepeated)),
        (theme("Sweet bites", &["cakes"]), Some(Reason::Variety)),
        (theme("Sunday pasta", &["pasta", "bread loaves"]), None),
        (theme("What no taxonomy knows", &["moon dust"]), None),
    ] {
        assert_eq!(guard.variety(&theme, &page).err(), reason, "{}", theme.title);
    }
}

#[test]
fn the_merchandiser_passes_the_guardrails_for_every_household() {
    let (guard, merchandiser) = (guard(), merchandiser());
    let favourites: Vec<&str> = MARKET.categories.iter().map(|category| category.name.as_str()).collect();
    for diet in Diet::ALL.map(Some).into_iter().chain([None]) {
        for season in Season::ALL {
            for (at, chunk) in favourites.chunks(6).enumerate() {
                let budget = [Budget::Low, Budget::Middle, Budget::High][at % 3];
                let brief = Brief { season, budget, ..brief(diet.as_slice(), &[]) };
                let context = context("anna", brief, chunk);
                let decision = decide(&context, &Source::Failed("test".into()), 8, &guard, &merchandiser);
                assert_eq!(decision.rejected, [], "{diet:?} {season:?} {chunk:?}");
                assert_eq!(decision.themes.len(), 8);
                assert!(guard.persona(&decision.persona), "{}", decision.persona);
            }
        }
    }
}

#[test]
fn a_rejected_theme_is_replaced_in_its_place() {
    let mut written = good_page();
    written[2].title = "Berries that cure".into();
    written[5].concepts = vec!["bread loaves".into()];
    let context = context("anna", brief(&[], &[]), &["tea", "coffee"]);
    let decision = decide(&context, &Source::Model(document(&written)), 8, &guard(), &merchandiser());
    let reasons: Vec<Reason> = decision.rejected.iter().map(|(_, reason)| *reason).collect();
    assert_eq!(reasons, [Reason::Medical, Reason::AnchorRepeated]);
    let fallbacks: Vec<usize> = (0..8).filter(|&i| decision.themes[i].origin == Origin::ThemeFallback).collect();
    assert_eq!(fallbacks, [2, 5]);
    assert_eq!(decision.themes[0].title, "More bread loaves for the week");
    let guard = guard();
    for (i, theme) in decision.themes.iter().enumerate() {
        let above: Vec<&Theme> = decision.themes[..i].iter().collect();
        assert_eq!(guard.variety(theme, &above), Ok(()), "{}", theme.title);
    }
}

#[test]
fn a_short_page_is_filled_and_a_long_one_cut() {
    let context = context("anna", brief(&[], &[]), &["tea"]);
    let short = decide(&context, &Source::Model(document(&good_page()[..5])), 8, &guard(), &merchandiser());
    let origins: Vec<Origin> = short.themes.iter().map(|theme| theme.origin).collect();
    assert_eq!(origins, [[Origin::Model; 5].as_slice(), &[Origin::ThemeFallback; 3]].concat());
    let long = decide(&context, &Source::Model(document(&good_page())), 4, &guard(), &merchandiser());
    assert_eq!(long.themes.len(), 4);
}

#[test]
fn an_unusable_document_becomes_a_page_of_the_merchandiser() {
    let context = context("anna", brief(&[], &[]), &["tea"]);
    let twice = format!("{}{}", document(&good_page()), document(&good_page()));
    let unknown = r#"{"persona":"p","themes":[],"extra":1}"#;
    for written in ["", "{", r#"{"persona":"p","themes":[]}"#, unknown, &twice, "sorry, I cannot do that"] {
        let decision = decide(&context, &Source::Model(written.to_owned()), 8, &guard(), &merchandiser());
        assert!(decision.failed.is_some(), "{written}");
        assert!(decision.themes.iter().all(|theme| theme.origin == Origin::PageFallback), "{written}");
        assert_eq!(decision.themes.len(), 8, "{written}");
    }
}

#[test]
fn an_odd_persona_gives_way_to_the_merchandisers() {
    let context = context("anna", brief(&[], &[]), &["tea"]);
    for odd in ["cures cancer with <end>", "vegan shopper into bakery then Bakery"] {
        let json = document(&good_page()).replace("a household that cooks", odd);
        let decision = decide(&context, &Source::Model(json), 8, &guard(), &merchandiser());
        assert_eq!(decision.persona, merchandiser().page(&context, 8).persona, "{odd}");
        assert!(decision.themes.iter().all(|theme| theme.origin == Origin::Model));
    }
    assert!(guard().persona("vegan shopper into bakery then pantry"));
}

/// Answers every prompt with the same page, refuses those who like `tea` best, and writes down what it was asked.
struct Writer {
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    fails: bool,
}

impl Model for Writer {
    type Request = WriteThemes;
    type Answer = WrittenThemes;

    fn tokens(&self, request: &WriteThemes) -> usize {
        request.prompt.len()
    }

    fn answer(&mut self, batch: Vec<WriteThemes>) -> Result<Vec<Result<WrittenThemes, ModelError>>, ModelError> {
        if self.fails {
            return Err(ModelError::Failed("device lost".into()));
        }
        self.asked.lock().unwrap().push(batch.iter().map(|request| request.prompt.clone()).collect());
        let tokens = TokenCounts { prefilled: 10, generated: 5, forced: 3 };
        let answer = |request: WriteThemes| match request.prompt.contains(&format!("{} tea;", prompts::mark::FAVOURITES)) {
            true => Err(ModelError::Request("prompt is too long".into())),
            false => Ok(WrittenThemes { json: document(&good_page()), tokens }),
        };
        Ok(batch.into_iter().map(answer).collect())
    }

    fn version(&self) -> &str {
        "writer@1"
    }
}

/// A market directory with the demo market's categories; made once.
static MARKET_DIR: LazyLock<(Market, tempfile::TempDir)> = LazyLock::new(|| {
    let place = tempfile::tempdir().unwrap();
    let dir = MarketDir::create(place.path()).unwrap();
    write_demo(&dir, &MARKET.products[..50], &MARKET.categories, &[]).unwrap();
    (Market::open(place.path()).unwrap(), place)
});

type Asked = Arc<Mutex<Vec<Vec<String>>>>;

fn stage(fails: bool) -> (ThemesStage<Writer>, Asked) {
    let asked: Asked = Arc::default();
    let model = spawn("writer", Writer { asked: asked.clone(), fails }, Limits::default()).unwrap();
    (ThemesStage::new(ThemesConfig::default(), MARKET_DIR.0.clone(), model), asked)
}

fn inputs(contexts: Vec<ContextChanged>) -> Vec<Input<ContextChanged>> {
    contexts.into_iter().map(|value| Input { value, partition: 0, offset: 0, appended_ms: 2 }).collect()
}

fn passed(verdicts: Vec<Verdict<ThemesWritten>>) -> Vec<Passed<ThemesWritten>> {
    let passed = |verdict| match verdict {
        Verdict::Passed(passed) => *passed,
        other => panic!("passed on: {other:?}"),
    };
    verdicts.into_iter().map(passed).collect()
}

#[test]
fn shoppers_without_history_or_consent_never_reach_the_model() {
    let (mut stage, asked) = stage(false);
    let without_consent = Brief { personalise: false, ..brief(&[], &[]) };
    let batch = inputs(vec![
        context("anna", brief(&[], &[]), &["pasta"]),
        context("ben", brief(&[Diet::Vegan], &[]), &[]),
        context("carla", without_consent, &["pasta"]),
        context("dora", brief(&[], &[]), &["tea"]),
    ]);
    let passed = passed(stage.process(&batch).unwrap());
    let origins: Vec<Origin> = passed.iter().map(|passed| passed.out.themes[0].origin).collect();
    assert_eq!(origins, [Origin::Model, Origin::Cold, Origin::Cold, Origin::PageFallback]);
    let prompts: Vec<String> = asked.lock().unwrap().concat();
    let merchandiser = Merchandiser::new(MARKET_DIR.0.snapshot().categories().to_vec());
    let prompt =
        |i: usize| prompts::themes(&batch[i].value, &merchandiser.nearby(&batch[i].value, ThemesConfig::default().themes));
    assert_eq!(prompts, [prompt(0), prompt(3)]);
    assert!(passed[1].explanation["prompt"].is_null());
    assert_eq!(passed[3].explanation["failed"], "model cannot answer: prompt is too long");
}

#[test]
fn counters_say_where_every_theme_came_from() {
    let (mut stage, _) = stage(false);
    let batch = inputs(vec![context("anna", brief(&[Diet::Vegan], &[]), &["pasta"]), context("ben", brief(&[], &[]), &[])]);
    for passed in passed(stage.process(&batch).unwrap()) {
        let of = |name: &str| passed.counters.iter().filter(|(known, _)| *known == name).map(|(_, n)| n).sum::<u64>();
        let written: u64 =
            ["themes.from_model", "themes.theme_fallback", "themes.page_fallback", "themes.cold"].map(of).iter().sum();
        assert_eq!(written, passed.out.themes.len() as u64);
        assert_eq!(
            of("themes.theme_fallback"),
            of("themes.rejected.diet"),
            "a vegan household gets other ideas for cheese, eggs and fish"
        );
        assert_eq!(of("themes.tokens_generated"), 5 * of("themes.pages_asked"));
    }
}

#[test]
fn a_lost_device_is_retried() {
    let (mut stage, _) = stage(true);
    let batch = inputs(vec![context("anna", brief(&[], &[]), &["pasta"])]);
    assert!(matches!(stage.process(&batch), Err(StageError::Faltered("theme model", _))));
}
