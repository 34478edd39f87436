//! Sixteen floats at a time, the same bits on every instruction set.
//!
//! Norms, softmax, activation functions, attention and products with float weights are written
//! once against [`Lanes`]. Every operation is an IEEE operation per lane (fused where it says so),
//! and sums over lanes go through one fixed tree, so the scalar implementation is not merely close
//! to the others: it is equal.
//!
//! Sixteen is the width of the widest registers we have; narrower ones use several.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::ops::{Add, Div, Mul, Sub};

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::transpose_16;

use crate::formats::{half, minifloat};
use crate::isa::Isa;

/// Number of lanes.
pub(crate) const LANES: usize = 16;

/// Sixteen `f32`. `max` and `min` return the second operand when either is NaN or both are zero.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// How many registers of sixteen lanes the instruction set has room for, to size inner loops.
    const REGISTERS: usize;

    /// The same value in every lane.
    fn splat(x: f32) -> Self;
    /// Lane `i` from `from[i]`.
    fn load(from: &[f32; LANES]) -> Self;
    /// Lane `i` to `to[i]`.
    fn store(self, to: &mut [f32; LANES]);
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `if self > other { self } else { other }` per lane.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }` per lane.
    fn min(self, other: Self) -> Self;
    /// 2^n for lanes that hold whole numbers n in -127..=127, where 2^-127 counts as 0. Other lanes
    /// give unspecified values, but the same ones everywhere.
    fn exp2_whole(self) -> Self;
    /// The sum over all lanes in one fixed order: lanes 8 apart, then 4, 2, 1.
    #[inline(always)]
    fn sum(self) -> f32 {
        fold(self, |a, b| a + b)
    }
}

/// Conversions between [`Lanes`] and how numbers lie in memory (little-endian, any alignment).
pub(crate) trait Narrow: Lanes {
    /// 16 IEEE half-precision numbers, exactly.
    fn load_f16(from: &[u8; 2 * LANES]) -> Self;
    /// 16 bfloat16 numbers, exactly.
    fn load_bf16(from: &[u8; 2 * LANES]) -> Self;
    /// 16 floats of 8 bits (E4M3), exactly; codes that are no numbers become NaN.
    fn load_e4m3(from: &[u8; LANES]) -> Self;
    /// 16 signed bytes, exactly.
    fn load_i8(from: &[u8; LANES]) -> Self;
    /// Rounds to half precision, to nearest even; too large becomes infinite.
    fn to_f16(self) -> [u16; LANES];
    /// Transposes a 16 x 16 tile in place: lane `j` of row `i` and lane `i` of row `j` swap.
    fn transpose(tile: &mut [Self; LANES]);
}

/// A computation that can run on any implementation of [`Lanes`].
///
/// `run` and everything hot it calls must be `#[inline(always)]`, because vector code is only
/// generated inside a function that enables the instructions; [`run`] provides those functions.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Out;
    /// Runs the computation on `L`.
    fn run<L: Narrow>(self) -> Self::Out;
}

/// Runs `kernel` with the instructions of `isa`.
///
/// # Panics
/// If this machine cannot run `isa`.
#[inline]
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    assert!(isa.is_available(), "this machine cannot run {isa}");
    match isa {
        // SAFETY: the instruction set is available.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => unsafe { x86_64::run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86_64::run_avx2(kernel) },
        _ => kernel.run::<Scalar>(),
    }
}

/// The largest lane (NaN lanes lose against whatever they meet second).
#[inline(always)]
pub(crate) fn largest<L: Lanes>(x: L) -> f32 {
    fold(x, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold<L: Lanes>(x: L, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lane = [0.0; LANES];
    x.store(&mut lane);
    let eight: [f32; 8] = std::array::from_fn(|i| f(lane[i], lane[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| f(eight[i], eight[i + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

/// e^x with a relative error below 1.5e-7; 0 below -87.7, constant (2.4e38) above 88.37, NaN for
/// NaN.
///
/// x = n·ln 2 + r with |r| <= ln 2 / 2; e^r is its Taylor polynomial of degree 7, whose remainder
/// (0.35^8 / 8! = 5e-9) is below half a unit in the last place; 2^n is exact.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    // Adding and subtracting 1.5 * 2^23 rounds to a whole number, to nearest even.
    const WHOLE: f32 = 12_582_912.0;
    // ln 2 in two parts; n times the first is exact for |n| < 2^9.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = L::splat(88.37).min(L::splat(-88.3).max(x));
    let n = x.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(WHOLE)) - L::splat(WHOLE);
    let r = n.mul_add(L::splat(-LN2_HIGH), x);
    let r = n.mul_add(L::splat(-LN2_LOW), r);
    let mut y = L::splat(1.0 / 5040.0);
    for factorial in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        y = y.mul_add(r, L::splat(1.0 / factorial));
    }
    y * n.exp2_whole()
}

/// tanh x by way of [`exp`]: absolute error below 2e-7.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    let two = L::splat(2.0);
    one - two / (exp(x * two) + one)
}

/// The implementation every other one must equal.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

macro_rules! scalar_operator {
    ($trait:ident, $method:ident, $op:tt) => {
        impl $trait for Scalar {
            type Output = Self;
            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self(std::array::from_fn(|i| self.0[i] $op other.0[i]))
            }
        }
    };
}
scalar_operator!(Add, add, +);
scalar_operator!(Sub, sub, -);
scalar_operator!(Mul, mul, *);
scalar_operator!(Div, div, /);

impl Scalar {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Scalar {
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }

    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    fn exp2_whole(self) -> Self {
        // 2^n has n + 127 in its exponent bits. Adding 2^23 + 127 leaves that sum in the low bits.
        self.zip(self, |n, _| f32::from_bits((n + (8_388_608.0 + 127.0)).to_bits() << 23))
    }
}

impl Narrow for Scalar {
    fn load_f16(from: &[u8; 2 * LANES]) -> Self {
        Self(std::array::from_fn(|i| half::read_f16(from, 2 * i)))
    }

    fn load_bf16(from: &[u8; 2 * LANES]) -> Self {
        Self(std::array::from_fn(|i| half::bf16_to_f32(half::read_u16(from, 2 * i))))
    }

    fn load_e4m3(from: &[u8; LANES]) -> Self {
        Self(from.map(minifloat::e4m3))
    }

    fn load_i8(from: &[u8; LANES]) -> Self {
        Self(std::array::from_fn(|i| f32::from(from[i] as i8)))
    }

    fn to_f16(self) -> [u16; LANES] {
        self.0.map(half::f32_to_f16)
    }

    fn transpose(tile: &mut [Self; LANES]) {
        let rows = *tile;
        *tile = std::array::from_fn(|i| Self(std::array::from_fn(|j| rows[j].0[i])));
    }
}

#[cfg(test)]
mod tests;
