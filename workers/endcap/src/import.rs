//! `endcap import`: catalogues, keyword corpora and shopper events of other houses, into a market.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};
use endcap_retrieval::{
    MarketDir,
    import::{self as importers, CatalogFormat, EventFormat, ImportReport, KeywordFormat, Phase, Progress},
};
use indicatif::ProgressBar;

use crate::{
    cli::{ImportArgs, Importable},
    config::Config,
    grounds, models, progress,
};

/// Imports a file; then brings the index over the keywords up to date, unless told otherwise.
///
/// # Errors
/// When the file is of another form or cannot be read to its end, or the market cannot be written. The market is as it was then.
pub fn import(args: &ImportArgs, config: &Config) -> Result<()> {
    let dir = MarketDir::create(&args.market)?;
    let bar = progress::steps("reading", 0);
    let mut show = |progress: &Progress| show(&bar, progress);
    let report = match args.what {
        Importable::Catalog => {
            let format: CatalogFormat = args.format.parse()?;
            importers::catalog(&dir, &args.file, format, args.withdraw.as_deref(), &mut show)?
        }
        Importable::Keywords => importers::keywords(&dir, &args.file, args.format.parse::<KeywordFormat>()?, &mut show)?,
        Importable::Events => events(&dir, args, &mut show)?,
    };
    bar.finish_and_clear();
    println!("{}", words(args.what, &report));
    if report.rejected > 0
        && let Some(list) = &report.rejects_file
    {
        println!("{} rows were rejected; {} lists them with line and reason", report.rejected, list.display());
    }
    if args.what == Importable::Events || args.no_index || dir.counts()?.terms == 0 {
        return Ok(());
    }
    let encoder = models::load_encoder(config, &args.market.join("models"))?;
    grounds::index(&dir, &encoder).context("cannot index the keyword corpus: import it again to go on from here")?;
    println!("the keyword index is up to date");
    Ok(())
}

/// Keeps the file's events for replays, in their order, and lets the catalogue learn from the purchases.
fn events(dir: &MarketDir, args: &ImportArgs, show: &mut dyn FnMut(&Progress)) -> Result<ImportReport> {
    let format: EventFormat = args.format.parse()?;
    let target = grounds::events_of(dir.path());
    let draft = target.with_extension("draft");
    let cannot_write = || format!("cannot write {}", draft.display());
    let mut out = BufWriter::new(File::create(&draft).with_context(cannot_write)?);
    let mut rows = importers::events(&args.file, format, None)?;
    while let Some(event) = rows.next().transpose()? {
        serde_json::to_writer(&mut out, &event).with_context(cannot_write)?;
        out.write_all(b"\n").with_context(cannot_write)?;
    }
    out.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).with_context(cannot_write)?;
    let report = importers::purchases(dir, &args.file, format, show)?;
    replace(&draft, &target)?;
    Ok(report)
}

fn replace(draft: &Path, target: &Path) -> Result<()> {
    fs::rename(draft, target).with_context(|| format!("cannot write {}", target.display()))
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_message(match progress.phase {
        Phase::Reading => format!("{} rows, {} rejected", progress.rows, progress.rejected),
        Phase::Deriving => format!("{} rows read, sorting in", progress.rows),
    });
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
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
