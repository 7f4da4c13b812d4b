//! A storefront: a shopper's page as it is shown now, each placement ranked for this request. Everything here may block.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use endcap_inference::{Embed, Embedding, Handle, Model, ModelError, Pair, Relevance};
use endcap_ranker::{RankerError, linucb::Score};
use endcap_retrieval::{Market, MarketError, PerVersion, Snapshot};
use endcap_runtime::{Clock, Policies, Store, StoreError};
use endcap_schemas::{ContextChanged, Keyword, Page, PagePublished, Placement, Season, UserKey, wire};
use thiserror::Error;

use crate::{
    Checks, Preparer, RankingConfig, Storefront, StorefrontKeyword, StorefrontPlacement, StorefrontProduct, cold,
    features::Nominator,
    metric::{self, Parts},
    pool::{Pool, Pools, Wanted, key_of},
    prepare::{Door, door},
    rank::{self, Nominated, Ranked},
    serving::{Served, Serving},
    shopper::Shopper,
    slate::{Key, Offered, Slate},
};

/// What is known of a shopper beyond the page, read anew for each request; `None` for whoever has no history.
pub type History = Box<dyn Fn(&UserKey) -> Result<Option<ContextChanged>, StoreError> + Send + Sync>;

/// Re-ranks the offers of a slate, which come in the ranker's order, each with its traits: answers the places in the order in which they are to
/// be shown, or `None` to leave them. The border at which a model of whole slates comes in.
pub type Rerank = Box<dyn Fn(&[Offered]) -> Option<Vec<usize>> + Send + Sync>;

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
    /// What re-ranks slates, where something does.
    pub rerank: Option<Rerank>,
}

/// The ranking service.
pub struct Ranking {
    ground: Ground,
    serving: Serving,
    pools: Arc<Pools>,
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
struct Shown {
    page: Arc<Page>,
    published: Option<(i64, i32)>,
}

/// A placement on its way.
struct Carousel<'a> {
    placement: &'a Placement,
    nominated: Nominated<'a>,
    ranked: Ranked,
}

impl Ranking {
    /// The service, and what completes its pools: to be run on a thread of its own.
    pub fn new<E, X>(ground: Ground, encoder: Handle<E>, judge: Handle<X>) -> (Self, Preparer<E, X>)
    where
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let (door, wanted) = door(&ground.config);
        let pools = Arc::new(Pools::new(ground.config.pools_max));
        let preparer = Preparer {
            config: ground.config.clone(),
            checks: ground.checks.clone(),
            market: ground.market.clone(),
            store: ground.store.clone(),
            encoder,
            judge,
            pools: pools.clone(),
            wanted,
        };
        let serving = Serving::new(ground.config.exploration);
        (Self { ground, serving, pools, door, cold: Mutex::default(), at_work: Arc::default() }, preparer)
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
        let pools = self.pools(&shown.page, &market, &mut parts)?;
        let carousels = self.carousels(request, &shown.page, &pools, &shopper, &served, &mut parts)?;
        let mut storefront = self.answer(request, &shown, &shopper, &served, carousels, &mut parts);
        if storefront.placements.is_empty() && !storefront.is_default {
            // Nothing of the page is left that may be shown: what everybody sees is better than nothing.
            storefront = self.default_storefront(request, &shopper, &served, &market, &mut parts)?;
        }
        parts.whole = clock.monotonic().saturating_sub(start);
        metric::served(if storefront.is_default { "default" } else { "page" }, &parts);
        Ok(storefront)
    }

    fn default_storefront(
        &self,
        request: &Request,
        shopper: &Shopper,
        served: &Served,
        market: &Snapshot,
        parts: &mut Parts,
    ) -> Result<Storefront, RankingError> {
        let shown = Shown { page: self.cold(market)?, published: None };
        let pools = self.pools(&shown.page, market, parts)?;
        let carousels = self.carousels(request, &shown.page, &pools, shopper, served, parts)?;
        Ok(self.answer(request, &shown, shopper, served, carousels, parts))
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

    /// The pool of each placement: what is at hand, and asked for where it is not whole.
    fn pools(&self, page: &Page, market: &Snapshot, parts: &mut Parts) -> Result<Vec<Arc<Pool>>, RankingError> {
        let start = self.ground.clock.monotonic();
        let mut pools = Vec::with_capacity(page.placements.len());
        for placement in page.placements.iter().take(self.ground.config.placements_max) {
            let key = key_of(placement, page.diets);
            let pool = match self.pools.get(market, &key) {
                Some(pool) => pool,
                None => {
                    let pool = Arc::new(self.pools.partial(market, placement)?);
                    self.pools.put(market, key, pool.clone());
                    pool
                }
            };
            if !pool.is_whole {
                self.door.ask(&self.pools, market, key, || Wanted::of(key, placement, page.diets));
            }
            metric::pool(pool.is_whole);
            pools.push(pool);
        }
        parts.nominate += self.ground.clock.monotonic().saturating_sub(start);
        Ok(pools)
    }

    /// Nominates and ranks; placements with too few products are left out, and the most promising comes first.
    fn carousels<'a>(
        &self,
        request: &Request,
        page: &'a Page,
        pools: &'a [Arc<Pool>],
        shopper: &Shopper,
        served: &Served,
        parts: &mut Parts,
    ) -> Result<Vec<Carousel<'a>>, RankingError> {
        let (config, clock, policy) = (&self.ground.config, &*self.ground.clock, &served.policy);
        let (ties, mut carousels) = (seed_of(&request.id), Vec::with_capacity(pools.len()));
        for (place, (placement, pool)) in page.placements.iter().zip(pools).enumerate() {
            let start = clock.monotonic();
            let nominated = rank::nominate(policy, pool, shopper, (place, placement), config, ties)?;
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

    fn answer(
        &self,
        request: &Request,
        shown: &Shown,
        shopper: &Shopper,
        served: &Served,
        carousels: Vec<Carousel<'_>>,
        parts: &mut Parts,
    ) -> Storefront {
        let (now_ms, mut reranked) = (self.ground.clock.now_ms(), false);
        let shuffled = carousels.iter().any(|carousel| carousel.ranked.shuffled);
        let placements = (0_u64..)
            .zip(carousels)
            .map(|(number, carousel)| {
                let id = slate_id(&request.id, number);
                let (placement, is_reranked) = self.placement(carousel, id, now_ms, served.version, parts);
                reranked |= is_reranked;
                placement
            })
            .collect();
        Storefront {
            user: short(&request.user),
            request: request.id.clone(),
            persona: shown.page.persona.clone(),
            is_default: shown.published.is_none(),
            diets: shopper.diets().iter().map(endcap_schemas::Diet::words).collect(),
            context_ms: shown.published.map(|(context_ms, _)| context_ms),
            generation: shown.published.map(|(_, generation)| generation),
            policy: served.version,
            reranked,
            shuffled,
            placements,
        }
    }

    /// A placement as it is shown, and whether it was re-ranked. A shuffled one never is: its odds would be others then.
    fn placement(
        &self,
        carousel: Carousel<'_>,
        id: [u8; 16],
        served_ms: i64,
        policy: i64,
        parts: &mut Parts,
    ) -> (StorefrontPlacement, bool) {
        let Carousel { placement, nominated, ranked } = carousel;
        let expected = ranked.expected();
        let Ranked { mut placed, shuffled } = ranked;
        let start = self.ground.clock.monotonic();
        let reranked = !shuffled && self.rerank(&nominated, &mut placed);
        parts.rerank += self.ground.clock.monotonic().saturating_sub(start);
        let shown = placed.len();
        let is_shown: Vec<bool> = {
            let mut is_shown = vec![false; nominated.offers.len()];
            placed.iter().for_each(|(at, _)| is_shown[*at] = true);
            is_shown
        };
        let others = (0..nominated.offers.len()).filter(|at| !is_shown[*at]);
        let order = placed.iter().map(|(at, _)| *at).chain(others);
        let offers = order.enumerate().map(|(place, at)| nominated.offered(at, place < shown)).collect();
        let slate = Slate { id, served_ms, policy, shuffled, shown, offers };
        let keyword =
            |Keyword { text, descriptor, .. }: &Keyword| StorefrontKeyword { text: text.clone(), descriptor: *descriptor };
        let placement = StorefrontPlacement {
            title: placement.theme.title.clone(),
            intent: placement.theme.intent.clone(),
            origin: placement.theme.origin,
            keywords: placement.keywords.iter().map(keyword).collect(),
            expected,
            slate: slate.write(&self.ground.key),
            propensity: slate.propensity(),
            products: placed.iter().map(|(at, score)| nominated.product(*at, score)).collect(),
        };
        (placement, reranked)
    }

    /// Puts `placed` into the order of whatever re-ranks; says whether it did. What is no order of all places changes nothing.
    fn rerank(&self, nominated: &Nominated<'_>, placed: &mut Vec<(usize, Score)>) -> bool {
        let Some(rerank) = &self.ground.rerank else { return false };
        let offered: Vec<Offered> = placed.iter().map(|(at, _)| nominated.offered(*at, true)).collect();
        let Some(order) = rerank(&offered) else { return false };
        let mut sorted = order.clone();
        sorted.sort_unstable();
        if sorted != (0..placed.len()).collect::<Vec<_>>() {
            tracing::warn!(places = placed.len(), "a re-ranking is no order of the slate and is left out");
            return false;
        }
        *placed = order.into_iter().map(|place| placed[place]).collect();
        true
    }
}

impl Nominated<'_> {
    fn offered(&self, at: usize, is_shown: bool) -> Offered {
        let offer = &self.offers[at];
        let product = if is_shown { offer.candidate.item.product.id.clone() } else { String::new() };
        Offered { product, traits: offer.traits, nominators: offer.nominators }
    }

    fn product(&self, at: usize, score: &Score) -> StorefrontProduct {
        let offer = &self.offers[at];
        let product = &offer.candidate.item.product;
        StorefrontProduct {
            id: product.id.clone(),
            name: product.name.clone(),
            brand: product.brand.clone(),
            size: product.size.clone(),
            price_cents: product.price_cents,
            category: product.category().to_owned(),
            department: product.category_path.first().cloned().unwrap_or_default(),
            relevance: offer.candidate.relevance,
            score: score.mean,
            bonus: score.bonus,
            nominators: Nominator::of_mask(offer.nominators).map(Nominator::name).collect(),
        }
    }
}

/// `user` of the default tenant, else `tenant/user`.
fn short(user: &UserKey) -> String {
    if user.tenant == UserKey::DEFAULT_TENANT && !user.user.contains('/') { user.user.clone() } else { user.to_string() }
}

/// What a request's chances follow from.
fn seed_of(request: &str) -> u64 {
    let hash = blake3::hash(request.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// The id of a request's slate of this number.
fn slate_id(request: &str, number: u64) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(request.as_bytes()).update(&[0]).update(&number.to_le_bytes());
    hasher.finalize().as_bytes()[..16].try_into().expect("a hash has 32 bytes")
}
