//! Batches of texts for encoders: what the embedding and the relevance model have in common.

use std::ops::Range;

use candle_core::Device;

/// Longest text that an encoder is given, in tokens, whatever its positions allow.
pub(crate) const TEXT_TOKENS_MAX: usize = 512;

/// Limits of an encoder's passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeLimits {
    /// Tokens of one forward pass; a longer single text still runs, alone.
    pub pass_tokens_max: usize,
}

impl Default for EncodeLimits {
    /// For one CPU core: rows that stay in its cache.
    fn default() -> Self {
        Self { pass_tokens_max: 2_048 }
    }
}

impl EncodeLimits {
    /// Limits that suit `device`.
    pub fn for_device(device: &Device) -> Self {
        if device.is_cpu() { Self::default() } else { Self { pass_tokens_max: 32_768 } }
    }
}

/// Texts of these lengths in passes: the order in which they are taken, shortest first, and the ranges of that order that share a pass.
pub(crate) fn passes(lengths: &[usize], limits: EncodeLimits) -> (Vec<usize>, Vec<Range<usize>>) {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| lengths[index]);
    let mut passes: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (place, &index) in order.iter().enumerate() {
        match passes.last_mut() {
            Some(pass) if tokens + lengths[index] <= limits.pass_tokens_max => {
                pass.end = place + 1;
                tokens += lengths[index];
            }
            _ => {
                passes.push(place..place + 1);
                tokens = lengths[index];
            }
        }
    }
    (order, passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_take_the_shortest_first_and_keep_their_budget() {
        let limits = EncodeLimits { pass_tokens_max: 10 };
        let (order, ranges) = passes(&[4, 30, 3, 3, 9], limits);
        assert_eq!(order, [2, 3, 0, 4, 1]);
        assert_eq!(ranges, [0..3, 3..4, 4..5]);
        assert!(passes(&[], limits).1.is_empty());
    }
}
