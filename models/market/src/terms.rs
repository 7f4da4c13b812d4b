//! The keyword corpus of the demo market: taxonomy nodes and the queries that shoppers would type.

use std::collections::HashSet;

use endcap_schemas::{Descriptor, DietSet, Season, Term};

use crate::{
    random::hash,
    vocabulary::{Department, Group, Leaf, Vocabulary},
};

/// A season's queries are asked only for leaves with at least this boost.
const SEASON_BOOST_MIN: f32 = 0.3;
/// Share of the fitting pairs of modifiers that are asked for with a noun: one in so many.
const PAIRS_ONE_IN: u64 = 12;

/// Whether training never sees the term: a tenth of the composed queries (tier 2: a modifier with a noun or leaf), by hash.
pub fn held_out(term: &Term) -> bool {
    term.tier == 2 && term.descriptor == Descriptor::Query && hash(&term.text).is_multiple_of(10)
}

/// Every term, each text once. Popularity is composed as the text is, so it can be learned from a term's words.
pub(crate) fn compose(vocabulary: &Vocabulary) -> Vec<Term> {
    let mut corpus = Corpus::default();
    for department in &vocabulary.departments {
        corpus.push(department.name.clone(), Descriptor::Node, None, DietSet::NONE, 0.5, 1);
    }
    for (_, leaf) in vocabulary.leaves() {
        corpus.push(leaf.name.clone(), Descriptor::Node, Some(leaf), leaf.holds.violates(), 1.0, 1);
    }
    for (department, leaf) in vocabulary.leaves() {
        nouns(&mut corpus, vocabulary, department, leaf);
        leaf_queries(&mut corpus, vocabulary, department, leaf);
        season_queries(&mut corpus, leaf);
        brand_queries(&mut corpus, vocabulary, department, leaf);
    }
    corpus.terms
}

#[derive(Default)]
struct Corpus {
    terms: Vec<Term>,
    texts: HashSet<String>,
}

impl Corpus {
    fn push(&mut self, text: String, descriptor: Descriptor, leaf: Option<&Leaf>, violates: DietSet, popularity: f32, tier: u8) {
        if self.texts.insert(text.clone()) {
            let category = leaf.map(|leaf| leaf.name.clone());
            self.terms.push(Term { text, descriptor, category, violates, popularity, tier });
        }
    }

    fn query(&mut self, text: String, leaf: &Leaf, violates: DietSet, popularity: f32, tier: u8) {
        self.push(text, Descriptor::Query, Some(leaf), violates, popularity, tier);
    }
}

/// `gouda`, `smoked gouda`, `organic smoked gouda`.
fn nouns(corpus: &mut Corpus, vocabulary: &Vocabulary, department: &Department, leaf: &Leaf) {
    for noun in &leaf.nouns {
        corpus.query(noun.text.clone(), leaf, noun.holds.violates(), 0.9 * noun.popularity, 1);
        let fitting: Vec<_> = vocabulary
            .modifiers
            .iter()
            .filter_map(|modifier| Some((modifier, modifier.apply(department, leaf, &noun.text, noun.holds)?)))
            .collect();
        for (i, (modifier, holds)) in fitting.iter().enumerate() {
            let text = modifier.join(&noun.text);
            let popularity = 0.5 * noun.popularity + 0.35 * modifier.popularity;
            corpus.query(text.clone(), leaf, holds.violates(), popularity, 2);
            for (before, _) in &fitting[..i] {
                if vocabulary.conflict(before, modifier) || !hash(&format!("{} {text}", before.text)).is_multiple_of(PAIRS_ONE_IN)
                {
                    continue;
                }
                let Some(both) = before.apply(department, leaf, &noun.text, *holds) else { continue };
                let popularity = 0.25 * noun.popularity + 0.15 * (modifier.popularity + before.popularity);
                corpus.query(before.join(&text), leaf, both.violates(), popularity, 3);
            }
        }
    }
}

/// `smoked hard cheese`.
fn leaf_queries(corpus: &mut Corpus, vocabulary: &Vocabulary, department: &Department, leaf: &Leaf) {
    for modifier in &vocabulary.modifiers {
        if let Some(holds) = modifier.apply(department, leaf, &leaf.name, leaf.holds) {
            corpus.query(modifier.join(&leaf.name), leaf, holds.violates(), 0.45 + 0.4 * modifier.popularity, 2);
        }
    }
}

/// `ice cream for summer`, `gelato for summer`.
fn season_queries(corpus: &mut Corpus, leaf: &Leaf) {
    for (season, boost) in Season::ALL.into_iter().zip(leaf.seasons).filter(|(_, boost)| *boost >= SEASON_BOOST_MIN) {
        corpus.query(format!("{} for {}", leaf.name, season.word()), leaf, leaf.holds.violates(), 0.4 + 0.4 * boost, 1);
        for noun in &leaf.nouns {
            let popularity = 0.4 * noun.popularity + 0.3 * boost;
            corpus.query(format!("{} for {}", noun.text, season.word()), leaf, noun.holds.violates(), popularity, 3);
        }
    }
}

/// `thornwhistle gouda`: two brands for each noun.
fn brand_queries(corpus: &mut Corpus, vocabulary: &Vocabulary, department: &Department, leaf: &Leaf) {
    let of = |wanted: Group| vocabulary.brands.iter().filter(move |(group, _)| *group == wanted).flat_map(|(_, brands)| brands);
    let brands: Vec<&String> = of(department.group).collect();
    for noun in &leaf.nouns {
        for turn in 0..2 {
            let at = (hash(&noun.text) as usize).wrapping_add(turn * 7) % brands.len();
            let text = format!("{} {}", brands[at].to_lowercase(), noun.text);
            corpus.query(text, leaf, noun.holds.violates(), 0.3 * noun.popularity, 3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_a_tenth_of_the_composed_queries_is_held_out() {
        let terms = compose(&Vocabulary::embedded());
        let composed = terms.iter().filter(|term| term.tier == 2).count();
        let held = terms.iter().filter(|term| held_out(term)).count();
        assert!((0.08..0.12).contains(&(held as f64 / composed as f64)), "{held} of {composed}");
        assert!(
            terms
                .iter()
                .filter(|term| held_out(term))
                .all(|term| term.descriptor == Descriptor::Query && term.category.is_some())
        );
    }

    #[test]
    fn terms_are_what_they_say() {
        let terms = compose(&Vocabulary::embedded());
        for (text, descriptor, category, violates, tier) in [
            ("dairy and eggs", Descriptor::Node, None, "", 1),
            ("hard cheese", Descriptor::Node, Some("hard cheese"), "vegan and dairy free", 1),
            ("gouda", Descriptor::Query, Some("hard cheese"), "vegan and dairy free", 1),
            ("smoked gouda", Descriptor::Query, Some("hard cheese"), "vegan and dairy free", 2),
            ("vegan gouda", Descriptor::Query, Some("hard cheese"), "", 2),
            ("gelato for summer", Descriptor::Query, Some("ice cream"), "vegan and dairy free", 3),
        ] {
            let term = terms.iter().find(|term| term.text == text).unwrap_or_else(|| panic!("no term `{text}`"));
            let got = (term.descriptor, term.category.as_deref(), term.violates.words(), term.tier);
            assert_eq!(got, (descriptor, category, violates.to_owned(), tier), "{text}");
        }
        assert!(terms.iter().all(|term| term.popularity > 0.0 && term.popularity <= 1.0));
    }
}
