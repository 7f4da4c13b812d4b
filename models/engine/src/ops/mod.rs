//! Differentiable operations on packed rows: fused custom operations on the CPU (f32, one thread), plain tensor operations elsewhere.
//!
//! On the CPU a row's (or segment's) result has the same bits whatever else is in the batch. Gradients of tensors that nobody trains
//! (neither variables nor computed from one) are not computed.

mod activation;
mod attention;
pub(crate) mod kernels;
mod lanes;
mod linear;
mod loss;
mod norm;
mod packed;
mod pool;
pub(crate) mod simd;

pub use activation::{Gelu, gelu, swiglu};
pub(crate) use attention::attend;
pub use attention::{Attention, Rope, attention};
pub use linear::{linear, linear_t};
pub use loss::{binary_cross_entropy, cosine_loss, cross_entropy, mse_loss};
pub use norm::{layer_norm, rms_norm};
pub(crate) use packed::PackedMatrix;
pub use pool::{l2_normalise, segment_mean, select_rows};

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// The values of a contiguous f32 tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a fused operation needs contiguous values"),
    }
}

/// Lends the values of an f32 tensor on the CPU to `look`.
pub(crate) fn read<R>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(look(slice(storage, layout)?)),
        _ => bail!("a fused operation runs on the cpu only"),
    }
}

/// A tensor of `values` on the CPU.
pub(crate) fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

#[cfg(test)]
mod tests;
