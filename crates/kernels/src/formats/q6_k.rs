//! Q6_K: 256 codes of 6 bits in 16 sub-blocks of 16. `weight = d * sc * (q - 32)`.
//!
//! ```text
//! byte   0..128    low 4 bits
//!        128..192  high 2 bits
//!        192..208  sc[0..16], i8
//!        208..210  d, half precision
//! ```
//! Each half h of the block (128 weights) has 64 bytes `l` of low bits and 32 bytes `t` of high
//! bits. For i in 0..32, weights i, 32 + i, 64 + i, 96 + i of the half are: the low nibbles of
//! `l[i]` and `l[32 + i]`, then their high nibbles, with bits 0..2, 2..4, 4..6, 6..8 of `t[i]`
//! on top. As integers: `m = 32 * sc`, `e = d`.

use super::rows::BlockRows;
use super::search::SymmetricBlock;
use super::{BlockFormat, Codes, Panel, SEVEN_BITS, Symmetric, block_row, half, scale_bytes};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q6K>();

struct Q6K;

const _: () = assert!(Q6K::BLOCK_BYTES == 256 / 2 + 256 / 4 + 256 / 16 + 2);

/// Where weight `k` of a block lies: byte and shift of its low bits, byte and shift of its high.
fn place(k: usize) -> (usize, usize, usize, usize) {
    let (half, quarter, i) = (k / 128, k % 128 / 32, k % 32);
    let low = 64 * half + 32 * (quarter % 2) + i;
    (low, 4 * (quarter / 2), 128 + 32 * half + i, 2 * quarter)
}

impl BlockFormat for Q6K {
    const DTYPE: DType = DType::Q6K;
    const NAME: &'static str = "Q6_K";
    const GGML_TYPE: Option<u32> = Some(14);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 210;
    const STEP: usize = 16;
    const CODES: Codes = Codes::Sixes { upper: 128 };
    type Form = Symmetric<256, 16, SEVEN_BITS, 32>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 208);
        for (k, value) in values.iter_mut().enumerate() {
            let (low, low_shift, high, high_shift) = place(k);
            let q = block[low] >> low_shift & 15 | (block[high] >> high_shift & 3) << 4;
            let scale = d * f32::from(block[192 + k / 16] as i8);
            *value = scale * (f32::from(q) - 32.0);
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        panel.d[slot] = s.widen_f16(s.shr::<16>(rows.column(206)));
        for (i, word) in rows.columns(192).into_iter().enumerate() {
            scale_bytes::signed(s, word, &mut panel.sc[4 * i..]);
        }
    }

    #[inline(always)]
    fn place(step: usize, word: usize) -> usize {
        32 * (step / 2) + 4 * (step % 2) + 8 * (word / 4) + word % 4
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, step: usize, q: &mut [S::U]) {
        let (low, high) = (s.splat(0x0f0f_0f0f), s.splat(0x3030_3030));
        let (half, i) = (step / 2, step % 2);
        let top = rows.columns(128 + 32 * half + 16 * i);
        let near = rows.columns(64 * half + 16 * i);
        let far = rows.columns(64 * half + 32 + 16 * i);
        for w in 0..4 {
            let t = top[w];
            q[w] = s.or(s.and(near[w], low), s.and(s.shl::<4>(t), high));
            q[w + 4] = s.or(s.and(far[w], low), s.and(s.shl::<2>(t), high));
            let nibble = s.and(s.shr::<4>(near[w]), low);
            q[w + 8] = s.or(nibble, s.and(t, high));
            let nibble = s.and(s.shr::<4>(far[w]), low);
            q[w + 12] = s.or(nibble, s.and(s.shr::<2>(t), high));
        }
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let chooser = SymmetricBlock { codes: (-32.0, 31.0), scales: (-128.0, 127.0) };
    let found = chooser.choose::<16, 16>(values, importance);
    block.fill(0);
    half::write_f16(block, 208, found.d);
    for (byte, scale) in block[192..208].iter_mut().zip(found.scales) {
        *byte = scale as u8;
    }
    for (k, code) in found.codes.into_iter().enumerate() {
        let (low, low_shift, high, high_shift) = place(k);
        let code = (code + 32) as u8;
        block[low] |= (code & 15) << low_shift;
        block[high] |= code >> 4 << high_shift;
    }
}
