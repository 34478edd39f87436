//! IQ4_NL: 32 nibbles that index 16 levels, and one scale. `weight = d * LEVELS[n]`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..18   byte i: low nibble n[i], high nibble n[i + 16]
//! ```
//! The levels lie closer together near zero, where most weights are. As integers:
//! `q = LEVELS[n] + 128`, `m = 128`, `e = d`.

use super::rows::BlockRows;
use super::search::{Codebook, Values};
use super::{BYTE, BlockFormat, Codes, Panel, Symmetric, block_row, half, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Iq4Nl>();

/// The levels are part of the format: `kvalues_iq4nl` of ggml.
pub(super) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The levels as `q`.
pub(super) const CODES: [u8; 16] = {
    let (mut codes, mut i) = ([0; 16], 0);
    while i < 16 {
        codes[i] = (LEVELS[i] as i16 + 128) as u8;
        i += 1;
    }
    codes
};

struct Iq4Nl;

const _: () = assert!(Iq4Nl::BLOCK_BYTES == 2 + 32 / 2);

impl BlockFormat for Iq4Nl {
    const DTYPE: DType = DType::Iq4Nl;
    const NAME: &'static str = "IQ4_NL";
    const GGML_TYPE: Option<u32> = Some(20);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 18;
    const STEP: usize = 8;
    type Form = Symmetric<32, 32, BYTE, 128>;
    const CODES: Codes = Codes::Nibbles { first: 2, run: 16, levels: &CODES };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 0);
        for (i, &byte) in block[2..].iter().enumerate() {
            values[i] = d * level(byte & 15);
            values[i + 16] = d * level(byte >> 4);
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        unpack_nibbles(s, &CODES, rows.columns(2), q);
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        panel.d[slot] = s.widen_f16(rows.column(0));
    }
}

/// The levels for encoders.
pub(super) const BOOK: Codebook = {
    let (mut levels, mut i) = ([0.0; 16], 0);
    while i < 16 {
        levels[i] = LEVELS[i] as f32;
        i += 1;
    }
    Codebook::new(levels)
};

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let weights = search::weigh(values, importance);
    let values: [f32; 32] = search::part(values, 0);
    let of = Values { values: &values, weights: &weights };
    let d = half::write_f16(block, 0, half::through_f16(BOOK.scale(&of)));
    store_codes(&values, d, &mut block[2..]);
}

/// The nibbles of 32 values under the scale `d`. IQ4_XS stores the same.
pub(super) fn store_codes(values: &[f32], d: f32, nibbles: &mut [u8]) {
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let code = |value: f32| BOOK.nearest(value * inverse) as u8;
    for (i, byte) in nibbles.iter_mut().enumerate() {
        *byte = code(values[i]) | code(values[i + 16]) << 4;
    }
}

/// Level `n`.
pub(super) fn level(n: u8) -> f32 {
    f32::from(LEVELS[usize::from(n)])
}

/// 16 bytes of nibbles as 8 words of what they index: low nibbles first, then high ones.
#[inline(always)]
pub(super) fn unpack_nibbles<S: Simd>(s: S, table: &[u8; 16], words: [S::U; 4], q: &mut [S::U]) {
    let low = s.splat(0x0f0f_0f0f);
    for (i, word) in words.into_iter().enumerate() {
        q[i] = s.lookup(table, s.and(word, low));
        q[i + 4] = s.lookup(table, s.and(s.shr::<4>(word), low));
    }
}
