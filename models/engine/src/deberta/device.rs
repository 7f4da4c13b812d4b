//! DeBERTa's layers with plain tensor operations, for devices other than the CPU.

use candle_core::{D, DType, Tensor};

use super::{DebertaConfig, Layer};
use crate::{Norm, Result, Segments, ops};

/// Runs all layers over `x[rows, hidden]`.
pub(super) fn run(c: &DebertaConfig, layers: &[Layer], mut x: Tensor, segments: &Segments) -> Result<Tensor> {
    let norm = |x: &Tensor, norm: &Norm| ops::layer_norm(x, &norm.weight, &norm.bias, c.eps);
    for layer in layers {
        let qkv = layer.qkv.forward(&x)?;
        let attended = segments
            .iter()
            .filter(|rows| !rows.is_empty())
            .map(|rows| attend(c, layer, &qkv.narrow(0, rows.start, rows.len())?))
            .collect::<Result<Vec<_>>>()?;
        x = norm(&(x + layer.out.forward(&Tensor::cat(&attended, 0)?)?)?, &layer.attention_norm)?;
        let inner = ops::gelu(&layer.up.forward(&x)?, c.gelu)?;
        x = norm(&(&x + layer.down.forward(&inner)?)?, &layer.norm)?;
    }
    Ok(x)
}

/// Attention of one text's `[t, 3 · hidden]` → `[t, hidden]`.
fn attend(c: &DebertaConfig, layer: &Layer, qkv: &Tensor) -> Result<Tensor> {
    let (t, head) = (qkv.dim(0)?, c.hidden / c.heads);
    let by_head = |x: &Tensor| -> Result<Tensor> { Ok(x.reshape((x.dim(0)?, c.heads, head))?.transpose(0, 1)?.contiguous()?) };
    let part = |n: usize| by_head(&qkv.narrow(1, n * c.hidden, c.hidden)?.contiguous()?);
    let (q, k, v) = (part(0)?, part(1)?, part(2)?);
    let mut scores = q.matmul(&k.t()?)?.to_dtype(DType::F32)?;
    // Row q, column k: the place of the distance q − k; it serves both ways of looking, as buckets are symmetric.
    let places = |of: fn(i64, i64) -> i64| -> Result<Tensor> {
        let all = (0..t * t).map(|i| c.relative_row(of((i / t) as i64, (i % t) as i64)) as u32).collect();
        Ok(Tensor::from_vec::<_, u32>(all, (1, t, t), qkv.device())?.expand((c.heads, t, t))?.contiguous()?)
    };
    if let Some(keys) = &layer.position_keys {
        let all = q.matmul(&by_head(keys)?.t()?)?.to_dtype(DType::F32)?;
        scores = (scores + all.gather(&places(|q, k| q - k)?, D::Minus1)?)?;
    }
    if let Some(queries) = &layer.position_queries {
        let all = k.matmul(&by_head(queries)?.t()?)?.to_dtype(DType::F32)?;
        scores = (scores + all.gather(&places(|k, q| q - k)?, D::Minus1)?.t()?)?;
    }
    let scores = (scores / f64::from(c.score_scale()))?;
    let scores = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?.to_dtype(v.dtype())?;
    Ok(p.matmul(&v)?.transpose(0, 1)?.reshape((t, c.hidden))?)
}
