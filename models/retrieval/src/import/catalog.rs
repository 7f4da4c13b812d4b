//! Catalogues.

use std::path::Path;

use endcap_schemas::{DietSet, Product};

use super::{
    CatalogFormat, ImportError, ImportReport, Phase, Progress, Unknown, completejourney, rejects_file,
    source::{Rows, Source},
    unknown_file,
};
use crate::{
    CatalogueChange, MarketDir, derive, facts_of,
    write::{ProductWriter, TEXT_MAX_BYTES, check_product, checkpoint, new_catalogue_version},
};

/// Parts of Open Food Facts' paths that hold everything from a plant, and so say nothing.
const UMBRELLAS: [&str; 2] = ["plant-based foods and beverages", "plant-based foods"];

/// Unknown ids that a report names.
const UNKNOWN_SHOWN: usize = 5;

/// A row of a catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// The product as the catalogue has it; its path is the catalogue's own.
    pub product: Product,
    /// Whether it is offered no longer.
    pub withdrawn: bool,
}

/// Opens a catalogue file. Rejected rows go to a file in `rejects_dir`, where one is given.
///
/// # Errors
/// When the file is of another form or cannot be read.
pub fn products(path: &Path, format: CatalogFormat, rejects_dir: Option<&Path>) -> Result<Rows<Offer>, ImportError> {
    let mut source = Source::open(path, rejects_dir.map(|dir| rejects_file(dir, path)))?;
    let form = Form::begin(format, &mut source)?;
    Ok(Rows::new(source, move |line, _| {
        let offer = form.read(line)?;
        check_product(&offer.product).map(|()| offer)
    }))
}

/// Imports a catalogue: adds what is new, changes what is different, withdraws what says so and the ids listed in `withdraw`
/// (a file, one id a line).
///
/// # Errors
/// When the file is of another form or cannot be read to its end, or the market cannot be written. Nothing is changed then.
pub fn catalog(
    dir: &MarketDir,
    path: &Path,
    format: CatalogFormat,
    withdraw: Option<&Path>,
    progress: &mut dyn FnMut(&Progress),
) -> Result<ImportReport, ImportError> {
    let mut rows = products(path, format, Some(dir.path()))?;
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    let mut writer = ProductWriter::new(&tx, catalogue(format))?;
    while let Some(offer) = rows.next().transpose()? {
        writer.put(&offer.product, offer.withdrawn)?;
        rows.report(progress);
    }
    let unknown = withdraw.map(|list| withdraw_listed(&mut writer, list, dir.path())).transpose()?.unwrap_or_default();
    let change = writer.finish()?;
    progress(&Progress { phase: Phase::Deriving, ..rows.progress() });
    settle(&tx, change)?;
    tx.commit()?;
    checkpoint(&db)?;
    Ok(ImportReport { change, unknown, ..rows.finish()? })
}

/// Withdraws the listed products; those that are withdrawn already are no fault, as imports are repeated.
fn withdraw_listed(writer: &mut ProductWriter<'_>, list: &Path, market: &Path) -> Result<Unknown, ImportError> {
    let (mut ids, mut first) = (Source::open(list, Some(unknown_file(market, list)))?, Vec::new());
    while let Some(id) = ids.next_line()? {
        let id = id.trim();
        if !writer.withdraw(id)? && !writer.knows(id)? {
            ids.reject("no product has this id")?;
            if first.len() < UNKNOWN_SHOWN {
                first.push(cut(id));
            }
        }
    }
    let ImportReport { rejected: count, rejects_file: list, .. } = ids.finish()?;
    Ok(Unknown { count, first, list })
}

/// Withdraws products; gives how many of `ids` there were.
///
/// # Errors
/// When the market cannot be written.
pub fn withdraw(dir: &MarketDir, ids: &[impl AsRef<str>]) -> Result<u64, ImportError> {
    let _lock = dir.lock()?;
    let mut db = dir.writer()?;
    let tx = db.transaction()?;
    let mut writer = ProductWriter::new(&tx, "")?;
    for id in ids {
        writer.withdraw(id.as_ref())?;
    }
    let change = writer.finish()?;
    settle(&tx, change)?;
    tx.commit()?;
    Ok(change.withdrawn)
}

/// Brings everything derived up to date, and the version with it.
pub(super) fn settle(tx: &rusqlite::Transaction<'_>, change: CatalogueChange) -> Result<(), ImportError> {
    if !change.is_nothing() {
        derive::derive(tx)?;
        new_catalogue_version(tx)?;
    }
    Ok(())
}

/// How the rows of a catalogue are read.
enum Form {
    /// Places of barcode, name, category path, ingredients and fat.
    OpenFoodFacts([usize; 5]),
    CompleteJourney(completejourney::Columns),
    EndcapJson,
}

impl Form {
    fn begin(format: CatalogFormat, source: &mut Source) -> Result<Self, ImportError> {
        Ok(match format {
            CatalogFormat::OpenFoodFacts => {
                Self::OpenFoodFacts(source.columns(["barcode", "name", "category_path", "ingredients300", "fat"])?)
            }
            CatalogFormat::CompleteJourney => Self::CompleteJourney(source.columns(completejourney::PRODUCT_COLUMNS)?),
            CatalogFormat::EndcapJson => {
                source.json_lines("a product")?;
                Self::EndcapJson
            }
        })
    }

    /// The product of a row, or why there is none.
    fn read(&self, line: &str) -> Result<Offer, String> {
        let offered = |product| Offer { product, withdrawn: false };
        match self {
            Self::OpenFoodFacts(columns) => open_food_facts(&cells(line, columns)?).map(offered),
            Self::CompleteJourney(columns) => completejourney::product(&cells(line, columns)?).map(offered),
            Self::EndcapJson => endcap_json(line),
        }
    }
}

/// Name of the catalogue, as products are filed under it.
fn catalogue(format: CatalogFormat) -> &'static str {
    match format {
        CatalogFormat::OpenFoodFacts => "openfoodfacts",
        CatalogFormat::CompleteJourney => "completejourney",
        CatalogFormat::EndcapJson => "endcap-json",
    }
}

/// The cells of a row at `places`, trimmed.
pub(super) fn cells<'a, const N: usize>(line: &'a str, places: &[usize; N]) -> Result<[&'a str; N], String> {
    let all: Vec<&str> = line.split('\t').collect();
    let last = places.iter().max().copied().unwrap_or(0);
    if all.len() <= last {
        return Err(format!("{} columns, at least {} are needed", all.len(), last + 1));
    }
    Ok(places.map(|place| all[place].trim()))
}

/// The digits of a whole number. `9e+05`, as statistics programs write round numbers, is 900000.
pub(super) fn number(column: &str, value: &str) -> Result<String, String> {
    const DIGITS_MAX: usize = 24;
    let plain = |text: &str| (1..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain(value) {
        return Ok(value.to_owned());
    }
    let fault = || format!("`{column}` is no number of at most {DIGITS_MAX} digits");
    let (digits, zeros) = value.split_once("e+").filter(|(digits, zeros)| plain(digits) && plain(zeros)).ok_or_else(fault)?;
    let zeros = zeros.parse().ok().filter(|zeros| digits.len() + zeros <= DIGITS_MAX).ok_or_else(fault)?;
    Ok(format!("{digits}{}", "0".repeat(zeros)))
}

/// `text` cut at a word so that it can be stored.
pub(super) fn cut(text: &str) -> String {
    if text.len() <= TEXT_MAX_BYTES {
        return text.to_owned();
    }
    let mut end = TEXT_MAX_BYTES;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let end = text[..end].rfind(' ').filter(|space| *space > 0).unwrap_or(end);
    text[..end].trim_end().to_owned()
}

fn open_food_facts([barcode, name, path, ingredients, fat]: &[&str; 5]) -> Result<Product, String> {
    let barcode = number("barcode", barcode)?;
    let all: Vec<String> =
        path.split(" > ").map(|part| cut(part.trim()).to_lowercase()).filter(|part| !part.is_empty()).collect();
    let mut path: Vec<String> = all.iter().filter(|part| !UMBRELLAS.contains(&part.as_str())).cloned().collect();
    if path.is_empty() {
        path = all;
    }
    let facts = facts_of(name, &path, ingredients);
    // Nothing tells what sells; what is described more fully is more likely to be a product of today.
    let popularity = [(!path.is_empty(), 0.15), (!ingredients.is_empty(), 0.1), (!fat.is_empty(), 0.05)];
    Ok(Product {
        id: format!("off:{barcode}"),
        name: cut(name),
        brand: String::new(),
        size: String::new(),
        price_cents: None,
        category_path: path,
        violates: facts.violates,
        age_restricted: facts.age_restricted,
        popularity: 0.1 + popularity.iter().filter(|(there, _)| *there).map(|(_, more)| more).sum::<f32>(),
        in_stock: true,
    })
}

fn endcap_json(line: &str) -> Result<Offer, String> {
    let mut value: serde_json::Value = serde_json::from_str(line).map_err(|fault| format!("no JSON: {fault}"))?;
    let fields = value.as_object_mut().ok_or("no JSON object")?;
    let withdrawn = match fields.remove("withdrawn") {
        None | Some(serde_json::Value::Bool(false)) => false,
        Some(serde_json::Value::Bool(true)) => true,
        Some(other) => return Err(format!("`withdrawn` is {other}, not true or false")),
    };
    let mut product: Product = serde_json::from_value(value).map_err(|fault| format!("no product: {fault}"))?;
    product.violates = DietSet::from_bits(product.violates.bits());
    product.category_path = product.category_path.iter().map(|part| part.trim().to_lowercase()).collect();
    Ok(Offer { product, withdrawn })
}
