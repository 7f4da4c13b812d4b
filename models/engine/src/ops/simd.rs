//! Compiles a function for several vector widths and picks one at run time; scalar helpers that vectorise.

use std::sync::OnceLock;

/// The vector instructions of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    /// What the target's baseline has.
    Base,
    /// AVX2 with fused multiply-add: 8 floats.
    Avx2,
    /// AVX-512: 16 floats.
    Avx512,
}

/// The widest vectors of this machine.
pub(crate) fn width() -> Width {
    static WIDTH: OnceLock<Width> = OnceLock::new();
    *WIDTH.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let wide = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw");
            if avx2 && wide {
                return Width::Avx512;
            }
            if avx2 {
                return Width::Avx2;
            }
        }
        Width::Base
    })
}

/// Writes a function whose body is compiled once per [`Width`]. The body must not use fused multiply-adds (at the base width they would be
/// library calls), so that every width computes the same bits.
macro_rules! vectorised {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $out)? {
                    body($($arg),*)
                }
                match $crate::ops::simd::width() {
                    // SAFETY: `width` has seen these instructions on this machine.
                    $crate::ops::simd::Width::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::simd::Width::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::ops::simd::Width::Base => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorised;

/// `e^x` to about 1e-7 relative for −87 ≤ x ≤ 88, clamped beyond; NaN stays NaN; loops over it vectorise.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Adding and taking away 1.5 · 2²³ rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, so that `x − r · ln 2` keeps its digits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let r = shifted - ROUND;
    let f = (x - r * LN2_HIGH) - r * LN2_LOW;
    // Taylor to the sixth power: |f| ≤ ln 2 / 2, remainder below 2e-7 · 2⁻⁵.
    let p = 1.388_888_9e-3f32;
    let p = p * f + 8.333_334e-3;
    let p = p * f + 4.166_666_8e-2;
    let p = p * f + 1.666_666_7e-1;
    let p = p * f + 0.5;
    let p = p * f + 1.0;
    let p = p * f + 1.0;
    // Beside `ROUND` one step of the bits is one integer, so they hold `r`. A NaN's hold nothing, but then `p` is NaN.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits() - 127);
    f32::from_bits(exponent << 23) * p
}

/// The error function to 5e-7 absolute.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    // Rational form with five coefficients (Abramowitz and Stegun 7.1.26).
    let a = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * a);
    let p = 1.061_405_4f32;
    let p = p * t - 1.453_152_1;
    let p = p * t + 1.421_413_8;
    let p = p * t - 0.284_496_72;
    let p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-a * a)).copysign(x)
}

/// The hyperbolic tangent to 3e-7 absolute.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

/// The logistic function.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Partial results that are kept side by side, so that a reduction vectorises; its order depends on the length alone.
const LANES: usize = 32;

#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (x, y) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    for (i, (x, y)) in a_rest.iter().zip(b_rest).enumerate() {
        lanes[i] += x * y;
    }
    fold(lanes, |x, y| x + y)
}

/// Sum.
#[inline(always)]
pub(crate) fn sum(a: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] += block[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x;
    }
    fold(lanes, |x, y| x + y)
}

/// Largest value; −∞ of nothing.
#[inline(always)]
pub(crate) fn max(a: &[f32]) -> f32 {
    let larger = |x: f32, y: f32| if x > y { x } else { y };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = a.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], block[i]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, *x);
    }
    fold(lanes, larger)
}

/// Softmax in place; nothing happens to an empty row.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32]) {
    let largest = max(row);
    for x in row.iter_mut() {
        *x = exp(*x - largest);
    }
    let scale = 1.0 / sum(row);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(from: f64, to: f64) -> impl Iterator<Item = f32> {
        (0..=100_000).map(move |i| (from + (to - from) * f64::from(i) / 100_000.0) as f32)
    }

    /// By its series: exact enough within ±4.
    fn erf_exact(x: f64) -> f64 {
        let (mut term, mut total) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            total += term / f64::from(2 * n + 1);
        }
        total * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn approximations_keep_their_promised_error() {
        let exp_error = grid(-80.0, 80.0).map(|x| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs()).fold(0.0, f64::max);
        assert!(exp_error < 3e-7, "exp {exp_error:e}");
        let erf_error = grid(-4.0, 4.0).map(|x| (f64::from(erf(x)) - erf_exact(f64::from(x))).abs()).fold(0.0, f64::max);
        assert!(erf_error < 5e-7, "erf {erf_error:e}");
        let tanh_error = grid(-20.0, 20.0).map(|x| (f64::from(tanh(x)) - f64::from(x).tanh()).abs()).fold(0.0, f64::max);
        assert!(tanh_error < 4e-7, "tanh {tanh_error:e}");
    }

    #[test]
    fn exp_is_the_libraries_over_its_range_and_keeps_what_is_no_number() {
        let error = grid(-87.0, 88.0).map(|x| (exp(x) / x.exp() - 1.0).abs()).fold(0.0, f32::max);
        assert!(error < 4e-7, "{error:e}");
        assert_eq!((exp(f32::NEG_INFINITY), exp(f32::INFINITY)), (exp(-87.0), exp(88.0)));
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(u32::MAX)] {
            assert!([exp(nan), sigmoid(nan), tanh(nan), erf(nan)].iter().all(|y| y.is_nan()), "{:x}", nan.to_bits());
            let mut row = [0.5, nan, 0.25];
            softmax(&mut row);
            assert!(row.iter().all(|y| y.is_nan()), "{row:?}");
        }
    }

    #[test]
    fn reductions_agree_with_plain_loops_at_every_length() {
        for n in 0..100 {
            let a: Vec<f32> = (0..n).map(|i| ((i * 7 + 3) % 11) as f32 - 5.0).collect();
            assert_eq!(sum(&a), a.iter().sum::<f32>());
            assert_eq!(dot(&a, &a), a.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(max(&a), a.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
