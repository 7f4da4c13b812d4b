use endcap_inference::prompts::{ThemesDocument, json as piece};

use super::super::best;
use super::*;
use crate::{demo_tokenizer, tokenizer::tests::byte_level};

const WORDS: &str = "flavor builders for weeknight meals oat milk smoked gouda vegan snacks winter warmers";

fn demo() -> Arc<Tokenizer> {
    let texts = [WORDS, WORDS, "crème brûlée crème brûlée"];
    Arc::new(demo_tokenizer(texts.into_iter(), 450).unwrap())
}

fn grammar(tokenizer: &Arc<Tokenizer>) -> JsonGrammar {
    JsonGrammar::new(tokenizer.clone(), TextLimits::default()).unwrap()
}

/// Writes a document with `score` as the model, forced runs taken at once or one token after the other. Gives its tokens and the forced ones' number.
fn write(mut constraint: JsonConstraint, at_once: bool, mut score: impl FnMut(usize) -> Vec<f32>) -> (Vec<u32>, usize) {
    let (mut tokens, mut forced) = (Vec::new(), 0);
    while !constraint.finished() {
        if at_once {
            let run = constraint.forced().unwrap();
            forced += run.len();
            if !run.is_empty() {
                tokens.extend(run);
                continue;
            }
        }
        let allowed = constraint.allowed().unwrap();
        let token = best(&allowed, &score(tokens.len())).expect("something is allowed");
        constraint.advance(token).unwrap();
        tokens.push(token);
        assert!(tokens.len() < 4_000, "the limits of the texts bound the document");
    }
    (tokens, forced)
}

/// Random scores for the token at a position, always the same for a seed.
fn random(seed: u64, vocabulary: usize) -> impl FnMut(usize) -> Vec<f32> {
    move |at| (0..vocabulary).map(|token| mixed(seed << 40 | (at as u64) << 20 | token as u64)).collect()
}

/// A value in 0…1 that looks drawn.
fn mixed(mut x: u64) -> f32 {
    for _ in 0..3 {
        x = (x ^ (x >> 29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    (x >> 40) as f32 / (1 << 24) as f32
}

#[test]
fn random_models_write_valid_documents_and_forced_text_is_the_slow_text() {
    for (name, tokenizer) in [("demo", demo()), ("byte level", Arc::new(byte_level()))] {
        let mut grammar = grammar(&tokenizer);
        for seed in 0..12 {
            let themes = 1 + seed as usize % 3;
            let scores = || random(seed, tokenizer.vocabulary_size());
            let (fast, forced) = write(grammar.document(themes).unwrap(), true, scores());
            let (slow, _) = write(grammar.document(themes).unwrap(), false, scores());
            let text = tokenizer.decode(&fast);
            assert_eq!(text, tokenizer.decode(&slow), "{name}, seed {seed}");
            assert!(forced > 0, "{name}: nothing was forced");
            let document: ThemesDocument =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}, seed {seed}: {e}: {text}"));
            check(&document, themes);
            assert!(text.starts_with(piece::OPEN) && text.ends_with(piece::CLOSE), "{name}: order and white space of {text}");
        }
    }
}

fn check(document: &ThemesDocument, themes: usize) {
    let limits = TextLimits::default();
    let text = |text: &str, max: usize| {
        assert!((1..=max).contains(&text.chars().count()), "{text}");
        assert!(!text.contains("  ") && !text.ends_with(' '), "{text:?}");
        assert!(text.chars().all(|c| c.is_alphanumeric() || " '&%-.".contains(c)), "{text:?}");
    };
    text(&document.persona, limits.persona);
    assert_eq!(document.themes.len(), themes);
    for theme in &document.themes {
        text(&theme.title, limits.title);
        text(&theme.intent, limits.intent);
        assert_eq!(theme.concepts.len(), CONCEPTS);
        theme.concepts.iter().for_each(|concept| text(concept, limits.concept));
    }
}

#[test]
fn a_training_text_passes_token_by_token_and_its_opening_is_forced() {
    let tokenizer = demo();
    let document = ThemesDocument {
        persona: "vegan snacks".into(),
        themes: vec![endcap_inference::prompts::ThemeDocument {
            title: "winter warmers".into(),
            intent: "weeknight meals".into(),
            concepts: vec!["oat milk".into(), "smoked gouda".into(), "crème brûlée".into()],
        }],
    };
    let tokens = tokenizer.encode(&document.to_training_text()).unwrap();
    let mut constraint = grammar(&tokenizer).document(1).unwrap();
    assert_eq!(constraint.forced().unwrap(), [tokenizer.id(piece::OPEN).unwrap()]);
    for &token in &tokens[1..] {
        constraint.advance(token).unwrap_or_else(|e| panic!("{e}: {:?}", tokenizer.decode(&[token])));
    }
    assert!(constraint.finished());
    assert!(constraint.forced().unwrap().is_empty());
}

#[test]
fn a_place_s_kept_mask_is_the_one_the_grammar_computes() {
    for (name, tokenizer, space) in [("demo", demo(), "▁"), ("byte level", Arc::new(byte_level()), "Ġ")] {
        let (mut grammar, space) = (grammar(&tokenizer), tokenizer.id(space).unwrap());
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..12 {
            let mut score = random(seed, tokenizer.vocabulary_size());
            let mut constraint = grammar.document(2).unwrap();
            let mut said = 0;
            loop {
                said += constraint.forced().unwrap().len() + 1;
                if constraint.finished() {
                    break;
                }
                if let Some(place) = constraint.position.place() {
                    let computed = constraint.matcher.compute_mask().unwrap();
                    assert_eq!(constraint.grammar_mask().unwrap(), computed.as_slice(), "{name}: {place:?}");
                    assert!(constraint.matcher.compute_ff_tokens().is_empty(), "{name}: {place:?} forces nothing");
                    seen.insert(place.index());
                }
                let mut scores = score(said);
                // A lone space wherever one may stand, in some documents: else few texts have one.
                scores[space as usize] += if seed % 3 == 0 { 2.0 } else { 0.0 };
                let token = best(&constraint.allowed().unwrap(), &scores).unwrap();
                constraint.advance(token).unwrap();
            }
        }
        assert_eq!(seen.len(), Place::COUNT, "{name}: places seen: {seen:?}");
    }
}

#[test]
fn texts_keep_the_limits_they_are_given() {
    let tokenizer = demo();
    let limits = TextLimits { persona: 2, title: 3, intent: 7, concept: 5 };
    let mut grammar = JsonGrammar::new(tokenizer.clone(), limits).unwrap();
    for seed in 0..20 {
        let (tokens, _) = write(grammar.document(2).unwrap(), true, random(seed, tokenizer.vocabulary_size()));
        let document: ThemesDocument = serde_json::from_str(&tokenizer.decode(&tokens)).unwrap();
        let mut texts = vec![(&document.persona, limits.persona)];
        for theme in &document.themes {
            texts.extend([(&theme.title, limits.title), (&theme.intent, limits.intent)]);
            texts.extend(theme.concepts.iter().map(|concept| (concept, limits.concept)));
        }
        for (text, max) in texts {
            assert!((1..=max).contains(&text.chars().count()) && !text.ends_with(' '), "seed {seed}: {text:?} in {max}");
        }
    }
    let none = TextLimits { title: 1, ..limits };
    assert!(matches!(JsonGrammar::new(tokenizer, none), Err(ConstraintError::Request(_))));
}

#[test]
fn a_refused_token_leaves_the_constraint_as_it_was() {
    let tokenizer = demo();
    let mut constraint = grammar(&tokenizer).document(1).unwrap();
    constraint.forced().unwrap();
    for wrong in ["<end>", ";", "<pad>", piece::NEXT_TITLE] {
        let id = tokenizer.id(wrong).unwrap();
        assert_eq!(constraint.advance(id), Err(ConstraintError::NotAllowed(id)), "{wrong}");
    }
    assert_eq!(constraint.advance(1 << 20), Err(ConstraintError::NotAllowed(1 << 20)));
    constraint.advance(tokenizer.encode(" milk").unwrap()[0]).unwrap();
}

#[test]
fn the_number_of_themes_has_a_limit() {
    let mut grammar = grammar(&demo());
    for themes in [0, 33] {
        assert!(matches!(grammar.document(themes), Err(ConstraintError::Request(_))), "{themes}");
    }
}
