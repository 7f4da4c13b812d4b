//! Lessons whose leaves bear strange names. The demo market has few leaves, and a model may learn them by heart; other markets' leaves it
//! can only compare and copy, word for word. These lessons teach it that.

use std::collections::{BTreeMap, BTreeSet};

use endcap_inference::prompts;
use endcap_market::{LEAF_WORDS_MAX, ThemeSample};
use endcap_schemas::{Product, SHELVES_MAX, Theme};
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

/// Gives every leaf of the pair another name, the same wherever it stands: in the concepts, in the title, on the product, which may get
/// more shelves. `words` are those that names are made of, beside invented ones.
pub(crate) fn rename(theme: &mut Theme, product: &mut Product, words: &[String], rng: &mut impl Rng) {
    let mut names = Names::new(POOL, words, rng);
    theme.concepts.iter().map(String::as_str).chain(product.shelves()).for_each(|leaf| names.add(leaf, rng));
    names.rename(theme);
    let mut shelves: Vec<String> = product.shelves().map(|shelf| names.of(shelf)).collect();
    for _ in 0..rng.random_range(0..=SHELVES_MAX - shelves.len()) {
        shelves.insert(rng.random_range(0..=shelves.len()), names.draw(rng));
    }
    let department = product.department().to_owned();
    product.category_path = std::iter::once(department).chain(shelves.into_iter().rev()).collect();
    if rng.random() {
        product.name = (0..rng.random_range(1..=5)).map(|_| word(words, rng)).collect::<Vec<_>>().join(" ");
    }
}

/// Gives every leaf of a page another name, the same in what is read and in what is to be written. `words` are as in [`rename`].
pub(crate) fn rename_page(sample: &mut ThemeSample, words: &[String], rng: &mut impl Rng) {
    let mut names = Names::new(PAGE_POOL, words, rng);
    let nearby = &mut sample.nearby;
    let shelves = [&mut nearby.suited, &mut nearby.in_season, &mut nearby.unfamiliar];
    let favourites = sample.context.favourites.iter_mut().map(|favourite| &mut favourite.category);
    for leaf in favourites.chain(shelves.into_iter().flatten().flatten()) {
        names.add(leaf, rng);
        *leaf = names.of(leaf);
    }
    for theme in &mut sample.page.themes {
        theme.concepts.iter().for_each(|concept| names.add(concept, rng));
        names.rename(theme);
    }
}

/// Strange names for leaves, by their plain ones.
struct Names {
    pool: Vec<String>,
    names: BTreeMap<String, String>,
    taken: BTreeSet<String>,
}

impl Names {
    /// No names yet; they will be made of a pool of so many words.
    fn new(pool: (usize, usize), words: &[String], rng: &mut impl Rng) -> Self {
        let pool = (0..rng.random_range(pool.0..=pool.1)).map(|_| word(words, rng)).collect();
        Self { pool, names: BTreeMap::new(), taken: BTreeSet::new() }
    }

    /// Names the leaf, if it has no name yet.
    fn add(&mut self, leaf: &str, rng: &mut impl Rng) {
        let plain = prompts::plain(leaf);
        if !plain.is_empty() && !self.names.contains_key(&plain) {
            let name = self.draw(rng);
            self.names.insert(plain, name);
        }
    }

    /// A name that nothing has, as far as the pool goes.
    fn draw(&mut self, rng: &mut impl Rng) -> String {
        let mut name = String::new();
        for _ in 0..TRIES {
            self.pool.shuffle(rng);
            name = self.pool[..rng.random_range(WORDS.0..=WORDS.1.min(self.pool.len()))].join(" ");
            if self.taken.insert(name.clone()) {
                break;
            }
        }
        name
    }

    /// The leaf's name.
    fn of(&self, leaf: &str) -> String {
        let plain = prompts::plain(leaf);
        self.names.get(&plain).cloned().unwrap_or(plain)
    }

    /// Puts the names into the theme's title and concepts.
    fn rename(&self, theme: &mut Theme) {
        theme.title = self.in_title(&prompts::plain(&theme.title));
        theme.concepts.iter_mut().for_each(|concept| *concept = self.of(concept));
    }

    /// The title with every leaf renamed, of two that begin at one word the longer. A title shows [`LEAF_WORDS_MAX`] words of a leaf.
    fn in_title(&self, title: &str) -> String {
        let mut shown: BTreeMap<Vec<&str>, &str> = BTreeMap::new();
        for (leaf, name) in &self.names {
            let words: Vec<&str> = leaf.split(' ').collect();
            shown.entry(words[..words.len().min(LEAF_WORDS_MAX)].to_vec()).or_insert(name);
            shown.insert(words, name);
        }
        let longest = shown.keys().map(Vec::len).max().unwrap_or(0);
        let (words, mut out, mut at): (Vec<&str>, Vec<&str>, usize) = (title.split(' ').collect(), Vec::new(), 0);
        while at < words.len() {
            let lengths = (1..=longest.min(words.len() - at)).rev();
            let found = lengths.into_iter().find_map(|length| Some((length, *shown.get(&words[at..at + length])?)));
            let (length, text) = found.unwrap_or((1, words[at]));
            out.push(text);
            at += length;
        }
        out.join(" ")
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

    #[test]
    fn a_strange_page_copies_from_its_prompt_what_it_copied_before() {
        let source = Source::demo();
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let concepts = |sample: &ThemeSample| {
            let all: Vec<String> = sample.page.themes.iter().flat_map(|theme| theme.concepts.clone()).collect();
            all
        };
        let copied = |sample: &ThemeSample| {
            let prompt = sample.prompt();
            concepts(sample).iter().map(|leaf| prompt.contains(&format!(" {};", prompts::plain(leaf)))).collect::<Vec<_>>()
        };
        let known = |sample: &ThemeSample| concepts(sample).iter().filter(|leaf| source.market.category(leaf).is_some()).count();
        let titled = |sample: &ThemeSample| {
            let in_title = |theme: &&Theme| prompts::plain(&theme.title).contains(&prompts::plain(&theme.concepts[0]));
            sample.page.themes.iter().filter(in_title).count()
        };
        for _ in 0..200 {
            let sample = source.samples.theme(&mut rng);
            let mut strange = sample.clone();
            rename_page(&mut strange, &["tea".to_owned(), "oat".to_owned(), "pan".to_owned()], &mut rng);
            assert_eq!(copied(&strange), copied(&sample), "{} became {}", sample.prompt(), strange.prompt());
            assert!(known(&strange) * 4 < known(&sample), "{}", strange.prompt());
            assert!(titled(&strange) >= titled(&sample), "{:?} became {:?}", sample.page, strange.page);
        }
    }

    #[test]
    fn titles_are_renamed_by_whole_words_and_once() {
        let names = [("cream", "pan"), ("hard cheese", "cream oat"), ("rice", "x"), ("big fat leaf of many words", "y")];
        let names = names.map(|(leaf, name)| (leaf.to_owned(), name.to_owned()));
        let names = Names { pool: Vec::new(), names: names.into(), taken: BTreeSet::new() };
        assert_eq!(names.in_title("hard cheese with cream"), "cream oat with pan");
        assert_eq!(names.in_title("little prices on rice"), "little prices on x");
        assert_eq!(names.in_title("time to meet big fat leaf of"), "time to meet y");
    }

    #[test]
    fn strange_names_leave_the_truth_as_it_is_wherever_the_shelf_stands() {
        let source = Source::demo();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut depths = BTreeSet::new();
        for i in 0..600 {
            let (mut theme, mut product, _) = source.samples.pair(&mut rng);
            // Every other product stands on a shelf below its own, which may be spelled in another way.
            if i % 2 == 0 {
                product.category_path.push("Deeper & deeper".to_owned());
                theme.concepts[0] = theme.concepts[0].to_uppercase();
            }
            let relevant = truth::relevant(&theme, &product);
            let (mut strange, mut renamed) = (theme.clone(), product.clone());
            rename(&mut strange, &mut renamed, &["tea".to_owned(), "oat".to_owned()], &mut rng);
            assert_eq!(truth::relevant(&strange, &renamed), relevant, "{theme:?} {product:?} became {strange:?} {renamed:?}");
            depths.insert((renamed.shelves().count(), relevant));
        }
        assert_eq!(depths.len(), 6, "one to three shelves, relevant or not: {depths:?}");
    }
}
