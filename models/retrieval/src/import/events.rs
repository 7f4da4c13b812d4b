//! Shopper events, and what purchases teach about the catalogue.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use endcap_schemas::{EventKind, Line, ShopperEvent, UserKey};

use super::{
    EventFormat, ImportError, ImportReport, Phase, Progress,
    catalog::{cells, number, settle},
    rejects_file,
    source::{Rows, Source},
};
use crate::{CatalogueChange, MarketDir, MarketError, write::checkpoint};

const COLUMNS: [&str; 5] = ["household_id", "basket_id", "product_id", "quantity", "transaction_timestamp"];
/// Largest amount of a line.
const QUANTITY_MAX: f64 = 1_000_000.0;
/// Largest amount that counts pieces.
const PIECES_MAX: f64 = 200.0;

/// The events of a file in its order, one per row. Ids follow from the row, so that sending a file twice is harmless.
pub type Events = Rows<ShopperEvent>;

/// Opens a file of events. Rejected rows go to a file in `rejects_dir`, where one is given.
///
/// # Errors
/// When the file is of another form or cannot be read.
pub fn events(path: &Path, format: EventFormat, rejects_dir: Option<&Path>) -> Result<Events, ImportError> {
    let mut source = Source::open(path, rejects_dir.map(|dir| rejects_file(dir, path)))?;
    let columns = match format {
        EventFormat::CompleteJourney => Some(source.columns(COLUMNS)?),
        EventFormat::EndcapJson => {
            source.json_lines("a shopper event")?;
            None
        }
    };
    Ok(Rows::new(source, move |line, number| {
        let event = match &columns {
            Some(columns) => purchase(&cells(line, columns)?, number)?,
            None => serde_json::from_str(line).map_err(|fault| format!("no shopper event: {fault}"))?,
        };
        event.check().map_err(|fault| fault.to_string())?;
        Ok(event)
    }))
}

/// One purchase line as an event of its own: the file is a sample of lines, its baskets are incomplete.
fn purchase([household, basket, product, quantity, time]: &[&str; 5], line: u64) -> Result<ShopperEvent, String> {
    let (household, basket) = (number("household_id", household)?, number("basket_id", basket)?);
    let product = number("product_id", product)?;
    let amount: f64 = quantity.parse().map_err(|_| "`quantity` is no number".to_owned())?;
    if !(1.0..=QUANTITY_MAX).contains(&amount) {
        return Err(format!("quantity {amount} is not between 1 and {QUANTITY_MAX}"));
    }
    // Nobody takes a thousand of a thing home: these are volumes (fuel, by the thousandth of a gallon), one purchase each.
    let amount = if amount > PIECES_MAX { 1.0 } else { amount };
    Ok(ShopperEvent {
        id: format!("cj-{basket}-{product}-{line}"),
        tenant: UserKey::DEFAULT_TENANT.to_owned(),
        user: format!("household-{household}"),
        at_ms: milliseconds(time).ok_or("`transaction_timestamp` is no `YYYY-MM-DD hh:mm:ss`")?,
        kind: EventKind::Purchase,
        lines: vec![Line { product: format!("cj:{product}"), quantity: amount.round() as i32 }],
        preference: None,
        personalise: None,
    })
}

/// Milliseconds since 1970 of a `YYYY-MM-DD hh:mm:ss`, read as UTC.
fn milliseconds(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let separated = bytes.len() == 19
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b' ' | b'T')
        && bytes[13] == b':'
        && bytes[16] == b':';
    if !separated || !text.is_ascii() {
        return None;
    }
    let digits = |from: usize, to: usize| {
        text[from..to].bytes().try_fold(0_i64, |n, c| c.is_ascii_digit().then(|| n * 10 + i64::from(c - b'0')))
    };
    let (year, month, day) = (digits(0, 4)?, digits(5, 7)?, digits(8, 10)?);
    let (hour, minute, second) = (digits(11, 13)?, digits(14, 16)?, digits(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if !(1..=length).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days before the year: whole years, and the leap days among them.
    let before = year - 1;
    let days = before * 365 + before / 4 - before / 100 + before / 400 - 719_162
        + lengths[..month as usize - 1].iter().sum::<i64>()
        + day
        - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000)
}

/// Learns from the purchases of an event file what sells and what is bought together; replaces what was learnt before. Where `kept` names
/// a file, it holds the events afterwards, one JSON object a line, in their order; nobody else may write it but under the market's lock.
///
/// What is learnt knows no shopper's id: shoppers are numbered as they come.
///
/// # Errors
/// When the file is of another form or cannot be read to its end, or the market cannot be written. Nothing is changed then; a process that
/// is killed between the two changes leaves the older events in `kept`, until they are imported again.
pub fn purchases(
    dir: &MarketDir,
    path: &Path,
    format: EventFormat,
    kept: Option<&Path>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<ImportReport, ImportError> {
    let mut rows = events(path, format, Some(dir.path()))?;
    let _lock = dir.lock()?;
    let mut draft = kept.map(Draft::begin).transpose()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    let forgotten = tx.execute("DELETE FROM purchases", [])?;
    let mut numbers: HashMap<(String, String), i64> = HashMap::new();
    let mut change = CatalogueChange::default();
    while let Some(event) = rows.next().transpose()? {
        draft.as_mut().map_or(Ok(()), |draft| draft.add(&event))?;
        if event.kind == EventKind::Purchase {
            let next = numbers.len() as i64 + 1;
            let shopper = *numbers.entry((event.tenant, event.user)).or_insert(next);
            for line in event.lines {
                tx.prepare_cached("INSERT INTO purchases (shopper, product) VALUES (?1, ?2)")?
                    .execute(rusqlite::params![shopper, line.product])?;
                change.added += 1;
            }
        }
        rows.report(progress);
    }
    progress(&Progress { phase: Phase::Deriving, ..rows.progress() });
    // What was learnt before goes even where nothing takes its place.
    settle(&tx, CatalogueChange { changed: forgotten as u64, ..change })?;
    // Whole on disk before the commit: what may still fail behind it is a rename.
    draft.as_mut().map_or(Ok(()), Draft::settle)?;
    tx.commit()?;
    draft.map_or(Ok(()), Draft::publish)?;
    checkpoint(&db)?;
    Ok(ImportReport { change, ..rows.finish()? })
}

/// The events to keep, beside their place until all are there. One that is not published goes; one that a killed process left is
/// overwritten by the next.
struct Draft {
    path: PathBuf,
    target: PathBuf,
    out: BufWriter<File>,
}

impl Draft {
    /// Whoever begins one holds the market's lock.
    fn begin(target: &Path) -> Result<Self, MarketError> {
        let path = target.with_extension("draft");
        let out = BufWriter::new(File::create(&path).map_err(MarketError::file(&path))?);
        Ok(Self { path, target: target.to_owned(), out })
    }

    fn add(&mut self, event: &ShopperEvent) -> Result<(), MarketError> {
        let written =
            serde_json::to_writer(&mut self.out, event).map_err(io::Error::from).and_then(|()| self.out.write_all(b"\n"));
        written.map_err(MarketError::file(&self.path))
    }

    fn settle(&mut self) -> Result<(), MarketError> {
        self.out.flush().and_then(|()| self.out.get_ref().sync_all()).map_err(MarketError::file(&self.path))
    }

    fn publish(self) -> Result<(), MarketError> {
        fs::rename(&self.path, &self.target).map_err(MarketError::file(&self.target))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // a published one is there no longer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_read_as_utc() {
        for (text, expected) in [
            ("1970-01-01 00:00:00", Some(0)),
            ("2017-01-01 12:30:27", Some(1_483_273_827_000)),
            ("2024-02-29 23:59:59", Some(1_709_251_199_000)),
            ("2017-02-29 00:00:00", None),
            ("2017-13-01 00:00:00", None),
            ("2017-01-01", None),
            ("2017-01-01 25:00:00", None),
            ("²017-01-01 00:00:0", None),
        ] {
            assert_eq!(milliseconds(text), expected, "{text}");
        }
    }
}
