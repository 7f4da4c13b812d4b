//! The market that the job works on: the demo market, generated once per data directory, or an imported one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use endcap_inference::{Embed, Embedding, Handle, Model};
use endcap_market::DEMO_SEED;
use endcap_retrieval::{IndexOptions, IndexProgress, Market, MarketDir, MarketError, build_index, write_demo};

use crate::{config::Config, data, data::DataDir, progress};

/// Says which generated market a directory holds, so that a newer program writes its own.
const MARKER: &str = "demo.version";

/// Opens the market of `config`, making what is missing: the demo market's rows, the index over the terms.
///
/// # Errors
/// When it cannot be read or made.
pub fn open<E>(config: &Config, data: &DataDir, encoder: &Handle<E>) -> Result<Market>
where
    E: Model<Request = Embed, Answer = Embedding>,
{
    let path = config.market.clone().unwrap_or_else(|| data.market());
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

/// Refuses a market that is named but not there, or cannot be read.
///
/// # Errors
/// With the remedy.
pub fn check(config: &Config) -> Result<()> {
    config.market.as_ref().map_or(Ok(()), |path| Ok(MarketDir::open(path).map(drop)?))
}

/// Opens the market of a data directory that was used before.
///
/// # Errors
/// When there is none.
pub fn open_existing(config: &Config) -> Result<Market> {
    let path = config.market.clone().unwrap_or_else(|| data::market_in(&config.data));
    Ok(Market::open(path)?)
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
