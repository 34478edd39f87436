//! Q4_1: 32 nibbles, one scale, one minimum. `weight = d * n + min`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..4    min, half precision
//!       4..20   byte i: low nibble n[i], high nibble n[i + 16]
//! ```
//! As integers: `q = n`, `m = 1`, `e = -min`.

use super::rows::BlockRows;
use super::{Affine, BlockFormat, Codes, NIBBLE, Panel, block_row, half, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q4_1>();

struct Q4_1;

const _: () = assert!(Q4_1::BLOCK_BYTES == 2 + 2 + 32 / 2);

impl BlockFormat for Q4_1 {
    const DTYPE: DType = DType::Q4_1;
    const NAME: &'static str = "Q4_1";
    const GGML_TYPE: Option<u32> = Some(3);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 20;
    const STEP: usize = 8;
    type Form = Affine<32, 32, NIBBLE>;
    const CODES: Codes = Codes::nibbles(4, 16);
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, min) = (half::read_f16(block, 0), half::read_f16(block, 2));
        for (i, &byte) in block[4..].iter().enumerate() {
            values[i] = d * f32::from(byte & 15) + min;
            values[i + 16] = d * f32::from(byte >> 4) + min;
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        let low = s.splat(0x0f0f_0f0f);
        for (i, word) in rows.columns(4).into_iter().enumerate() {
            q[i] = s.and(word, low);
            q[4 + i] = s.and(s.shr::<4>(word), low);
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        let head = rows.column(0);
        panel.d[slot] = s.widen_f16(head);
        // Flipping the sign bit negates the minimum exactly.
        panel.e[slot] = s.widen_f16(s.xor(s.shr::<16>(head), s.splat(0x8000)));
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let (d, min, codes) = search::scale_and_min(values, importance, 15.0);
    half::write_f16(block, 0, d);
    half::write_f16(block, 2, min);
    for i in 0..16 {
        block[4 + i] = codes[i] as u8 | (codes[i + 16] as u8) << 4;
    }
}
