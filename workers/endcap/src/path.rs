//! The path of one page, wired: its stages, each on a thread of its own, over a log and a store. Only here do stages, models, market and
//! log meet.

use std::{
    sync::{Arc, mpsc::Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use endcap_aiqa::{AiqaConfig, AiqaStage};
use endcap_context::{ContextConfig, ContextStage, ProductLookup};
use endcap_dedup::{DedupConfig, DedupStage};
use endcap_inference::{
    ChooseKeywords, ChosenKeywords, Embed, Embedding, Handle, Model, Pair, Relevance, WriteThemes, WrittenThemes,
};
use endcap_keywords::{KeywordsConfig, KeywordsStage, TokenCounter};
use endcap_ranking::{Learner, RankingConfig};
use endcap_retrieval::Market;
use endcap_runtime::{
    BreakerConfig, Broker, Clocks, LogError, LoopConfig, Shutdown, Stage, StageEnv, StageStats, StageStopped, Store, run_lanes,
    run_stage,
};
use endcap_schemas::{
    Message,
    topics::{Lane, Topic},
};
use endcap_themes::{ThemesConfig, ThemesStage};

use crate::{monitor::group_of, sides::Sides};

/// What [`Path::start`] relies on.
const LOADED: &str = "a stage's model is loaded before the stage starts";

/// A stage of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StageName {
    /// Folds events into one snapshot per change.
    Context,
    /// Writes the themes of a page.
    Themes,
    /// Chooses each theme's keywords.
    Keywords,
    /// Takes near-repeats out.
    Dedup,
    /// Checks what the keywords bring, and publishes the page.
    Aiqa,
}

impl StageName {
    /// The whole path, in its order.
    pub const ALL: [StageName; 5] =
        [StageName::Context, StageName::Themes, StageName::Keywords, StageName::Dedup, StageName::Aiqa];
}

/// Models of the path, each on a thread of its own: the encoder, and those of the stages that this process runs.
pub struct Fleet<T, K, E, X>
where
    T: Model<Request = WriteThemes, Answer = WrittenThemes>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    /// LLM 1.
    pub themes: Option<Handle<T>>,
    /// LLM 2, and what counts tokens as it does.
    pub keywords: Option<(Handle<K>, TokenCounter)>,
    /// The encoder.
    pub encoder: Handle<E>,
    /// The cross-encoder, and the probability from which its pairs are relevant.
    pub judge: Option<(Handle<X>, f32)>,
}

/// Settings of every stage.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PathConfig {
    /// Of the context stage.
    pub context: ContextConfig,
    /// Of the themes stage.
    pub themes: ThemesConfig,
    /// Of the keywords stage.
    pub keywords: KeywordsConfig,
    /// Of the dedup stage.
    pub dedup: DedupConfig,
    /// Of the AIQA stage.
    pub aiqa: AiqaConfig,
    /// How long a shopper must rest before a page is made.
    pub debounce: Duration,
    /// While both lanes of a stage have work, the backfill lane gets one batch in so many; `None` for the loop's own share.
    pub backfill_share: Option<u32>,
}

/// What the stages share.
#[derive(Clone)]
pub struct Ground {
    /// The number of the manifest that they run.
    pub generation: i32,
    /// Log and store.
    pub sides: Sides,
    /// The market.
    pub market: Market,
    /// Time.
    pub clocks: Clocks,
    /// Who asks them to finish.
    pub shutdown: Shutdown,
}

/// Makes every group of the path known to `log`: what waits for a stage that runs elsewhere, or has never run yet, must be seen and stay.
///
/// # Errors
/// When the log does not answer.
pub fn declare(log: &dyn Broker) -> Result<(), LogError> {
    for (stage, topic) in StageName::ALL.iter().zip(Topic::PATH) {
        let name = stage.to_possible_value().expect("every stage has a name");
        for lane in lanes_of(topic) {
            log.declare(&group_of(name.get_name(), *lane), topic.on(*lane))?;
        }
    }
    Ok(())
}

/// Lanes on which `topic` is consumed. Events have one order: a replay of them folds by itself and sends what comes of it to the stages behind.
/// Feedback has one, too.
fn lanes_of(topic: Topic) -> &'static [Lane] {
    if [Topic::EVENTS, Topic::FEEDBACK].contains(&topic) { &[Lane::Live] } else { &Lane::ALL }
}

/// A stage that has ended.
#[derive(Debug)]
pub struct Ended {
    /// Its name.
    pub stage: &'static str,
    /// Why, where nobody asked it to.
    pub result: Result<(), StageStopped>,
}

/// The running stages.
pub struct Path {
    /// In path order.
    pub stages: Vec<(&'static str, Arc<StageStats>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Path {
    /// Starts `stages` in path order. Each tells `ended` when it has ended.
    ///
    /// # Errors
    /// When the log does not answer or a thread cannot be started.
    ///
    /// # Panics
    /// When `fleet` lacks the model of a stage.
    pub fn start<T, K, E, X>(
        stages: &[StageName],
        fleet: Fleet<T, K, E, X>,
        config: &PathConfig,
        ground: &Ground,
        ended: &Sender<Ended>,
    ) -> Result<Self>
    where
        T: Model<Request = WriteThemes, Answer = WrittenThemes>,
        K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        declare(&*ground.sides.log).context("cannot make the path known to the log")?;
        let store: Arc<dyn Store> = ground.sides.store.clone();
        let market = || ground.market.clone();
        let Fleet { mut themes, mut keywords, encoder, mut judge } = fleet;
        let usual = LoopConfig::default();
        let backfill_share = config.backfill_share.unwrap_or(usual.backfill_share);
        let of = |batch_records_max| LoopConfig { batch_records_max, backfill_share, ..usual };
        let mut path = Self { stages: Vec::new(), threads: Vec::new() };
        for stage in StageName::ALL.into_iter().filter(|stage| stages.contains(stage)) {
            match stage {
                StageName::Context => {
                    let lookup = product_lookup(market());
                    let stage = ContextStage::new(config.context.clone(), ground.generation, store.clone(), lookup);
                    path.add(stage, of(256), ground, ended)?;
                }
                StageName::Themes => {
                    let stage = ThemesStage::new(config.themes.clone(), market(), themes.take().expect(LOADED));
                    path.add(stage, LoopConfig { debounce: config.debounce, ..of(32) }, ground, ended)?;
                }
                StageName::Keywords => {
                    let (chooser, count) = keywords.take().expect(LOADED);
                    let (settings, encoder) = (config.keywords.clone(), encoder.clone());
                    let stage = KeywordsStage::new(settings, market(), store.clone(), encoder, chooser, count);
                    path.add(stage, of(32), ground, ended)?;
                }
                StageName::Dedup => {
                    let stage = DedupStage::new(config.dedup.clone(), encoder.clone());
                    path.add(stage, of(usual.batch_records_max), ground, ended)?;
                }
                StageName::Aiqa => {
                    let (judge, threshold) = judge.take().expect(LOADED);
                    let settings = AiqaConfig { threshold: config.aiqa.threshold.or(Some(threshold)), ..config.aiqa.clone() };
                    let stage = AiqaStage::new(settings, market(), store.clone(), judge);
                    path.add(stage, of(32), ground, ended)?;
                }
            }
        }
        Ok(path)
    }

    /// Starts what learns from feedback, beside the stages: of a fleet's processes that do, one has all of it at a time.
    ///
    /// # Errors
    /// When the log does not answer or there is no thread to be had.
    pub fn start_learner(&mut self, config: &RankingConfig, ground: &Ground, ended: &Sender<Ended>) -> Result<()> {
        let usual = LoopConfig::default();
        let gather = Duration::from_millis(config.publish_every_ms);
        // Learning that fails ends no process that serves: its feedback becomes dead letters, and the last policy serves.
        let limits = LoopConfig { gather, batch_records_max: usual.held_max, breaker: BreakerConfig::NEVER, ..usual };
        self.add(Learner::new(config.clone(), ground.sides.store.clone()), limits, ground, ended)
    }

    fn add<S: Stage + 'static>(
        &mut self,
        mut stage: S,
        config: LoopConfig,
        ground: &Ground,
        ended: &Sender<Ended>,
    ) -> Result<()> {
        let consumer = |lane| {
            let consumer = ground.sides.log.consumer(&group_of(S::NAME, lane), S::In::TOPIC.on(lane));
            consumer.with_context(|| format!("cannot start stage {}", S::NAME))
        };
        let live = consumer(Lane::Live)?;
        let backfill = lanes_of(S::In::TOPIC).contains(&Lane::Backfill).then(|| consumer(Lane::Backfill)).transpose()?;
        let stats = Arc::new(StageStats::default());
        let env = StageEnv {
            store: ground.sides.store.clone(),
            clocks: ground.clocks.clone(),
            config,
            stats: stats.clone(),
            shutdown: ground.shutdown.clone(),
        };
        let ended = ended.clone();
        let thread = thread::Builder::new().name(format!("stage-{}", S::NAME)).spawn(move || {
            let result = match backfill {
                Some(backfill) => run_lanes(&mut stage, live, backfill, &env),
                None => run_stage(&mut stage, live, &env),
            };
            // Nobody listens any more when the process is already ending.
            let _ = ended.send(Ended { stage: S::NAME, result });
        });
        self.threads.push(thread.with_context(|| format!("cannot start stage {}", S::NAME))?);
        self.stages.push((S::NAME, stats));
        Ok(())
    }

    /// Waits until every stage has ended.
    pub fn join(self) {
        for thread in self.threads {
            // The loop catches every panic and tells it as the stage's end.
            let _ = thread.join();
        }
    }
}

/// Looks products up. While the catalogue cannot be read the stage's batch is retried: an event must not become a dead letter for that.
fn product_lookup(market: Market) -> ProductLookup {
    Box::new(move |id| market.snapshot().product(id).map_err(|error| error.to_string()))
}
