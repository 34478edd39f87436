//! The few vector operations that quantised formats and their products are written in. Floats go
//! through [`crate::lanes`], where lanes run along a row and not across rows.
//!
//! An instruction set is one `Copy` type that implements [`Simd`]; a value of that type proves
//! that the processor has the instructions, so every method is safe to call. Algorithms are
//! generic over it and marked `#[inline(always)]`: they are compiled once per instruction set,
//! inside one function of `arch/` that carries the `target_feature` attribute.
//!
//! A vector holds [`Words::LANES`] lanes of 32 bits, and **lane `i` belongs to weight row `i`**
//! of a panel. Nothing is ever summed across lanes: that is why every instruction set gives the
//! same bits.

use std::ops::Range;

use crate::activations::QuantisedRow;
use crate::formats::{Form, Panel, half};
use crate::matmul;

/// Lanes of 32 bits, and how a panel of rows gets into them.
pub(crate) trait Words: Copy + Send + Sync + 'static {
    /// Rows in a panel: the number of 32-bit lanes.
    const LANES: usize;
    /// `LANES` words, seen as u32, i32, pairs of i16 or fours of bytes.
    type U: Copy;

    /// The same word in all lanes.
    fn splat(self, word: u32) -> Self::U;
    /// Bitwise and.
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    /// Bitwise or.
    fn or(self, a: Self::U, b: Self::U) -> Self::U;
    /// Bitwise exclusive or.
    fn xor(self, a: Self::U, b: Self::U) -> Self::U;
    /// Shifts each lane left.
    fn shl<const N: u32>(self, a: Self::U) -> Self::U;
    /// Shifts each lane right, filling with zeros.
    fn shr<const N: u32>(self, a: Self::U) -> Self::U;
    /// 16 bytes of every row, transposed: result `w` holds word `w` of each row's 16 bytes.
    ///
    /// # Safety
    /// For every lane `i`, 16 bytes from `first + i * stride` must be readable.
    unsafe fn columns(self, first: *const u8, stride: usize) -> [Self::U; 4];
    /// One word (4 bytes, any alignment) of every row.
    ///
    /// # Safety
    /// For every lane `i`, 4 bytes from `first + i * stride` must be readable.
    unsafe fn column(self, first: *const u8, stride: usize) -> Self::U;
}

/// Exact integer arithmetic on words.
pub(crate) trait Integers: Words {
    /// What [`Integers::dot_full`] subtracts from each `q` before multiplying: 0 or 128,
    /// whichever costs the instruction set less.
    const FULL_BIAS: i32;
    /// Whether [`Integers::dot_nibbles`] sums each i16 half of a lane for itself.
    const NIBBLE_HALVES: bool;

    /// `acc + sum of q[i] * x[i]` over the four bytes of a lane; `q` unsigned and at most 127,
    /// `x` signed and at least -127.
    fn dot(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U;
    /// `acc + sum of (q[i] - FULL_BIAS) * x[i]`; `q` unsigned, 0..=255.
    fn dot_full(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U;
    /// `acc + sum of q[i] * x[i]`; `q` at most 15, and at most 8 such sums one upon another.
    /// With [`Integers::NIBBLE_HALVES`] a lane's sum is that of its two i16 halves.
    fn dot_nibbles(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U;
    /// `acc + a.low * b.low + a.high * b.high` over the two i16 of a lane.
    fn dot_pairs(self, acc: Self::U, a: Self::U, b: Self::U) -> Self::U;
    /// `acc + a * b` as i32.
    fn mul_add(self, acc: Self::U, a: Self::U, b: Self::U) -> Self::U;
    /// `a - b` as i32.
    fn sub(self, a: Self::U, b: Self::U) -> Self::U;
    /// Shifts each lane right, filling with its sign.
    fn sar<const N: u32>(self, a: Self::U) -> Self::U;
    /// Each byte of `index`, all of them below 16, becomes the byte of `table` with that number.
    fn lookup(self, table: &[u8; 16], index: Self::U) -> Self::U;
}

/// Single precision, one value per row.
pub(crate) trait Floats: Words {
    /// `LANES` values.
    type F: Copy;

    /// The same value in all lanes.
    fn splat_f32(self, value: f32) -> Self::F;
    /// The lower 16 bits of each lane, read as half precision.
    fn widen_f16(self, halves: Self::U) -> Self::F;
    /// The bits of each lane, read as single precision.
    fn bits_to_f32(self, bits: Self::U) -> Self::F;
    /// Each lane's i32, rounded to nearest even.
    fn to_f32(self, a: Self::U) -> Self::F;
    /// `a * b`, rounded once.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Writes the first `out.len()` lanes; `out` is at most `LANES` long.
    fn store(self, a: Self::F, out: &mut [f32]);
}

/// An instruction set.
pub(crate) trait Simd: Words + Integers + Floats {
    /// Tokens whose partial sums fit in registers at once: 1, 2, 4 or 8.
    const TILE: usize;

    /// [`matmul::tile`]. Where there are tiles of many inputs, a function of its own, compiled once
    /// for all formats of a form: inlined into each of them, they were most of the code.
    fn tile<F: Form, const T: usize>(
        self,
        panel: &Panel<Self>,
        blocks: Range<usize>,
        inputs: &[QuantisedRow<'_>],
        acc: &mut [Self::F],
    ) -> usize {
        matmul::tile::<Self, F, T>(self, panel, blocks, inputs, acc)
    }
}

/// Portable Rust: the reference for all others. Its operations are calls: unrolled into every
/// format they were half of the code, and more than half of the time it took to compile.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar;

/// Rows in a scalar panel. Any number works; this one lets compilers use what they have.
const SCALAR_LANES: usize = 8;
type ScalarWords = [u32; SCALAR_LANES];

/// Applies `f` lane by lane.
#[inline(always)]
fn each<A: Copy, const N: usize, R>(a: [A; N], f: impl Fn(usize, A) -> R) -> [R; N] {
    let mut index = 0;
    a.map(|lane| {
        let result = f(index, lane);
        index += 1;
        result
    })
}

impl Words for Scalar {
    const LANES: usize = SCALAR_LANES;
    type U = ScalarWords;

    #[inline(never)]
    fn splat(self, word: u32) -> Self::U {
        [word; SCALAR_LANES]
    }
    #[inline(never)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        each(a, |i, a| a & b[i])
    }
    #[inline(never)]
    fn or(self, a: Self::U, b: Self::U) -> Self::U {
        each(a, |i, a| a | b[i])
    }
    #[inline(never)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        each(a, |i, a| a ^ b[i])
    }
    #[inline(never)]
    fn shl<const N: u32>(self, a: Self::U) -> Self::U {
        each(a, |_, a| a << N)
    }
    #[inline(never)]
    fn shr<const N: u32>(self, a: Self::U) -> Self::U {
        each(a, |_, a| a >> N)
    }
    #[inline(never)]
    unsafe fn columns(self, first: *const u8, stride: usize) -> [Self::U; 4] {
        let mut words = [[0; SCALAR_LANES]; 4];
        for (word, lanes) in words.iter_mut().enumerate() {
            // SAFETY: the caller promises 16 readable bytes per row; these are 4 of them.
            *lanes = unsafe { self.column(first.add(4 * word), stride) };
        }
        words
    }
    #[inline(never)]
    unsafe fn column(self, first: *const u8, stride: usize) -> Self::U {
        let mut words = [0; SCALAR_LANES];
        for (lane, word) in words.iter_mut().enumerate() {
            // SAFETY: the caller promises 4 readable bytes per row; no alignment is assumed.
            *word = unsafe { first.add(lane * stride).cast::<u32>().read_unaligned() };
        }
        words
    }
}

/// `sum of (q[i] - bias) * x[i]` over four bytes.
fn dot_bytes(q: u32, x: u32, bias: i32) -> i32 {
    let (q, x) = (q.to_le_bytes(), x.to_le_bytes());
    (0..4).map(|i| (i32::from(q[i]) - bias) * i32::from(x[i] as i8)).sum()
}

impl Integers for Scalar {
    const FULL_BIAS: i32 = 0;
    const NIBBLE_HALVES: bool = false;

    #[inline(never)]
    fn dot(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U {
        self.dot_full(acc, q, x)
    }
    #[inline(never)]
    fn dot_full(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U {
        each(acc, |i, acc| acc.wrapping_add(dot_bytes(q[i], x[i], Self::FULL_BIAS) as u32))
    }
    #[inline(never)]
    fn dot_nibbles(self, acc: Self::U, q: Self::U, x: Self::U) -> Self::U {
        self.dot_full(acc, q, x)
    }
    #[inline(never)]
    fn dot_pairs(self, acc: Self::U, a: Self::U, b: Self::U) -> Self::U {
        let product = |a: u32, b: u32| i32::from(a as i16) * i32::from(b as i16);
        each(acc, |i, acc| {
            let sum = product(a[i], b[i]) + product(a[i] >> 16, b[i] >> 16);
            acc.wrapping_add(sum as u32)
        })
    }
    #[inline(never)]
    fn mul_add(self, acc: Self::U, a: Self::U, b: Self::U) -> Self::U {
        each(acc, |i, acc| acc.wrapping_add(a[i].wrapping_mul(b[i])))
    }
    #[inline(never)]
    fn sub(self, a: Self::U, b: Self::U) -> Self::U {
        each(a, |i, a| a.wrapping_sub(b[i]))
    }
    #[inline(never)]
    fn sar<const N: u32>(self, a: Self::U) -> Self::U {
        each(a, |_, a| ((a as i32) >> N) as u32)
    }
    #[inline(never)]
    fn lookup(self, table: &[u8; 16], index: Self::U) -> Self::U {
        let byte = |index: u8| table[usize::from(index & 15)];
        each(index, |_, index| u32::from_le_bytes(index.to_le_bytes().map(byte)))
    }
}

impl Floats for Scalar {
    type F = [f32; SCALAR_LANES];

    #[inline(always)]
    fn splat_f32(self, value: f32) -> Self::F {
        [value; SCALAR_LANES]
    }
    #[inline(never)]
    fn widen_f16(self, halves: Self::U) -> Self::F {
        each(halves, |_, half| half::f16_to_f32(half as u16))
    }
    #[inline(always)]
    fn bits_to_f32(self, bits: Self::U) -> Self::F {
        each(bits, |_, bits| f32::from_bits(bits))
    }
    #[inline(never)]
    fn to_f32(self, a: Self::U) -> Self::F {
        each(a, |_, a| a as i32 as f32)
    }
    #[inline(never)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each(a, |i, a| a * b[i])
    }
    #[inline(never)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(a, |i, a| a.mul_add(b[i], c[i]))
    }
    #[inline(never)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each(a, |i, a| (-a).mul_add(b[i], c[i]))
    }
    #[inline(never)]
    fn store(self, a: Self::F, out: &mut [f32]) {
        out.copy_from_slice(&a[..out.len()]);
    }
}

impl Simd for Scalar {
    const TILE: usize = 1;
}
