//! Rows of the database as the types that travel.

use endcap_schemas::{Category, Descriptor, DietSet, Product, Term};
use rusqlite::Row;

/// Between the parts of a stored path; cannot occur in a part.
pub(crate) const PATH_SEPARATOR: char = '\u{1f}';

pub(crate) const PRODUCT_COLUMNS: &str =
    "p.key, p.id, p.name, p.brand, p.size, p.price_cents, p.path, p.violates, p.adult, p.popularity, p.in_stock";

/// Reads [`PRODUCT_COLUMNS`].
pub(crate) fn product(row: &Row<'_>) -> rusqlite::Result<Product> {
    Ok(Product {
        id: row.get(1)?,
        name: row.get(2)?,
        brand: row.get(3)?,
        size: row.get(4)?,
        price_cents: row.get(5)?,
        category_path: split_path(row.get_ref(6)?.as_str()?),
        violates: DietSet::from_bits(row.get(7)?),
        age_restricted: row.get(8)?,
        popularity: row.get(9)?,
        in_stock: row.get(10)?,
    })
}

pub(crate) fn join_path(path: &[String]) -> String {
    let mut joined = String::new();
    for part in path {
        if !joined.is_empty() {
            joined.push(PATH_SEPARATOR);
        }
        joined.push_str(part);
    }
    joined
}

pub(crate) fn split_path(path: &str) -> Vec<String> {
    path.split(PATH_SEPARATOR).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

pub(crate) const CATEGORY_COLUMNS: &str = "id, name, department, violates, adult, seasons, related, popularity";

/// Reads [`CATEGORY_COLUMNS`]; gives the row's number as well.
pub(crate) fn category(row: &Row<'_>) -> rusqlite::Result<(i64, Category)> {
    let json = |column: usize, text: &str| -> rusqlite::Result<serde_json::Value> {
        serde_json::from_str(text)
            .map_err(|fault| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, fault.into()))
    };
    let seasons: [f32; 4] = serde_json::from_value(json(5, row.get_ref(5)?.as_str()?)?).unwrap_or_default();
    let related: Vec<String> = serde_json::from_value(json(6, row.get_ref(6)?.as_str()?)?).unwrap_or_default();
    let category = Category {
        name: row.get(1)?,
        department: row.get(2)?,
        violates: DietSet::from_bits(row.get(3)?),
        age_restricted: row.get(4)?,
        seasons,
        related,
        popularity: row.get(7)?,
    };
    Ok((row.get(0)?, category))
}

pub(crate) const TERM_COLUMNS: &str = "id, text, descriptor, category, violates, popularity, tier";

/// Reads [`TERM_COLUMNS`]; gives the term's number as well.
pub(crate) fn term(row: &Row<'_>) -> rusqlite::Result<(i64, Term)> {
    let term = Term {
        text: row.get(1)?,
        descriptor: descriptor(row.get(2)?),
        category: row.get(3)?,
        violates: DietSet::from_bits(row.get(4)?),
        popularity: row.get(5)?,
        tier: row.get(6)?,
    };
    Ok((row.get(0)?, term))
}

pub(crate) fn descriptor_number(descriptor: Descriptor) -> i64 {
    match descriptor {
        Descriptor::Query => 0,
        Descriptor::Node => 1,
    }
}

fn descriptor(number: i64) -> Descriptor {
    if number == 1 { Descriptor::Node } else { Descriptor::Query }
}
