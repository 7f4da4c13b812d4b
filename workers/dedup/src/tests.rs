//! Tests of the dedup stage.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use endcap_inference::{Limits, spawn};
use endcap_schemas::{Brief, Budget, Cause, Descriptor, DietSet, Head, Keyword, Origin, Season, Theme, UserKey, Versions};

use super::*;

/// A text's vector counts its words over a fixed list, so texts that share words are close.
struct WordCounts {
    asked: Arc<AtomicUsize>,
    fails: bool,
}

impl Model for WordCounts {
    type Request = Embed;
    type Answer = Embedding;

    fn tokens(&self, request: &Embed) -> usize {
        request.text.len()
    }

    fn answer(&mut self, batch: Vec<Embed>) -> Result<Vec<Result<Embedding, ModelError>>, ModelError> {
        if self.fails {
            return Err(ModelError::Failed("device lost".into()));
        }
        self.asked.fetch_add(batch.len(), Ordering::Relaxed);
        Ok(batch.iter().map(|request| words(&request.text)).collect())
    }

    fn version(&self) -> &str {
        "word-counts@1"
    }
}

fn words(text: &str) -> Result<Embedding, ModelError> {
    if text.starts_with("unreadable") {
        return Err(ModelError::Request("too strange".into()));
    }
    let mut counts: BTreeMap<u8, f32> = BTreeMap::new();
    for word in text.split_whitespace() {
        *counts.entry(place(word)).or_default() += 1.0;
    }
    let norm = counts.values().map(|n| n * n).sum::<f32>().sqrt();
    let mut vector = vec![0.0; 256];
    for (at, count) in counts {
        vector[usize::from(at)] = count / norm;
    }
    Ok(Embedding(vector))
}

/// Any fixed spread of words over 256 places will do.
fn place(word: &str) -> u8 {
    word.bytes()
        .fold(7u32, |hash, byte| hash.wrapping_mul(16_777_619) ^ u32::from(byte))
        .to_le_bytes()
        .iter()
        .fold(0, |a, b| a ^ b)
}

fn draft(title: &str, keywords: &[&str]) -> Draft {
    let keyword = |text: &&str| Keyword { id: 1, text: (*text).to_owned(), descriptor: Descriptor::Query };
    Draft {
        theme: Theme { title: title.to_owned(), intent: String::new(), concepts: vec![title.to_owned()], origin: Origin::Model },
        keywords: keywords.iter().map(keyword).collect(),
    }
}

fn page(user: &str, drafts: Vec<Draft>) -> Input<KeywordsChosen> {
    let cause = Cause { event_id: "e1".into(), event_ms: 1, accepted_ms: 2 };
    let head = Head { user: UserKey::of(user), context_ms: 1, generation: 0, cause, expires_ms: 100 };
    let brief = Brief {
        diets: DietSet::NONE,
        budget: Budget::Middle,
        locale: "en".into(),
        season: Season::Winter,
        dislikes: Vec::new(),
        personalise: true,
    };
    let value = KeywordsChosen { head, brief, persona: "a household".into(), drafts, versions: Versions::new() };
    Input { value, partition: 0, offset: 0, appended_ms: 2 }
}

fn stage(fails: bool) -> (DedupStage<WordCounts>, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let encoder = spawn("encoder", WordCounts { asked: asked.clone(), fails }, Limits::default()).unwrap();
    (DedupStage::new(DedupConfig::default(), encoder), asked)
}

fn passed(verdict: Verdict<ThemesDeduped>) -> ThemesDeduped {
    match verdict {
        Verdict::Passed(passed) => passed.out,
        other => panic!("passed on: {other:?}"),
    }
}

#[test]
fn the_better_placed_of_two_repeats_stays() {
    let vector = |x: f32, y: f32| Some(Embedding(vec![x, y]));
    let drafts = ["first", "second", "third", "fourth"].map(|title| draft(title, &[]));
    for (name, vectors, kept) in [
        ("all apart", [vector(1.0, 0.0), vector(0.0, 1.0), vector(-1.0, 0.0), vector(0.0, -1.0)], vec![0, 1, 2, 3]),
        ("second repeats first", [vector(1.0, 0.0), vector(0.99, 0.141), vector(0.0, 1.0), vector(0.0, -1.0)], vec![0, 2, 3]),
        ("all the same", [vector(1.0, 0.0), vector(1.0, 0.0), vector(1.0, 0.0), vector(1.0, 0.0)], vec![0]),
        ("without a vector it stays", [vector(1.0, 0.0), None, vector(1.0, 0.0), None], vec![0, 1, 3]),
    ] {
        let decision = decide(&drafts, &vectors, 0.92);
        assert_eq!(decision.kept, kept, "{name}");
        assert_eq!(decision.kept.len() + decision.dropped.len(), drafts.len(), "{name}");
    }
}

#[test]
fn a_draft_is_compared_with_those_that_stay_and_not_with_those_that_go() {
    // b repeats a and goes; c is near b, but not near a: it stays.
    let at = |degrees: f32| Some(Embedding(vec![degrees.to_radians().cos(), degrees.to_radians().sin()]));
    let drafts = ["a", "b", "c"].map(|title| draft(title, &[]));
    let decision = decide(&drafts, &[at(0.0), at(20.0), at(40.0)], 0.92);
    assert_eq!(decision.kept, [0, 2]);
    assert_eq!(decision.dropped[0].repeats, "a");
    assert!((decision.closest - 40f64.to_radians().cos()).abs() < 1e-6);
}

#[test]
fn drafts_of_all_shoppers_are_embedded_at_once_and_equal_ones_once() {
    let (mut stage, asked) = stage(false);
    let pasta = || draft("pasta night", &["spaghetti", "tomato sauce"]);
    let batch = [
        page("anna", vec![pasta(), draft("pasta night", &["tomato sauce", "spaghetti"]), draft("berry breakfast", &["granola"])]),
        page("ben", vec![pasta(), draft("garden grill", &["corn"])]),
    ];
    let out: Vec<_> = stage.process(&batch).unwrap().into_iter().map(passed).collect();
    assert_eq!(asked.load(Ordering::Relaxed), 4, "five drafts, one of them twice");
    let titles = |page: &ThemesDeduped| page.drafts.iter().map(|draft| draft.theme.title.clone()).collect::<Vec<_>>();
    assert_eq!(titles(&out[0]), ["pasta night", "berry breakfast"], "the same words in another order are a repeat");
    assert_eq!(titles(&out[1]), ["pasta night", "garden grill"], "repeats count within a page only");
    assert_eq!((out[1].dropped.len(), out[0].dropped[0].repeats.as_str()), (0, "pasta night"));
}

#[test]
fn a_text_that_the_encoder_refuses_stays_and_a_lost_device_is_retried() {
    let (mut working, _) = stage(false);
    let batch = [page("anna", vec![draft("unreadable", &[]), draft("pasta night", &["spaghetti"])])];
    assert_eq!(passed(working.process(&batch).unwrap().remove(0)).drafts.len(), 2);
    let (mut broken, _) = stage(true);
    assert!(matches!(broken.process(&batch), Err(StageError::Faltered("encoder", _))));
}
