//! Completes pools beside the requests: what a placement's keywords, the terms near its theme and its shelves find, checked as the page's own
//! products were: diets, banned terms, age, stock, and relevance, by the cross-encoder's verdict from the cache or, once, from itself.

use std::{
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
use endcap_schemas::{Descriptor, Keyword, Product};

use crate::{
    RankingConfig, RankingError,
    features::Nominator,
    pool::{Gathered, Item, Pool, PoolKey, Pools, Wanted},
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

/// Where placements are handed in whose pools are to be completed.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    wanted: SyncSender<Wanted>,
}

impl Door {
    /// Asks for a pool, unless too many wait or somebody has asked already.
    pub(crate) fn ask(&self, pools: &Pools, market: &Snapshot, key: PoolKey, wanted: impl FnOnce() -> Wanted) {
        if pools.want(market, key) && self.wanted.try_send(wanted()).is_err() {
            pools.unwant(market, &key);
        }
    }
}

/// Completes pools, on a thread of its own.
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
    pub(crate) pools: Arc<Pools>,
    pub(crate) wanted: Receiver<Wanted>,
}

/// A door and what comes in by it.
pub(crate) fn door(config: &RankingConfig) -> (Door, Receiver<Wanted>) {
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
                Ok(wanted) => self.complete(&wanted),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Completes all that is wanted now.
    pub fn catch_up(&self) {
        while let Ok(wanted) = self.wanted.try_recv() {
            self.complete(&wanted);
        }
    }

    fn complete(&self, wanted: &Wanted) {
        let market = self.market.snapshot();
        match self.pool(wanted, &market) {
            Ok(pool) => self.pools.put(&market, wanted.key, Arc::new(pool)),
            Err(error) => {
                // Served from what the page has; the next request asks again.
                self.pools.unwant(&market, &wanted.key);
                tracing::warn!(%error, "cannot complete what may be nominated for a placement");
            }
        }
    }

    fn pool(&self, wanted: &Wanted, market: &Snapshot) -> Result<Pool, RankingError> {
        let placement = &wanted.placement;
        let ids: Vec<&str> = placement.products.iter().map(|shown| shown.product.as_str()).collect();
        let own = self.pools.items(market, market.products(&ids).map_err(RankingError::market)?);
        let mut gathered = Gathered::default();
        gathered.add_own(placement, &own);
        let filter = Filter::of_page(wanted.diets, &[]);
        // Each nominator has room for products that no other brings in.
        let (own, room) = (own.len(), self.config.pool_max.saturating_sub(own.len()));
        let (third, two_thirds) = (own + room / 3, own + room * 2 / 3);
        self.by_keyword(&placement.keywords, &filter, market, (&mut gathered, third))?;
        self.by_popularity(&placement.theme.concepts, &filter, market, (&mut gathered, two_thirds))?;
        self.by_embedding(wanted, &filter, market, (&mut gathered, own + room))?;
        self.judge(&prompts::theme_text(&placement.theme), &mut gathered)?;
        Ok(gathered.pool(placement, true))
    }

    /// What was found that may be shown, as far as can be told without a shopper.
    fn allowed(&self, found: Vec<Product>, filter: &Filter, market: &Snapshot) -> impl Iterator<Item = Arc<Item>> {
        let allowed = found.into_iter().filter(|product| filter.allows(product)).collect();
        self.pools.items(market, allowed).into_iter().filter(|item| !item.is_banned)
    }

    fn by_keyword(
        &self,
        keywords: &[Keyword],
        filter: &Filter,
        market: &Snapshot,
        (gathered, most): (&mut Gathered, usize),
    ) -> Result<(), RankingError> {
        for keyword in keywords {
            let found = market.products_for(keyword, filter, self.config.per_keyword_max).map_err(RankingError::market)?;
            for (place, item) in self.allowed(found, filter, market).enumerate() {
                if let Some(candidate) = gathered.add(&item, Nominator::Keyword, most) {
                    candidate.keyword = candidate.keyword.max(MATCH_HALF / (MATCH_HALF + place as f64));
                }
            }
        }
        Ok(())
    }

    fn by_popularity(
        &self,
        concepts: &[String],
        filter: &Filter,
        market: &Snapshot,
        (gathered, most): (&mut Gathered, usize),
    ) -> Result<(), RankingError> {
        for concept in concepts {
            let shelf = concept.trim().to_lowercase();
            let found = market.popular(&shelf, filter, self.config.per_keyword_max).map_err(RankingError::market)?;
            for item in self.allowed(found, filter, market) {
                gathered.add(&item, Nominator::Popularity, most);
            }
        }
        Ok(())
    }

    /// By the terms nearest to each concept that are not among the keywords.
    fn by_embedding(
        &self,
        wanted: &Wanted,
        filter: &Filter,
        market: &Snapshot,
        (gathered, most): (&mut Gathered, usize),
    ) -> Result<(), RankingError> {
        let concepts = &wanted.placement.theme.concepts;
        let asked = concepts.iter().map(|concept| Embed { text: concept.clone() }).collect();
        for answer in self.encoder.ask_all(asked) {
            let Embedding(vector) = match answer {
                Ok(embedding) => embedding,
                Err(error) if is_for_good(&error) => continue,
                Err(error) => return Err(RankingError::Model("encoder", error)),
            };
            let near = market.near(&vector, NEIGHBOURS + wanted.placement.keywords.len()).map_err(RankingError::market)?;
            let terms = market.terms(&near.iter().map(|near| near.term).collect::<Vec<_>>()).map_err(RankingError::market)?;
            let is_keyword = |text: &str| wanted.placement.keywords.iter().any(|keyword| keyword.text == text);
            let others = terms.into_iter().filter(|(_, term)| !is_keyword(&term.text)).take(NEIGHBOURS);
            for (id, term) in others {
                let cosine = near.iter().find(|near| near.term == id).map_or(0.0, |near| f64::from(near.cosine));
                let keyword = Keyword { id, text: term.text, descriptor: Descriptor::Query };
                let limit = self.config.per_keyword_max.div_ceil(NEIGHBOURS).max(4);
                let found = market.products_for(&keyword, filter, limit).map_err(RankingError::market)?;
                for item in self.allowed(found, filter, market) {
                    if let Some(candidate) = gathered.add(&item, Nominator::Embedding, most) {
                        candidate.embedding = candidate.embedding.max(cosine);
                    }
                }
            }
        }
        Ok(())
    }

    /// Fills in the relevance of what the page does not have. What is not found relevant, or can never be judged, stays without and falls out.
    fn judge(&self, theme_text: &str, gathered: &mut Gathered) -> Result<(), RankingError> {
        let judge = &self.judge;
        let mut open: Vec<_> = gathered.candidates.iter_mut().filter(|candidate| candidate.relevance.is_nan()).collect();
        let pairs: Vec<Pair> = open.iter().map(|candidate| pair(theme_text, &candidate.item.product)).collect();
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
        for (candidate, verdict) in open.iter_mut().zip(verdicts) {
            if let Some(probability) = verdict.filter(|probability| *probability >= self.threshold) {
                candidate.relevance = f64::from(probability);
            }
        }
        Ok(())
    }
}

/// Whether asking again would bring the same fault. Any other one passes: the pool is asked for again.
fn is_for_good(error: &ModelError) -> bool {
    matches!(error, ModelError::Request(_))
}
