//! A linear layer as the models hold it: `[in, out]`, fused where several layers read the same rows.

use candle_core::Tensor;

use crate::{
    Result,
    ops::{self, PackedMatrix},
};

/// A linear layer. Its weight's gradient is computed only when the weight is trained.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// A layer of `weight[in, out]` and `bias[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// `x[N, in]` → `[N, out]`, differentiable.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(ops::linear(x, &self.weight, self.bias.as_ref())?)
    }

    /// Adds the low-rank update `scale · B · A` of `a[rank, in]` and `b[columns, rank]` to the columns from `first` on.
    ///
    /// # Errors
    /// When the update does not fit.
    pub(crate) fn add_low_rank(&mut self, a: &Tensor, b: &Tensor, scale: f64, first: usize) -> Result<()> {
        let like = |x: &Tensor| x.to_dtype(self.weight.dtype())?.to_device(self.weight.device());
        let (columns, outputs) = (b.dim(0)?, self.weight.dim(1)?);
        let delta = (like(b)?.matmul(&like(a)?)?.t()? * scale)?;
        self.weight = (&self.weight + delta.pad_with_zeros(1, first, outputs - first - columns)?.contiguous()?)?;
        Ok(())
    }
}

/// A tensor's values, as f32 on the CPU.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(ops::read(tensor, <[f32]>::to_vec)?)
}

/// A linear layer as the CPU kernels read it.
pub(crate) fn pack(linear: &Linear) -> Result<PackedMatrix> {
    let (inputs, outputs) = linear.weight.dims2()?;
    let bias = linear.bias.as_ref().map(values).transpose()?;
    Ok(ops::read(&linear.weight, |w| PackedMatrix::new(w, inputs, outputs, bias))?)
}
