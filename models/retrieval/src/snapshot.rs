//! One version of the market.

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    sync::Arc,
};

use endcap_schemas::{Category, Descriptor, Keyword, Product, Term};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

use crate::{
    Filter, MarketDir, MarketError,
    dir::meta,
    index::TermIndex,
    pool::Pool,
    rows::{self, CATEGORY_COLUMNS, PRODUCT_COLUMNS, TERM_COLUMNS},
    search::{self, Node},
};

/// Most products that one question returns.
pub const PRODUCTS_MAX: usize = 500;

/// One version of products, categories, terms and index. Everything asked of it fits together.
#[derive(Debug)]
pub struct Snapshot {
    version: String,
    index_version: String,
    pool: Pool,
    categories: Vec<Category>,
    numbers: Vec<i64>,
    by_name: HashMap<String, usize>,
    departments: HashSet<String>,
    index: Option<Arc<TermIndex>>,
}

/// A neighbour among the terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// The term's number.
    pub term: i64,
    /// Cosine of the angle between the term's vector and the question's, computed on 16-bit floats.
    pub cosine: f32,
}

/// How much there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    /// Products that are not withdrawn.
    pub products: i64,
    /// Products that are withdrawn.
    pub withdrawn: i64,
    /// Categories.
    pub categories: i64,
    /// Terms of the keyword corpus.
    pub terms: i64,
    /// Terms whose vectors are stored.
    pub embedded: i64,
}

impl Snapshot {
    /// Takes the market as it is; what did not change is shared with `last`.
    pub(crate) fn take(dir: &MarketDir, last: Option<&Snapshot>) -> Result<Self, MarketError> {
        match Self::take_once(dir, last) {
            // The index was replaced between reading its name and opening it: read the new name.
            Err(MarketError::File { fault, .. }) if fault.kind() == ErrorKind::NotFound => match Self::take_once(dir, last) {
                Err(MarketError::File { path, fault }) if fault.kind() == ErrorKind::NotFound => {
                    Err(MarketError::Damaged { path, what: "it is gone".to_owned() })
                }
                taken => taken,
            },
            taken => taken,
        }
    }

    fn take_once(dir: &MarketDir, last: Option<&Snapshot>) -> Result<Self, MarketError> {
        let pool = Pool::open(dir)?;
        let (categories, numbers, index_version) = pool.with(|db| {
            let (numbers, categories) = load_categories(db)?;
            Ok((categories, numbers, meta(db, "index_version")?.unwrap_or_default()))
        })?;
        let index = match last {
            Some(last) if last.index_version == index_version => last.index.clone(),
            _ if index_version.is_empty() => None,
            _ => Some(Arc::new(pool.with(|db| TermIndex::open(dir, db))?)),
        };
        let by_name = categories.iter().enumerate().map(|(at, category)| (category.name.clone(), at)).collect();
        let departments = categories.iter().map(|category| category.department.clone()).collect();
        let version = format!("{}+{}", pool.version(), if index_version.is_empty() { "none" } else { &index_version });
        Ok(Self { version, index_version, pool, categories, numbers, by_name, departments, index })
    }

    /// Catalogue and index version: part of cache keys and of every page.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Version of products, categories and terms.
    pub fn catalogue_version(&self) -> &str {
        self.pool.version()
    }

    /// Version of the index over the terms; empty when there is none.
    pub fn index_version(&self) -> &str {
        &self.index_version
    }

    /// Every category, by name.
    pub fn categories(&self) -> &[Category] {
        &self.categories
    }

    /// The category of this name.
    pub fn category(&self, name: &str) -> Option<&Category> {
        self.by_name.get(name).map(|at| &self.categories[*at])
    }

    /// How much there is.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self) -> Result<Counts, MarketError> {
        self.pool.with(counts)
    }

    /// A product, withdrawn ones excepted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn product(&self, id: &str) -> Result<Option<Product>, MarketError> {
        self.pool.with(|db| product(db, id))
    }

    /// The products of `ids`, in their order; unknown and withdrawn ones are left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn products(&self, ids: &[impl AsRef<str>]) -> Result<Vec<Product>, MarketError> {
        self.pool.with(|db| ids.iter().filter_map(|id| product(db, id.as_ref()).transpose()).collect())
    }

    /// A term by its number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn term(&self, id: i64) -> Result<Option<Term>, MarketError> {
        self.pool.with(|db| term(db, id))
    }

    /// The terms of `ids` with their numbers, in that order; unknown ones are left out.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn terms(&self, ids: &[i64]) -> Result<Vec<(i64, Term)>, MarketError> {
        self.pool.with(|db| ids.iter().filter_map(|id| term(db, *id).transpose().map(|found| Ok((*id, found?)))).collect())
    }

    /// The taxonomy node of this name as a term of the corpus, with its number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn node_term(&self, name: &str) -> Result<Option<(i64, Term)>, MarketError> {
        self.pool.with(|db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT {TERM_COLUMNS} FROM terms WHERE text = ?1 AND descriptor = ?2"))?;
            Ok(statement.query_row(params![name, rows::descriptor_number(Descriptor::Node)], rows::term).optional()?)
        })
    }

    /// Every term with its number, in order of number, `limit` at most from `after` (exclusive): for training and evaluation.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn terms_after(&self, after: i64, limit: usize) -> Result<Vec<(i64, Term)>, MarketError> {
        self.pool.with(|db| {
            let mut statement =
                db.prepare_cached(&format!("SELECT {TERM_COLUMNS} FROM terms WHERE id > ?1 ORDER BY id LIMIT ?2"))?;
            let found = statement.query_map(params![after, limit as i64], rows::term)?.collect::<Result<_, _>>()?;
            Ok(found)
        })
    }

    /// Products by popularity, `limit` at most from place `offset`: for training and evaluation.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn products_from(&self, offset: usize, limit: usize) -> Result<Vec<Product>, MarketError> {
        self.pool.with(|db| {
            let sql = format!("SELECT {PRODUCT_COLUMNS} FROM products p WHERE p.withdrawn = 0 ORDER BY p.key LIMIT ?2 OFFSET ?1");
            let mut statement = db.prepare_cached(&sql)?;
            let found = statement.query_map(params![offset as i64, limit as i64], rows::product)?.collect::<Result<_, _>>()?;
            Ok(found)
        })
    }

    /// The `k` terms nearest to `vector` (unit length, `[dimensions of the encoder]`), nearest first, equal ones by number.
    ///
    /// A taxonomy node and a search query may carry the same text; both are found.
    ///
    /// # Errors
    /// When there is no index, or it was built with another encoder.
    pub fn near(&self, vector: &[f32], k: usize) -> Result<Vec<Near>, MarketError> {
        self.index.as_ref().ok_or_else(|| self.no_index())?.near(vector, k)
    }

    /// As [`Snapshot::near`], by comparing with every term: for measuring the index.
    ///
    /// # Errors
    /// As [`Snapshot::near`].
    pub fn near_exact(&self, vector: &[f32], k: usize) -> Result<Vec<Near>, MarketError> {
        self.index.as_ref().ok_or_else(|| self.no_index())?.near_exact(vector, k)
    }

    fn no_index(&self) -> MarketError {
        MarketError::NoIndex(self.pool.dir().path().to_owned())
    }

    /// What `keyword` retrieves, `limit` products at most ([`PRODUCTS_MAX`] in any case), best match first, then the more popular one,
    /// then by id.
    ///
    /// A node retrieves the products of its leaf or department. A query retrieves products that hold all its words; where those are
    /// few, its least specific words are given up one after the other, never the last noun. Dietary words are facts: `vegan` keeps
    /// products out that violate it, whether or not their name says so.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn products_for(&self, keyword: &Keyword, filter: &Filter, limit: usize) -> Result<Vec<Product>, MarketError> {
        let limit = limit.min(PRODUCTS_MAX);
        if keyword.descriptor == Descriptor::Node
            && let Some(node) = self.node(&keyword.text)
        {
            return self.pool.with(|db| search::of_node(db, node, filter, limit));
        }
        let found = self.search(&keyword.text, filter, limit)?;
        if !found.is_empty() {
            return Ok(found);
        }
        // Nothing is called so; the corpus may know what it is.
        let term = self.term(keyword.id)?.filter(|term| term.text == keyword.text);
        let leaf = term.and_then(|term| term.category).and_then(|name| self.by_name.get(&name).copied());
        leaf.map_or(Ok(found), |at| self.pool.with(|db| search::of_node(db, Node::Leaf(self.numbers[at]), filter, limit)))
    }

    /// What a shopper's search finds: as [`Snapshot::products_for`] for a query string.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn search(&self, text: &str, filter: &Filter, limit: usize) -> Result<Vec<Product>, MarketError> {
        self.pool.with(|db| search::by_words(db, text, filter, limit.min(PRODUCTS_MAX)))
    }

    /// The most popular products of a category or department.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn popular(&self, category: &str, filter: &Filter, limit: usize) -> Result<Vec<Product>, MarketError> {
        let limit = limit.min(PRODUCTS_MAX);
        self.node(category).map_or(Ok(Vec::new()), |node| self.pool.with(|db| search::of_node(db, node, filter, limit)))
    }

    /// The node of this name: a leaf before a department.
    fn node<'a>(&self, name: &'a str) -> Option<Node<'a>> {
        match self.by_name.get(name) {
            Some(at) => Some(Node::Leaf(self.numbers[*at])),
            None => self.departments.contains(name).then_some(Node::Department(name)),
        }
    }
}

fn load_categories(db: &Connection) -> Result<(Vec<i64>, Vec<Category>), MarketError> {
    let mut statement = db.prepare(&format!("SELECT {CATEGORY_COLUMNS} FROM categories ORDER BY name"))?;
    let pairs = statement.query_map([], rows::category)?.collect::<Result<Vec<_>, _>>()?;
    Ok(pairs.into_iter().unzip())
}

fn product(db: &Connection, id: &str) -> Result<Option<Product>, MarketError> {
    let mut statement =
        db.prepare_cached(&format!("SELECT {PRODUCT_COLUMNS} FROM products p WHERE p.id = ?1 AND p.withdrawn = 0"))?;
    Ok(statement.query_row([id], rows::product).optional()?)
}

fn term(db: &Connection, id: i64) -> Result<Option<Term>, MarketError> {
    let mut statement = db.prepare_cached(&format!("SELECT {TERM_COLUMNS} FROM terms WHERE id = ?1"))?;
    Ok(statement.query_row([id], |row| rows::term(row).map(|(_, term)| term)).optional()?)
}

pub(crate) fn counts(db: &Connection) -> Result<Counts, MarketError> {
    let count = |sql: &str| db.query_row(sql, [], |row| row.get(0));
    Ok(Counts {
        products: count("SELECT count(*) FROM products WHERE withdrawn = 0")?,
        withdrawn: count("SELECT count(*) FROM products WHERE withdrawn = 1")?,
        categories: count("SELECT count(*) FROM categories")?,
        terms: count("SELECT count(*) FROM terms")?,
        embedded: count("SELECT count(*) FROM terms t JOIN term_vectors v ON v.term = t.id")?,
    })
}
