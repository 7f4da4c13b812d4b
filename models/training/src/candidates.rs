//! Candidate lists as the keyword stage assembles them: the concepts' nearest terms, merged best first, distinct, grouped by concept.

use std::collections::HashSet;

use endcap_engine::Tokenizer;
use endcap_inference::{NEIGHBOURS, prompts};
use endcap_schemas::{Term, Theme};

use crate::{
    Result,
    bert::BertShape,
    encoder::{ranked, vectors},
    linear_map::dot,
    params::Weights,
    source::Source,
};

/// The nearest terms of every category's name.
pub(crate) struct Neighbourhood {
    /// Per category, `(cosine, term)`, nearest first.
    nearest: Vec<Vec<(f32, usize)>>,
    names: Vec<String>,
}

/// One concept's candidates: its words and indexes of terms.
pub(crate) type Group = (String, Vec<usize>);

impl Neighbourhood {
    /// What the source knows from its index; else embeds every term and every category's name and ranks by exact cosine.
    pub(crate) fn new(
        source: &Source,
        shape: &BertShape,
        weights: &Weights,
        tokenizer: &Tokenizer,
        threads: usize,
    ) -> Result<Self> {
        let names: Vec<String> = source.market.categories.iter().map(|category| prompts::plain(&category.name)).collect();
        if let Some(nearest) = &source.nearest {
            return Ok(Self { nearest: nearest.clone(), names });
        }
        let texts: Vec<&str> = source.market.terms.iter().map(|term| term.text.as_str()).collect();
        let terms = vectors(shape, weights, tokenizer, &texts, threads)?;
        let concepts = vectors(shape, weights, tokenizer, &names.iter().map(String::as_str).collect::<Vec<_>>(), threads)?;
        let nearest = concepts
            .iter()
            .map(|concept| {
                ranked(concept, terms.iter(), NEIGHBOURS, None).into_iter().map(|i| (dot(concept, &terms[i]), i)).collect()
            })
            .collect();
        Ok(Self { nearest, names })
    }

    /// The best `count` terms for `theme`, each under the concept that it is nearest to. `allowed` leaves terms out.
    pub(crate) fn groups(&self, terms: &[Term], theme: &Theme, count: usize, allowed: impl Fn(usize) -> bool) -> Vec<Group> {
        let concepts: Vec<String> = theme.concepts.iter().map(|concept| prompts::plain(concept)).collect();
        let mut all: Vec<(f32, usize, usize)> = Vec::new();
        for (place, concept) in concepts.iter().enumerate() {
            let Some(category) = self.names.iter().position(|name| name == concept) else { continue };
            all.extend(
                self.nearest[category].iter().filter(|(_, term)| allowed(*term)).map(|(cosine, term)| (*cosine, place, *term)),
            );
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let mut seen = HashSet::new();
        let mut groups: Vec<Group> = concepts.into_iter().map(|concept| (concept, Vec::new())).collect();
        for (_, place, term) in all {
            if seen.len() == count {
                break;
            }
            if seen.insert(terms[term].text.as_str()) {
                groups[place].1.push(term);
            }
        }
        groups.retain(|group| !group.1.is_empty());
        groups
    }
}
