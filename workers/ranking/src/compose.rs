//! From ranked placements to the storefront that is answered: the first rows are arranged as a whole, and each slate is sealed.

use endcap_ranker::linucb::Score;
use endcap_schemas::Diet;

use crate::{
    KeywordCard, Storefront, StorefrontPlacement, StorefrontProduct,
    features::Nominator,
    metric::Parts,
    rank::{Nominated, Ranked},
    rerank::{ARRANGED, Row, Seen, is_order},
    serving::Served,
    shopper::Shopper,
    slate::{Offered, Slate},
    storefront::{Carousel, Ground, Request, Shown},
};

/// What a storefront is composed with.
pub(crate) struct Composer<'a> {
    pub(crate) ground: &'a Ground,
    pub(crate) request: &'a Request,
    pub(crate) served: &'a Served,
    pub(crate) shopper: &'a Shopper,
    /// When it is served, ms since 1970.
    pub(crate) now_ms: i64,
}

impl Composer<'_> {
    pub(crate) fn storefront(&self, shown: &Shown, carousels: Vec<Carousel<'_>>, parts: &mut Parts) -> Storefront {
        let shuffled = carousels.iter().any(|carousel| carousel.ranked.shuffled);
        let numbered = carousels.into_iter().enumerate();
        let placements: Vec<StorefrontPlacement> =
            numbered.map(|(number, carousel)| self.placement(number, carousel, parts)).collect();
        Storefront {
            user: self.request.user.short(),
            request: self.request.id.clone(),
            persona: shown.page.persona.clone(),
            is_default: shown.published.is_none(),
            diets: self.shopper.diets().iter().map(Diet::words).collect(),
            context_ms: shown.published.map(|(context_ms, _)| context_ms),
            generation: shown.published.map(|(_, generation)| generation),
            policy: self.served.version,
            reranked: placements.iter().any(|placement| placement.reranked),
            shuffled,
            placements,
        }
    }

    /// The placement of this number. One that is shuffled is not arranged: its probabilities would be others then.
    fn placement(&self, number: usize, carousel: Carousel<'_>, parts: &mut Parts) -> StorefrontPlacement {
        let Carousel { placement, nominated, ranked } = carousel;
        let expected = ranked.expected();
        let Ranked { mut placed, shuffled } = ranked;
        let start = self.ground.clock.monotonic();
        let is_wanted = !shuffled && number < self.request.rerank.unwrap_or(self.ground.config.reranked_max);
        let reranked = is_wanted && self.arrange(&nominated, &mut placed);
        parts.rerank += self.ground.clock.monotonic().saturating_sub(start);
        let slate = self.slate(number, &nominated, &placed, shuffled);
        StorefrontPlacement {
            title: placement.theme.title.clone(),
            intent: placement.theme.intent.clone(),
            origin: placement.theme.origin,
            keywords: placement.keywords.iter().map(KeywordCard::of).collect(),
            expected,
            reranked,
            slate: slate.write(&self.ground.key),
            propensity: slate.propensity(),
            products: placed.iter().map(|(at, score)| nominated.product(*at, score, self.served.policy.exploration())).collect(),
        }
    }

    /// Puts the first products into the order of whatever arranges; says whether it did. What is no order of them changes nothing.
    fn arrange(&self, nominated: &Nominated<'_>, placed: &mut [(usize, Score)]) -> bool {
        let Some(rerank) = &self.ground.rerank else { return false };
        let first = placed.len().min(ARRANGED);
        let products = placed[..first].iter().map(|(at, score)| nominated.seen(*at, score)).collect();
        let Some(order) = rerank(&Row { budget: self.shopper.budget(), products }) else { return false };
        if !is_order(&order, first) {
            tracing::warn!(places = first, "a re-ranking is no order of the row and is left out");
            return false;
        }
        let arranged: Vec<(usize, Score)> = order.into_iter().map(|place| placed[place]).collect();
        placed[..first].copy_from_slice(&arranged);
        true
    }

    /// All that is learnt from: what is shown, in display order, then what was nominated beside it.
    fn slate(&self, number: usize, nominated: &Nominated<'_>, placed: &[(usize, Score)], shuffled: bool) -> Slate {
        let shown = placed.len();
        let mut is_shown = vec![false; nominated.offers.len()];
        placed.iter().for_each(|(at, _)| is_shown[*at] = true);
        let others = (0..nominated.offers.len()).filter(|at| !is_shown[*at]);
        let order = placed.iter().map(|(at, _)| *at).chain(others);
        let offers = order.enumerate().map(|(place, at)| nominated.offered(at, place < shown)).collect();
        let id = slate_id(&self.request.id, number as u64);
        Slate { id, served_ms: self.now_ms, policy: self.served.version, shuffled, shown, offers }
    }
}

impl Nominated<'_> {
    fn offered(&self, at: usize, is_shown: bool) -> Offered {
        let offer = &self.offers[at];
        let product = if is_shown { offer.candidate.found.item.product.id.clone() } else { String::new() };
        Offered { product, traits: offer.traits, nominators: offer.nominators }
    }

    fn seen(&self, at: usize, score: &Score) -> Seen<'_> {
        let offer = &self.offers[at];
        Seen { product: &offer.candidate.found.item.product, traits: offer.traits, expected: score.mean }
    }

    fn product(&self, at: usize, score: &Score, exploration: f64) -> StorefrontProduct {
        let offer = &self.offers[at];
        StorefrontProduct {
            card: offer.candidate.found.item.card.clone(),
            relevance: offer.candidate.found.relevance,
            score: score.mean,
            bonus: exploration * score.bonus,
            nominators: Nominator::of_mask(offer.nominators).map(Nominator::name).collect(),
        }
    }
}

/// The id of a request's slate of this number.
fn slate_id(request: &str, number: u64) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(request.as_bytes()).update(&[0]).update(&number.to_le_bytes());
    hasher.finalize().as_bytes()[..16].try_into().expect("a hash has 32 bytes")
}
