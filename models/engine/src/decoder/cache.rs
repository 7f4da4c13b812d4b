//! Keys and values of one sequence.

use candle_core::{Device, Tensor};

use super::DecoderConfig;
use crate::{EngineError, Result};

/// Positions that the CPU kernels take at a time; capacities are rounded up to it.
pub(super) const BLOCK: usize = crate::ops::kernels::BLOCK;

/// Keys and values of the tokens that one sequence has seen, at most `capacity` tokens. On the CPU their room is reserved at once; elsewhere
/// the cache grows by concatenation. A clone is a copy: a shared prompt is computed once and cloned for each of its continuations.
#[derive(Debug, Clone)]
pub struct KvCache {
    length: usize,
    capacity: usize,
    /// Layers, and key values of one token in one layer.
    shape: [usize; 2],
    pub(super) store: Store,
}

#[derive(Debug, Clone)]
pub(super) enum Store {
    /// One entry per layer.
    Cpu(Vec<LayerStore>),
    /// One entry per layer: keys and values, `[length, kv_heads, head]`.
    Device(Vec<Option<(Tensor, Tensor)>>),
}

/// One layer's keys and values on the CPU.
#[derive(Debug, Clone)]
pub(super) struct LayerStore {
    /// `[kv_heads, blocks, head, BLOCK]`: within a block of positions, one key value of all of them lies together.
    pub(super) keys: Vec<f32>,
    /// `[kv_heads, capacity, head]`.
    pub(super) values: Vec<f32>,
}

impl KvCache {
    pub(super) fn new(config: &DecoderConfig, device: &Device, capacity: usize) -> Self {
        let capacity = capacity.min(config.positions).next_multiple_of(BLOCK);
        if !device.is_cpu() {
            return Self::of_tensors(config, capacity);
        }
        let size = config.kv_heads * config.head * capacity;
        let layer = || LayerStore { keys: vec![0.0; size], values: vec![0.0; size] };
        let store = Store::Cpu((0..config.layers).map(|_| layer()).collect());
        Self { length: 0, capacity, shape: shape(config), store }
    }

    /// A cache for devices other than the CPU.
    pub(super) fn of_tensors(config: &DecoderConfig, capacity: usize) -> Self {
        Self { length: 0, capacity, shape: shape(config), store: Store::Device(vec![None; config.layers]) }
    }

    /// Tokens that it holds.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Tokens that it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets all but the first `length` tokens.
    ///
    /// # Errors
    /// The tensor library's.
    pub fn truncate(&mut self, length: usize) -> Result<()> {
        if length >= self.length {
            return Ok(());
        }
        self.length = length;
        if let Store::Device(layers) = &mut self.store {
            for layer in layers {
                *layer = match layer.take() {
                    Some((k, v)) if length > 0 => Some((k.narrow(0, 0, length)?, v.narrow(0, 0, length)?)),
                    _ => None,
                };
            }
        }
        Ok(())
    }

    /// Refuses more tokens than there is room for, and another model's cache.
    pub(super) fn check(&self, config: &DecoderConfig, tokens: usize) -> Result<()> {
        if self.shape != shape(config) {
            return Err(EngineError::model("a cache was made for another model"));
        }
        if self.length + tokens > self.capacity {
            let (needed, capacity) = (self.length + tokens, self.capacity);
            return Err(EngineError::model(format!("{needed} tokens do not fit a cache of {capacity}")));
        }
        Ok(())
    }

    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }
}

fn shape(config: &DecoderConfig) -> [usize; 2] {
    [config.layers, config.kv_heads * config.head]
}
