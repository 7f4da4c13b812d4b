//! One packed forward pass over cached sequences: prefill chunks, forced runs and single decoded tokens alike.

use std::ops::Range;

use candle_core::Tensor;

use super::{Decoder, KvCache, cache::Store};
use crate::{EngineError, Result, Segments, ops};

mod cpu;

pub(super) use cpu::Packed;

/// Tokens that follow those in a cache.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Which of the step's caches. A cache stands in at most one input of a step.
    pub seq: usize,
    /// The tokens, at least one.
    pub tokens: &'a [u32],
}

/// What a step shall return. Rows count through all inputs' tokens, in the inputs' order; a row may stand more than once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want<'a> {
    /// Rows whose last hidden state is wanted.
    pub rows: &'a [usize],
}

impl<'a> Want<'a> {
    /// The last hidden states of `rows`.
    pub fn rows(rows: &'a [usize]) -> Self {
        Self { rows }
    }
}

/// What a step returns.
#[derive(Debug, Clone)]
pub struct StepOutput {
    /// Last hidden states after the norm, `[wanted rows, hidden]`.
    pub hidden: Tensor,
}

impl Decoder {
    /// An empty cache for up to `capacity` tokens (rounded up, at most the model's context).
    pub fn cache(&self, capacity: usize) -> KvCache {
        KvCache::new(&self.config, self.device(), capacity)
    }

    /// Computes the inputs' tokens in one pass and appends them to their caches.
    ///
    /// On the CPU a row's result has the same bits whatever else is in the step and however its sequence was cut into steps.
    /// After an error the caches are unusable.
    ///
    /// # Errors
    /// [`EngineError::Model`] for an unknown token, sequence or row, an empty or repeated input or a full cache.
    pub fn step(&self, caches: &mut [&mut KvCache], inputs: &[StepInput<'_>], want: &Want<'_>) -> Result<StepOutput> {
        let segments = self.check_step(caches, inputs, want)?;
        let output = if self.device().is_cpu() {
            self.step_cpu(caches, inputs, &segments, want)?
        } else {
            self.step_device(caches, inputs, &segments, want)?
        };
        for input in inputs {
            caches[input.seq].advance(input.tokens.len());
        }
        Ok(output)
    }

    fn check_step(&self, caches: &[&mut KvCache], inputs: &[StepInput<'_>], want: &Want<'_>) -> Result<Segments> {
        let mut seen = vec![false; caches.len()];
        for input in inputs {
            let cache = caches.get(input.seq).ok_or_else(|| EngineError::model(format!("no cache {}", input.seq)))?;
            if input.tokens.is_empty() || std::mem::replace(&mut seen[input.seq], true) {
                return Err(EngineError::model(format!("cache {} needs exactly one input with tokens", input.seq)));
            }
            cache.check(&self.config, input.tokens.len())?;
            if cache.len() + input.tokens.len() > self.config.positions {
                return Err(EngineError::model(format!("a sequence is longer than {} tokens", self.config.positions)));
            }
            self.check_ids(input.tokens)?;
        }
        let segments = Segments::of_lengths(inputs.iter().map(|input| input.tokens.len()));
        if let Some(row) = want.rows.iter().find(|row| **row >= segments.rows()) {
            return Err(EngineError::model(format!("no row {row} in a step of {} tokens", segments.rows())));
        }
        Ok(segments)
    }

    /// The same pass with plain tensor operations, for other devices.
    pub(super) fn step_device(
        &self,
        caches: &mut [&mut KvCache],
        inputs: &[StepInput<'_>],
        segments: &Segments,
        want: &Want<'_>,
    ) -> Result<StepOutput> {
        let (c, w) = (&self.config, &self.weights);
        let ids: Vec<u32> = inputs.iter().flat_map(|input| input.tokens).copied().collect();
        let positions: Vec<u32> = inputs
            .iter()
            .flat_map(|input| (caches[input.seq].len()..).take(input.tokens.len()))
            .map(|position| position as u32)
            .collect();
        let mut x = ops::select_rows(&w.embeddings, &ids)?;
        for (layer, part) in w.layers.iter().enumerate() {
            let qkv = part.qkv.forward(&ops::rms_norm(&x, &part.attention_norm, c.eps)?)?;
            let all = qkv.reshape((ids.len(), c.heads + 2 * c.kv_heads, c.head))?;
            let q = (self.rope.turn_tensor(&all.narrow(1, 0, c.heads)?, &positions)? / (c.head as f64).sqrt())?;
            let k = self.rope.turn_tensor(&all.narrow(1, c.heads, c.kv_heads)?, &positions)?;
            let v = all.narrow(1, c.heads + c.kv_heads, c.kv_heads)?;
            let attended = inputs
                .iter()
                .zip(segments.iter())
                .map(|(input, rows)| attend_cached(caches[input.seq], layer, &q, &k, &v, rows))
                .collect::<Result<Vec<_>>>()?;
            x = (x + part.out.forward(&Tensor::cat(&attended, 0)?)?)?;
            let normed = ops::rms_norm(&x, &part.mlp_norm, c.eps)?;
            x = (x + part.down.forward(&ops::swiglu(&part.gate_up.forward(&normed)?)?)?)?;
        }
        let rows: Vec<u32> = want.rows.iter().map(|row| *row as u32).collect();
        Ok(StepOutput { hidden: ops::rms_norm(&ops::select_rows(&x, &rows)?, &w.norm, c.eps)? })
    }
}

/// Appends a sequence's new keys and values to its cache and attends over all of them.
fn attend_cached(cache: &mut KvCache, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor, rows: Range<usize>) -> Result<Tensor> {
    let of = |x: &Tensor| x.narrow(0, rows.start, rows.len());
    let Store::Device(layers) = &mut cache.store else {
        return Err(EngineError::model("a cache of the cpu was given to another device"));
    };
    let (new_k, new_v) = (of(k)?, of(v)?);
    let (k, v) = match layers[layer].take() {
        Some((k, v)) => (Tensor::cat(&[&k, &new_k], 0)?, Tensor::cat(&[&v, &new_v], 0)?),
        None => (new_k.contiguous()?, new_v.contiguous()?),
    };
    let out = ops::attend(&of(q)?, &k, &v, true)?;
    layers[layer] = Some((k, v));
    Ok(out)
}
