//! How far a student agrees with its teacher.

use std::collections::HashSet;

use endcap_schemas::Theme;
use serde::Serialize;

use crate::metrics::mean;

/// Agreement of one policy with the teacher.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Agreement {
    /// Who is compared with the teacher.
    pub policy: String,
    /// Share of its themes whose anchor category the teacher chose for the same shopper.
    pub themes: Option<f64>,
    /// Share of the teacher's first 5 keywords among its own first 5, for the same themes and candidates.
    pub keywords: Option<f64>,
}

/// Share of `student`'s themes whose anchor (first concept) is an anchor of `teacher`'s.
pub fn theme_agreement(student: &[Theme], teacher: &[Theme]) -> f64 {
    let anchors: HashSet<&str> = teacher.iter().filter_map(anchor).collect();
    mean(student.iter().map(|theme| f64::from(anchor(theme).is_some_and(|anchor| anchors.contains(anchor)))))
}

fn anchor(theme: &Theme) -> Option<&str> {
    theme.concepts.first().map(String::as_str)
}

/// Share of `teacher`'s first `k` picks among `student`'s first `k`; `None` where the teacher picked nothing.
pub fn keyword_overlap(student: &[usize], teacher: &[usize], k: usize) -> Option<f64> {
    let wanted = &teacher[..teacher.len().min(k)];
    let got = &student[..student.len().min(wanted.len())];
    (!wanted.is_empty()).then(|| wanted.iter().filter(|pick| got.contains(pick)).count() as f64 / wanted.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_compares_lists_of_the_teachers_length() {
        for (student, teacher, expected) in [
            (vec![1, 2, 3, 4, 5], vec![1, 2, 3, 4, 5], Some(1.0)),
            (vec![5, 4, 3, 2, 1, 9], vec![1, 2, 3, 4, 5, 6], Some(1.0)), // order within the first five does not count
            (vec![9, 9, 1, 2], vec![1, 2], Some(0.0)),                   // nor do later picks make up for early ones
            (vec![1, 7, 8, 9, 10], vec![1, 2, 3, 4, 5], Some(0.2)),
            (vec![1], vec![], None),
            (vec![], vec![1], Some(0.0)),
        ] {
            assert_eq!(keyword_overlap(&student, &teacher, 5), expected, "{student:?} against {teacher:?}");
        }
    }
}
