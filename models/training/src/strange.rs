//! Lessons whose leaves bear strange names. The demo market has few leaves, and a model may learn them by heart; other markets' leaves it
//! can only compare and copy, word for word. These lessons teach it that.

use std::collections::{BTreeMap, BTreeSet};

use endcap_inference::prompts::{self, mark};
use endcap_market::ThemeSample;
use endcap_schemas::{Product, Theme};
use rand::{Rng, RngExt, seq::SliceRandom};

use crate::source::Source;

/// Words that the names of one pair, and of one page, are made of: few, so that leaves share some.
const POOL: (usize, usize) = (6, 20);
const PAGE_POOL: (usize, usize) = (20, 50);
/// Words of a name.
const WORDS: (usize, usize) = (1, 4);
/// Share of the words that nobody has ever seen.
const INVENTED_SHARE: f64 = 0.4;
/// Letters of an invented word.
const LETTERS: (usize, usize) = (3, 9);
const TRIES: usize = 32;

/// The different words of the market's terms.
pub(crate) fn words(source: &Source) -> Vec<String> {
    let words: BTreeSet<&str> = source.market.terms.iter().flat_map(|term| term.text.split_whitespace()).collect();
    words.into_iter().map(str::to_owned).collect()
}

/// Gives every leaf of the pair another name, the same wherever it stands: in the concepts, in the title, on the product. `words` are
/// those that names are made of, beside invented ones.
pub(crate) fn rename(theme: &mut Theme, product: &mut Product, words: &[String], rng: &mut impl Rng) {
    let leaves = theme.concepts.iter().map(String::as_str).chain(product.shelves()).map(str::to_owned).collect();
    let names = names(leaves, POOL, words, rng);
    rename_theme(theme, &names);
    let shown = product.shelves().count();
    for shelf in product.category_path.iter_mut().rev().take(shown) {
        shelf.clone_from(&names[shelf]);
    }
    if rng.random() {
        product.name = (0..rng.random_range(1..=5)).map(|_| word(words, rng)).collect::<Vec<_>>().join(" ");
    }
}

/// Gives every leaf of a page another name, the same in the prompt and in what is to be written. `words` are as in [`rename`].
pub(crate) fn rename_page(sample: &mut ThemeSample, words: &[String], rng: &mut impl Rng) {
    // An item of the prompt stands between the mark or item before it and its own end.
    let item = |piece: &str| -> (usize, String) {
        let begin = piece.rfind('>').map_or(0, |at| at + 1);
        (begin, piece[begin..].trim_end_matches(mark::ITEM).trim().to_owned())
    };
    let shelves = sample.prompt.split(mark::CONCEPT).skip(1).flat_map(|shelf| {
        let end = shelf.find('<').unwrap_or(shelf.len());
        shelf[..end].split(mark::ITEM).map(|leaf| leaf.trim().to_owned())
    });
    let concepts = sample.page.themes.iter().flat_map(|theme| theme.concepts.iter().map(|concept| prompts::plain(concept)));
    let leaves = shelves.chain(concepts).filter(|leaf| !leaf.is_empty()).collect();
    let names = names(leaves, PAGE_POOL, words, rng);
    let renamed = |piece: &str| {
        let (begin, leaf) = item(piece);
        names.get(&leaf).map_or_else(|| piece.to_owned(), |new| format!("{} {new}{}", &piece[..begin], mark::ITEM))
    };
    sample.prompt = sample.prompt.split_inclusive(mark::ITEM).map(renamed).collect();
    for theme in &mut sample.page.themes {
        theme.concepts.iter_mut().for_each(|concept| *concept = prompts::plain(concept));
        rename_theme(theme, &names);
    }
}

/// A name for each of `leaves`, of words from a pool of so many.
fn names(leaves: BTreeSet<String>, pool: (usize, usize), words: &[String], rng: &mut impl Rng) -> BTreeMap<String, String> {
    let mut pool: Vec<String> = (0..rng.random_range(pool.0..=pool.1)).map(|_| word(words, rng)).collect();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut name = || {
        let mut name = String::new();
        for _ in 0..TRIES {
            pool.shuffle(rng);
            name = pool[..rng.random_range(WORDS.0..=WORDS.1.min(pool.len()))].join(" ");
            if taken.insert(name.clone()) {
                break;
            }
        }
        name
    };
    leaves.into_iter().map(|leaf| (leaf, name())).collect()
}

fn rename_theme(theme: &mut Theme, names: &BTreeMap<String, String>) {
    let mut title = prompts::plain(&theme.title);
    // The longest first: a leaf's name may hold its shelf's.
    let mut longest: Vec<(&String, &String)> = names.iter().collect();
    longest.sort_by_key(|(old, _)| std::cmp::Reverse(old.len()));
    for (old, new) in longest {
        title = title.replace(&prompts::plain(old), new);
    }
    theme.title = title;
    theme.concepts.iter_mut().for_each(|concept| concept.clone_from(&names[concept]));
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

    #[test]
    fn a_strange_page_copies_from_its_prompt_what_it_copied_before() {
        let source = Source::demo();
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let copied = |sample: &ThemeSample| {
            let concepts = sample.page.themes.iter().flat_map(|theme| &theme.concepts);
            concepts.map(|concept| sample.prompt.contains(&format!(" {};", prompts::plain(concept)))).collect::<Vec<_>>()
        };
        let known = |sample: &ThemeSample| {
            let concepts = sample.page.themes.iter().flat_map(|theme| &theme.concepts);
            concepts.filter(|concept| source.market.category(concept).is_some()).count()
        };
        for _ in 0..200 {
            let sample = source.samples.theme(&mut rng);
            let mut strange = sample.clone();
            rename_page(&mut strange, &["tea".to_owned(), "oat".to_owned(), "pan".to_owned()], &mut rng);
            assert_eq!(copied(&strange), copied(&sample), "{} became {}", sample.prompt, strange.prompt);
            assert!(known(&strange) * 4 < known(&sample), "{}", strange.prompt);
            let marks = |prompt: &str| prompt.matches(['<', ';']).count();
            assert_eq!(marks(&strange.prompt), marks(&sample.prompt));
        }
    }

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
