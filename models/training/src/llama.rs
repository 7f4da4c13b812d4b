//! The Llama-style decoder as it is trained: fused matrices `[out, in]`, tied embeddings, a head that scores candidates, and adapters.

use candle_core::Tensor;
use endcap_engine::{
    Segments,
    ops::{Attention, Rope, attention, linear_t, rms_norm, select_rows, swiglu},
};
use rand::Rng;
use serde::Serialize;

use crate::{
    Result,
    files::Tensors,
    params::{Params, Weights},
};

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
                let of =
                    |factor: &str| &params.get(&format!("layer.{i}.{name}.{factor}")).expect("an adapter has both factors").value;
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
mod tests {
    use endcap_engine::ops::select_rows;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const SHAPE: LlamaShape = LlamaShape { vocabulary: 13, hidden: 8, inner: 16, layers: 2, heads: 2, positions: 32 };
    const LORA: LoraShape = LoraShape { rank: 2, alpha: 4.0 };
    const IDS: [u32; 7] = [1, 5, 6, 3, 2, 12, 4];

    fn rows(params: &Params, lora: Option<LoraShape>) -> (Weights, Tensor) {
        let weights = params.weights().unwrap();
        let hidden = SHAPE.hidden(&weights, lora, &IDS, &Segments::of_lengths([3, 4])).unwrap();
        (weights, hidden)
    }

    #[test]
    fn weights_that_are_exported_and_imported_are_the_same() {
        let params = SHAPE.init(None, &mut ChaCha8Rng::seed_from_u64(1));
        let back = SHAPE.import(&Tensors::of(SHAPE.export(&params))).unwrap();
        for param in &back.0 {
            assert_eq!(Some(param), params.get(&param.name), "{}", param.name);
        }
        assert_eq!(back.0.len() + 1, params.0.len(), "all but the candidate head");
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_is_the_only_thing_that_is_trained() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut params = SHAPE.init(None, &mut rng);
        let before = rows(&params, None).1.to_vec2::<f32>().unwrap();
        SHAPE.add_adapter(&mut params, LORA, &mut rng);
        let (weights, hidden) = rows(&params, Some(LORA));
        assert_eq!(hidden.to_vec2::<f32>().unwrap(), before);
        assert!(weights.trained().iter().all(|(name, _)| name.ends_with(".a") || name.ends_with(".b") || name == CANDIDATE_HEAD));
    }

    /// Analytic gradients against differences of the loss, along the gradient of each trained tensor.
    fn check_gradients(mut params: Params, lora: Option<LoraShape>) {
        let loss = |params: &Params| {
            let (weights, hidden) = rows(params, lora);
            let logits = SHAPE.logits(&weights, &select_rows(&hidden, &[1, 4, 5]).unwrap()).unwrap();
            let text = endcap_engine::ops::cross_entropy(&logits, &[3, 7, 9], &[1.0, 0.5, 1.0]).unwrap();
            let scores = SHAPE.candidate_scores(&weights, &select_rows(&hidden, &[2, 6]).unwrap()).unwrap();
            let head = endcap_engine::ops::binary_cross_entropy(&scores, &[1.0, 0.0], &[1.0, 1.0]).unwrap();
            (weights, (text + head).unwrap())
        };
        let (weights, value) = loss(&params);
        let gradients = weights.gradients(&value.backward().unwrap()).unwrap();
        let names: Vec<String> = weights.trained().iter().map(|(name, _)| name.clone()).collect();
        for (name, gradient) in names.iter().zip(gradients) {
            let square: f32 = gradient.iter().map(|g| g * g).sum();
            assert!(square > 1e-9, "{name} has no gradient");
            let step = 0.01 / square.sqrt();
            let mut moved = |sign: f32| {
                let value = &mut params.get_mut(name).unwrap().value;
                value.iter_mut().zip(&gradient).for_each(|(x, g)| *x += sign * step * g);
                let loss = loss(&params).1.to_scalar::<f32>().unwrap();
                let value = &mut params.get_mut(name).unwrap().value;
                value.iter_mut().zip(&gradient).for_each(|(x, g)| *x -= sign * step * g);
                loss
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!((slope - square).abs() < 0.03 * square + 1e-4, "{name}: {slope} by differences, {square} by the graph");
        }
    }

    #[test]
    fn gradients_of_base_and_adapter_are_those_of_finite_differences() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut params = SHAPE.init(None, &mut rng);
        params.get_mut("embed").unwrap().value.iter_mut().for_each(|x| *x *= 10.0);
        check_gradients(params.clone(), None);
        SHAPE.add_adapter(&mut params, LORA, &mut rng);
        for param in params.0.iter_mut().filter(|param| param.name.ends_with(".b")) {
            param.value.iter_mut().for_each(|x| *x = 0.3 * crate::params::normal(&mut rng));
        }
        check_gradients(params, Some(LORA));
    }
}
