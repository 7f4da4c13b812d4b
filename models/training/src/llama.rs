//! The Llama-style decoder as it is trained: fused matrices `[out, in]`, tied embeddings, a head that scores candidates, and adapters.

use candle_core::Tensor;
use endcap_engine::{
    Segments,
    ops::{Attention, Rope, attention, linear_t, rms_norm, select_rows, swiglu},
};
use rand::Rng;
use serde::Serialize;

use crate::{Result, files::Tensors, params::{Params, Weights}};

/// Sizes of a decoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LlamaShape {
    /// Entries of the vocabulary.
    pub vocabulary: usize,
    /// Values of a row.
    pub hidden: usize,
    /// Values inside the feed-forward block.
    pub inner: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads; as many keys and values.
    pub heads: usize,
    /// Longest sequence.
    pub positions: usize,
}

/// Base of the rotary frequencies.
pub(crate) const ROPE_THETA: f32 = 10_000.0;
pub(crate) const EPSILON: f64 = 1e-5;
/// Weights of the candidate head, `[1, hidden]`.
pub(crate) const CANDIDATE_HEAD: &str = "candidate_head";

/// The fused matrices of a block and the names that files know their parts by.
pub(crate) const MATRICES: [(&str, &[&str]); 4] = [
    ("qkv", &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("out", &["self_attn.o_proj"]),
    ("gate_up", &["mlp.gate_proj", "mlp.up_proj"]),
    ("down", &["mlp.down_proj"]),
];

/// An adapter's rank and strength, as PEFT counts them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoraShape {
    /// Inner size of the added product.
    pub rank: usize,
    /// The product is scaled by `alpha / rank`.
    pub alpha: f32,
}

impl LoraShape {
    pub(crate) fn scale(self) -> f64 {
        f64::from(self.alpha) / self.rank as f64
    }
}

impl LlamaShape {
    /// Sizes of a fused matrix: (rows, columns).
    pub(crate) fn matrix(&self, name: &str) -> (usize, usize) {
        match name {
            "qkv" => (3 * self.hidden, self.hidden),
            "out" => (self.hidden, self.hidden),
            "gate_up" => (2 * self.inner, self.hidden),
            "down" => (self.hidden, self.inner),
            _ => panic!("a block has no matrix `{name}`"),
        }
    }

    /// Fresh weights; `embedding` (`[vocabulary, hidden]`) is where words already mean something.
    pub(crate) fn init(&self, embedding: Option<Vec<f32>>, rng: &mut impl Rng) -> Params {
        let mut params = Params::default();
        match embedding {
            Some(values) => params.push("embed", &[self.vocabulary, self.hidden], values),
            None => params.push_normal("embed", &[self.vocabulary, self.hidden], 0.03, rng),
        }
        let back = 1.0 / (2.0 * self.layers as f32).sqrt();
        for i in 0..self.layers {
            for (name, share) in [("qkv", 1.0), ("out", back), ("gate_up", 1.0), ("down", back)] {
                let (rows, columns) = self.matrix(name);
                let std = 0.8 * share / (columns as f32).sqrt();
                params.push_normal(format!("layer.{i}.{name}"), &[rows, columns], std, rng);
            }
            params.push_full(format!("layer.{i}.norm1"), &[self.hidden], 1.0);
            params.push_full(format!("layer.{i}.norm2"), &[self.hidden], 1.0);
        }
        params.push_full("norm", &[self.hidden], 1.0);
        params.push_normal(CANDIDATE_HEAD, &[1, self.hidden], 1.0 / (self.hidden as f32).sqrt(), rng);
        params
    }

    /// Adds an adapter's matrices to `params` and freezes everything else but the candidate head.
    pub(crate) fn add_adapter(&self, params: &mut Params, lora: LoraShape, rng: &mut impl Rng) {
        for i in 0..self.layers {
            for (name, _) in MATRICES {
                let (rows, columns) = self.matrix(name);
                params.push_normal(format!("layer.{i}.{name}.a"), &[lora.rank, columns], 1.0 / (columns as f32).sqrt(), rng);
                params.push_full(format!("layer.{i}.{name}.b"), &[rows, lora.rank], 0.0);
            }
        }
        params.freeze(|name| !(name.ends_with(".a") || name.ends_with(".b") || name == CANDIDATE_HEAD));
    }

    /// Normalised rows after the last block, `[tokens, hidden]`.
    pub(crate) fn hidden(&self, weights: &Weights, lora: Option<LoraShape>, ids: &[u32], segments: &Segments) -> Result<Tensor> {
        let half = self.hidden / self.heads / 2;
        let frequencies: Vec<f32> = (0..half).map(|i| ROPE_THETA.powf(-(i as f32) / half as f32)).collect();
        let how = Attention {
            rope: Some(Rope::new(&frequencies, segments.longest())),
            segments: segments.clone(),
            heads: self.heads,
            kv_heads: self.heads,
            head: self.hidden / self.heads,
            causal: true,
        };
        let mut x = select_rows(weights.get("embed"), ids)?;
        for i in 0..self.layers {
            let linear = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
                let name = format!("layer.{i}.{name}");
                let y = linear_t(x, weights.get(&name), None)?;
                let Some(lora) = lora else { return Ok(y) };
                let a = linear_t(x, weights.get(&format!("{name}.a")), None)?;
                y + (linear_t(&a, weights.get(&format!("{name}.b")), None)? * lora.scale())?
            };
            let normalise = |x: &Tensor, name: &str| rms_norm(x, weights.get(&format!("layer.{i}.{name}")), EPSILON);
            let y = linear(&attention(&linear(&normalise(&x, "norm1")?, "qkv")?, &how)?, "out")?;
            x = (x + y)?;
            let y = linear(&swiglu(&linear(&normalise(&x, "norm2")?, "gate_up")?)?, "down")?;
            x = (x + y)?;
        }
        Ok(rms_norm(&x, weights.get("norm"), EPSILON)?)
    }

    /// Logits of the given rows over the vocabulary.
    pub(crate) fn logits(&self, weights: &Weights, rows: &Tensor) -> Result<Tensor> {
        Ok(linear_t(rows, weights.get("embed"), None)?)
    }

    /// Scores of the given rows by the candidate head, `[rows, 1]`.
    pub(crate) fn candidate_scores(&self, weights: &Weights, rows: &Tensor) -> Result<Tensor> {
        Ok(linear_t(rows, weights.get(CANDIDATE_HEAD), None)?)
    }

    /// The base's weights under the names of `LlamaForCausalLM`; the output matrix is the embedding and not repeated.
    pub(crate) fn export(&self, params: &Params) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let whole = |ours: &str, theirs: String| {
            let param = params.get(ours).unwrap_or_else(|| panic!("the model has no tensor `{ours}`"));
            (theirs, param.shape.clone(), param.value.clone())
        };
        let mut out = vec![whole("embed", "model.embed_tokens.weight".into()), whole("norm", "model.norm.weight".into())];
        for i in 0..self.layers {
            out.push(whole(&format!("layer.{i}.norm1"), format!("model.layers.{i}.input_layernorm.weight")));
            out.push(whole(&format!("layer.{i}.norm2"), format!("model.layers.{i}.post_attention_layernorm.weight")));
            for (name, parts) in MATRICES {
                let (rows, columns) = self.matrix(name);
                let param = params.get(&format!("layer.{i}.{name}")).expect("every block has its matrices");
                let rows = rows / parts.len();
                for (part, values) in parts.iter().zip(param.value.chunks_exact(rows * columns)) {
                    out.push((format!("model.layers.{i}.{part}.weight"), vec![rows, columns], values.to_vec()));
                }
            }
        }
        out
    }

    /// Reads what [`LlamaShape::export`] wrote.
    pub(crate) fn import(&self, tensors: &Tensors) -> Result<Params> {
        let mut params = Params::default();
        let mut push = |ours: String, theirs: Vec<String>| -> Result<()> {
            let (mut shape, mut values) = (Vec::new(), Vec::new());
            for name in theirs {
                let (part, more) = tensors.get(&name)?;
                values.extend(more);
                if shape.is_empty() { shape = part } else { shape[0] += part[0] }
            }
            params.push(ours, &shape, values);
            Ok(())
        };
        push("embed".into(), vec!["model.embed_tokens.weight".into()])?;
        push("norm".into(), vec!["model.norm.weight".into()])?;
        for i in 0..self.layers {
            let prefix = format!("model.layers.{i}");
            push(format!("layer.{i}.norm1"), vec![format!("{prefix}.input_layernorm.weight")])?;
            push(format!("layer.{i}.norm2"), vec![format!("{prefix}.post_attention_layernorm.weight")])?;
            for (name, parts) in MATRICES {
                push(format!("layer.{i}.{name}"), parts.iter().map(|part| format!("{prefix}.{part}.weight")).collect())?;
            }
        }
        Ok(params)
    }

    /// An adapter under PEFT's names; parts of a fused matrix share its first factor.
    pub(crate) fn export_adapter(&self, params: &Params, lora: LoraShape) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut out = Vec::new();
        for i in 0..self.layers {
            for (name, parts) in MATRICES {
                let (rows, columns) = self.matrix(name);
                let rows = rows / parts.len();
                let of = |factor: &str| &params.get(&format!("layer.{i}.{name}.{factor}")).expect("an adapter has both factors").value;
                for (part, b) in parts.iter().zip(of("b").chunks_exact(rows * lora.rank)) {
                    let prefix = format!("base_model.model.model.layers.{i}.{part}");
                    out.push((format!("{prefix}.lora_A.weight"), vec![lora.rank, columns], of("a").clone()));
                    out.push((format!("{prefix}.lora_B.weight"), vec![rows, lora.rank], b.to_vec()));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod bench {
    use super::*;
    use rand::{RngExt, SeedableRng};
    #[test]
    #[ignore]
    fn bench() {
        for (layers, inner, micro) in [(4, 512, 1024usize), (4, 512, 2048), (4, 768, 1024), (4,1024,1024), (6, 768, 1024)] {
            let shape = LlamaShape { vocabulary: 4096, hidden: 256, inner, layers, heads: 8, positions: 2048 };
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
            let mut params = shape.init(None, &mut rng);
            let mut opt = crate::adamw::AdamW::new(&params, Default::default());
            let seg = Segments::of_lengths(vec![341; micro / 341 + 1]);
            let ids: Vec<u32> = (0..seg.rows()).map(|_| rng.random_range(0..4096)).collect();
            let rows: Vec<u32> = (0..seg.rows() as u32).filter(|i| i % 3 == 0).collect();
            let targets = vec![5u32; rows.len()]; let w = vec![1f32; rows.len()];
            for heads in [8usize, 4] {
            let shape = LlamaShape { heads, ..shape };
            let n = 12;
            let mut best = f64::MAX;
            let (mut tf, mut tb, mut to) = (0., 0., 0.);
            for _ in 0..n {
                let t = std::time::Instant::now();
                let weights = params.weights().unwrap();
                let h = shape.hidden(&weights, None, &ids, &seg).unwrap();
                let l = shape.logits(&weights, &endcap_engine::ops::select_rows(&h, &rows).unwrap()).unwrap();
                let loss = endcap_engine::ops::cross_entropy(&l, &targets, &w).unwrap();
                let a = t.elapsed().as_secs_f64();
                let g = loss.backward().unwrap();
                let b = t.elapsed().as_secs_f64();
                let g = weights.gradients(&g).unwrap();
                opt.step(&mut params, &g, 1e-4);
                let c = t.elapsed().as_secs_f64();
                if c < best { best = c; tf = a; tb = b - a; to = c - b; }
            }
            println!("{layers}x{inner} heads {heads} params {:.2}M rows {}: {:.0} tok/s  fwd {tf:.3} bwd {tb:.3} opt {to:.3}", params.count() as f64/1e6, seg.rows(), seg.rows() as f64 / best);
            }
        }
    }
}
