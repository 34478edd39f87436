//! Q5_1: 32 codes of 5 bits, one scale, one minimum. `weight = d * q + min`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..4    min, half precision
//!       4..8    bit i is the fifth bit of q[i]
//!       8..24   byte i: low nibble of q[i], low nibble of q[i + 16] above it
//! ```
//! As integers: `m = 1`, `e = -min`.

use super::rows::BlockRows;
use super::{Affine, BlockFormat, Panel, SEVEN_BITS, block_row, half, q5_0, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q5_1>();

struct Q5_1;

const _: () = assert!(Q5_1::BLOCK_BYTES == 2 + 2 + 32 / 8 + 32 / 2);

impl BlockFormat for Q5_1 {
    const DTYPE: DType = DType::Q5_1;
    const NAME: &'static str = "Q5_1";
    const GGML_TYPE: Option<u32> = Some(7);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 24;
    type Form = Affine<32, 32, SEVEN_BITS>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, min) = (half::read_f16(block, 0), half::read_f16(block, 2));
        for (value, q) in values.iter_mut().zip(q5_0::codes(&block[4..])) {
            *value = d * f32::from(q) + min;
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        let [head, fifth, ..] = rows.columns(0);
        panel.d[slot] = s.widen_f16(head);
        // Flipping the sign bit negates the minimum exactly.
        panel.e[slot] = s.widen_f16(s.xor(s.shr::<16>(head), s.splat(0x8000)));
        q5_0::unpack_codes(s, fifth, rows.columns(8), panel, slot);
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let (d, min, codes) = search::scale_and_min(values, importance, 31.0);
    half::write_f16(block, 0, d);
    half::write_f16(block, 2, min);
    q5_0::store_codes(&mut block[4..], |i| codes[i] as u8);
}
