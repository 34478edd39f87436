//! [`Lanes`] as two 256-bit registers or one 512-bit register.
//!
//! The trait's methods cannot carry `#[target_feature]`; they are inlined into [`run_avx2`] and
//! [`run_avx512`], which do. Calling them from elsewhere would be correct only by luck, so the
//! types never leave those two functions.

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Kernel, LANES, Lanes, Narrow};

/// Runs a kernel on 512-bit registers.
///
/// # Safety
/// The machine must have the instructions named in the attribute.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<Avx512>()
}

/// Runs a kernel on 256-bit registers.
///
/// # Safety
/// The machine must have the instructions named in the attribute.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<Avx2>()
}

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// Two 256-bit registers: lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

/// Implements the four arithmetic operators by one intrinsic each.
macro_rules! operators {
    ($($trait:ident $method:ident $wide:ident $half:ident;)*) => {$(
        impl $trait for Avx512 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: see the top of the file.
                unsafe { Self($wide(self.0, other.0)) }
            }
        }
        impl $trait for Avx2 {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: see the top of the file.
                unsafe { Self($half(self.0, other.0), $half(self.1, other.1)) }
            }
        }
    )*};
}
operators! {
    Add add _mm512_add_ps _mm256_add_ps;
    Sub sub _mm512_sub_ps _mm256_sub_ps;
    Mul mul _mm512_mul_ps _mm256_mul_ps;
    Div div _mm512_div_ps _mm256_div_ps;
}

impl Lanes for Avx512 {
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: 16 floats are readable; the load is unaligned.
        unsafe { Self(_mm512_loadu_ps(from.as_ptr())) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: 16 floats are writable; the store is unaligned.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm512_min_ps(self.0, other.0)) }
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        // SAFETY: see the top of the file.
        unsafe {
            let biased = _mm512_add_ps(self.0, _mm512_set1_ps(8_388_608.0 + 127.0));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(biased))))
        }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the top of the file.
        unsafe {
            let low = _mm512_castps512_ps256(self.0);
            sum_8(_mm256_add_ps(low, _mm512_extractf32x8_ps::<1>(self.0)))
        }
    }
}

/// Transposes a 16 x 16 tile of words, in four rounds, each of which doubles the distance between
/// exchanged lanes: 1, 2, 4, 8.
///
/// # Safety
/// The machine has AVX-512.
#[inline(always)]
pub(crate) unsafe fn transpose_16(tile: [__m512; LANES]) -> [__m512; LANES] {
    // SAFETY: the caller promises the instructions.
    unsafe {
        let mut a = [_mm512_setzero_ps(); LANES];
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_ps(tile[2 * i], tile[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_ps(tile[2 * i], tile[2 * i + 1]);
        }
        let mut b = a;
        for i in [0, 4, 8, 12] {
            let (low0, low2) = (_mm512_castps_pd(a[i]), _mm512_castps_pd(a[i + 2]));
            let (high0, high2) = (_mm512_castps_pd(a[i + 1]), _mm512_castps_pd(a[i + 3]));
            b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low2));
            b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low2));
            b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high2));
            b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high2));
        }
        // b[4g + c] holds columns c, c+4, c+8, c+12 of rows 4g..4g+4, one per 128-bit part.
        let mut out = b;
        for c in 0..4 {
            let low01 = _mm512_shuffle_f32x4::<0x88>(b[c], b[c + 4]);
            let low23 = _mm512_shuffle_f32x4::<0x88>(b[c + 8], b[c + 12]);
            let high01 = _mm512_shuffle_f32x4::<0xdd>(b[c], b[c + 4]);
            let high23 = _mm512_shuffle_f32x4::<0xdd>(b[c + 8], b[c + 12]);
            out[c] = _mm512_shuffle_f32x4::<0x88>(low01, low23);
            out[c + 8] = _mm512_shuffle_f32x4::<0xdd>(low01, low23);
            out[c + 4] = _mm512_shuffle_f32x4::<0x88>(high01, high23);
            out[c + 12] = _mm512_shuffle_f32x4::<0xdd>(high01, high23);
        }
        out
    }
}

impl Narrow for Avx512 {
    #[inline(always)]
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        // SAFETY: 32 bytes are readable; the load is unaligned.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        // SAFETY: 32 bytes are readable; the load is unaligned.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }

    #[inline(always)]
    fn load_e4m3(from: &[u8; LANES]) -> Self {
        // SAFETY: see the top of the file.
        unsafe {
            let halves = _mm512_cvtph_ps(halves_of_e4m3(from));
            Self(_mm512_mul_ps(halves, _mm512_set1_ps(256.0)))
        }
    }

    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        // SAFETY: 16 bytes are readable; the load is unaligned.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            Self(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }

    #[inline(always)]
    fn to_f16(self) -> [u16; LANES] {
        let mut out = [0u16; LANES];
        // SAFETY: 16 halves are writable; the store is unaligned.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), half);
        }
        out
    }

    #[inline(always)]
    fn transpose(tile: &mut [Self; LANES]) {
        // SAFETY: see the top of the file.
        *tile = unsafe { transpose_16(tile.map(|row| row.0)) }.map(Self);
    }
}

impl Lanes for Avx2 {
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: 16 floats are readable; the loads are unaligned.
        unsafe { Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: 16 floats are writable; the stores are unaligned.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), self.1);
        }
    }

    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }

    #[inline(always)]
    fn exp2_whole(self) -> Self {
        // SAFETY: see the top of the file.
        unsafe { Self(exp2_whole_8(self.0), exp2_whole_8(self.1)) }
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: see the top of the file.
        unsafe { sum_8(_mm256_add_ps(self.0, self.1)) }
    }
}

/// Lane `i` takes lane `i + 4`, then `+ 2`, `+ 1`.
#[inline(always)]
unsafe fn sum_8(a: __m256) -> f32 {
    // SAFETY: the caller runs inside `run_avx2` or `run_avx512`.
    unsafe {
        let a = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let a = _mm_add_ps(a, _mm_movehl_ps(a, a));
        _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)))
    }
}

#[inline(always)]
unsafe fn exp2_whole_8(n: __m256) -> __m256 {
    // SAFETY: the caller runs inside `run_avx2`.
    unsafe {
        let biased = _mm256_add_ps(n, _mm256_set1_ps(8_388_608.0 + 127.0));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(biased)))
    }
}

#[inline(always)]
unsafe fn bf16_to_8(half: __m128i) -> __m256 {
    // SAFETY: the caller runs inside `run_avx2`.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half))) }
}

/// 16 floats of 8 bits (E4M3) as halves of a 256th of their value; NaNs stay NaN.
#[inline(always)]
unsafe fn halves_of_e4m3(bytes: &[u8; 16]) -> __m256i {
    // SAFETY: the caller runs inside `run_avx2` or `run_avx512`, and the array is 16 bytes.
    unsafe {
        // Exponent and fraction keep their order; the sign is spread over the two bits above.
        let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
        let half = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(!0x4000));
        let magnitude = _mm256_and_si256(half, _mm256_set1_epi16(0x7fff));
        let nan = _mm256_cmpeq_epi16(magnitude, _mm256_set1_epi16(0x3f80));
        _mm256_or_si256(half, _mm256_and_si256(nan, _mm256_set1_epi16(0x7c00)))
    }
}

#[inline(always)]
unsafe fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller runs inside `run_avx2`.
    unsafe {
        let mut a = rows;
        for i in [0, 2, 4, 6] {
            a[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            a[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        let mut b = a;
        for i in [0, 4] {
            b[i] = _mm256_shuffle_ps::<0x44>(a[i], a[i + 2]);
            b[i + 1] = _mm256_shuffle_ps::<0xee>(a[i], a[i + 2]);
            b[i + 2] = _mm256_shuffle_ps::<0x44>(a[i + 1], a[i + 3]);
            b[i + 3] = _mm256_shuffle_ps::<0xee>(a[i + 1], a[i + 3]);
        }
        let mut out = b;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(b[c], b[c + 4]);
            out[c + 4] = _mm256_permute2f128_ps::<0x31>(b[c], b[c + 4]);
        }
        out
    }
}

impl Narrow for Avx2 {
    #[inline(always)]
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        // SAFETY: 32 bytes are readable; the loads are unaligned.
        unsafe {
            let at: *const __m128i = from.as_ptr().cast();
            Self(_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at.add(1))))
        }
    }

    #[inline(always)]
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        // SAFETY: 32 bytes are readable; the loads are unaligned.
        unsafe {
            let at: *const __m128i = from.as_ptr().cast();
            Self(bf16_to_8(_mm_loadu_si128(at)), bf16_to_8(_mm_loadu_si128(at.add(1))))
        }
    }

    #[inline(always)]
    fn load_e4m3(from: &[u8; LANES]) -> Self {
        // SAFETY: see the top of the file.
        unsafe {
            let (halves, scale) = (halves_of_e4m3(from), _mm256_set1_ps(256.0));
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves));
            Self(_mm256_mul_ps(low, scale), _mm256_mul_ps(high, scale))
        }
    }

    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        // SAFETY: 16 bytes are readable; the load is unaligned.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    fn to_f16(self) -> [u16; LANES] {
        let mut out = [0u16; LANES];
        // SAFETY: 16 halves are writable; the stores are unaligned.
        unsafe {
            let at: *mut __m128i = out.as_mut_ptr().cast();
            _mm_storeu_si128(at, _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0));
            let high = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.1);
            _mm_storeu_si128(at.add(1), high);
        }
        out
    }

    #[inline(always)]
    fn transpose(tile: &mut [Self; LANES]) {
        // Four 8 x 8 tiles; the two off the diagonal also change places.
        // SAFETY: see the top of the file.
        unsafe {
            let top_left = transpose_8(std::array::from_fn(|i| tile[i].0));
            let top_right = transpose_8(std::array::from_fn(|i| tile[i].1));
            let bottom_left = transpose_8(std::array::from_fn(|i| tile[i + 8].0));
            let bottom_right = transpose_8(std::array::from_fn(|i| tile[i + 8].1));
            for i in 0..8 {
                tile[i] = Self(top_left[i], bottom_left[i]);
                tile[i + 8] = Self(top_right[i], bottom_right[i]);
            }
        }
    }
}
