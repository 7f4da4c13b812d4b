//! What must hold of the merchandiser's pages, its keywords, and the samples drawn from them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use endcap_inference::prompts;
use endcap_market::{DEMO_SEED, Market, Merchandiser, Samples, samples, truth};
use endcap_schemas::{Category, ContextChanged, Diet, DietSet, Origin, Product, Season, Term, Theme};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const NOW_MS: i64 = 1_760_000_000_000;

fn house() -> (Arc<Market>, Samples, ChaCha8Rng) {
    let market = Arc::new(Market::generate(DEMO_SEED));
    let samples = Samples::new(market.clone());
    (market, samples, ChaCha8Rng::seed_from_u64(17))
}

fn anchors(themes: &[Theme]) -> Vec<&str> {
    themes.iter().map(|theme| theme.concepts[0].as_str()).collect()
}

/// Candidates as retrieval would bring them: up to 64 terms, mostly of the concepts' leaves.
fn candidates<R: Rng>(market: &Market, theme: &Theme, rng: &mut R) -> Vec<Term> {
    let mut terms = Vec::new();
    for concept in &theme.concepts {
        let own: Vec<&Term> = market.terms.iter().filter(|term| term.category.as_deref() == Some(concept)).collect();
        terms.push(own[0].clone());
        terms.extend((0..16).map(|_| own[rng.random_range(0..own.len())].clone()));
        terms.extend((0..4).map(|_| market.terms[rng.random_range(0..market.terms.len())].clone()));
    }
    let mut seen = HashSet::new();
    terms.retain(|term| seen.insert(term.text.clone()));
    terms
}

#[test]
fn pages_keep_diets_and_vary() {
    let (market, samples, mut rng) = house();
    let mut all_titles = HashSet::new();
    for _ in 0..600 {
        let sample = samples.theme(&mut rng);
        let themes = &sample.page.themes;
        assert_eq!(themes.len(), 8);
        assert_eq!(anchors(themes).into_iter().collect::<HashSet<_>>().len(), 8, "{themes:?}");
        assert_eq!(themes.iter().map(|theme| &theme.title).collect::<HashSet<_>>().len(), 8, "{themes:?}");
        let mut departments: HashMap<&str, usize> = HashMap::new();
        for theme in themes {
            assert_eq!(theme.origin, Origin::PageFallback);
            assert_eq!(theme.concepts.iter().collect::<HashSet<_>>().len(), 3);
            for concept in &theme.concepts {
                let leaf = market.category(concept).unwrap();
                assert!(!leaf.violates.intersects(sample.context.brief.diets) && !leaf.age_restricted, "{theme:?}");
            }
            assert!(theme.title.to_lowercase().contains(&theme.concepts[0]), "{theme:?}");
            assert!((3..=6).contains(&theme.title.split(' ').count()), "{theme:?}");
            *departments.entry(&market.category(&theme.concepts[0]).unwrap().department).or_default() += 1;
            all_titles.insert(theme.title.clone());
        }
        assert!(departments.values().all(|count| *count <= 3), "{departments:?}");
        assert!(!sample.page.persona.is_empty());
        assert_eq!(prompts::plain(&sample.page.persona), sample.page.persona.to_lowercase());
    }
    assert!(all_titles.len() > 500, "{} titles in 600 pages", all_titles.len());
}

#[test]
fn a_page_is_a_function_of_what_the_prompt_shows() {
    let (market, samples, mut rng) = house();
    for _ in 0..100 {
        let sample = samples.theme(&mut rng);
        let mut other = sample.context.clone();
        other.head.user = endcap_schemas::UserKey::of("somebody");
        other.favourites.truncate(prompts::FAVOURITES_MAX);
        other.recent.truncate(prompts::RECENT_MAX);
        for (i, favourite) in other.favourites.iter_mut().enumerate() {
            favourite.weight = 100.0 - i as f64;
        }
        for purchase in &mut other.recent {
            purchase.count = 9;
            purchase.last_ms = 0;
        }
        assert_eq!(prompts::themes(&other, &market.merchandiser().nearby(&other, 8)), sample.prompt());
        assert_eq!(market.merchandiser().page(&other, 8), sample.page);
    }
}

#[test]
fn shoppers_without_history_or_consent_get_season_and_popularity() {
    let (market, samples, mut rng) = house();
    let mut context = samples.theme(&mut rng).context;
    context.brief.personalise = false;
    let without_consent = samples.merchandiser().page(&context, 8);
    context.brief.personalise = true;
    context.favourites.clear();
    context.recent.clear();
    assert_eq!(samples.merchandiser().page(&context, 8), without_consent);
    assert!(without_consent.themes.iter().all(|theme| theme.origin == Origin::Cold));
    for season in Season::ALL {
        context.brief.season = season;
        let page = samples.merchandiser().page(&context, 8);
        let lifted = |name: &&str| market.category(name).unwrap().seasons[season as usize] >= 0.3;
        assert!(anchors(&page.themes).iter().filter(|name| lifted(name)).count() >= 3, "{page:?}");
    }
}

#[test]
fn replacements_are_new_and_never_run_dry_early() {
    let (market, samples, mut rng) = house();
    let sample = samples.theme(&mut rng);
    let mut taken = sample.page.themes.clone();
    for _ in 0..30 {
        let next = samples.merchandiser().replacement(&sample.context, &taken, 0).expect("leaves are left");
        assert_eq!(next.origin, Origin::ThemeFallback);
        assert!(!anchors(&taken).contains(&next.concepts[0].as_str()));
        assert!(!market.category(&next.concepts[0]).unwrap().violates.intersects(sample.context.brief.diets));
        taken.push(next);
    }
    let (first, second) = (0, 1);
    let second = samples.merchandiser().replacement(&sample.context, &sample.page.themes, second);
    assert_ne!(samples.merchandiser().replacement(&sample.context, &sample.page.themes, first), second);
    let small = Merchandiser::new(market.categories[..3].to_vec());
    let mut context = sample.context.clone();
    context.brief.diets = DietSet::NONE;
    assert_eq!(small.page(&context, 8).themes.len(), 3);
    assert!(small.replacement(&context, &small.page(&context, 8).themes, 0).is_none());
}

#[test]
fn disliked_words_stay_away() {
    let (_, samples, mut rng) = house();
    for _ in 0..50 {
        let mut context: ContextChanged = samples.theme(&mut rng).context;
        context.brief.dislikes = vec!["Cheese".into(), "fish".into(), " ".into()];
        let page = samples.merchandiser().page(&context, 8);
        let words =
            page.themes.iter().flat_map(|theme| theme.concepts.iter().chain([&theme.title])).flat_map(|text| text.split(' '));
        assert!(words.into_iter().all(|word| !["cheese", "fish"].contains(&word.to_lowercase().as_str())), "{page:?}");
    }
}

#[test]
fn keywords_are_relevant_ordered_and_of_varied_number() {
    let (market, samples, mut rng) = house();
    let mut lengths: HashMap<usize, usize> = HashMap::new();
    for _ in 0..300 {
        let (brief, _, theme) = samples.keyword_theme(&mut rng);
        let candidates = candidates(&market, &theme, &mut rng);
        let chosen = samples.merchandiser().choose_keywords(&brief, &theme, &candidates, 3, 8);
        assert!((3..=8).contains(&chosen.len()), "{theme:?}");
        assert_eq!(chosen.iter().collect::<HashSet<_>>().len(), chosen.len());
        let right = |term: &Term| {
            !term.violates.intersects(brief.diets) && term.category.as_ref().is_some_and(|leaf| theme.concepts.contains(leaf))
        };
        assert!(chosen.iter().all(|i| right(&candidates[*i])), "{theme:?}");
        assert_eq!(candidates[chosen[0]].text, theme.concepts[0], "the anchor's node comes first");
        *lengths.entry(chosen.len()).or_default() += 1;
    }
    println!("{lengths:?}");
    assert!(lengths.len() >= 4 && lengths.values().all(|count| *count < 200), "{lengths:?}");
}

#[test]
fn a_foreign_market_is_merchandised_by_words() {
    let leaf = |name: &str, department: &str| Category {
        name: name.into(),
        department: department.into(),
        violates: DietSet::NONE,
        age_restricted: false,
        seasons: [0.0; 4],
        related: Vec::new(),
        popularity: 0.5,
    };
    let names = [
        "fluid milk",
        "yogurt cups",
        "cheese shreds",
        "dog chow",
        "paper towels",
        "cold cereal",
        "frozen meals",
        "bananas",
        "salad mix",
    ];
    let merchandiser = Merchandiser::new(names.iter().map(|name| leaf(name, name)).collect());
    let (_, samples, mut rng) = house();
    let mut context = samples.theme(&mut rng).context;
    context.brief.diets = DietSet::NONE;
    context.favourites.iter_mut().zip(["cold cereal", "BANANAS"]).for_each(|(favourite, name)| favourite.category = name.into());
    let page = merchandiser.page(&context, 8);
    assert_eq!(page.themes.len(), 8);
    assert_eq!(anchors(&page.themes)[..2], ["cold cereal", "bananas"]);
    let term = |text: &str| Term {
        text: text.into(),
        descriptor: endcap_schemas::Descriptor::Query,
        category: None,
        violates: DietSet::NONE,
        popularity: 0.9,
        tier: 2,
    };
    let mut theme = page.themes[0].clone();
    theme.concepts = vec!["cold cereal".into(), "bananas".into(), "fluid milk".into()];
    let candidates = ["motor oil", "organic banana", "crunchy cereal", "milk 2%"].map(term);
    assert_eq!(merchandiser.choose_keywords(&context.brief, &theme, &candidates, 3, 8), [2, 1, 3]);
}

#[test]
fn pairs_are_balanced_true_and_often_hard() {
    let (market, samples, mut rng) = house();
    let (mut right, mut near) = (0, 0);
    for _ in 0..2000 {
        let (theme, product, relevant) = samples.pair(&mut rng);
        assert_eq!(truth::relevant(&theme, &product), relevant);
        right += usize::from(relevant);
        let department = |name: &str| market.category(name).unwrap().department.clone();
        let close = theme.concepts.iter().any(|concept| department(concept) == product.category_path[0]);
        near += usize::from(!relevant && close);
    }
    assert!((900..1100).contains(&right), "{right} of 2000 are relevant");
    assert!(near > 450, "{near} negatives share a department with the theme");
}

#[test]
fn any_market_with_a_product_gives_samples() {
    let demo = Market::generate(DEMO_SEED);
    let of = |edit: &dyn Fn(&mut Category, &mut Product)| {
        let mut leaf = demo.categories[0].clone();
        let mut product = demo.products_of(&leaf.name)[0].clone();
        edit(&mut leaf, &mut product);
        Samples::new(Arc::new(Market::of(vec![leaf], vec![product], Vec::new())))
    };
    let every_diet: DietSet = Diet::ALL.into_iter().collect();
    for (name, samples) in [
        ("one leaf", of(&|_, _| ())),
        ("against all diets", of(&|leaf, product| (leaf.violates, product.violates) = (every_diet, every_diet))),
        ("adults only", of(&|leaf, product| (leaf.age_restricted, product.age_restricted) = (true, true))),
        ("sold out", of(&|_, product| product.in_stock = false)),
    ] {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..100 {
            let (theme, product, relevant) = samples.pair(&mut rng);
            assert!(relevant, "{name}: {theme:?} {product:?}");
            assert!(!samples.keyword_theme(&mut rng).2.concepts.is_empty(), "{name}");
        }
    }
}

#[test]
fn samples_are_their_generators() {
    let (_, samples, _) = house();
    let draw = |seed| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (samples.theme(&mut rng), samples.pair(&mut rng), samples.keyword_theme(&mut rng))
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    assert!(samples.texts(5, 1).eq(samples.texts(5, 1)));
    assert!(samples.texts(5, 1).any(|text| text.starts_with(prompts::mark::THEMES)));
}

#[test]
fn contexts_look_like_the_context_stage_makes_them() {
    let (market, samples, mut rng) = house();
    for n in 0..50 {
        let household = market.held_out_household(n);
        let context = samples.context(&household, 12, NOW_MS, &mut rng);
        assert!((1..=16).contains(&context.favourites.len()));
        assert!(context.favourites.windows(2).all(|pair| pair[0].weight >= pair[1].weight));
        assert!(context.recent.windows(2).all(|pair| pair[0].last_ms >= pair[1].last_ms));
        assert_eq!(context.recent.iter().map(|p| &p.product).collect::<HashSet<_>>().len(), context.recent.len());
        for memory in &context.recent {
            let product = market.product(&memory.product).unwrap();
            assert_eq!((memory.name.as_str(), memory.category.as_str()), (product.name.as_str(), product.category()));
            assert!(!product.violates.intersects(household.diets));
        }
    }
}

#[test]
fn most_of_a_page_is_in_the_households_taste() {
    let (market, samples, mut rng) = house();
    let (mut themes, mut tasteful) = (0, 0);
    for n in 0..200 {
        let household = market.held_out_household(n);
        let sample = samples.theme_of(&household, 10, NOW_MS, &mut rng);
        themes += sample.page.themes.len();
        tasteful += sample.page.themes.iter().filter(|theme| truth::theme_in_taste(theme, &household)).count();
    }
    println!("{tasteful} of {themes} anchors are in the household's taste");
    assert!(tasteful * 100 > themes * 65, "{tasteful} of {themes}");
}

#[test]
fn facts_name_leaf_and_diets() {
    let (market, ..) = house();
    let gouda = market.terms.iter().find(|term| term.text == "smoked gouda").unwrap();
    let diets: DietSet = [Diet::Vegan, Diet::DairyFree].into_iter().collect();
    assert_eq!(samples::fact(gouda), Some(("hard cheese", diets)));
    let department = market.terms.iter().find(|term| term.text == "bakery").unwrap();
    assert_eq!(samples::fact(department), None);
}
