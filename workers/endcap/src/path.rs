//! The path of one page, wired: five stages, each on a thread of its own, over the embedded log and store. Only here do stages, models,
//! market and log meet.

use std::{
    sync::{Arc, mpsc::Sender},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use endcap_aiqa::{AiqaConfig, AiqaStage};
use endcap_context::{ContextConfig, ContextStage, ProductLookup};
use endcap_dedup::{DedupConfig, DedupStage};
use endcap_inference::{
    ChooseKeywords, ChosenKeywords, Embed, Embedding, Handle, Model, Pair, Relevance, WriteThemes, WrittenThemes,
};
use endcap_keywords::{KeywordsConfig, KeywordsStage, TokenCounter};
use endcap_retrieval::Market;
use endcap_runtime::{Clocks, Embedded, LoopConfig, Shutdown, Stage, StageEnv, StageStats, StageStopped, Store, run_stage};
use endcap_schemas::Message;
use endcap_themes::{ThemesConfig, ThemesStage};

use crate::monitor::group_of;

/// Number of this pipeline's manifest. One deployment, one manifest: it grows when pages are to be made again by a better one.
const GENERATION: i32 = 1;

/// The models of the path, each on a thread of its own.
pub struct Fleet<T, K, E, X>
where
    T: Model<Request = WriteThemes, Answer = WrittenThemes>,
    K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    /// LLM 1.
    pub themes: Handle<T>,
    /// LLM 2.
    pub keywords: Handle<K>,
    /// The encoder.
    pub encoder: Handle<E>,
    /// The cross-encoder.
    pub judge: Handle<X>,
    /// Counts tokens as LLM 2 does.
    pub count: TokenCounter,
    /// Probability from which the cross-encoder's pair is relevant.
    pub threshold: f32,
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
}

/// What the stages share.
#[derive(Clone)]
pub struct Ground {
    /// Log and store.
    pub file: Embedded,
    /// The market.
    pub market: Market,
    /// Time.
    pub clocks: Clocks,
    /// Who asks them to finish.
    pub shutdown: Shutdown,
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
    /// Starts every stage. Each tells `ended` when it has ended.
    ///
    /// # Errors
    /// When the log does not answer or a thread cannot be started.
    pub fn start<T, K, E, X>(fleet: Fleet<T, K, E, X>, config: PathConfig, ground: &Ground, ended: &Sender<Ended>) -> Result<Self>
    where
        T: Model<Request = WriteThemes, Answer = WrittenThemes>,
        K: Model<Request = ChooseKeywords, Answer = ChosenKeywords>,
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let versions =
            [("themes", fleet.themes.version()), ("keywords", fleet.keywords.version()), ("encoder", fleet.encoder.version())];
        let versions = versions.into_iter().map(|(name, version)| (name.to_owned(), version.to_owned())).collect();
        let store: Arc<dyn Store> = Arc::new(ground.file.clone());
        let market = || ground.market.clone();
        let aiqa = AiqaConfig { threshold: config.aiqa.threshold.or(Some(fleet.threshold)), ..config.aiqa };
        let lookup = product_lookup(market());
        let mut path = Self { stages: Vec::new(), threads: Vec::new() };
        let context = ContextStage::new(config.context, GENERATION, store.clone(), lookup);
        path.add(context, LoopConfig { batch_records_max: 256, ..LoopConfig::default() }, ground, ended)?;
        let themes = ThemesStage::new(config.themes, market(), fleet.themes);
        path.add(
            themes,
            LoopConfig { debounce: config.debounce, batch_records_max: 32, ..LoopConfig::default() },
            ground,
            ended,
        )?;
        let keywords =
            KeywordsStage::new(config.keywords, market(), store.clone(), fleet.encoder.clone(), fleet.keywords, fleet.count);
        path.add(keywords, LoopConfig { batch_records_max: 32, ..LoopConfig::default() }, ground, ended)?;
        let dedup = DedupStage::new(config.dedup, fleet.encoder);
        path.add(dedup, LoopConfig::default(), ground, ended)?;
        let aiqa = AiqaStage::new(aiqa, market(), store, fleet.judge, versions);
        path.add(aiqa, LoopConfig { batch_records_max: 32, ..LoopConfig::default() }, ground, ended)?;
        Ok(path)
    }

    fn add<S: Stage + 'static>(
        &mut self,
        mut stage: S,
        config: LoopConfig,
        ground: &Ground,
        ended: &Sender<Ended>,
    ) -> Result<()> {
        let mut consumer =
            ground.file.consumer(&group_of(S::NAME), S::In::TOPIC).with_context(|| format!("cannot start stage {}", S::NAME))?;
        let stats = Arc::new(StageStats::default());
        let env = StageEnv {
            store: Arc::new(ground.file.clone()),
            clocks: ground.clocks.clone(),
            config,
            stats: stats.clone(),
            shutdown: ground.shutdown.clone(),
        };
        let ended = ended.clone();
        let thread = thread::Builder::new().name(format!("stage-{}", S::NAME)).spawn(move || {
            let result = run_stage(&mut stage, &mut consumer, &env);
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
