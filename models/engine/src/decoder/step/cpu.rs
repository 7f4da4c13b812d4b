//! The packed pass on one CPU core, without tensors in between.

use std::ops::Range;

use super::{StepInput, StepOutput, Want};
use crate::{
    EngineError, Result, Segments,
    decoder::{
        Decoder, DecoderLayer, KvCache,
        cache::{LayerStore, Store},
    },
    layer::{pack, values},
    ops::{
        self, PackedMatrix,
        kernels::{self, KeysValues, QUERIES, Queries},
    },
};

/// A decoder's weights as the CPU kernels read them.
#[derive(Debug)]
pub(crate) struct Packed {
    layers: Vec<PackedLayer>,
    norm: Vec<f32>,
    /// `[hidden, vocab]`.
    pub(crate) head: PackedMatrix,
}

#[derive(Debug)]
struct PackedLayer {
    attention_norm: Vec<f32>,
    qkv: PackedMatrix,
    out: PackedMatrix,
    mlp_norm: Vec<f32>,
    gate_up: PackedMatrix,
    down: PackedMatrix,
}

impl Packed {
    pub(crate) fn new(decoder: &Decoder) -> Result<Self> {
        let layer = |layer: &DecoderLayer| {
            Ok(PackedLayer {
                attention_norm: values(&layer.attention_norm)?,
                qkv: pack(&layer.qkv)?,
                out: pack(&layer.out)?,
                mlp_norm: values(&layer.mlp_norm)?,
                gate_up: pack(&layer.gate_up)?,
                down: pack(&layer.down)?,
            })
        };
        let (vocab, hidden) = decoder.head().dims2()?;
        Ok(Self {
            layers: decoder.weights.layers.iter().map(layer).collect::<Result<_>>()?,
            norm: values(&decoder.weights.norm)?,
            head: ops::read(decoder.head(), |w| PackedMatrix::from_transposed(w, hidden, vocab))?,
        })
    }
}

/// Rows that go through the feed-forward part at a time, so that the wide rows stay in the cache.
const MLP_ROWS: usize = 96;

/// The rows of one sequence in a step.
struct Work {
    seq: usize,
    rows: Range<usize>,
    /// Position of the first row.
    first: usize,
}

impl Decoder {
    pub(super) fn step_cpu(
        &self,
        caches: &mut [&mut KvCache],
        inputs: &[StepInput<'_>],
        segments: &Segments,
        want: &Want<'_>,
    ) -> Result<StepOutput> {
        let packed = self.packed()?;
        let (c, h) = (&self.config, self.config.hidden);
        let work: Vec<Work> = inputs
            .iter()
            .zip(segments.iter())
            .map(|(input, rows)| Work { seq: input.seq, rows, first: caches[input.seq].len() })
            .collect();
        let mut x = self.embed(inputs)?;
        let mut buffers = Buffers::new(c.head);
        for (layer, weights) in packed.layers.iter().enumerate() {
            self.layer_cpu(weights, layer, caches, &work, &mut x, &mut buffers)?;
        }
        let wanted: Vec<f32> = want.rows.iter().flat_map(|row| &x[row * h..(row + 1) * h]).copied().collect();
        let mut hidden = vec![0.0; wanted.len()];
        kernels::rms_rows(&wanted, &packed.norm, c.eps as f32, &mut hidden);
        Ok(StepOutput { hidden: ops::tensor(hidden, (want.rows.len(), h))? })
    }

    fn embed(&self, inputs: &[StepInput<'_>]) -> Result<Vec<f32>> {
        let h = self.config.hidden;
        Ok(ops::read(&self.weights.embeddings, |table| {
            let ids = inputs.iter().flat_map(|input| input.tokens);
            ids.flat_map(|id| &table[*id as usize * h..][..h]).copied().collect()
        })?)
    }

    /// One layer over all rows of `x`, in place.
    fn layer_cpu(
        &self,
        weights: &PackedLayer,
        layer: usize,
        caches: &mut [&mut KvCache],
        work: &[Work],
        x: &mut [f32],
        buffers: &mut Buffers,
    ) -> Result<()> {
        let c = &self.config;
        let rows = x.len() / c.hidden;
        let normed = sized(&mut buffers.normed, x.len());
        kernels::rms_rows(x, &weights.attention_norm, c.eps as f32, normed);
        let qkv = sized(&mut buffers.wide, rows * c.qkv_columns());
        weights.qkv.rows(normed, qkv);
        let attended = sized(&mut buffers.attended, rows * c.heads * c.head);
        for part in work {
            let Store::Cpu(store) = &mut caches[part.seq].store else {
                return Err(EngineError::model("a cache of another device was given to the cpu"));
            };
            self.append(&mut store[layer], part, qkv);
            self.attend_cpu(&store[layer], part, qkv, attended, &mut buffers.queries);
        }
        weights.out.rows_added(attended, x);
        for x in x.chunks_mut(MLP_ROWS * c.hidden) {
            let rows = x.len() / c.hidden;
            let normed = sized(&mut buffers.normed, x.len());
            kernels::rms_rows(x, &weights.mlp_norm, c.eps as f32, normed);
            let gate_up = sized(&mut buffers.wide, rows * 2 * c.inner);
            weights.gate_up.rows(normed, gate_up);
            let inner = sized(&mut buffers.inner, rows * c.inner);
            kernels::swiglu_rows(gate_up, c.inner, inner);
            weights.down.rows_added(inner, x);
        }
        Ok(())
    }

    /// Puts the new rows' keys (turned) and values into the store.
    fn append(&self, store: &mut LayerStore, part: &Work, qkv: &[f32]) {
        let c = &self.config;
        let capacity = store.values.len() / (c.kv_heads * c.head);
        for (i, row) in part.rows.clone().enumerate() {
            let row = &qkv[row * c.qkv_columns()..(row + 1) * c.qkv_columns()];
            for kv in 0..c.kv_heads {
                let at = part.first + i;
                let (key, value) = (&row[(c.heads + kv) * c.head..], &row[(c.heads + c.kv_heads + kv) * c.head..]);
                let keys = &mut store.keys[kv * capacity * c.head..(kv + 1) * capacity * c.head];
                kernels::put_turned_key(&self.rope, &key[..c.head], at, keys);
                store.values[(kv * capacity + at) * c.head..][..c.head].copy_from_slice(&value[..c.head]);
            }
        }
    }

    /// Attention of one sequence's new rows over its cache; rows, and heads that share keys, go together.
    fn attend_cpu(&self, store: &LayerStore, part: &Work, qkv: &[f32], out: &mut [f32], queries: &mut Queries) {
        let c = &self.config;
        let size = store.values.len() / c.kv_heads;
        let group = c.heads / c.kv_heads;
        let wide = c.heads * c.head;
        for kv in 0..c.kv_heads {
            let range = kv * size..(kv + 1) * size;
            let seen = KeysValues { keys: &store.keys[range.clone()], values: &store.values[range], row: c.head };
            let all = part.rows.len() * group;
            for first in (0..all).step_by(QUERIES) {
                // A row of this part and a head of this group.
                let places = (first..(first + QUERIES).min(all)).map(|i| (i / group, kv * group + i % group));
                queries.clear();
                for (row, h) in places.clone() {
                    let query = &qkv[(part.rows.start + row) * c.qkv_columns() + h * c.head..][..c.head];
                    let position = part.first + row;
                    queries.push(query, position + 1, Some((&self.rope, position)));
                }
                for ((row, h), result) in places.zip(queries.attend(seen)) {
                    out[(part.rows.start + row) * wide + h * c.head..][..c.head].copy_from_slice(result);
                }
            }
        }
    }
}

/// Memory that a step's layers share.
struct Buffers {
    queries: Queries,
    normed: Vec<f32>,
    wide: Vec<f32>,
    attended: Vec<f32>,
    inner: Vec<f32>,
}

impl Buffers {
    fn new(head: usize) -> Self {
        let none = Vec::new;
        Self { queries: Queries::new(head), normed: none(), wide: none(), attended: none(), inner: none() }
    }
}

fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}
