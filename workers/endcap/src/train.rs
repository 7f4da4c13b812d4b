//! `endcap train`: makes the demo models, each in a folder of the models' directory.

use std::{
    fs,
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

use anyhow::{Context, Result};
use endcap_engine::Tokenizer;
use endcap_market::{DEMO_SEED, Market};
use endcap_training::{
    AdapterRun, AdapterTask, Budget, CrossEncoderRun, DecoderRun, EncoderRun, LoraShape, RunSettings, Source, Surroundings,
    train_adapter, train_cross_encoder, train_decoder, train_encoder,
};

use crate::cli::{TrainArgs, Trainable};

/// Size of an adapter.
const LORA: LoraShape = LoraShape { rank: 8, alpha: 16.0 };
/// How far a term's vector is led from the teacher's towards its category's name.
const LEAD: f32 = 0.5;
/// Texts composed of the market's words that the encoder is distilled on.
const COMPOSED: usize = 20_000;

/// Trains a model. Ctrl-C ends it after a step, with a checkpoint that the next run goes on from.
///
/// # Errors
/// When files cannot be read or written, or training fails.
pub fn train(args: &TrainArgs) -> Result<()> {
    fs::create_dir_all(&args.models).with_context(|| format!("cannot write {}", args.models.display()))?;
    let source = Source::new(Arc::new(Market::generate(DEMO_SEED)));
    let tokenizer = tokenizer(args, &source)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signal_hook::consts::TERM_SIGNALS {
        // The first asks, the second ends at once.
        signal_hook::flag::register_conditional_shutdown(*signal, 1, stop.clone()).context("cannot listen to signals")?;
        signal_hook::flag::register(*signal, stop.clone()).context("cannot listen to signals")?;
    }
    let start = Instant::now();
    let mut around = Surroundings { clock: &|| start.elapsed(), stop: &stop, say: &mut |line| println!("{line}") };
    let (settings, folder) = (settings(args), |name: &str| args.models.join(name));
    let report = match args.what {
        Trainable::Encoder => {
            let teacher = args.teacher.clone().unwrap_or_default(); // clap insists on it
            let run = EncoderRun { settings, teacher, out: folder("encoder"), lead: LEAD, composed: COMPOSED };
            train_encoder(&run, &source, &tokenizer, &mut around)?
        }
        Trainable::CrossEncoder => {
            let run = CrossEncoderRun { settings, encoder: folder("encoder"), out: folder("cross-encoder") };
            train_cross_encoder(&run, &source, &tokenizer, &mut around)?
        }
        Trainable::Decoder => {
            let run = DecoderRun {
                settings,
                encoder: folder("encoder"),
                out: folder("decoder"),
                layers: args.layers,
                inner: args.inner,
            };
            train_decoder(&run, &source, &tokenizer, &mut around)?
        }
        Trainable::Themes | Trainable::Keywords => {
            let task = if args.what == Trainable::Themes { AdapterTask::Themes } else { AdapterTask::Keywords };
            let run = AdapterRun { settings, task, encoder: folder("encoder"), decoder: folder("decoder"), lora: LORA };
            train_adapter(&run, &source, &tokenizer, &mut around)?
        }
    };
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

fn settings(args: &TrainArgs) -> RunSettings {
    RunSettings {
        seed: args.seed,
        budget: args.steps.map_or(Budget::Minutes(args.minutes), Budget::Steps),
        threads: args.threads,
        rate: args.rate,
        checkpoint: Some(args.models.join(format!("{}.checkpoint", args.what.name()))),
        ..RunSettings::default()
    }
}

/// The tokenizer that all models share: the encoder's; made anew where there is no encoder yet.
fn tokenizer(args: &TrainArgs, source: &Source) -> Result<Tokenizer> {
    let path = args.models.join("encoder").join("tokenizer.json");
    if !path.exists() && args.what == Trainable::Encoder {
        println!("making the tokenizer");
        return Ok(source.tokenizer()?);
    }
    Tokenizer::from_file(&path).context("train the encoder first: it makes the tokenizer")
}
