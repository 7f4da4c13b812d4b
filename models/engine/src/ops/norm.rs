//! Normalisation of rows, differentiable.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, DType, Layout, Result, Shape, Tensor};

use super::{read, slice, tensor};
use crate::ops::simd::{self, vectorised};

vectorised! {
    /// `out = x / rms(x) · w`, row by row.
    pub(crate) fn rms_rows(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> () {
        let h = w.len();
        for (x, out) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)) {
            let scale = 1.0 / (simd::dot(x, x) / h as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(w) {
                *out = x * scale * w;
            }
        }
    }
}

vectorised! {
    fn rms_backward(x: &[f32], w: &[f32], g: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) -> () {
        let h = w.len();
        let mut weighted = vec![0.0; h];
        for ((x, g), dx) in x.chunks_exact(h).zip(g.chunks_exact(h)).zip(dx.chunks_exact_mut(h)) {
            let scale = 1.0 / (simd::dot(x, x) / h as f32 + eps).sqrt();
            for i in 0..h {
                weighted[i] = g[i] * w[i];
                dw[i] += g[i] * x[i] * scale;
            }
            let pull = simd::dot(&weighted, x) * scale * scale * scale / h as f32;
            for i in 0..h {
                dx[i] = weighted[i] * scale - x[i] * pull;
            }
        }
    }
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, w: &CpuStorage, w_at: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; x_at.shape().elem_count()];
        rms_rows(slice(x, x_at)?, slice(w, w_at)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (mut dx, mut dw) = (vec![0.0; x.elem_count()], vec![0.0; w.elem_count()]);
        read(x, |x| read(w, |w| read(grad, |g| rms_backward(x, w, g, self.eps, &mut dx, &mut dw))))???;
        Ok((Some(tensor(dx, x.shape())?), w.track_op().then(|| tensor(dw, w.shape())).transpose()?))
    }
}

/// RMSNorm of the rows of `x[N, H]` with `w[H]`, differentiable in both.
///
/// # Errors
/// When sizes do not fit.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        check(x, w)?;
        return x.contiguous()?.apply_op2(w, RmsNorm { eps: eps as f32 });
    }
    let wide = x.to_dtype(DType::F32)?;
    let scale = (wide.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    wide.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(w)
}

fn check(x: &Tensor, w: &Tensor) -> Result<()> {
    if x.dim(D::Minus1)? != w.dims1()? {
        candle_core::bail!("cannot normalise {:?} with {:?}", x.shape(), w.shape());
    }
    Ok(())
}

#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = simd::sum(x) / x.len() as f32;
    let spread = {
        // Two passes: the difference of squares would lose digits.
        let mut lanes = [0.0f32; 32];
        let (blocks, rest) = x.as_chunks::<32>();
        for block in blocks {
            for i in 0..32 {
                lanes[i] += (block[i] - mean) * (block[i] - mean);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += (x - mean) * (x - mean);
        }
        simd::sum(&lanes)
    };
    (mean, 1.0 / (spread / x.len() as f32 + eps).sqrt())
}

vectorised! {
    /// `out = (x − mean) / deviation · w + b`, row by row.
    fn layer_rows(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) -> () {
        let h = w.len();
        for (x, out) in x.chunks_exact(h).zip(out.chunks_exact_mut(h)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..h {
                out[i] = (x[i] - mean) * scale * w[i] + b[i];
            }
        }
    }
}

vectorised! {
    /// [`layer_rows`] in place.
    pub(crate) fn layer_norm_in_place(x: &mut [f32], w: &[f32], b: &[f32], eps: f32) -> () {
        let h = w.len();
        for x in x.chunks_exact_mut(h) {
            let (mean, scale) = moments(x, eps);
            for ((x, w), b) in x.iter_mut().zip(w).zip(b) {
                *x = (*x - mean) * scale * w + b;
            }
        }
    }
}

vectorised! {
    fn layer_backward(x: &[f32], w: &[f32], g: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32], db: &mut [f32]) -> () {
        let h = w.len();
        let (mut unit, mut weighted) = (vec![0.0; h], vec![0.0; h]);
        for ((x, g), dx) in x.chunks_exact(h).zip(g.chunks_exact(h)).zip(dx.chunks_exact_mut(h)) {
            let (mean, scale) = moments(x, eps);
            for i in 0..h {
                unit[i] = (x[i] - mean) * scale;
                weighted[i] = g[i] * w[i];
                dw[i] += g[i] * unit[i];
                db[i] += g[i];
            }
            let (level, pull) = (simd::sum(&weighted) / h as f32, simd::dot(&weighted, &unit) / h as f32);
            for i in 0..h {
                dx[i] = scale * (weighted[i] - level - unit[i] * pull);
            }
        }
    }
}

struct LayerNorm {
    eps: f32,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        w: &CpuStorage,
        w_at: &Layout,
        b: &CpuStorage,
        b_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let mut out = vec![0.0; x_at.shape().elem_count()];
        layer_rows(slice(x, x_at)?, slice(w, w_at)?, slice(b, b_at)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), x_at.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let h = w.elem_count();
        let (mut dx, mut dw, mut db) = (vec![0.0; x.elem_count()], vec![0.0; h], vec![0.0; h]);
        read(x, |x| read(w, |w| read(grad, |g| layer_backward(x, w, g, self.eps, &mut dx, &mut dw, &mut db))))???;
        Ok((
            Some(tensor(dx, x.shape())?),
            w.track_op().then(|| tensor(dw, w.shape())).transpose()?,
            b.track_op().then(|| tensor(db, b.shape())).transpose()?,
        ))
    }
}

/// LayerNorm of the rows of `x[N, H]` with `w[H]` and `b[H]`, differentiable in all three.
///
/// # Errors
/// When sizes do not fit.
pub fn layer_norm(x: &Tensor, w: &Tensor, b: &Tensor, eps: f64) -> Result<Tensor> {
    if x.device().is_cpu() {
        check(x, w)?;
        check(x, b)?;
        return x.contiguous()?.apply_op3(w, b, LayerNorm { eps: eps as f32 });
    }
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&scale)?.to_dtype(x.dtype())?.broadcast_mul(w)?.broadcast_add(b)
}
