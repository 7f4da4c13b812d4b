//! One stage: LinUCB over its own features, with the synchronisation that a nominator does (section 3.2).

use super::Posterior;

/// What a stage thinks of an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Expected reward, ⟨φ, θ̂⟩.
    pub mean: f64,
    /// Standard deviation of that expectation, ‖φ‖_Σ.
    pub deviation: f64,
    /// What exploring it is worth, √β·‖φ‖_Σ.
    pub bonus: f64,
}

impl Score {
    /// The upper confidence bound that items are chosen by (Eq. 3).
    pub fn ucb(&self) -> f64 {
        self.bound(1.0)
    }

    /// The bound with `exploration` times the bonus. Eq. 3's bonus is for noise of about 1; rewards that scatter less need so much less of it.
    pub fn bound(&self, exploration: f64) -> f64 {
        self.mean + exploration * self.bonus
    }
}

/// A stage that chooses by its upper confidence bound.
#[derive(Debug, Clone, PartialEq)]
pub struct LinUcb {
    posterior: Posterior,
    lambda: f64,
    observations: u64,
    /// √β for the next choice.
    width: f64,
}

impl LinUcb {
    /// A stage over `dims` features that has seen nothing: prior N(0, I / `lambda`), `lambda` above zero.
    pub fn new(dims: usize, lambda: f64) -> Self {
        Self::pretrained(&vec![0.0; dims], lambda, lambda)
    }

    /// A stage that begins at the belief N(`weights`, I / `precision`). Its bonus still comes from `lambda`, as every stage's does: with the
    /// higher precision of its own prior a pre-trained stage would explore more than one that knows nothing.
    pub fn pretrained(weights: &[f64], precision: f64, lambda: f64) -> Self {
        Self::of(Posterior::new(weights, precision), lambda, 0)
    }

    /// A stage of this belief after so many observations.
    pub(crate) fn of(posterior: Posterior, lambda: f64, observations: u64) -> Self {
        let width = sqrt_beta(lambda, posterior.dims(), observations);
        Self { posterior, lambda, observations, width }
    }

    /// Number of features.
    pub fn dims(&self) -> usize {
        self.posterior.dims()
    }

    /// Regularisation λ, which the bonus comes from.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// Rewards that were observed, synchronisation left out.
    pub fn observations(&self) -> u64 {
        self.observations
    }

    /// What it believes.
    pub fn posterior(&self) -> &Posterior {
        &self.posterior
    }

    /// What it thinks of an item with features `x`, `[dims]`.
    pub fn score(&self, x: &[f64]) -> Score {
        let deviation = self.posterior.variance(x).sqrt();
        Score { mean: self.posterior.expectation(x), deviation, bonus: self.width * deviation }
    }

    /// Learns the reward of an item that was shown.
    pub fn observe(&mut self, x: &[f64], reward: f64) {
        self.posterior.observe(x, reward);
        self.observations += 1;
        self.width = sqrt_beta(self.lambda, self.dims(), self.observations);
    }

    /// Adds to the reward of an item that was observed before: what is known of it grows no surer.
    pub fn amend(&mut self, x: &[f64], more: f64) {
        self.posterior.absorb(x, 0.0, more);
    }

    /// Takes over what the ranker thinks of the item with features `x`, `[dims]`, where this stage is strictly more uncertain about it (Eq. 7);
    /// says whether it was.
    ///
    /// The closest belief that agrees, θ̂ += Σx(m − mₙ)/vₙ and Σ −= Σx·xᵀΣ·c/(1 + c·vₙ) with c = 1/v − 1/vₙ, is the one after an observation of
    /// precision c that carries the information m/v − mₙ/vₙ. So Σ stays positive definite, and one kind of update is enough.
    pub fn synchronise(&mut self, x: &[f64], ranker: &Score) -> bool {
        let (mean, variance) = (self.posterior.expectation(x), self.posterior.variance(x));
        let target = (ranker.deviation * ranker.deviation).max(variance * CERTAINTY);
        if variance * (1.0 - ROUNDING) <= target {
            return false;
        }
        self.posterior.absorb(x, target.recip() - variance.recip(), ranker.mean / target - mean / variance);
        true
    }

    /// Whether it can score anything.
    pub(crate) fn is_finite(&self) -> bool {
        self.posterior.is_finite() && self.width.is_finite()
    }

    /// Computes what follows from the belief afresh.
    pub(crate) fn refactorise(&mut self) {
        self.posterior.refactorise();
    }
}

/// Largest step of one synchronisation, as the ratio of variances: a ranker may be certain (an item without any feature), a nominator that
/// learns by finite precision may not.
const CERTAINTY: f64 = 1e-9;
/// Variances nearer than this, relatively, are the same: after a synchronisation they differ by rounding.
const ROUNDING: f64 = 1e-9;

/// √β after `observations` (section 2, after Eq. 3): √λ + √(2·ln t + d·ln((d·λ + t)/(d·λ))), where t is at least 1, as ln 0 has no value.
pub fn sqrt_beta(lambda: f64, dims: usize, observations: u64) -> f64 {
    let (t, d) = (observations.max(1) as f64, dims as f64);
    lambda.sqrt() + (2.0 * t.ln() + d * ((d * lambda + t) / (d * lambda)).ln()).sqrt()
}
