//! Four-bit integers as safetensors hold them (compressed-tensors, "pack-quantized"): weights, and
//! apart from them a scale for each group of 32, 64, 128 … of a row, perhaps also a zero point.
//! `weight = scale * (n - zero)`, with `zero = 8` where none is given.
//!
//! ```text
//! weights   words of 32 bits, eight to a word from the lowest bits on; hence byte i of a row:
//!           low nibble n[2i], high nibble n[2i + 1]
//! scales    [rows, cols / group], bfloat, half or single precision
//! zeros     words of 32 bits [rows / 8, cols / group]: row r in bits 4 * (r % 8)..
//! ```
//! As integers: `q = n`, `m = zero`, `e = d`.

use super::apart::{self, Part};
use super::rows::BlockRows;
use super::{BlockFormat, Codes, NIBBLE, PER_ROW, Panel, Symmetric, block_row};
use crate::dtype::{ActKind, Apart, DType, EncodeBlock, Format, ScaleLayout};
use crate::simd::Simd;
use crate::tensor::ScaleType;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Int4>();

struct Int4;

static SCALES: Apart = Apart {
    types: &[ScaleType::BF16, ScaleType::F16, ScaleType::F32],
    rows: Some(1),
    cols: None,
    cols_unit: 32,
    zeros: true,
};

impl BlockFormat for Int4 {
    const DTYPE: DType = DType::Int4;
    const NAME: &'static str = "INT4";
    const GGML_TYPE: Option<u32> = None;
    const BLOCK_LEN: usize = 32;
    const BLOCK_BYTES: usize = 16;
    const INPUT: ActKind = ActKind::I8x32Pairs;
    const SCALES: ScaleLayout = ScaleLayout::Apart(&SCALES);
    const STEP: usize = 8;
    type Form = Symmetric<32, 32, NIBBLE, PER_ROW>;
    const CODES: Codes = Codes::nibbles(0, 1);
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        for (two, byte) in values.as_chunks_mut::<2>().0.iter_mut().zip(block) {
            *two = [byte & 15, byte >> 4].map(|code| f32::from(code) - 8.0);
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        let low = s.splat(0x0f0f_0f0f);
        for (i, word) in rows.columns(0).into_iter().enumerate() {
            q[2 * i] = s.and(word, low);
            q[2 * i + 1] = s.and(s.shr::<4>(word), low);
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(_: S, _: &BlockRows<'_, S>, _: &mut Panel<S>, _slot: usize) {
        // They lie apart: `scale` brings them.
    }

    #[inline(always)]
    fn scale<S: Simd>(s: S, part: &Part<'_>, panel: &mut Panel<S>) {
        apart::groups(s, part, panel);
    }
}

/// See [`BlockFormat::ENCODE`]; the values have been divided by their scales.
fn encode(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let nibble = |value: f32| (value.round_ties_even() + 8.0).clamp(0.0, 15.0) as u8;
    for (two, byte) in values.as_chunks::<2>().0.iter().zip(block) {
        *byte = nibble(two[0]) | nibble(two[1]) << 4;
    }
}
