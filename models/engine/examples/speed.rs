//! How fast the engine is on one core of this machine, with random weights: `cargo run -p endcap-engine --example speed`.

use std::time::Instant;

use endcap_engine::{
    Bert, BertConfig, BertWeights, Decoder, DecoderConfig, DecoderWeights, KvCache, Random, Result, Segments, StepInput, Want,
    ops::Gelu,
};

const REPEATS: usize = 5;
const CONTEXT: usize = 544;

fn main() -> Result<()> {
    for (name, layers, hidden, inner, vocab) in [("demo", 6, 256, 768, 4_096), ("27M", 8, 512, 1_536, 4_096)] {
        decoder(name, layers, hidden, inner, vocab)?;
    }
    for tokens in [16, 64] {
        encoder("demo encoder", 3, 256, 1_024, 8, tokens)?;
        encoder("MiniLM-L6", 6, 384, 1_536, 12, tokens)?;
    }
    Ok(())
}

/// The best of some runs, in seconds of this thread.
fn best(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        let (start, on_core) = (Instant::now(), on_core());
        run()?;
        best = best.min(match (on_core, self::on_core()) {
            (Some(before), Some(after)) => after - before,
            _ => start.elapsed().as_secs_f64(),
        });
    }
    Ok(best)
}

/// Seconds that this thread has had a core, where the system tells: other programs then disturb less.
fn on_core() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
}

fn decoder(name: &str, layers: usize, hidden: usize, inner: usize, vocab: usize) -> Result<()> {
    let config = DecoderConfig {
        vocab,
        hidden,
        inner,
        layers,
        heads: 8,
        kv_heads: 8,
        head: hidden / 8,
        eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        qkv_bias: false,
        positions: 2_048,
    };
    let decoder = Decoder::new(config.clone(), DecoderWeights::random(&config, 1)?)?;
    let mut random = Random::new(2);
    let prompt: Vec<u32> = (0..CONTEXT).map(|_| random.below(vocab) as u32).collect();
    let mut filled = decoder.cache(CONTEXT + 64);
    let seconds = best(|| {
        filled.truncate(0)?;
        for tokens in prompt.chunks(512) {
            decoder.step(&mut [&mut filled], &[StepInput { seq: 0, tokens }], &Want::rows(&[tokens.len() - 1]))?;
        }
        Ok(())
    })?;
    println!("{name}: prefill of {CONTEXT} tokens, {:.0} tokens/s", CONTEXT as f64 / seconds);
    for batch in [1, 4, 8, 16, 32, 64] {
        let mut caches: Vec<KvCache> = (0..batch).map(|_| filled.clone()).collect();
        let rows: Vec<usize> = (0..batch).collect();
        let seconds = best(|| {
            for cache in &mut caches {
                cache.truncate(CONTEXT)?;
            }
            let mut caches: Vec<&mut KvCache> = caches.iter_mut().collect();
            let inputs: Vec<StepInput<'_>> = (0..batch).map(|seq| StepInput { seq, tokens: &[7] }).collect();
            for _ in 0..8 {
                let output = decoder.step(&mut caches, &inputs, &Want::rows(&rows))?;
                decoder.logits_of(&output.hidden.narrow(0, 0, 1)?, &[1, 2, 3])?;
            }
            Ok(())
        })?;
        let logits = best(|| {
            let hidden = endcap_engine::Random::new(3).tensor((batch, hidden), 1.0)?;
            decoder.logits(&hidden).map(drop)
        })?;
        println!(
            "{name}: decode, batch {batch}, context {CONTEXT}: {:.0} tokens/s, {:.2} ms a step; {:.2} ms for all logits",
            8.0 * batch as f64 / seconds,
            1e3 * seconds / 8.0,
            1e3 * logits
        );
    }
    Ok(())
}

fn encoder(name: &str, layers: usize, hidden: usize, inner: usize, heads: usize, tokens: usize) -> Result<()> {
    let config = BertConfig {
        vocab: 4_096,
        hidden,
        inner,
        layers,
        heads,
        positions: 512,
        types: 2,
        eps: 1e-12,
        gelu: Gelu::Erf,
        pooling: None,
    };
    let bert = Bert::new(config.clone(), BertWeights::random(&config, 1)?)?;
    let texts = 2_048 / tokens;
    let mut random = Random::new(2);
    let ids: Vec<u32> = (0..texts * tokens).map(|_| random.below(4_096) as u32).collect();
    let segments = Segments::of_lengths(std::iter::repeat_n(tokens, texts));
    let seconds = best(|| bert.embed(&ids, &segments).map(drop))?;
    println!("{name}: {tokens} tokens, {:.0} texts/s", texts as f64 / seconds);
    Ok(())
}
