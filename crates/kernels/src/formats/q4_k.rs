//! Q4_K: 256 nibbles in 8 sub-blocks of 32. `weight = d * sc * n - e * m`.
//!
//! ```text
//! byte   0..2     d, half precision
//!        2..4     e, half precision (called dmin elsewhere)
//!        4..16    sc and m of the sub-blocks, see `k_scales`
//!        16..144  four runs of 32 bytes; run r: low nibbles are sub-block 2r, high ones 2r + 1
//! ```

use super::rows::BlockRows;
use super::{Affine, BlockFormat, Codes, NIBBLE, Panel, block_row, half, k_scales};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q4K>();

struct Q4K;

const _: () = assert!(Q4K::BLOCK_BYTES == 2 + 2 + 12 + 256 / 2);

impl BlockFormat for Q4K {
    const DTYPE: DType = DType::Q4K;
    const NAME: &'static str = "Q4_K";
    const GGML_TYPE: Option<u32> = Some(12);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 144;
    const STEP: usize = 16;
    type Form = Affine<256, 32, NIBBLE>;
    const CODES: Codes = Codes::nibbles(16, 32);
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, e) = (half::read_f16(block, 0), half::read_f16(block, 2));
        for (j, (sc, m)) in k_scales::decode(&block[4..16]).into_iter().enumerate() {
            let (scale, min) = (d * f32::from(sc), e * f32::from(m));
            let run = &block[16 + 32 * (j / 2)..][..32];
            for (value, byte) in values[32 * j..][..32].iter_mut().zip(run) {
                *value = scale * f32::from(byte >> (4 * (j % 2)) & 15) - min;
            }
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, step: usize, q: &mut [S::U]) {
        let low = s.splat(0x0f0f_0f0f);
        for half in 0..2 {
            let words = rows.columns(16 + 32 * step + 16 * half);
            for (i, word) in words.into_iter().enumerate() {
                q[4 * half + i] = s.and(word, low);
                q[8 + 4 * half + i] = s.and(s.shr::<4>(word), low);
            }
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        debug_assert_eq!(slot, 0, "a long block fills the panel");
        k_scales::unpack(s, rows.columns(0), panel);
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let codes = k_scales::choose(values, importance, 15.0, &mut block[..16]);
    for (i, byte) in block[16..].iter_mut().enumerate() {
        let first = 64 * (i / 32) + i % 32;
        *byte = codes[first] | codes[first + 32] << 4;
    }
}
