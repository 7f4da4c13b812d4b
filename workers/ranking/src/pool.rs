//! What nominators choose from: for each placement of a page, the products that its keywords, the terms near its theme and its shelves find, as far
//! as they pass the checks that the page's own products passed. Nothing here depends on the shopper but the page's diets.
//!
//! [`Pools`] keeps pools in memory, for one version of the catalogue. What a page has of a placement is a pool at once; the rest is looked up, and
//! judged, beside the requests (`prepare`).

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use endcap_retrieval::{Banned, ProductWords, Snapshot};
use endcap_schemas::{DietSet, Placement, Product};

use crate::{RankingError, features::Nominator};

/// A product with what is looked at over and over.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) product: Product,
    pub(crate) words: ProductWords,
    /// Whether its title has a banned term.
    pub(crate) is_banned: bool,
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

/// Items that no pool holds any more are let go after so many pools.
const ITEMS_SWEPT_EVERY: usize = 1_024;

/// Pools in memory, for one version of the catalogue: that of the latest request. What is completed for another one is for nobody.
#[derive(Debug)]
pub(crate) struct Pools {
    pools_max: usize,
    banned: Banned,
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
    /// Pools that went.
    evicted: usize,
}

impl State {
    fn put(&mut self, key: PoolKey, pool: Arc<Pool>, pools_max: usize) {
        if pool.is_whole {
            self.wanted.remove(&key);
        }
        if self.pools.get(&key).is_some_and(|known| known.is_whole) {
            return;
        }
        if self.pools.insert(key, pool).is_none() {
            self.order.push_back(key);
        }
        while self.pools.len() > pools_max {
            let Some(oldest) = self.order.pop_front() else { break };
            self.pools.remove(&oldest);
            self.evicted += 1;
            if self.evicted.is_multiple_of(ITEMS_SWEPT_EVERY) {
                self.items.retain(|_, item| Arc::strong_count(item) > 1);
            }
        }
    }
}

impl Pools {
    pub(crate) fn new(pools_max: usize, banned: &[String]) -> Self {
        Self { pools_max, banned: Banned::new(banned), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, if it is of `market`.
    fn of(&self, market: &Snapshot) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| state.version == market.version())
    }

    /// The pool of `key`, for a request. With another catalogue than that of the last request everything begins anew.
    pub(crate) fn get(&self, market: &Snapshot, key: &PoolKey) -> Option<Arc<Pool>> {
        let mut state = self.lock();
        if state.version != market.version() {
            *state = State { version: market.version().to_owned(), ..State::default() };
        }
        state.pools.get(key).cloned()
    }

    /// Keeps `pool` under `key`, unless a whole one is there.
    pub(crate) fn put(&self, market: &Snapshot, key: PoolKey, pool: Arc<Pool>) {
        if let Some(mut state) = self.of(market) {
            state.put(key, pool, self.pools_max);
        }
    }

    /// Whether nobody has been asked to complete the pool of `key` yet; from now on somebody has.
    pub(crate) fn want(&self, market: &Snapshot, key: PoolKey) -> bool {
        self.of(market).is_some_and(|mut state| state.wanted.insert(key))
    }

    /// Nobody completes the pool of `key` after all.
    pub(crate) fn unwant(&self, market: &Snapshot, key: &PoolKey) {
        if let Some(mut state) = self.of(market) {
            state.wanted.remove(key);
        }
    }

    /// The items of `products`, one for each product of the catalogue.
    pub(crate) fn items(&self, market: &Snapshot, products: Vec<Product>) -> Vec<Arc<Item>> {
        let mut state = self.of(market);
        let mut item = |product: Product| {
            if let Some(known) = state.as_ref().and_then(|state| state.items.get(&product.id)) {
                return known.clone();
            }
            let (id, words) = (product.id.clone(), ProductWords::of(&product));
            let is_banned = self.banned.holds(&product);
            let item = Arc::new(Item { product, words, is_banned });
            if let Some(state) = &mut state {
                state.items.insert(id, item.clone());
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn item(id: &str) -> Arc<Item> {
        let product = Product {
            id: id.to_owned(),
            name: id.to_owned(),
            brand: String::new(),
            size: String::new(),
            category_path: Vec::new(),
            price_cents: None,
            popularity: 0.0,
            violates: DietSet::NONE,
            age_restricted: false,
            in_stock: true,
        };
        Arc::new(Item { words: ProductWords::of(&product), product, is_banned: false })
    }

    /// A pool of one product.
    fn pool(item: &Arc<Item>, is_whole: bool) -> Arc<Pool> {
        let mut gathered = Gathered::default();
        gathered.add(item, Nominator::Keyword, 1).expect("room for one");
        Arc::new(Pool { candidates: gathered.candidates, is_whole })
    }

    fn key(number: usize) -> PoolKey {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key
    }

    #[test]
    fn a_whole_pool_is_kept_and_a_partial_one_gives_way_to_it() {
        let (tea, jam, mut state) = (item("tea"), item("jam"), State::default());
        state.wanted.insert(key(1));
        for (pool, is_whole) in [(pool(&tea, false), false), (pool(&jam, true), true), (pool(&tea, false), true)] {
            state.put(key(1), pool, 10);
            assert_eq!((state.pools[&key(1)].is_whole, state.wanted.is_empty()), (is_whole, is_whole));
        }
        assert_eq!((state.pools[&key(1)].candidates[0].item.product.id.as_str(), state.order.len()), ("jam", 1));
    }

    #[test]
    fn the_oldest_pools_go_and_so_do_the_items_that_no_other_holds() {
        let mut state = State::default();
        for number in 0..2 * ITEMS_SWEPT_EVERY {
            let own = item(&format!("{number}"));
            state.items.insert(own.product.id.clone(), own.clone());
            state.put(key(number), pool(&own, true), 3);
        }
        assert_eq!((state.pools.len(), state.order.len()), (3, 3));
        assert!((2 * ITEMS_SWEPT_EVERY - 3..2 * ITEMS_SWEPT_EVERY).all(|number| state.pools.contains_key(&key(number))));
        assert!(state.items.len() <= ITEMS_SWEPT_EVERY + 3, "{} items are kept", state.items.len());
    }
}
