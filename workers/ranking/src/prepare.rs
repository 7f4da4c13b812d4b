//! Looks up beside the requests what may be nominated for a placement: what its keywords, the terms near its theme and its shelves find, checked as
//! the page's own products were: diets, banned terms, age, stock, and relevance, by the cross-encoder's verdict from the cache or, once, from itself.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    time::Duration,
};

use endcap_inference::{
    Embed, Embedding, Handle, Model, ModelError, Pair, Relevance, prompts,
    verdicts::{CACHE, pair, probability_of, verdict_key},
};
use endcap_retrieval::{Filter, Market, Snapshot};
use endcap_runtime::{Shutdown, Store};
use endcap_schemas::{Descriptor, DietSet, Keyword, Placement, Product, Theme};

use crate::{
    RankingConfig, RankingError,
    features::Nominator,
    lookups::{LookupKey, Lookups},
    pool::{Found, Item},
};

/// Terms near a concept that are looked at.
const NEIGHBOURS: usize = 8;
/// Places of a keyword's list over which its match loses half of its weight.
const MATCH_HALF: f64 = 10.0;
/// How often the end is looked out for while nothing is to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The checks that pages are made under, and that nominations are held to.
#[derive(Debug, Clone)]
pub struct Checks {
    /// Terms that no product may have in its title.
    pub banned: Vec<String>,
    /// Probability from which a product is relevant.
    pub threshold: f32,
}

/// What is to be looked up.
#[derive(Debug)]
pub(crate) struct LookupRequest {
    key: LookupKey,
    theme: Theme,
    keywords: Vec<Keyword>,
    diets: DietSet,
    /// Where it is kept then.
    lookups: Arc<Lookups>,
}

/// Where it is handed in what is to be looked up.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    wanted: SyncSender<LookupRequest>,
}

impl Door {
    /// Asks for what may be nominated for `placement`, under `key`, unless too many wait or somebody has asked already.
    pub(crate) fn ask(&self, lookups: &Arc<Lookups>, key: LookupKey, placement: &Placement, diets: DietSet) {
        let wanted = || LookupRequest {
            key,
            theme: placement.theme.clone(),
            keywords: placement.keywords.clone(),
            diets,
            lookups: lookups.clone(),
        };
        if lookups.want(key) && self.wanted.try_send(wanted()).is_err() {
            lookups.unwant(&key);
        }
    }
}

/// Looks up what is wanted, on a thread of its own.
pub struct Preparer<E, X>
where
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    pub(crate) config: RankingConfig,
    /// Probability from which a product is relevant.
    pub(crate) threshold: f32,
    pub(crate) market: Market,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) encoder: Handle<E>,
    pub(crate) judge: Handle<X>,
    pub(crate) wanted: Receiver<LookupRequest>,
}

/// A door and what comes in by it.
pub(crate) fn door(config: &RankingConfig) -> (Door, Receiver<LookupRequest>) {
    let (wanted, receive) = sync_channel(config.preparing_max);
    (Door { wanted }, receive)
}

impl<E, X> Preparer<E, X>
where
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    /// Works until `shutdown`, or until nobody can ask any more.
    pub fn run(self, shutdown: &Shutdown) {
        while !shutdown.is_triggered() {
            match self.wanted.recv_timeout(LOOK_EVERY) {
                Ok(wanted) => self.answer(&wanted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Looks up all that is wanted now.
    pub fn catch_up(&self) {
        while let Ok(wanted) = self.wanted.try_recv() {
            self.answer(&wanted);
        }
    }

    fn answer(&self, wanted: &LookupRequest) {
        let market = self.market.snapshot();
        if !wanted.lookups.is_of(&market) {
            return; // of a catalogue that nobody is served from any more
        }
        let mut gathered = Gathered {
            lookups: &wanted.lookups,
            market: &market,
            filter: Filter::of_page(wanted.diets, &[]),
            all: Vec::new(),
            places: HashMap::new(),
        };
        match self.gather(wanted, &mut gathered).and_then(|()| self.judge(&prompts::theme_text(&wanted.theme), gathered.all)) {
            Ok(found) => wanted.lookups.keep(wanted.key, found),
            Err(error) => {
                // Served from what the page has; the next request asks again.
                wanted.lookups.unwant(&wanted.key);
                tracing::warn!(%error, "cannot look up what may be nominated for a placement");
            }
        }
    }

    /// Each nominator has room for products that no other brings in.
    fn gather(&self, wanted: &LookupRequest, gathered: &mut Gathered<'_>) -> Result<(), RankingError> {
        let RankingConfig { pool_max, per_keyword_max: per_keyword, products_max, .. } = self.config;
        // What keywords find first is on the page already.
        let most = |share: usize| products_max + pool_max.saturating_sub(products_max) * share / 3;
        for keyword in &wanted.keywords {
            for (place, item) in gathered.by_keyword(keyword, per_keyword)?.into_iter().enumerate() {
                if let Some(found) = gathered.add(item, Nominator::Keyword, most(1)) {
                    found.keyword = found.keyword.max(MATCH_HALF / (MATCH_HALF + place as f64));
                }
            }
        }
        for concept in &wanted.theme.concepts {
            for item in gathered.by_popularity(concept, per_keyword)? {
                gathered.add(item, Nominator::Popularity, most(2));
            }
        }
        for (term, cosine) in self.near(wanted, gathered.market)? {
            for item in gathered.by_keyword(&term, per_keyword.div_ceil(NEIGHBOURS).max(4))? {
                if let Some(found) = gathered.add(item, Nominator::Embedding, most(3)) {
                    found.embedding = found.embedding.max(cosine);
                }
            }
        }
        Ok(())
    }

    /// The terms nearest to each concept that are not among the keywords, with their cosines.
    fn near(&self, wanted: &LookupRequest, market: &Snapshot) -> Result<Vec<(Keyword, f64)>, RankingError> {
        let asked = wanted.theme.concepts.iter().map(|concept| Embed { text: concept.clone() }).collect();
        let mut all = Vec::new();
        for answer in self.encoder.ask_all(asked) {
            let Embedding(vector) = match answer {
                Ok(embedding) => embedding,
                Err(error) if is_for_good(&error) => continue,
                Err(error) => return Err(RankingError::Model("encoder", error)),
            };
            let near = market.near(&vector, NEIGHBOURS + wanted.keywords.len()).map_err(RankingError::market)?;
            let terms = market.terms(&near.iter().map(|near| near.term).collect::<Vec<_>>()).map_err(RankingError::market)?;
            let is_keyword = |text: &str| wanted.keywords.iter().any(|keyword| keyword.text == text);
            let others = terms.into_iter().filter(|(_, term)| !is_keyword(&term.text)).take(NEIGHBOURS);
            all.extend(others.map(|(id, term)| {
                let cosine = near.iter().find(|near| near.term == id).map_or(0.0, |near| f64::from(near.cosine));
                (Keyword { id, text: term.text, descriptor: Descriptor::Query }, cosine)
            }));
        }
        Ok(all)
    }

    /// Those that are relevant. What can never be judged falls out.
    fn judge(&self, theme_text: &str, mut gathered: Vec<Found>) -> Result<Vec<Found>, RankingError> {
        let judge = &self.judge;
        let pairs: Vec<Pair> = gathered.iter().map(|found| pair(theme_text, &found.item.product)).collect();
        let keys: Vec<[u8; 32]> = pairs.iter().map(|pair| verdict_key(pair, judge.version())).collect();
        let known = self.store.cached(CACHE, &keys)?;
        let mut verdicts: Vec<Option<f32>> = known.iter().map(|bytes| bytes.as_deref().and_then(probability_of)).collect();
        let missing: Vec<usize> = (0..verdicts.len()).filter(|at| verdicts[*at].is_none()).collect();
        let answers = judge.ask_all(missing.iter().map(|at| pairs[*at].clone()).collect());
        let (mut remembered, mut fault) = (Vec::with_capacity(missing.len()), None);
        for (at, answer) in missing.into_iter().zip(answers) {
            match answer {
                Ok(relevance) => {
                    verdicts[at] = Some(relevance.probability);
                    remembered.push((keys[at], relevance.probability.to_le_bytes().to_vec()));
                }
                Err(error) if is_for_good(&error) => {}
                Err(error) => fault = Some(error),
            }
        }
        self.store.remember(CACHE, &remembered)?;
        if let Some(error) = fault {
            return Err(RankingError::Model("cross-encoder", error));
        }
        let mut verdicts = verdicts.into_iter();
        gathered.retain_mut(|found| {
            let verdict = verdicts.next().flatten();
            found.relevance = verdict.map_or(0.0, f64::from);
            verdict.is_some_and(|probability| probability >= self.threshold)
        });
        Ok(gathered)
    }
}

/// What was gathered for a placement, each product once; not judged yet.
struct Gathered<'a> {
    lookups: &'a Lookups,
    market: &'a Snapshot,
    filter: Filter,
    all: Vec<Found>,
    places: HashMap<String, usize>,
}

impl Gathered<'_> {
    /// `item`, which `nominator` may bring in; not where it is new and there are `most` already.
    fn add(&mut self, item: Arc<Item>, nominator: Nominator, most: usize) -> Option<&mut Found> {
        let place = match self.places.get(&item.product.id) {
            Some(place) => *place,
            None if self.all.len() >= most => return None,
            None => {
                self.places.insert(item.product.id.clone(), self.all.len());
                self.all.push(Found { item, of: 0, relevance: 0.0, keyword: 0.0, embedding: 0.0 });
                self.all.len() - 1
            }
        };
        let found = &mut self.all[place];
        found.of |= nominator.bit();
        Some(found)
    }

    fn by_keyword(&self, keyword: &Keyword, most: usize) -> Result<Vec<Arc<Item>>, RankingError> {
        self.market.products_for(keyword, &self.filter, most).map(|found| self.allowed(found)).map_err(RankingError::market)
    }

    fn by_popularity(&self, concept: &str, most: usize) -> Result<Vec<Arc<Item>>, RankingError> {
        let shelf = concept.trim().to_lowercase();
        self.market.popular(&shelf, &self.filter, most).map(|found| self.allowed(found)).map_err(RankingError::market)
    }

    /// What was found that may be shown, as far as can be told without a shopper.
    fn allowed(&self, found: Vec<Product>) -> Vec<Arc<Item>> {
        let allowed = found.into_iter().filter(|product| self.filter.allows(product));
        allowed.map(|product| self.lookups.item(product)).filter(|item| !item.is_banned).collect()
    }
}

/// Whether asking again would bring the same fault. Any other one passes: the next request asks for it again.
fn is_for_good(error: &ModelError) -> bool {
    matches!(error, ModelError::Request(_))
}
