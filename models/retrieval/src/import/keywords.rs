//! Keywords.

use std::path::Path;

use endcap_schemas::{Descriptor, DietSet, Term};

use super::{
    ImportError, ImportReport, KeywordFormat, Phase, Progress,
    catalog::{cells, settle},
    rejects_file,
    source::{Rows, Source},
};
use crate::{
    CatalogueChange, MarketDir,
    write::{check_term, checkpoint, put_term},
};

/// Opens a file of search terms. Rejected rows go to a file in `rejects_dir`, where one is given.
///
/// # Errors
/// When the file is of another form or cannot be read.
pub fn terms(path: &Path, format: KeywordFormat, rejects_dir: Option<&Path>) -> Result<Rows<Term>, ImportError> {
    let mut source = Source::open(path, rejects_dir.map(|dir| rejects_file(dir, path)))?;
    let columns = match format {
        KeywordFormat::Tsv => Some(source.columns(["term", "band", "tier"])?),
        KeywordFormat::EndcapJson => {
            source.json_lines("a term")?;
            None
        }
    };
    Ok(Rows::new(source, move |line, _| {
        let term = match &columns {
            Some(columns) => tsv(line, columns)?,
            None => serde_json::from_str(line).map_err(|fault| format!("no term: {fault}"))?,
        };
        check_term(&term).map(|()| term)
    }))
}

/// Imports search terms: adds what is new, changes what is different. Their category, diets and popularity follow from the catalogue,
/// unless the file states them (`endcap-json`).
///
/// # Errors
/// When the file is of another form or cannot be read to its end, or the market cannot be written. Nothing is changed then.
pub fn keywords(
    dir: &MarketDir,
    path: &Path,
    format: KeywordFormat,
    progress: &mut dyn FnMut(&Progress),
) -> Result<ImportReport, ImportError> {
    let mut rows = terms(path, format, Some(dir.path()))?;
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    let mut change = CatalogueChange::default();
    let from = if format == KeywordFormat::Tsv { "keywords" } else { "endcap-json" };
    while let Some(term) = rows.next().transpose()? {
        take(&tx, &term, from, &mut change)?;
        rows.report(progress);
    }
    progress(&Progress { phase: Phase::Deriving, ..rows.progress() });
    settle(&tx, change)?;
    tx.commit()?;
    checkpoint(&db)?;
    Ok(ImportReport { change, ..rows.finish()? })
}

/// Stores a term; of a plain one only text and tier count, as the rest is derived.
fn take(tx: &rusqlite::Transaction<'_>, term: &Term, from: &str, change: &mut CatalogueChange) -> Result<(), ImportError> {
    if from == "keywords" {
        let known = tx
            .prepare_cached("SELECT 1 FROM terms WHERE text = ?1 AND descriptor = 0 AND tier = ?2 AND source = 'keywords'")?
            .exists(rusqlite::params![term.text, term.tier])?;
        if known {
            return Ok(());
        }
    }
    Ok(put_term(tx, term, from, change)?)
}

fn tsv(line: &str, columns: &[usize; 3]) -> Result<Term, String> {
    let [text, _band, tier] = cells(line, columns)?;
    let tier = tier.parse().map_err(|_| format!("tier `{}` is not 1, 2 or 3", tier.chars().take(20).collect::<String>()))?;
    let text = text.to_lowercase();
    Ok(Term { text, descriptor: Descriptor::Query, category: None, violates: DietSet::NONE, popularity: 0.0, tier })
}
