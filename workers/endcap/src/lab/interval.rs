//! Means of a few runs, and how far they may be off.

use endcap_evaluation::{mean, standard_error};
use serde::Serialize;

/// A mean with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the width of the interval; not a number where there is one run alone.
    pub half: f64,
}

/// Student's t for 95 %, by degrees of freedom from 1 on; beyond these it is all but the last.
const T: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
    2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

impl Interval {
    /// Of independent runs, at least one.
    pub(crate) fn of(runs: &[f64]) -> Self {
        let t = match runs.len() {
            0 | 1 => f64::NAN,
            runs => T[(runs - 2).min(T.len() - 1)],
        };
        Self { mean: mean(runs), half: t * standard_error(runs) }
    }

    /// By what share each run of `own` is above the one of `base` beside it.
    pub(crate) fn lift(own: &[f64], base: &[f64]) -> Self {
        Self::of(&own.iter().zip(base).map(|(own, base)| own / base - 1.0).collect::<Vec<_>>())
    }

    /// As a share in text: mean and half width in per cent with so many decimals.
    pub(crate) fn show_share(self, decimals: usize) -> String {
        format!("{:+.decimals$} % ± {:.decimals$}", 100.0 * self.mean, 100.0 * self.half)
    }

    /// As text: the mean and the half width with so many decimals.
    pub(crate) fn show(self, decimals: usize) -> String {
        format!("{:.decimals$} ± {:.decimals$}", self.mean, self.half)
    }

    /// Whether all of it lies above zero.
    pub(crate) fn is_above_zero(self) -> bool {
        self.mean - self.half > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_the_table_of_t_says() {
        let four = Interval::of(&[1.0, 2.0, 3.0, 4.0]);
        assert!((four.mean - 2.5).abs() < 1e-12 && (four.half - 3.182 * (5.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
        assert_eq!(four.show(2), "2.50 ± 2.05");
        assert!(four.is_above_zero() && !Interval::of(&[-1.0, 2.0]).is_above_zero());
        let one = Interval::of(&[3.0]);
        assert!(one.mean == 3.0 && one.half.is_nan() && !one.is_above_zero());
        assert_eq!(Interval::of(&[0.0; 100]), Interval { mean: 0.0, half: 0.0 });
    }
}
