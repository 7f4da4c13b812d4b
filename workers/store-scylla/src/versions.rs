//! Which of several writes of one row counts. Pure.
//!
//! A CQL server lets the newest write timestamp win, and a store's stamp is the timestamp. Among equal timestamps a server asks for the
//! later expiry before it looks at the bytes, so that equal stamps would end in whatever was written last. Here each write of a stamp
//! is an entry of its own in a map, and the reader takes the greatest.

use std::collections::HashMap;

use endcap_runtime::Stamp;

/// Entries of a row beyond which a reader removes those that do not count.
pub(crate) const VERSIONS_MAX: usize = 8;
/// Bytes of a digest that tell values of one stamp apart.
const DIGEST_BYTES: usize = 16;

/// Key of an entry: its stamp and the beginning of its value's BLAKE3.
pub(crate) type VersionKey = (i64, Vec<u8>);
/// The entries of a row.
pub(crate) type Versions<V> = HashMap<VersionKey, V>;

/// The key under which `value` of `stamp` is kept.
pub(crate) fn key(stamp: Stamp, value: &[u8]) -> VersionKey {
    (stamp.0, blake3::hash(value).as_bytes()[..DIGEST_BYTES].to_vec())
}

/// The entry that counts in a row of `stamp`: the one with the greatest value. Entries of other stamps are leftovers, whose deletion
/// the server has already forgotten when they came; the next newer write removes them.
pub(crate) fn newest<V>(stamp: i64, versions: Versions<V>, rank: impl Fn(&V, &V) -> std::cmp::Ordering) -> Option<V> {
    versions.into_iter().filter(|(key, _)| key.0 == stamp).map(|(_, value)| value).max_by(rank)
}

/// What a reader removes from a row: all that does not count, once there is too much of it.
pub(crate) fn surplus<V>(stamp: i64, versions: &Versions<V>, rank: impl Fn(&V, &V) -> std::cmp::Ordering) -> Vec<VersionKey> {
    if versions.len() <= VERSIONS_MAX {
        return Vec::new();
    }
    let counts = versions.iter().filter(|(key, _)| key.0 == stamp).max_by(|(_, a), (_, b)| rank(a, b)).map(|(key, _)| key);
    versions.keys().filter(|key| Some(*key) != counts).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(entries: &[(i64, &[u8])]) -> Versions<Vec<u8>> {
        entries.iter().map(|(stamp, value)| (key(Stamp(*stamp), value), value.to_vec())).collect()
    }

    #[test]
    fn the_greatest_value_of_the_rows_stamp_counts() {
        let check = |stamp: i64, entries: &[(i64, &[u8])], counts: Option<&[u8]>| {
            let found = newest(stamp, versions(entries), Vec::cmp);
            assert_eq!(found.as_deref(), counts, "{stamp} {entries:?}");
        };
        check(7, &[(7, b"a"), (7, b"b"), (7, b"ab")], Some(b"b"));
        check(7, &[(7, b"a"), (5, b"z")], Some(b"a"));
        check(8, &[(7, b"a")], None);
        check(7, &[(7, b"")], Some(b""));
        check(7, &[], None);
    }

    #[test]
    fn a_row_with_too_many_entries_keeps_the_one_that_counts() {
        let values: Vec<[u8; 1]> = (0..=u8::try_from(VERSIONS_MAX).unwrap()).map(|n| [n]).collect();
        let entries: Vec<(i64, &[u8])> = values.iter().map(|value| (7, &value[..])).collect();
        assert!(surplus(7, &versions(&entries[1..]), Vec::cmp).is_empty());
        let gone = surplus(7, &versions(&entries), Vec::cmp);
        assert_eq!(gone.len(), VERSIONS_MAX);
        assert!(!gone.contains(&key(Stamp(7), &[8])), "the greatest stays");
        assert_eq!(surplus(9, &versions(&entries), Vec::cmp).len(), entries.len(), "of a withdrawn page nothing counts");
    }
}
