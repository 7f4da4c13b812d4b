//! From a keyword to products.

use std::collections::HashSet;

use endcap_schemas::{Diet, DietSet, Product};
use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    MarketError,
    derive::flags_of,
    rows::{self, PRODUCT_COLUMNS},
    words::{contains_run, words},
};

/// Fewer products than this, and a query gives up words.
const FEW: usize = 4;
/// Most matches of one step that pass the filter and are compared, in order of popularity.
const COMPARED_MAX: usize = 80;
/// Most words of a query; later ones are the specific ones, so earlier ones are cut.
const WORDS_MAX: usize = 8;

/// What may be retrieved.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// Diets that nothing may violate.
    pub diets: DietSet,
    /// Words that must stand neither in name, brand nor category path.
    pub dislikes: Vec<String>,
    /// Whether age-restricted products may come.
    pub adult: bool,
    /// Whether only products that can be bought now may come.
    pub in_stock: bool,
}

impl Filter {
    /// The filter of a page: these diets and dislikes, nothing age restricted, nothing out of stock.
    pub fn of_page(diets: DietSet, dislikes: &[String]) -> Self {
        Self { diets, dislikes: dislikes.to_vec(), adult: false, in_stock: true }
    }

    /// Whether `product` may come.
    pub fn allows(&self, product: &Product) -> bool {
        self.facts_allow(product) && !dislikes(&self.disliked_words(), product)
    }

    /// As [`Filter::allows`], for a product whose words are at hand. `disliked` are the filter's own, from [`Filter::disliked_words`].
    pub fn allows_words(&self, product: &Product, words: &ProductWords, disliked: &[Vec<String>]) -> bool {
        self.facts_allow(product) && !disliked.iter().any(|run| words.0.iter().any(|text| contains_run(text, run)))
    }

    fn facts_allow(&self, product: &Product) -> bool {
        !self.diets.intersects(product.violates)
            && (self.adult || !product.age_restricted)
            && (!self.in_stock || product.in_stock)
    }

    /// The dislikes, each as its words.
    pub fn disliked_words(&self) -> Vec<Vec<String>> {
        self.dislikes.iter().map(|dislike| words(dislike)).filter(|words| !words.is_empty()).collect()
    }
}

fn dislikes(disliked: &[Vec<String>], product: &Product) -> bool {
    !disliked.is_empty() && texts_of(product).any(|text| has_disliked(text, disliked))
}

/// The texts that no disliked word may stand in.
fn texts_of(product: &Product) -> impl Iterator<Item = &str> {
    [product.name.as_str(), product.brand.as_str()].into_iter().chain(product.category_path.iter().map(String::as_str))
}

/// The words that dislikes are looked for in, split once for a product that is looked at often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProductWords(Vec<Vec<String>>);

impl ProductWords {
    /// Those of `product`.
    pub fn of(product: &Product) -> Self {
        Self(texts_of(product).map(words).collect())
    }
}

/// Whether `text` has one of the runs of words that [`Filter::disliked_words`] gives.
pub fn has_disliked(text: &str, disliked: &[Vec<String>]) -> bool {
    let text = words(text);
    disliked.iter().any(|run| contains_run(&text, run))
}

/// Terms that no product may have in its title.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Banned(Vec<Vec<String>>);

impl Banned {
    /// These terms; one without a word bans nothing.
    pub fn new(terms: &[String]) -> Self {
        Self(terms.iter().map(|term| words(term)).filter(|run| !run.is_empty()).collect())
    }

    /// Whether the title of `product` has one of them.
    pub fn holds(&self, product: &Product) -> bool {
        let title = words(&product.title());
        self.0.iter().any(|run| contains_run(&title, run))
    }
}

/// A query taken apart: its words without dietary ones, and the diets that it names.
///
/// A query of dietary words alone keeps them as words.
pub fn plan_words(query: &str) -> (Vec<String>, DietSet) {
    let all = words(query);
    let mut rest = Vec::with_capacity(all.len());
    let mut diets = DietSet::NONE;
    let mut at = 0;
    while at < all.len() {
        let pair = (all[at].as_str(), all.get(at + 1).map_or("", String::as_str));
        let (diet, taken) = match pair {
            ("vegan", _) => (Some(Diet::Vegan), 1),
            ("plant", "based") => (Some(Diet::Vegan), 2),
            ("vegetarian", _) | ("meatless", _) => (Some(Diet::Vegetarian), 1),
            ("halal", _) => (Some(Diet::Halal), 1),
            ("gluten", "free") => (Some(Diet::GlutenFree), 2),
            // Not `lactose free`: lactose can be taken out of milk, so that is no fact about milk.
            ("dairy" | "milk", "free") | ("non", "dairy") => (Some(Diet::DairyFree), 2),
            ("nut" | "peanut", "free") => (Some(Diet::NutFree), 2),
            _ => (None, 1),
        };
        match diet {
            Some(diet) => diets = diets.with(diet),
            None => rest.push(all[at].clone()),
        }
        at += taken;
    }
    if rest.is_empty() { (all, diets) } else { (rest, diets) }
}

/// What a node of the taxonomy is: a leaf by its number, or a department by its name.
pub(crate) enum Node<'a> {
    Leaf(i64),
    Department(&'a str),
}

/// The products of a node by popularity, then id.
pub(crate) fn of_node(db: &Connection, node: Node<'_>, filter: &Filter, limit: usize) -> Result<Vec<Product>, MarketError> {
    let (column, value): (_, &dyn rusqlite::ToSql) = match &node {
        Node::Leaf(number) => ("category", number),
        Node::Department(name) => ("department", name),
    };
    let sql = format!(
        "SELECT {PRODUCT_COLUMNS} FROM products p WHERE p.withdrawn = 0 AND p.{column} = ?1 AND p.key & ?2 = 0 ORDER BY p.key LIMIT ?3"
    );
    let mut statement = db.prepare_cached(&sql)?;
    let disliked = filter.disliked_words();
    let forbidden = flags_of(filter.diets.bits(), !filter.adult, !filter.in_stock);
    // Room for disliked products and for sizes of one product.
    let room = limit * 3 + 20;
    let mut found = Vec::new();
    for product in statement.query_map(params![value, forbidden, room], rows::product)? {
        let product = product?;
        if !dislikes(&disliked, &product) {
            found.push(product);
        }
    }
    found.sort_by(|a, b| b.popularity.total_cmp(&a.popularity).then_with(|| a.id.cmp(&b.id)));
    Ok(one_size_first(found, limit))
}

/// The products that match `query`; see [`crate::Snapshot::products_for`].
pub(crate) fn by_words(db: &Connection, query: &str, filter: &Filter, limit: usize) -> Result<Vec<Product>, MarketError> {
    let (mut wanted, diets) = plan_words(query);
    wanted.drain(..wanted.len().saturating_sub(WORDS_MAX));
    let mut seen = HashSet::new();
    wanted.reverse();
    wanted.retain(|word| seen.insert(word.clone()));
    wanted.reverse();
    let Some(noun) = wanted.last().cloned() else { return Ok(Vec::new()) };
    let forbidden = flags_of(filter.diets.bits() | diets.bits(), !filter.adult, !filter.in_stock);
    let mut search = Search { db, forbidden, disliked: filter.disliked_words(), seen: HashSet::new(), found: Vec::new() };
    let all = words(query);

    search.step(&wanted, Some(&noun), &all)?;
    if search.found.len() < limit && wanted.len() > 1 {
        search.step(&wanted, None, &all)?;
    }
    let mut kept = specific_first(db, &wanted)?;
    while search.found.len() < FEW.min(limit) && kept.len() > 1 {
        kept.pop();
        let still: Vec<String> = wanted.iter().filter(|word| kept.contains(word)).cloned().collect();
        search.step(&still, Some(&noun), &all)?;
    }
    if search.found.is_empty() {
        search.step(&[noun], None, &all)?;
    }
    Ok(one_size_first(search.found, limit))
}

/// The words of a query, the last noun first, then the rarest first.
fn specific_first(db: &Connection, wanted: &[String]) -> Result<Vec<String>, MarketError> {
    let mut statement = db.prepare_cached("SELECT products FROM words WHERE word = ?1")?;
    let (noun, rest) = wanted.split_last().expect("a query that is searched for has a word");
    let mut counted = Vec::with_capacity(rest.len());
    for word in rest {
        let products: i64 = statement.query_row([encoded(word)], |row| row.get(0)).optional()?.unwrap_or(0);
        // A word that no product has is given up first.
        counted.push((if products == 0 { i64::MAX } else { products }, word.clone()));
    }
    counted.sort();
    Ok(std::iter::once(noun.clone()).chain(counted.into_iter().map(|(_, word)| word)).collect())
}

/// One query on its way through its steps.
struct Search<'a> {
    db: &'a Connection,
    /// Flags of a key that keep a product out.
    forbidden: i64,
    disliked: Vec<Vec<String>>,
    seen: HashSet<String>,
    found: Vec<Product>,
}

impl Search<'_> {
    /// Adds what holds all of `wanted`, with `head` in the product's last word or category.
    fn step(&mut self, wanted: &[String], head: Option<&String>, all: &[String]) -> Result<(), MarketError> {
        let sql = format!(
            "SELECT {PRODUCT_COLUMNS} FROM \
             (SELECT rowid AS key FROM product_words WHERE product_words MATCH ?1 AND rowid & ?2 = 0 ORDER BY rowid LIMIT ?3) m \
             CROSS JOIN products p ON p.key = m.key"
        );
        let mut statement = self.db.prepare_cached(&sql)?;
        let matching = params![match_text(wanted, head), self.forbidden, COMPARED_MAX];
        let mut matched = Vec::new();
        for product in statement.query_map(matching, rows::product)? {
            let product = product?;
            if !dislikes(&self.disliked, &product) && self.seen.insert(product.id.clone()) {
                matched.push((quality(&product, all), product));
            }
        }
        matched.sort_by(|(a_quality, a), (b_quality, b)| {
            b_quality.cmp(a_quality).then_with(|| b.popularity.total_cmp(&a.popularity)).then_with(|| a.id.cmp(&b.id))
        });
        self.found.extend(matched.into_iter().map(|(_, product)| product));
        Ok(())
    }
}

/// How well a product that matches fits the query: in how much of the query its name has, coarse enough to let popularity speak.
fn quality(product: &Product, query: &[String]) -> u8 {
    let name = words(&product.name);
    let held = query.iter().filter(|word| name.contains(word)).count();
    let ends_alike = name.last().is_some_and(|last| query.last() == Some(last));
    // Quarters of the query's words, and whether both name the same thing.
    (held * 4 / query.len().max(1)) as u8 * 2 + u8::from(ends_alike)
}

/// The full-text expression: all of `wanted`, `head` in the column of that name.
fn match_text(wanted: &[String], head: Option<&String>) -> String {
    let mut text = String::new();
    for word in wanted {
        if !text.is_empty() {
            text.push_str(" AND ");
        }
        if head == Some(word) {
            text.push_str("head:");
        }
        text.push_str(&format!("\"{}\"", encoded(word)));
    }
    text
}

/// A word as the full-text index holds it: letters beyond ASCII are spelled out, so that each word is one token whatever its script.
pub(crate) fn encoded(word: &str) -> String {
    if word.is_ascii() {
        return word.to_owned();
    }
    word.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("u{:x}", u32::from(c)) }).collect()
}

/// One product per name first, other sizes of it after them, titles that were there already not at all.
fn one_size_first(products: Vec<Product>, limit: usize) -> Vec<Product> {
    let (mut titles, mut names) = (HashSet::new(), HashSet::new());
    let (mut first, mut later) = (Vec::new(), Vec::new());
    for product in products {
        if titles.insert(product.title().to_lowercase()) {
            let new = names.insert((product.brand.to_lowercase(), product.name.to_lowercase()));
            if new { first.push(product) } else { later.push(product) }
        }
    }
    first.extend(later);
    first.truncate(limit);
    first
}
