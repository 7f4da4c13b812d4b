//! From a sequence's rows to one row.

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, bail};

use super::{read, slice, tensor};
use crate::{Segments, ops::simd::vectorised};

/// Mean over some rows of each segment; a segment without chosen rows gives zeros.
struct Mean {
    /// Row ranges within `[N, H]`, one per result row.
    ranges: Segments,
    /// The chosen rows of all segments, end to end; `ranges` counts in it.
    rows: Vec<u32>,
}

vectorised! {
    fn add_scaled(into: &mut [f32], row: &[f32], by: f32) -> () {
        for (into, x) in into.iter_mut().zip(row) {
            *into += x * by;
        }
    }
}

impl CustomOp1 for Mean {
    fn name(&self) -> &'static str {
        "segment-mean"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h) = at.shape().dims2()?;
        if self.rows.iter().any(|row| *row as usize >= n) {
            bail!("cannot pool rows beyond the {n} that there are");
        }
        let x = slice(x, at)?;
        let mut out = vec![0.0; self.ranges.len() * h];
        for (range, out) in self.ranges.iter().zip(out.chunks_exact_mut(h)) {
            let by = 1.0 / range.len().max(1) as f32;
            for row in &self.rows[range] {
                add_scaled(out, &x[*row as usize * h..][..h], by);
            }
        }
        Ok((CpuStorage::F32(out), (self.ranges.len(), h).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let h = x.dim(1)?;
        let mut dx = vec![0.0; x.elem_count()];
        read(grad, |grad| {
            for (range, g) in self.ranges.iter().zip(grad.chunks_exact(h)) {
                let by = 1.0 / range.len().max(1) as f32;
                for row in &self.rows[range] {
                    add_scaled(&mut dx[*row as usize * h..][..h], g, by);
                }
            }
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

/// Mean of each segment's rows of `x[N, H]` that `keep` chooses → `[segments, H]`; zeros where it chooses none.
///
/// # Errors
/// When `segments` reach beyond `x`.
pub fn segment_mean(x: &Tensor, segments: &Segments, keep: impl Fn(usize) -> bool) -> Result<Tensor> {
    let (mut rows, mut lengths) = (Vec::new(), Vec::with_capacity(segments.len()));
    for range in segments.iter() {
        let before = rows.len();
        rows.extend(range.filter(|row| keep(*row)).map(|row| row as u32));
        lengths.push(rows.len() - before);
    }
    let ranges = Segments::of_lengths(lengths);
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Mean { ranges, rows });
    }
    let means: Vec<Tensor> = ranges
        .iter()
        .map(|range| {
            if range.is_empty() {
                return Tensor::zeros((1, x.dim(1)?), x.dtype(), x.device());
            }
            select_rows(x, &rows[range])?.mean_keepdim(0)
        })
        .collect::<Result<_>>()?;
    Tensor::cat(&means, 0)
}

/// Rows `rows` of `x[N, H]`, in that order, differentiable: embedding lookup, chosen positions.
///
/// # Errors
/// When a row does not exist.
pub fn select_rows(x: &Tensor, rows: &[u32]) -> Result<Tensor> {
    x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)
}

/// Rows of `x[N, H]` scaled to unit length, differentiable; a row of zeros stays one.
///
/// # Errors
/// When the device fails.
pub fn l2_normalise(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-24)?.sqrt()?)
}
