//! Writing products, categories and terms: what came in is stored as it came, [`crate::derive`] makes the rest of it.

use std::collections::HashMap;

use endcap_schemas::{Category, Descriptor, Product, Term, UNCATEGORISED};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::{
    MarketDir, MarketError, derive,
    dir::{meta, set_meta},
    rows::{descriptor_number, join_path},
};

/// Longest id, name, brand, size, category or term, in bytes; ids as in events.
pub(crate) const TEXT_MAX_BYTES: usize = 256;
/// Most parts of a category path.
const PATH_MAX: usize = 16;
/// Highest price: a million of the currency's units.
const PRICE_MAX_CENTS: i64 = 100_000_000;

/// What a write did to the catalogue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CatalogueChange {
    /// Rows that were not there.
    pub added: u64,
    /// Rows that were different.
    pub changed: u64,
    /// Products that were withdrawn.
    pub withdrawn: u64,
}

impl CatalogueChange {
    /// Whether nothing changed.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Makes the market in `dir` consist of exactly these products, categories and terms; for a market that is generated.
///
/// Terms keep their numbers 1… in the order given. Categories stay as given; products of other categories get theirs derived.
///
/// # Errors
/// When a product or term cannot be stored (empty or repeated id, text over 256 bytes), or the disk fails.
pub fn write_demo(dir: &MarketDir, products: &[Product], categories: &[Category], terms: &[Term]) -> Result<(), MarketError> {
    write_all(dir, products, categories, terms).map_err(|fault| dir.blame(fault))
}

fn write_all(dir: &MarketDir, products: &[Product], categories: &[Category], terms: &[Term]) -> Result<(), MarketError> {
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    tx.execute_batch(
        "DELETE FROM products; DELETE FROM categories; DELETE FROM terms; DELETE FROM term_vectors; DELETE FROM purchases; \
         DELETE FROM words; INSERT INTO product_words (product_words) VALUES ('delete-all'); DELETE FROM meta WHERE key LIKE 'index_%';",
    )?;
    for category in categories {
        put_category(&tx, category, true)?;
    }
    let mut writer = ProductWriter::new(&tx, "demo")?;
    for product in products {
        writer.put(product, false)?;
    }
    let change = writer.finish()?;
    if change.added != products.len() as u64 {
        return Err(MarketError::Unfit(format!("{} products: some share an id", products.len())));
    }
    for (at, term) in terms.iter().enumerate() {
        check_term(term).map_err(MarketError::Unfit)?;
        insert_term(&tx, Some(at as i64 + 1), term, "demo")?;
    }
    derive::derive(&tx)?;
    new_catalogue_version(&tx)?;
    tx.commit()?;
    checkpoint(&db)
}

/// Moves the log's content into the database file where no reader holds it back.
pub(crate) fn checkpoint(db: &Connection) -> Result<(), MarketError> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
    Ok(())
}

/// Gives the catalogue a new version: a hash over everything that readers can see of it, so that equal content has equal versions.
pub(crate) fn new_catalogue_version(tx: &Transaction<'_>) -> Result<(), MarketError> {
    let mut hash = blake3::Hasher::new();
    for sql in [
        "SELECT id, name, brand, size, price_cents, path, violates, adult, popularity, in_stock FROM products WHERE withdrawn = 0 ORDER BY id",
        "SELECT name, department, violates, adult, seasons, related, popularity FROM categories ORDER BY name",
        "SELECT id, text, descriptor, category, violates, popularity, tier FROM terms ORDER BY id",
    ] {
        let mut statement = tx.prepare(sql)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                hash_value(&mut hash, row.get_ref(column)?);
            }
        }
    }
    set_meta(tx, "catalogue_version", &hash.finalize().to_hex()[..12])
}

fn hash_value(hash: &mut blake3::Hasher, value: rusqlite::types::ValueRef<'_>) {
    use rusqlite::types::ValueRef::{Blob, Integer, Null, Real, Text};
    match value {
        Null => hash.update(b"\0"),
        Integer(number) => hash.update(b"i").update(&number.to_le_bytes()),
        Real(number) => hash.update(b"r").update(&number.to_le_bytes()),
        Text(bytes) | Blob(bytes) => hash.update(b"t").update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
    };
}

pub(crate) fn put_category(tx: &Transaction<'_>, category: &Category, given: bool) -> Result<(), MarketError> {
    tx.prepare_cached(
        "INSERT INTO categories (name, department, violates, adult, seasons, related, popularity, given) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
         ON CONFLICT (name) DO UPDATE SET department = excluded.department, violates = excluded.violates, adult = excluded.adult, \
         seasons = excluded.seasons, related = excluded.related, popularity = excluded.popularity, given = excluded.given",
    )?
    .execute(params![
        category.name,
        category.department,
        category.violates.bits(),
        category.age_restricted,
        json(&category.seasons),
        json(&category.related),
        category.popularity,
        given
    ])?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("numbers and strings have a JSON text")
}

/// Adds and changes products of one catalogue.
pub(crate) struct ProductWriter<'a> {
    tx: &'a Transaction<'a>,
    catalogue: String,
    next: i64,
    change: CatalogueChange,
}

impl<'a> ProductWriter<'a> {
    pub(crate) fn new(tx: &'a Transaction<'a>, catalogue: &str) -> Result<Self, MarketError> {
        let next = meta(tx, "next_product")?.and_then(|next| next.parse().ok()).unwrap_or(1);
        Ok(Self { tx, catalogue: catalogue.to_owned(), next, change: CatalogueChange::default() })
    }

    /// Stores a product as it came; its `category_path` is the source's.
    pub(crate) fn put(&mut self, product: &Product, withdrawn: bool) -> Result<(), MarketError> {
        check_product(product).map_err(MarketError::Unfit)?;
        let path = join_path(&product.category_path);
        let same = "catalogue = ?2 AND name = ?3 AND brand = ?4 AND size = ?5 AND price_cents IS ?6 AND source_path = ?7 AND source_violates = ?8 \
                    AND adult = ?9 AND source_popularity = ?10 AND in_stock = ?11 AND withdrawn = ?12";
        let values = params![
            product.id,
            self.catalogue,
            product.name,
            product.brand,
            product.size,
            product.price_cents,
            path,
            product.violates.bits(),
            product.age_restricted,
            product.popularity.clamp(0.0, 1.0),
            product.in_stock,
            withdrawn
        ];
        let known: Option<(bool, bool)> = self
            .tx
            .prepare_cached(&format!("SELECT {same}, withdrawn FROM products WHERE id = ?1"))?
            .query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        match known {
            Some((true, _)) => {}
            Some((false, was_withdrawn)) => {
                self.tx
                    .prepare_cached(
                        "UPDATE products SET catalogue = ?2, name = ?3, brand = ?4, size = ?5, price_cents = ?6, source_path = ?7, source_violates = ?8, \
                         adult = ?9, source_popularity = ?10, in_stock = ?11, withdrawn = ?12 WHERE id = ?1",
                    )?
                    .execute(values)?;
                if withdrawn && !was_withdrawn { self.change.withdrawn += 1 } else { self.change.changed += 1 }
            }
            None if withdrawn => {}
            None => {
                self.tx
                    .prepare_cached(
                        "INSERT INTO products (key, id, catalogue, name, brand, size, price_cents, source_path, source_violates, adult, source_popularity, \
                         in_stock, withdrawn) VALUES (?13, ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
                    )?
                    .execute(params![
                        product.id,
                        self.catalogue,
                        product.name,
                        product.brand,
                        product.size,
                        product.price_cents,
                        path,
                        product.violates.bits(),
                        product.age_restricted,
                        product.popularity.clamp(0.0, 1.0),
                        product.in_stock,
                        withdrawn,
                        derive::key_of(product.popularity, self.next, 0)
                    ])?;
                self.next += 1;
                self.change.added += 1;
            }
        }
        Ok(())
    }

    /// Withdraws a product; gives whether there was such a one.
    pub(crate) fn withdraw(&mut self, id: &str) -> Result<bool, MarketError> {
        let there =
            self.tx.prepare_cached("UPDATE products SET withdrawn = 1 WHERE id = ?1 AND withdrawn = 0")?.execute([id])? == 1;
        self.change.withdrawn += u64::from(there);
        Ok(there)
    }

    /// Whether there is or was a product with this id.
    pub(crate) fn knows(&self, id: &str) -> Result<bool, MarketError> {
        Ok(self.tx.prepare_cached("SELECT 1 FROM products WHERE id = ?1")?.exists([id])?)
    }

    pub(crate) fn finish(self) -> Result<CatalogueChange, MarketError> {
        set_meta(self.tx, "next_product", &self.next.to_string())?;
        Ok(self.change)
    }
}

/// Why a product cannot be stored, in words.
pub(crate) fn check_product(product: &Product) -> Result<(), String> {
    text("id", &product.id, true)?;
    text("name", &product.name, true)?;
    text("brand", &product.brand, false)?;
    text("size", &product.size, false)?;
    if product.category_path.len() > PATH_MAX {
        return Err(format!("a category path of {} parts, at most {PATH_MAX} are taken", product.category_path.len()));
    }
    product.category_path.iter().try_for_each(|part| text("category", part, true))?;
    if let Some(price) = product.price_cents.filter(|price| !(0..=PRICE_MAX_CENTS).contains(price)) {
        return Err(format!("price of {price} cents is not between 0 and {PRICE_MAX_CENTS}"));
    }
    if !product.popularity.is_finite() {
        return Err("popularity is no number".to_owned());
    }
    Ok(())
}

/// Why a term cannot be stored, in words.
pub(crate) fn check_term(term: &Term) -> Result<(), String> {
    text("term", &term.text, true)?;
    if !term.popularity.is_finite() {
        return Err("popularity is no number".to_owned());
    }
    if !(1..=3).contains(&term.tier) {
        return Err(format!("tier {} is not 1, 2 or 3", term.tier));
    }
    Ok(())
}

fn text(field: &str, value: &str, needed: bool) -> Result<(), String> {
    if needed && value.trim().is_empty() {
        return Err(format!("`{field}` is empty"));
    }
    if value.len() > TEXT_MAX_BYTES {
        return Err(format!("`{field}` has {} bytes, at most {TEXT_MAX_BYTES} are taken", value.len()));
    }
    if value.chars().any(char::is_control) {
        return Err(format!("`{field}` holds a control character"));
    }
    Ok(())
}

fn insert_term(tx: &Transaction<'_>, id: Option<i64>, term: &Term, source: &str) -> Result<(), MarketError> {
    tx.prepare_cached(
        "INSERT INTO terms (id, text, descriptor, category, violates, popularity, tier, source) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?
    .execute(params![
        id,
        term.text,
        descriptor_number(term.descriptor),
        term.category,
        term.violates.bits(),
        term.popularity,
        term.tier,
        source
    ])?;
    Ok(())
}

/// Adds a term, or changes the one of the same text and descriptor.
pub(crate) fn put_term(tx: &Transaction<'_>, term: &Term, source: &str, change: &mut CatalogueChange) -> Result<(), MarketError> {
    let descriptor = descriptor_number(term.descriptor);
    let known: Option<bool> = tx
        .prepare_cached(
            "SELECT category IS ?3 AND violates = ?4 AND popularity = ?5 AND tier = ?6 AND source = ?7 FROM terms WHERE text = ?1 AND descriptor = ?2",
        )?
        .query_row(
            params![term.text, descriptor, term.category, term.violates.bits(), term.popularity, term.tier, source],
            |row| row.get(0),
        )
        .optional()?;
    match known {
        Some(true) => {}
        Some(false) => {
            tx.prepare_cached(
                "UPDATE terms SET category = ?3, violates = ?4, popularity = ?5, tier = ?6, source = ?7 WHERE text = ?1 AND descriptor = ?2",
            )?
            .execute(params![term.text, descriptor, term.category, term.violates.bits(), term.popularity, term.tier, source])?;
            change.changed += 1;
        }
        None => {
            insert_term(tx, None, term, source)?;
            change.added += 1;
        }
    }
    Ok(())
}

/// Makes the taxonomy's nodes, leaves and departments, terms of the corpus; nodes that are gone go.
pub(crate) fn put_nodes(tx: &Transaction<'_>, categories: &[Category]) -> Result<(), MarketError> {
    let mut nodes: HashMap<&str, Term> = HashMap::new();
    let categories: Vec<&Category> = categories.iter().filter(|category| category.name != UNCATEGORISED).collect();
    for category in &categories {
        let department = nodes.entry(&category.department).or_insert_with(|| Term {
            text: category.department.clone(),
            descriptor: Descriptor::Node,
            category: None,
            violates: category.violates,
            popularity: 0.0,
            tier: 1,
        });
        department.violates = endcap_schemas::DietSet::from_bits(department.violates.bits() & category.violates.bits());
        department.popularity = department.popularity.max(category.popularity);
    }
    for category in categories {
        let leaf = Term {
            text: category.name.clone(),
            descriptor: Descriptor::Node,
            category: Some(category.name.clone()),
            violates: category.violates,
            popularity: category.popularity,
            tier: 1,
        };
        nodes.insert(&category.name, leaf);
    }
    let mut stale: Vec<String> =
        tx.prepare("SELECT text FROM terms WHERE source = 'node'")?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    stale.retain(|text| !nodes.contains_key(text.as_str()));
    for text in stale {
        // Numbers are given again: a vector that stayed would become the next term's.
        tx.prepare_cached("DELETE FROM term_vectors WHERE term IN (SELECT id FROM terms WHERE text = ?1 AND source = 'node')")?
            .execute([&text])?;
        tx.prepare_cached("DELETE FROM terms WHERE text = ?1 AND source = 'node'")?.execute([text])?;
    }
    let mut nodes: Vec<Term> = nodes.into_values().collect();
    nodes.sort_by(|a, b| a.text.cmp(&b.text));
    let mut change = CatalogueChange::default();
    nodes.iter().try_for_each(|node| put_term(tx, node, "node", &mut change))
}
