//! MXFP4: 32 four-bit floats under one power of two, as GGUF files store them.
//! `weight = d * twice E2M1[n]`.
//!
//! ```text
//! byte  0       x: d = 2^(x - 128)
//!       1..17   byte i: low nibble n[i], high nibble n[i + 16]
//! ```
//! The elements (E2M1: one sign bit, 0 to 6 in halves) are counted in halves, so that they are
//! integers, and `d` is half of the scale that the OCP Microscaling specification means. The
//! smallest two scales are subnormal singles, and `x = 255` is 2^127 and not the NaN of the
//! specification, as in ggml. As integers: `q = 2 * E2M1[n] + 12`, `m = 12`, `e = d`.

use super::minifloat::{self, E2M1_DOUBLED, E2M1_OFFSET, E2M1_Q};
use super::rows::BlockRows;
use super::search::{Codebook, Values};
use super::{BlockFormat, Codes, Panel, SEVEN_BITS, Symmetric, block_row, iq4_nl, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Mxfp4>();

struct Mxfp4;

/// Of both ways to store it.
pub(super) type Form = Symmetric<32, 32, SEVEN_BITS, E2M1_OFFSET>;

const _: () = assert!(Mxfp4::BLOCK_BYTES == 1 + 32 / 2);

/// 2^(x - 128), subnormal where it must be.
fn power(x: u8) -> f32 {
    match x {
        0 | 1 => f32::from_bits(0x0020_0000 << x),
        _ => f32::from_bits((u32::from(x) - 1) << 23),
    }
}

impl BlockFormat for Mxfp4 {
    const DTYPE: DType = DType::Mxfp4;
    const NAME: &'static str = "MXFP4";
    const GGML_TYPE: Option<u32> = Some(39);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 17;
    const STEP: usize = 8;
    type Form = Form;
    const CODES: Codes = Codes::Nibbles { first: 1, run: 16, levels: &E2M1_Q };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = power(block[0]);
        for (i, &byte) in block[1..].iter().enumerate() {
            values[i] = d * f32::from(E2M1_DOUBLED[usize::from(byte & 15)]);
            values[i + 16] = d * f32::from(E2M1_DOUBLED[usize::from(byte >> 4)]);
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        iq4_nl::unpack_nibbles(s, &E2M1_Q, rows.columns(1), q);
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        panel.d[slot] = minifloat::half_power(s, s.and(rows.column(0), s.splat(0xff)));
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let weights: [f32; 32] = search::weigh(values, importance);
    let values: [f32; 32] = search::part(values, 0);
    let of = Values { values: &values, weights: &weights };
    let amax = values.iter().fold(0f32, |amax, v| amax.max(v.abs()));
    // The power that just holds the largest value, and those that cut it off or waste a bit.
    let first = (0..=254u8).find(|&x| 12.0 * power(x) >= amax).unwrap_or(254);
    let candidates = [first, first.saturating_sub(1), first.saturating_sub(2), first + 1];
    let mut best = (f32::INFINITY, first);
    for x in candidates {
        let error = BOOK.error(&of, power(x));
        if error < best.0 {
            best = (error, x);
        }
    }
    block[0] = best.1;
    let inverse = 1.0 / power(best.1).max(f32::MIN_POSITIVE);
    let code = |value: f32| ASCENDING[BOOK.nearest(value * inverse)];
    for i in 0..16 {
        block[1 + i] = code(values[i]) | code(values[i + 16]) << 4;
    }
}

/// The codes by ascending level; the second zero is left out, and the largest is there twice.
const ASCENDING: [u8; 16] = [15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 7];

/// The levels for encoders.
const BOOK: Codebook = {
    let (mut levels, mut i) = ([0.0; 16], 0);
    while i < 16 {
        levels[i] = E2M1_DOUBLED[ASCENDING[i] as usize] as f32;
        i += 1;
    }
    Codebook::new(levels)
};
