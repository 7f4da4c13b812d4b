//! Inference kernels on plain slices, for one core.

use super::{
    attention::Rope,
    simd::{self, multiply_add, vectorised},
};

pub(crate) use super::{
    activation::{gelu_erf_in_place, gelu_tanh_in_place, swiglu_rows},
    linear::{Matrix, gemm},
    norm::{layer_norm_in_place, rms_rows},
};

/// Positions whose keys lie together.
pub(crate) const BLOCK: usize = 32;
/// Sums over positions that are kept apart, so that they need not wait for each other; a position's sum depends on the position alone.
const CHAINS: usize = 4;
/// Values of a head that are summed at a time.
const SPAN: usize = 32;

/// Turns `key[head]` to `position` and puts it into `keys`, `[blocks, head, BLOCK]`.
pub(crate) fn put_key(rope: &Rope, key: &[f32], position: usize, keys: &mut [f32]) {
    let head = key.len();
    let mut turned = [0.0; HEAD_MAX];
    rope.turn(key, position, 1.0, false, &mut turned[..head]);
    let block = &mut keys[position / BLOCK * BLOCK * head..][..BLOCK * head];
    for (to, value) in block[position % BLOCK..].iter_mut().step_by(BLOCK).zip(turned) {
        *to = value;
    }
}

/// Largest head.
pub(crate) const HEAD_MAX: usize = 256;

vectorised! {
    /// Attention of one query at `position` over the keys and values up to and with it: `out[head]`.
    ///
    /// `keys` is `[blocks, head, BLOCK]`, `values` is `[positions, head]`; `scores` is memory to work in.
    pub(crate) fn attend_row(
        rope: &Rope, query: &[f32], position: usize, keys: &[f32], values: &[f32], scores: &mut Vec<f32>, out: &mut [f32],
    ) -> () {
        let head = query.len();
        let seen = position + 1;
        let mut turned = [0.0; HEAD_MAX];
        let turned = &mut turned[..head];
        rope.turn(query, position, 1.0 / (head as f32).sqrt(), false, turned);
        let wide = seen.next_multiple_of(BLOCK);
        if scores.len() < wide {
            scores.resize(wide, 0.0);
        }
        let scores = &mut scores[..wide];
        for (scores, keys) in scores.as_chunks_mut::<BLOCK>().0.iter_mut().zip(keys.chunks_exact(head * BLOCK)) {
            let mut sums = [0.0f32; BLOCK];
            for (q, keys) in turned.iter().zip(keys.as_chunks::<BLOCK>().0) {
                for i in 0..BLOCK {
                    sums[i] = multiply_add::<FUSED>(*q, keys[i], sums[i]);
                }
            }
            *scores = sums;
        }
        simd::softmax(&mut scores[..seen]);
        let scores = &scores[..seen];
        for (span, out) in out.chunks_mut(SPAN).enumerate() {
            let width = out.len();
            let mut chains = [[0.0f32; SPAN]; CHAINS];
            let (fours, rest) = scores.as_chunks::<CHAINS>();
            let value = |p: usize| &values[p * head + span * SPAN..][..width];
            if width == SPAN {
                for (four, p) in fours.iter().enumerate() {
                    for chain in 0..CHAINS {
                        let v: &[f32; SPAN] = value(four * CHAINS + chain).try_into().expect("a whole span");
                        for i in 0..SPAN {
                            chains[chain][i] = multiply_add::<FUSED>(p[chain], v[i], chains[chain][i]);
                        }
                    }
                }
            } else {
                for (four, p) in fours.iter().enumerate() {
                    for chain in 0..CHAINS {
                        for (sum, v) in chains[chain].iter_mut().zip(value(four * CHAINS + chain)) {
                            *sum = multiply_add::<FUSED>(p[chain], *v, *sum);
                        }
                    }
                }
            }
            for (chain, p) in rest.iter().enumerate() {
                for (sum, v) in chains[chain].iter_mut().zip(value(fours.len() * CHAINS + chain)) {
                    *sum = multiply_add::<FUSED>(*p, *v, *sum);
                }
            }
            for (i, out) in out.iter_mut().enumerate() {
                *out = (chains[0][i] + chains[1][i]) + (chains[2][i] + chains[3][i]);
            }
        }
    }
}

/// Memory and method of attention in which every row of a sequence sees every other.
pub(crate) struct Full {
    head: usize,
    /// `[blocks, head, BLOCK]`.
    keys: Vec<f32>,
    /// `[QUERIES, longest]`.
    scores: Vec<f32>,
}

impl Full {
    pub(crate) fn new(longest: usize, head: usize) -> Self {
        let longest = longest.next_multiple_of(BLOCK);
        Self { head, keys: vec![0.0; longest * head], scores: vec![0.0; QUERIES * longest] }
    }

    /// One sequence's rows `[queries | keys | values]` → `out[rows, heads · head]`.
    pub(crate) fn attend(&mut self, qkv: &[f32], heads: usize, out: &mut [f32]) {
        attend_full(qkv, heads, self.head, &mut self.keys, &mut self.scores, out);
    }
}

/// Query rows that share a pass over the keys.
const QUERIES: usize = 4;

vectorised! {
    fn attend_full(qkv: &[f32], heads: usize, head: usize, keys: &mut [f32], scores: &mut [f32], out: &mut [f32]) -> () {
        let hidden = heads * head;
        let t = qkv.len() / (3 * hidden);
        let wide = t.next_multiple_of(BLOCK);
        let scale = 1.0 / (head as f32).sqrt();
        for h in 0..heads {
            let column = |row: usize, part: usize| &qkv[row * 3 * hidden + part * hidden + h * head..][..head];
            for p in 0..t {
                let block = &mut keys[p / BLOCK * BLOCK * head..][..BLOCK * head];
                for (to, key) in block[p % BLOCK..].iter_mut().step_by(BLOCK).zip(column(p, 1)) {
                    *to = key * scale;
                }
            }
            for first in (0..t).step_by(QUERIES) {
                // Rows beyond the last repeat it and are not written.
                let queries: [&[f32]; QUERIES] = std::array::from_fn(|r| column((first + r).min(t - 1), 0));
                for (b, keys) in keys[..wide * head].chunks_exact(BLOCK * head).enumerate() {
                    let mut sums = [[0.0f32; BLOCK]; QUERIES];
                    for (d, keys) in keys.as_chunks::<BLOCK>().0.iter().enumerate() {
                        for r in 0..QUERIES {
                            let q = queries[r][d];
                            for i in 0..BLOCK {
                                sums[r][i] = multiply_add::<FUSED>(q, keys[i], sums[r][i]);
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate() {
                        scores[r * wide + b * BLOCK..][..BLOCK].copy_from_slice(sums);
                    }
                }
                for r in 0..QUERIES {
                    simd::softmax(&mut scores[r * wide..][..t]);
                }
                for span in (0..head).step_by(SPAN) {
                    let width = SPAN.min(head - span);
                    let mut sums = [[0.0f32; SPAN]; QUERIES];
                    for p in 0..t {
                        let value = &column(p, 2)[span..span + width];
                        for r in 0..QUERIES {
                            let weight = scores[r * wide + p];
                            if let Ok(value) = <&[f32; SPAN]>::try_from(value) {
                                for i in 0..SPAN {
                                    sums[r][i] = multiply_add::<FUSED>(weight, value[i], sums[r][i]);
                                }
                            } else {
                                for (sum, v) in sums[r].iter_mut().zip(value) {
                                    *sum = multiply_add::<FUSED>(weight, *v, *sum);
                                }
                            }
                        }
                    }
                    for (r, sums) in sums.iter().enumerate().take(t - first) {
                        out[(first + r) * hidden + h * head + span..][..width].copy_from_slice(&sums[..width]);
                    }
                }
            }
        }
    }
}

vectorised! {
    /// Softmax of every row of `scores[rows, wide]`, in place.
    pub(crate) fn softmax_rows(scores: &mut [f32], wide: usize) -> () {
        for row in scores.chunks_exact_mut(wide) {
            simd::softmax(row);
        }
    }
}
