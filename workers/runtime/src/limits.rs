//! Checks of settings against their limits.

use std::{fmt::Display, ops::RangeInclusive};

/// The fault of setting `key` where its value lies outside `range`, in words for whoever wrote it.
pub fn outside<T: PartialOrd + Display>(key: &str, value: T, range: RangeInclusive<T>) -> Option<String> {
    let (least, most) = (range.start(), range.end());
    (!range.contains(&value)).then(|| format!("`{key}` must be {least} to {most}, {value} is not"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_outside_its_range_is_named_with_the_range() {
        assert_eq!(outside("floor", 3, 1..=5), None);
        assert_eq!(outside("floor", 6, 1..=5).unwrap(), "`floor` must be 1 to 5, 6 is not");
        assert_eq!(outside("share_min", f64::NAN, 0.0..=1.0).unwrap(), "`share_min` must be 0 to 1, NaN is not");
    }
}
