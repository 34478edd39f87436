//! MXFP4 as safetensors hold it: E2M1 weights, and apart from them a power of two for each 32 of a
//! row. `weight = 2^(scale - 127) * e2m1`.
//!
//! ```text
//! weights   byte i of a row: low nibble w[2i], high nibble w[2i + 1]
//! scales    [rows, cols / 32], E8M0
//! ```
//! As integers: `q = 2 * e2m1 + 12`, `m = 12`, `d = e = 2^(scale - 128)`.

use super::apart::{self, Part};
use super::nvfp4_planes::{decode_pairs, encode, unpack_pairs};
use super::rows::BlockRows;
use super::{BlockFormat, Codes, Panel, block_row, minifloat};
use crate::dtype::{ActKind, Apart, DType, EncodeBlock, Format, ScaleLayout};
use crate::simd::Simd;
use crate::tensor::ScaleType;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Mxfp4Planes>();

struct Mxfp4Planes;

static SCALES: Apart =
    Apart { types: &[ScaleType::E8M0], rows: Some(1), cols: Some(32), cols_unit: 32, zeros: false };

impl BlockFormat for Mxfp4Planes {
    const DTYPE: DType = DType::Mxfp4Planes;
    const NAME: &'static str = "MXFP4_PLANES";
    const GGML_TYPE: Option<u32> = None;
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 16;
    const INPUT: ActKind = ActKind::I8x32Pairs;
    const SCALES: ScaleLayout = ScaleLayout::Apart(&SCALES);
    const STEP: usize = 8;
    type Form = super::mxfp4::Form;
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
        for (d, word) in panel.d.as_chunks_mut::<4>().0.iter_mut().zip(&words[..2]) {
            *d = minifloat::halves_of_e8m0(s, *word);
            nans = s.or(nans, minifloat::e8m0_nans(s, *word));
        }
        apart::spoil(s, panel, nans);
    }
}
