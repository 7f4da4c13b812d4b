//! A small world in which the loop closes: households of the demo market with histories and pages, the ranking service over them, and what they do
//! by the market's truth, which the service never sees.

use std::{collections::HashMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use endcap_engine::{EmbedModel, RelevanceModel};
use endcap_inference::{Embed, Embedding, Model, Pair, Relevance};
use endcap_market::{DEMO_SEED, Expected, Household, Market as Demo, Samples};
use endcap_ranking::{
    ARRANGED, Checks, Ground, Learner, Ranking, RankingConfig, Request, Rerank, Row, RowInput, Seen, Storefront, feedback,
    merchandised,
    slate::{Key, Slate},
};
use endcap_retrieval::Market;
use endcap_runtime::{Embedded, EmbeddedConfig, Input, ManualClock, Stage, Stamp, Store, Write};
use endcap_schemas::{ContextChanged, Feedback, PagePublished, UserKey, wire};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Arm, rows::FrontRow};
use crate::{
    config::Config,
    data::{DataDir, Scratch, Use},
    grounds,
    models::Loader,
    serve::Models,
    visits,
};

/// Visits that every household's history comes from.
const HISTORY: usize = 12;
/// When they are looked at first: an autumn day, so that seasons count.
const NOW_MS: i64 = 1_730_000_000_000;
/// Time from one round to the next.
const ROUND: Duration = Duration::from_secs(60);
/// Placements of a page, and products of each.
const PAGE: (usize, usize) = (8, 20);

/// What worlds are made of: the demo market with its truth, the same indexed, its models, and a folder that is removed in the end.
pub struct Worlds {
    demo: Arc<Demo>,
    market: Market,
    scratch: Scratch,
    /// The models.
    pub models: Models<EmbedModel, RelevanceModel>,
    /// Held, as nobody else may work in it.
    _data: DataDir,
}

impl Worlds {
    /// Those of the data directory that `config` names; stores lie in its folder `scratch`.
    ///
    /// # Errors
    /// When market or models cannot be opened.
    pub fn open(config: &Config, scratch: &str) -> Result<Self> {
        let data = DataDir::open(&config.data, Use::Alone)?;
        let loader = Loader::new(config, &data.models())?;
        let (encoder, (judge, threshold)) = (loader.encoder()?, loader.judge()?);
        let (market, scratch) = (grounds::open(config, &data, &encoder)?, data.scratch(scratch)?);
        let models = Models { encoder, judge, threshold };
        Ok(Self { demo: Arc::new(Demo::generate(DEMO_SEED)), market, scratch, models, _data: data })
    }

    /// A world of so many households that `seed` draws.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn world(&self, seed: u64, households: u64) -> Result<World> {
        World::new(self.demo.clone(), self.market.clone(), seed, households, self.scratch.path().to_owned())
    }
}

/// Households, and the pages that the store has of them.
pub struct World {
    demo: Arc<Demo>,
    market: Market,
    households: Vec<Household>,
    contexts: Arc<HashMap<UserKey, ContextChanged>>,
    store: Embedded,
    seed: u64,
    folder: PathBuf,
}

impl World {
    /// Draws `households` of `demo` by `seed` and puts their pages, the merchandiser's, into a store in `folder`. `market` is the demo market,
    /// indexed.
    ///
    /// # Errors
    /// When the market cannot be read or the store not be written.
    pub fn new(demo: Arc<Demo>, market: Market, seed: u64, households: u64, folder: PathBuf) -> Result<Self> {
        let (samples, snapshot, merchandiser) = (Samples::new(demo.clone()), market.snapshot(), demo.merchandiser());
        let store = open(&folder, &format!("world-{seed}"))?;
        let households: Vec<Household> = (0..households).map(|n| demo.household(seed, n)).collect();
        let (mut rng, mut contexts) = (ChaCha8Rng::seed_from_u64(seed), HashMap::new());
        let mut writes = Vec::with_capacity(households.len());
        for household in &households {
            let mut context = samples.context(household, HISTORY, NOW_MS, &mut rng);
            context.head.user = household.user.clone();
            let (user, stamp) = (household.user.clone(), Stamp::of(context.head.context_ms, 1));
            let page = merchandised(&snapshot, &merchandiser, &context, PAGE).context("cannot make a page")?;
            let page = wire::encode(&PagePublished { head: context.head.clone(), page })?;
            writes.push(Write::Page { user: user.clone(), stamp, page: Some(page) });
            contexts.insert(user, context);
        }
        store.put_all(&writes, &[])?;
        Ok(Self { demo, market, households, contexts: Arc::new(contexts), store, seed, folder })
    }

    /// The seed that it was drawn by.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What the shop of `arm` has learnt here.
    ///
    /// # Errors
    /// When its store cannot be opened.
    pub fn policies(&self, arm: Arm) -> Result<Arc<Embedded>> {
        Ok(Arc::new(open(&self.folder, &format!("{arm:?}-{}", self.seed))?))
    }

    /// A shop that has them as its shoppers. It knows what is kept in `policies`, and keeps there what it learns. All its pools are complete.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn shop<E, X>(
        &self,
        policies: Arc<Embedded>,
        config: RankingConfig,
        models: &Models<E, X>,
        rerank: Option<Rerank>,
    ) -> Result<Shop<'_>>
    where
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let (clock, contexts) = (Arc::new(ManualClock::at(NOW_MS)), self.contexts.clone());
        let ground = Ground {
            config: config.clone(),
            checks: Checks { banned: Vec::new(), threshold: models.threshold },
            market: self.market.clone(),
            store: Arc::new(self.store.clone()),
            policies: policies.clone(),
            history: Box::new(move |user| Ok(contexts.get(user).cloned())),
            clock: clock.clone(),
            key: Key::of(None, "lab"),
            rerank,
        };
        let (ranking, preparer) = Ranking::new(ground, models.encoder.clone(), models.judge.clone());
        ranking.refresh()?;
        let learner = Learner::new(config, policies);
        let shop = Shop { world: self, ranking, learner, clock, offset: 0 };
        for household in &self.households {
            shop.front(household, "first")?;
            preparer.catch_up();
        }
        Ok(shop)
    }
}

fn open(folder: &std::path::Path, name: &str) -> Result<Embedded> {
    let path = folder.join(format!("{name}.sqlite"));
    let clock = Arc::new(ManualClock::at(NOW_MS));
    Embedded::open(&path, EmbeddedConfig::default(), clock).with_context(|| format!("cannot open {}", path.display()))
}

/// The ranking service over a world, what learns for it, and a clock that goes on from round to round.
pub struct Shop<'a> {
    world: &'a World,
    ranking: Ranking,
    learner: Learner,
    clock: Arc<ManualClock>,
    /// Feedback that was told so far.
    offset: i64,
}

impl Shop<'_> {
    /// The storefront that a household sees on the occasion `id`.
    ///
    /// # Errors
    /// When store or catalogue do not answer.
    pub fn front(&self, household: &Household, id: &str) -> Result<Storefront> {
        let request = Request { user: household.user.clone(), id: format!("{id}/{}", household.user), rerank: None };
        self.ranking.storefront(&request).context("cannot show a storefront")
    }

    /// Whoever lives in its world.
    pub fn households(&self) -> &[Household] {
        &self.world.households
    }

    /// The market, with its truth.
    pub fn demo(&self) -> &Demo {
        &self.world.demo
    }

    /// The rows of the storefront that a household sees on the occasion `id` that have enough products to be arranged, in the ranker's order. For
    /// a shop that neither arranges nor shuffles.
    ///
    /// # Errors
    /// As [`Shop::front`].
    pub fn rows<'s>(&'s self, household: &'s Household, id: &str) -> Result<Vec<FrontRow<'s>>> {
        let front = self.front(household, id)?;
        let budget = self.world.contexts.get(&household.user).map_or(household.budget, |context| context.brief.budget);
        let mut rows = Vec::with_capacity(front.placements.len());
        for placement in front.placements.iter().filter(|placement| placement.products.len() >= ARRANGED) {
            let slate = Slate::read(&placement.slate, self.ranking.key())?;
            let known =
                placement.products.iter().map(|shown| self.demo().product(&shown.card.id).context("a product of the market"));
            let products = known.collect::<Result<Vec<_>>>()?;
            let seen = |place: usize| Seen {
                product: products[place],
                traits: slate.offers[place].traits,
                expected: placement.products[place].score,
            };
            let input = RowInput::of(&Row { budget, products: (0..ARRANGED).map(seen).collect() });
            rows.push(FrontRow { household, products, input });
        }
        Ok(rows)
    }

    /// What the storefronts of the occasion `id` are expected to bring, by the truth: the mean over all households.
    ///
    /// # Errors
    /// As [`Shop::front`].
    pub fn worth(&self, id: &str) -> Result<Expected> {
        let fronts = self.world.households.iter().map(|household| self.worth_of(household, &self.front(household, id)?));
        Ok(mean(&fronts.collect::<Result<Vec<_>>>()?))
    }

    fn worth_of(&self, household: &Household, front: &Storefront) -> Result<Expected> {
        Ok(self.world.demo.expected(household, &visits::rows(front, &self.world.demo)))
    }

    /// One visit of every household. What was shown is worth so much on average, by the truth; with `learns`, what they did is learnt from.
    ///
    /// # Errors
    /// As [`Shop::front`]; when what was learnt cannot be kept.
    pub fn round(&mut self, round: u64, learns: bool) -> Result<Expected> {
        let (mut worth, mut told) = (Vec::new(), Vec::new());
        for household in &self.world.households {
            let front = self.front(household, &format!("round-{round}"))?;
            worth.push(self.worth_of(household, &front)?);
            if learns {
                told.extend(self.told(household, &front, round)?);
            }
        }
        self.clock.advance(ROUND);
        if learns {
            self.learn(told)?;
        }
        Ok(mean(&worth))
    }

    /// What a household does with its storefront, as the door lets it in.
    fn told(&self, household: &Household, front: &Storefront, round: u64) -> Result<Vec<Feedback>> {
        let demo = &self.world.demo;
        let deeds = demo.visit(household, &visits::rows(front, demo), round);
        let entries = visits::told(front, &deeds);
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        Ok(feedback::read(serde_json::Value::from(entries).to_string().as_bytes(), self.ranking.key())?.0)
    }

    fn learn(&mut self, told: Vec<Feedback>) -> Result<()> {
        let inputs = told.into_iter().zip(self.offset..);
        let batch: Vec<_> = inputs.map(|(value, offset)| Input { value, partition: 0, offset, appended_ms: NOW_MS }).collect();
        self.offset += i64::try_from(batch.len())?;
        self.learner.process(&batch).context("cannot learn")?;
        self.ranking.refresh()?;
        Ok(())
    }
}

/// The mean of what visits are worth.
pub(super) fn mean(all: &[Expected]) -> Expected {
    let count = all.len().max(1) as f64;
    let of = |part: fn(&Expected) -> f64| all.iter().map(part).sum::<f64>() / count;
    Expected {
        impressions: of(|expected| expected.impressions),
        clicks: of(|expected| expected.clicks),
        value_cents: of(|expected| expected.value_cents),
    }
}
