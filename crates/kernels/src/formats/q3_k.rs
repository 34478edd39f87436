//! Q3_K: 256 codes of 3 bits in 16 sub-blocks of 16. `weight = d * sc * (q - 4)`.
//!
//! ```text
//! byte   0..32    byte i: bit n is the third bit of weight 32n + i
//!        32..96   two runs of 32 bytes, one per half of the block; byte i of run h: the low two
//!                 bits of weights i, 32 + i, 64 + i, 96 + i of half h in bits 0..2, 2..4, ..
//!        96..104  byte j: low nibbles of sc[j] + 32 (low half) and of sc[j + 8] + 32 (high half)
//!       104..108  byte j: bits 4..6 of sc[j] + 32, sc[j + 4] + 32, sc[j + 8] + 32, sc[j + 12] + 32
//!       108..110  d, half precision
//! ```
//! As integers: `m = 4 * sc`, `e = d`.

use super::rows::BlockRows;
use super::search::SymmetricBlock;
use super::{BlockFormat, NIBBLE, Panel, Symmetric, block_row, half, q2_k, scale_bytes};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q3K>();

struct Q3K;

const _: () = assert!(Q3K::BLOCK_BYTES == 256 / 8 + 256 / 4 + 12 + 2);

/// The scale of sub-block `j` in the 12 bytes.
fn scale(bytes: &[u8], j: usize) -> i8 {
    let low = bytes[j % 8] >> (4 * (j / 8)) & 15;
    let high = bytes[8 + j % 4] >> (2 * (j / 4)) & 3;
    (low | high << 4) as i8 - 32
}

impl BlockFormat for Q3K {
    const DTYPE: DType = DType::Q3K;
    const NAME: &'static str = "Q3_K";
    const GGML_TYPE: Option<u32> = Some(11);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 110;
    type Form = Symmetric<256, 16, NIBBLE, 4>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 108);
        for (k, value) in values.iter_mut().enumerate() {
            let (byte, shift) = q2_k::place(k);
            let q = block[32 + byte] >> shift & 3 | (block[k % 32] >> (k / 32) & 1) << 2;
            let scale = d * f32::from(scale(&block[96..108], k / 16));
            *value = scale * (f32::from(q) - 4.0);
        }
    }

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        debug_assert_eq!(slot, 0, "a long block fills the panel");
        // Bytes 94..110: the scales and `d` begin in the middle of a word.
        let [a, b, c, d] = rows.columns(94);
        panel.d[0] = s.widen_f16(s.shr::<16>(d));
        let join = |low, high| s.or(s.shr::<16>(low), s.shl::<16>(high));
        unpack_scales(s, [join(a, b), join(b, c), join(c, d)], panel);
        q2_k::unpack_twos(s, rows, 32, panel);
        let third = s.splat(0x0404_0404);
        for half in 0..2 {
            for (i, bits) in rows.columns(16 * half).into_iter().enumerate() {
                // The third bit of weights 32n.. moves from bit n to bit 2 of its byte.
                let bits = [
                    s.shl::<2>(bits),
                    s.shl::<1>(bits),
                    bits,
                    s.shr::<1>(bits),
                    s.shr::<2>(bits),
                    s.shr::<3>(bits),
                    s.shr::<4>(bits),
                    s.shr::<5>(bits),
                ];
                for (n, bits) in bits.into_iter().enumerate() {
                    let word = 8 * n + 4 * half + i;
                    panel.q[word] = s.or(panel.q[word], s.and(bits, third));
                }
            }
        }
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let chooser = SymmetricBlock { codes: (-4.0, 3.0), scales: (-32.0, 31.0) };
    let found = chooser.choose::<16, 16>(values, importance);
    block.fill(0);
    for (k, code) in found.codes.into_iter().enumerate() {
        let (byte, shift) = q2_k::place(k);
        let code = (code + 4) as u8;
        block[32 + byte] |= (code & 3) << shift;
        block[k % 32] |= (code >> 2) << (k / 32);
    }
    for (j, scale) in found.scales.into_iter().enumerate() {
        let stored = (scale + 32) as u8;
        block[96 + j % 8] |= (stored & 15) << (4 * (j / 8));
        block[104 + j % 4] |= (stored >> 4) << (2 * (j / 4));
    }
    half::write_f16(block, 108, found.d);
}

/// The 16 scales of every row; `words` are the three words of the 12 bytes.
#[inline(always)]
fn unpack_scales<S: Simd>(s: S, [a, b, c]: [S::U; 3], panel: &mut Panel<S>) {
    let (low, top) = (s.splat(0x0f0f_0f0f), s.splat(0x3030_3030));
    let fours = [
        s.or(s.and(a, low), s.and(s.shl::<4>(c), top)),
        s.or(s.and(b, low), s.and(s.shl::<2>(c), top)),
        s.or(s.and(s.shr::<4>(a), low), s.and(c, top)),
        s.or(s.and(s.shr::<4>(b), low), s.and(s.shr::<2>(c), top)),
    ];
    for (i, bytes) in fours.into_iter().enumerate() {
        let sc = &mut panel.sc[4 * i..4 * i + 4];
        scale_bytes::unsigned(s, bytes, sc);
        for sc in sc {
            *sc = s.and(s.sub(*sc, s.splat(32)), s.splat(0xffff));
        }
    }
}
