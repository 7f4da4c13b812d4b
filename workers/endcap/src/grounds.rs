//! The market that the job works on: the demo market, generated once per data directory, or an imported one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use endcap_inference::{Embed, Embedding, Handle, Model};
use endcap_market::DEMO_SEED;
use endcap_retrieval::{IndexOptions, IndexProgress, Market, MarketDir, MarketError, build_index, write_demo};
use endcap_runtime::StoreOverview;
use endcap_schemas::topics::Topic;
use serde::{Deserialize, Serialize};

use crate::{config::Config, data, data::DataDir, progress, sides::Sides};

/// Says which generated market a directory holds, so that a newer program writes its own.
const MARKER: &str = "demo.version";
/// The demo market's identity, in whatever directory it lies: it is the same everywhere.
const DEMO: &str = "demo";
/// What the store keeps [`Origin`] under.
const ORIGIN: &str = "market";

/// Opens the market of `config`, making what is missing: the demo market's rows, the index over the terms.
///
/// # Errors
/// When it cannot be read or made.
pub fn open<E>(config: &Config, data: &DataDir, encoder: &Handle<E>) -> Result<Market>
where
    E: Model<Request = Embed, Answer = Embedding>,
{
    let path = config.market.clone().unwrap_or_else(|| data.market());
    let _turn = data.turn()?; // of several processes that start at once, one makes the market
    let dir = match &config.market {
        Some(_) => MarketDir::open(&path)?,
        None => demo(&path)?,
    };
    match index(&dir, encoder) {
        Ok(()) => {}
        // Somebody imports into it right now; the index in place serves until theirs is ready.
        Err(MarketError::Busy(_)) if !Market::open(&path)?.snapshot().index_version().is_empty() => {
            tracing::warn!(market = %path.display(), "an import is under way: starting on the index in place");
        }
        Err(error) => return Err(error).context("cannot index the keyword corpus"),
    }
    Ok(Market::over(dir)?)
}

/// The market that a data directory is about: its products and pages are of no other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Origin {
    identity: String,
    /// Where it lay when it was used last.
    path: String,
}

impl Origin {
    /// What `store` notes; `None` where nobody has noted anything yet.
    fn of(store: &dyn StoreOverview) -> Result<Option<Self>> {
        let noted = store.noted(ORIGIN).context("cannot read which market the data is about")?;
        noted.map(|text| serde_json::from_str(&text).context("cannot read which market the data is about")).transpose()
    }

    fn demo(dir: &MarketDir) -> Self {
        Self { identity: DEMO.to_owned(), path: dir.path().to_string_lossy().into_owned() }
    }

    fn is_demo(&self) -> bool {
        self.identity == DEMO
    }

    /// Refuses any other market than this; `None` is the demo market.
    fn check(&self, dir: Option<&MarketDir>, data: &Path) -> Result<()> {
        let identity = dir.map_or(Ok(Some(DEMO.to_owned())), known_identity)?;
        if identity.as_ref() == Some(&self.identity) {
            return Ok(());
        }
        if !self.is_demo() && dir.and_then(|dir| dir.path().canonicalize().ok()).is_some_and(|path| path == Path::new(&self.path))
        {
            bail!(
                "the data in {} is about an earlier market that lay in {}, and this one was made anew: put the earlier one back, or name \
                 another data directory with --data",
                data.display(),
                self.path
            );
        }
        Err(self.refusal(data))
    }

    fn refusal(&self, data: &Path) -> anyhow::Error {
        let (data, other) = (data.display(), "or name another data directory with --data");
        if self.is_demo() {
            return anyhow!("the data in {data} is about the demo market: name no `market`, {other}");
        }
        anyhow!("the data in {data} is about another market, last seen in {}: name that one with --market, {other}", self.path)
    }
}

/// The identity of the market in `dir`, where it has one: it gets one from [`claim`].
fn known_identity(dir: &MarketDir) -> Result<Option<String>, MarketError> {
    if dir.path().join(MARKER).exists() { Ok(Some(DEMO.to_owned())) } else { dir.known_identity() }
}

/// Refuses a market that is named but not there, cannot be read, or is not the one that the data directory is about. Where no event has come
/// in yet, it is about none.
///
/// # Errors
/// With the remedy.
pub fn check(config: &Config) -> Result<()> {
    let dir = config.market.as_ref().map(MarketDir::open).transpose()?;
    // Servers are asked when they are connected to: see `claim`.
    let is_elsewhere = config.kafka.is_some() || config.scylla.is_some();
    if is_elsewhere || !data::file_in(&config.data).is_file() {
        return Ok(());
    }
    check_data(config, &Sides::open_existing(config)?, dir.as_ref())
}

fn check_data(config: &Config, sides: &Sides, dir: Option<&MarketDir>) -> Result<()> {
    let ends = sides.log.ends(Topic::EVENTS).context("cannot read the log")?;
    if ends.values().all(|end| *end == 0) {
        return Ok(());
    }
    // Earlier versions noted nothing; the demo market lies in the data directory where it was used.
    let demo_lies_here = data::market_in(&config.data).join(MARKER).exists();
    match (Origin::of(&*sides.store)?, dir) {
        (Some(origin), _) => origin.check(dir, &config.data),
        (None, Some(dir)) if demo_lies_here => Origin::demo(dir).check(Some(dir), &config.data),
        (None, None) if !demo_lies_here => {
            bail!("the data in {} is about an imported market: name it with --market", config.data.display())
        }
        (None, _) => Ok(()),
    }
}

/// The identity of the market that `config` names, which is given one, if it has none.
///
/// # Errors
/// When the data is about another one, or it is not there.
pub fn identity(config: &Config, sides: &Sides) -> Result<String> {
    let dir = config.market.as_ref().map(MarketDir::open).transpose()?;
    check_data(config, sides, dir.as_ref())?;
    let Some(dir) = dir else { return Ok(DEMO.to_owned()) };
    Ok(known_identity(&dir)?.map_or_else(|| dir.identity(), Ok)?)
}

/// The identity of the market that `store` is about, where that is noted.
///
/// # Errors
/// When the store does not answer.
pub fn noted_identity(store: &dyn StoreOverview) -> Result<Option<String>> {
    Ok(Origin::of(store)?.map(|origin| origin.identity))
}

/// Notes in the data directory's store that it is about `market`, which is given an identity for that, if it has none.
///
/// # Errors
/// When it is about another one, or either cannot be written.
pub fn claim(config: &Config, sides: &Sides, market: &Market) -> Result<()> {
    check_data(config, sides, config.market.as_ref().map(|_| market.dir()))?;
    let dir = market.dir();
    let identity = known_identity(dir)?.map_or_else(|| dir.identity(), Ok)?;
    let path = dir.path().canonicalize().unwrap_or_else(|_| dir.path().to_owned()).to_string_lossy().into_owned();
    let note = serde_json::to_string(&Origin { identity, path }).context("cannot note the market")?;
    sides.store.note(ORIGIN, &note).context("cannot note the market")
}

/// Opens the market that a data directory is about: the one that `config` names, else the one that was used last.
///
/// # Errors
/// When it is not there, or another one is named.
pub fn open_existing(config: &Config) -> Result<Market> {
    let origin = Origin::of(&*Sides::open_existing(config)?.store)?;
    let imported = origin.as_ref().filter(|origin| !origin.is_demo());
    let dir = match (&config.market, imported) {
        (Some(path), _) => MarketDir::open(path)?,
        (None, Some(origin)) => MarketDir::open(&origin.path).map_err(|_| origin.refusal(&config.data))?,
        (None, None) => MarketDir::open(data::market_in(&config.data))?,
    };
    origin.map_or(Ok(()), |origin| origin.check(Some(&dir), &config.data))?;
    Ok(Market::over(dir)?)
}

/// The demo market's directory, written where it is missing or another program's.
fn demo(path: &Path) -> Result<MarketDir> {
    let market = endcap_market::Market::generate(DEMO_SEED);
    let version = version_of(&market)?;
    let marker = path.join(MARKER);
    if fs::read_to_string(&marker).is_ok_and(|found| found.trim() == version) {
        return Ok(MarketDir::open(path)?);
    }
    progress::begin("writing the demo market");
    let dir = MarketDir::create(path)?;
    write_demo(&dir, &market.products, &market.categories, &market.terms).context("cannot write the demo market")?;
    fs::write(&marker, version).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(dir)
}

fn version_of(market: &endcap_market::Market) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    serde_json::to_writer(&mut hasher, &(&market.products, &market.categories, &market.terms))
        .context("cannot hash the demo market")?;
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Builds the index over the terms, with progress; nothing to do where it is built already.
///
/// # Errors
/// When the encoder or the disk fails, or another process writes the market.
pub fn index<E>(dir: &MarketDir, encoder: &Handle<E>) -> Result<(), MarketError>
where
    E: Model<Request = Embed, Answer = Embedding>,
{
    let mut embed = |texts: &[String]| {
        let requests = texts.iter().map(|text| Embed { text: text.clone() }).collect();
        let answers = encoder.ask_all(requests).into_iter();
        answers.map(|answer| answer.map(|Embedding(vector)| vector).map_err(|error| error.to_string())).collect()
    };
    let bar = progress::steps("embedding keywords", 0);
    let mut show = |progress| {
        let (what, done, total) = match progress {
            IndexProgress::Embedding { done, total } => ("embedding keywords", done, total),
            IndexProgress::Indexing { done, total } => ("indexing keywords", done, total),
        };
        bar.at(what, done as u64, total as u64);
    };
    let report = build_index(dir, encoder.version(), &mut embed, &IndexOptions::default(), &mut show);
    bar.finish();
    let report = report?;
    if !report.unchanged {
        tracing::info!(terms = report.terms, embedded = report.embedded, version = report.version, "indexed the keyword corpus");
    }
    Ok(())
}

/// Where a market's imported events lie.
pub fn events_of(market: &Path) -> PathBuf {
    market.join("events.jsonl")
}

/// Where models trained for a market lie.
pub fn trained_in(market: &Path) -> PathBuf {
    market.join("trained")
}
