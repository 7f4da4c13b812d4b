//! Losses, differentiable.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};

use super::{read, slice, tensor};
use crate::ops::simd::{self, vectorised};

/// Σ weight · −log softmax(logits)[target] over the rows of `[N, V]`.
struct CrossEntropy {
    targets: Arc<[u32]>,
    weights: Arc<[f32]>,
}

vectorised! {
    /// `e^(x − max)` of a row; returns the row's largest value and the sum.
    fn exponentials(row: &[f32], out: &mut [f32]) -> (f32, f32) {
        let largest = simd::max(row);
        for (out, x) in out.iter_mut().zip(row) {
            *out = simd::exp(x - largest);
        }
        (largest, simd::sum(out))
    }
}

vectorised! {
    fn scale(row: &mut [f32], by: f32) -> () {
        for x in row {
            *x *= by;
        }
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, v) = at.shape().dims2()?;
        if n != self.targets.len() || self.targets.iter().any(|target| *target as usize >= v) {
            bail!("{} targets do not fit logits of {n} × {v}", self.targets.len());
        }
        let mut buffer = vec![0.0; v];
        let rows = slice(logits, at)?.chunks_exact(v).zip(self.targets.iter()).zip(self.weights.iter());
        let total: f64 = rows
            .map(|((row, target), weight)| {
                let (largest, sum) = exponentials(row, &mut buffer);
                f64::from((largest + sum.ln() - row[*target as usize]) * weight)
            })
            .sum();
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (n, v) = logits.dims2()?;
        let grad = grad.to_scalar::<f32>()?;
        let mut out = vec![0.0; n * v];
        read(logits, |logits| {
            for (r, (row, out)) in logits.chunks_exact(v).zip(out.chunks_exact_mut(v)).enumerate() {
                let weight = grad * self.weights[r];
                let (_, sum) = exponentials(row, out);
                scale(out, weight / sum);
                out[self.targets[r] as usize] -= weight;
            }
        })?;
        tensor(out, (n, v)).map(Some)
    }
}

/// Σ `weights[r]` · −log softmax(`logits[r]`)[`targets[r]`], a scalar: divide by the sum of weights for a mean.
///
/// # Errors
/// When targets or weights do not fit `logits[N, V]`.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    if targets.len() != weights.len() {
        bail!("{} targets with {} weights", targets.len(), weights.len());
    }
    if logits.device().is_cpu() {
        return logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.into(), weights: weights.into() });
    }
    let device = logits.device();
    let wide = logits.to_dtype(DType::F32)?;
    let shifted = wide.broadcast_sub(&wide.max_keepdim(1)?.detach())?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), device)?;
    let lost = (shifted.exp()?.sum_keepdim(1)?.log()? - shifted.gather(&targets, 1)?)?.squeeze(1)?;
    (lost * Tensor::from_slice(weights, weights.len(), device)?)?.sum_all()
}

/// Σ weight · BCE(sigmoid(x), target).
struct BinaryCrossEntropy {
    targets: Arc<[f32]>,
    weights: Arc<[f32]>,
}

impl CustomOp1 for BinaryCrossEntropy {
    fn name(&self) -> &'static str {
        "binary-cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let total: f64 = slice(logits, at)?
            .iter()
            .zip(self.targets.iter())
            .zip(self.weights.iter())
            .map(|((x, target), weight)| f64::from(weight * (x.max(0.0) - x * target + (-x.abs()).exp().ln_1p())))
            .sum();
        Ok((CpuStorage::F32(vec![total as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.to_scalar::<f32>()?;
        let out = read(logits, |logits| {
            let rows = logits.iter().zip(self.targets.iter()).zip(self.weights.iter());
            rows.map(|((x, target), weight)| grad * weight * (simd::sigmoid(*x) - target)).collect()
        })?;
        tensor(out, logits.shape()).map(Some)
    }
}

/// Σ `weights[i]` · BCE(sigmoid(`logits[i]`), `targets[i]`), a scalar; `logits` has any shape of that many values.
///
/// # Errors
/// When targets or weights do not fit.
pub fn binary_cross_entropy(logits: &Tensor, targets: &[f32], weights: &[f32]) -> Result<Tensor> {
    if logits.elem_count() != targets.len() || targets.len() != weights.len() {
        bail!("{} logits, {} targets, {} weights", logits.elem_count(), targets.len(), weights.len());
    }
    if logits.device().is_cpu() {
        return logits.contiguous()?.apply_op1(BinaryCrossEntropy { targets: targets.into(), weights: weights.into() });
    }
    let x = logits.flatten_all()?.to_dtype(DType::F32)?;
    let on = |values: &[f32]| Tensor::from_slice(values, values.len(), x.device());
    let softplus = ((x.abs()?.neg()?.exp()? + 1.0)?.log()? + x.relu()?)?;
    ((softplus - (&x * on(targets)?)?)? * on(weights)?)?.sum_all()
}

/// Mean of (1 − cosine) over the rows of `a[N, H]` and `b[N, H]`, a scalar; rows need no unit length.
///
/// # Errors
/// When shapes differ.
pub fn cosine_loss(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let cosines = (super::l2_normalise(a)? * super::l2_normalise(b)?)?.sum(D::Minus1)?;
    1.0 - cosines.mean_all()?
}

/// Mean squared difference, a scalar.
///
/// # Errors
/// When shapes differ.
pub fn mse_loss(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    (a - b)?.sqr()?.mean_all()
}
