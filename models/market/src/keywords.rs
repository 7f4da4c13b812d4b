//! The merchandiser's choice of keywords.

use endcap_inference::prompts::plain;
use endcap_schemas::{Brief, Season, Term, Theme};

use crate::vocabulary::shares_word;

/// What a concept before another is worth against popularity (0…1).
const CONCEPT_STEP: f32 = 0.4;
/// Candidates below this score are not chosen unless too few are left.
const SCORE_MIN: f32 = 1.4;

/// See [`crate::Merchandiser::choose_keywords`]. `known` says whether the concepts are leaves of the market: then a term's category decides, else
/// (and for terms without category) the words that it shares with a concept.
pub(crate) fn choose(brief: &Brief, theme: &Theme, candidates: &[Term], known: bool, min: usize, max: usize) -> Vec<usize> {
    let concepts: Vec<String> = theme.concepts.iter().map(|concept| plain(concept)).collect();
    let dislikes: Vec<String> = brief.dislikes.iter().map(|word| plain(word)).filter(|word| !word.is_empty()).collect();
    let mut scored: Vec<(usize, f32)> = candidates
        .iter()
        .enumerate()
        .filter(|(_, term)| suits(term, brief, &dislikes))
        .filter_map(|(i, term)| Some((i, score(term, position(term, &concepts, known)?))))
        .collect();
    scored.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let good = scored.iter().take_while(|(_, score)| *score >= SCORE_MIN).count();
    scored.truncate(good.max(min).min(max));
    scored.into_iter().map(|(i, _)| i).collect()
}

/// 0…1.8: the first concept counts most, then popularity.
fn score(term: &Term, position: usize) -> f32 {
    CONCEPT_STEP * (2.0 - position.min(2) as f32) + term.popularity
}

/// The first concept that the term belongs to.
fn position(term: &Term, concepts: &[String], known: bool) -> Option<usize> {
    match &term.category {
        Some(category) if known => concepts.iter().position(|concept| *concept == plain(category)),
        _ => concepts.iter().position(|concept| shares_word(concept, &plain(&term.text))),
    }
}

/// Whether the household may see the term: its diets, its dislikes, and no other season's query.
fn suits(term: &Term, brief: &Brief, dislikes: &[String]) -> bool {
    let text = format!(" {} ", plain(&term.text));
    let names = |word: &str| text.contains(&format!(" {word} "));
    !term.violates.intersects(brief.diets)
        && !dislikes.iter().any(|word| names(word))
        && !Season::ALL.into_iter().any(|season| season != brief.season && names(&format!("for {}", season.word())))
}
