//! Q4_0: 32 nibbles and one scale. `weight = d * (n - 8)`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..18   byte i: low nibble n[i], high nibble n[i + 16]
//! ```
//! As integers: `q = n`, `m = 8`, `e = d`.

use super::rows::BlockRows;
use super::{BlockFormat, Codes, NIBBLE, Panel, Symmetric, block_row, half, search};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q4_0>();

struct Q4_0;

const _: () = assert!(Q4_0::BLOCK_BYTES == 2 + 32 / 2);

impl BlockFormat for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    const NAME: &'static str = "Q4_0";
    const GGML_TYPE: Option<u32> = Some(2);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 18;
    const STEP: usize = 8;
    type Form = Symmetric<32, 32, NIBBLE, 8>;
    const CODES: Codes = Codes::nibbles(2, 16);
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 0);
        for (i, &byte) in block[2..].iter().enumerate() {
            values[i] = d * (f32::from(byte & 15) - 8.0);
            values[i + 16] = d * (f32::from(byte >> 4) - 8.0);
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        let low = s.splat(0x0f0f_0f0f);
        for (i, word) in rows.columns(2).into_iter().enumerate() {
            q[i] = s.and(word, low);
            q[4 + i] = s.and(s.shr::<4>(word), low);
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        panel.d[slot] = s.widen_f16(rows.column(0));
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let (d, codes) = search::one_scale(values, importance, (-8.0, 7.0));
    half::write_f16(block, 0, d);
    let nibble = |code: f32| (code + 8.0) as u8;
    for i in 0..16 {
        block[2 + i] = nibble(codes[i]) | nibble(codes[i + 16]) << 4;
    }
}
