//! Activations, differentiable and vectorised.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

use super::{read, slice, tensor};
use crate::ops::simd::{self, vectorised};

vectorised! {
    /// `out = silu(gate) · up` for rows `[gate | up]` of `2 · inner` values.
    pub(crate) fn swiglu_rows(x: &[f32], inner: usize, out: &mut [f32]) -> () {
        for (x, out) in x.chunks_exact(2 * inner).zip(out.chunks_exact_mut(inner)) {
            let (gate, up) = x.split_at(inner);
            for i in 0..inner {
                out[i] = gate[i] * simd::sigmoid(gate[i]) * up[i];
            }
        }
    }
}

vectorised! {
    fn swiglu_backward(x: &[f32], g: &[f32], inner: usize, dx: &mut [f32]) -> () {
        for ((x, g), dx) in x.chunks_exact(2 * inner).zip(g.chunks_exact(inner)).zip(dx.chunks_exact_mut(2 * inner)) {
            let (gate, up) = x.split_at(inner);
            let (dgate, dup) = dx.split_at_mut(inner);
            for i in 0..inner {
                let s = simd::sigmoid(gate[i]);
                dgate[i] = g[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
                dup[i] = g[i] * gate[i] * s;
            }
        }
    }
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, both) = at.shape().dims2()?;
        if both % 2 != 0 {
            bail!("swiglu needs gate and up of one size, got {both} columns");
        }
        let mut out = vec![0.0; n * both / 2];
        swiglu_rows(slice(x, at)?, both / 2, &mut out);
        Ok((CpuStorage::F32(out), (n, both / 2).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        let inner = x.dim(1)? / 2;
        read(x, |x| read(grad, |g| swiglu_backward(x, g, inner, &mut dx)))??;
        tensor(dx, x.shape()).map(Some)
    }
}

/// `silu(gate) · up` of `x[N, 2 · inner]` = `[gate | up]` → `[N, inner]`.
///
/// # Errors
/// When `x` is not a matrix with an even number of columns.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(SwiGlu);
    }
    let inner = x.dim(D::Minus1)? / 2;
    x.narrow(D::Minus1, 0, inner)?.contiguous()?.silu()? * x.narrow(D::Minus1, inner, inner)?.contiguous()?
}

/// Which GELU a checkpoint was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    /// `x · Φ(x)`, with the error function.
    Erf,
    /// The hyperbolic tangent's approximation.
    Tanh,
}

const FRAC_1_SQRT_TAU: f32 = 0.398_942_3;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

vectorised! {
    /// Exact GELU in place.
    pub(crate) fn gelu_erf_in_place(x: &mut [f32]) -> () {
        for x in x {
            *x = 0.5 * *x * (1.0 + simd::erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

vectorised! {
    /// The other GELU in place.
    pub(crate) fn gelu_tanh_in_place(x: &mut [f32]) -> () {
        for x in x {
            *x = 0.5 * *x * (1.0 + simd::tanh(SQRT_2_OVER_PI * (*x + CUBIC * *x * *x * *x)));
        }
    }
}

vectorised! {
    fn gelu_erf_backward(x: &[f32], g: &[f32], dx: &mut [f32]) -> () {
        for ((x, g), dx) in x.iter().zip(g).zip(dx) {
            let below = 0.5 * (1.0 + simd::erf(*x * std::f32::consts::FRAC_1_SQRT_2));
            *dx = g * (below + x * FRAC_1_SQRT_TAU * simd::exp(-0.5 * x * x));
        }
    }
}

vectorised! {
    fn gelu_tanh_backward(x: &[f32], g: &[f32], dx: &mut [f32]) -> () {
        for ((x, g), dx) in x.iter().zip(g).zip(dx) {
            let t = simd::tanh(SQRT_2_OVER_PI * (*x + CUBIC * x * x * x));
            let slope = SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            *dx = g * (0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope);
        }
    }
}

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = slice(x, at)?.to_vec();
        match self {
            Self::Erf => gelu_erf_in_place(&mut out),
            Self::Tanh => gelu_tanh_in_place(&mut out),
        }
        Ok((CpuStorage::F32(out), at.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; x.elem_count()];
        read(x, |x| {
            read(grad, |g| match self {
                Self::Erf => gelu_erf_backward(x, g, &mut dx),
                Self::Tanh => gelu_tanh_backward(x, g, &mut dx),
            })
        })??;
        tensor(dx, x.shape()).map(Some)
    }
}

/// GELU of every value, within 1e-6 of the exact function.
///
/// # Errors
/// When the device fails.
pub fn gelu(x: &Tensor, kind: Gelu) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(kind);
    }
    match kind {
        Gelu::Erf => x.gelu_erf(),
        Gelu::Tanh => x.gelu(),
    }
}
