//! DeBERTa's layers on one CPU core, without tensors in between.

use std::ops::Range;

use super::{DebertaConfig, Layer};
use crate::{
    Norm, Result, Segments,
    layer::{pack, values},
    ops::{
        Gelu, PackedMatrix,
        kernels::{self, Matrix, gemm},
    },
};

/// A layer as the CPU kernels read it.
#[derive(Debug)]
pub(super) struct PackedLayer {
    qkv: PackedMatrix,
    out: PackedMatrix,
    attention_norm: PackedNorm,
    up: PackedMatrix,
    down: PackedMatrix,
    norm: PackedNorm,
    /// `[heads, 2 · span, head]`, empty where contents do not look for positions.
    position_keys: Vec<f32>,
    /// `[heads, 2 · span, head]`, empty where positions do not look for contents.
    position_queries: Vec<f32>,
}

#[derive(Debug)]
struct PackedNorm(Vec<f32>, Vec<f32>);

impl PackedNorm {
    fn new(norm: &Norm) -> Result<Self> {
        Ok(Self(values(&norm.weight)?, values(&norm.bias)?))
    }
    fn apply(&self, x: &mut [f32], eps: f64) {
        kernels::layer_norm_in_place(x, &self.0, &self.1, eps as f32);
    }
}

impl PackedLayer {
    pub(super) fn new(c: &DebertaConfig, layer: &Layer) -> Result<Self> {
        let (heads, head) = (c.heads, c.hidden / c.heads);
        let by_head = |table: &Option<candle_core::Tensor>| match table {
            Some(table) => values(&table.reshape((2 * c.span, heads, head))?.transpose(0, 1)?.contiguous()?),
            None => Ok(Vec::new()),
        };
        Ok(Self {
            qkv: pack(&layer.qkv)?,
            out: pack(&layer.out)?,
            attention_norm: PackedNorm::new(&layer.attention_norm)?,
            up: pack(&layer.up)?,
            down: pack(&layer.down)?,
            norm: PackedNorm::new(&layer.norm)?,
            position_keys: by_head(&layer.position_keys)?,
            position_queries: by_head(&layer.position_queries)?,
        })
    }
}

/// Rows that go through a layer's feed-forward part at a time.
const ROWS: usize = 96;

/// Runs all layers over `x[rows, hidden]`, in place.
pub(super) fn run(c: &DebertaConfig, layers: &[PackedLayer], x: &mut [f32], segments: &Segments) {
    let h = c.hidden;
    let mut qkv = vec![0.0; x.len() * 3];
    let mut attended = vec![0.0; x.len()];
    let mut inner = vec![0.0; (x.len() / h).min(ROWS) * c.inner];
    let mut work = Work::default();
    for layer in layers {
        layer.qkv.rows(x, &mut qkv);
        for rows in segments.iter().filter(|rows| !rows.is_empty()) {
            work.attend(c, layer, &qkv[rows.start * 3 * h..rows.end * 3 * h], &mut attended[rows.start * h..rows.end * h]);
        }
        layer.out.rows_added(&attended, x);
        layer.attention_norm.apply(x, c.eps);
        for x in x.chunks_mut(ROWS * h) {
            let inner = &mut inner[..x.len() / h * c.inner];
            layer.up.rows(x, inner);
            match c.gelu {
                Gelu::Erf => kernels::gelu_erf_in_place(inner),
                Gelu::Tanh => kernels::gelu_tanh_in_place(inner),
            }
            layer.down.rows_added(inner, x);
            layer.norm.apply(x, c.eps);
        }
    }
}

/// Memory of one text's attention.
#[derive(Default)]
struct Work {
    scores: Vec<f32>,
    to_position: Vec<f32>,
    to_content: Vec<f32>,
}

/// The rows of the relative embeddings that a text of some length needs, and each distance's place among them.
struct Distances {
    rows: Range<usize>,
    /// By distance, from `1 − t` to `t − 1`.
    places: Vec<usize>,
}

impl Distances {
    fn of(c: &DebertaConfig, t: usize) -> Self {
        let last = t as i64 - 1;
        let rows = c.relative_row(-last)..c.relative_row(last) + 1;
        let places = (-last..=last).map(|distance| c.relative_row(distance) - rows.start).collect();
        Self { rows, places }
    }
}

impl Work {
    /// Attention of one text's rows `[queries | keys | values]` → `out[t, hidden]`.
    fn attend(&mut self, c: &DebertaConfig, layer: &PackedLayer, qkv: &[f32], out: &mut [f32]) {
        let (h, head) = (c.hidden, c.hidden / c.heads);
        let t = qkv.len() / (3 * h);
        let distances = Distances::of(c, t);
        let wide = distances.rows.len();
        let scale = 1.0 / c.score_scale();
        self.scores.resize(t * t, 0.0);
        self.to_position.resize(t * wide, 0.0);
        self.to_content.resize(t * wide, 0.0);
        for n in 0..c.heads {
            let part = |part: usize| Matrix::rows_of(&qkv[part * h + n * head..], 3 * h);
            let (q, k, v) = (part(0), part(1), part(2));
            let table = |table: &'_ [f32]| {
                let first = (n * 2 * c.span + distances.rows.start) * head;
                Matrix::rows_of(&table[first..first + wide * head], head).transposed()
            };
            let (scores, to_position, to_content) = (&mut self.scores, &mut self.to_position, &mut self.to_content);
            // SAFETY: queries, keys and values are `t` rows of `head` values 3 · hidden apart, the tables `wide` rows of `head`;
            // each result buffer has just been sized.
            unsafe {
                gemm([t, t, head], scores.as_mut_ptr(), t, false, q, k.transposed());
                if c.content_to_position {
                    gemm([t, wide, head], to_position.as_mut_ptr(), wide, false, q, table(&layer.position_keys));
                }
                if c.position_to_content {
                    gemm([t, wide, head], to_content.as_mut_ptr(), wide, false, k, table(&layer.position_queries));
                }
            }
            for (row, scores) in scores.chunks_exact_mut(t).enumerate() {
                for (key, score) in scores.iter_mut().enumerate() {
                    let place = distances.places[row + t - 1 - key];
                    if c.content_to_position {
                        *score += to_position[row * wide + place];
                    }
                    if c.position_to_content {
                        *score += to_content[key * wide + place];
                    }
                    *score *= scale;
                }
            }
            kernels::softmax_rows(scores, t);
            // SAFETY: scores are t × t, the output's rows lie `hidden` apart.
            unsafe { gemm([t, head, t], out[n * head..].as_mut_ptr(), h, false, Matrix::rows_of(scores, t), v) };
        }
    }
}
