//! Keywords.

use std::path::Path;

use endcap_schemas::{Descriptor, DietSet, Term};

use super::{
    ImportError, ImportReport, KeywordFormat, Phase, Progress,
    catalog::{cells, settle},
    source::Source,
};
use crate::{
    CatalogueChange, MarketDir,
    write::{check_term, checkpoint, put_term},
};

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
    let mut source = Source::open(path, Some(dir.path()))?;
    let columns = match format {
        KeywordFormat::Tsv => Some(source.columns(["term", "band", "tier"])?),
        KeywordFormat::EndcapJson => {
            source.json_lines("a term")?;
            None
        }
    };
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    let mut change = CatalogueChange::default();
    let from = if columns.is_some() { "keywords" } else { "endcap-json" };
    while let Some(line) = source.next_line()? {
        let term = match &columns {
            Some(columns) => tsv(&line, columns),
            None => serde_json::from_str::<Term>(&line).map_err(|fault| format!("no term: {fault}")),
        };
        match term.and_then(|term| check_term(&term).map(|()| term)) {
            Ok(term) => take(&tx, &term, from, &mut change)?,
            Err(reason) => source.reject(&reason)?,
        }
        source.report(progress);
    }
    progress(&Progress { phase: Phase::Deriving, ..source.progress() });
    settle(&tx, change)?;
    tx.commit()?;
    checkpoint(&db)?;
    Ok(ImportReport { change, ..source.finish()? })
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
