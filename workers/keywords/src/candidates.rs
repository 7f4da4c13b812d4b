//! The candidates of a theme: the neighbours of its concepts, filtered and merged (paper 4.3.2).

use std::collections::{HashMap, HashSet};

use endcap_inference::{Candidates, Embedding, prompts::plain};
use endcap_retrieval::{MarketError, Snapshot, words};
use endcap_schemas::{Brief, Descriptor, Term};

/// A term that a concept retrieved.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// The concept's place among the theme's.
    pub concept: usize,
    /// The term's number.
    pub id: i64,
    /// The term.
    pub term: Term,
    /// Cosine of concept and term.
    pub cosine: f32,
    /// Whether its category is for adults only.
    pub age_restricted: bool,
}

/// What may be chosen for a theme.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shortlist {
    /// Plain texts by concept, nearest first: what the model sees. Concepts that retrieved nothing of their own are left out.
    pub groups: Vec<Candidates>,
    /// The terms in the order of the groups' texts: number and term.
    pub terms: Vec<(i64, Term)>,
    /// Neighbours that were looked at.
    pub considered: usize,
    /// Turned away because they violate the household's diets.
    pub against_diet: usize,
    /// Turned away for dislikes, age or kind of descriptor.
    pub against_policy: usize,
}

/// The `count` terms nearest to a concept, as the theme's first concept would find them.
///
/// # Errors
/// When the market is not indexed or cannot be read.
pub fn neighbours(snapshot: &Snapshot, concept: &Embedding, count: usize) -> Result<Vec<Found>, MarketError> {
    let near = snapshot.near(&concept.0, count)?;
    let cosines: HashMap<i64, f32> = near.iter().map(|near| (near.term, near.cosine)).collect();
    let terms = snapshot.terms(&near.iter().map(|near| near.term).collect::<Vec<_>>())?;
    let found = |(id, term): (i64, Term)| Found {
        concept: 0,
        id,
        cosine: cosines[&id],
        age_restricted: term.category.as_deref().and_then(|name| snapshot.category(name)).is_some_and(|c| c.age_restricted),
        term,
    };
    Ok(terms.into_iter().map(found).collect())
}

/// Merges what the concepts retrieved, best first, to `limit` candidates of distinct text that the household may have. Where a node
/// and a query have the same text, the node stands for both.
pub fn shortlist(concepts: &[String], found: Vec<Found>, brief: &Brief, descriptors: &[Descriptor], limit: usize) -> Shortlist {
    let dislikes: Vec<Vec<String>> = brief.dislikes.iter().map(|word| words::words(word)).filter(|run| !run.is_empty()).collect();
    let mut list = Shortlist { considered: found.len(), ..Shortlist::default() };
    let mut allowed: Vec<(String, Found)> = Vec::with_capacity(found.len());
    for found in found {
        if brief.diets.intersects(found.term.violates) {
            list.against_diet += 1;
        } else if found.age_restricted || !descriptors.contains(&found.term.descriptor) || disliked(&found.term, &dislikes) {
            list.against_policy += 1;
        } else {
            allowed.push((plain(&found.term.text), found));
        }
    }
    allowed.retain(|(text, _)| !text.is_empty());
    allowed.sort_by(|(_, a), (_, b)| {
        b.cosine
            .total_cmp(&a.cosine)
            .then_with(|| b.term.descriptor.cmp(&a.term.descriptor))
            .then_with(|| (a.concept, a.id).cmp(&(b.concept, b.id)))
    });
    let best = best_by_text(allowed, limit);
    for (place, concept) in concepts.iter().enumerate() {
        let own: Vec<&(String, Found)> = best.iter().filter(|(_, found)| found.concept == place).collect();
        if own.is_empty() {
            continue;
        }
        list.groups.push(Candidates { concept: plain(concept), terms: own.iter().map(|(text, _)| text.clone()).collect() });
        list.terms.extend(own.into_iter().map(|(_, found)| (found.id, found.term.clone())));
    }
    list
}

/// The first `limit` of distinct text; a node takes the place of a query that has its text.
fn best_by_text(sorted: Vec<(String, Found)>, limit: usize) -> Vec<(String, Found)> {
    let nodes: HashSet<String> =
        sorted.iter().filter(|(_, found)| found.term.descriptor == Descriptor::Node).map(|(text, _)| text.clone()).collect();
    let mut seen = HashSet::new();
    let stands = |text: &str, found: &Found| found.term.descriptor == Descriptor::Node || !nodes.contains(text);
    sorted.into_iter().filter(|(text, found)| stands(text, found) && seen.insert(text.clone())).take(limit).collect()
}

fn disliked(term: &Term, dislikes: &[Vec<String>]) -> bool {
    let hits = |text: &str| {
        let text = words::words(text);
        dislikes.iter().any(|run| words::contains_run(&text, run))
    };
    !dislikes.is_empty() && (hits(&term.text) || term.category.as_deref().is_some_and(hits))
}
