//! Q8_0: 32 signed bytes and one scale. `weight = d * w`.
//!
//! ```text
//! byte  0..2    d, half precision
//!       2..34   w[0..32], i8
//! ```
//! As integers: `q = w + 128`, `m = 128`, `e = d`.

use super::rows::BlockRows;
use super::{BYTE, BlockFormat, Codes, Panel, Symmetric, block_row, half};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q8_0>();

struct Q8_0;

const _: () = assert!(Q8_0::BLOCK_BYTES == 2 + 32);

impl BlockFormat for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
    const NAME: &'static str = "Q8_0";
    const GGML_TYPE: Option<u32> = Some(8);
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 34;
    const STEP: usize = 8;
    type Form = Symmetric<32, 32, BYTE, 128>;
    const CODES: Codes = Codes::Bytes { first: 2 };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 0);
        for (value, &w) in values.iter_mut().zip(&block[2..]) {
            *value = d * f32::from(w as i8);
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        let plus_128 = s.splat(0x8080_8080);
        for half in 0..2 {
            let words = rows.columns(2 + 16 * half);
            for (i, word) in words.into_iter().enumerate() {
                q[4 * half + i] = s.xor(word, plus_128);
            }
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        panel.d[slot] = s.widen_f16(rows.column(0));
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let amax = values.iter().fold(0f32, |amax, v| amax.max(v.abs()));
    let d = amax / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    half::write_f16(block, 0, d);
    for (&value, w) in values.iter().zip(&mut block[2..]) {
        // Ties go away from zero, as in the reference encoder.
        *w = (value * inverse).round() as i8 as u8;
    }
}
