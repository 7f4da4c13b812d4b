//! What the policy sees of a shopper, a product and a placement: the one place that says what each number means.
//!
//! Everything that is known of an offer is told in [`TRAITS`] numbers of one byte each, 0 for 0 and 255 for 1. They are rounded before anything is
//! scored and travel with the slate, so that whoever learns sees to the bit what whoever served saw, without page, catalogue or shopper at hand.
//!
//! | trait | of | is |
//! |---|---|---|
//! | `AFFINITY` | shopper, product | weight of the product's best shelf among the favourites, as a share of the greatest |
//! | `DEPARTMENT` | shopper, product | share of the favourites' weight in the product's department |
//! | `BOUGHT` | shopper, product | 1 − 2⁻ⁿ after n purchases of the product |
//! | `RECENCY` | shopper, product | halved every 30 days since its last purchase; 0 without one |
//! | `BUDGET` | shopper, product | how well its price suits the household's budget |
//! | `POPULARITY` | product | how much it sells |
//! | `DEARNESS` | product | price ÷ (price + mean price of the placement's candidates); ½ where unknown |
//! | `RELEVANCE` | product, placement | probability of relevance, by the cross-encoder |
//! | `KEYWORD` | product, placement | 10 ÷ (10 + best place in a keyword's list); 0 where no keyword brought it, or the pool is not complete yet |
//! | `EMBEDDING` | product, placement | cosine of a concept of the theme and the term that brought it; 0 where none did |
//! | `ANCHOR` | product, placement | 1 on the shelf of the theme's first concept |
//! | `PLACE` | placement | 1 ÷ (1 + place on the page as it was made) |
//! | `MERCHANDISED` | placement | 1 where the merchandiser wrote it |
//! | `PERSONAL` | shopper | 1 where there is a history |
//!
//! φ, the ranker's features, are 1, the traits, and the products of the pairs in [`CROSSES`]: 48 numbers. φₙ, each nominator's own, are 1, some
//! traits and two products, see [`Nominator::features`]: 8 numbers. All lie within 0…1.

use endcap_ranker::linucb::{Item, LinUcb, Sync, TwoStage};

/// Version of what the traits and features mean. A policy of another version is not read.
pub const VERSION: u32 = 1;
/// Traits of an offer.
pub const TRAITS: usize = 14;

/// Places of the traits.
pub(crate) mod at {
    pub(crate) const AFFINITY: usize = 0;
    pub(crate) const DEPARTMENT: usize = 1;
    pub(crate) const BOUGHT: usize = 2;
    pub(crate) const RECENCY: usize = 3;
    pub(crate) const BUDGET: usize = 4;
    pub(crate) const POPULARITY: usize = 5;
    pub(crate) const DEARNESS: usize = 6;
    pub(crate) const RELEVANCE: usize = 7;
    pub(crate) const KEYWORD: usize = 8;
    pub(crate) const EMBEDDING: usize = 9;
    pub(crate) const ANCHOR: usize = 10;
    pub(crate) const PLACE: usize = 11;
    pub(crate) const MERCHANDISED: usize = 12;
    pub(crate) const PERSONAL: usize = 13;
}
use at::{
    AFFINITY, ANCHOR, BOUGHT, BUDGET, DEARNESS, DEPARTMENT, EMBEDDING, KEYWORD, MERCHANDISED, PERSONAL, PLACE, POPULARITY,
    RECENCY, RELEVANCE,
};

/// Pairs of traits whose product is a feature of the ranker: what is true of a product for one shopper and not for another, or on one
/// placement and not on another.
pub const CROSSES: [(usize, usize); 33] = [
    (AFFINITY, BOUGHT),
    (AFFINITY, RECENCY),
    (AFFINITY, BUDGET),
    (AFFINITY, POPULARITY),
    (AFFINITY, DEARNESS),
    (AFFINITY, RELEVANCE),
    (AFFINITY, KEYWORD),
    (AFFINITY, EMBEDDING),
    (AFFINITY, ANCHOR),
    (AFFINITY, PLACE),
    (AFFINITY, MERCHANDISED),
    (DEPARTMENT, POPULARITY),
    (DEPARTMENT, RELEVANCE),
    (DEPARTMENT, BUDGET),
    (DEPARTMENT, PLACE),
    (BOUGHT, RECENCY),
    (BOUGHT, POPULARITY),
    (BOUGHT, BUDGET),
    (BUDGET, DEARNESS),
    (BUDGET, POPULARITY),
    (BUDGET, RELEVANCE),
    (POPULARITY, DEARNESS),
    (POPULARITY, RELEVANCE),
    (POPULARITY, KEYWORD),
    (POPULARITY, PLACE),
    (RELEVANCE, KEYWORD),
    (RELEVANCE, EMBEDDING),
    (RELEVANCE, ANCHOR),
    (RELEVANCE, PLACE),
    (PERSONAL, POPULARITY),
    (PERSONAL, RELEVANCE),
    (PERSONAL, ANCHOR),
    (PERSONAL, PLACE),
];

/// Features of the ranker.
pub const RANKER_DIMS: usize = 1 + TRAITS + CROSSES.len();
/// Features of a nominator.
pub const NOMINATOR_DIMS: usize = 8;

/// λ of every stage: the bonus comes from it.
const LAMBDA: f64 = 1.0;
/// Precision of the prior: what is expected before anything was learnt counts as much as so many impressions along every axis.
const PRIOR_PRECISION: f64 = 10.0;
/// What is expected before anything was learnt, by trait: shoppers click what they like, what is theirs, and what sells.
const PRIOR: [(usize, f64); 4] = [(AFFINITY, 0.08), (BOUGHT, 0.04), (POPULARITY, 0.04), (RELEVANCE, 0.02)];

/// What is known of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traits(pub [u8; TRAITS]);

impl Traits {
    /// These values, each cut to 0…1; what is no number is 0.
    pub fn of(values: [f64; TRAITS]) -> Self {
        // A cast to a byte keeps within its range, and makes 0 of what is no number.
        Self(values.map(|value| (value * 255.0).round() as u8))
    }

    /// Those that travelled; `None` where they are not as many, or out of range.
    pub fn read(values: &[i32]) -> Option<Self> {
        let bytes: Vec<u8> = values.iter().map(|value| u8::try_from(*value).ok()).collect::<Option<_>>()?;
        Some(Self(bytes.try_into().ok()?))
    }

    /// As numbers that travel.
    pub fn numbers(&self) -> Vec<i32> {
        self.0.iter().map(|byte| i32::from(*byte)).collect()
    }

    fn value(&self, place: usize) -> f64 {
        f64::from(self.0[place]) / 255.0
    }

    /// φ, the ranker's features.
    pub(crate) fn ranker(&self) -> Vec<f64> {
        let traits = (0..TRAITS).map(|place| self.value(place));
        let crosses = CROSSES.iter().map(|(a, b)| self.value(*a) * self.value(*b));
        std::iter::once(1.0).chain(traits).chain(crosses).collect()
    }

    /// The offer as the policy sees it; `id` tells it from others of a request.
    pub fn item(&self, id: u64) -> Item {
        Item { id, ranker: self.ranker(), nominators: Nominator::ALL.iter().map(|nominator| nominator.features(self)).collect() }
    }
}

/// Who brings products in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nominator {
    /// What the placement's keywords find.
    Keyword,
    /// What terms near the theme find, that were not chosen as keywords.
    Embedding,
    /// What sells on the shelves that the theme is about.
    Popularity,
    /// What the shopper bought, or what stands on the shoppers' favourite shelves.
    History,
}

impl Nominator {
    /// All of them, in the policy's order.
    pub const ALL: [Nominator; 4] = [Nominator::Keyword, Nominator::Embedding, Nominator::Popularity, Nominator::History];

    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Nominator::Keyword => "keyword",
            Nominator::Embedding => "embedding",
            Nominator::Popularity => "popularity",
            Nominator::History => "history",
        }
    }

    /// Its bit in a mask.
    pub fn bit(self) -> u8 {
        1 << self as u8
    }

    /// The nominators of a mask.
    pub fn of_mask(mask: u8) -> impl Iterator<Item = Nominator> {
        Self::ALL.into_iter().filter(move |nominator| mask & nominator.bit() != 0)
    }

    /// Traits that it sees, and the pairs whose products it sees: with the constant, φₙ of 8 numbers.
    fn sees(self) -> ([usize; 5], [(usize, usize); 2]) {
        match self {
            Nominator::Keyword => {
                ([KEYWORD, RELEVANCE, ANCHOR, POPULARITY, AFFINITY], [(KEYWORD, RELEVANCE), (KEYWORD, AFFINITY)])
            }
            Nominator::Embedding => {
                ([EMBEDDING, RELEVANCE, ANCHOR, POPULARITY, AFFINITY], [(EMBEDDING, RELEVANCE), (EMBEDDING, AFFINITY)])
            }
            Nominator::Popularity => {
                ([POPULARITY, DEARNESS, BUDGET, RELEVANCE, PLACE], [(POPULARITY, BUDGET), (POPULARITY, RELEVANCE)])
            }
            Nominator::History => ([AFFINITY, DEPARTMENT, BOUGHT, RECENCY, BUDGET], [(AFFINITY, BOUGHT), (BOUGHT, RECENCY)]),
        }
    }

    /// φₙ, its own features.
    pub(crate) fn features(self, traits: &Traits) -> Vec<f64> {
        let (single, pairs) = self.sees();
        let pairs = pairs.map(|(a, b)| traits.value(a) * traits.value(b));
        std::iter::once(1.0).chain(single.map(|place| traits.value(place))).chain(pairs).collect()
    }

    fn prior(self) -> LinUcb {
        let mut weights = [0.0; NOMINATOR_DIMS];
        let (single, _) = self.sees();
        for (place, weight) in PRIOR {
            if let Some(seen) = single.iter().position(|seen| *seen == place) {
                weights[1 + seen] = weight;
            }
        }
        LinUcb::pretrained(&weights, PRIOR_PRECISION, LAMBDA)
    }
}

/// The policy that has learnt nothing: version 0.
pub fn untaught() -> TwoStage {
    let mut weights = [0.0; RANKER_DIMS];
    PRIOR.iter().for_each(|(place, weight)| weights[1 + place] = *weight);
    let ranker = LinUcb::pretrained(&weights, PRIOR_PRECISION, LAMBDA);
    TwoStage::new(ranker, Nominator::ALL.map(Nominator::prior).to_vec(), Sync::AfterUpdate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_as_many_as_the_policy_takes_and_lie_within_0_and_1() {
        let policy = untaught();
        assert_eq!((policy.ranker().dims(), RANKER_DIMS), (48, 48));
        for traits in [Traits([0; TRAITS]), Traits([255; TRAITS]), Traits(std::array::from_fn(|place| place as u8 * 18))] {
            let item = traits.item(1);
            assert_eq!((item.ranker.len(), item.nominators.len()), (RANKER_DIMS, Nominator::ALL.len()));
            for (features, stage) in item.nominators.iter().zip(policy.nominators()) {
                assert_eq!((features.len(), stage.dims()), (NOMINATOR_DIMS, NOMINATOR_DIMS));
            }
            let all = item.ranker.iter().chain(item.nominators.iter().flatten());
            assert!(all.into_iter().all(|value| (0.0..=1.0).contains(value)), "{item:?}");
        }
    }

    #[test]
    fn no_two_features_of_a_stage_are_the_same() {
        let mut crosses: Vec<(usize, usize)> = CROSSES.iter().map(|(a, b)| (*a.min(b), *a.max(b))).collect();
        crosses.sort_unstable();
        assert!(crosses.windows(2).all(|pair| pair[0] != pair[1]) && crosses.iter().all(|(a, b)| a != b));
    }

    #[test]
    fn what_is_no_number_is_nothing_and_traits_come_back_as_they_went() {
        let mut values = [0.5; TRAITS];
        (values[0], values[1], values[2], values[3]) = (f64::NAN, f64::INFINITY, -3.0, f64::NEG_INFINITY);
        let traits = Traits::of(values);
        assert_eq!(traits.0[..5], [0, 255, 0, 0, 128]);
        assert_eq!(Traits::read(&traits.numbers()), Some(traits));
        assert_eq!((Traits::read(&[1; TRAITS - 1]), Traits::read(&[256; TRAITS])), (None, None));
    }

    #[test]
    fn before_anything_was_learnt_what_the_shopper_likes_is_expected_to_please_more() {
        let (policy, mut liked) = (untaught(), Traits([100; TRAITS]));
        let plain = policy.ranker().score(&liked.item(1).ranker).mean;
        liked.0[AFFINITY] = 200;
        assert!(policy.ranker().score(&liked.item(1).ranker).mean > plain);
    }
}
