//! `endcap train`: makes the demo models, or goes on with finished ones on an imported market. Each model is a folder of the models'
//! directory.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use endcap_engine::Tokenizer;
use endcap_training::{
    AdapterRun, AdapterTask, Budget, CrossEncoderRun, DecoderRun, DecoderStart, EncoderRun, LoraShape, RunSettings, Source,
    Surroundings, TrainError, train_adapter, train_cross_encoder, train_decoder, train_encoder,
};

use crate::{
    cli::{TrainArgs, Trainable},
    config::Config,
    grounds, models, places, reranker, schooling,
    signals::stop_on_signals,
};

/// Where the demo models lie.
pub const DEMO: &str = "models/demo";
/// Size of an adapter.
const LORA: LoraShape = LoraShape { rank: 8, alpha: 16.0 };
/// How far a term's vector is led from the teacher's towards its category's name.
const LEAD: f32 = 0.5;
/// Texts composed of the market's words that the encoder is distilled on.
const COMPOSED: usize = 8_000;
/// Minutes of one model, and of all that a market needs.
const MINUTES: f64 = 10.0;
const MARKET_MINUTES: f64 = 75.0;
/// What a market's training consists of, in order, with its share of the time. The base is what takes it: with half an hour for it,
/// adapters of seven and nine minutes moved the share of fallback placements by nothing (28.4 % before, 28.6 % after).
const OF_A_MARKET: [(Trainable, f64); 4] =
    [(Trainable::CrossEncoder, 0.15), (Trainable::Decoder, 0.7), (Trainable::Themes, 0.075), (Trainable::Keywords, 0.075)];
/// Learning rates of whole models and of adapters.
const RATE: f32 = 1e-3;
const ADAPTER_RATE: f32 = 1.5e-3;

/// Trains a model, or all that a market needs. Ctrl-C ends it after a step, with a checkpoint that the next run goes on from; the model that
/// was being trained is not written.
///
/// # Errors
/// When files cannot be read or written, or training fails.
pub fn train(args: &TrainArgs, config: &Config) -> Result<()> {
    if args.what == Some(Trainable::Reranker) {
        return reranker::train(args, config);
    }
    let goes_on = args.market.is_some() || matches!(args.what, Some(Trainable::CrossEncoder | Trainable::Decoder));
    if args.from.is_some() && !goes_on {
        bail!("without --market only the cross-encoder and the decoder go on from finished models: leave --from out");
    }
    let school = match &args.market {
        None => School::of_demo(args)?,
        Some(market) => School::of_market(args, config, market)?,
    };
    let lessons = match args.what {
        Some(what) => vec![(what, args.minutes.unwrap_or(MINUTES))],
        None => OF_A_MARKET.map(|(what, share)| (what, share * args.minutes.unwrap_or(MARKET_MINUTES))).to_vec(),
    };
    let stop = stop_on_signals()?;
    for (what, minutes) in lessons {
        match args.steps {
            Some(steps) => println!("{}: {steps} steps", what.name()),
            None => println!("{}: {minutes:.0} minutes", what.name()),
        }
        match school.teach(what, minutes, args, &stop) {
            Err(error) if matches!(error.downcast_ref(), Some(TrainError::Stopped)) => {
                println!("stopped; the same command goes on from here");
                break;
            }
            taught => taught?,
        }
    }
    Ok(())
}

/// What all models of a run share.
struct School {
    source: Source,
    tokenizer: Tokenizer,
    /// Where the results go.
    folder: PathBuf,
    /// Finished models to go on from.
    from: Option<PathBuf>,
}

impl School {
    /// The demo models, from nothing.
    fn of_demo(args: &TrainArgs) -> Result<Self> {
        let folder = args.models.clone().unwrap_or_else(|| DEMO.into());
        fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
        let source = Source::demo();
        let path = tokenizer_in(&folder);
        let tokenizer = if !path.exists() && args.what == Some(Trainable::Encoder) {
            println!("making the tokenizer");
            source.tokenizer()?
        } else {
            Tokenizer::from_file(&path).context("train the encoder first: it makes the tokenizer that all models share")?
        };
        Ok(Self { source, tokenizer, folder, from: args.from.as_ref().map(PathBuf::from) })
    }

    /// Finished models on an imported market.
    fn of_market(args: &TrainArgs, config: &Config, market: &Path) -> Result<Self> {
        if args.what == Some(Trainable::Encoder) {
            bail!(
                "a market keeps the encoder that its keywords are indexed with: train cross-encoder, decoder, themes or keywords"
            );
        }
        let folder = args.models.clone().unwrap_or_else(|| grounds::trained_in(market));
        let from = places::directory(config, &market.join("models"))?;
        schooling::copy_encoder(&from, &folder)?;
        let encoder = models::load_encoder(config, &market.join("models"))?;
        let dir = endcap_retrieval::MarketDir::open(market)?;
        grounds::index(&dir, &encoder).context("cannot index the keyword corpus")?;
        println!("reading the market");
        let source = schooling::source(&endcap_retrieval::Market::over(dir)?, &encoder)?;
        println!("{}", source.name());
        let tokenizer = Tokenizer::from_file(&tokenizer_in(&from))?;
        Ok(Self { source, tokenizer, folder, from: Some(from) })
    }

    fn teach(&self, what: Trainable, minutes: f64, args: &TrainArgs, stop: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        let mut around = Surroundings { clock: &|| start.elapsed(), stop, say: &mut |line| println!("{line}") };
        let (source, tokenizer, around) = (&self.source, &self.tokenizer, &mut around);
        let (settings, folder) = (self.settings(what, minutes, args), |name: &str| self.folder.join(name));
        let from = |name: &str| self.from.as_ref().map(|from| from.join(name));
        match what {
            Trainable::Encoder => {
                let teacher = args.teacher.clone().context("name the encoder's teacher with --teacher")?;
                let run = EncoderRun { settings, teacher, out: folder("encoder"), lead: LEAD, composed: COMPOSED };
                train_encoder(&run, source, tokenizer, around)?
            }
            Trainable::CrossEncoder => {
                let (encoder, out) = (folder("encoder"), folder("cross-encoder"));
                train_cross_encoder(
                    &CrossEncoderRun { settings, encoder, from: from("cross-encoder"), out },
                    source,
                    tokenizer,
                    around,
                )?
            }
            Trainable::Decoder => {
                let start = match from("decoder") {
                    Some(base) => DecoderStart::Base(base),
                    None => DecoderStart::Fresh { layers: args.layers, inner: args.inner },
                };
                let run = DecoderRun { settings, encoder: folder("encoder"), out: folder("decoder"), start };
                train_decoder(&run, source, tokenizer, around)?
            }
            Trainable::Themes | Trainable::Keywords => {
                let task = if what == Trainable::Themes { AdapterTask::Themes } else { AdapterTask::Keywords };
                let run = AdapterRun { settings, task, encoder: folder("encoder"), decoder: folder("decoder"), lora: LORA };
                train_adapter(&run, source, tokenizer, around)?
            }
            Trainable::Reranker => unreachable!("the re-ranking model has a training of its own"),
        };
        Ok(())
    }

    fn settings(&self, what: Trainable, minutes: f64, args: &TrainArgs) -> RunSettings {
        let adapter = matches!(what, Trainable::Themes | Trainable::Keywords);
        let defaults = match adapter {
            true => RunSettings { rate: ADAPTER_RATE, anneal_from: 0.3, ..RunSettings::default() },
            false => RunSettings { rate: RATE, ..RunSettings::default() },
        };
        RunSettings {
            seed: args.seed,
            budget: args.steps.map_or(Budget::Minutes(minutes), Budget::Steps),
            threads: args.threads,
            rate: args.rate.unwrap_or(defaults.rate),
            checkpoint: Some(self.folder.join(format!("{}.checkpoint", what.name()))),
            ..defaults
        }
    }
}

/// The tokenizer that all models share: the encoder's.
fn tokenizer_in(models: &Path) -> PathBuf {
    models.join("encoder").join("tokenizer.json")
}
