//! A Gaussian belief over the weights θ of a linear reward (Eq. 2), learnt by rank-one updates.
//!
//! The truth is the information form, Λ = Σ⁻¹ and g = Λ·θ̂: updates only add to it, so it is as exact after 10⁷ of them as the sums of a batch
//! ridge regression. Σ and θ̂, which choosing needs, follow by Sherman and Morrison's formula, whose rounding adds up; so they are computed
//! afresh from Λ and g every `REFACTORISE_EVERY` updates.

/// Updates between two factorisations of Λ. At 64 dimensions one takes about 30 times the multiplications of an update.
const REFACTORISE_EVERY: u32 = 1_024;

/// The belief N(θ̂, Σ) over `dims` weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Posterior {
    dims: usize,
    /// Precision of the prior along every axis: no eigenvalue of Λ is below it.
    prior: f64,
    /// Λ, its lower triangle row by row, `[dims × (dims + 1) / 2]`.
    precision: Vec<f64>,
    /// g, `[dims]`.
    information: Vec<f64>,
    /// Σ, `[dims, dims]`, symmetric.
    covariance: Vec<f64>,
    /// θ̂, `[dims]`.
    mean: Vec<f64>,
    /// Updates since the last factorisation.
    since: u32,
}

impl Posterior {
    /// The prior N(`mean`, I / `precision`), with `precision` above zero.
    pub fn new(mean: &[f64], precision: f64) -> Self {
        let triangle = (0..mean.len()).flat_map(|row| (0..=row).map(move |column| if row == column { precision } else { 0.0 }));
        Self::of_information(precision, triangle.collect(), mean.iter().map(|weight| weight * precision).collect())
    }

    /// The belief of precision Λ (its lower triangle, row by row) and information g, `[dims]`, over a prior of precision `prior` that Λ
    /// contains.
    pub(crate) fn of_information(prior: f64, precision: Vec<f64>, information: Vec<f64>) -> Self {
        let dims = information.len();
        let (covariance, mean) = (vec![0.0; dims * dims], vec![0.0; dims]);
        let mut posterior = Self { dims, prior, precision, information, covariance, mean, since: 0 };
        posterior.refactorise();
        posterior
    }

    /// Number of weights.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// θ̂, `[dims]`.
    pub fn weights(&self) -> &[f64] {
        &self.mean
    }

    /// Whether everything in it is a number.
    pub(crate) fn is_finite(&self) -> bool {
        self.covariance.iter().chain(&self.mean).all(|value| value.is_finite())
    }

    /// Precision of the prior.
    pub(crate) fn prior(&self) -> f64 {
        self.prior
    }

    /// Λ, its lower triangle row by row.
    pub(crate) fn precision(&self) -> &[f64] {
        &self.precision
    }

    /// g, `[dims]`.
    pub(crate) fn information(&self) -> &[f64] {
        &self.information
    }

    /// ⟨x, θ̂⟩, for `x` of `dims` features.
    pub fn expectation(&self, x: &[f64]) -> f64 {
        dot(x, &self.mean)
    }

    /// xᵀΣx, never below zero, for `x` of `dims` features. Σ is symmetric, and of a product's features many are zero.
    pub fn variance(&self, x: &[f64]) -> f64 {
        let rows = self.covariance.chunks_exact(self.dims).zip(x).enumerate().filter(|(_, (_, weight))| **weight != 0.0);
        let part = |(at, (row, weight)): (usize, (&[f64], &f64))| weight * (2.0 * dot(&row[..at], &x[..at]) + row[at] * weight);
        rows.map(part).sum::<f64>().max(0.0)
    }

    /// Learns the reward of one `x` (Eq. 2): Λ += x·xᵀ, g += reward·x.
    pub fn observe(&mut self, x: &[f64], reward: f64) {
        self.absorb(x, 1.0, reward);
    }

    /// Takes in Λ += weight·x·xᵀ and g += information·x, as an observation of precision `weight` does.
    pub(crate) fn absorb(&mut self, x: &[f64], weight: f64, information: f64) {
        self.precise(x, weight, information);
        self.since += 1;
        if self.since >= REFACTORISE_EVERY {
            self.refactorise();
        } else {
            self.follow(x, weight, information);
        }
    }

    /// The information form, by addition alone.
    fn precise(&mut self, x: &[f64], weight: f64, information: f64) {
        for (row, of_row) in x.iter().enumerate() {
            add_scaled(&mut self.precision[triangle(row)..triangle(row + 1)], weight * of_row, x);
        }
        add_scaled(&mut self.information, information, x);
    }

    /// Σ and θ̂ after [`Posterior::precise`], by Sherman and Morrison's formula.
    fn follow(&mut self, x: &[f64], weight: f64, information: f64) {
        let spread: Vec<f64> = self.covariance.chunks_exact(self.dims).map(|row| dot(row, x)).collect();
        let scale = (1.0 + weight * dot(&spread, x).max(0.0)).recip();
        let surprise = information - weight * self.expectation(x);
        add_scaled(&mut self.mean, surprise * scale, &spread);
        let shrink = weight * scale;
        for (row, of_row) in self.covariance.chunks_exact_mut(self.dims).zip(&spread) {
            add_scaled(row, -shrink * of_row, &spread);
        }
    }

    /// Computes Σ and θ̂ afresh from Λ and g.
    pub fn refactorise(&mut self) {
        let factor = cholesky(&self.precision, self.dims, self.prior);
        for column in 0..self.dims {
            let mut unit = vec![0.0; self.dims];
            unit[column] = 1.0;
            solve(&factor, self.dims, &mut unit);
            self.covariance[column * self.dims..][..self.dims].copy_from_slice(&unit);
        }
        self.mean.copy_from_slice(&self.information);
        solve(&factor, self.dims, &mut self.mean);
        self.since = 0;
    }
}

/// Where a row begins in a lower triangle.
fn triangle(row: usize) -> usize {
    row * (row + 1) / 2
}

/// The lower factor L, `[dims, dims]`, of the matrix L·Lᵀ whose lower triangle is `matrix`. Its pivots are at least `least`: those of a matrix whose eigenvalues are at least that
/// large are, in exact arithmetic, so only what rounding took away comes back, and the factor always exists.
fn cholesky(matrix: &[f64], dims: usize, least: f64) -> Vec<f64> {
    let mut factor = vec![0.0; dims * dims];
    for row in 0..dims {
        for column in 0..=row {
            let rest = matrix[triangle(row) + column]
                - dot(&factor[row * dims..row * dims + column], &factor[column * dims..column * dims + column]);
            factor[row * dims + column] =
                if row == column { rest.max(least).sqrt() } else { rest / factor[column * dims + column] };
        }
    }
    factor
}

/// Solves L·Lᵀ·y = `values` in place.
fn solve(factor: &[f64], dims: usize, values: &mut [f64]) {
    for row in 0..dims {
        let known = dot(&factor[row * dims..row * dims + row], &values[..row]);
        values[row] = (values[row] - known) / factor[row * dims + row];
    }
    for row in (0..dims).rev() {
        let known: f64 = (row + 1..dims).map(|below| factor[below * dims + row] * values[below]).sum();
        values[row] = (values[row] - known) / factor[row * dims + row];
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(to: &mut [f64], scale: f64, values: &[f64]) {
    to.iter_mut().zip(values).for_each(|(to, value)| *to += scale * value);
}
