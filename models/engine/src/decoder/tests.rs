//! What a decoder must hold: it is the plain computation, its steps are the uncached pass, and nothing depends on company.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use serde_json::json;

use super::*;
use crate::{Random, StepInput, Want};

fn config(qkv_bias: bool, kv_heads: usize, tied: bool) -> DecoderConfig {
    DecoderConfig {
        vocab: 97,
        hidden: 48,
        inner: 80,
        layers: 3,
        heads: 4,
        kv_heads,
        head: 12,
        eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied,
        qkv_bias,
        positions: 256,
    }
}

/// A decoder in which every tensor has random values, norms and biases too.
fn decoder(config: DecoderConfig, seed: u64) -> Decoder {
    let weights = DecoderWeights::random(&config, seed).unwrap();
    let mut random = Random::new(seed + 1);
    let mut tensors = weights.to_hf(&config).unwrap();
    let mut names: Vec<String> = tensors.keys().cloned().collect();
    names.sort();
    for name in names.iter().filter(|name| name.ends_with("norm.weight") || name.ends_with(".bias")) {
        let shape = tensors[name].shape().clone();
        let around = f64::from(u8::from(name.ends_with("weight")));
        tensors.insert(name.clone(), (random.tensor(shape, 0.3).unwrap() + around).unwrap());
    }
    Decoder::from_hf(config, &mut tensors, &Device::Cpu, DType::F32).unwrap()
}

fn ids(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..n).map(|_| random.below(97) as u32).collect()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a).iter().zip(values(b)).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// The logits of one sequence, written out from the Hugging Face tensors with plain operations: no fusing, no packing, rotation by its definition.
fn plain_logits(config: &DecoderConfig, w: &HashMap<String, Tensor>, ids: &[u32]) -> candle_core::Result<Tensor> {
    let t = ids.len();
    let norm = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + config.eps)?.sqrt()?;
        x.broadcast_div(&rms)?.broadcast_mul(&w[name])
    };
    let project = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
        let y = x.matmul(&w[&format!("{name}.weight")].t()?)?;
        match w.get(&format!("{name}.bias")) {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    };
    let turn = |x: &Tensor| -> candle_core::Result<Tensor> {
        let mut rows: Vec<Vec<f32>> = x.to_vec2()?;
        for (position, row) in rows.iter_mut().enumerate() {
            let half = config.head / 2;
            for (i, frequency) in config.frequencies().iter().enumerate() {
                let (sin, cos) = (position as f32 * frequency).sin_cos();
                let (a, b) = (row[i], row[i + half]);
                (row[i], row[i + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        Tensor::new(rows, &Device::Cpu)
    };
    let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), &Device::Cpu)?;
    let mut x = w["model.embed_tokens.weight"].index_select(&Tensor::new(ids, &Device::Cpu)?, 0)?;
    for layer in 0..config.layers {
        let at = |part: &str| format!("model.layers.{layer}.{part}");
        let y = norm(&x, &at("input_layernorm.weight"))?;
        let (q, k, v) =
            (project(&y, &at("self_attn.q_proj"))?, project(&y, &at("self_attn.k_proj"))?, project(&y, &at("self_attn.v_proj"))?);
        let mut heads = Vec::new();
        for h in 0..config.heads {
            let kv = h / (config.heads / config.kv_heads);
            let of = |x: &Tensor, h: usize| x.narrow(1, h * config.head, config.head)?.contiguous();
            let (q, k, v) = (turn(&of(&q, h)?)?, turn(&of(&k, kv)?)?, of(&v, kv)?);
            let scores = ((q.matmul(&k.t()?)? / (config.head as f64).sqrt())? + &mask)?;
            let p = scores.broadcast_sub(&scores.max_keepdim(1)?)?.exp()?;
            heads.push(p.broadcast_div(&p.sum_keepdim(1)?)?.matmul(&v)?);
        }
        x = (x + project(&Tensor::cat(&heads, 1)?, &at("self_attn.o_proj"))?)?;
        let y = norm(&x, &at("post_attention_layernorm.weight"))?;
        let y = (project(&y, &at("mlp.gate_proj"))?.silu()? * project(&y, &at("mlp.up_proj"))?)?;
        x = (x + project(&y, &at("mlp.down_proj"))?)?;
    }
    let head = w.get("lm_head.weight").unwrap_or(&w["model.embed_tokens.weight"]);
    norm(&x, "model.norm.weight")?.matmul(&head.t()?)
}

#[test]
fn logits_are_those_of_the_plain_computation() {
    for (bias, kv_heads, tied) in [(false, 4, true), (true, 2, false), (true, 1, true)] {
        let config = config(bias, kv_heads, tied);
        let decoder = decoder(config.clone(), 1);
        let (a, b) = (ids(40, 2), ids(7, 3));
        let segments = Segments::of_lengths([a.len(), b.len()]);
        let logits = decoder.logits(&decoder.hidden(&[&a[..], &b].concat(), &segments).unwrap()).unwrap();
        let tensors = decoder.to_hf().unwrap();
        for (ids, rows) in [&a, &b].into_iter().zip(segments.iter()) {
            let expected = plain_logits(&config, &tensors, ids).unwrap();
            let error = distance(&logits.narrow(0, rows.start, rows.len()).unwrap(), &expected);
            assert!(error < 2e-5, "bias {bias}, {kv_heads} kv heads, tied {tied}: {error}");
        }
    }
}

/// All rows' hidden states of one sequence, computed in chunks of these sizes among other sequences.
fn in_chunks(decoder: &Decoder, tokens: &[u32], chunks: &[usize], company: usize) -> Vec<f32> {
    let mut cache = decoder.cache(tokens.len());
    let mut others: Vec<KvCache> = (0..company).map(|_| decoder.cache(200)).collect();
    let (mut from, mut out) = (0, Vec::new());
    for (step, size) in chunks.iter().enumerate() {
        let other: Vec<Vec<u32>> = (0..company).map(|i| ids(1 + (step * 5 + i) % 9, i as u64)).collect();
        let mut inputs: Vec<StepInput<'_>> =
            other.iter().enumerate().map(|(i, tokens)| StepInput { seq: i + 1, tokens }).collect();
        for cache in &mut others {
            if cache.len() > 180 {
                cache.truncate(0).unwrap();
            }
        }
        let place = step % (company + 1);
        inputs.insert(place, StepInput { seq: 0, tokens: &tokens[from..from + size] });
        let first: usize = inputs[..place].iter().map(|input| input.tokens.len()).sum();
        let rows: Vec<usize> = (first..first + size).collect();
        let mut caches: Vec<&mut KvCache> = std::iter::once(&mut cache).chain(&mut others).collect();
        out.extend(values(&decoder.step(&mut caches, &inputs, &Want::rows(&rows)).unwrap().hidden));
        from += size;
    }
    assert_eq!(cache.len(), tokens.len());
    out
}

#[test]
fn steps_have_the_same_bits_however_they_are_cut_and_in_any_company() {
    for (bias, kv_heads) in [(false, 4), (true, 2)] {
        let decoder = decoder(config(bias, kv_heads, true), 4);
        let tokens = ids(100, 5);
        let whole = in_chunks(&decoder, &tokens, &[100], 0);
        let uncached = values(&decoder.hidden(&tokens, &Segments::of_lengths([100])).unwrap());
        let error = whole.iter().zip(&uncached).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(error < 2e-5, "cached differs from uncached by {error}");
        for chunks in [&[1; 100][..], &[33, 1, 1, 2, 63], &[64, 36]] {
            for company in [0, 3, 17] {
                assert_eq!(in_chunks(&decoder, &tokens, chunks, company), whole, "{} chunks, {company} others", chunks.len());
            }
        }
    }
}

#[test]
fn a_restricted_head_has_the_bits_of_the_whole_one() {
    let decoder = decoder(config(false, 4, true), 6);
    let hidden = decoder.hidden(&ids(5, 7), &Segments::of_lengths([5])).unwrap().detach();
    let logits: Vec<Vec<f32>> = decoder.logits(&hidden).unwrap().to_vec2().unwrap();
    let alone: Vec<Vec<f32>> = decoder.logits(&hidden.narrow(0, 3, 1).unwrap()).unwrap().to_vec2().unwrap();
    assert_eq!(logits[3], alone[0]);
    let picked = decoder.logits_of(&hidden.narrow(0, 3, 1).unwrap(), &[96, 0, 41]).unwrap();
    assert_eq!(picked, [logits[3][96], logits[3][0], logits[3][41]]);
    assert!(decoder.logits_of(&hidden.narrow(0, 3, 1).unwrap(), &[97]).is_err());
}

#[test]
fn a_truncated_cache_continues_as_if_nothing_had_followed() {
    let decoder = decoder(config(false, 4, true), 10);
    let tokens = ids(50, 11);
    let whole = in_chunks(&decoder, &tokens, &[50], 0);
    let mut cache = decoder.cache(60);
    let step = |cache: &mut KvCache, tokens: &[u32]| {
        let rows: Vec<usize> = (0..tokens.len()).collect();
        values(&decoder.step(&mut [cache], &[StepInput { seq: 0, tokens }], &Want::rows(&rows)).unwrap().hidden)
    };
    step(&mut cache, &tokens[..30]);
    step(&mut cache, &ids(9, 12));
    cache.truncate(30).unwrap();
    let mut copy = cache.clone();
    for cache in [&mut cache, &mut copy] {
        assert_eq!(step(cache, &tokens[30..]), whole[30 * 48..]);
    }
}

#[test]
fn plain_tensor_operations_give_the_same_steps() {
    for (bias, kv_heads) in [(false, 4), (true, 2)] {
        let decoder = decoder(config(bias, kv_heads, true), 22);
        let (a, b) = (ids(30, 23), ids(30, 24));
        let mut ours = [decoder.cache(64), decoder.cache(64)];
        let mut plain = [KvCache::of_tensors(decoder.config(), 64), KvCache::of_tensors(decoder.config(), 64)];
        for range in [0..13, 13..14, 14..30] {
            let inputs = [StepInput { seq: 1, tokens: &b[range.clone()] }, StepInput { seq: 0, tokens: &a[range.clone()] }];
            let segments = Segments::of_lengths([range.len(), range.len()]);
            let rows: Vec<usize> = (0..2 * range.len()).collect();
            let want = Want::rows(&rows);
            let expected = decoder.step(&mut ours.each_mut(), &inputs, &want).unwrap();
            let output = decoder.step_device(&mut plain.each_mut(), &inputs, &segments, &want).unwrap();
            plain.iter_mut().for_each(|cache| cache.advance(range.len()));
            assert!(distance(&output.hidden, &expected.hidden) < 2e-5, "tokens {range:?}");
        }
    }
}

#[test]
fn a_cache_of_another_model_is_refused() {
    let decoder = decoder(config(false, 4, true), 25);
    let mut other = KvCache::new(&config(false, 2, true), &Device::Cpu, 32);
    assert!(decoder.step(&mut [&mut other], &[StepInput { seq: 0, tokens: &[1] }], &Want::default()).is_err());
}

#[test]
fn steps_that_cannot_be_computed_are_refused() {
    let decoder = decoder(config(false, 4, true), 12);
    let input = |seq, tokens| StepInput { seq, tokens };
    let cases: [(&str, &[StepInput<'_>], Want<'_>); 6] = [
        ("unknown token", &[input(0, &[97])], Want::rows(&[])),
        ("unknown cache", &[input(1, &[1])], Want::rows(&[])),
        ("empty input", &[input(0, &[])], Want::rows(&[])),
        ("repeated input", &[input(0, &[1]), input(0, &[1])], Want::rows(&[])),
        ("unknown row", &[input(0, &[1])], Want::rows(&[1])),
        ("full cache", &[input(0, &[1; 33])], Want::rows(&[])),
    ];
    for (name, inputs, want) in cases {
        let mut cache = decoder.cache(32);
        assert!(decoder.step(&mut [&mut cache], inputs, &want).is_err(), "{name}");
        assert!(cache.is_empty(), "{name}");
    }
}

#[test]
fn weights_survive_a_round_trip_through_their_names() {
    for (bias, kv_heads, tied) in [(false, 4, true), (true, 2, false)] {
        let config = config(bias, kv_heads, tied);
        let first = decoder(config.clone(), 13);
        let tensors = first.to_hf().unwrap();
        assert_eq!(tensors.len(), 2 + 3 * (9 + 3 * usize::from(bias)) + usize::from(!tied));
        let read = DecoderConfig::from_json(&config.to_json()).unwrap();
        assert_eq!(read, config);
        let second = Decoder::from_hf(read, &mut tensors.clone(), &Device::Cpu, DType::F32).unwrap();
        let tokens = ids(9, 14);
        let hidden = |decoder: &Decoder| values(&decoder.hidden(&tokens, &Segments::of_lengths([9])).unwrap());
        assert_eq!(hidden(&first), hidden(&second));
        let mut lacking = tensors;
        lacking.remove("model.layers.1.mlp.up_proj.weight");
        let error = Decoder::from_hf(config, &mut lacking, &Device::Cpu, DType::F32).unwrap_err().to_string();
        assert!(error.contains("model.layers.1.mlp.up_proj.weight"), "{error}");
    }
}

#[test]
fn llama_3_frequencies_are_kept_ramped_and_divided() {
    let scaling = json!({
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"
    });
    let mut json = DecoderConfig { head: 64, hidden: 256, rope_theta: 500_000.0, ..config(false, 4, true) }.to_json();
    json["rope_scaling"] = scaling;
    let scaled = DecoderConfig::from_json(&json).unwrap();
    let plain = DecoderConfig { rope_scaling: None, ..scaled.clone() };
    let ratios: Vec<f32> = scaled.frequencies().iter().zip(plain.frequencies()).map(|(a, b)| b / a).collect();
    // Waves shorter than 2048 positions are kept, longer than 8192 divided.
    for (frequency, ratio) in plain.frequencies().iter().zip(&ratios) {
        let wave = std::f32::consts::TAU / frequency;
        match wave {
            wave if wave < 2_048.0 => assert!((ratio - 1.0).abs() < 1e-5),
            wave if wave > 8_192.0 => assert!((ratio - 32.0).abs() < 1e-3),
            _ => assert!((1.0..=32.0).contains(ratio)),
        }
    }
    assert!(ratios.iter().any(|ratio| *ratio > 1.01 && *ratio < 31.9), "no wave lies on the ramp");
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let good = config(false, 4, true).to_json();
    for (key, value, named) in [
        ("model_type", json!("gpt2"), "gpt2"),
        ("hidden_act", json!("relu"), "relu"),
        ("use_sliding_window", json!(true), "sliding"),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0}), "yarn"),
        ("num_key_value_heads", json!(3), "sizes"),
    ] {
        let mut config = good.clone();
        config[key] = value;
        let error = DecoderConfig::from_json(&config).unwrap_err().to_string();
        assert!(error.contains(named), "{key}: {error}");
    }
}

#[test]
fn an_adapter_is_merged_into_its_columns_and_read_again() {
    let decoder = decoder(config(true, 2, true), 15);
    let shape = AdapterConfig {
        r: 4,
        lora_alpha: 8.0,
        target_modules: ["q_proj", "v_proj", "up_proj", "down_proj"].map(String::from).to_vec(),
        peft_type: "LORA".into(),
    };
    let (mut adapter, vars) = Adapter::trainable(shape.clone(), decoder.config(), 16).unwrap();
    assert_eq!(vars.len(), 3 * 4 * 2);
    let tokens = ids(12, 17);
    let segments = Segments::of_lengths([12]);
    let hidden = |decoder: &Decoder| decoder.hidden(&tokens, &segments).unwrap();
    let base = hidden(&decoder);
    assert_eq!(distance(&hidden(&decoder.with_adapter(&adapter).unwrap()), &base), 0.0, "a fresh adapter changes nothing");
    let mut random = Random::new(18);
    for (name, var) in &vars {
        if name.ends_with("lora_B") {
            var.set(&random.tensor(var.shape().clone(), 0.1).unwrap()).unwrap();
        }
    }
    let merged = decoder.with_adapter(&adapter).unwrap();
    assert!(distance(&hidden(&merged), &base) > 1e-3);
    let weight = |decoder: &Decoder| decoder.weights().layers[1].qkv.weight.clone();
    let change = (weight(&merged) - weight(&decoder)).unwrap();
    let (a, b) = &adapter.parts["model.layers.1.self_attn.v_proj"];
    let expected = (b.matmul(a).unwrap().t().unwrap() * 2.0).unwrap();
    assert!(distance(&change.narrow(1, 72, 24).unwrap(), &expected) < 1e-6, "the columns behind four heads and two keys");
    assert_eq!(values(&change.narrow(1, 48, 24).unwrap()), [0.0; 48 * 24], "keys have no part");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("themes.adapter.safetensors");
    adapter.extra.insert("candidate_head.weight".into(), random.tensor((1, 48), 1.0).unwrap());
    crate::write_tensors(&path, &adapter.to_tensors()).unwrap();
    std::fs::write(dir.path().join("adapter_config.json"), serde_json::to_string(&shape).unwrap()).unwrap();
    let read = Adapter::load(&path, &Device::Cpu).unwrap();
    assert_eq!(read.extra["candidate_head.weight"].dims(), [1, 48]);
    assert_eq!(distance(&hidden(&decoder.with_adapter(&read).unwrap()), &hidden(&merged)), 0.0);
}

#[test]
fn every_weight_of_a_decoder_can_be_trained() {
    let config = DecoderConfig { layers: 1, ..config(true, 2, false) };
    let (weights, vars) = DecoderWeights::random(&config, 19).unwrap().trainable().unwrap();
    let decoder = Decoder::new(config, weights).unwrap();
    let tokens = ids(9, 20);
    let loss = || {
        let hidden = decoder.hidden(&tokens[..8], &Segments::of_lengths([5, 3])).unwrap();
        ops::cross_entropy(&decoder.logits(&hidden).unwrap(), &tokens[1..], &[1.0; 8]).unwrap()
    };
    let gradients = loss().backward().unwrap();
    let mut random = Random::new(21);
    for (name, var) in vars {
        let gradient = gradients.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
        // Along a random direction, so that one difference sees the whole tensor.
        let direction = random.tensor(var.shape().clone(), 1.0).unwrap();
        let expected = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        let start = var.as_tensor().copy().unwrap();
        let at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap()).unwrap();
            loss().to_scalar::<f32>().unwrap()
        };
        let size = start.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        let step = f64::from(size.max(0.03)) * 1e-2;
        let measured = ((f64::from(at(step)) - f64::from(at(-step))) / (2.0 * step)) as f32;
        var.set(&start).unwrap();
        assert!((measured - expected).abs() < 0.02 * expected.abs().max(0.5), "{name}: {expected} measured {measured}");
    }
}
