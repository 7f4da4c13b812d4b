//! A few floats side by side, so that one kernel serves every vector width.

/// As many floats as fit a register.
pub(super) trait Lanes: Copy {
    /// How many.
    const N: usize;
    /// Query rows that share a pass over the values, as many as there are registers for.
    const ROWS: usize;

    /// # Safety
    /// The machine has the instructions; so for all below.
    unsafe fn splat(x: f32) -> Self;
    /// # Safety
    /// `from` covers `N` values.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `to` covers `N` values.
    unsafe fn store(self, to: *mut f32);
    /// `self · by + plus`, for each.
    ///
    /// # Safety
    /// As [`Self::splat`].
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self;
    /// Sum of each.
    ///
    /// # Safety
    /// As [`Self::splat`].
    unsafe fn add(self, other: Self) -> Self;
}

/// Lanes of a machine without known vector instructions; the compiler uses what its target has.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 8]);

impl Lanes for Plain {
    const N: usize = 8;
    const ROWS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 8])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] * by.0[i] + plus.0[i]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i] + other.0[i]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_storeu_ps, _mm512_add_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use super::Lanes;

    macro_rules! lanes {
        ($type:ty, $n:literal, $rows:literal, $splat:ident, $load:ident, $store:ident, $multiply_add:ident, $add:ident) => {
            impl Lanes for $type {
                const N: usize = $n;
                const ROWS: usize = $rows;

                #[inline(always)]
                unsafe fn splat(x: f32) -> Self {
                    // SAFETY: the caller's promise, here and below.
                    unsafe { $splat(x) }
                }
                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: as above.
                    unsafe { $load(from) }
                }
                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: as above.
                    unsafe { $store(to, self) }
                }
                #[inline(always)]
                unsafe fn multiply_add(self, by: Self, plus: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $multiply_add(self, by, plus) }
                }
                #[inline(always)]
                unsafe fn add(self, other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $add(self, other) }
                }
            }
        };
    }
    lanes!(__m512, 16, 2, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_fmadd_ps, _mm512_add_ps);
    lanes!(__m256, 8, 1, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_fmadd_ps, _mm256_add_ps);
}
