//! A linear layer as the models hold it: `[in, out]`, fused where several layers read the same rows, with low-rank parts in training.

use candle_core::Tensor;

use crate::{
    EngineError, Result,
    ops::{self, PackedMatrix},
};

/// A linear layer. Its weight's gradient is computed only when the weight is trained.
#[derive(Debug, Clone)]
pub struct Linear {
    /// `[in, out]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// Low-rank updates that are still being trained; empty once merged.
    pub low_rank: Vec<LowRank>,
}

/// A low-rank update `scale · B · A` of some columns of a fused layer.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `[rank, in]`.
    pub a: Tensor,
    /// `[columns, rank]`.
    pub b: Tensor,
    /// alpha / rank.
    pub scale: f64,
    /// First column of the fused layer that it changes.
    pub first: usize,
}

impl LowRank {
    /// Columns that it changes.
    fn columns(&self) -> Result<usize> {
        Ok(self.b.dim(0)?)
    }

    /// The change as a matrix of the fused layer's shape, `[in, out]`.
    fn delta(&self, outputs: usize) -> Result<Tensor> {
        let delta = (self.b.matmul(&self.a)?.t()? * self.scale)?;
        Ok(delta.pad_with_zeros(1, self.first, outputs - self.first - self.columns()?)?.contiguous()?)
    }
}

impl Linear {
    /// A layer of `weight[in, out]` and `bias[out]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, low_rank: Vec::new() }
    }

    /// `x[N, in]` → `[N, out]`, differentiable.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let base = ops::linear(x, &self.weight, self.bias.as_ref())?;
        if self.low_rank.is_empty() {
            return Ok(base);
        }
        let outputs = self.weight.dim(1)?;
        self.low_rank.iter().try_fold(base, |sum, part| {
            let change = (ops::linear_t(&ops::linear_t(x, &part.a, None)?, &part.b, None)? * part.scale)?;
            let change = change.pad_with_zeros(1, part.first, outputs - part.first - part.columns()?)?;
            Ok((sum + change)?)
        })
    }

    /// The layer with its low-rank updates added to the weight.
    ///
    /// # Errors
    /// When an update does not fit.
    pub fn merged(&self) -> Result<Self> {
        let outputs = self.weight.dim(1)?;
        let weight = self
            .low_rank
            .iter()
            .try_fold(self.weight.clone(), |sum, part| -> Result<Tensor> { Ok((sum + part.delta(outputs)?)?) })?;
        Ok(Self { weight, bias: self.bias.clone(), low_rank: Vec::new() })
    }
}

/// A tensor's values, as f32 on the CPU.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(ops::read(tensor, <[f32]>::to_vec)?)
}

/// A linear layer as the CPU kernels read it.
pub(crate) fn pack(linear: &Linear) -> Result<PackedMatrix> {
    if !linear.low_rank.is_empty() {
        return Err(EngineError::model("merge the adapter before a step"));
    }
    let (inputs, outputs) = linear.weight.dims2()?;
    let bias = linear.bias.as_ref().map(values).transpose()?;
    Ok(ops::read(&linear.weight, |w| PackedMatrix::new(w, inputs, outputs, bias))?)
}
