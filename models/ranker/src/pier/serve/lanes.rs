//! Rows of numbers in whole lanes, and the one operation that takes most of the kernel's time: rows times a layer.
//!
//! What runs long is compiled twice, once for x86-64 with AVX2 and FMA, and chosen when it is called ([`on_this_processor`]); so one build runs
//! on every machine. Elsewhere it is plain loops over arrays of [`LANES`] numbers, which compilers turn into what vectors there are.

use std::{array, f32::consts::LOG2_E};

/// Numbers of a lane: a vector register of AVX2, and an embedding.
pub(super) const LANES: usize = 8;

/// Numbers side by side, where vector loads like them to lie.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C, align(32))]
pub(super) struct Lane(pub(super) [f32; LANES]);

/// Compiles a function `body::<WIDE>` for processors with AVX2 and FMA too, and calls the one that this processor can run. `WIDE` says whether
/// there are such vectors, or (on aarch64) whether a product and a sum are one instruction.
macro_rules! on_this_processor {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $kind:ty),* $(,)?) = $body:ident) => {
        $(#[$doc])*
        $vis fn $name($($arg: $kind),*) {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $kind),*) {
                    $body::<true>($($arg),*)
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has what the function was compiled for.
                    return unsafe { wide($($arg),*) };
                }
            }
            // On aarch64 every processor has fused products.
            $body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(super) use on_this_processor;

impl Lane {
    /// The same number everywhere.
    #[inline(always)]
    pub(super) fn all(value: f32) -> Self {
        Self([value; LANES])
    }

    /// Adds `value · other`.
    #[inline(always)]
    pub(super) fn add_product<const WIDE: bool>(&mut self, value: f32, other: &Self) {
        self.add_products::<WIDE>(&Self::all(value), other);
    }

    /// Adds the products of both lanes' numbers, in one step where processors have one.
    #[inline(always)]
    pub(super) fn add_products<const WIDE: bool>(&mut self, a: &Self, b: &Self) {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: whoever says WIDE runs where AVX2 and FMA are.
            return *self = unsafe { wide::add_products(self, a, b) };
        }
        for ((sum, a), b) in self.0.iter_mut().zip(&a.0).zip(&b.0) {
            *sum = if WIDE { a.mul_add(*b, *sum) } else { *sum + a * b };
        }
    }

    /// Adds `value · other` in two steps, as where nothing is fused: to the bit the same everywhere.
    #[inline(always)]
    pub(super) fn add_then_product<const WIDE: bool>(&mut self, value: f32, other: &Self) {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return *self = unsafe { wide::plus(self, &wide::times(&Self::all(value), other)) };
        }
        for (sum, other) in self.0.iter_mut().zip(&other.0) {
            *sum += value * other;
        }
    }

    /// The sum of both.
    #[inline(always)]
    pub(super) fn plus<const WIDE: bool>(&self, other: &Self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return unsafe { wide::plus(self, other) };
        }
        Self(array::from_fn(|at| self.0[at] + other.0[at]))
    }

    /// The difference of both.
    #[inline(always)]
    pub(super) fn minus<const WIDE: bool>(&self, other: &Self) -> Self {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return unsafe { wide::minus(self, other) };
        }
        Self(array::from_fn(|at| self.0[at] - other.0[at]))
    }

    /// Nothing above `ceiling`.
    #[inline(always)]
    pub(super) fn below<const WIDE: bool>(&self, ceiling: f32) -> Self {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return unsafe { wide::below(self, &Self::all(ceiling)) };
        }
        Self(self.0.map(|value| if value < ceiling { value } else { ceiling }))
    }

    /// Nothing below `floor`.
    #[inline(always)]
    pub(super) fn above<const WIDE: bool>(&self, floor: f32) -> Self {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return unsafe { wide::above(self, &Self::all(floor)) };
        }
        Self(self.0.map(|value| if value > floor { value } else { floor }))
    }

    /// A bit for each number that is above zero, the first the lowest.
    #[inline(always)]
    pub(super) fn positive<const WIDE: bool>(&self) -> u8 {
        #[cfg(target_arch = "x86_64")]
        if WIDE {
            // SAFETY: as above.
            return unsafe { wide::positive(self) };
        }
        self.0.iter().rev().fold(0, |bits, value| bits << 1 | u8::from(*value > 0.0))
    }

    /// The sum of its numbers, in an order that vectors can take.
    #[inline(always)]
    pub(super) fn sum(&self) -> f32 {
        let half: [f32; 4] = array::from_fn(|at| self.0[at] + self.0[at + 4]);
        (half[0] + half[2]) + (half[1] + half[3])
    }
}

/// Lanes as vectors of AVX2. Compilers make vectors of the loops above, too, but do not keep many of them in registers.
#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::{
        __m256, _CMP_GT_OQ, _mm256_add_epi32, _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cmp_ps,
        _mm256_fmadd_ps, _mm256_fnmadd_ps, _mm256_load_ps, _mm256_max_ps, _mm256_min_ps, _mm256_movemask_ps, _mm256_mul_ps,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_slli_epi32, _mm256_store_ps, _mm256_sub_ps,
    };

    use super::{LANES, LN_2, LOG2_E, Lane, POWERS, ROUND, SERIES};

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn of(lane: &Lane) -> __m256 {
        // SAFETY: a lane is as long as a vector, and lies where vectors may.
        unsafe { _mm256_load_ps(lane.0.as_ptr()) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn lane(vector: __m256) -> Lane {
        let mut lane = Lane([0.0; LANES]);
        // SAFETY: as above.
        unsafe { _mm256_store_ps(lane.0.as_mut_ptr(), vector) };
        lane
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn add_products(sum: &Lane, a: &Lane, b: &Lane) -> Lane {
        lane(_mm256_fmadd_ps(of(a), of(b), of(sum)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn times(a: &Lane, b: &Lane) -> Lane {
        lane(_mm256_mul_ps(of(a), of(b)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn plus(a: &Lane, b: &Lane) -> Lane {
        lane(_mm256_add_ps(of(a), of(b)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn minus(a: &Lane, b: &Lane) -> Lane {
        lane(_mm256_sub_ps(of(a), of(b)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn below(a: &Lane, ceiling: &Lane) -> Lane {
        lane(_mm256_min_ps(of(a), of(ceiling)))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn exp(x: &Lane) -> Lane {
        let all = |value: f32| _mm256_set1_ps(value);
        let held = _mm256_min_ps(_mm256_max_ps(of(x), all(POWERS[0])), all(POWERS[1]));
        let shifted = _mm256_fmadd_ps(held, all(LOG2_E), all(ROUND));
        let whole = _mm256_sub_ps(shifted, all(ROUND));
        let rest = _mm256_fnmadd_ps(whole, all(LN_2[1]), _mm256_fnmadd_ps(whole, all(LN_2[0]), held));
        let mut series = all(SERIES[0]);
        for next in &SERIES[1..] {
            series = _mm256_fmadd_ps(series, rest, all(*next));
        }
        let power = _mm256_add_ps(_mm256_fmadd_ps(series, _mm256_mul_ps(rest, rest), rest), all(1.0));
        let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(shifted));
        let scale = _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_castps_si256(all(1.0))));
        lane(_mm256_mul_ps(power, scale))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn positive(a: &Lane) -> u8 {
        _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(of(a), _mm256_setzero_ps())) as u8
    }

    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn above(a: &Lane, floor: &Lane) -> Lane {
        lane(_mm256_max_ps(of(a), of(floor)))
    }
}

/// The numbers of lanes.
#[inline(always)]
pub(super) fn flat(lanes: &[Lane]) -> &[f32] {
    // SAFETY: a lane is LANES numbers and nothing else, so many of them are LANES times as many numbers.
    unsafe { std::slice::from_raw_parts(lanes.as_ptr().cast(), lanes.len() * LANES) }
}

/// Rows of numbers that are padded with zeros to whole lanes.
pub(super) fn padded(rows: &[f32], width: usize) -> Vec<Lane> {
    let lane = |part: &[f32]| Lane(array::from_fn(|at| part.get(at).copied().unwrap_or(0.0)));
    rows.chunks_exact(width).flat_map(|row| row.chunks(LANES).map(lane).collect::<Vec<_>>()).collect()
}

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

/// Powers of two come out of a sum with this number: it has no fraction left, and the whole number stands in its lowest bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³
/// ln 2 in two parts, of which products with small whole numbers lose nothing of the first.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
/// Coefficients of Cephes' expf.
const SERIES: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
/// Numbers whose powers are normal numbers.
const POWERS: [f32; 2] = [-87.0, 88.0];

/// e to the power of each number, within 3 · 10⁻⁷ of itself; numbers are held within [`POWERS`].
#[inline(always)]
pub(super) fn exp<const WIDE: bool>(x: Lane) -> Lane {
    #[cfg(target_arch = "x86_64")]
    if WIDE {
        // SAFETY: whoever says WIDE runs where AVX2 and FMA are.
        return unsafe { wide::exp(&x) };
    }
    let mut powers = x;
    for x in &mut powers.0 {
        let held = if *x > POWERS[0] { *x } else { POWERS[0] };
        let held = if held < POWERS[1] { held } else { POWERS[1] };
        let shifted = held * LOG2_E + ROUND;
        let whole = shifted - ROUND;
        let rest = (held - whole * LN_2[0]) - whole * LN_2[1];
        let mut series = SERIES[0];
        for next in &SERIES[1..] {
            series = series * rest + next;
        }
        let power = series * (rest * rest) + rest + 1.0;
        *x = power * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    }
    powers
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

    #[test]
    fn powers_of_e_are_as_the_library_has_them() {
        for step in -8_700..=8_800 {
            let x = step as f32 / 100.0;
            on_both(Lane::all(x), |power| assert!((power / x.exp() - 1.0).abs() < 3e-7, "e to {x}: {power}, not {}", x.exp()));
        }
        for (x, wanted) in [(-1e9, (-87.0_f32).exp()), (f32::NEG_INFINITY, (-87.0_f32).exp()), (1e9, 88.0_f32.exp())] {
            on_both(Lane::all(x), |power| assert!((power / wanted - 1.0).abs() < 3e-7, "e to {x}: {power}, not {wanted}"));
        }
    }

    /// Powers as this processor has them, and as every processor has.
    fn on_both(x: Lane, check: impl Fn(f32)) {
        on_this_processor! {
            fn powers(x: Lane, out: &mut Lane) = powers_with
        }
        fn powers_with<const WIDE: bool>(x: Lane, out: &mut Lane) {
            *out = exp::<WIDE>(x);
        }
        let mut out = Lane::default();
        powers(x, &mut out);
        [out.0[0], out.0[7], exp::<false>(x).0[3]].into_iter().for_each(check);
    }
}
