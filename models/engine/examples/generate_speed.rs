//! How fast a decoder of the demo's size generates with random weights: plain steps, keyword lists, theme documents.
//!
//! `RAYON_NUM_THREADS=1 cargo run --profile release -p endcap-engine --example generate_speed`

use std::{error::Error, path::Path, time::Instant};

use candle_core::Device;
use endcap_engine::{
    Decoder, DecoderConfig, DecoderWeights, GenerateLimits, KeywordModel, KvCache, Random, StepInput, ThemeModel, Tokenizer,
    Want, demo_tokenizer, write_tensors,
};
use endcap_inference::{Candidates, ChooseKeywords, Model, TokenCounts, WriteThemes};

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const BATCHES: [usize; 3] = [1, 8, 32];

fn main() -> Outcome {
    let words = words(4_000);
    let texts: Vec<String> = words.iter().map(|word| format!("{word} {word}")).collect();
    let tokenizer = demo_tokenizer(texts.iter().map(String::as_str), 4_096)?;
    let config = DecoderConfig {
        vocab: tokenizer.vocabulary_size(),
        hidden: 256,
        inner: 768,
        layers: 6,
        heads: 8,
        kv_heads: 8,
        head: 32,
        eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tied: true,
        qkv_bias: false,
        positions: 2_048,
    };
    let decoder = Decoder::new(config.clone(), DecoderWeights::random(&config, 1)?)?;
    plain_steps(&decoder)?;
    let dir = tempfile::tempdir()?;
    write(dir.path(), &tokenizer, &decoder)?;
    keywords(dir.path(), &words)?;
    themes(dir.path(), &words)
}

/// Invented words of two to four syllables.
fn words(count: usize) -> Vec<String> {
    let mut random = Random::new(7);
    let mut syllable = || format!("{}{}", b"bcdfglmnprst"[random.below(12)] as char, b"aeiou"[random.below(5)] as char);
    (0..count).map(|i| (0..2 + i % 3).map(|_| syllable()).collect()).collect()
}

fn write(dir: &Path, tokenizer: &Tokenizer, decoder: &Decoder) -> Outcome {
    std::fs::write(dir.join("config.json"), decoder.config().to_json().to_string())?;
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_json()?)?;
    Ok(write_tensors(&dir.join("model.safetensors"), &decoder.to_hf()?)?)
}

fn plain_steps(decoder: &Decoder) -> Outcome {
    let prompt: Vec<u32> = (0..512).map(|i| 300 + i * 7 % 3_000).collect();
    for batch in BATCHES {
        let mut caches: Vec<KvCache> = (0..batch).map(|_| decoder.cache(640)).collect();
        let start = Instant::now();
        for cache in &mut caches {
            decoder.step(&mut [cache], &[StepInput { seq: 0, tokens: &prompt }], &Want::rows(&[511]))?;
        }
        let prefill = (512 * batch) as f64 / start.elapsed().as_secs_f64();
        let mut all: Vec<&mut KvCache> = caches.iter_mut().collect();
        let rows: Vec<usize> = (0..batch).collect();
        let start = Instant::now();
        for step in 0..64 {
            let token = [300 + step];
            let inputs: Vec<StepInput<'_>> = (0..batch).map(|seq| StepInput { seq, tokens: &token }).collect();
            let output = decoder.step(&mut all, &inputs, &Want::rows(&rows))?;
            decoder.logits(&output.hidden)?;
        }
        let decode = (64 * batch) as f64 / start.elapsed().as_secs_f64();
        println!(
            "plain     batch {batch:2}: prefill {prefill:7.0} tokens/s, decode with all logits at context 512 {decode:7.0} tokens/s"
        );
    }
    Ok(())
}

fn keywords(dir: &Path, words: &[String]) -> Outcome {
    let mut model = KeywordModel::load(dir, None, &Device::Cpu)?.with_limits(GenerateLimits::default());
    let request = |n: usize| {
        let term = |i: usize| format!("{} {}", words[(n * 31 + i / 3) % words.len()], words[(n * 17 + i * 13) % words.len()]);
        let group = |g: usize| Candidates { concept: words[n + g].clone(), terms: (g * 21..g * 21 + 21).map(term).collect() };
        ChooseKeywords {
            prompt: "<keywords><diet> vegan;<season> winter<budget> low<persona> busy family<title> winter warmers".into(),
            candidates: (0..3).map(group).collect(),
            keywords_min: 3,
            keywords_max: 8,
        }
    };
    for batch in BATCHES {
        let requests: Vec<_> = (0..batch).map(request).collect();
        let start = Instant::now();
        let answers = model.answer(requests)?;
        let seconds = start.elapsed().as_secs_f64();
        let (mut counts, mut chosen) = (TokenCounts::default(), 0);
        for answer in answers {
            let answer = answer?;
            counts += answer.tokens;
            chosen += answer.picks.len();
        }
        let choices = counts.generated as f64 / chosen as f64;
        println!(
            "keywords  batch {batch:2}: {:6.1} lists/s, {chosen} keywords, {choices:.2} choices a keyword, {} forced, {:7.0} prompt tokens/s",
            batch as f64 / seconds,
            counts.forced,
            counts.prefilled as f64 / seconds
        );
    }
    Ok(())
}

fn themes(dir: &Path, words: &[String]) -> Outcome {
    let mut model = ThemeModel::load(dir, None, &Device::Cpu)?;
    for batch in BATCHES {
        let prompt = |n: usize| format!("<themes><diet><season> winter<favourites> {}; {};<recent><out>", words[n], words[n + 1]);
        let requests: Vec<_> = (0..batch).map(|n| WriteThemes { prompt: prompt(n), themes: 8 }).collect();
        let start = Instant::now();
        let answers = model.answer(requests)?;
        let seconds = start.elapsed().as_secs_f64();
        let mut counts = TokenCounts::default();
        let mut complete = 0;
        for answer in answers {
            match answer {
                Ok(answer) => {
                    counts += answer.tokens;
                    complete += 1;
                }
                Err(error) => eprintln!("{error}"),
            }
        }
        let said = (counts.generated + counts.forced) as f64;
        println!(
            "themes    batch {batch:2}: {complete} documents, {:7.0} tokens/s, {} of {said} forced",
            said / seconds,
            counts.forced
        );
    }
    Ok(())
}
