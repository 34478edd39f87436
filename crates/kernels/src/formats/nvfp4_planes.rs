//! NVFP4 as safetensors hold it: E2M1 weights, and apart from them an E4M3 scale for each 16 of a
//! row. `weight = scale * e2m1`, times a factor of the whole matrix.
//!
//! ```text
//! weights   byte i of a row: low nibble w[2i], high nibble w[2i + 1]
//! scales    [rows, cols / 16]
//! ```
//! As integers, in blocks of 16: `q = 2 * e2m1 + 12`, `m = 12`, `d = e = scale / 2`.

use super::apart::{self, Part};
use super::rows::BlockRows;
use super::{BlockFormat, Codes, Panel, block_row, minifloat};
use crate::dtype::{ActKind, Apart, DType, EncodeBlock, Format, ScaleLayout};
use crate::simd::Simd;
use crate::tensor::ScaleType;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Nvfp4Planes>();

struct Nvfp4Planes;

static SCALES: Apart =
    Apart { types: &[ScaleType::E4M3], rows: Some(1), cols: Some(16), cols_unit: 16, zeros: false };

impl BlockFormat for Nvfp4Planes {
    const DTYPE: DType = DType::Nvfp4Planes;
    const NAME: &'static str = "NVFP4_PLANES";
    const GGML_TYPE: Option<u32> = None;
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 16;
    const INPUT: ActKind = ActKind::I8x16Pairs;
    const SCALES: ScaleLayout = ScaleLayout::Apart(&SCALES);
    const STEP: usize = 8;
    type Form = super::nvfp4::Form;
    const CODES: Codes = Codes::Nibbles { first: 0, run: 1, levels: &minifloat::E2M1_Q };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        decode_pairs(block, values);
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        unpack_pairs(s, rows, q);
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(_: S, _: &BlockRows<'_, S>, _: &mut Panel<S>, _slot: usize) {
        // They lie apart: `scale` brings them.
    }

    #[inline(always)]
    fn scale<S: Simd>(s: S, part: &Part<'_>, panel: &mut Panel<S>) {
        let Some(words) = apart::bytes(s, part) else {
            panel.d = [s.splat_f32(0.5); 16];
            return;
        };
        let mut nans = s.splat(0);
        for (d, word) in panel.d.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *d = minifloat::halves_of_e4m3(s, word);
            nans = s.or(nans, minifloat::e4m3_nans(s, word));
        }
        apart::spoil(s, panel, nans);
    }
}

/// Decodes E2M1 weights in pairs, before they are scaled.
pub(super) fn decode_pairs(block: &[u8], values: &mut [f32]) {
    for (two, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(block) {
        *two = [minifloat::e2m1(byte & 15), minifloat::e2m1(byte >> 4)];
    }
}

/// 16 bytes of 32 E2M1 weights in pairs as `q`, in the order of inputs of the same kind.
#[inline(always)]
pub(super) fn unpack_pairs<S: Simd>(s: S, rows: &BlockRows<'_, S>, q: &mut [S::U]) {
    let low = s.splat(0x0f0f_0f0f);
    for (i, word) in rows.columns(0).into_iter().enumerate() {
        q[2 * i] = s.lookup(&minifloat::E2M1_Q, s.and(word, low));
        q[2 * i + 1] = s.lookup(&minifloat::E2M1_Q, s.and(s.shr::<4>(word), low));
    }
}

/// See [`BlockFormat::ENCODE`]; the values have been divided by their scales.
pub(super) fn encode(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    for (two, byte) in values.as_chunks::<2>().0.iter().zip(block) {
        *byte = minifloat::to_e2m1(two[0]) | minifloat::to_e2m1(two[1]) << 4;
    }
}
