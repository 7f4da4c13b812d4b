//! Products with weight matrices whose rows do not depend on the batch they stand in.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;

use super::{read, slice, tensor};
use crate::ops::simd::{self, vectorised};

/// A matrix in memory: its first value and the distances between rows and columns, in values.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) data: *const f32,
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Matrix {
    /// A row-major matrix of `columns` columns.
    pub(crate) fn of(data: &[f32], columns: usize) -> Self {
        Self { data: data.as_ptr(), row: columns, column: 1 }
    }

    /// A matrix whose rows begin `row` values apart.
    pub(crate) fn rows_of(data: &[f32], row: usize) -> Self {
        Self { data: data.as_ptr(), row, column: 1 }
    }

    /// The same memory, read as the transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self { data: self.data, row: self.column, column: self.row }
    }
}

/// `out[m, n] (+)= a[m, k] · b[k, n]`, one thread; `out`'s rows lie `out_row` values apart.
///
/// # Safety
/// The matrices must cover the given sizes; `out` must cover `m` rows and overlap neither of them.
pub(crate) unsafe fn gemm([m, n, k]: [usize; 3], out: *mut f32, out_row: usize, add: bool, a: Matrix, b: Matrix) {
    // SAFETY: the caller's promise is the same as gemm's.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_row as isize,
            add,
            a.data,
            a.column as isize,
            a.row as isize,
            b.data,
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

/// Below this number of outputs gemm may choose its path by the number of rows.
const SAFE_OUTPUTS: usize = 65;
/// Rows at a time when there are few outputs: gemm's path for small products.
const SMALL_ROWS: usize = 64;

/// `x[N, I] · w[I, O]` (or `w[O, I]ᵀ`) into `out[N, O]`: a row's bits do not depend on the other rows.
///
/// gemm sums along `I` in an order that depends on `I` alone, with three exceptions that are avoided here: one row (another kernel),
/// small outputs (other block sizes), and small products of matrices that both lie along `I`.
pub(crate) fn rows_times(x: &[f32], w: &[f32], [n, i, o]: [usize; 3], transposed: bool, out: &mut [f32]) {
    assert!(x.len() == n * i && w.len() == i * o && out.len() == n * o, "sizes of a linear layer do not fit");
    if n == 0 || o == 0 {
        return;
    }
    if o == 1 {
        for (x, out) in x.chunks_exact(i).zip(out.iter_mut()) {
            *out = dot(x, w);
        }
        return;
    }
    if transposed && o < 2 * SAFE_OUTPUTS {
        return rows_times(x, &transpose(w, o, i), [n, i, o], false, out);
    }
    let weight = if transposed { Matrix::of(w, i).transposed() } else { Matrix::of(w, o) };
    let rows_max = if o < SAFE_OUTPUTS { SMALL_ROWS } else { n };
    for (x, out) in x.chunks(rows_max * i).zip(out.chunks_mut(rows_max * o)) {
        match out.len() / o {
            1 => {
                let (twice, mut both) = ([x, x].concat(), vec![0.0; 2 * o]);
                // SAFETY: two rows of `i` and of `o` values.
                unsafe { gemm([2, o, i], both.as_mut_ptr(), o, false, Matrix::of(&twice, i), weight) };
                out.copy_from_slice(&both[..o]);
            }
            // SAFETY: the sizes were checked above, chunks are whole rows.
            rows => unsafe { gemm([rows, o, i], out.as_mut_ptr(), o, false, Matrix::of(x, i), weight) },
        }
    }
}

vectorised! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }
}

pub(crate) fn transpose(w: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; w.len()];
    for (r, row) in w.chunks_exact(columns).enumerate() {
        for (c, value) in row.iter().enumerate() {
            out[c * rows + r] = *value;
        }
    }
    out
}

vectorised! {
    fn add_bias(rows: &mut [f32], bias: &[f32]) -> () {
        for row in rows.chunks_exact_mut(bias.len()) {
            for (x, b) in row.iter_mut().zip(bias) {
                *x += b;
            }
        }
    }
}

vectorised! {
    fn sum_rows(rows: &[f32], total: &mut [f32]) -> () {
        for row in rows.chunks_exact(total.len()) {
            for (t, x) in total.iter_mut().zip(row) {
                *t += x;
            }
        }
    }
}

/// `x · w (+ bias)`; the gradient of a weight that nobody trains is not computed.
struct Linear {
    transposed: bool,
}

impl Linear {
    fn sizes(&self, x: &Shape, w: &Shape) -> Result<[usize; 3]> {
        let ((n, i), (first, second)) = (x.dims2()?, w.dims2()?);
        let (inputs, o) = if self.transposed { (second, first) } else { (first, second) };
        if inputs != i {
            bail!("cannot multiply {x:?} with a weight of {inputs} inputs");
        }
        Ok([n, i, o])
    }

    fn forward(&self, x: (&CpuStorage, &Layout), w: (&CpuStorage, &Layout), bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let [n, i, o] = self.sizes(x.1.shape(), w.1.shape())?;
        let mut out = vec![0.0; n * o];
        rows_times(slice(x.0, x.1)?, slice(w.0, w.1)?, [n, i, o], self.transposed, &mut out);
        if let Some(bias) = bias {
            if bias.len() != o {
                bail!("a bias of {} values for {o} outputs", bias.len());
            }
            add_bias(&mut out, bias);
        }
        Ok((CpuStorage::F32(out), (n, o).into()))
    }

    fn backward(&self, x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [n, i, o] = self.sizes(x.shape(), w.shape())?;
        let input = if x.track_op() {
            let mut dx = vec![0.0; n * i];
            read(grad, |g| {
                read(w, |w| {
                    let w = if self.transposed { Matrix::of(w, i) } else { Matrix::of(w, o).transposed() };
                    // SAFETY: candle's layouts give the sizes; `dx` is ours.
                    unsafe { gemm([n, i, o], dx.as_mut_ptr(), i, false, Matrix::of(g, o), w) }
                })
            })??;
            Some(tensor(dx, (n, i))?)
        } else {
            None
        };
        let weight = if w.track_op() {
            let mut dw = vec![0.0; i * o];
            read(grad, |g| {
                read(x, |x| {
                    let (g, x) = (Matrix::of(g, o), Matrix::of(x, i));
                    // SAFETY: as above.
                    unsafe {
                        if self.transposed {
                            gemm([o, i, n], dw.as_mut_ptr(), i, false, g.transposed(), x);
                        } else {
                            gemm([i, o, n], dw.as_mut_ptr(), o, false, x.transposed(), g);
                        }
                    }
                })
            })??;
            Some(tensor(dw, w.shape())?)
        } else {
            None
        };
        Ok((input, weight))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, x_at: &Layout, w: &CpuStorage, w_at: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, x_at), (w, w_at), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, grad)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear-with-bias"
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
        self.forward((x, x_at), (w, w_at), Some(slice(b, b_at)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (input, weight) = self.backward(x, w, grad)?;
        let bias = if b.track_op() {
            let mut total = vec![0.0; b.elem_count()];
            read(grad, |g| sum_rows(g, &mut total))?;
            Some(tensor(total, b.shape())?)
        } else {
            None
        };
        Ok((input, weight, bias))
    }
}

/// `x[N, I] · w[I, O] + bias[O]` → `[N, O]`, differentiable in all three.
///
/// # Errors
/// When sizes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(x, w, bias, false)
}

/// `x[N, I] · w[O, I]ᵀ + bias[O]` → `[N, O]`, differentiable in all three: tied output heads, adapters as they are stored.
///
/// # Errors
/// When sizes do not fit.
pub fn linear_t(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(x, w, bias, true)
}

fn apply(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, transposed: bool) -> Result<Tensor> {
    if !x.device().is_cpu() {
        let product = if transposed { x.matmul(&w.t()?)? } else { x.matmul(w)? };
        return match bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        };
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    match bias {
        Some(bias) => x.apply_op3(&w, &bias.contiguous()?, Linear { transposed }),
        None => x.apply_op2(&w, Linear { transposed }),
    }
}
