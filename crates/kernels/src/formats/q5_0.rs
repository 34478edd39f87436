//! Q5_0: 32 codes of 5 bits and one scale. `weight = d * (q - 16)`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..6    bit i is the fifth bit of q[i]
//!       6..22   byte i: low nibble of q[i], low nibble of q[i + 16] above it
//! ```
//! As integers: `m = 16`, `e = d`.

use super::rows::BlockRows;
use super::{BlockFormat, Panel, SEVEN_BITS, Symmetric, block_row, half, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q5_0>();

struct Q5_0;

const _: () = assert!(Q5_0::BLOCK_BYTES == 2 + 32 / 8 + 32 / 2);

impl BlockFormat for Q5_0 {
    const DTYPE: DType = DType::Q5_0;
    const NAME: &'static str = "Q5_0";
    const GGML_TYPE: Option<u32> = Some(6);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 22;
    type Form = Symmetric<32, 32, SEVEN_BITS, 16>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 0);
        for (value, q) in values.iter_mut().zip(codes(&block[2..])) {
            *value = d * (f32::from(q) - 16.0);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        let [head, next, ..] = rows.columns(0);
        panel.d[slot] = s.widen_f16(head);
        let fifth = s.or(s.shr::<16>(head), s.shl::<16>(next));
        unpack_codes(s, fifth, rows.columns(6), panel, slot);
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let (d, codes) = search::one_scale(values, importance, (-16.0, 15.0));
    half::write_f16(block, 0, d);
    store_codes(&mut block[2..], |i| (codes[i] + 16.0) as u8);
}

/// The 32 codes in `bytes` `[20]`: the fifth bits, then the nibbles. Q5_1 stores the same.
pub(super) fn codes(bytes: &[u8]) -> [u8; 32] {
    std::array::from_fn(|i| {
        let nibble = bytes[4 + i % 16] >> (4 * (i / 16)) & 15;
        nibble | (bytes[i / 8] >> (i % 8) & 1) << 4
    })
}

/// The inverse of [`codes`]; every code is below 32.
pub(super) fn store_codes(bytes: &mut [u8], code: impl Fn(usize) -> u8) {
    bytes.fill(0);
    for i in 0..32 {
        bytes[4 + i % 16] |= (code(i) & 15) << (4 * (i / 16));
        bytes[i / 8] |= (code(i) >> 4) << (i % 8);
    }
}

/// [`codes`] of every row as block number `slot` of the panel: `fifth` is the word of fifth bits.
#[inline(always)]
pub(super) fn unpack_codes<S: Simd>(
    s: S,
    mut fifth: S::U,
    nibbles: [S::U; 4],
    panel: &mut Panel<S>,
    slot: usize,
) {
    let (zero, low, top) = (s.splat(0), s.splat(0x0f0f_0f0f), s.splat(0x1010_1010));
    for word in 0..8 {
        let nibble = if word < 4 { nibbles[word] } else { s.shr::<4>(nibbles[word - 4]) };
        // Four bits b at once to bit 4 of four bytes: shifted copies at 4, 11, 18 and 25 do not
        // overlap, and bit b of copy b falls on bit 4 + 8b.
        let bits = s.and(fifth, s.splat(15));
        let spread = s.and(s.mul_add(zero, bits, s.splat(0x0204_0810)), top);
        panel.q[8 * slot + word] = s.or(s.and(nibble, low), spread);
        fifth = s.shr::<4>(fifth);
    }
}
