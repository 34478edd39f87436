//! Q2_K: 256 codes of 2 bits in 16 sub-blocks of 16. `weight = d * sc * q - e * m`.
//!
//! ```text
//! byte   0..16    sub-block j: sc in the low nibble of byte j, m in the high one
//!        16..80   two runs of 32 bytes, one per half of the block; byte i of run h: weights
//!                 i, 32 + i, 64 + i, 96 + i of half h in bits 0..2, 2..4, 4..6, 6..8
//!        80..82   d, half precision
//!        82..84   e, half precision (called dmin elsewhere)
//! ```

use super::rows::BlockRows;
use super::search::AffineBlock;
use super::{Affine, BlockFormat, NIBBLE, Panel, block_row, half, scale_bytes};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q2K>();

struct Q2K;

const _: () = assert!(Q2K::BLOCK_BYTES == 16 + 256 / 4 + 2 + 2);

/// Where the two bits of weight `k` lie in 64 bytes: byte and shift. Q3_K and TQ2_0 agree.
pub(super) fn place(k: usize) -> (usize, usize) {
    (32 * (k / 128) + k % 32, k % 128 / 32 * 2)
}

/// The two bits of 256 weights at byte `first` of every row.
#[inline(always)]
pub(super) fn unpack_twos<S: Simd>(
    s: S,
    rows: &BlockRows<'_, S>,
    first: usize,
    panel: &mut Panel<S>,
) {
    let two = s.splat(0x0303_0303);
    for column in 0..4 {
        let words = rows.columns(first + 16 * column);
        let first = 32 * (column / 2) + 4 * (column % 2);
        for (i, word) in words.into_iter().enumerate() {
            panel.q[first + i] = s.and(word, two);
            panel.q[first + 8 + i] = s.and(s.shr::<2>(word), two);
            panel.q[first + 16 + i] = s.and(s.shr::<4>(word), two);
            panel.q[first + 24 + i] = s.and(s.shr::<6>(word), two);
        }
    }
}

impl BlockFormat for Q2K {
    const DTYPE: DType = DType::Q2K;
    const NAME: &'static str = "Q2_K";
    const GGML_TYPE: Option<u32> = Some(10);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 84;
    type Form = Affine<256, 16, NIBBLE>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (d, e) = (half::read_f16(block, 80), half::read_f16(block, 82));
        for (k, value) in values.iter_mut().enumerate() {
            let scales = block[k / 16];
            let (scale, min) = (d * f32::from(scales & 15), e * f32::from(scales >> 4));
            let (byte, shift) = place(k);
            *value = scale * f32::from(block[16 + byte] >> shift & 3) - min;
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        debug_assert_eq!(slot, 0, "a long block fills the panel");
        let head = rows.column(80);
        panel.d[0] = s.widen_f16(head);
        panel.e[0] = s.widen_f16(s.shr::<16>(head));
        let low = s.splat(0x0f0f_0f0f);
        for (i, word) in rows.columns(0).into_iter().enumerate() {
            scale_bytes::unsigned(s, s.and(word, low), &mut panel.sc[4 * i..]);
            scale_bytes::pairs(s, s.and(s.shr::<4>(word), low), &mut panel.m[2 * i..]);
        }
        unpack_twos(s, rows, 16, panel);
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let chooser = AffineBlock { high: 3.0, scale_max: 15.0 };
    let found = chooser.choose::<16, 16>(values, importance);
    block.fill(0);
    for (byte, (sc, m)) in block.iter_mut().zip(found.scales) {
        *byte = sc | m << 4;
    }
    for (k, code) in found.codes.into_iter().enumerate() {
        let (byte, shift) = place(k);
        block[16 + byte] |= code << shift;
    }
    half::write_f16(block, 80, found.d);
    half::write_f16(block, 82, found.e);
}
