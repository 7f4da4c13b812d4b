//! Numbers in whole lanes, and what is done to eight of them at once.
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
