//! Looking over many users, or over all that is left of one: for pages that list, reports that count, and proofs.

use endcap_runtime::{Remain, Stamp, StoreError, StoreOverview, StoredPage};
use endcap_schemas::UserKey;
use futures::{StreamExt, TryStreamExt};
use scylla::{
    client::pager::TypedRowStream,
    deserialize::row::DeserializeRow,
    errors::{NextPageError, NextRowError, PagerExecutionError},
    serialize::row::SerializeRow,
    statement::prepared::PreparedStatement,
    value::CqlTimestamp,
};

use crate::{
    ScyllaStore,
    conditional::{decided, standing},
    connect::told,
    migrate::SCOPE,
    schema::USER_TABLES,
    store::{SURFACE, Shared, corrupt, stored_page},
    versions::Versions,
};

/// Rows that a count looks at before it estimates: so many give an error of about 1 %.
pub const COUNTED_MAX: u64 = 10_000;
/// Rows that a search looks at.
pub const SEARCHED_MAX: u64 = 100_000;

/// Lists come in the order of the keys' tokens. A search looks at [`SEARCHED_MAX`] rows at most; counts are exact up to [`COUNTED_MAX`] rows
/// and estimates beyond. What remains of a user is asked of every replica.
impl StoreOverview for ScyllaStore {
    fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let after = after.cloned();
        self.run(|shared| async move { shared.pages_after(after.as_ref(), limit).await })
    }

    fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let part = part.to_lowercase();
        self.run(|shared| async move { shared.pages_like(&part, limit).await })
    }

    fn pages_count(&self) -> Result<u64, StoreError> {
        self.run(|shared| async move {
            let rows = shared.scan::<(i64, String, Option<i32>)>(&shared.statements.scan.page_tokens, ()).await?;
            let is_page = |surface: &str, bytes: Option<i32>| surface == SURFACE && bytes.is_some_and(|bytes| bytes > 0);
            estimate(rows.map_ok(|(token, surface, bytes)| (token, is_page(&surface, bytes)))).await
        })
    }

    fn states_count(&self) -> Result<u64, StoreError> {
        self.run(|shared| async move {
            let rows = shared.scan::<(i64,)>(&shared.statements.scan.state_tokens, ()).await?;
            estimate(rows.map_ok(|(token,)| (token, true))).await
        })
    }

    fn remains(&self, user: &UserKey) -> Result<Vec<Remain>, StoreError> {
        let user = user.clone();
        self.run(|shared| async move { shared.remains(&user).await })
    }

    fn note(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let note = (name.to_owned(), value.to_owned());
        self.run(|shared| async move { shared.write(&shared.statements.put_note, note).await })
    }

    fn noted(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = (name.to_owned(),);
        self.run(|shared| async move {
            let found = shared.read(&shared.statements.note, name).await?;
            Ok(found.maybe_first_row::<(String,)>().map_err(corrupt)?.map(|(value,)| value))
        })
    }

    fn add_generation(&self, generation: i32, manifest: &str) -> Result<Option<String>, StoreError> {
        let manifest = manifest.to_owned();
        self.run(|shared| async move { shared.add_generation(generation, &manifest).await })
    }

    fn generation(&self, number: Option<i32>) -> Result<Option<(i32, String)>, StoreError> {
        self.run(|shared| async move {
            let statements = &shared.statements;
            let found = match number {
                Some(number) => shared.read(&statements.generation, (SCOPE, number)).await?,
                None => shared.read(&statements.generations, (SCOPE, 1)).await?,
            };
            found.maybe_first_row::<(i32, String)>().map_err(corrupt)
        })
    }

    fn generations(&self) -> Result<Vec<(i32, String)>, StoreError> {
        self.run(|shared| async move {
            let found = shared.read(&shared.statements.generations, (SCOPE, i32::MAX)).await?;
            found.rows::<(i32, String)>().map_err(corrupt)?.map(|row| row.map_err(corrupt)).collect()
        })
    }
}

/// Key, surface, stamp, time of writing and entries of a page.
type ListedPage = (String, String, String, Option<i64>, Option<CqlTimestamp>, Option<Versions<Vec<u8>>>);

impl Shared {
    async fn pages_after(&self, after: Option<&UserKey>, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let scan = &self.statements.scan;
        let mut rows = match after {
            None => self.scan::<ListedPage>(&scan.first_pages, ()).await?,
            Some(user) => self.scan::<ListedPage>(&scan.next_pages, (&user.tenant, &user.user)).await?,
        };
        let mut pages = Vec::new();
        while pages.len() < limit {
            let Some((tenant, user, surface, stamp, written, versions)) = rows.try_next().await.map_err(next)? else { break };
            let Some(stamp) = stamp.filter(|_| surface == SURFACE) else { continue };
            let page = stored_page(stamp, written, versions);
            if page.page.is_some() {
                pages.push((UserKey { tenant, user }, page));
            }
        }
        Ok(pages)
    }

    /// Looks at keys alone, then reads the pages of those that match.
    async fn pages_like(&self, part: &str, limit: usize) -> Result<Vec<(UserKey, StoredPage)>, StoreError> {
        let keys = self.scan::<(String, String, String, Option<i32>)>(&self.statements.scan.page_keys, ()).await?;
        let mut keys = std::pin::pin!(keys);
        let (mut users, mut looked_at) = (Vec::new(), 0);
        while users.len() < limit && looked_at < SEARCHED_MAX {
            let Some((tenant, user, surface, bytes)) = keys.try_next().await.map_err(next)? else { break };
            looked_at += 1;
            let user = UserKey { tenant, user };
            if surface == SURFACE && bytes.is_some_and(|bytes| bytes > 0) && shown(&user).to_lowercase().contains(part) {
                users.push(user);
            }
        }
        users.sort();
        let reads: Vec<_> = users.iter().map(|user| self.page(user)).collect();
        let pages = self.all(reads).await?;
        let pages =
            users.into_iter().zip(pages).filter_map(|(user, page)| Some((user, page.filter(|page| page.page.is_some())?)));
        Ok(pages.collect())
    }

    async fn add_generation(&self, generation: i32, manifest: &str) -> Result<Option<String>, StoreError> {
        let statement = self.statements.add_generation.clone();
        let answer = decided(&self.session, statement, (SCOPE, generation, manifest)).await;
        let answer = answer.map_err(|error| refused(&told(&error)))?;
        let kept = standing(&answer.into_rows_result().map_err(corrupt)?, "manifest").map_err(corrupt)?;
        Ok(kept.filter(|kept| kept != manifest))
    }

    async fn remains(&self, user: &UserKey) -> Result<Vec<Remain>, StoreError> {
        let mut rows = Vec::new();
        for (table, statement) in USER_TABLES.into_iter().zip(&self.statements.scan.left) {
            let found = self.read(statement, (&user.tenant, &user.user)).await?;
            for row in found.rows::<(Option<i64>,)>().map_err(corrupt)? {
                rows.push(Remain { table, stamp: row.map_err(corrupt)?.0.map(Stamp) });
            }
        }
        Ok(rows)
    }

    /// Rows in the order of their tokens, a page of them at a time.
    async fn scan<R: for<'f, 'm> DeserializeRow<'f, 'm> + 'static>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<TypedRowStream<R>, StoreError> {
        let pager = self.session.execute_iter(statement.clone(), values).await;
        let pager = pager.map_err(|error| match error {
            PagerExecutionError::SerializationError(_) => corrupt(error),
            _ => StoreError::Unavailable(told(&error)),
        })?;
        pager.rows_stream::<R>().map_err(corrupt)
    }
}

/// A conditional statement that was not done. A keyspace of tablets on an older ScyllaDB takes none.
fn refused(cause: &str) -> StoreError {
    let remedy = if cause.contains("tablets") {
        ": use ScyllaDB 2025.4 or later, or a keyspace that `endcap store migrate` of this release has made"
    } else {
        ""
    };
    StoreError::Unavailable(format!("{cause}{remedy}"))
}

/// The key as people see it.
fn shown(user: &UserKey) -> String {
    if user.tenant == UserKey::DEFAULT_TENANT { user.user.clone() } else { user.to_string() }
}

fn next(error: NextRowError) -> StoreError {
    match error {
        NextRowError::NextPageError(NextPageError::TypeCheckError(_)) | NextRowError::RowDeserializationError(_) => {
            corrupt(error)
        }
        _ => StoreError::Unavailable(told(&error)),
    }
}

/// Counts rows whose flag is set, as their tokens come in order. Tokens are spread evenly over all of i64, so that the share of it that
/// the first rows take tells how many there are in all.
async fn estimate(rows: impl futures::Stream<Item = Result<(i64, bool), NextRowError>>) -> Result<u64, StoreError> {
    let mut rows = std::pin::pin!(rows);
    let (mut looked_at, mut counted) = (0, 0);
    while let Some((token, counts)) = rows.try_next().await.map_err(next)? {
        looked_at += 1;
        counted += u64::from(counts);
        if looked_at == COUNTED_MAX && rows.next().await.is_some() {
            return Ok(extrapolated(counted, token));
        }
    }
    Ok(counted)
}

/// `counted` rows lie at tokens up to `last`: how many lie at all tokens.
fn extrapolated(counted: u64, last: i64) -> u64 {
    let covered = (i128::from(last) - i128::from(i64::MIN) + 1).unsigned_abs();
    let all = u128::from(counted) * (1 << 64) / covered;
    u64::try_from(all).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    /// So many rows with evenly spread tokens, every other one of which counts.
    fn spread(rows: u64) -> impl Iterator<Item = Result<(i64, bool), NextRowError>> {
        let step = (i128::from(u64::MAX) + 1) / i128::from(rows);
        let token = move |n: u64| i64::try_from(i128::from(i64::MIN) + step * i128::from(n)).unwrap();
        (0..rows).map(move |n| Ok((token(n), n % 2 == 0)))
    }

    #[tokio::test]
    async fn few_rows_are_counted_and_many_are_estimated() {
        for rows in [0, 1_000, COUNTED_MAX] {
            let stream = stream::iter(spread(rows.max(1)).take(usize::try_from(rows).unwrap()));
            assert_eq!(estimate(stream).await.unwrap(), rows / 2);
        }
        let many = estimate(stream::iter(spread(1_000_000))).await.unwrap();
        assert!(many.abs_diff(500_000) < 5_000, "{many}");
    }
}
