//! The encoder on one CPU core, without tensors in between.

use super::{Bert, BertLayer, Norm};
use crate::{
    Result, Segments,
    layer::{pack, values},
    ops::{Gelu, PackedMatrix, kernels},
};

/// An encoder's weights as the CPU kernels read them.
#[derive(Debug)]
pub(super) struct Packed {
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: PackedNorm,
    layers: Vec<PackedLayer>,
}

#[derive(Debug)]
struct PackedLayer {
    qkv: PackedMatrix,
    out: PackedMatrix,
    attention_norm: PackedNorm,
    up: PackedMatrix,
    down: PackedMatrix,
    norm: PackedNorm,
}

/// Weight and bias of a layer norm.
#[derive(Debug)]
struct PackedNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl PackedNorm {
    fn new(norm: &Norm) -> Result<Self> {
        Ok(Self { weight: values(&norm.weight)?, bias: values(&norm.bias)? })
    }

    fn apply(&self, x: &mut [f32], eps: f64) {
        kernels::layer_norm_in_place(x, &self.weight, &self.bias, eps as f32);
    }
}

/// Rows that go through a layer's feed-forward part at a time, so that the wide rows stay in the cache.
const ROWS: usize = 96;

impl Packed {
    pub(super) fn new(bert: &Bert) -> Result<Self> {
        let w = &bert.weights;
        let layer = |layer: &BertLayer| {
            Ok(PackedLayer {
                qkv: pack(&layer.qkv)?,
                out: pack(&layer.out)?,
                attention_norm: PackedNorm::new(&layer.attention_norm)?,
                up: pack(&layer.up)?,
                down: pack(&layer.down)?,
                norm: PackedNorm::new(&layer.norm)?,
            })
        };
        Ok(Self {
            words: values(&w.words)?,
            positions: values(&w.positions)?,
            types: values(&w.types)?,
            norm: PackedNorm::new(&w.norm)?,
            layers: w.layers.iter().map(layer).collect::<Result<_>>()?,
        })
    }

    /// Last rows, `[rows, hidden]`. Everything is known to exist.
    pub(super) fn rows(&self, bert: &Bert, ids: &[u32], types: &[u32], segments: &Segments) -> Vec<f32> {
        let c = &bert.config;
        let h = c.hidden;
        let mut x = vec![0.0; ids.len() * h];
        let places = segments.positions();
        for (row, x) in x.chunks_exact_mut(h).enumerate() {
            let (word, kind, place) = (ids[row] as usize, types[row] as usize, places[row] as usize);
            let parts = self.words[word * h..][..h].iter().zip(&self.types[kind * h..]).zip(&self.positions[place * h..]);
            for (x, ((word, kind), place)) in x.iter_mut().zip(parts) {
                *x = word + kind + place;
            }
        }
        self.norm.apply(&mut x, c.eps);
        let mut qkv = vec![0.0; ids.len() * 3 * h];
        let mut attended = vec![0.0; ids.len() * h];
        let mut inner = vec![0.0; ids.len().min(ROWS) * c.inner];
        let mut work = kernels::Full::new(segments.longest(), h / c.heads);
        for layer in &self.layers {
            layer.qkv.rows(&x, &mut qkv);
            for rows in segments.iter() {
                let qkv = &qkv[rows.start * 3 * h..rows.end * 3 * h];
                work.attend(qkv, c.heads, &mut attended[rows.start * h..rows.end * h]);
            }
            layer.out.rows_added(&attended, &mut x);
            layer.attention_norm.apply(&mut x, c.eps);
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
        x
    }
}
