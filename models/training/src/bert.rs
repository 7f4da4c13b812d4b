//! The BERT-style encoder as it is trained: queries, keys and values in one matrix, matrices `[out, in]` as files store them.

use candle_core::Tensor;
use endcap_engine::{
    Segments,
    ops::{Attention, Gelu, attention, gelu, layer_norm, linear_t, select_rows},
};
use rand::Rng;
use serde::Serialize;

use crate::{
    Result, TrainError,
    files::Tensors,
    params::{Params, Weights},
};

/// Sizes of an encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BertShape {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Values of a row.
    pub hidden: usize,
    /// Values inside the feed-forward block.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Longest sequence.
    pub positions: usize,
    /// Kinds of token: 2 for pairs.
    pub types: usize,
}

const EPSILON: f64 = 1e-12;

/// A packed batch of token sequences.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) ids: Vec<u32>,
    pub(crate) types: Vec<u32>,
    pub(crate) lengths: Vec<usize>,
}

impl Packed {
    pub(crate) fn new() -> Self {
        Self { ids: Vec::new(), types: Vec::new(), lengths: Vec::new() }
    }

    pub(crate) fn push(&mut self, ids: &[u32], types: Option<&[u32]>) {
        self.ids.extend_from_slice(ids);
        match types {
            Some(types) => self.types.extend_from_slice(types),
            None => self.types.resize(self.ids.len(), 0),
        }
        self.lengths.push(ids.len());
    }

    pub(crate) fn segments(&self) -> Segments {
        Segments::of_lengths(self.lengths.iter().copied())
    }
}

impl BertShape {
    /// Fresh weights.
    pub(crate) fn init(&self, rng: &mut impl Rng) -> Params {
        let mut params = Params::default();
        let (h, std) = (self.hidden, 0.02);
        // Token embeddings first: what later models start from.
        params.push_normal("word", &[self.vocabulary, h], 0.05, rng);
        params.push_normal("position", &[self.positions, h], std, rng);
        params.push_normal("type", &[self.types, h], std, rng);
        norm(&mut params, "norm", h);
        let matrix = 0.8 / (h as f32).sqrt();
        let back = matrix / (2.0 * self.layers as f32).sqrt();
        for i in 0..self.layers {
            for (name, out, inside, std) in [
                ("qkv", 3 * h, h, matrix),
                ("out", h, h, back),
                ("up", self.inner, h, matrix),
                ("down", h, self.inner, back * (h as f32 / self.inner as f32).sqrt()),
            ] {
                params.push_normal(format!("layer.{i}.{name}"), &[out, inside], std, rng);
                params.push_full(format!("layer.{i}.{name}.bias"), &[out], 0.0);
            }
            norm(&mut params, &format!("layer.{i}.norm1"), h);
            norm(&mut params, &format!("layer.{i}.norm2"), h);
        }
        params
    }

    /// Rows after the last block, `[tokens, hidden]`.
    pub(crate) fn hidden(&self, weights: &Weights, batch: &Packed) -> Result<Tensor> {
        let segments = batch.segments();
        let of = |name: &str, rows: &[u32]| select_rows(weights.get(name), rows);
        let x = ((of("word", &batch.ids)? + of("position", &segments.positions())?)? + of("type", &batch.types)?)?;
        let normalise = |x: &Tensor, name: &str| layer_norm(x, weights.get(name), weights.get(&format!("{name}.bias")), EPSILON);
        let mut x = normalise(&x, "norm")?;
        let how = Attention {
            segments,
            heads: self.heads,
            kv_heads: self.heads,
            head: self.hidden / self.heads,
            causal: false,
            rope: None,
        };
        for i in 0..self.layers {
            let linear = |x: &Tensor, name: &str| {
                linear_t(x, weights.get(&format!("layer.{i}.{name}")), Some(weights.get(&format!("layer.{i}.{name}.bias"))))
            };
            let y = linear(&attention(&linear(&x, "qkv")?, &how)?, "out")?;
            x = normalise(&(x + y)?, &format!("layer.{i}.norm1"))?;
            let y = linear(&gelu(&linear(&x, "up")?, Gelu::Erf)?, "down")?;
            x = normalise(&(x + y)?, &format!("layer.{i}.norm2"))?;
        }
        Ok(x)
    }

    /// Reads weights that stand under the names of `BertModel`, with or without `bert.` in front.
    pub(crate) fn import(&self, tensors: &Tensors) -> Result<Params> {
        let take = |name: &str| -> Result<(Vec<usize>, Vec<f32>)> {
            tensors.get(name).or_else(|_| tensors.get(&format!("bert.{name}")))
        };
        let mut params = Params::default();
        let mut push = |ours: String, theirs: &[String]| -> Result<()> {
            let (mut shape, mut values) = (Vec::new(), Vec::new());
            for name in theirs {
                let (part, more) = take(name)?;
                values.extend(more);
                if shape.is_empty() { shape = part } else { shape[0] += part[0] }
            }
            params.push(ours, &shape, values);
            Ok(())
        };
        for (ours, theirs) in self.names() {
            push(ours, &theirs)?;
        }
        let count = params.get("word").map_or(0, |word| word.shape[0]);
        if count != self.vocabulary {
            return Err(TrainError::Setting(format!("the model has {count} words, its configuration says {}", self.vocabulary)));
        }
        Ok(params)
    }

    /// The weights under the names of `BertModel`, as `(name, shape, values)`.
    pub(crate) fn export(&self, params: &Params) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut out = Vec::new();
        for (ours, theirs) in self.names() {
            let param = params.get(&ours).unwrap_or_else(|| panic!("the model has no tensor `{ours}`"));
            let rows = param.shape[0] / theirs.len();
            let mut shape = param.shape.clone();
            shape[0] = rows;
            for (name, values) in theirs.into_iter().zip(param.value.chunks_exact(rows * param.value.len() / param.shape[0])) {
                out.push((name, shape.clone(), values.to_vec()));
            }
        }
        out
    }

    /// Our name of each tensor and the names that files know its parts by.
    fn names(&self) -> Vec<(String, Vec<String>)> {
        let one = |ours: &str, theirs: &str| (ours.to_owned(), vec![theirs.to_owned()]);
        let mut names = vec![
            one("word", "embeddings.word_embeddings.weight"),
            one("position", "embeddings.position_embeddings.weight"),
            one("type", "embeddings.token_type_embeddings.weight"),
            one("norm", "embeddings.LayerNorm.weight"),
            one("norm.bias", "embeddings.LayerNorm.bias"),
        ];
        for i in 0..self.layers {
            for (suffix, kind) in [("", "weight"), (".bias", "bias")] {
                let theirs = |rest: &str| format!("encoder.layer.{i}.{rest}.{kind}");
                let qkv = ["query", "key", "value"].map(|part| theirs(&format!("attention.self.{part}")));
                names.push((format!("layer.{i}.qkv{suffix}"), qkv.to_vec()));
                for (ours, rest) in [
                    ("out", "attention.output.dense"),
                    ("norm1", "attention.output.LayerNorm"),
                    ("up", "intermediate.dense"),
                    ("down", "output.dense"),
                    ("norm2", "output.LayerNorm"),
                ] {
                    names.push((format!("layer.{i}.{ours}{suffix}"), vec![theirs(rest)]));
                }
            }
        }
        names
    }
}

fn norm(params: &mut Params, name: &str, hidden: usize) {
    params.push_full(name, &[hidden], 1.0);
    params.push_full(format!("{name}.bias"), &[hidden], 0.0);
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SHAPE: BertShape = BertShape { vocabulary: 11, hidden: 8, inner: 16, layers: 2, heads: 2, positions: 6, types: 2 };

    #[test]
    fn weights_that_are_exported_and_imported_are_the_same() {
        let params = SHAPE.init(&mut ChaCha8Rng::seed_from_u64(1));
        let tensors = Tensors::of(SHAPE.export(&params));
        let mut back = SHAPE.import(&tensors).unwrap();
        let mut expected = params;
        back.0.sort_by(|a, b| a.name.cmp(&b.name));
        expected.0.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(back, expected);
    }

    #[test]
    fn every_trained_tensor_gets_a_gradient() {
        let params = SHAPE.init(&mut ChaCha8Rng::seed_from_u64(2));
        let weights = params.weights().unwrap();
        let mut batch = Packed::new();
        batch.push(&[2, 5, 6, 3], None);
        batch.push(&[2, 7, 3, 9, 3], Some(&[0, 0, 0, 1, 1]));
        let loss = SHAPE.hidden(&weights, &batch).unwrap().powf(3.0).unwrap().sum_all().unwrap();
        let store = loss.backward().unwrap();
        for ((name, _), gradient) in weights.trained().iter().zip(weights.gradients(&store).unwrap()) {
            let size: f32 = gradient.iter().map(|g| g.abs()).sum();
            // A bias on keys shifts every score of a row alike: its gradient is nothing but rounding.
            assert!(size > 1e-7, "{name} has no gradient");
        }
    }
}
