//! A weight matrix laid out for products with few rows, in which every output is one chain of multiply-adds.

use super::simd;

/// Columns of a panel.
const PANEL: usize = 32;
/// Rows that a kernel takes at once.
const ROWS_MAX: usize = 12;

/// A matrix `[inputs, outputs]` in panels of [`PANEL`] columns, each `[inputs, PANEL]`, the last one filled up with zeros.
///
/// Every output value is the sum over inputs in their order, one multiply-add after the other, whatever the number of rows:
/// a row's result does not depend on its company, nor a column's on the others.
#[derive(Debug)]
pub(crate) struct PackedMatrix {
    inputs: usize,
    outputs: usize,
    panels: Vec<f32>,
    bias: Option<Vec<f32>>,
}

/// Results of one panel.
type Block<const R: usize> = [[f32; PANEL]; R];

impl PackedMatrix {
    /// Packs `w[inputs, outputs]`.
    pub(crate) fn new(w: &[f32], inputs: usize, outputs: usize, bias: Option<Vec<f32>>) -> Self {
        assert_eq!(w.len(), inputs * outputs, "a weight of {inputs} × {outputs}");
        Self::pack(inputs, outputs, bias, |i, o| w[i * outputs + o])
    }

    /// Packs `w[outputs, inputs]`.
    pub(crate) fn from_transposed(w: &[f32], inputs: usize, outputs: usize) -> Self {
        assert_eq!(w.len(), inputs * outputs, "a weight of {outputs} × {inputs}");
        Self::pack(inputs, outputs, None, |i, o| w[o * inputs + i])
    }

    fn pack(inputs: usize, outputs: usize, bias: Option<Vec<f32>>, at: impl Fn(usize, usize) -> f32) -> Self {
        let mut panels = vec![0.0; outputs.div_ceil(PANEL) * inputs * PANEL];
        for (p, panel) in panels.chunks_exact_mut(inputs * PANEL).enumerate() {
            let columns = PANEL.min(outputs - p * PANEL);
            for (i, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                for (c, value) in row[..columns].iter_mut().enumerate() {
                    *value = at(i, p * PANEL + c);
                }
            }
        }
        Self { inputs, outputs, panels, bias }
    }

    /// `out[n, outputs] = x[n, inputs] · w + bias`.
    pub(crate) fn rows(&self, x: &[f32], out: &mut [f32]) {
        self.each_block(x, out, |out, sum| out.copy_from_slice(sum));
    }

    /// `out[n, outputs] += x[n, inputs] · w + bias`.
    pub(crate) fn rows_added(&self, x: &[f32], out: &mut [f32]) {
        self.each_block(x, out, |out, sum| {
            for (out, sum) in out.iter_mut().zip(sum) {
                *out += sum;
            }
        });
    }

    /// Outputs `ids` of one row `x[inputs]`: the same bits as [`Self::rows`] gives them, bias aside.
    ///
    /// # Panics
    /// When an id is not an output.
    pub(crate) fn columns(&self, x: &[f32], ids: &[u32]) -> Vec<f32> {
        assert!(self.bias.is_none() && x.len() == self.inputs, "one row of a layer without bias");
        let mut gathered = vec![0.0; self.inputs * PANEL];
        let mut out = Vec::with_capacity(ids.len());
        for ids in ids.chunks(PANEL) {
            for (c, id) in ids.iter().enumerate() {
                let (panel, column) = (*id as usize / PANEL, *id as usize % PANEL);
                let panel = &self.panels[panel * self.inputs * PANEL..][..self.inputs * PANEL];
                for (to, from) in gathered[c..].iter_mut().step_by(PANEL).zip(panel[column..].iter().step_by(PANEL)) {
                    *to = *from;
                }
            }
            let mut sums: Block<1> = [[0.0; PANEL]];
            multiply::<1>(x, self.inputs, &gathered, &mut sums);
            out.extend_from_slice(&sums[0][..ids.len()]);
        }
        out
    }

    /// Panels outside, so that one stays in the cache while all rows pass by.
    fn each_block(&self, x: &[f32], out: &mut [f32], write: impl Fn(&mut [f32], &[f32])) {
        let n = x.len() / self.inputs;
        assert!(x.len() == n * self.inputs && out.len() == n * self.outputs, "sizes of a packed layer do not fit");
        for (p, panel) in self.panels.chunks_exact(self.inputs * PANEL).enumerate() {
            let columns = p * PANEL..((p + 1) * PANEL).min(self.outputs);
            let bias = self.bias.as_ref().map(|bias| &bias[columns.clone()]);
            let mut block: Block<ROWS_MAX> = [[0.0; PANEL]; ROWS_MAX];
            for first in (0..n).step_by(ROWS_MAX) {
                let rows = ROWS_MAX.min(n - first);
                multiply_some(&x[first * self.inputs..(first + rows) * self.inputs], self.inputs, panel, &mut block);
                for (r, sums) in block[..rows].iter_mut().enumerate() {
                    let sums = &mut sums[..columns.len()];
                    for (sum, b) in sums.iter_mut().zip(bias.unwrap_or(&[])) {
                        *sum += b;
                    }
                    write(&mut out[(first + r) * self.outputs..][columns.clone()], sums);
                }
            }
        }
    }
}

/// [`multiply`] for any number of rows up to [`ROWS_MAX`].
fn multiply_some(x: &[f32], inputs: usize, panel: &[f32], out: &mut Block<ROWS_MAX>) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match x.len() / inputs {
                $($n => multiply::<$n>(x, inputs, panel, out.first_chunk_mut().expect("at most as many rows")),)*
                _ => unreachable!("rows come in chunks"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// `out[R, PANEL] = x[R, inputs] · panel[inputs, PANEL]`.
fn multiply<const R: usize>(x: &[f32], inputs: usize, panel: &[f32], out: &mut Block<R>) {
    assert!(x.len() == R * inputs && panel.len() == inputs * PANEL, "sizes of a panel do not fit");
    #[cfg(target_arch = "x86_64")]
    match simd::width() {
        // SAFETY: the machine has the instructions and the sizes have just been checked.
        simd::Width::Avx512 => return unsafe { x86::multiply_avx512(x.as_ptr(), inputs, panel.as_ptr(), out) },
        // SAFETY: as above.
        simd::Width::Avx2 => return unsafe { x86::multiply_avx2(x.as_ptr(), inputs, panel.as_ptr(), out) },
        simd::Width::Base => {}
    }
    *out = [[0.0; PANEL]; R];
    for (i, w) in panel.as_chunks::<PANEL>().0.iter().enumerate() {
        for (r, out) in out.iter_mut().enumerate() {
            let x = x[r * inputs + i];
            for c in 0..PANEL {
                out[c] += x * w[c];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Block, PANEL};

    /// # Safety
    /// `x` covers `R · inputs` values, `panel` `inputs · PANEL`.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply_avx512<const R: usize>(x: *const f32, inputs: usize, panel: *const f32, out: &mut Block<R>) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for i in 0..inputs {
            // SAFETY: within the sizes that the caller promises.
            unsafe {
                let w = [_mm512_loadu_ps(panel.add(i * PANEL)), _mm512_loadu_ps(panel.add(i * PANEL + 16))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*x.add(r * inputs + i));
                    sums[0] = _mm512_fmadd_ps(x, w[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, w[1], sums[1]);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            // SAFETY: `out` holds PANEL values.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), sums[1]);
            }
        }
    }

    /// Half a panel at a time and at most six rows, as there are sixteen registers.
    ///
    /// # Safety
    /// As [`multiply_avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_avx2<const R: usize>(x: *const f32, inputs: usize, panel: *const f32, out: &mut Block<R>) {
        for half in [0, 16] {
            for (chunk, out) in out.chunks_mut(6).enumerate() {
                // SAFETY: the rows of this chunk lie within `x`.
                unsafe {
                    let x = x.add(chunk * 6 * inputs);
                    let panel = panel.add(half);
                    match out.len() {
                        1 => half_panel::<1>(x, inputs, panel, half, out),
                        2 => half_panel::<2>(x, inputs, panel, half, out),
                        3 => half_panel::<3>(x, inputs, panel, half, out),
                        4 => half_panel::<4>(x, inputs, panel, half, out),
                        5 => half_panel::<5>(x, inputs, panel, half, out),
                        _ => half_panel::<6>(x, inputs, panel, half, out),
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn half_panel<const R: usize>(x: *const f32, inputs: usize, panel: *const f32, half: usize, out: &mut [[f32; PANEL]]) {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        for i in 0..inputs {
            // SAFETY: the caller's promise.
            unsafe {
                let w = [_mm256_loadu_ps(panel.add(i * PANEL)), _mm256_loadu_ps(panel.add(i * PANEL + 8))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.add(r * inputs + i));
                    sums[0] = _mm256_fmadd_ps(x, w[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(x, w[1], sums[1]);
                }
            }
        }
        for (out, sums) in out.iter_mut().zip(sums) {
            // SAFETY: half a panel lies behind `half`.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr().add(half), sums[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(half + 8), sums[1]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Random;

    fn values(random: &mut Random, n: usize) -> Vec<f32> {
        (0..n).map(|_| random.normal()).collect()
    }

    #[test]
    fn a_packed_product_is_the_product_and_its_rows_and_columns_stand_alone() {
        let mut random = Random::new(1);
        for (inputs, outputs) in [(1, 1), (7, 33), (64, 96), (256, 40), (600, 31)] {
            let (w, bias) = (values(&mut random, inputs * outputs), values(&mut random, outputs));
            let matrix = PackedMatrix::new(&w, inputs, outputs, Some(bias.clone()));
            let x = values(&mut random, 70 * inputs);
            let mut all = vec![0.0; 70 * outputs];
            matrix.rows(&x, &mut all);
            for (r, o) in [(0, 0), (69, outputs - 1), (13, outputs / 2)] {
                let exact: f64 = (0..inputs).map(|i| f64::from(x[r * inputs + i]) * f64::from(w[i * outputs + o])).sum();
                assert!((exact as f32 + bias[o] - all[r * outputs + o]).abs() < 1e-4);
            }
            for n in 1..70 {
                let mut some = vec![0.0; n * outputs];
                matrix.rows(&x[inputs..][..n * inputs], &mut some);
                assert_eq!(some, all[outputs..][..n * outputs], "{n} rows of {inputs} × {outputs}");
            }
        }
    }

    #[test]
    fn chosen_columns_have_the_bits_of_the_whole_product() {
        let mut random = Random::new(2);
        let (inputs, outputs) = (96, 200);
        let matrix = PackedMatrix::from_transposed(&values(&mut random, inputs * outputs), inputs, outputs);
        let x = values(&mut random, inputs);
        let mut all = vec![0.0; outputs];
        matrix.rows(&x, &mut all);
        let ids: Vec<u32> = (0..outputs as u32).rev().step_by(3).collect();
        let expected: Vec<f32> = ids.iter().map(|id| all[*id as usize]).collect();
        assert_eq!(matrix.columns(&x, &ids), expected);
    }
}
