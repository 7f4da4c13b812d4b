//! Fused operations. Each has its gradient beside it; a test holds both against finite differences.

use candle_core::{CpuStorage, CustomOp1, CustomOp3, D, Device, Layout, Result, Shape, Storage, Tensor, bail};
use gemm::Parallelism;

/// The values of a contiguous f32 tensor.
fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("a fused operation needs contiguous values"),
    }
}

/// Lends the values of an f32 tensor to `look`.
pub(super) fn read<R>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(look(slice(storage, layout)?)),
        _ => bail!("a fused operation runs on the cpu only"),
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(values, shape.into(), &Device::Cpu)
}

/// A factor of a product: row-major values, and whether they are read transposed.
#[derive(Clone, Copy)]
struct Factor<'a>(&'a [f32], bool);

/// `a[m, k] · b[k, n]` on one thread.
fn product([m, n, k]: [usize; 3], a: Factor, b: Factor) -> Vec<f32> {
    assert!(a.0.len() == m * k && b.0.len() == k * n, "sizes of a product do not fit");
    let mut out = vec![0.0; m * n];
    let steps = |Factor(_, transposed): Factor, rows: usize, columns: usize| {
        if transposed { (1, rows as isize) } else { (columns as isize, 1) }
    };
    let ((a_row, a_column), (b_row, b_column)) = (steps(a, m, k), steps(b, k, n));
    // SAFETY: both factors and the result cover their sizes, which were checked above, and the result is a buffer of its own.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.0.as_ptr(),
            a_column,
            a_row,
            b.0.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
    out
}

struct Linear {
    relu: bool,
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let ((rows, inputs), (_, outputs)) = (x_at.shape().dims2()?, w_at.shape().dims2()?);
        let mut out = product([rows, outputs, inputs], Factor(slice(x, x_at)?, false), Factor(slice(w, w_at)?, false));
        let bias = slice(b, b_at)?;
        let floor = if self.relu { 0.0 } else { f32::NEG_INFINITY };
        for row in out.chunks_exact_mut(outputs) {
            row.iter_mut().zip(bias).for_each(|(x, b)| *x = (*x + b).max(floor));
        }
        Ok((CpuStorage::F32(out), (rows, outputs).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((rows, inputs), (_, outputs)) = (x.dims2()?, w.dims2()?);
        let mut grad = read(grad, <[f32]>::to_vec)?;
        if self.relu {
            read(out, |out| grad.iter_mut().zip(out).for_each(|(g, out)| *g = if *out > 0.0 { *g } else { 0.0 }))?;
        }
        let mut bias = vec![0.0; outputs];
        for row in grad.chunks_exact(outputs) {
            bias.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        let to_x = match x.track_op() {
            true => Some(read(w, |w| product([rows, inputs, outputs], Factor(&grad, false), Factor(w, true)))?),
            // Nothing is trained behind it.
            false => None,
        };
        let to_w = read(x, |x| product([inputs, outputs, rows], Factor(x, true), Factor(&grad, false)))?;
        let to_x = to_x.map(|values| tensor(values, x.shape())).transpose()?;
        Ok((to_x, Some(tensor(to_w, w.shape())?), Some(tensor(bias, b.shape())?)))
    }
}

/// `x[N, I] · w[I, O] + b[O]`, and nothing below zero where `relu`.
pub(super) fn linear(x: &Tensor, w: &Tensor, b: &Tensor, relu: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op3(w, b, Linear { relu })
}

struct SelfAttention {
    /// Rows of a group.
    rows: usize,
    /// Whether a row attends to the others alone.
    others_only: bool,
}

impl SelfAttention {
    /// Weights of one group, `[rows, rows]`; `x` is `[rows, 3 · dims]`, each row query, key and value.
    fn weights(&self, x: &[f32], dims: usize, weights: &mut [f32]) {
        let scale = 1.0 / (dims as f32).sqrt();
        for (i, weights) in weights.chunks_exact_mut(self.rows).enumerate() {
            let query = &x[i * 3 * dims..][..dims];
            for (j, weight) in weights.iter_mut().enumerate() {
                let key = &x[(j * 3 + 1) * dims..][..dims];
                let score = query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * scale;
                *weight = if self.others_only && i == j { f32::NEG_INFINITY } else { score };
            }
            let highest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.iter_mut().for_each(|weight| *weight = (*weight - highest).exp());
            let total: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= total);
        }
    }

    fn forward(&self, x: &[f32], dims: usize, out: &mut [f32]) {
        let mut weights = vec![0.0; self.rows * self.rows];
        for (x, out) in x.chunks_exact(self.rows * 3 * dims).zip(out.chunks_exact_mut(self.rows * dims)) {
            self.weights(x, dims, &mut weights);
            for (out, weights) in out.chunks_exact_mut(dims).zip(weights.chunks_exact(self.rows)) {
                for (j, weight) in weights.iter().enumerate() {
                    let value = &x[(j * 3 + 2) * dims..][..dims];
                    out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
                }
            }
        }
    }

    fn backward(&self, x: &[f32], grad: &[f32], dims: usize, to_x: &mut [f32]) {
        let (mut weights, mut to_weights) = (vec![0.0; self.rows * self.rows], vec![0.0; self.rows]);
        let scale = 1.0 / (dims as f32).sqrt();
        let groups = x.chunks_exact(self.rows * 3 * dims).zip(grad.chunks_exact(self.rows * dims));
        for ((x, grad), to_x) in groups.zip(to_x.chunks_exact_mut(self.rows * 3 * dims)) {
            self.weights(x, dims, &mut weights);
            for (i, (grad, weights)) in grad.chunks_exact(dims).zip(weights.chunks_exact(self.rows)).enumerate() {
                for (j, weight) in weights.iter().enumerate() {
                    let at = (j * 3 + 2) * dims;
                    to_weights[j] = grad.iter().zip(&x[at..at + dims]).map(|(g, value)| g * value).sum();
                    to_x[at..at + dims].iter_mut().zip(grad).for_each(|(to, g)| *to += weight * g);
                }
                let mean: f32 = weights.iter().zip(&to_weights).map(|(weight, to)| weight * to).sum();
                for (j, weight) in weights.iter().enumerate() {
                    let to_score = weight * (to_weights[j] - mean) * scale;
                    let (query, key) = (i * 3 * dims, (j * 3 + 1) * dims);
                    for dim in 0..dims {
                        to_x[query + dim] += to_score * x[key + dim];
                        to_x[key + dim] += to_score * x[query + dim];
                    }
                }
            }
        }
    }
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, wide) = at.shape().dims2()?;
        if wide % 3 != 0 || rows % self.rows != 0 {
            bail!("attention takes groups of {} rows of query, key and value, not {rows} rows of {wide}", self.rows);
        }
        let mut out = vec![0.0; rows * wide / 3];
        self.forward(slice(x, at)?, wide / 3, &mut out);
        Ok((CpuStorage::F32(out), (rows, wide / 3).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut to_x = vec![0.0; x.elem_count()];
        let dims = x.dim(1)? / 3;
        read(x, |x| read(grad, |grad| self.backward(x, grad, dims, &mut to_x)))??;
        tensor(to_x, x.shape()).map(Some)
    }
}

/// Scaled dot-product attention (Eq. 6) within each group of `rows` rows; a row of `x[N, 3 · D]` is query, key and value. Gives `[N, D]`.
/// With `others_only` a row does not attend to itself.
pub(crate) fn self_attention(x: &Tensor, rows: usize, others_only: bool) -> Result<Tensor> {
    x.contiguous()?.apply_op1(SelfAttention { rows, others_only })
}

/// Labels of a cross entropy; `None` is not known and costs nothing.
struct CrossEntropy(Vec<Option<bool>>);

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let costs = slice(x, at)?.iter().zip(&self.0).map(|(x, label)| match label {
            Some(label) => f64::from(x.max(0.0) - if *label { *x } else { 0.0 } + (-x.abs()).exp().ln_1p()),
            None => 0.0,
        });
        Ok((CpuStorage::F32(vec![costs.sum::<f64>() as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.to_scalar::<f32>()?;
        let to_x =
            |(x, label): (&f32, &Option<bool>)| label.map_or(0.0, |label| grad * (1.0 / (1.0 + (-x).exp()) - f32::from(label)));
        let values = read(x, |x| x.iter().zip(&self.0).map(to_x).collect())?;
        tensor(values, x.shape()).map(Some)
    }
}

/// Cross entropy (Eq. 13) of logits and labels in the same order, in nats, summed over the labels that are known.
pub(crate) fn cross_entropy(logits: &Tensor, labels: Vec<Option<bool>>) -> Result<Tensor> {
    if logits.elem_count() != labels.len() {
        bail!("{} labels for {} logits", labels.len(), logits.elem_count());
    }
    logits.contiguous()?.apply_op1(CrossEntropy(labels))
}

/// Cosines beyond this are taken for it, as the angle's gradient has no bound.
const COSINE_MAX: f32 = 1.0 - 1e-5;

struct Angle;

impl CustomOp1 for Angle {
    fn name(&self) -> &'static str {
        "angle"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let angles = slice(x, at)?.iter().map(|x| x.clamp(-COSINE_MAX, COSINE_MAX).acos()).collect();
        Ok((CpuStorage::F32(angles), at.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let to_x = |(x, grad): (&f32, &f32)| -grad / (1.0 - x.clamp(-COSINE_MAX, COSINE_MAX).powi(2)).sqrt();
        let values = read(x, |x| read(grad, |grad| x.iter().zip(grad).map(to_x).collect()))??;
        tensor(values, x.shape()).map(Some)
    }
}

/// The angles of cosines, 0…π.
pub(crate) fn angle(cosines: &Tensor) -> Result<Tensor> {
    cosines.contiguous()?.apply_op1(Angle)
}

/// σ(x), without overflow anywhere.
pub(crate) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}

/// Rows of mean 0 and variance 1: layer normalisation whose gain and offset are the next layer's.
pub(crate) fn standardise(x: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    /// Numbers in −1…1 that look like chance.
    fn values(count: usize, salt: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * 12.9898 + salt).sin()).collect()
    }

    /// Holds the gradient of Σ (result · some numbers) by each input against finite differences.
    fn check(what: &str, inputs: &[(Vec<f32>, &[usize])], op: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let value = |inputs: &[Tensor]| {
            let out = op(inputs).expect(what);
            let by = tensor(values(out.elem_count(), 0.7), out.shape()).expect("numbers");
            (out * by).and_then(|product| product.sum_all()).expect(what)
        };
        let vars: Vec<Var> = inputs
            .iter()
            .map(|(values, shape)| Var::from_tensor(&tensor(values.clone(), *shape).expect("an input")).expect("a variable"))
            .collect();
        let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let grads = value(&tensors).backward().expect(what);
        for (which, (numbers, shape)) in inputs.iter().enumerate() {
            let got = read(grads.get(&vars[which]).expect("a gradient"), <[f32]>::to_vec).expect("numbers");
            for place in 0..numbers.len() {
                let at = |step: f32| {
                    let mut moved: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
                    let mut numbers = numbers.clone();
                    numbers[place] += step;
                    moved[which] = tensor(numbers, *shape).expect("an input");
                    f64::from(value(&moved).to_scalar::<f32>().expect("a number"))
                };
                let wanted = (at(1e-2) - at(-1e-2)) / 2e-2;
                let off = (f64::from(got[place]) - wanted).abs();
                assert!(off < 2e-3 * (1.0 + wanted.abs()), "{what}, input {which}, number {place}: {}, not {wanted}", got[place]);
            }
        }
    }

    #[test]
    fn gradients_are_what_finite_differences_say() {
        let (x, w, b) = ((values(12, 0.1), &[4, 3][..]), (values(6, 0.2), &[3, 2][..]), (values(2, 0.3), &[2][..]));
        check("linear", &[x.clone(), w.clone(), b.clone()], |t| linear(&t[0], &t[1], &t[2], false));
        // Far enough from zero that no step crosses it.
        let shifted = (vec![0.9, -3.0], &[2][..]);
        check("linear above zero", &[x, w, shifted], |t| linear(&t[0], &t[1], &t[2], true));
        for others_only in [false, true] {
            let qkv = (values(6 * 6, 0.4), &[6, 6][..]);
            check("attention", &[qkv], |t| self_attention(&t[0], 3, others_only));
        }
        let labels = vec![Some(true), None, Some(false), Some(true)];
        check("cross entropy", &[(vec![0.3, 2.0, -1.0, -0.6], &[2, 2][..])], |t| cross_entropy(&t[0], labels.clone()));
        check("standardise", &[(values(12, 0.5), &[3, 4][..])], |t| standardise(&t[0]));
        check("angle", &[(vec![0.1, -0.6, 0.7], &[3][..])], |t| angle(&t[0]));
        check("sigmoid", &[(values(5, 0.6), &[5][..])], |t| sigmoid(&t[0]));
    }

    #[test]
    fn attention_is_equation_6_and_looks_away_from_itself_where_it_should() {
        // Two rows, two dimensions: query, key, value.
        let x = tensor(vec![1.0, 0.0, 1.0, 0.0, 5.0, 6.0, 0.0, 1.0, 0.0, 1.0, 7.0, 8.0], (2, 6)).expect("rows");
        let near = 1.0 / (1.0 + (-1.0_f32 / 2.0_f32.sqrt()).exp());
        let out = read(&self_attention(&x, 2, false).expect("attention"), <[f32]>::to_vec).expect("numbers");
        let wanted = [5.0 * near + 7.0 * (1.0 - near), 6.0 * near + 8.0 * (1.0 - near)];
        assert!(out[..2].iter().zip(wanted).all(|(got, wanted)| (got - wanted).abs() < 1e-5), "{out:?}");
        let out = read(&self_attention(&x, 2, true).expect("attention"), <[f32]>::to_vec).expect("numbers");
        assert_eq!(out, [7.0, 8.0, 5.0, 6.0]);
    }
}
