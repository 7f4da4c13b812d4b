//! What is worked out once per version of the market.

use std::{convert::Infallible, sync::Arc};

/// Something that is worked out from a snapshot and kept until the market has another version.
#[derive(Debug)]
pub struct PerVersion<T>(Option<(String, Arc<T>)>);

impl<T> Default for PerVersion<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> PerVersion<T> {
    /// What is kept for `version`, the snapshot's whole one or its catalogue's; else what `make` makes, which is kept then.
    pub fn get(&mut self, version: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let Ok(value) = self.try_get(version, || Ok::<T, Infallible>(make()));
        value
    }

    /// As [`PerVersion::get`], where it may fail.
    ///
    /// # Errors
    /// Those of `make`; then the older one stays, for its own version.
    pub fn try_get<E>(&mut self, version: &str, make: impl FnOnce() -> Result<T, E>) -> Result<Arc<T>, E> {
        match &self.0 {
            Some((known, value)) if known == version => Ok(value.clone()),
            _ => {
                let value = Arc::new(make()?);
                self.0 = Some((version.to_owned(), value.clone()));
                Ok(value)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_per_version_and_a_failure_leaves_the_older_one() {
        let mut kept = PerVersion::default();
        let made: Vec<i32> = ["a", "a", "b", "b", "a"].iter().zip(1..).map(|(version, n)| *kept.get(version, || n)).collect();
        assert_eq!(made, [1, 1, 3, 3, 5]);
        assert_eq!(kept.try_get("b", || Err("no disk")), Err("no disk"));
        assert_eq!(*kept.get("a", || 9), 5);
    }
}
