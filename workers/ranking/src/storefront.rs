//! A storefront: a shopper's page as it is shown now, each placement ranked for this request. Everything here may block.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use endcap_inference::{Embed, Embedding, Handle, Model, ModelError, Pair, Relevance};
use endcap_ranker::RankerError;
use endcap_retrieval::{Market, MarketError, PerVersion, Snapshot};
use endcap_runtime::{Clock, Policies, Store, StoreError};
use endcap_schemas::{ContextChanged, Page, PagePublished, Placement, Season, UserKey, wire};
use thiserror::Error;

use crate::{
    Checks, Preparer, RankingConfig, Rerank, Storefront, cold,
    compose::Composer,
    lookups::{CurrentLookups, key_of},
    metric::{self, Parts},
    pool::Pool,
    prepare::{Door, door},
    rank::{self, Nominated, Ranked},
    serving::Serving,
    shopper::Shopper,
    slate::Key,
};

/// What is known of a shopper beyond the page, read anew for each request; `None` for whoever has no history.
pub type History = Box<dyn Fn(&UserKey) -> Result<Option<ContextChanged>, StoreError> + Send + Sync>;

/// Why there is no storefront.
#[derive(Debug, Error)]
pub enum RankingError {
    /// The store does not answer, or holds what cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The catalogue cannot be read.
    #[error("cannot read the catalogue: {0}")]
    Market(String),
    /// The policy does not fit the features: a fault of this program.
    #[error("cannot rank: {0}")]
    Ranker(#[from] RankerError),
    /// A model does not answer.
    #[error("{0} does not answer: {1}")]
    Model(&'static str, #[source] ModelError),
}

impl RankingError {
    pub(crate) fn market(error: MarketError) -> Self {
        Self::Market(error.to_string())
    }
}

/// A request: whose storefront, and what its chances are drawn from.
#[derive(Debug, Clone)]
pub struct Request {
    /// Whose.
    pub user: UserKey,
    /// Its id, unlike that of any other request; chances follow from it, and the slates' ids.
    pub id: String,
    /// Placements, from the first on, that are to be arranged as a whole; `None` for as many as the settings say.
    pub rerank: Option<usize>,
}

/// What the service is made of.
pub struct Ground {
    /// Its settings.
    pub config: RankingConfig,
    /// The checks that nominations are held to.
    pub checks: Checks,
    /// The market.
    pub market: Market,
    /// Pages and verdicts.
    pub store: Arc<dyn Store>,
    /// Policies.
    pub policies: Arc<dyn Policies>,
    /// Shoppers' histories.
    pub history: History,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// What slates are sealed with.
    pub key: Key,
    /// What arranges rows as a whole, where something does.
    pub rerank: Option<Rerank>,
}

/// The ranking service.
pub struct Ranking {
    ground: Ground,
    serving: Serving,
    lookups: CurrentLookups,
    door: Door,
    cold: Mutex<PerVersion<Page>>,
    at_work: Arc<AtomicUsize>,
}

/// A storefront's place among those that are worked on at once; free again when it is dropped.
#[derive(Debug)]
pub struct Turn(Arc<AtomicUsize>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A page that is to be shown.
pub(crate) struct Shown {
    pub(crate) page: Arc<Page>,
    /// Context time, ms, and generation; none of the default page.
    pub(crate) published: Option<(i64, i32)>,
}

/// A placement on its way.
pub(crate) struct Carousel<'a> {
    pub(crate) placement: &'a Placement,
    pub(crate) nominated: Nominated<'a>,
    pub(crate) ranked: Ranked,
}

impl Ranking {
    /// The service, and what looks up beside it: to be run on a thread of its own.
    pub fn new<E, X>(ground: Ground, encoder: Handle<E>, judge: Handle<X>) -> (Self, Preparer<E, X>)
    where
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let (door, wanted) = door(&ground.config);
        let lookups = CurrentLookups::new(&ground.config, &ground.checks.banned);
        let preparer = Preparer {
            config: ground.config.clone(),
            threshold: ground.checks.threshold,
            market: ground.market.clone(),
            store: ground.store.clone(),
            encoder,
            judge,
            wanted,
        };
        let serving = Serving::new(ground.config.exploration);
        (Self { ground, serving, lookups, door, cold: Mutex::default(), at_work: Arc::default() }, preparer)
    }

    /// A turn, unless too many storefronts are worked on already: then whoever asks is better told so at once.
    pub fn enter(&self) -> Option<Turn> {
        let turn = Turn(self.at_work.clone());
        (self.at_work.fetch_add(1, Ordering::SeqCst) < self.ground.config.at_once_max).then_some(turn)
    }

    /// What its slates are sealed with.
    pub fn key(&self) -> &Key {
        &self.ground.key
    }

    /// Version of the policy that is served.
    pub fn policy_version(&self) -> i64 {
        self.serving.now().version
    }

    /// Takes up the newest policy that can be read; says whether there was a newer one. Requests go on meanwhile.
    ///
    /// # Errors
    /// When the store does not answer; then the policy stays.
    pub fn refresh(&self) -> Result<bool, StoreError> {
        self.serving.refresh(&*self.ground.policies)
    }

    /// The storefront of `request`.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn storefront(&self, request: &Request) -> Result<Storefront, RankingError> {
        let clock = &*self.ground.clock;
        let (start, mut parts) = (clock.monotonic(), Parts::default());
        let (market, served) = (self.ground.market.snapshot(), self.serving.now());
        let (shown, history) = self.read(&request.user, &market)?;
        let shopper = Shopper::of(history.as_ref(), shown.page.diets, &market, self.ground.clock.now_ms());
        parts.read = clock.monotonic().saturating_sub(start);
        let composer =
            Composer { ground: &self.ground, request, served: &served, shopper: &shopper, now_ms: self.ground.clock.now_ms() };
        let mut storefront = self.ranked(&composer, &shown, &market, &mut parts)?;
        if storefront.placements.is_empty() && !storefront.is_default {
            // Nothing of the page is left that may be shown: what everybody sees is better than nothing.
            let shown = Shown { page: self.cold(&market)?, published: None };
            storefront = self.ranked(&composer, &shown, &market, &mut parts)?;
        }
        parts.whole = clock.monotonic().saturating_sub(start);
        metric::served(if storefront.is_default { "default" } else { "page" }, &parts);
        Ok(storefront)
    }

    /// A page, ranked for the request of `composer`.
    fn ranked(
        &self,
        composer: &Composer<'_>,
        shown: &Shown,
        market: &Snapshot,
        parts: &mut Parts,
    ) -> Result<Storefront, RankingError> {
        let pools = self.pools(&shown.page, market, parts)?;
        let carousels = self.carousels(composer, &shown.page, &pools, parts)?;
        Ok(composer.storefront(shown, carousels, parts))
    }

    /// The shopper's page, in one read of the store, or the default one; and what else is known.
    fn read(&self, user: &UserKey, market: &Snapshot) -> Result<(Shown, Option<ContextChanged>), RankingError> {
        let stored = self.ground.store.page(user)?.and_then(|stored| stored.page);
        let history = (self.ground.history)(user)?;
        let published = stored.and_then(|bytes| match wire::decode::<PagePublished>(&bytes) {
            Ok(published) => Some(published),
            Err(error) => {
                tracing::warn!(%error, "a page cannot be read; showing the default one");
                None
            }
        });
        // A page stays until the next one is made; consent that was taken back counts at once.
        let wants_personal = history.as_ref().is_none_or(|history| history.brief.personalise);
        let may_show = |page: &Page| !page.placements.is_empty() && (wants_personal || !page.is_personal());
        let shown = match published.filter(|published| may_show(&published.page)) {
            Some(PagePublished { head, page }) => {
                Shown { page: Arc::new(page), published: Some((head.context_ms, head.generation)) }
            }
            None => Shown { page: self.cold(market)?, published: None },
        };
        Ok((shown, history))
    }

    fn cold(&self, market: &Snapshot) -> Result<Arc<Page>, RankingError> {
        let mut cold = self.cold.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.ground.clock.now_ms();
        let version = format!("{}/{}", market.catalogue_version(), Season::at(now_ms).word());
        cold.try_get(&version, || cold::page(market, &self.ground.config, now_ms))
    }

    /// The pool of each placement: what its page has, and what was found beside it; asked for where nobody has looked yet.
    fn pools(&self, page: &Page, market: &Snapshot, parts: &mut Parts) -> Result<Vec<Pool>, RankingError> {
        let start = self.ground.clock.monotonic();
        let lookups = self.lookups.of(market);
        let placements = &page.placements[..page.placements.len().min(self.ground.config.placements_max)];
        let own = placements.iter().flat_map(|placement| &placement.products).map(|shown| shown.product.as_str());
        let items = lookups.named(market, own).map_err(RankingError::market)?;
        let pool = |placement: &Placement| {
            let key = key_of(placement, page.diets);
            let found = lookups.found(&key);
            if found.is_none() {
                self.door.ask(&lookups, key, placement, page.diets);
            }
            metric::pool(found.is_some());
            Pool::of(placement, &items, found.as_deref().unwrap_or_default())
        };
        let pools = placements.iter().map(pool).collect();
        parts.nominate += self.ground.clock.monotonic().saturating_sub(start);
        Ok(pools)
    }

    /// Nominates and ranks; placements with too few products or a disliked word in their title are left out, and the most promising comes first.
    fn carousels<'a>(
        &self,
        composer: &Composer<'_>,
        page: &'a Page,
        pools: &'a [Pool],
        parts: &mut Parts,
    ) -> Result<Vec<Carousel<'a>>, RankingError> {
        let (config, clock, policy) = (&self.ground.config, &*self.ground.clock, &composer.served.policy);
        let (ties, mut carousels) = (seed_of(&composer.request.id), Vec::with_capacity(pools.len()));
        for (place, (placement, pool)) in page.placements.iter().zip(pools).enumerate() {
            if !composer.shopper.may_read(&placement.theme.title) {
                continue;
            }
            let start = clock.monotonic();
            let nominated = rank::nominate(policy, pool, composer.shopper, (place, placement), config, ties)?;
            let ranking = clock.monotonic();
            let ranked = rank::rank(policy, &nominated, config, ties)?;
            parts.nominate += ranking.saturating_sub(start);
            parts.rank += clock.monotonic().saturating_sub(ranking);
            if ranked.placed.len() >= config.products_min {
                carousels.push(Carousel { placement, nominated, ranked });
            }
        }
        // The sort is stable: equals stay in the page's order.
        carousels.sort_by(|a, b| b.ranked.expected().total_cmp(&a.ranked.expected()));
        Ok(carousels)
    }
}

/// What a request's chances follow from.
fn seed_of(request: &str) -> u64 {
    let hash = blake3::hash(request.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}
