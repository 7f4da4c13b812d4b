//! Where the sequences of a packed batch begin and end.

use std::{ops::Range, sync::Arc};

use crate::{EngineError, Result};

/// Sequences laid end to end without padding: row `offsets[i]..offsets[i + 1]` is sequence `i`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments(Arc<[usize]>);

impl Segments {
    /// Segments with these borders: they begin at 0 and never fall.
    ///
    /// # Errors
    /// [`EngineError::Model`] when they do not.
    pub fn new(offsets: impl Into<Arc<[usize]>>) -> Result<Self> {
        let offsets = offsets.into();
        if offsets.first() != Some(&0) || offsets.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(EngineError::model("segment offsets must begin at 0 and never fall"));
        }
        Ok(Self(offsets))
    }

    /// Segments of these lengths, in rows.
    pub fn of_lengths(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0;
        let ends = lengths.into_iter().map(|length| {
            end += length;
            end
        });
        Self(std::iter::once(0).chain(ends).collect())
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there is no segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows of all segments together.
    pub fn rows(&self) -> usize {
        *self.0.last().expect("offsets hold at least the 0")
    }

    /// Rows of the longest segment.
    pub fn longest(&self) -> usize {
        self.iter().map(|rows| rows.len()).max().unwrap_or(0)
    }

    /// The rows of each segment.
    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The borders, one more than there are segments.
    pub fn offsets(&self) -> &[usize] {
        &self.0
    }

    /// Each row's position within its segment.
    pub fn positions(&self) -> Vec<u32> {
        self.iter().flat_map(|rows| 0..rows.len() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_know_their_rows_and_positions() {
        let segments = Segments::of_lengths([2, 0, 3]);
        assert_eq!(segments.offsets(), [0, 2, 2, 5]);
        assert_eq!((segments.len(), segments.rows(), segments.longest()), (3, 5, 3));
        assert_eq!(segments.positions(), [0, 1, 0, 1, 2]);
        assert_eq!(Segments::new(vec![0, 2, 2, 5]).unwrap(), segments);
    }

    #[test]
    fn borders_that_fall_are_refused() {
        for offsets in [vec![], vec![1, 2], vec![0, 3, 2]] {
            assert!(Segments::new(offsets.clone()).is_err(), "{offsets:?}");
        }
    }
}
