//! From a pool to a slate: nominators choose, the ranker orders. Pure.

use endcap_ranker::{
    RankerError,
    linucb::{self, Score, TwoStage},
};
use endcap_schemas::{Origin, Placement};

use crate::{
    RankingConfig,
    features::{Nominator, TRAITS, Traits, at},
    pool::{Candidate, Pool},
    rerank::ARRANGED,
    shopper::Shopper,
};

/// What was nominated for a placement, with what the policy sees of it.
pub(crate) struct Nominated<'a> {
    pub(crate) offers: Vec<NominatedOffer<'a>>,
}

/// One offer.
pub(crate) struct NominatedOffer<'a> {
    pub(crate) candidate: &'a Candidate,
    pub(crate) traits: Traits,
    pub(crate) nominators: u8,
    item: linucb::Item,
}

/// A slate in display order.
pub(crate) struct Ranked {
    /// Places among the nominated offers, each with what the ranker thinks of it.
    pub(crate) placed: Vec<(usize, Score)>,
    /// Whether it was shuffled.
    pub(crate) shuffled: bool,
}

impl Ranked {
    /// What the placement is expected to bring: the mean expected reward of as many of its best products as are in sight first. It does not
    /// depend on their order: where a shuffled slate stands on the page says nothing of its shuffle.
    pub(crate) fn expected(&self) -> f64 {
        let mut means: Vec<f64> = self.placed.iter().map(|(_, score)| score.mean).collect();
        means.sort_unstable_by(|a, b| b.total_cmp(a));
        means.truncate(ARRANGED);
        means.iter().sum::<f64>() / means.len().max(1) as f64
    }
}

/// Lets every nominator choose from `pool` for `shopper`; only what is not banned and the shopper may have is looked at. `place` is that of the placement on the
/// page, `ties` the request's seed.
///
/// # Errors
/// When the policy takes other features than these.
pub(crate) fn nominate<'a>(
    policy: &TwoStage,
    pool: &'a Pool,
    shopper: &Shopper,
    (place, placement): (usize, &Placement),
    config: &RankingConfig,
    ties: u64,
) -> Result<Nominated<'a>, RankerError> {
    let mut offers: Vec<NominatedOffer<'_>> = Vec::with_capacity(pool.candidates.len());
    for candidate in &pool.candidates {
        let item = &candidate.found.item;
        if !item.is_banned && shopper.may_have(item) {
            let traits = traits(candidate, shopper, place, placement.theme.origin);
            offers.push(NominatedOffer { candidate, traits, nominators: 0, item: to_nominate(candidate, &traits) });
        }
    }
    for nominator in Nominator::ALL {
        let own: Vec<usize> =
            (0..offers.len()).filter(|at| may_bring(nominator, offers[*at].candidate, &offers[*at].traits)).collect();
        let pool: Vec<&linucb::Item> = own.iter().map(|at| &offers[*at].item).collect();
        for chosen in policy.nominate(nominator as usize, &pool, config.nominations_max, ties)? {
            offers[own[chosen]].nominators |= nominator.bit();
        }
    }
    offers.retain(|offer| offer.nominators != 0);
    offers.iter_mut().for_each(|offer| offer.item.ranker = offer.traits.ranker());
    Ok(Nominated { offers })
}

/// Orders what was nominated.
///
/// # Errors
/// When the policy takes other features than these.
pub(crate) fn rank(
    policy: &TwoStage,
    nominated: &Nominated<'_>,
    config: &RankingConfig,
    ties: u64,
) -> Result<Ranked, RankerError> {
    let items: Vec<&linucb::Item> = nominated.offers.iter().map(|offer| &offer.item).collect();
    let slate = policy.rank(&items, config.products_max, config.shuffled, ties)?;
    let placed = slate.placed.iter().map(|placed| (placed.candidate, placed.score)).collect();
    Ok(Ranked { placed, shuffled: slate.propensity.is_some() })
}

/// The candidate as those see it that may nominate it. The ranker sees only what was nominated: most is not, and its features are the most.
fn to_nominate(candidate: &Candidate, traits: &Traits) -> linucb::Item {
    let seen = |nominator| if may_bring(nominator, candidate, traits) { nominator.features(traits) } else { Vec::new() };
    linucb::Item { id: candidate.found.item.number, ranker: Vec::new(), nominators: Nominator::ALL.map(seen).to_vec() }
}

/// Whether a candidate is in a nominator's pool. That of the history is the shopper's own: what was bought, and what stands on favourite shelves.
fn may_bring(nominator: Nominator, candidate: &Candidate, traits: &Traits) -> bool {
    match nominator {
        Nominator::History => traits.0[at::AFFINITY] > 0 || traits.0[at::BOUGHT] > 0,
        _ => candidate.found.of & nominator.bit() != 0,
    }
}

fn traits(candidate: &Candidate, shopper: &Shopper, place: usize, origin: Origin) -> Traits {
    let found = &candidate.found;
    let item = &found.item;
    let (bought, recency) = shopper.bought(item);
    let mut values = [0.0; TRAITS];
    values[at::AFFINITY] = shopper.affinity(item);
    values[at::DEPARTMENT] = shopper.department(item);
    values[at::BOUGHT] = bought;
    values[at::RECENCY] = recency;
    values[at::BUDGET] = shopper.suits(candidate.dearness);
    values[at::POPULARITY] = f64::from(item.product.popularity);
    values[at::DEARNESS] = candidate.dearness;
    values[at::RELEVANCE] = found.relevance;
    values[at::KEYWORD] = found.keyword;
    values[at::EMBEDDING] = found.embedding;
    values[at::ANCHOR] = candidate.anchor;
    values[at::PLACE] = 1.0 / (1.0 + place as f64);
    values[at::MERCHANDISED] = f64::from(u8::from(origin != Origin::Model));
    values[at::PERSONAL] = f64::from(u8::from(shopper.is_known()));
    Traits::of(values)
}
