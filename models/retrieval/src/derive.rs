//! Everything that follows from what came in: taxonomy, popularity, full-text index, the corpus's nodes and facts about terms.
//!
//! A pure function of the stored sources: run after every change, in the same transaction, it leaves the same rows whatever the order
//! in which catalogues, keywords and purchases came. Only rows that differ are written.

use std::collections::HashMap;

use endcap_schemas::{Category, Descriptor, DietSet, UNCATEGORISED};
use rusqlite::{Transaction, params};

use crate::{
    MarketError,
    categories::{self, Item, Matcher},
    facts_of,
    rows::{self, CATEGORY_COLUMNS, TERM_COLUMNS, join_path, split_path},
    search::encoded,
    words::words,
    write::{put_category, put_nodes},
};

/// Key of a product's row: its place in order of popularity (thousandths, falling), its number in order of arrival, and its flags, so that
/// a filter need not look at the row.
pub(crate) fn key_of(popularity: f32, number: i64, flags: i64) -> i64 {
    let bucket = 1_000 - (popularity.clamp(0.0, 1.0) * 1_000.0).round() as i64;
    ((bucket + 1) << 40) | ((number & 0xffff_ffff) << 8) | flags
}

/// Bits of a key that stand for diets violated (the set's own bits), for adults only, and for out of stock.
pub(crate) fn flags_of(violates: u8, adult: bool, in_stock: bool) -> i64 {
    i64::from(violates) | i64::from(adult) << 6 | i64::from(!in_stock) << 7
}

fn number_of(key: i64) -> i64 {
    (key >> 8) & 0xffff_ffff
}

/// So many changed entries make the full-text index worth rewriting: 0.3 s for 330,000 products, after which searches took a fifth of the
/// time they had taken when half of the entries had been replaced.
const MANY: usize = 100;

struct Stored {
    key: i64,
    id: String,
    name: String,
    brand: String,
    source_violates: DietSet,
    source_popularity: f32,
    adult: bool,
    in_stock: bool,
    withdrawn: bool,
    derived: (String, i64, String, u8, f32),
    indexed: Option<i64>,
}

/// Derives all of it.
pub(crate) fn derive(tx: &Transaction<'_>) -> Result<(), MarketError> {
    let (products, items) = load(tx)?;
    let given: HashMap<String, String> = tx
        .prepare("SELECT name, department FROM categories WHERE given = 1")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let purchases = Purchases::load(tx, &products)?;
    let taxonomy = categories::derive(&items, &given, &purchases.together);
    put_categories(tx, &taxonomy.categories)?;
    let changed = put_products(tx, &products, &items, &taxonomy.paths, &purchases.popularity)?;
    if changed >= MANY {
        // Entries that were replaced leave marks that every search passes over; merging all segments into one removes them.
        tx.execute_batch("INSERT INTO product_words (product_words) VALUES ('optimize')")?;
    }
    if changed > 0 {
        tx.execute_batch("DELETE FROM words; INSERT INTO words (word, products) SELECT term, doc FROM word_counts;")?;
    }
    let categories: Vec<Category> = tx
        .prepare(&format!("SELECT {CATEGORY_COLUMNS} FROM categories ORDER BY name"))?
        .query_map([], |row| rows::category(row).map(|(_, category)| category))?
        .collect::<Result<_, _>>()?;
    if categories.len() > given.len() {
        put_nodes(tx, &categories)?;
    }
    put_term_facts(tx, &categories)
}

/// Products in order of arrival, and what the taxonomy needs of them; withdrawn ones have no say in it.
fn load(tx: &Transaction<'_>) -> Result<(Vec<Stored>, Vec<Item>), MarketError> {
    let mut statement = tx.prepare(
        "SELECT key, id, name, brand, source_path, source_violates, source_popularity, adult, withdrawn, path, category, department, violates, \
         popularity, indexed, in_stock FROM products ORDER BY withdrawn, id",
    )?;
    let mut rows = statement.query([])?;
    let (mut products, mut items) = (Vec::new(), Vec::new());
    while let Some(row) = rows.next()? {
        let product = Stored {
            key: row.get(0)?,
            id: row.get(1)?,
            name: row.get(2)?,
            brand: row.get(3)?,
            source_violates: DietSet::from_bits(row.get(5)?),
            source_popularity: row.get(6)?,
            adult: row.get(7)?,
            in_stock: row.get(15)?,
            withdrawn: row.get(8)?,
            derived: (row.get(9)?, row.get(10)?, row.get(11)?, row.get(12)?, row.get(13)?),
            indexed: row.get(14)?,
        };
        if !product.withdrawn {
            let path = split_path(&row.get::<_, String>(4)?);
            items.push(Item { path, words: words(&product.name), violates: product.source_violates, adult: product.adult });
        }
        products.push(product);
    }
    Ok((products, items))
}

/// What the imported purchases say.
struct Purchases {
    /// Popularity of the products that were bought, ½…1.
    popularity: HashMap<String, f32>,
    /// Per shopper the places of products bought.
    together: Vec<Vec<usize>>,
}

impl Purchases {
    fn load(tx: &Transaction<'_>, products: &[Stored]) -> Result<Self, MarketError> {
        let mut counts: HashMap<String, i64> = HashMap::new();
        let mut shoppers: HashMap<i64, Vec<usize>> = HashMap::new();
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut statement =
            tx.prepare("SELECT shopper, product, count(*) FROM purchases GROUP BY shopper, product ORDER BY shopper, product")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if places.is_empty() {
                places = products.iter().enumerate().filter(|(_, p)| !p.withdrawn).map(|(at, p)| (p.id.as_str(), at)).collect();
            }
            let product: String = row.get(1)?;
            if let Some(at) = places.get(product.as_str()) {
                shoppers.entry(row.get(0)?).or_default().push(*at);
                *counts.entry(product).or_default() += row.get::<_, i64>(2)?;
            }
        }
        let most = counts.values().copied().max().unwrap_or(1) as f32;
        let share = |count: i64| 0.5 + 0.5 * (1.0 + count as f32).ln() / (1.0 + most).ln();
        let popularity = counts.into_iter().map(|(product, count)| (product, share(count))).collect();
        let mut shoppers: Vec<_> = shoppers.into_iter().collect();
        shoppers.sort();
        Ok(Self { popularity, together: shoppers.into_iter().map(|(_, products)| products).collect() })
    }
}

fn put_categories(tx: &Transaction<'_>, categories: &[Category]) -> Result<(), MarketError> {
    let stale: Vec<String> = {
        let names: std::collections::HashSet<&str> = categories.iter().map(|category| category.name.as_str()).collect();
        let mut statement = tx.prepare("SELECT name FROM categories WHERE given = 0")?;
        let stored = statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
        stored.into_iter().filter(|name| !names.contains(name.as_str())).collect()
    };
    for name in stale {
        tx.prepare_cached("DELETE FROM categories WHERE name = ?1")?.execute([name])?;
    }
    categories.iter().try_for_each(|category| put_category(tx, category, false))
}

/// Writes what is derived of each product; gives how many entries of the full-text index changed.
fn put_products(
    tx: &Transaction<'_>,
    products: &[Stored],
    items: &[Item],
    paths: &[Vec<String>],
    bought: &HashMap<String, f32>,
) -> Result<usize, MarketError> {
    let numbers: HashMap<String, i64> = tx
        .prepare("SELECT name, id FROM categories")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut changed = 0;
    for (at, product) in products.iter().enumerate() {
        if product.withdrawn {
            if product.indexed.is_some() {
                tx.prepare_cached("DELETE FROM product_words WHERE rowid = ?1")?.execute([product.key])?;
                tx.prepare_cached("UPDATE products SET indexed = NULL WHERE key = ?1")?.execute([product.key])?;
                changed += 1;
            }
            continue;
        }
        let path = &paths[at];
        let leaf = path.last().map_or(UNCATEGORISED, String::as_str);
        let popularity = bought.get(&product.id).copied().unwrap_or(product.source_popularity);
        // A leaf that was found by the name's words speaks of diets as one that came with the product does.
        let violates = match items[at].path.is_empty() && leaf != UNCATEGORISED {
            true => product.source_violates.bits() | facts_of(&product.name, path, "").violates.bits(),
            false => product.source_violates.bits(),
        };
        let derived = (join_path(path), numbers[leaf], path[0].clone(), violates, popularity);
        changed += usize::from(put_product(tx, product, &items[at].words, path, derived)?);
    }
    Ok(changed)
}

fn put_product(
    tx: &Transaction<'_>,
    product: &Stored,
    name: &[String],
    path: &[String],
    derived: (String, i64, String, u8, f32),
) -> Result<bool, MarketError> {
    let key = key_of(derived.4, number_of(product.key), flags_of(derived.3, product.adult, product.in_stock));
    let text = Text::of(name, &product.brand, path);
    let hash = text.hash(key);
    if product.indexed == Some(hash) && product.derived == derived {
        return Ok(false);
    }
    let (joined, category, department, violates, popularity) = derived;
    tx.prepare_cached(
        "UPDATE products SET key = ?2, path = ?3, category = ?4, department = ?5, violates = ?6, popularity = ?7, indexed = ?8 WHERE key = ?1",
    )?
    .execute(params![product.key, key, joined, category, department, violates, popularity, hash])?;
    if product.indexed == Some(hash) {
        return Ok(false);
    }
    if product.indexed.is_some() {
        tx.prepare_cached("DELETE FROM product_words WHERE rowid = ?1")?.execute([product.key])?;
    }
    tx.prepare_cached("INSERT INTO product_words (rowid, head, name, path) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![key, text.head, text.name, text.path])?;
    Ok(true)
}

/// What the full-text index holds of a product.
struct Text {
    /// What it is: its leaf, and the last word of its name.
    head: String,
    /// Name and brand.
    name: String,
    /// The rest of the path.
    path: String,
}

impl Text {
    fn of(name: &[String], brand: &str, path: &[String]) -> Self {
        let (leaf, rest) = path.split_last().map_or(("", &path[..0]), |(leaf, rest)| (leaf.as_str(), rest));
        let column = |words: Vec<String>| words.iter().map(|word| encoded(word)).collect::<Vec<_>>().join(" ");
        let leaf = if leaf == UNCATEGORISED { "" } else { leaf };
        Self {
            head: column(words(leaf).into_iter().chain(name.last().cloned()).collect()),
            name: column(name.iter().cloned().chain(words(brand)).collect()),
            path: column(rest.iter().flat_map(|part| words(part)).collect()),
        }
    }

    fn hash(&self, key: i64) -> i64 {
        let hash = blake3::hash(format!("{key}\n{}\n{}\n{}", self.head, self.name, self.path).as_bytes());
        i64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"))
    }
}

/// Category, diets and popularity of the imported search terms.
fn put_term_facts(tx: &Transaction<'_>, categories: &[Category]) -> Result<(), MarketError> {
    let matcher = Matcher::new(categories.iter().map(|category| category.name.as_str()));
    let by_name: HashMap<&str, &Category> = categories.iter().map(|category| (category.name.as_str(), category)).collect();
    let counts: HashMap<String, i64> = tx
        .prepare("SELECT word, products FROM words")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let most = counts.values().copied().max().unwrap_or(1).max(1) as f32;
    let mut select = tx.prepare(&format!("SELECT {TERM_COLUMNS} FROM terms WHERE source = 'keywords' ORDER BY id"))?;
    let mut update = tx.prepare("UPDATE terms SET category = ?2, violates = ?3, popularity = ?4 WHERE id = ?1")?;
    // The rows are read before they are written: SQLite says nothing certain about rows that change under a reader.
    let terms = select.query_map([], rows::term)?.collect::<Result<Vec<_>, _>>()?;
    for (id, term) in terms.into_iter().filter(|(_, term)| term.descriptor == Descriptor::Query) {
        let text = words(&term.text);
        let category = matcher.clear(&text).map(str::to_owned);
        let leaf: Vec<String> = category.iter().cloned().collect();
        let mut violates = facts_of(&term.text, &leaf, "").violates;
        if let Some(category) = category.as_deref().and_then(|name| by_name.get(name)).filter(|_| !denies(&term.text)) {
            violates = DietSet::from_bits(violates.bits() | category.violates.bits());
        }
        // A term finds about as many products as its rarest word.
        let products = text.iter().map(|word| counts.get(&encoded(word)).copied().unwrap_or(0)).min().unwrap_or(0) as f32;
        let standing = [0.5, 0.3, 0.15][usize::from(term.tier.clamp(1, 3)) - 1];
        let popularity = standing + 0.5 * (1.0 + products).ln() / (1.0 + most).ln();
        if (&category, violates, popularity) != (&term.category, term.violates, term.popularity) {
            update.execute(params![id, category, violates.bits(), popularity])?;
        }
    }
    Ok(())
}

/// Whether a term sets itself apart from its category: `vegan cheese`.
fn denies(term: &str) -> bool {
    !crate::plan_words(term).1.is_empty()
}
