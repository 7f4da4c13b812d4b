//! FPSM, the selection of orders by the shopper's interest in arrangements (section 4.1): an order and the pages that the shopper clicked on are
//! hashed, and those orders are taken that lie nearest.
//!
//! What the paper leaves open: a hash has `bits` directions, drawn from a normal distribution by seed (SimHash needs directions of both signs;
//! with positive ones alone every hash of a positive vector is the same). A behaviour's weight halves with every half-life of its age. A short
//! history leaves its other slots out of the sum. Equal distances, which are many among whole numbers of bits, fall in an order drawn by seed,
//! or stay in the order in which the orders come.

use rand::seq::SliceRandom;

use super::Order;
use crate::random::{normal, stream};

const HASH_STREAM: u64 = 41;
const TIES_STREAM: u64 = 42;
/// Most bits of a hash.
pub const BITS_MAX: usize = 64;

/// How places are written into a representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// Eq. 2 as it stands.
    Plain,
    /// Eq. 2 less its mean over the places. Of a plain representation the larger part is the same for all orders of a slate; here it is gone.
    Centred,
}

/// The encoding of places (Eq. 2), `[places, dims]`.
pub fn encode_places(places: usize, dims: usize, how: Places) -> Vec<f32> {
    let angle = |place: usize, pair: usize| place as f64 / 10_000_f64.powf(2.0 * pair as f64 / dims as f64);
    let value = |place: usize, dim: usize| match dim % 2 {
        0 => angle(place, dim / 2).sin(),
        _ => angle(place, dim / 2).cos(),
    };
    let mean = |dim: usize| (0..places).map(|place| value(place, dim)).sum::<f64>() / places as f64;
    let less = |dim: usize| if how == Places::Centred { mean(dim) } else { 0.0 };
    let less: Vec<f64> = (0..dims).map(less).collect();
    (0..places)
        .flat_map(|place| (0..dims).map(move |dim| (place, dim)))
        .map(|(place, dim)| (value(place, dim) - less[dim]) as f32)
        .collect()
}

/// Mean over the fields of one item's embedding, `[fields, dims]` to `[dims]`: all that Eq. 3 needs of an item.
pub fn pool_fields(embedding: &[f32], dims: usize) -> Vec<f32> {
    let fields = embedding.len() / dims;
    (0..dims).map(|dim| embedding.iter().skip(dim).step_by(dims).sum::<f32>() / fields as f32).collect()
}

/// h of an order (Eq. 3), `[dims]`: the mean over places of the items' pooled fields times the encoding of their places, `[places, dims]`.
pub fn represent(order: &Order, pooled: &[Vec<f32>], places: &[f32]) -> Vec<f32> {
    let dims = places.len() / order.len();
    let mut h = vec![0.0; dims];
    for (item, place) in order.iter().zip(places.chunks_exact(dims)) {
        for ((h, value), place) in h.iter_mut().zip(&pooled[*item]).zip(place) {
            *h += value * place / order.len() as f32;
        }
    }
    h
}

/// Hash functions, one for each slot of a history: signs of projections on random directions.
#[derive(Debug, Clone, PartialEq)]
pub struct SimHash {
    bits: usize,
    /// Directions, `[slots][dims, bits]`.
    directions: Vec<Vec<f32>>,
}

impl SimHash {
    /// `slots` different hash functions of `bits` bits, at most [`BITS_MAX`], for vectors of `dims` numbers.
    pub fn new(slots: usize, bits: usize, dims: usize, seed: u64) -> Self {
        let bits = bits.min(BITS_MAX);
        let directions = |slot: usize| {
            let mut rng = stream(&[HASH_STREAM, seed, slot as u64]);
            (0..bits * dims).map(|_| normal(&mut rng) as f32).collect()
        };
        Self { bits, directions: (0..slots).map(directions).collect() }
    }

    /// Number of hash functions.
    pub fn slots(&self) -> usize {
        self.directions.len()
    }

    /// Bits of a hash.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Directions of the function of `slot`, `[dims, bits]`.
    pub(crate) fn directions(&self, slot: usize) -> &[f32] {
        &self.directions[slot]
    }

    /// The hash of `h`, `[dims]`, by the function of `slot`: bit b is set where `h` lies on the side of direction b.
    pub fn hash(&self, slot: usize, h: &[f32]) -> u64 {
        let mut sums = [0.0_f32; BITS_MAX];
        for (h, along) in h.iter().zip(self.directions[slot].chunks_exact(self.bits)) {
            sums.iter_mut().zip(along).for_each(|(sum, direction)| *sum += h * direction);
        }
        sums.iter().enumerate().fold(0, |hash, (bit, sum)| hash | u64::from(*sum > 0.0) << bit)
    }
}

/// Bits in which two hashes differ (Eq. 4).
pub fn distance(a: u64, b: u64) -> u32 {
    (a ^ b).count_ones()
}

/// A page that the shopper clicked on.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Its representation, `[dims]`.
    pub h: Vec<f32>,
    /// When it was, in milliseconds.
    pub at_ms: i64,
}

/// A history of `slots` slots out of what the shopper clicked on, newest first: the newest ones, then empty slots.
pub fn history(newest_first: impl IntoIterator<Item = Behaviour>, slots: usize) -> Vec<Option<Behaviour>> {
    newest_first.into_iter().map(Some).chain(std::iter::repeat_with(|| None)).take(slots).collect()
}

/// Weights of a history's slots (w_m of Eq. 5): halved with every `half_life_ms` of age, 0 for a slot without behaviour, 1 in sum
/// where there is any.
pub fn time_weights(history: &[Option<Behaviour>], half_life_ms: f64) -> Vec<f32> {
    let newest = history.iter().flatten().map(|behaviour| behaviour.at_ms).max().unwrap_or(0);
    // Counted from the newest one, as no weight then vanishes however long ago that was; their ratios do not depend on it.
    let weight = |behaviour: &Behaviour| ((behaviour.at_ms - newest) as f64 / half_life_ms).exp2();
    let weights: Vec<f64> = history.iter().map(|slot| slot.as_ref().map_or(0.0, weight)).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| if total > 0.0 { (weight / total) as f32 } else { 0.0 }).collect()
}

/// The time-aware distance of each order from a history (Eq. 5), given the orders' representations. A history has one slot for each hash
/// function, newest first; slots without a behaviour are left out. All distances from an empty history are 0.
pub fn distances(hash: &SimHash, orders: &[Vec<f32>], history: &[Option<Behaviour>], weights: &[f32]) -> Vec<f32> {
    let mut distances = vec![0.0; orders.len()];
    for (slot, (behaviour, weight)) in history.iter().zip(weights).take(hash.slots()).enumerate() {
        let Some(behaviour) = behaviour else { continue };
        let clicked = hash.hash(slot, &behaviour.h);
        for (sum, h) in distances.iter_mut().zip(orders) {
            *sum += weight * distance(hash.hash(slot, h), clicked) as f32;
        }
    }
    distances
}

/// Which of several orders at the same distance comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ties {
    /// As this seed draws it.
    Drawn(u64),
    /// The one that stands first among the orders: the initial ranking's own, and what is near it.
    InitialRank,
}

/// Puts places in the order in which those of equal distance are to come.
pub(crate) fn shuffle_ties<T>(places: &mut [T], ties: Ties) {
    if let Ties::Drawn(seed) = ties {
        places.shuffle(&mut stream(&[TIES_STREAM, seed]));
    }
}

/// Places of the `most` orders of the smallest distances, nearest first.
pub fn select(distances: &[f32], most: usize, ties: Ties) -> Vec<usize> {
    let mut places: Vec<usize> = (0..distances.len()).collect();
    shuffle_ties(&mut places, ties);
    places.sort_by(|a, b| distances[*a].total_cmp(&distances[*b]));
    places.truncate(most);
    places
}
