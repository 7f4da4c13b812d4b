//! What any model must beat: the same for everybody, the most popular, and chance.

use endcap_market::sentence_case;
use endcap_schemas::{Brief, Category, Descriptor, Draft, Keyword, Origin, Term, Theme, UNCATEGORISED};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// The static library of merchandised placements: the most popular leaf of each department, the same for everybody
/// (the paper's production baseline and its figure 2). Node keywords only; `term` finds the node's number in the corpus.
pub fn control_library(categories: &[Category], count: usize, term: impl Fn(&str) -> Option<i64>) -> Vec<Draft> {
    let mut departments = std::collections::HashSet::new();
    by_popularity(categories)
        .into_iter()
        .filter(|category| !category.age_restricted && departments.insert(category.department.clone()))
        .filter_map(|category| {
            let keyword = Keyword { id: term(&category.name)?, text: category.name.clone(), descriptor: Descriptor::Node };
            Some(Draft { theme: plain_theme(category), keywords: vec![keyword] })
        })
        .take(count)
        .collect()
}

/// The `count` most popular leaves as themes, whoever the shopper is.
pub fn popular_themes(categories: &[Category], count: usize) -> Vec<Theme> {
    by_popularity(categories).into_iter().take(count).map(plain_theme).collect()
}

/// `count` leaves by chance.
pub fn random_themes(categories: &[Category], count: usize, seed: u64) -> Vec<Theme> {
    let mut shuffled = leaves(categories);
    shuffled.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    shuffled.into_iter().take(count).map(plain_theme).collect()
}

/// The most popular candidates that suit the household's diets, whatever the theme.
pub fn popular_keywords(brief: &Brief, candidates: &[Term], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).filter(|i| !candidates[*i].violates.intersects(brief.diets)).collect();
    order.sort_by(|a, b| candidates[*b].popularity.total_cmp(&candidates[*a].popularity).then(a.cmp(b)));
    order.truncate(count);
    order
}

/// Candidates by chance.
pub fn random_keywords(candidates: &[Term], count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order.truncate(count);
    order
}

fn by_popularity(categories: &[Category]) -> Vec<&Category> {
    let mut order = leaves(categories);
    order.sort_by(|a, b| b.popularity.total_cmp(&a.popularity).then_with(|| a.name.cmp(&b.name)));
    order
}

/// Everything that a theme can be about.
fn leaves(categories: &[Category]) -> Vec<&Category> {
    categories.iter().filter(|category| category.name != UNCATEGORISED).collect()
}

fn plain_theme(category: &Category) -> Theme {
    Theme {
        title: sentence_case(&category.name),
        intent: "browse the shelf".to_owned(),
        concepts: vec![category.name.clone()],
        origin: Origin::Cold,
    }
}

#[cfg(test)]
mod tests {
    use endcap_schemas::DietSet;

    use super::*;

    #[test]
    fn baselines_are_about_leaves_and_never_about_what_fits_nowhere() {
        let leaf = |name: &str, department: &str, popularity| Category {
            name: name.to_owned(),
            department: department.to_owned(),
            violates: DietSet::NONE,
            age_restricted: false,
            seasons: [0.0; 4],
            related: Vec::new(),
            popularity,
        };
        let leaves = [
            leaf(UNCATEGORISED, UNCATEGORISED, 1.0),
            leaf("gouda", "dairy", 0.8),
            leaf("butter", "dairy", 0.7),
            leaf("bread", "bakery", 0.3),
        ];
        let anchors = |themes: &[Theme]| themes.iter().map(|theme| theme.concepts[0].clone()).collect::<Vec<_>>();
        assert_eq!(anchors(&popular_themes(&leaves, 9)), ["gouda", "butter", "bread"]);
        let mut random = anchors(&random_themes(&leaves, 9, 1));
        random.sort();
        assert_eq!(random, ["bread", "butter", "gouda"]);
        let library: Vec<Theme> = control_library(&leaves, 9, |_| Some(1)).into_iter().map(|draft| draft.theme).collect();
        assert_eq!(anchors(&library), ["gouda", "bread"], "one of each department");
    }
}
