//! Attention for inference on plain slices, for one core.
//!
//! A query's result is made of chains of multiply-adds whose order depends on the query's own position alone, so that its bits are the same
//! alone, in a chunk and in a batch.

use super::{
    attention::Rope,
    lanes::{Lanes, Plain},
    simd::{self, Width},
};

pub(crate) use super::{
    activation::{gelu_erf_in_place, gelu_tanh_in_place, swiglu_rows},
    linear::{Matrix, gemm},
    norm::{layer_norm_in_place, rms_rows},
};

/// Positions whose keys lie together.
pub(crate) const BLOCK: usize = 32;
/// Largest head.
pub(crate) const HEAD_MAX: usize = 256;
/// Queries that share a pass over the keys.
pub(crate) const QUERIES: usize = 4;
/// Sums over positions that are kept apart, so that they need not wait for each other; a value's chain depends on its position alone.
const CHAINS: usize = 4;

/// Turns `key[head]` to `position` and puts it into `keys`, `[blocks, head, BLOCK]`.
pub(crate) fn put_turned_key(rope: &Rope, key: &[f32], position: usize, keys: &mut [f32]) {
    let mut turned = [0.0; HEAD_MAX];
    let turned = &mut turned[..key.len()];
    rope.turn(key, position, 1.0, false, turned);
    put_key(turned, position, keys);
}

/// Puts `key[head]` into `keys`, `[blocks, head, BLOCK]`.
pub(crate) fn put_key(key: &[f32], position: usize, keys: &mut [f32]) {
    let block = &mut keys[position / BLOCK * BLOCK * key.len()..][..BLOCK * key.len()];
    for (to, value) in block[position % BLOCK..].iter_mut().step_by(BLOCK).zip(key) {
        *to = *value;
    }
}

/// Up to [`QUERIES`] queries of one key-value head, and memory to work in.
pub(crate) struct Queries {
    head: usize,
    n: usize,
    /// `[QUERIES, head]`, scaled (and turned).
    queries: Vec<f32>,
    /// Keys that each query sees.
    seen: [usize; QUERIES],
    /// `[QUERIES, keys]`.
    scores: Vec<f32>,
    /// `[QUERIES, head]`.
    out: Vec<f32>,
}

/// One head's keys and values.
#[derive(Clone, Copy)]
pub(crate) struct KeysValues<'a> {
    /// `[blocks, head, BLOCK]`.
    pub(crate) keys: &'a [f32],
    /// Rows of `head` values, `row` values apart.
    pub(crate) values: &'a [f32],
    /// Distance of two rows of `values`.
    pub(crate) row: usize,
}

impl Queries {
    /// # Panics
    /// When a head is larger than [`HEAD_MAX`].
    pub(crate) fn new(head: usize) -> Self {
        assert!(head <= HEAD_MAX, "heads of {head} values are too large");
        let rows = || vec![0.0; QUERIES * head];
        Self { head, n: 0, queries: rows(), seen: [0; QUERIES], scores: Vec::new(), out: rows() }
    }

    pub(crate) fn clear(&mut self) {
        self.n = 0;
    }

    /// Adds a query, turned to `position` where there is a `rope`, that sees the first `seen` keys.
    pub(crate) fn push(&mut self, query: &[f32], seen: usize, rope: Option<(&Rope, usize)>) {
        let scale = 1.0 / (self.head as f32).sqrt();
        let to = &mut self.queries[self.n * self.head..(self.n + 1) * self.head];
        match rope {
            Some((rope, position)) => rope.turn(query, position, scale, false, to),
            None => to.iter_mut().zip(query).for_each(|(to, x)| *to = x * scale),
        }
        self.seen[self.n] = seen;
        self.n += 1;
    }

    /// What the queries see: their results `[head]`, in the order of [`Self::push`].
    pub(crate) fn attend(&mut self, to: KeysValues<'_>) -> impl Iterator<Item = &[f32]> {
        let most = self.seen[..self.n].iter().copied().max().unwrap_or(0);
        let wide = most.next_multiple_of(BLOCK);
        assert!(to.keys.len() >= wide * self.head, "keys do not cover {most} positions");
        assert!(most == 0 || to.values.len() >= (most - 1) * to.row + self.head, "values do not cover {most} positions");
        if self.scores.len() < QUERIES * wide {
            self.scores.resize(QUERIES * wide, 0.0);
        }
        if wide > 0 {
            self.run(to, wide);
        }
        self.out.chunks_exact(self.head).take(self.n)
    }

    fn run(&mut self, to: KeysValues<'_>, wide: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{__m256, __m512};
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512(queries: &mut Queries, to: KeysValues<'_>, wide: usize) {
                // SAFETY: the instructions are those of this function.
                unsafe { queries.work::<__m512>(to, wide) }
            }
            #[target_feature(enable = "avx2,fma")]
            fn avx2(queries: &mut Queries, to: KeysValues<'_>, wide: usize) {
                // SAFETY: as above.
                unsafe { queries.work::<__m256>(to, wide) }
            }
            match simd::width() {
                // SAFETY: `width` has seen these instructions on this machine.
                Width::Avx512 => return unsafe { avx512(self, to, wide) },
                // SAFETY: as above.
                Width::Avx2 => return unsafe { avx2(self, to, wide) },
                Width::Base => {}
            }
        }
        // SAFETY: plain lanes need no special instructions.
        unsafe { self.work::<Plain>(to, wide) }
    }

    /// # Safety
    /// The machine has `L`'s instructions; `to` covers `wide` positions of keys, and of values those that are seen.
    #[inline(always)]
    unsafe fn work<L: Lanes>(&mut self, to: KeysValues<'_>, wide: usize) {
        let (head, queries, keys) = (self.head, self.queries.as_ptr(), to.keys.as_ptr());
        let scores = self.scores.as_mut_ptr();
        // SAFETY: `scores` has QUERIES rows of `wide`, `queries` QUERIES rows of `head`.
        unsafe {
            match self.n {
                1 => all_scores::<L, 1, 4>(queries, keys, head, wide, scores),
                2 => all_scores::<L, 2, 2>(queries, keys, head, wide, scores),
                3 => all_scores::<L, 3, 1>(queries, keys, head, wide, scores),
                _ => all_scores::<L, 4, 1>(queries, keys, head, wide, scores),
            }
        }
        for (row, seen) in self.scores.chunks_exact_mut(wide).zip(&self.seen[..self.n]) {
            let (seen, unseen) = row.split_at_mut(*seen);
            simd::softmax(seen);
            unseen.fill(0.0);
        }
        let (scores, values, out) = (self.scores.as_ptr(), to.values.as_ptr(), self.out.as_mut_ptr());
        let mut first = 0;
        while first < self.n {
            // A query that sees less than its neighbour has zeros there: they change nothing.
            // SAFETY: rows `first` (and the next) exist in `scores` and `out`; `values` covers what is seen.
            unsafe {
                let (scores, out) = (scores.add(first * wide), out.add(first * head));
                if L::ROWS == 2 && first + 1 < self.n {
                    let seen = self.seen[first].max(self.seen[first + 1]);
                    weigh::<L, 2>(scores, wide, seen, values, to.row, head, out);
                    first += 2;
                } else {
                    weigh::<L, 1>(scores, wide, self.seen[first], values, to.row, head, out);
                    first += 1;
                }
            }
        }
    }
}

/// Scores of `Q` queries for all blocks, `B` of them at a time.
///
/// # Safety
/// As [`Queries::work`].
#[inline(always)]
unsafe fn all_scores<L: Lanes, const Q: usize, const B: usize>(
    queries: *const f32,
    keys: *const f32,
    head: usize,
    wide: usize,
    scores: *mut f32,
) {
    let blocks = wide / BLOCK;
    let mut block = 0;
    // SAFETY: blocks lie within `wide`.
    unsafe {
        while block + B <= blocks {
            some_scores::<L, Q, B>(queries, keys.add(block * BLOCK * head), head, wide, scores.add(block * BLOCK));
            block += B;
        }
        while block < blocks {
            some_scores::<L, Q, 1>(queries, keys.add(block * BLOCK * head), head, wide, scores.add(block * BLOCK));
            block += 1;
        }
    }
}

/// # Safety
/// As [`Queries::work`], for `B` blocks.
#[inline(always)]
unsafe fn some_scores<L: Lanes, const Q: usize, const B: usize>(
    queries: *const f32,
    keys: *const f32,
    head: usize,
    wide: usize,
    scores: *mut f32,
) {
    for at in (0..BLOCK).step_by(2 * L::N) {
        // SAFETY: within a block of BLOCK positions, `head` rows of them, `Q` queries.
        unsafe {
            let mut sums = [[[L::splat(0.0); 2]; B]; Q];
            for d in 0..head {
                for b in 0..B {
                    let keys = keys.add((b * head + d) * BLOCK + at);
                    let (low, high) = (L::load(keys), L::load(keys.add(L::N)));
                    for (q, sums) in sums.iter_mut().enumerate() {
                        let query = L::splat(*queries.add(q * head + d));
                        sums[b][0] = query.multiply_add(low, sums[b][0]);
                        sums[b][1] = query.multiply_add(high, sums[b][1]);
                    }
                }
            }
            for (q, sums) in sums.iter().enumerate() {
                for (b, sums) in sums.iter().enumerate() {
                    let scores = scores.add(q * wide + b * BLOCK + at);
                    sums[0].store(scores);
                    sums[1].store(scores.add(L::N));
                }
            }
        }
    }
}

/// Sums of `seen` values weighted by the scores of `Q` queries.
///
/// # Safety
/// As [`Queries::work`].
#[inline(always)]
unsafe fn weigh<L: Lanes, const Q: usize>(
    scores: *const f32,
    wide: usize,
    seen: usize,
    values: *const f32,
    row: usize,
    head: usize,
    out: *mut f32,
) {
    let mut column = 0;
    // SAFETY: columns lie within `head`, positions within `seen`.
    unsafe {
        while column + 2 * L::N <= head {
            let mut sums = [[[L::splat(0.0); 2]; CHAINS]; Q];
            let mut p = 0;
            while p + CHAINS <= seen {
                for chain in 0..CHAINS {
                    weigh_one(scores, wide, p + chain, values.add((p + chain) * row + column), &mut sums, chain);
                }
                p += CHAINS;
            }
            for (chain, p) in (p..seen).enumerate() {
                weigh_one(scores, wide, p, values.add(p * row + column), &mut sums, chain);
            }
            for (q, sums) in sums.iter().enumerate() {
                let out = out.add(q * head + column);
                let [a, b, c, d] = *sums;
                a[0].add(b[0]).add(c[0].add(d[0])).store(out);
                a[1].add(b[1]).add(c[1].add(d[1])).store(out.add(L::N));
            }
            column += 2 * L::N;
        }
        for column in column..head {
            for q in 0..Q {
                let mut sums = [0.0; CHAINS];
                for p in 0..seen {
                    sums[p % CHAINS] += *scores.add(q * wide + p) * *values.add(p * row + column);
                }
                *out.add(q * head + column) = (sums[0] + sums[1]) + (sums[2] + sums[3]);
            }
        }
    }
}

/// # Safety
/// As [`weigh`].
#[inline(always)]
unsafe fn weigh_one<L: Lanes, const Q: usize>(
    scores: *const f32,
    wide: usize,
    p: usize,
    value: *const f32,
    sums: &mut [[[L; 2]; CHAINS]; Q],
    chain: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (low, high) = (L::load(value), L::load(value.add(L::N)));
        for (q, sums) in sums.iter_mut().enumerate() {
            let weight = L::splat(*scores.add(q * wide + p));
            sums[chain][0] = weight.multiply_add(low, sums[chain][0]);
            sums[chain][1] = weight.multiply_add(high, sums[chain][1]);
        }
    }
}

/// Attention in which every row of a sequence sees every other.
pub(crate) struct Full {
    queries: Queries,
    /// `[blocks, head, BLOCK]`.
    keys: Vec<f32>,
}

impl Full {
    pub(crate) fn new(longest: usize, head: usize) -> Self {
        Self { queries: Queries::new(head), keys: vec![0.0; longest.next_multiple_of(BLOCK) * head] }
    }

    /// One sequence's rows `[queries | keys | values]` → `out[rows, heads · head]`.
    pub(crate) fn attend(&mut self, qkv: &[f32], heads: usize, out: &mut [f32]) {
        let head = self.queries.head;
        let hidden = heads * head;
        let t = qkv.len() / (3 * hidden);
        for h in 0..heads {
            let column = |row: usize, part: usize| &qkv[row * 3 * hidden + part * hidden + h * head..][..head];
            for p in 0..t {
                put_key(column(p, 1), p, &mut self.keys);
            }
            for first in (0..t).step_by(QUERIES) {
                let rows = first..(first + QUERIES).min(t);
                self.queries.clear();
                rows.clone().for_each(|row| self.queries.push(column(row, 0), t, None));
                let values = KeysValues { keys: &self.keys, values: &qkv[2 * hidden + h * head..], row: 3 * hidden };
                for (row, result) in rows.zip(self.queries.attend(values)) {
                    out[row * hidden + h * head..][..head].copy_from_slice(result);
                }
            }
        }
    }
}

simd::vectorised! {
    /// Softmax of every row of `scores[rows, wide]`, in place.
    pub(crate) fn softmax_rows(scores: &mut [f32], wide: usize) -> () {
        for row in scores.chunks_exact_mut(wide) {
            simd::softmax(row);
        }
    }
}
