//! The belief against batch ridge regression, worked out another way: sums that lose nothing (Neumaier) and elimination with pivots.

use endcap_ranker::linucb::{LinUcb, Posterior, sqrt_beta};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A sum that keeps what rounding takes away.
#[derive(Clone, Copy, Default)]
struct Sum(f64, f64);

impl Sum {
    fn add(&mut self, value: f64) {
        let sum = self.0 + value;
        self.1 += if self.0.abs() >= value.abs() { (self.0 - sum) + value } else { (value - sum) + self.0 };
        self.0 = sum;
    }
}

/// λI + Σ x·xᵀ and Σ r·x of a batch.
struct Batch {
    matrix: Vec<Vec<Sum>>,
    right: Vec<Sum>,
}

impl Batch {
    fn new(dims: usize, lambda: f64) -> Self {
        let mut matrix = vec![vec![Sum::default(); dims]; dims];
        (0..dims).for_each(|i| matrix[i][i].add(lambda));
        Self { matrix, right: vec![Sum::default(); dims] }
    }

    fn add(&mut self, x: &[f64], reward: f64) {
        for (i, row) in self.matrix.iter_mut().enumerate() {
            row.iter_mut().zip(x).for_each(|(sum, value)| sum.add(x[i] * value));
            self.right[i].add(x[i] * reward);
        }
    }

    /// The solution of `matrix · y = right`, by elimination with partial pivots.
    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let value = |sum: &Sum| sum.0 + sum.1;
        let mut rows: Vec<Vec<f64>> = self.matrix.iter().map(|row| row.iter().map(value).collect()).collect();
        rows.iter_mut().zip(right).for_each(|(row, right)| row.push(*right));
        let dims = rows.len();
        for column in 0..dims {
            let pivot = (column..dims).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs())).unwrap();
            rows.swap(column, pivot);
            let lead = rows[column].clone();
            for row in rows.iter_mut().skip(column + 1) {
                let factor = row[column] / lead[column];
                row.iter_mut().zip(&lead).for_each(|(value, lead)| *value -= factor * lead);
            }
        }
        let mut solved = vec![0.0; dims];
        for row in (0..dims).rev() {
            let known: f64 = (row + 1..dims).map(|column| rows[row][column] * solved[column]).sum();
            solved[row] = (rows[row][dims] - known) / rows[row][row];
        }
        solved
    }

    fn weights(&self) -> Vec<f64> {
        self.solve(&self.right.iter().map(|sum| sum.0 + sum.1).collect::<Vec<f64>>())
    }

    fn variance(&self, x: &[f64]) -> f64 {
        self.solve(x).iter().zip(x).map(|(a, b)| a * b).sum()
    }
}

/// Learns `updates` examples whose features lie on very different scales and hang together, and compares.
fn check(dims: usize, lambda: f64, updates: u64, seed: u64) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let truth: Vec<f64> = (0..dims).map(|_| rng.random_range(-1.0..1.0)).collect();
    let mut posterior = Posterior::new(&vec![0.0; dims], lambda);
    let mut batch = Batch::new(dims, lambda);
    let mut x = vec![0.0; dims];
    for _ in 0..updates {
        let common: f64 = rng.random_range(-1.0..1.0);
        for (place, value) in x.iter_mut().enumerate() {
            *value = (common + 0.1 * rng.random_range(-1.0..1.0)) * 0.25_f64.powi((place % 5) as i32);
        }
        let reward = x.iter().zip(&truth).map(|(x, weight)| x * weight).sum::<f64>() + rng.random_range(-0.5..0.5);
        posterior.observe(&x, reward);
        batch.add(&x, reward);
    }
    let largest = batch.weights().iter().fold(0.0_f64, |largest, weight| largest.max(weight.abs()));
    for (learnt, exact) in posterior.weights().iter().zip(batch.weights()) {
        assert!((learnt - exact).abs() <= 1e-8 * largest, "{learnt} and {exact} after {updates} updates, seed {seed}");
    }
    for _ in 0..20 {
        x.iter_mut().for_each(|value| *value = rng.random_range(-1.0..1.0));
        let (learnt, exact) = (posterior.variance(&x), batch.variance(&x));
        assert!((learnt / exact - 1.0).abs() < 1e-7, "{learnt} and {exact} after {updates} updates, seed {seed}");
    }
}

#[test]
fn it_is_ridge_regression_after_few_updates_and_many() {
    for (dims, lambda, updates) in
        [(1, 1e-3, 50), (3, 1e-3, 1_000), (8, 1e-3, 1_023), (8, 1.0, 1_025), (24, 1e-3, 20_000), (64, 0.1, 3_000)]
    {
        for seed in 0..3 {
            check(dims, lambda, updates, seed);
        }
    }
}

#[test]
fn it_is_ridge_regression_after_ten_million_updates() {
    check(6, 1e-3, 10_000_000, 1);
}

#[test]
fn a_pretrained_prior_counts_as_samples_of_every_weight() {
    let (mut pretrained, mut taught) = (Posterior::new(&[0.5, -2.0], 11.0), Posterior::new(&[0.0, 0.0], 1.0));
    for _ in 0..10 {
        taught.observe(&[1.0, 0.0], 0.55);
        taught.observe(&[0.0, 1.0], -2.2);
    }
    for posterior in [&mut pretrained, &mut taught] {
        posterior.observe(&[1.0, 1.0], 1.0);
    }
    for (a, b) in pretrained.weights().iter().zip(taught.weights()) {
        assert!((a - b).abs() < 1e-12, "{a} and {b}");
    }
    assert!((pretrained.variance(&[0.3, 0.4]) - taught.variance(&[0.3, 0.4])).abs() < 1e-12);
}

#[test]
fn rounding_never_makes_a_variance_negative_or_a_factor_impossible() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut posterior = Posterior::new(&[0.0; 4], 1e-9);
    for _ in 0..50_000 {
        let common = rng.random_range(-1_000.0..1_000.0);
        posterior.observe(&[common, common, common, common * (1.0 + 1e-12)], common);
    }
    for x in [[1.0, -1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, -1.0], [1_000.0; 4]] {
        let variance = posterior.variance(&x);
        assert!(variance.is_finite() && variance >= 0.0, "{variance} for {x:?}");
    }
}

#[test]
fn a_nominator_that_is_less_sure_takes_over_mean_and_variance_and_moves_nothing_that_is_unrelated() {
    let mut ranker = LinUcb::pretrained(&[0.2, -0.4, 0.1], 50.0, 1e-3);
    ranker.observe(&[1.0, 0.5, 0.0], 0.7);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for trial in 0..200 {
        let mut nominator = LinUcb::new(2, 1e-3);
        let (seen, x): (Vec<f64>, Vec<f64>) = (0..2).map(|_| (rng.random_range(-1.0..1.0), rng.random_range(-1.0..1.0))).unzip();
        nominator.observe(&seen, rng.random_range(0.0..1.0));
        let features: Vec<f64> = (0..3).map(|_| rng.random_range(-1.0..1.0)).collect();
        let (target, before) = (ranker.score(&features), nominator.score(&x));
        let synchronised = nominator.synchronise(&x, &target);
        assert_eq!(synchronised, before.deviation > target.deviation, "trial {trial}");
        let after = nominator.score(&x);
        let expected = if synchronised { target } else { before };
        assert!((after.mean - expected.mean).abs() < 1e-8 * (1.0 + before.mean.abs()), "trial {trial}: {after:?}, {expected:?}");
        assert!((after.deviation / expected.deviation - 1.0).abs() < 1e-6, "trial {trial}: {after:?}, {expected:?}");
        assert!(!nominator.synchronise(&x, &target), "trial {trial}: it agrees and synchronises again");
        let direction = [-x[1], x[0]];
        assert!(nominator.posterior().variance(&direction) > 0.0, "trial {trial}");
    }
}

#[test]
fn the_width_of_the_bonus_is_the_papers() {
    // λ = 1e-3, d = 3, t = 100: √0.001 + √(2·ln 100 + 3·ln(100.003 / 0.003)).
    let expected = 0.031_622_776_601_683_79 + (9.210_340_371_976_182_f64 + 3.0 * (100.003_f64 / 0.003).ln()).sqrt();
    assert!((sqrt_beta(1e-3, 3, 100) - expected).abs() < 1e-12);
    assert_eq!(sqrt_beta(1e-3, 3, 0), sqrt_beta(1e-3, 3, 1));
}
