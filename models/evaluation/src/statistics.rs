//! What several figures come to.

/// The mean; not a number of no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of what the values are a sample of; not a number of fewer than two.
pub fn standard_deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
    (squares / (values.len() as f64 - 1.0)).sqrt()
}

/// The standard error of the mean; not a number of fewer than two.
pub fn standard_error(values: &[f64]) -> f64 {
    standard_deviation(values) / (values.len() as f64).sqrt()
}

/// The value below which `share` (0…1) of the values lie, which come sorted: always one of them, and of an even number's two in the middle the
/// greater. `None` of no values.
pub fn quantile<T: Copy>(sorted: &[T], share: f64) -> Option<T> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[((sorted.len() as f64 * share) as usize).min(last)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_values_have_the_mean_and_the_spread_that_they_have_by_hand() {
        let values = [1.0, 2.0, 3.0, 4.0];
        let near = |got: f64, wanted: f64| assert!((got - wanted).abs() < 1e-12, "{got}, not {wanted}");
        near(mean(&values), 2.5);
        near(standard_deviation(&values), (5.0_f64 / 3.0).sqrt());
        near(standard_error(&values), (5.0_f64 / 12.0).sqrt());
        assert!(mean(&[]).is_nan() && standard_deviation(&[3.0]).is_nan() && standard_error(&[3.0]).is_nan());
    }

    #[test]
    fn a_quantile_is_a_value_that_occurred() {
        let hundred: Vec<u32> = (1..=100).collect();
        for (sorted, share, wanted) in [
            (&[][..], 0.5, None),
            (&[7], 0.0, Some(7)),
            (&[7], 0.99, Some(7)),
            (&[1, 2, 3], 0.5, Some(2)),
            (&[1, 2, 3, 4], 0.5, Some(3)),
            (&hundred, 0.99, Some(100)),
            (&hundred, 0.9, Some(91)),
            (&hundred, 1.0, Some(100)),
        ] {
            assert_eq!(quantile(sorted, share), wanted, "{share} of {sorted:?}");
        }
    }
}
