//! Pairs whose leaves bear strange names. The demo market has few leaves, and a model may learn them by heart; other markets' leaves it
//! can only compare, word for word. These pairs teach it to compare.

use std::collections::BTreeMap;

use endcap_inference::prompts;
use endcap_schemas::{Product, Theme};
use rand::{Rng, RngExt, seq::SliceRandom};

/// Words that the names of one pair are made of: few, so that leaves share some.
const POOL: (usize, usize) = (6, 20);
/// Words of a name.
const WORDS: (usize, usize) = (1, 4);
/// Share of the words that nobody has ever seen.
const INVENTED_SHARE: f64 = 0.4;
/// Letters of an invented word.
const LETTERS: (usize, usize) = (3, 9);
const TRIES: usize = 32;

/// Gives every leaf of the pair another name, the same wherever it stands: in the concepts, in the title, on the product. `words` are
/// those that names are made of, beside invented ones.
pub(crate) fn rename(theme: &mut Theme, product: &mut Product, words: &[String], rng: &mut impl Rng) {
    let mut pool: Vec<String> = (0..rng.random_range(POOL.0..=POOL.1)).map(|_| word(words, rng)).collect();
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let leaves: Vec<String> = theme.concepts.iter().cloned().chain(product.shelves().map(str::to_owned)).collect();
    for leaf in leaves {
        if names.contains_key(&leaf) {
            continue;
        }
        let mut name = String::new();
        for _ in 0..TRIES {
            pool.shuffle(rng);
            name = pool[..rng.random_range(WORDS.0..=WORDS.1.min(pool.len()))].join(" ");
            if names.values().all(|other| *other != name) {
                break;
            }
        }
        names.insert(leaf, name);
    }
    let mut title = prompts::plain(&theme.title);
    // The longest first: a leaf's name may hold its shelf's.
    let mut longest: Vec<(&String, &String)> = names.iter().collect();
    longest.sort_by_key(|(old, _)| std::cmp::Reverse(old.len()));
    for (old, new) in longest {
        title = title.replace(&prompts::plain(old), new);
    }
    theme.title = title;
    theme.concepts.iter_mut().for_each(|concept| concept.clone_from(&names[concept]));
    let shown = product.shelves().count();
    for shelf in product.category_path.iter_mut().rev().take(shown) {
        shelf.clone_from(&names[shelf]);
    }
    if rng.random() {
        product.name = (0..rng.random_range(1..=5)).map(|_| word(words, rng)).collect::<Vec<_>>().join(" ");
    }
}

fn word(words: &[String], rng: &mut impl Rng) -> String {
    if words.is_empty() || rng.random_bool(INVENTED_SHARE) {
        return (0..rng.random_range(LETTERS.0..=LETTERS.1)).map(|_| rng.random_range(b'a'..=b'z') as char).collect();
    }
    words[rng.random_range(0..words.len())].clone()
}

#[cfg(test)]
mod tests {
    use endcap_market::truth;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::Source;

    #[test]
    fn strange_names_leave_the_truth_as_it_is() {
        let source = Source::demo();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for _ in 0..300 {
            let (theme, product, relevant) = source.samples.pair(&mut rng);
            let (mut strange, mut renamed) = (theme.clone(), product.clone());
            rename(&mut strange, &mut renamed, &["tea".to_owned(), "oat".to_owned()], &mut rng);
            assert_eq!(truth::relevant(&strange, &renamed), relevant, "{theme:?} {product:?} became {strange:?} {renamed:?}");
        }
    }
}
