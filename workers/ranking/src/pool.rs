//! What nominators choose from: for each placement of a page, the products that its keywords, the terms near its theme and its shelves find, as far
//! as they pass the checks that the page's own products passed. Nothing here depends on the shopper but the page's diets.
//!
//! [`Pools`] keeps pools in memory, for one version of the catalogue. What a page has of a placement is a pool at once; the rest is looked up, and
//! judged, beside the requests (`prepare`).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use endcap_retrieval::{ProductWords, Snapshot};
use endcap_schemas::{DietSet, Placement, Product};

use crate::{RankingError, features::Nominator};

/// A product with what is looked at over and over.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) product: Product,
    pub(crate) words: ProductWords,
}

/// A product that may be nominated for a placement; each figure 0…1, as the traits of the same name.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    pub(crate) item: Arc<Item>,
    /// Nominators that may bring it in, by bit.
    pub(crate) of: u8,
    pub(crate) relevance: f64,
    pub(crate) keyword: f64,
    pub(crate) embedding: f64,
    pub(crate) dearness: f64,
    pub(crate) anchor: f64,
}

/// What may be nominated for a placement.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) candidates: Vec<Candidate>,
    /// Whether every nominator had its say.
    pub(crate) is_whole: bool,
}

/// What a pool is known by.
pub(crate) type PoolKey = [u8; 32];

/// A placement whose pool is to be completed.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) key: PoolKey,
    pub(crate) placement: Placement,
    pub(crate) diets: DietSet,
}

impl Wanted {
    pub(crate) fn of(key: PoolKey, placement: &Placement, diets: DietSet) -> Self {
        Self { key, placement: placement.clone(), diets }
    }
}

/// The key of a placement's pool: all that it depends on but the catalogue.
pub(crate) fn key_of(placement: &Placement, diets: DietSet) -> PoolKey {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(&[diets.bits()]);
    part(placement.theme.title.as_bytes());
    placement.theme.concepts.iter().for_each(|concept| part(concept.as_bytes()));
    part(b"keywords");
    placement.keywords.iter().for_each(|keyword| part(keyword.text.as_bytes()));
    part(b"products");
    for shown in &placement.products {
        part(shown.product.as_bytes());
        part(&shown.score.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Candidates in the making, each product once.
#[derive(Default)]
pub(crate) struct Gathered {
    pub(crate) candidates: Vec<Candidate>,
    places: HashMap<String, usize>,
}

impl Gathered {
    /// The candidate of `item`, which `nominator` may bring in; made where it is not there yet, unless there are `most` already.
    pub(crate) fn add(&mut self, item: &Arc<Item>, nominator: Nominator, most: usize) -> Option<&mut Candidate> {
        let known = self.places.get(&item.product.id).copied();
        let place = match known {
            Some(place) => place,
            None if self.candidates.len() >= most => return None,
            None => {
                self.places.insert(item.product.id.clone(), self.candidates.len());
                self.candidates.push(Candidate {
                    item: item.clone(),
                    of: 0,
                    relevance: f64::NAN,
                    keyword: 0.0,
                    embedding: 0.0,
                    dearness: 0.5,
                    anchor: 0.0,
                });
                self.candidates.len() - 1
            }
        };
        let candidate = &mut self.candidates[place];
        candidate.of |= nominator.bit();
        Some(candidate)
    }

    /// The page's own products, which were found relevant when it was made. They came by its keywords.
    pub(crate) fn add_own(&mut self, placement: &Placement, items: &[Arc<Item>]) {
        let scores: HashMap<&str, f64> = placement.products.iter().map(|shown| (shown.product.as_str(), shown.score)).collect();
        for item in items {
            let score = scores.get(item.product.id.as_str()).copied().unwrap_or(0.0);
            if let Some(candidate) = self.add(item, Nominator::Keyword, usize::MAX) {
                candidate.relevance = score;
            }
        }
    }

    /// The pool of those that were found relevant.
    pub(crate) fn pool(mut self, placement: &Placement, is_whole: bool) -> Pool {
        self.candidates.retain(|candidate| candidate.relevance.is_finite());
        let prices: Vec<i64> = self.candidates.iter().filter_map(|candidate| candidate.item.product.price_cents).collect();
        let mean = prices.iter().sum::<i64>() as f64 / prices.len().max(1) as f64;
        let anchor = placement.theme.concepts.first().map(|concept| concept.trim().to_lowercase());
        for candidate in &mut self.candidates {
            let product = &candidate.item.product;
            if let Some(price) = product.price_cents.filter(|price| *price >= 0 && mean > 0.0) {
                candidate.dearness = price as f64 / (price as f64 + mean);
            }
            candidate.anchor = f64::from(u8::from(product.shelves().any(|shelf| Some(shelf) == anchor.as_deref())));
        }
        Pool { candidates: self.candidates, is_whole }
    }
}

/// Pools in memory, for one version of the catalogue.
#[derive(Debug)]
pub(crate) struct Pools {
    pools_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    version: String,
    pools: HashMap<PoolKey, Arc<Pool>>,
    /// Keys in the order in which they came: the oldest goes first.
    order: VecDeque<PoolKey>,
    /// Keys whose pools are being completed.
    wanted: HashSet<PoolKey>,
    items: HashMap<String, Arc<Item>>,
}

impl Pools {
    pub(crate) fn new(pools_max: usize) -> Self {
        Self { pools_max, state: Mutex::default() }
    }

    /// The state for `version`: with another one, everything begins anew.
    fn at(&self, version: &str) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.version != version {
            *state = State { version: version.to_owned(), ..State::default() };
        }
        state
    }

    /// The pool of `key`.
    pub(crate) fn get(&self, market: &Snapshot, key: &PoolKey) -> Option<Arc<Pool>> {
        self.at(market.version()).pools.get(key).cloned()
    }

    /// Keeps `pool` under `key`, unless a whole one is there.
    pub(crate) fn put(&self, market: &Snapshot, key: PoolKey, pool: Arc<Pool>) {
        let mut state = self.at(market.version());
        if pool.is_whole {
            state.wanted.remove(&key);
        }
        if state.pools.get(&key).is_some_and(|known| known.is_whole) {
            return;
        }
        if state.pools.insert(key, pool).is_none() {
            state.order.push_back(key);
        }
        while state.pools.len() > self.pools_max {
            let Some(oldest) = state.order.pop_front() else { break };
            state.pools.remove(&oldest);
            if state.order.len().is_multiple_of(1_024) {
                state.items.retain(|_, item| Arc::strong_count(item) > 1);
            }
        }
    }

    /// Whether nobody has been asked to complete the pool of `key` yet; from now on somebody has.
    pub(crate) fn want(&self, market: &Snapshot, key: PoolKey) -> bool {
        self.at(market.version()).wanted.insert(key)
    }

    /// Nobody completes the pool of `key` after all.
    pub(crate) fn unwant(&self, market: &Snapshot, key: &PoolKey) {
        self.at(market.version()).wanted.remove(key);
    }

    /// The items of `products`, one for each product of the catalogue.
    pub(crate) fn items(&self, market: &Snapshot, products: Vec<Product>) -> Vec<Arc<Item>> {
        let mut state = self.at(market.version());
        let mut item = |product: Product| {
            if let Some(known) = state.items.get(&product.id) {
                return known.clone();
            }
            let (id, words) = (product.id.clone(), ProductWords::of(&product));
            let item = Arc::new(Item { product, words });
            state.items.insert(id, item.clone());
            item
        };
        products.into_iter().map(&mut item).collect()
    }

    /// What the page has of a placement: known to be relevant, and there at once.
    pub(crate) fn partial(&self, market: &Snapshot, placement: &Placement) -> Result<Pool, RankingError> {
        let ids: Vec<&str> = placement.products.iter().map(|shown| shown.product.as_str()).collect();
        let items = self.items(market, market.products(&ids).map_err(RankingError::market)?);
        let mut gathered = Gathered::default();
        gathered.add_own(placement, &items);
        Ok(gathered.pool(placement, false))
    }
}
