//! Seeds, hashes and weighted choices. Everything random in this crate starts here.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A generator for one purpose: the same parts give the same stream, on every machine.
pub(crate) fn stream(parts: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(parts.iter().fold(0x9e37_79b9_7f4a_7c15, |state, part| mix(state ^ mix(*part))))
}

/// A 64-bit hash of a text ([`fnv1a`], then mixed): stable for ever, as held-out splits and titles hang on it.
pub fn hash(text: &str) -> u64 {
    mix(fnv1a(text.bytes().map(u64::from)))
}

/// FNV-1a over numbers, in order.
pub fn fnv1a(parts: impl IntoIterator<Item = u64>) -> u64 {
    parts.into_iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| (hash ^ part).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Spreads the bits of `x` (the finalizer of SplitMix64).
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Index of one of `weights` by its share; `None` where no weight is above zero.
pub(crate) fn weighted<R: Rng>(rng: &mut R, weights: &[f32]) -> Option<usize> {
    let total: f32 = weights.iter().sum();
    if total <= 0.0 {
        return None;
    }
    let mut left = rng.random::<f32>() * total;
    for (i, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return Some(i);
        }
    }
    weights.iter().rposition(|weight| *weight > 0.0)
}

/// One of `items`, each as likely; `None` where there is none.
pub(crate) fn one_of<'a, T, R: Rng>(rng: &mut R, items: &'a [T]) -> Option<&'a T> {
    if items.is_empty() { None } else { items.get(rng.random_range(0..items.len())) }
}
