//! The one operation that takes most of the kernel's time: rows of numbers times a layer.

use std::array;

use super::lanes::{LANES, Lane, flat, on_this_processor, padded};

/// Rows that lie `stride` lanes apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) lanes: &'a [Lane],
    pub(super) stride: usize,
}

/// Rows that are written, from lane `from` of each on.
pub(super) struct Out<'a> {
    pub(super) lanes: &'a mut [Lane],
    pub(super) stride: usize,
    pub(super) from: usize,
}

/// x · W + b, and nothing below zero where the layer is hidden.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Layer {
    inputs: usize,
    /// Lanes of a row that comes out.
    lanes: usize,
    /// Panels of [`panels`] lanes each, one after the other: `[inputs, lanes of the panel]`.
    weights: Vec<Lane>,
    bias: Vec<Lane>,
    /// 0, or −∞.
    floor: f32,
}

/// The panels that so many lanes are computed in: with 2 or 3 lanes by 6 or 4 rows, all sums stay in registers.
fn panels(lanes: usize) -> impl Iterator<Item = usize> {
    let first = if lanes >= 3 { lanes % 2 * 3 } else { lanes };
    std::iter::once(first).chain(std::iter::repeat_n(2, (lanes - first) / 2)).filter(|width| *width > 0)
}

impl Layer {
    /// Of weights `[inputs, outputs]` and as many biases as outputs.
    pub(super) fn new(weights: &[f32], bias: &[f32], hidden: bool) -> Self {
        let (outputs, inputs) = (bias.len(), weights.len() / bias.len());
        let rows = padded(weights, outputs);
        let lanes = outputs.div_ceil(LANES);
        let (mut packed, mut at) = (Vec::with_capacity(rows.len()), 0);
        for width in panels(lanes) {
            (0..inputs).for_each(|input| packed.extend(&rows[input * lanes + at..][..width]));
            at += width;
        }
        let floor = if hidden { 0.0 } else { f32::NEG_INFINITY };
        Self { inputs, lanes, weights: packed, bias: padded(bias, outputs), floor }
    }

    /// Rows through the layer, padded like them.
    pub(super) fn of(&self, rows: &[Lane]) -> Vec<Lane> {
        let stride = self.inputs.div_ceil(LANES);
        let count = rows.len() / stride;
        let mut out = vec![Lane::default(); count * self.lanes];
        times(self, count, Rows { lanes: rows, stride }, Out { lanes: &mut out, stride: self.lanes, from: 0 });
        out
    }

    /// Becomes `base` with weights `base + diag(by) · scaled` and the biases of `shifted` for `by`: of a perceptron over a row, `by`, their
    /// products and their difference, what is left when `by` is known. All three are of one shape, and so must this one be.
    pub(super) fn blend(&mut self, base: &Self, scaled: &Self, shifted: &Self, by: &[Lane]) {
        let mut from = 0;
        for width in panels(base.lanes) {
            for (input, by) in flat(by)[..base.inputs].iter().enumerate() {
                let at = from + input * width..from + (input + 1) * width;
                let known = base.weights[at.clone()].iter().zip(&scaled.weights[at.clone()]);
                for (weight, (base, scaled)) in self.weights[at].iter_mut().zip(known) {
                    *weight = *base;
                    weight.add_product::<false>(*by, scaled);
                }
            }
            from += base.inputs * width;
        }
        let (x, lanes) = (Rows { lanes: by, stride: by.len() }, base.lanes);
        times(shifted, 1, x, Out { lanes: &mut self.bias, stride: lanes, from: 0 });
    }
}

on_this_processor! {
    /// The first `rows` rows of `x` through a layer.
    pub(super) fn times(layer: &Layer, rows: usize, x: Rows<'_>, out: Out<'_>) = times_with
}

#[inline(always)]
fn times_with<const WIDE: bool>(layer: &Layer, rows: usize, x: Rows<'_>, mut out: Out<'_>) {
    let (mut weights, mut bias) = (&layer.weights[..], &layer.bias[..]);
    for width in panels(layer.lanes) {
        let (panel, other_weights) = weights.split_at(layer.inputs * width);
        let (of_panel, other_bias) = bias.split_at(width);
        let panel = Panel { weights: panel, bias: of_panel, floor: layer.floor };
        match width {
            3 => panel.times::<3, 4, WIDE>(rows, x, &mut out),
            2 => panel.times::<2, 6, WIDE>(rows, x, &mut out),
            _ => panel.times::<1, 6, WIDE>(rows, x, &mut out),
        }
        out.from += width;
        (weights, bias) = (other_weights, other_bias);
    }
}

/// Some lanes of a layer.
struct Panel<'a> {
    weights: &'a [Lane],
    bias: &'a [Lane],
    floor: f32,
}

impl Panel<'_> {
    /// Rows in groups of `GROUP`, and what is left.
    #[inline(always)]
    fn times<const WIDTH: usize, const GROUP: usize, const WIDE: bool>(&self, rows: usize, x: Rows<'_>, out: &mut Out<'_>) {
        let whole = rows - rows % GROUP;
        (0..whole).step_by(GROUP).for_each(|row| self.group::<WIDTH, GROUP, WIDE>(row, x, out));
        match rows - whole {
            1 => self.group::<WIDTH, 1, WIDE>(whole, x, out),
            2 => self.group::<WIDTH, 2, WIDE>(whole, x, out),
            3 => self.group::<WIDTH, 3, WIDE>(whole, x, out),
            4 => self.group::<WIDTH, 4, WIDE>(whole, x, out),
            5 => self.group::<WIDTH, 5, WIDE>(whole, x, out),
            _ => {}
        }
    }

    #[inline(always)]
    fn group<const WIDTH: usize, const GROUP: usize, const WIDE: bool>(&self, row: usize, x: Rows<'_>, out: &mut Out<'_>) {
        let inputs = self.weights.len() / WIDTH;
        let x: [&[f32]; GROUP] = array::from_fn(|at| &flat(&x.lanes[(row + at) * x.stride..])[..inputs]);
        let bias: [Lane; WIDTH] = array::from_fn(|at| self.bias[at]);
        let mut sums = [bias; GROUP];
        for (input, weights) in self.weights.chunks_exact(WIDTH).enumerate() {
            for (sums, x) in sums.iter_mut().zip(&x) {
                // SAFETY: each row was cut to as many numbers as the panel has rows of weights.
                let value = Lane::all(unsafe { *x.get_unchecked(input) });
                for (sum, weights) in sums.iter_mut().zip(weights) {
                    sum.add_products::<WIDE>(&value, weights);
                }
            }
        }
        for (at, sums) in sums.iter().enumerate() {
            let out = &mut out.lanes[(row + at) * out.stride + out.from..][..WIDTH];
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum.above::<WIDE>(self.floor);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in −1…1 that look like chance.
    fn numbers(count: usize, salt: f32) -> Vec<f32> {
        (0..count).map(|i| ((i as f32 + 1.0) * 12.9898 + salt).sin()).collect()
    }

    #[test]
    fn a_layer_of_any_size_is_what_a_loop_makes_of_it() {
        for (rows, inputs, outputs) in [(1, 1, 1), (7, 8, 24), (13, 40, 60), (5, 20, 50), (48, 128, 64), (3, 9, 8), (6, 30, 16)] {
            let (x, weights, bias) = (numbers(rows * inputs, 0.1), numbers(inputs * outputs, 0.2), numbers(outputs, 0.3));
            for hidden in [false, true] {
                let layer = Layer::new(&weights, &bias, hidden);
                let (stride, wide) = (inputs.div_ceil(LANES), layer.lanes + 2);
                let packed = padded(&x, inputs);
                let mut out = vec![Lane::all(9.0); rows * wide];
                times(&layer, rows, Rows { lanes: &packed, stride }, Out { lanes: &mut out, stride: wide, from: 1 });
                for row in 0..rows {
                    let got = flat(&out[row * wide..(row + 1) * wide]);
                    assert!(got[..LANES].iter().chain(&got[(wide - 1) * LANES..]).all(|value| *value == 9.0), "beside the row");
                    for to in 0..outputs {
                        let sum: f32 = (0..inputs).map(|from| x[row * inputs + from] * weights[from * outputs + to]).sum();
                        let wanted = if hidden { (sum + bias[to]).max(0.0) } else { sum + bias[to] };
                        let got = got[LANES + to];
                        assert!((got - wanted).abs() < 1e-4, "{rows} x {inputs} x {outputs}, {row}, {to}: {got}, not {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_known_of_a_pair_can_be_blended_into_a_layer() {
        let (inputs, outputs) = (20, 50);
        let part = |salt: f32| numbers(inputs * outputs, salt);
        let (bias, zeros, by, x) = (numbers(outputs, 0.9), vec![0.0; outputs], numbers(inputs, 0.5), numbers(inputs, 0.6));
        let (base, scaled) = (Layer::new(&part(0.1), &zeros, true), Layer::new(&part(0.3), &zeros, true));
        let shifted = Layer::new(&part(0.2), &bias, false);
        let (mut blended, mut out) = (base.clone(), vec![Lane::default(); base.lanes]);
        blended.blend(&base, &scaled, &shifted, &padded(&by, inputs));
        times(&blended, 1, Rows { lanes: &padded(&x, inputs), stride: 3 }, Out { lanes: &mut out, stride: 7, from: 0 });
        for (to, bias) in bias.iter().enumerate() {
            let of = |from: usize| {
                let at = from * outputs + to;
                x[from] * part(0.1)[at] + by[from] * part(0.2)[at] + x[from] * by[from] * part(0.3)[at]
            };
            let wanted = ((0..inputs).map(of).sum::<f32>() + bias).max(0.0);
            assert!((flat(&out)[to] - wanted).abs() < 1e-4, "{to}: {}, not {wanted}", flat(&out)[to]);
        }
    }
}
