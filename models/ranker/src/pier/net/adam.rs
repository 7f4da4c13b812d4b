//! Adam (section 5.1.3 of the paper names it, with a rate of 10⁻³).

use super::Weights;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// First and second moments of all weights, in their order.
pub(crate) struct Adam {
    steps: i32,
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Adam {
    pub(crate) fn new(weights: &Weights) -> Self {
        let moments = weights.0.iter().map(|weight| (vec![0.0; weight.values.len()], vec![0.0; weight.values.len()])).collect();
        Self { steps: 0, moments }
    }

    /// Moves the weights against their gradients.
    pub(crate) fn step(&mut self, weights: &mut Weights, gradients: &[Vec<f32>], rate: f32) {
        self.steps = self.steps.saturating_add(1);
        let unbias = (1.0 / (1.0 - BETA1.powi(self.steps)), 1.0 / (1.0 - BETA2.powi(self.steps)));
        for ((weight, gradient), (first, second)) in weights.0.iter_mut().zip(gradients).zip(&mut self.moments) {
            for (((x, g), m), v) in weight.values.iter_mut().zip(gradient).zip(first).zip(second) {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *x -= rate * (*m * unbias.0) / ((*v * unbias.1).sqrt() + EPSILON);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quadratic_bowl_is_descended_to_its_floor() {
        let mut weights = Weights::default();
        weights.push("x".to_owned(), &[3], vec![3.0, -2.0, 1.0]);
        let mut adam = Adam::new(&weights);
        for _ in 0..2_000 {
            let gradient = weights.0[0].values.iter().map(|x| 2.0 * (x - 0.5)).collect();
            adam.step(&mut weights, &[gradient], 0.01);
        }
        for x in &weights.0[0].values {
            assert!((x - 0.5).abs() < 0.02, "{x}");
        }
    }
}
