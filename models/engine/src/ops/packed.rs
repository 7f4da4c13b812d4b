//! A weight matrix laid out for products with few rows, in which every output is one chain of multiply-adds.

use super::simd;

/// Columns of a panel.
const PANEL: usize = 32;
/// Rows that a kernel takes at once.
const ROWS_MAX: usize = 12;
/// Values of the rows that go over all panels together: 256 KiB.
const CHUNK_VALUES: usize = 1 << 16;

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

const NO_BIAS: [f32; PANEL] = [0.0; PANEL];

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
        self.multiply_rows::<false>(x, out);
    }

    /// `out[n, outputs] += x[n, inputs] · w + bias`.
    pub(crate) fn rows_added(&self, x: &[f32], out: &mut [f32]) {
        self.multiply_rows::<true>(x, out);
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
            let mut sums = [0.0; PANEL];
            multiply::<1, false>(x, self.inputs, &gathered, &NO_BIAS, &mut sums, PANEL);
            out.extend_from_slice(&sums[..ids.len()]);
        }
        out
    }

    /// Row chunks outside, so that one stays in the second-level cache; panels inside, so that one stays near while the chunk's rows pass by.
    fn multiply_rows<const ADD: bool>(&self, x: &[f32], out: &mut [f32]) {
        let n = x.len() / self.inputs;
        assert!(x.len() == n * self.inputs && out.len() == n * self.outputs, "sizes of a packed layer do not fit");
        let chunk = (CHUNK_VALUES / self.inputs / ROWS_MAX).max(4) * ROWS_MAX;
        for (x, out) in x.chunks(chunk * self.inputs).zip(out.chunks_mut(chunk * self.outputs)) {
            for (p, panel) in self.panels.chunks_exact(self.inputs * PANEL).enumerate() {
                let columns = p * PANEL..((p + 1) * PANEL).min(self.outputs);
                let bias = self.bias.as_ref().map_or(NO_BIAS, |bias| {
                    let mut filled = NO_BIAS;
                    filled[..columns.len()].copy_from_slice(&bias[columns.clone()]);
                    filled
                });
                for (x, out) in x.chunks(ROWS_MAX * self.inputs).zip(out.chunks_mut(ROWS_MAX * self.outputs)) {
                    if columns.len() == PANEL {
                        multiply_some::<ADD>(x, self.inputs, panel, &bias, &mut out[columns.start..], self.outputs);
                        continue;
                    }
                    let mut whole = [0.0; ROWS_MAX * PANEL];
                    multiply_some::<false>(x, self.inputs, panel, &bias, &mut whole, PANEL);
                    for (out, sums) in out.chunks_exact_mut(self.outputs).zip(whole.chunks_exact(PANEL)) {
                        for (out, sum) in out[columns.clone()].iter_mut().zip(sums) {
                            *out = if ADD { *out + sum } else { *sum };
                        }
                    }
                }
            }
        }
    }
}

/// [`multiply`] for any number of rows up to [`ROWS_MAX`].
fn multiply_some<const ADD: bool>(x: &[f32], inputs: usize, panel: &[f32], bias: &[f32; PANEL], out: &mut [f32], row: usize) {
    macro_rules! rows {
        ($($n:literal)*) => {
            match x.len() / inputs {
                $($n => multiply::<$n, ADD>(x, inputs, panel, bias, out, row),)*
                _ => unreachable!("rows come in chunks"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// `out[R, PANEL] (+)= x[R, inputs] · panel[inputs, PANEL] + bias[PANEL]`; `out`'s rows lie `row` values apart.
fn multiply<const R: usize, const ADD: bool>(
    x: &[f32],
    inputs: usize,
    panel: &[f32],
    bias: &[f32; PANEL],
    out: &mut [f32],
    row: usize,
) {
    assert!(x.len() == R * inputs && panel.len() == inputs * PANEL, "sizes of a panel do not fit");
    assert!(out.len() >= (R - 1) * row + PANEL, "results of a panel do not fit");
    #[cfg(target_arch = "x86_64")]
    {
        let (x, panel, out) = (x.as_ptr(), panel.as_ptr(), out.as_mut_ptr());
        match simd::width() {
            // SAFETY: the machine has the instructions and the sizes have just been checked.
            simd::Width::Avx512 => return unsafe { x86::multiply_avx512::<R, ADD>(x, inputs, panel, bias, out, row) },
            // SAFETY: as above.
            simd::Width::Avx2 => return unsafe { x86::multiply_avx2::<R, ADD>(x, inputs, panel, bias, out, row) },
            simd::Width::Base => {}
        }
    }
    for (x, out) in x.chunks_exact(inputs).zip(out.chunks_mut(row)) {
        let mut sums = [0.0; PANEL];
        for (x, w) in x.iter().zip(panel.as_chunks::<PANEL>().0) {
            for c in 0..PANEL {
                sums[c] += x * w[c];
            }
        }
        for c in 0..PANEL {
            out[c] = if ADD { out[c] + (sums[c] + bias[c]) } else { sums[c] + bias[c] };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::PANEL;

    /// # Safety
    /// `x` covers `R · inputs` values, `panel` `inputs · PANEL`, `out` `R` rows of PANEL values, `row` apart.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn multiply_avx512<const R: usize, const ADD: bool>(
        x: *const f32,
        inputs: usize,
        panel: *const f32,
        bias: &[f32; PANEL],
        out: *mut f32,
        row: usize,
    ) {
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
        for (r, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    let out = out.add(r * row + 16 * half);
                    let sum = _mm512_add_ps(*sum, _mm512_loadu_ps(bias.as_ptr().add(16 * half)));
                    _mm512_storeu_ps(out, if ADD { _mm512_add_ps(_mm512_loadu_ps(out), sum) } else { sum });
                }
            }
        }
    }

    /// Half a panel at a time and at most six rows, as there are sixteen registers.
    ///
    /// # Safety
    /// As [`multiply_avx512`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn multiply_avx2<const R: usize, const ADD: bool>(
        x: *const f32,
        inputs: usize,
        panel: *const f32,
        bias: &[f32; PANEL],
        out: *mut f32,
        row: usize,
    ) {
        for half in [0, 16] {
            for first in (0..R).step_by(6) {
                // SAFETY: the rows from `first` on lie within `x` and `out`, half a panel behind `half`.
                unsafe {
                    let (x, out, bias) = (x.add(first * inputs), out.add(first * row + half), bias.as_ptr().add(half));
                    let panel = panel.add(half);
                    match R - first {
                        1 => half_panel::<1, ADD>(x, inputs, panel, bias, out, row),
                        2 => half_panel::<2, ADD>(x, inputs, panel, bias, out, row),
                        3 => half_panel::<3, ADD>(x, inputs, panel, bias, out, row),
                        4 => half_panel::<4, ADD>(x, inputs, panel, bias, out, row),
                        5 => half_panel::<5, ADD>(x, inputs, panel, bias, out, row),
                        _ => half_panel::<6, ADD>(x, inputs, panel, bias, out, row),
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`multiply_avx512`], for half a panel.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn half_panel<const R: usize, const ADD: bool>(
        x: *const f32,
        inputs: usize,
        panel: *const f32,
        bias: *const f32,
        out: *mut f32,
        row: usize,
    ) {
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
        for (r, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    let out = out.add(r * row + 8 * half);
                    let sum = _mm256_add_ps(*sum, _mm256_loadu_ps(bias.add(8 * half)));
                    _mm256_storeu_ps(out, if ADD { _mm256_add_ps(_mm256_loadu_ps(out), sum) } else { sum });
                }
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
