//! Attention within the segments of a packed batch, rotary positions inside, recomputed in the backward pass.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Device, Layout, Result, Shape, Tensor, bail};

use super::{
    linear::{Matrix, gemm},
    read, slice, tensor,
};
use crate::{
    Segments,
    ops::simd::{self, vectorised},
};

/// Cosines and sines of rotary positions, `[positions, half]` each, for heads whose halves turn together. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
}

impl Rope {
    /// Tables for `positions` positions; `frequencies` holds one angular frequency per pair, `head / 2` of them.
    pub fn new(frequencies: &[f32], positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        Self { cos: cos.into(), sin: sin.into(), half: frequencies.len() }
    }

    /// Positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let row = position * self.half..(position + 1) * self.half;
        (&self.cos[row.clone()], &self.sin[row])
    }

    /// `out = turned(head) · scale` at `position`; the opposite direction for a gradient.
    #[inline(always)]
    pub(crate) fn turn(&self, head: &[f32], position: usize, scale: f32, back: bool, out: &mut [f32]) {
        let (cos, sin) = self.row(position);
        let half = self.half;
        let sign = if back { -scale } else { scale };
        let (cos, sin) = (&cos[..half], &sin[..half]);
        let (first, second) = (&head[..half], &head[half..2 * half]);
        let (out_first, out_second) = out[..2 * half].split_at_mut(half);
        for i in 0..half {
            out_first[i] = first[i] * cos[i] * scale - second[i] * sin[i] * sign;
            out_second[i] = second[i] * cos[i] * scale + first[i] * sin[i] * sign;
        }
    }

    /// Tables of `positions` on `device`, `[rows, half]`.
    fn tables(&self, positions: &[u32], dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
        let pick = |table: &[f32]| -> Result<Tensor> {
            let rows: Vec<f32> = positions.iter().flat_map(|p| &table[*p as usize * self.half..][..self.half]).copied().collect();
            Tensor::from_vec(rows, (positions.len(), self.half), device)?.to_dtype(dtype)
        };
        Ok((pick(&self.cos)?, pick(&self.sin)?))
    }

    /// Turns `x[rows, heads, head]` to `positions` with plain tensor operations.
    pub(crate) fn turn_tensor(&self, x: &Tensor, positions: &[u32]) -> Result<Tensor> {
        let (cos, sin) = self.tables(positions, x.dtype(), x.device())?;
        let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
        let first = x.narrow(D::Minus1, 0, self.half)?;
        let second = x.narrow(D::Minus1, self.half, self.half)?;
        let left = (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?;
        let right = (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?;
        Tensor::cat(&[left, right], D::Minus1)
    }
}

/// How rows attend to each other.
#[derive(Debug, Clone)]
pub struct Attention {
    /// The sequences.
    pub segments: Segments,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Values of one head.
    pub head: usize,
    /// Whether a row sees only itself and the rows before it.
    pub causal: bool,
    /// Rotary positions, counted from each segment's first row; `None` for learned positions.
    pub rope: Option<Rope>,
}

/// Query rows of one block: bounds the score buffer.
const BLOCK: usize = 64;

vectorised! {
    /// Softmax of `rows` score rows `wide` values apart; row `r` sees `seen(r)` keys: all, or `first + r + 1` when causal. Unseen scores become 0.
    fn softmax_rows(scores: &mut [f32], wide: usize, causal_from: Option<usize>) -> () {
        for (r, row) in scores.chunks_exact_mut(wide).enumerate() {
            let seen = causal_from.map_or(wide, |first| (first + r + 1).min(wide));
            let (seen, unseen) = row.split_at_mut(seen);
            simd::softmax(seen);
            unseen.fill(0.0);
        }
    }
}

vectorised! {
    /// From the gradients of probabilities to those of scores, in place.
    fn softmax_rows_backward(p: &[f32], dp: &mut [f32], wide: usize) -> () {
        for (p, dp) in p.chunks_exact(wide).zip(dp.chunks_exact_mut(wide)) {
            let level = simd::dot(p, dp);
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - level);
            }
        }
    }
}

vectorised! {
    /// Copies one head's column of a segment into `out[t, head]`, turned when there is a `rope`.
    fn load(x: &[f32], stride: usize, head: usize, rope: Option<&Rope>, scale: f32, out: &mut [f32]) -> () {
        for (p, (x, out)) in x.chunks(stride).zip(out.chunks_exact_mut(head)).enumerate() {
            match rope {
                Some(rope) => rope.turn(&x[..head], p, scale, false, out),
                None => {
                    for (out, x) in out.iter_mut().zip(&x[..head]) {
                        *out = x * scale;
                    }
                }
            }
        }
    }
}

vectorised! {
    /// The gradient's way back through [`load`].
    fn unload(g: &[f32], stride: usize, head: usize, rope: Option<&Rope>, scale: f32, out: &mut [f32]) -> () {
        for (p, (g, out)) in g.chunks_exact(head).zip(out.chunks_mut(stride)).enumerate() {
            match rope {
                Some(rope) => rope.turn(g, p, scale, true, &mut out[..head]),
                None => {
                    for (out, g) in out[..head].iter_mut().zip(g) {
                        *out = g * scale;
                    }
                }
            }
        }
    }
}

/// The columns of queries, keys and values in a row `[q heads | k heads | v heads]`.
struct Columns {
    width: usize,
    head: usize,
    heads: usize,
    kv_heads: usize,
}

impl Columns {
    fn query(&self, h: usize) -> usize {
        h * self.head
    }
    fn key(&self, h: usize) -> usize {
        (self.heads + h) * self.head
    }
    fn value(&self, h: usize) -> usize {
        (self.heads + self.kv_heads + h) * self.head
    }
}

impl Attention {
    fn columns(&self, width: usize, rows: usize) -> Result<Columns> {
        let (head, heads, kv_heads) = (self.head, self.heads, self.kv_heads);
        if kv_heads == 0 || heads % kv_heads != 0 || width != (heads + 2 * kv_heads) * head {
            bail!("{width} columns do not hold {heads} query and {kv_heads} key-value heads of {head}");
        }
        if self.segments.rows() != rows {
            bail!("segments of {} rows do not fit {rows} rows", self.segments.rows());
        }
        if self.rope.as_ref().is_some_and(|rope| rope.half * 2 != head) {
            bail!("rotary tables are not made for heads of {head}");
        }
        if let Some(rope) = self.rope.as_ref().filter(|rope| rope.positions() < self.segments.longest()) {
            bail!("{} rotary positions are too few for {} rows", rope.positions(), self.segments.longest());
        }
        Ok(Columns { width, head, heads, kv_heads })
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head as f32).sqrt()
    }

    /// Keys that a block of query rows ending at `end` can see.
    fn seen(&self, end: usize, length: usize) -> usize {
        if self.causal { end } else { length }
    }

    /// Probabilities of query rows `first..` of `q` over the first `wide` keys, into `out`.
    fn probabilities(&self, q: &[f32], k: &[f32], first: usize, wide: usize, out: &mut [f32]) {
        let rows = out.len() / wide;
        let (q, k) = (Matrix::of(&q[first * self.head..], self.head), Matrix::of(k, self.head).transposed());
        // SAFETY: `q` and `k` hold at least the segment's rows of `head` values, `out` is rows × wide.
        unsafe { gemm([rows, wide, self.head], out.as_mut_ptr(), wide, false, q, k) };
        softmax_rows(out, wide, self.causal.then_some(first));
    }

    fn forward(&self, x: &[f32], at: &Columns, out: &mut [f32]) {
        let (head, wide_out, longest) = (at.head, at.heads * at.head, self.segments.longest());
        let mut buffers = Buffers::new(longest, head);
        for rows in self.segments.iter() {
            let t = rows.len();
            if t == 0 {
                continue;
            }
            let x = &x[rows.start * at.width..rows.end * at.width];
            let out = &mut out[rows.start * wide_out..rows.end * wide_out];
            for kv in 0..at.kv_heads {
                buffers.load_keys(self, x, at, kv, t);
                for h in kv * (at.heads / at.kv_heads)..(kv + 1) * (at.heads / at.kv_heads) {
                    load(&x[at.query(h)..], at.width, head, self.rope.as_ref(), self.scale(), &mut buffers.q[..t * head]);
                    for first in (0..t).step_by(BLOCK) {
                        let end = (first + BLOCK).min(t);
                        let wide = self.seen(end, t);
                        let p = &mut buffers.p[..(end - first) * wide];
                        self.probabilities(&buffers.q, &buffers.k, first, wide, p);
                        let (p, v) = (Matrix::of(p, wide), Matrix::of(&buffers.v, head));
                        // SAFETY: rows first..end of the segment's output, `head` columns each.
                        unsafe {
                            gemm(
                                [end - first, head, wide],
                                out[first * wide_out + h * head..].as_mut_ptr(),
                                wide_out,
                                false,
                                p,
                                v,
                            )
                        };
                    }
                }
            }
        }
    }

    fn backward(&self, x: &[f32], g: &[f32], at: &Columns, dx: &mut [f32]) {
        let (head, wide_out, longest) = (at.head, at.heads * at.head, self.segments.longest());
        let (mut buffers, mut grads) = (Buffers::new(longest, head), Buffers::new(longest, head));
        for rows in self.segments.iter() {
            let t = rows.len();
            if t == 0 {
                continue;
            }
            let x = &x[rows.start * at.width..rows.end * at.width];
            let g = &g[rows.start * wide_out..rows.end * wide_out];
            let dx = &mut dx[rows.start * at.width..rows.end * at.width];
            for kv in 0..at.kv_heads {
                buffers.load_keys(self, x, at, kv, t);
                grads.k[..t * head].fill(0.0);
                grads.v[..t * head].fill(0.0);
                for h in kv * (at.heads / at.kv_heads)..(kv + 1) * (at.heads / at.kv_heads) {
                    load(&x[at.query(h)..], at.width, head, self.rope.as_ref(), self.scale(), &mut buffers.q[..t * head]);
                    for first in (0..t).step_by(BLOCK) {
                        let end = (first + BLOCK).min(t);
                        self.block_backward(&g[h * head..], wide_out, first..end, t, &mut buffers, &mut grads);
                    }
                    unload(&grads.q[..t * head], at.width, head, self.rope.as_ref(), self.scale(), &mut dx[at.query(h)..]);
                }
                unload(&grads.k[..t * head], at.width, head, self.rope.as_ref(), 1.0, &mut dx[at.key(kv)..]);
                unload(&grads.v[..t * head], at.width, head, None, 1.0, &mut dx[at.value(kv)..]);
            }
        }
    }

    /// Gradients of one block of query rows: writes its rows of `grads.q`, adds to `grads.k` and `grads.v`.
    fn block_backward(
        &self,
        g: &[f32],
        g_row: usize,
        rows: std::ops::Range<usize>,
        t: usize,
        buffers: &mut Buffers,
        grads: &mut Buffers,
    ) {
        let (head, n, wide) = (self.head, rows.len(), self.seen(rows.end, t));
        let (p, dp) = (&mut buffers.p[..n * wide], &mut grads.p[..n * wide]);
        self.probabilities(&buffers.q, &buffers.k, rows.start, wide, p);
        let (k, v) = (Matrix::of(&buffers.k, head), Matrix::of(&buffers.v, head));
        let q = Matrix::of(&buffers.q[rows.start * head..], head);
        let g = Matrix { data: g[rows.start * g_row..].as_ptr(), row: g_row, column: 1 };
        // SAFETY: all buffers hold the segment's rows of `head` values, scores are n × wide.
        unsafe {
            gemm([n, wide, head], dp.as_mut_ptr(), wide, false, g, v.transposed());
            gemm([wide, head, n], grads.v.as_mut_ptr(), head, true, Matrix::of(p, wide).transposed(), g);
        }
        softmax_rows_backward(p, dp, wide);
        let dp = Matrix::of(dp, wide);
        // SAFETY: as above.
        unsafe {
            gemm([n, head, wide], grads.q[rows.start * head..].as_mut_ptr(), head, false, dp, k);
            gemm([wide, head, n], grads.k.as_mut_ptr(), head, true, dp.transposed(), q);
        }
    }
}

/// One head's rows of the longest segment, and the scores of one block.
struct Buffers {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    p: Vec<f32>,
}

impl Buffers {
    fn new(longest: usize, head: usize) -> Self {
        let rows = || vec![0.0; longest * head];
        Self { q: rows(), k: rows(), v: rows(), p: vec![0.0; BLOCK * longest] }
    }

    fn load_keys(&mut self, attention: &Attention, x: &[f32], at: &Columns, kv: usize, t: usize) {
        let head = at.head;
        load(&x[at.key(kv)..], at.width, head, attention.rope.as_ref(), 1.0, &mut self.k[..t * head]);
        load(&x[at.value(kv)..], at.width, head, None, 1.0, &mut self.v[..t * head]);
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = layout.shape().dims2()?;
        let at = self.columns(width, n)?;
        let mut out = vec![0.0; n * at.heads * at.head];
        self.forward(slice(x, layout)?, &at, &mut out);
        Ok((CpuStorage::F32(out), (n, at.heads * at.head).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (n, width) = x.dims2()?;
        let at = self.columns(width, n)?;
        let mut dx = vec![0.0; n * width];
        read(x, |x| read(grad, |g| self.backward(x, g, &at, &mut dx)))??;
        tensor(dx, (n, width)).map(Some)
    }
}

/// Attention of `qkv[N, (heads + 2 · kv_heads) · head]`, whose rows hold queries, keys and values → `[N, heads · head]`.
///
/// # Errors
/// When the sizes do not fit each other.
pub fn attention(qkv: &Tensor, how: &Attention) -> Result<Tensor> {
    if qkv.device().is_cpu() {
        return qkv.contiguous()?.apply_op1(how.clone());
    }
    let (n, width) = qkv.dims2()?;
    let at = how.columns(width, n)?;
    let all = qkv.reshape((n, at.heads + 2 * at.kv_heads, at.head))?;
    let positions = how.segments.positions();
    let turn = |x: Tensor| match &how.rope {
        Some(rope) => rope.turn_tensor(&x, &positions),
        None => Ok(x),
    };
    let q = (turn(all.narrow(1, 0, at.heads)?)? * f64::from(how.scale()))?;
    let k = turn(all.narrow(1, at.heads, at.kv_heads)?)?;
    let v = all.narrow(1, at.heads + at.kv_heads, at.kv_heads)?;
    let parts: Vec<Tensor> = how
        .segments
        .iter()
        .filter(|rows| !rows.is_empty())
        .map(|rows| {
            let of = |x: &Tensor| x.narrow(0, rows.start, rows.len());
            attend(&of(&q)?, &of(&k)?, &of(&v)?, how.causal)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&parts, 0)
}

/// Plain attention of scaled queries `q[t, heads, head]` over `k, v[s, kv_heads, head]` → `[t, heads · head]`; when causal the queries are the
/// last `t` of `s` positions.
pub(crate) fn attend(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
    let ((t, heads, head), (s, kv_heads, _)) = (q.dims3()?, k.dims3()?);
    let spread = |x: &Tensor| -> Result<Tensor> {
        let x = x.transpose(0, 1)?.unsqueeze(1)?.expand((kv_heads, heads / kv_heads, s, head))?;
        x.reshape((heads, s, head))?.contiguous()
    };
    let (q, k, v) = (q.transpose(0, 1)?.contiguous()?, spread(k)?, spread(v)?);
    let mut scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?;
    if causal && t > 1 {
        let mask: Vec<f32> = (0..t * s).map(|i| if i % s > i / s + (s - t) { f32::NEG_INFINITY } else { 0.0 }).collect();
        scores = scores.broadcast_add(&Tensor::from_vec(mask, (1, t, s), q.device())?)?;
    }
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
    p.matmul(&v)?.transpose(0, 1)?.reshape((t, heads * head))
}
