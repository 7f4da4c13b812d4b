//! What the servers answer to conditional statements (lightweight transactions), which are for rare things alone.

use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError, SingleRowError},
    response::query_result::{QueryResult, QueryRowsResult},
    serialize::row::SerializeRow,
    statement::Statement,
    value::{CqlValue, Row},
};

/// How often a conditional statement is tried while others come between.
const TRIES_MAX: usize = 10;

/// The answer to a conditional statement. Where many try at once, servers may give up; asking again then meets what was kept, be it by the
/// try that was given up.
pub(crate) async fn decided(
    session: &Session,
    statement: impl Into<Statement>,
    values: impl SerializeRow,
) -> Result<QueryResult, ExecutionError> {
    let (statement, mut tries) = (statement.into(), 0);
    loop {
        tries += 1;
        match session.query_unpaged(statement.clone(), &values).await {
            Err(error) if tries < TRIES_MAX && is_contended(&error) => {}
            answer => return answer,
        }
    }
}

/// Whether a conditional statement was given up because others came between.
fn is_contended(error: &ExecutionError) -> bool {
    matches!(error, ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::WriteTimeout { .. }, _)))
}

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
