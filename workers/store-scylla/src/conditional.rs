//! What the servers answer to conditional statements (lightweight transactions), which are for rare things alone.

use scylla::{
    errors::SingleRowError,
    response::query_result::QueryRowsResult,
    value::{CqlValue, Row},
};

/// `None` when the statement was applied, else what stands in `column`. Servers tell the row that stood in the way; ScyllaDB tells of one
/// that did not, too.
pub(crate) fn standing(rows: &QueryRowsResult, column: &str) -> Result<Option<String>, SingleRowError> {
    let place = rows.column_specs().iter().position(|spec| spec.name() == column);
    let row = rows.single_row::<Row>()?;
    if row.columns.first().and_then(Option::as_ref).and_then(CqlValue::as_boolean) == Some(true) {
        return Ok(None);
    }
    let found = place.and_then(|place| row.columns.get(place)?.as_ref()?.as_text().cloned());
    Ok(Some(found.unwrap_or_else(|| "unknown".to_owned())))
}
