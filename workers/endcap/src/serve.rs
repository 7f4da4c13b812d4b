//! Storefronts in a process: the ranking service, what looks up beside it, and what takes up new policies, wired to the sides and the market.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use endcap_context::{ContextConfig, FoldState};
use endcap_inference::{Embed, Embedding, Handle, Model, Pair, Relevance};
use endcap_ranking::{
    Checks, Ground as RankingGround, History, Pier, Ranking, RankingConfig, Rerank, feedback::FeedbackTaken, slate::Key,
};
use endcap_runtime::{Headers, Outgoing, Shutdown, Store, StoreError};
use endcap_schemas::{Feedback, topics::Topic, wire};

use crate::{
    desk::Desk,
    path::{Ground, PathConfig},
    reranker,
};

/// How often a newer policy is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The service, and its threads.
pub struct Service {
    /// What answers.
    pub ranking: Arc<Ranking>,
    threads: Vec<JoinHandle<()>>,
}

/// The models that a service needs: the encoder, and the cross-encoder with the probability from which its pairs are relevant.
pub struct Models<E, X>
where
    E: Model<Request = Embed, Answer = Embedding>,
    X: Model<Request = Pair, Answer = Relevance>,
{
    /// The encoder.
    pub encoder: Handle<E>,
    /// The cross-encoder.
    pub judge: Handle<X>,
    /// Its threshold.
    pub threshold: f32,
}

impl Service {
    /// Starts the service, whose slates are sealed with `key`; it ends with the shutdown of `ground`. Nominations are held to what `path` holds pages
    /// to, and rows are arranged by `rerank`, where there is something that does.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start<E, X>(
        key: Key,
        ranking: &RankingConfig,
        path: &PathConfig,
        ground: &Ground,
        models: Models<E, X>,
        rerank: Option<Rerank>,
    ) -> Result<Self>
    where
        E: Model<Request = Embed, Answer = Embedding>,
        X: Model<Request = Pair, Answer = Relevance>,
    {
        let threshold = path.aiqa.threshold.unwrap_or(models.threshold);
        let of = RankingGround {
            config: ranking.clone(),
            checks: Checks { banned: path.aiqa.banned.clone(), threshold },
            market: ground.market.clone(),
            store: ground.sides.store.clone(),
            policies: ground.sides.store.clone(),
            history: history(ground.sides.store.clone(), ground.generation, path.context.clone()),
            clock: ground.clocks.wall.clone(),
            key,
            rerank,
        };
        let (ranking, preparer) = Ranking::new(of, models.encoder, models.judge);
        let ranking = Arc::new(ranking);
        // Before anybody is answered: the first request gets the newest policy, too.
        look_for_policy(&ranking);
        let (served, looking, preparing) = (ranking.clone(), ground.shutdown.clone(), ground.shutdown.clone());
        let threads =
            vec![spawn("policies", move || follow(&served, &looking))?, spawn("nominations", move || preparer.run(&preparing))?];
        Ok(Self { ranking, threads })
    }

    /// Waits until its threads have ended.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the ranking service panicked, as told above: this is a fault of the program");
            }
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work).with_context(|| format!("cannot start the thread of {name}"))
}

/// What arranges rows as a whole: the model whose weights lie in `folder`. Where there is none, or none that can be used, rows stay in the ranker's
/// order: that is no reason not to serve.
pub fn reranker(folder: &Path) -> Option<Rerank> {
    let path = folder.join(reranker::WEIGHTS);
    let told = path.display().to_string();
    match fs::read(&path).map(|bytes| Pier::read(&bytes)) {
        Ok(Ok(pier)) => {
            tracing::info!(version = pier.version(), "rows are arranged as a whole");
            Some(pier.into_rerank())
        }
        Ok(Err(error)) => {
            tracing::warn!(weights = told, %error, "rows stay in the ranker's order: the re-ranking model cannot be used");
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(weights = told, "rows stay in the ranker's order: there is no re-ranking model");
            None
        }
        Err(error) => {
            tracing::warn!(weights = told, %error, "rows stay in the ranker's order: the re-ranking model cannot be read");
            None
        }
    }
}

/// Takes up newer policies until `shutdown`. While the store does not answer, the last one serves.
fn follow(ranking: &Ranking, shutdown: &Shutdown) {
    while !shutdown.wait(LOOK_EVERY) {
        look_for_policy(ranking);
    }
}

fn look_for_policy(ranking: &Ranking) {
    match ranking.refresh() {
        Ok(true) => tracing::info!(version = ranking.policy_version(), "serves a newer policy"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "cannot look for a newer policy; the last one serves"),
    }
}

/// What the context stage knows of a shopper. Of one whose state this release cannot read nothing is shown: diets and consent stand in it.
fn history(store: Arc<dyn Store>, generation: i32, config: ContextConfig) -> History {
    Box::new(move |user| {
        let Some(bytes) = store.state(user)? else { return Ok(None) };
        let state = FoldState::decode(&bytes).map_err(|error| StoreError::Corrupt(format!("a shopper's state: {error}")))?;
        Ok(Some(state.snapshot(user, generation, &config)))
    })
}

/// Feedback as the log takes it. The same feedback has the same id, however often it comes.
///
/// # Errors
/// When it does not fit the wire.
pub fn outgoing_of(feedback: &Feedback) -> Result<Outgoing, wire::WireError> {
    let value = wire::encode(feedback)?;
    let id = blake3::hash(&value).to_hex()[..32].to_owned();
    Ok(Outgoing {
        topic: Topic::FEEDBACK,
        key: Feedback::key(),
        headers: Headers::root(id, Topic::FEEDBACK, feedback.served_ms),
        value,
    })
}

impl Desk {
    /// Appends feedback, durably, and counts what became of it.
    ///
    /// # Errors
    /// When the log is full, then nothing was taken; when it does not answer, then it may have been all the same. It may be sent again: what was
    /// learnt from teaches nothing twice.
    pub fn learn(&self, feedback: &[Feedback], taken: FeedbackTaken) -> Result<FeedbackTaken> {
        let records = feedback.iter().map(outgoing_of).collect::<Result<Vec<_>, _>>().context("cannot write feedback")?;
        if !records.is_empty() {
            self.sides.log.append(&records, None).context("cannot append feedback")?;
        }
        taken.count();
        Ok(taken)
    }
}
