//! IQ4_XS: 256 nibbles that index IQ4_NL's levels, in 8 sub-blocks of 32.
//! `weight = d * sc * LEVELS[n]`.
//!
//! ```text
//! byte   0..2     d, half precision
//!        2..4     bits 2j..2j + 2 are bits 4..6 of sc[j] + 32
//!        4..8     byte i: low nibbles of sc[2i] + 32 (low half) and of sc[2i + 1] + 32 (high half)
//!        8..136   16 bytes per sub-block; byte i: low nibble n[i], high nibble n[i + 16]
//! ```
//! As integers: `q = LEVELS[n] + 128`, `m = 128 * sc`, `e = d`.

use super::iq4_nl::{self, CODES};
use super::rows::BlockRows;
use super::search::SymmetricBlock;
use super::{BYTE, BlockFormat, Codes, Panel, Symmetric, block_row, half};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Iq4Xs>();

struct Iq4Xs;

const _: () = assert!(Iq4Xs::BLOCK_BYTES == 2 + 8 * 6 / 8 + 256 / 2);

/// The scale of sub-block `j`.
fn scale(block: &[u8], j: usize) -> i8 {
    let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
    let high = half::read_u16(block, 2) >> (2 * j) & 3;
    (low | (high as u8) << 4) as i8 - 32
}

impl BlockFormat for Iq4Xs {
    const DTYPE: DType = DType::Iq4Xs;
    const NAME: &'static str = "IQ4_XS";
    const GGML_TYPE: Option<u32> = Some(23);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 136;
    const STEP: usize = 8;
    type Form = Symmetric<256, 32, BYTE, 128>;
    const CODES: Codes = Codes::Nibbles { first: 8, run: 16, levels: &CODES };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = half::read_f16(block, 0);
        for (j, values) in values.chunks_exact_mut(32).enumerate() {
            let scale = d * f32::from(scale(block, j));
            for (i, &byte) in block[8 + 16 * j..][..16].iter().enumerate() {
                values[i] = scale * iq4_nl::level(byte & 15);
                values[i + 16] = scale * iq4_nl::level(byte >> 4);
            }
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, step: usize, q: &mut [S::U]) {
        iq4_nl::unpack_nibbles(s, &CODES, rows.columns(8 + 16 * step), q);
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        debug_assert_eq!(slot, 0, "a long block fills the panel");
        let [head, mut low, ..] = rows.columns(0);
        panel.d[0] = s.widen_f16(head);
        let mut high = s.shr::<12>(head);
        for sc in &mut panel.sc[..8] {
            let six = s.or(s.and(low, s.splat(15)), s.and(high, s.splat(0x30)));
            *sc = s.sub(six, s.splat(32));
            (low, high) = (s.shr::<4>(low), s.shr::<2>(high));
        }
    }
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    let chooser = SymmetricBlock { codes: (0.0, 0.0), scales: (-32.0, 31.0) };
    let (d, scales) = chooser.choose_of_book::<8, 32>(values, importance, &iq4_nl::BOOK);
    block.fill(0);
    half::write_f16(block, 0, d);
    for (j, scale) in scales.into_iter().enumerate() {
        let stored = (scale + 32.0) as u8;
        block[2 + j / 4] |= (stored >> 4) << (2 * (j % 4));
        block[4 + j / 2] |= (stored & 15) << (4 * (j % 2));
        iq4_nl::store_codes(&values[32 * j..][..32], d * scale, &mut block[8 + 16 * j..][..16]);
    }
}
