//! From writes to rows: what one call to the store has to write. Pure.

use std::collections::BTreeMap;

use endcap_runtime::{Erasure, StageResult, Stamp, StoreError, Write};
use endcap_schemas::{PagePublished, UserKey, wire};

/// Which row of a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The fold state.
    State,
    /// The page.
    Page,
    /// The result of a stage.
    Result(String),
}

/// What a row is to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) stamp: Stamp,
    /// `None` for a withdrawn page.
    pub(crate) bytes: Option<Vec<u8>>,
    /// When, ms: of results only.
    pub(crate) at_ms: i64,
}

impl Value {
    /// The greater one stays; a withdrawal is less than any page of its stamp.
    fn rank(&self) -> (Stamp, Option<&[u8]>) {
        (self.stamp, self.bytes.as_deref())
    }
}

/// What one call has to write: of each row the greatest value only, as the others would change nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The greatest erasure of each user.
    pub(crate) erasures: BTreeMap<UserKey, Erasure>,
    /// Rows by user.
    pub(crate) values: BTreeMap<UserKey, BTreeMap<Place, Value>>,
}

impl Rows {
    /// Of `writes` and `results`.
    pub(crate) fn of(writes: &[Write], results: &[StageResult]) -> Self {
        let mut rows = Self::default();
        for write in writes {
            match write {
                Write::State { user, stamp, state } => {
                    let value = Value { stamp: *stamp, bytes: Some(state.clone()), at_ms: 0 };
                    rows.put(user, Place::State, value);
                }
                Write::Page { user, stamp, page } => {
                    rows.put(user, Place::Page, Value { stamp: *stamp, bytes: page.clone(), at_ms: 0 });
                }
                Write::Erase { user, stamp, at } => rows.erase(user, Erasure { stamp: *stamp, at: *at }),
            }
        }
        for StageResult { user, stage, stamp, explanation, at_ms } in results {
            let value = Value { stamp: *stamp, bytes: Some(explanation.clone().into_bytes()), at_ms: *at_ms };
            rows.put(user, Place::Result(stage.clone()), value);
        }
        rows
    }

    /// Leaves out what its user's erasure covers, by this call or, as `erased` tells, by earlier ones.
    pub(crate) fn less(&mut self, erased: &BTreeMap<UserKey, Erasure>) {
        for (user, values) in &mut self.values {
            let until = erased.get(user).max(self.erasures.get(user)).map(|erasure| erasure.stamp);
            values.retain(|_, value| until.is_none_or(|until| value.stamp > until));
        }
    }

    fn erase(&mut self, user: &UserKey, erasure: Erasure) {
        let kept = self.erasures.entry(user.clone()).or_insert(erasure);
        *kept = (*kept).max(erasure);
    }

    fn put(&mut self, user: &UserKey, place: Place, value: Value) {
        let values = self.values.entry(user.clone()).or_default();
        if values.get(&place).is_none_or(|kept| kept.rank() < value.rank()) {
            values.insert(place, value);
        }
    }
}

/// Titles of a page's placements, for people who look at the table; `None` for bytes that are no page of this release.
pub(crate) fn titles(page: &[u8]) -> Option<Vec<String>> {
    let published = wire::decode::<PagePublished>(page).ok()?;
    Some(published.page.placements.into_iter().map(|placement| placement.theme.title).collect())
}

/// Where in the log an erasure was asked for, as bytes that compare as the numbers do; nowhere is before everywhere.
pub(crate) fn place_bytes(at: Option<(i32, i64)>) -> Vec<u8> {
    let (partition, offset) = at.unwrap_or(NOWHERE);
    let (partition, offset) = (partition ^ i32::MIN, offset ^ i64::MIN);
    [&partition.to_be_bytes()[..], &offset.to_be_bytes()[..]].concat()
}

/// What [`place_bytes`] wrote.
///
/// # Errors
/// [`StoreError::Corrupt`] when it did not.
pub(crate) fn place_of(bytes: &[u8]) -> Result<Option<(i32, i64)>, StoreError> {
    let corrupt = || StoreError::Corrupt(format!("place of an erasure has {} bytes, 12 are written", bytes.len()));
    let (partition, offset) = bytes.split_at_checked(4).ok_or_else(corrupt)?;
    let partition = i32::from_be_bytes(partition.try_into().map_err(|_| corrupt())?) ^ i32::MIN;
    let offset = i64::from_be_bytes(offset.try_into().map_err(|_| corrupt())?) ^ i64::MIN;
    Ok(((partition, offset) != NOWHERE).then_some((partition, offset)))
}

/// An erasure that was not asked for in the log.
const NOWHERE: (i32, i64) = (-1, -1);

#[cfg(test)]
mod tests {
    use super::*;

    fn anna() -> UserKey {
        UserKey::of("anna")
    }

    fn page(stamp: i64, page: Option<&[u8]>) -> Write {
        Write::Page { user: anna(), stamp: Stamp(stamp), page: page.map(<[u8]>::to_vec) }
    }

    fn erase(stamp: i64, at: Option<(i32, i64)>) -> Write {
        Write::Erase { user: anna(), stamp: Stamp(stamp), at }
    }

    #[test]
    fn of_each_row_the_greatest_write_is_left() {
        let check = |writes: &[Write], stamp: i64, bytes: Option<&[u8]>| {
            let rows = Rows::of(writes, &[]);
            let value = &rows.values[&anna()][&Place::Page];
            assert_eq!((value.stamp.0, value.bytes.as_deref()), (stamp, bytes), "{writes:?}");
        };
        check(&[page(5, Some(b"z")), page(7, Some(b"a")), page(6, Some(b"y"))], 7, Some(b"a"));
        check(&[page(7, Some(b"a")), page(7, Some(b"b")), page(7, Some(b""))], 7, Some(b"b"));
        check(&[page(7, None), page(7, Some(b""))], 7, Some(b""));
        check(&[page(7, Some(b"a")), page(8, None)], 8, None);
    }

    #[test]
    fn what_an_erasure_covers_is_left_out() {
        let writes = [erase(9, Some((1, 1))), page(10, None), erase(10, None), erase(10, Some((0, 3)))];
        let mut rows = Rows::of(&writes, &[]);
        assert_eq!(rows.erasures[&anna()], Erasure { stamp: Stamp(10), at: Some((0, 3)) });
        rows.less(&BTreeMap::new());
        assert!(rows.values[&anna()].is_empty(), "by the same call");
        let mut rows = Rows::of(&[page(10, None)], &[]);
        rows.less(&BTreeMap::from([(anna(), Erasure { stamp: Stamp(9), at: None })]));
        assert_eq!(rows.values[&anna()].len(), 1, "a new life");
        rows.less(&BTreeMap::from([(anna(), Erasure { stamp: Stamp(10), at: None })]));
        assert!(rows.values[&anna()].is_empty(), "by an earlier call");
    }

    #[test]
    fn places_compare_as_their_bytes_do() {
        let places = [None, Some((0, -7)), Some((0, 0)), Some((0, 256)), Some((1, -1)), Some((1, 5)), Some((i32::MAX, i64::MAX))];
        for pair in places.windows(2) {
            assert!(place_bytes(pair[0]) < place_bytes(pair[1]), "{pair:?}");
        }
        for place in places {
            assert_eq!(place_of(&place_bytes(place)).unwrap(), place);
        }
        assert!(matches!(place_of(b"short"), Err(StoreError::Corrupt(_))));
        assert!(matches!(place_of(&[0; 13]), Err(StoreError::Corrupt(_))));
    }
}
