//! `endcap import`: catalogues, keyword corpora and shopper events of other houses, into a market.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use endcap_retrieval::{
    MarketDir, MarketError,
    import::{self as importers, CatalogFormat, ImportError, ImportReport, KeywordFormat, Phase, Progress, Unknown},
};

use crate::{
    cli::{ImportArgs, Importable},
    config::Config,
    grounds, models,
    printable::printable,
    progress::{self, Steps},
};

/// Imports a file; then brings the index over the keywords up to date, unless told otherwise.
///
/// # Errors
/// When the file is of another form or cannot be read to its end, or the market cannot be written. The market is as it was then.
pub fn import(args: &ImportArgs, config: &Config) -> Result<()> {
    if args.withdraw.is_some() && args.what != Importable::Catalog {
        bail!("--withdraw goes with a catalogue: `endcap import catalog` takes it");
    }
    let steps = progress::steps("reading", 0);
    let place = Place::of(args);
    let dir = MarketDir::create(&args.market)?;
    let report = read(&dir, args, &mut |progress| show(&steps, progress)).inspect_err(|error| place.restore(&dir, error))?;
    steps.finish();
    println!("{}", words(args.what, &report));
    if report.rejected > 0
        && let Some(list) = &report.rejects_file
    {
        println!("{} rows were rejected; {} lists them with line and reason", report.rejected, list.display());
    }
    if let (Some(ids), Unknown { count: 1.., first, list }) = (&args.withdraw, &report.unknown) {
        let more = if report.unknown.count > first.len() as u64 { ", …" } else { "" };
        let list = list.as_ref().map(|list| format!("; {} lists them", list.display())).unwrap_or_default();
        println!(
            "{} ids of {} belong to no product: {}{more}{list}",
            report.unknown.count,
            ids.display(),
            printable(&first.join(", "))
        );
    }
    if args.what == Importable::Events || args.no_index || dir.counts()?.terms == 0 {
        return Ok(());
    }
    let encoder = models::load_encoder(config, &args.market.join("models"))?;
    grounds::index(&dir, &encoder).context("cannot index the keyword corpus: import it again to go on from here")?;
    println!("the keyword index is up to date");
    Ok(())
}

/// What stood at a market's place before an import.
struct Place {
    /// No market.
    is_new: bool,
    /// The topmost directory that was missing.
    top: Option<PathBuf>,
    /// The lists of rejected rows that were not there.
    lists: Vec<PathBuf>,
}

impl Place {
    fn of(args: &ImportArgs) -> Self {
        let market: &Path = &args.market;
        let missing = market.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists());
        let top = missing.last().map(Path::to_owned);
        let unknown = args.withdraw.as_ref().map(|ids| importers::unknown_file(market, ids));
        let lists = unknown.into_iter().chain([importers::rejects_file(market, &args.file)]);
        let lists = lists.filter(|list| !list.exists()).collect();
        Self { is_new: MarketDir::open(market).is_err(), top, lists }
    }

    /// Takes a market that the import made, and that nothing came into, away again, unless another process is filling it or has.
    fn restore(&self, dir: &MarketDir, error: &anyhow::Error) {
        let is_busy = matches!(error.downcast_ref(), Some(ImportError::Market(MarketError::Busy(_))));
        if self.is_new
            && !is_busy
            && !grounds::events_of(dir.path()).exists()
            && let Err(error) = dir.clone().discard(self.top.as_deref(), &self.lists)
        {
            tracing::warn!(market = %dir.path().display(), error = error.to_string(), "an empty market was left behind");
        }
    }
}

fn read(dir: &MarketDir, args: &ImportArgs, show: &mut dyn FnMut(&Progress)) -> Result<ImportReport> {
    Ok(match args.what {
        Importable::Catalog => {
            let format: CatalogFormat = args.format.parse()?;
            importers::catalog(dir, &args.file, format, args.withdraw.as_deref(), show)?
        }
        Importable::Keywords => importers::keywords(dir, &args.file, args.format.parse::<KeywordFormat>()?, show)?,
        Importable::Events => {
            importers::purchases(dir, &args.file, args.format.parse()?, Some(&grounds::events_of(dir.path())), show)?
        }
    })
}

/// Bytes, as only they are known in all beforehand, if anything is.
fn show(steps: &Steps, progress: &Progress) {
    let what = match progress.phase {
        Phase::Reading => "reading, in bytes",
        Phase::Deriving => "sorting in, after bytes",
    };
    steps.at(what, progress.bytes_done, progress.bytes_total);
}

fn words(what: Importable, report: &ImportReport) -> String {
    let rows = format!("{} rows taken, {} rejected", report.accepted, report.rejected);
    match what {
        Importable::Catalog => format!(
            "{rows}: {} products added, {} changed, {} withdrawn",
            report.change.added, report.change.changed, report.change.withdrawn
        ),
        Importable::Keywords => format!("{rows}: {} keywords added, {} changed", report.change.added, report.change.changed),
        Importable::Events => format!("{rows}: `endcap up --market … --replay-events` replays them"),
    }
}
