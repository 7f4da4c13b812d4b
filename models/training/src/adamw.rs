//! AdamW in place, with the gradient's norm clipped.

use crate::params::{Gradients, Params};

/// Settings of the optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamWConfig {
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    /// On matrices only; vectors (norms, biases) are not decayed.
    pub(crate) weight_decay: f32,
    /// Largest norm of the whole gradient.
    pub(crate) clip: f32,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.98, weight_decay: 0.05, clip: 1.0 }
    }
}

/// First and second moments of the trained tensors, in the order of [`Params`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AdamW {
    pub(crate) config: AdamWConfig,
    pub(crate) steps: u64,
    pub(crate) moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    pub(crate) fn new(params: &Params, config: AdamWConfig) -> Self {
        let moments = params.trained().map(|param| (vec![0.0; param.value.len()], vec![0.0; param.value.len()])).collect();
        Self { config, steps: 0, moments }
    }

    /// Moves the trained tensors of `params` against `gradients`; returns the gradient's norm before clipping.
    pub(crate) fn step(&mut self, params: &mut Params, gradients: &Gradients, rate: f32) -> f32 {
        let norm = gradients.iter().map(|gradient| squares(gradient)).sum::<f64>().sqrt() as f32;
        let scale = if norm > self.config.clip { self.config.clip / norm } else { 1.0 };
        self.steps += 1;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let AdamWConfig { beta1, beta2, weight_decay, .. } = self.config;
        let unbias = (1.0 / (1.0 - beta1.powi(exponent)), 1.0 / (1.0 - beta2.powi(exponent)));
        let trained = params.0.iter_mut().filter(|param| param.trained);
        for ((param, gradient), (first, second)) in trained.zip(gradients).zip(&mut self.moments) {
            let keep = if param.shape.len() > 1 { 1.0 - rate * weight_decay } else { 1.0 };
            for (((x, g), m), v) in param.value.iter_mut().zip(gradient).zip(first).zip(second) {
                let g = g * scale;
                *m = beta1 * *m + (1.0 - beta1) * g;
                *v = beta2 * *v + (1.0 - beta2) * g * g;
                *x = *x * keep - rate * (*m * unbias.0) / ((*v * unbias.1).sqrt() + 1e-8);
            }
        }
        norm
    }
}

fn squares(values: &[f32]) -> f64 {
    values.chunks(4096).map(|chunk| f64::from(chunk.iter().map(|x| x * x).sum::<f32>())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_the_rate_in_the_gradients_direction_and_decays_matrices_only() {
        let mut params = Params::default();
        params.push("matrix", &[1, 2], vec![1.0, 1.0]);
        params.push("vector", &[2], vec![1.0, 1.0]);
        let mut optimiser = AdamW::new(&params, AdamWConfig::default());
        let norm = optimiser.step(&mut params, &vec![vec![0.3, -0.3], vec![0.3, -0.3]], 0.1);
        assert!((norm - 0.6).abs() < 1e-6, "{norm}");
        for (param, expected) in params.0.iter().zip([[0.895, 1.095], [0.9, 1.1]]) {
            for (value, expected) in param.value.iter().zip(expected) {
                assert!((value - expected).abs() < 1e-4, "{}: {value} instead of {expected}", param.name);
            }
        }
    }

    #[test]
    fn a_quadratic_bowl_is_descended_to_its_floor() {
        let mut params = Params::default();
        params.push("x", &[3], vec![3.0, -2.0, 1.0]);
        let mut optimiser = AdamW::new(&params, AdamWConfig::default());
        for _ in 0..2_000 {
            let gradient = params.0[0].value.iter().map(|x| 2.0 * (x - 0.5)).collect();
            optimiser.step(&mut params, &vec![gradient], 0.01);
        }
        for x in &params.0[0].value {
            assert!((x - 0.5).abs() < 0.02, "{x}");
        }
    }
}
