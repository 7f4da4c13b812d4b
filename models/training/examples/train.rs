//! Trains the demo models one by one: `train encoder|cross-encoder|decoder --out DIR …`. The thin developer's entry beside `endcap train`.

use std::{
    collections::HashMap,
    error::Error,
    fs,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use endcap_engine::Tokenizer;
use endcap_market::{DEMO_SEED, Market};
use endcap_training::{
    AdapterRun, AdapterTask, Budget, CrossEncoderRun, DecoderRun, EncoderRun, LoraShape, RunSettings, Source, Surroundings,
    examine_keywords, examine_themes, train_adapter, train_cross_encoder, train_decoder, train_encoder,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let what = words.next().ok_or("name a model: encoder, cross-encoder or decoder")?;
    let words: Vec<String> = words.collect();
    let options: HashMap<&str, &str> =
        words.chunks(2).filter(|pair| pair.len() == 2).map(|pair| (pair[0].as_str(), pair[1].as_str())).collect();
    let number = |name: &str, or: f64| options.get(name).map_or(Ok(or), |text| text.parse::<f64>());
    let path = |name: &str| options.get(name).map(PathBuf::from).ok_or(format!("{name} DIR is needed"));

    let settings = RunSettings {
        seed: number("--seed", 1.0)? as u64,
        budget: match options.get("--steps") {
            Some(steps) => Budget::Steps(steps.parse()?),
            None => Budget::Minutes(number("--minutes", 10.0)?),
        },
        threads: number("--threads", 1.0)? as usize,
        micro_batches: number("--micro-batches", 2.0)? as usize,
        micro_tokens: number("--micro-tokens", 1_024.0)? as usize,
        rate: number("--rate", 1e-3)? as f32,
        anneal_from: number("--anneal-from", 0.6)? as f32,
        checkpoint: options.get("--checkpoint").map(PathBuf::from),
        checkpoint_every: Duration::from_secs(120),
        score_every: Duration::from_secs_f64(number("--score-seconds", 120.0)?),
    };
    let source = Source::new(Arc::new(Market::generate(DEMO_SEED)));
    let tokenizer = tokenizer(&source, &path("--tokenizer")?)?;
    println!(
        "{} terms, {} products, {} categories; vocabulary {}",
        source.market().terms.len(),
        source.market().products.len(),
        source.market().categories.len(),
        tokenizer.vocabulary_size()
    );

    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let mut around = Surroundings { clock: &|| start.elapsed(), stop: &stop, say: &mut |line| println!("{line}") };
    let report = match what.as_str() {
        "encoder" => {
            let run = EncoderRun {
                settings,
                teacher: path("--teacher")?,
                out: path("--out")?,
                lead: number("--lead", 0.5)? as f32,
                composed: number("--composed", 20_000.0)? as usize,
            };
            train_encoder(&run, &source, &tokenizer, &mut around)?
        }
        "cross-encoder" => {
            let run = CrossEncoderRun { settings, encoder: path("--encoder")?, out: path("--out")? };
            train_cross_encoder(&run, &source, &tokenizer, &mut around)?
        }
        "decoder" => {
            let (layers, inner) = (number("--layers", 4.0)? as usize, number("--inner", 768.0)? as usize);
            let run = DecoderRun { settings, encoder: path("--encoder")?, out: path("--out")?, layers, inner };
            train_decoder(&run, &source, &tokenizer, &mut around)?
        }
        "themes" | "keywords" => {
            let task = if what == "themes" { AdapterTask::Themes } else { AdapterTask::Keywords };
            let lora = LoraShape { rank: 8, alpha: 16.0 };
            let run = AdapterRun { settings, task, encoder: path("--encoder")?, decoder: path("--out")?, lora };
            train_adapter(&run, &source, &tokenizer, &mut around)?
        }
        "examine" => {
            let (decoder, encoder) = (path("--out")?, path("--encoder")?);
            let count = number("--count", 50.0)? as u64;
            println!("{:#?}", examine_themes(&decoder, &source, count)?);
            println!("{:#?}", examine_keywords(&decoder, &encoder, &source, &tokenizer, count)?);
            return Ok(());
        }
        other => return Err(format!("`{other}` is no model: encoder, cross-encoder or decoder").into()),
    };
    println!("{report:#?}");
    Ok(())
}

/// Reads the shared tokenizer, or trains it once.
fn tokenizer(source: &Source, path: &PathBuf) -> Result<Tokenizer, Box<dyn Error>> {
    if !path.exists() {
        fs::write(path, source.tokenizer()?.to_json()?)?;
    }
    Ok(Tokenizer::from_file(path)?)
}
