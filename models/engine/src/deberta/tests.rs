//! What DeBERTa must hold: it is the reference computation, written out value by value from its definition.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::*;
use crate::Random;

fn config() -> Value {
    json!({
        "model_type": "deberta-v2", "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 64, "layer_norm_eps": 1e-7, "hidden_act": "gelu",
        "relative_attention": true, "max_relative_positions": -1, "position_buckets": 16, "norm_rel_ebd": "layer_norm",
        "share_att_key": true, "pos_att_type": "p2c|c2p", "position_biased_input": false, "type_vocab_size": 0
    })
}

fn tensors(c: &DebertaConfig, seed: u64) -> HashMap<String, Tensor> {
    let (h, mut random) = (c.hidden, Random::new(seed));
    let mut all = HashMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let around = f64::from(u8::from(name.ends_with("LayerNorm.weight")));
        let spread = if shape.len() == 1 { 0.3 } else { 1.5 / (shape[1] as f32).sqrt() };
        all.insert(name, (random.tensor(shape, spread).unwrap() + around).unwrap());
    };
    add("deberta.embeddings.word_embeddings.weight".into(), &[c.vocab, h]);
    if c.absolute_positions {
        add("deberta.embeddings.position_embeddings.weight".into(), &[c.positions, h]);
    }
    if c.types > 0 {
        add("deberta.embeddings.token_type_embeddings.weight".into(), &[c.types, h]);
    }
    add("deberta.encoder.rel_embeddings.weight".into(), &[2 * c.span, h]);
    for norm in ["deberta.embeddings.LayerNorm", "deberta.encoder.LayerNorm"] {
        add(format!("{norm}.weight"), &[h]);
        add(format!("{norm}.bias"), &[h]);
    }
    let dense = [
        ("attention.self.query_proj", h, h),
        ("attention.self.key_proj", h, h),
        ("attention.self.value_proj", h, h),
        ("attention.self.pos_key_proj", h, h),
        ("attention.self.pos_query_proj", h, h),
        ("attention.output.dense", h, h),
        ("intermediate.dense", c.inner, h),
        ("output.dense", h, c.inner),
    ];
    for layer in 0..c.layers {
        let at = |part: &str| format!("deberta.encoder.layer.{layer}.{part}");
        for (part, outputs, inputs) in dense {
            add(at(&format!("{part}.weight")), &[outputs, inputs]);
            add(at(&format!("{part}.bias")), &[outputs]);
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            add(at(&format!("{part}.weight")), &[h]);
            add(at(&format!("{part}.bias")), &[h]);
        }
    }
    add("pooler.dense.weight".into(), &[h, h]);
    add("pooler.dense.bias".into(), &[h]);
    add("classifier.weight".into(), &[1, h]);
    add("classifier.bias".into(), &[1]);
    all
}

/// The computation as it is defined, in f64, value by value.
struct Reference<'a> {
    c: &'a DebertaConfig,
    w: HashMap<String, Vec<f64>>,
}

type Rows = Vec<Vec<f64>>;

impl Reference<'_> {
    fn new<'a>(c: &'a DebertaConfig, tensors: &HashMap<String, Tensor>) -> Reference<'a> {
        let read = |x: &Tensor| x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        Reference { c, w: tensors.iter().map(|(name, x)| (name.clone(), read(x))).collect() }
    }

    fn dense(&self, x: &Rows, name: &str) -> Rows {
        let (w, b) = (&self.w[&format!("{name}.weight")], &self.w[&format!("{name}.bias")]);
        let one =
            |x: &Vec<f64>| w.chunks(x.len()).zip(b).map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect();
        x.iter().map(one).collect()
    }

    fn norm(&self, x: &Rows, name: &str) -> Rows {
        let (w, b) = (&self.w[&format!("{name}.weight")], &self.w[&format!("{name}.bias")]);
        let one = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let deviation = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + self.c.eps).sqrt();
            x.iter().zip(w).zip(b).map(|((x, w), b)| (x - mean) / deviation * w + b).collect()
        };
        x.iter().map(one).collect()
    }

    /// `make_log_bucket_position` of the original, step by step.
    fn bucket(&self, relative: i64) -> i64 {
        let (buckets, max) = (self.c.buckets as i64, self.c.distance_max as f64);
        if buckets == 0 {
            return relative;
        }
        let middle = buckets / 2;
        let near = relative < middle && relative > -middle;
        let distance = if near { middle - 1 } else { relative.abs() };
        let logarithm = (distance as f64 / middle as f64).ln() / ((max - 1.0) / middle as f64).ln();
        let far = (logarithm * (middle - 1) as f64).ceil() as i64 + middle;
        if distance <= middle { relative } else { far * relative.signum() }
    }

    fn attention(&self, x: &Rows, layer: &str) -> Rows {
        let (c, t) = (self.c, x.len());
        let (head, span) = (c.hidden / c.heads, c.span as i64);
        let of = |part: &str| format!("{layer}.attention.self.{part}");
        let [q, k, v] = ["query_proj", "key_proj", "value_proj"].map(|part| self.dense(x, &of(part)));
        let table: Rows = self.w["deberta.encoder.rel_embeddings.weight"].chunks(c.hidden).map(<[f64]>::to_vec).collect();
        let table = if c.normalise_relative { self.norm(&table, "deberta.encoder.LayerNorm") } else { table };
        let (keys, queries) = if c.shared_projections { ("key_proj", "query_proj") } else { ("pos_key_proj", "pos_query_proj") };
        let (position_keys, position_queries) = (self.dense(&table, &of(keys)), self.dense(&table, &of(queries)));
        let ways = 1.0 + f64::from(u8::from(c.content_to_position)) + f64::from(u8::from(c.position_to_content));
        let scale = (head as f64 * ways).sqrt();
        let mut out = vec![vec![0.0; c.hidden]; t];
        for h in 0..c.heads {
            let dot = |a: &[f64], b: &[f64]| (h * head..(h + 1) * head).map(|i| a[i] * b[i]).sum::<f64>();
            for i in 0..t {
                let mut scores: Vec<f64> = (0..t).map(|j| dot(&q[i], &k[j]) / scale).collect();
                for (j, score) in scores.iter_mut().enumerate() {
                    let relative = |a: usize, b: usize| self.bucket(a as i64 - b as i64);
                    let row = |index: i64| index.clamp(0, 2 * span - 1) as usize;
                    if c.content_to_position {
                        *score += dot(&q[i], &position_keys[row(relative(i, j) + span)]) / scale;
                    }
                    if c.position_to_content {
                        *score += dot(&k[j], &position_queries[row(-relative(j, i) + span)]) / scale;
                    }
                }
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
                for (j, score) in scores.iter().enumerate() {
                    for d in h * head..(h + 1) * head {
                        out[i][d] += (score - largest).exp() / total * v[j][d];
                    }
                }
            }
        }
        out
    }

    fn logit(&self, ids: &[u32], types: &[u32]) -> f64 {
        let c = self.c;
        let row = |name: &str, id: usize| self.w[name][id * c.hidden..(id + 1) * c.hidden].to_vec();
        let add = |a: Rows, b: Rows| -> Rows {
            a.into_iter().zip(b).map(|(a, b)| a.into_iter().zip(b).map(|(a, b)| a + b).collect()).collect()
        };
        let mut x: Rows = ids.iter().map(|id| row("deberta.embeddings.word_embeddings.weight", *id as usize)).collect();
        if c.absolute_positions {
            x = add(x, (0..ids.len()).map(|i| row("deberta.embeddings.position_embeddings.weight", i)).collect());
        }
        if c.types > 0 {
            x = add(x, types.iter().map(|i| row("deberta.embeddings.token_type_embeddings.weight", *i as usize)).collect());
        }
        let mut x = self.norm(&x, "deberta.embeddings.LayerNorm");
        for layer in 0..c.layers {
            let layer = format!("deberta.encoder.layer.{layer}");
            let attended = self.dense(&self.attention(&x, &layer), &format!("{layer}.attention.output.dense"));
            x = self.norm(&add(x, attended), &format!("{layer}.attention.output.LayerNorm"));
            let inner = gelu(self.dense(&x, &format!("{layer}.intermediate.dense")));
            let down = self.dense(&inner, &format!("{layer}.output.dense"));
            x = self.norm(&add(x, down), &format!("{layer}.output.LayerNorm"));
        }
        let pooled = gelu(self.dense(&vec![x[0].clone()], "pooler.dense"));
        self.dense(&pooled, "classifier")[0][0]
    }
}

fn gelu(x: Rows) -> Rows {
    let exact = |x: f64| Tensor::new(x, &Device::Cpu).unwrap().gelu_erf().unwrap().to_scalar::<f64>().unwrap();
    x.into_iter().map(|row| row.into_iter().map(exact).collect()).collect()
}

fn pair(n: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut random = Random::new(seed);
    ((0..n).map(|_| random.below(97) as u32).collect(), (0..n).map(|row| u32::from(row >= n / 2)).collect())
}

#[test]
fn scores_are_those_of_the_reference_in_every_variant() {
    let variants: [(&str, Value); 7] = [
        ("v3", json!({})),
        ("list of ways", json!({"pos_att_type": ["p2c", "c2p"]})),
        ("contents only", json!({"pos_att_type": ["c2p"]})),
        ("positions only", json!({"pos_att_type": ["p2c"]})),
        ("own projections", json!({"share_att_key": false})),
        ("no buckets", json!({"position_buckets": -1, "norm_rel_ebd": "none"})),
        ("absolute positions and types", json!({"position_biased_input": true, "type_vocab_size": 2})),
    ];
    for (name, changes) in variants {
        let mut json = config();
        json.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let c = DebertaConfig::from_json(&json).unwrap();
        let tensors = tensors(&c, 1);
        let model = Deberta::from_hf(c.clone(), &mut tensors.clone(), &Device::Cpu, DType::F32).unwrap();
        let reference = Reference::new(&c, &tensors);
        // Shorter and longer than the linear buckets reach.
        for n in [1, 2, 7, 12, 40, 64] {
            let (ids, types) = pair(n, n as u64);
            let score = model.score(&ids, &types, &Segments::of_lengths([n])).unwrap()[0];
            let expected = reference.logit(&ids, &types);
            assert!((f64::from(score) - expected).abs() < 2e-5, "{name}, {n} tokens: {score} instead of {expected}");
        }
    }
}

#[test]
fn plain_tensor_operations_give_the_same_rows() {
    let c = DebertaConfig::from_json(&config()).unwrap();
    let mut w = tensors(&c, 2);
    let model = Deberta::from_hf(c.clone(), &mut w.clone(), &Device::Cpu, DType::F32).unwrap();
    let (ids, types) = pair(57, 3);
    let segments = Segments::of_lengths([40, 17]);
    let expected = model.rows(&ids, &types, &segments).unwrap();
    plain_names(&mut w, "deberta.");
    let taker = &mut Taker { tensors: &mut w, device: &Device::Cpu, dtype: DType::F32 };
    let norm = Norm::take(taker, "encoder.LayerNorm", 24).unwrap();
    let relative = taker.take("encoder.rel_embeddings.weight", &[2 * c.span, 24]).unwrap();
    let relative = ops::layer_norm(&relative, &norm.weight, &norm.bias, c.eps).unwrap();
    let layers: Vec<Layer> = (0..2).map(|layer| Layer::take(&c, taker, layer, &relative).unwrap()).collect();
    let words = ops::select_rows(&model.embeddings.words, &ids).unwrap();
    let x = ops::layer_norm(&words, &model.embeddings.norm.weight, &model.embeddings.norm.bias, c.eps).unwrap();
    let rows = device::run(&c, &layers, x, &segments).unwrap();
    let error = (rows - expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error < 1e-5, "{error}");
}

#[test]
fn a_pair_has_the_same_bits_in_any_company() {
    let c = DebertaConfig::from_json(&config()).unwrap();
    let model = Deberta::from_hf(c.clone(), &mut tensors(&c, 4), &Device::Cpu, DType::F32).unwrap();
    let pairs: Vec<_> = [9, 1, 33, 64, 5].into_iter().enumerate().map(|(i, n)| pair(n, i as u64)).collect();
    let ids: Vec<u32> = pairs.iter().flat_map(|(ids, _)| ids).copied().collect();
    let types: Vec<u32> = pairs.iter().flat_map(|(_, types)| types).copied().collect();
    let together = model.score(&ids, &types, &Segments::of_lengths(pairs.iter().map(|(ids, _)| ids.len()))).unwrap();
    for ((ids, types), score) in pairs.iter().zip(together) {
        assert_eq!(model.score(ids, types, &Segments::of_lengths([ids.len()])).unwrap(), [score], "{} tokens", ids.len());
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (key, value, named) in [
        ("model_type", json!("deberta"), "deberta"),
        ("relative_attention", json!(false), "relative_attention"),
        ("conv_kernel_size", json!(3), "conv_kernel_size"),
        ("pos_att_type", json!("c2p|p2p"), "p2p"),
        ("embedding_size", json!(12), "embedding_size"),
    ] {
        let mut config = config();
        config[key] = value;
        let error = DebertaConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
}
