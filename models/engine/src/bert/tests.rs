//! What an encoder must hold.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};

use super::*;
use crate::{Random, ops::Gelu};

fn config(pooling: Option<Pooling>) -> BertConfig {
    BertConfig {
        vocab: 97,
        hidden: 48,
        inner: 80,
        layers: 2,
        heads: 4,
        positions: 64,
        types: 2,
        eps: 1e-12,
        gelu: Gelu::Erf,
        pooling,
    }
}

/// Random values everywhere, norms and biases too, under Hugging Face names with `bert.` before them.
fn tensors(config: &BertConfig, seed: u64) -> HashMap<String, Tensor> {
    let mut random = Random::new(seed);
    let plain = BertWeights::random(config, seed).unwrap().to_hf(config).unwrap();
    let mut names: Vec<&String> = plain.keys().collect();
    names.sort();
    let mut tensors: HashMap<String, Tensor> = names
        .into_iter()
        .map(|name| {
            let around = f64::from(u8::from(name.ends_with("LayerNorm.weight")));
            let spread = if plain[name].rank() == 1 { 0.3 } else { 1.0 / (plain[name].dim(1).unwrap() as f32).sqrt() };
            (format!("bert.{name}"), (random.tensor(plain[name].shape().clone(), spread).unwrap() + around).unwrap())
        })
        .collect();
    let (h, mut add) = (config.hidden, |name: &str, shape: &[usize]| {
        tensors.insert(name.into(), random.tensor(shape, 0.3).unwrap());
    });
    add("bert.pooler.dense.weight", &[h, h]);
    add("bert.pooler.dense.bias", &[h]);
    add("classifier.weight", &[1, h]);
    add("classifier.bias", &[1]);
    tensors
}

fn text(n: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = Random::new(seed);
    ((0..n).map(|_| random.below(97) as u32).collect(), (0..n).map(|row| u32::from(row >= n / 2)).collect())
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a).iter().zip(values(b)).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Last rows of one text with plain operations, in f64.
fn plain_rows(c: &BertConfig, w: &HashMap<String, Tensor>, ids: &[u32], types: &[u32]) -> candle_core::Result<Tensor> {
    let w = |name: &str| w[&format!("bert.{name}")].to_dtype(DType::F64);
    let norm = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + c.eps)?.sqrt()?;
        x.broadcast_div(&deviation)?.broadcast_mul(&w(&format!("{name}.weight"))?)?.broadcast_add(&w(&format!("{name}.bias"))?)
    };
    let dense = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
        x.matmul(&w(&format!("{name}.weight"))?.t()?)?.broadcast_add(&w(&format!("{name}.bias"))?)
    };
    let rows = |name: &str, ids: &[u32]| w(name)?.index_select(&Tensor::new(ids, &Device::Cpu)?, 0);
    let places: Vec<u32> = (0..ids.len() as u32).collect();
    let x = (rows("embeddings.word_embeddings.weight", ids)? + rows("embeddings.position_embeddings.weight", &places)?)?;
    let mut x = norm(&(x + rows("embeddings.token_type_embeddings.weight", types)?)?, "embeddings.LayerNorm")?;
    for layer in 0..c.layers {
        let at = |part: &str| format!("encoder.layer.{layer}.{part}");
        let [q, k, v] = ["query", "key", "value"].map(|part| dense(&x, &at(&format!("attention.self.{part}"))));
        let (q, k, v, head) = (q?, k?, v?, c.hidden / c.heads);
        let mut heads = Vec::new();
        for h in 0..c.heads {
            let of = |x: &Tensor| x.narrow(1, h * head, head)?.contiguous();
            let scores = (of(&q)?.matmul(&of(&k)?.t()?)? / (head as f64).sqrt())?;
            let p = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
            heads.push(p.broadcast_div(&p.sum_keepdim(1)?)?.matmul(&of(&v)?)?);
        }
        let attended = dense(&Tensor::cat(&heads, 1)?, &at("attention.output.dense"))?;
        x = norm(&(x + attended)?, &at("attention.output.LayerNorm"))?;
        let inner = dense(&x, &at("intermediate.dense"))?.gelu_erf()?;
        x = norm(&(&x + dense(&inner, &at("output.dense"))?)?, &at("output.LayerNorm"))?;
    }
    x.to_dtype(DType::F32)
}

#[test]
fn rows_are_those_of_the_plain_computation() {
    let config = config(None);
    let tensors = tensors(&config, 1);
    let bert = Bert::from_hf(config.clone(), &mut tensors.clone(), &Device::Cpu, DType::F32).unwrap();
    let texts = [text(40, 2), text(1, 3), text(17, 4)];
    let ids = texts.iter().flat_map(|(ids, _)| ids).copied().collect::<Vec<_>>();
    let types = texts.iter().flat_map(|(_, types)| types).copied().collect::<Vec<_>>();
    let segments = Segments::of_lengths(texts.iter().map(|(ids, _)| ids.len()));
    let trained = bert.hidden(&ids, Some(&types), &segments).unwrap();
    let fast = bert.rows(&ids, Some(&types), &segments).unwrap();
    for ((ids, types), rows) in texts.iter().zip(segments.iter()) {
        let expected = plain_rows(&config, &tensors, ids, types).unwrap();
        for (name, ours) in [("differentiable", &trained), ("fast", &fast)] {
            let error = distance(&ours.narrow(0, rows.start, rows.len()).unwrap(), &expected);
            assert!(error < 1e-5, "{name}, {} tokens: {error}", ids.len());
        }
    }
}

#[test]
fn a_text_has_the_same_bits_in_any_company() {
    let config = config(Some(Pooling::SecondSegmentMean));
    let bert = BertCrossEncoder::from_hf(config.clone(), &mut tensors(&config, 5), &Device::Cpu, DType::F32).unwrap();
    let texts: Vec<_> = [9, 2, 33, 64, 5, 31].into_iter().enumerate().map(|(i, n)| text(n, i as u64)).collect();
    let ids: Vec<u32> = texts.iter().flat_map(|(ids, _)| ids).copied().collect();
    let types: Vec<u32> = texts.iter().flat_map(|(_, types)| types).copied().collect();
    let segments = Segments::of_lengths(texts.iter().map(|(ids, _)| ids.len()));
    let together = bert.score(&ids, &types, &segments).unwrap();
    let vectors: Vec<Vec<f32>> = bert.encoder.embed(&ids, &segments).unwrap().to_vec2().unwrap();
    for (i, (ids, types)) in texts.iter().enumerate() {
        let own = Segments::of_lengths([ids.len()]);
        assert_eq!(bert.score(ids, types, &own).unwrap(), [together[i]], "{} tokens", ids.len());
        let vector: Vec<Vec<f32>> = bert.encoder.embed(ids, &own).unwrap().to_vec2().unwrap();
        assert_eq!(vector[0], vectors[i]);
        let length: f32 = vector[0].iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5, "a vector of length {length}");
    }
}

#[test]
fn a_cross_encoder_pools_as_its_config_says() {
    let (ids, types) = text(12, 6);
    let segments = Segments::of_lengths([12]);
    for pooling in [Pooling::Cls, Pooling::SecondSegmentMean, Pooling::Mean] {
        let config = config(Some(pooling));
        let w = tensors(&config, 7);
        let cross = BertCrossEncoder::from_hf(config.clone(), &mut w.clone(), &Device::Cpu, DType::F32).unwrap();
        let rows = plain_rows(&config, &w, &ids, &types).unwrap();
        let pooled = match pooling {
            Pooling::Cls => {
                let first = rows.narrow(0, 0, 1).unwrap().matmul(&w["bert.pooler.dense.weight"].t().unwrap()).unwrap();
                first.broadcast_add(&w["bert.pooler.dense.bias"]).unwrap().tanh().unwrap()
            }
            Pooling::SecondSegmentMean => rows.narrow(0, 6, 6).unwrap().mean_keepdim(0).unwrap(),
            Pooling::Mean => rows.mean_keepdim(0).unwrap(),
        };
        let logit = pooled.matmul(&w["classifier.weight"].t().unwrap()).unwrap().broadcast_add(&w["classifier.bias"]).unwrap();
        let expected = values(&logit)[0];
        let score = cross.score(&ids, &types, &segments).unwrap()[0];
        assert!((score - expected).abs() < 1e-5, "{pooling:?}: {score} instead of {expected}");
        let again = BertCrossEncoder::from_hf(config, &mut cross.to_hf().unwrap(), &Device::Cpu, DType::F32).unwrap();
        assert_eq!(again.score(&ids, &types, &segments).unwrap(), [score], "{pooling:?} after a round trip");
    }
}

#[test]
fn a_config_survives_a_round_trip() {
    for pooling in [None, Some(Pooling::Mean), Some(Pooling::Cls), Some(Pooling::SecondSegmentMean)] {
        assert_eq!(BertConfig::from_json(&config(pooling).to_json()).unwrap(), config(pooling));
    }
}

#[test]
fn every_weight_of_an_encoder_can_be_trained() {
    let config = config(None);
    let (weights, vars) = BertWeights::random(&config, 8).unwrap().trainable().unwrap();
    let bert = Bert::new(config, weights).unwrap();
    let ((ids, types), segments) = (text(9, 9), Segments::of_lengths([4, 5]));
    let target = Random::new(10).tensor((9, 48), 1.0).unwrap();
    let loss = || ops::mse_loss(&bert.hidden(&ids, Some(&types), &segments).unwrap(), &target).unwrap();
    let gradients = loss().backward().unwrap();
    let mut random = Random::new(11);
    for (name, var) in vars {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        let direction = random.tensor(var.shape().clone(), 1.0).unwrap();
        let expected = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f32>().unwrap()
        };
        let size = start.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let step = f64::from(size.max(0.03)) * 3e-2;
        let measured = ((f64::from(at(step)) - f64::from(at(-step))) / (2.0 * step)) as f32;
        var.set(&start).unwrap();
        assert!((measured - expected).abs() < 0.03 * expected.abs().max(0.1), "{name}: {expected} measured {measured}");
    }
}
