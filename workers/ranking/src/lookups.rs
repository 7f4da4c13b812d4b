//! What was looked up in one version of the catalogue, kept in memory: products by their ids, and what was found for placements.
//!
//! What is found for a placement depends on its theme, its keywords and the page's diets alone, so that all shoppers whose pages have the same
//! placement share it. What nobody has asked for before is looked up beside the requests (`prepare`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use endcap_retrieval::{Banned, MarketError, PerVersion, Snapshot};
use endcap_schemas::{DietSet, Keyword, Placement, Product};
use quick_cache::sync::Cache;

use crate::{
    RankingConfig,
    pool::{Found, Item},
};

/// What is found for a placement is known by.
pub(crate) type LookupKey = [u8; 32];

/// The key of what is found for a placement: all that it depends on but the catalogue.
pub(crate) fn key_of(placement: &Placement, diets: DietSet) -> LookupKey {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(&[diets.bits()]);
    part(placement.theme.title.as_bytes());
    part(&(placement.theme.concepts.len() as u64).to_le_bytes());
    placement.theme.concepts.iter().for_each(|concept| part(concept.as_bytes()));
    for Keyword { id, text, descriptor } in &placement.keywords {
        part(&id.to_le_bytes());
        part(text.as_bytes());
        part(&[*descriptor as u8]);
    }
    *hasher.finalize().as_bytes()
}

/// What is kept of one version of the catalogue. What is asked for least goes first.
#[derive(Debug)]
pub(crate) struct Lookups {
    version: String,
    banned: Arc<Banned>,
    found: Cache<LookupKey, Arc<[Found]>>,
    /// `None` of what is no product.
    items: Cache<String, Option<Arc<Item>>>,
    /// Keys of what is being looked up.
    wanted: Mutex<HashSet<LookupKey>>,
}

impl Lookups {
    fn new(market: &Snapshot, config: &RankingConfig, banned: Arc<Banned>) -> Self {
        Self {
            version: market.version().to_owned(),
            banned,
            found: Cache::new(config.lookups_max),
            items: Cache::new(config.items_max),
            wanted: Mutex::default(),
        }
    }

    /// Whether it is about `market`.
    pub(crate) fn is_of(&self, market: &Snapshot) -> bool {
        self.version == market.version()
    }

    /// What was found under `key`; none where nobody has looked yet, or it is kept no more.
    pub(crate) fn found(&self, key: &LookupKey) -> Option<Arc<[Found]>> {
        self.found.get(key)
    }

    /// Keeps what was found under `key`.
    pub(crate) fn keep(&self, key: LookupKey, found: Vec<Found>) {
        self.found.insert(key, found.into());
        self.unwant(&key);
    }

    /// Whether nobody is looking for what is under `key` yet; from now on somebody is.
    pub(crate) fn want(&self, key: LookupKey) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(key)
    }

    /// Nobody is looking for what is under `key` any more.
    pub(crate) fn unwant(&self, key: &LookupKey) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// The items of `ids` by id; what is no product of `market` is left out.
    ///
    /// # Errors
    /// When the catalogue cannot be read.
    pub(crate) fn named<'a>(
        &self,
        market: &Snapshot,
        ids: impl Iterator<Item = &'a str>,
    ) -> Result<HashMap<&'a str, Arc<Item>>, MarketError> {
        let (mut named, mut missing) = (HashMap::new(), Vec::new());
        for id in ids {
            match self.items.get(id) {
                Some(item) => named.extend(item.map(|item| (id, item))),
                None => missing.push(id),
            }
        }
        if missing.is_empty() {
            return Ok(named);
        }
        let products = market.products(&missing)?.into_iter().map(|product| (product.id.clone(), product));
        let mut found: HashMap<String, Product> = products.collect();
        for id in missing {
            match found.remove(id) {
                Some(product) => drop(named.insert(id, self.item(product))),
                None if named.contains_key(id) => {} // it is asked for twice
                None => self.items.insert(id.to_owned(), None),
            }
        }
        Ok(named)
    }

    /// The item of `product`.
    pub(crate) fn item(&self, product: Product) -> Arc<Item> {
        self.items.get(&product.id).flatten().unwrap_or_else(|| {
            let is_banned = self.banned.holds(&product);
            let item = Arc::new(Item::new(product, is_banned));
            self.items.insert(item.product.id.clone(), Some(item.clone()));
            item
        })
    }
}

/// What is kept of the version of the catalogue that is served.
#[derive(Debug)]
pub(crate) struct CurrentLookups {
    config: RankingConfig,
    banned: Arc<Banned>,
    current: Mutex<PerVersion<Lookups>>,
}

impl CurrentLookups {
    pub(crate) fn new(config: &RankingConfig, banned: &[String]) -> Self {
        Self { config: config.clone(), banned: Arc::new(Banned::new(banned)), current: Mutex::default() }
    }

    /// That of `market`. With another catalogue than that of the last request everything begins anew.
    pub(crate) fn of(&self, market: &Snapshot) -> Arc<Lookups> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.get(market.version(), || Lookups::new(market, &self.config, self.banned.clone()))
    }
}
