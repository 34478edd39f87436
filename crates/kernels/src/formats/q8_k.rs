//! Q8_K: 256 signed bytes and one single-precision scale. `weight = d * w`.
//!
//! ```text
//! byte   0..4      d, single precision
//!        4..260    w[0..256], i8
//!        260..292  sums of 16 neighbouring w, i16; not needed here, but written
//! ```
//! Elsewhere this is what activations are rounded to; files seldom hold it. As integers:
//! `q = w + 128`, `sc = 1`, `m = 128`, `e = d`.

use super::rows::BlockRows;
use super::{BYTE, BlockFormat, Panel, Symmetric, block_row};
use crate::dtype::{DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Q8K>();

struct Q8K;

const _: () = assert!(Q8K::BLOCK_BYTES == 4 + 256 + 256 / 16 * 2);

impl BlockFormat for Q8K {
    const DTYPE: DType = DType::Q8K;
    const NAME: &'static str = "Q8_K";
    const GGML_TYPE: Option<u32> = Some(15);
    const BLOCK_LEN: usize = 256;
    const BLOCK_BYTES: usize = 292;
    const STEP: usize = 16;
    type Form = Symmetric<256, 32, BYTE, 128>;
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        for (value, &w) in values.iter_mut().zip(&block[4..260]) {
            *value = d * f32::from(w as i8);
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        debug_assert_eq!(slot, 0, "a long block fills the panel");
        panel.d[0] = s.bits_to_f32(rows.column(0));
        panel.sc[..8].fill(s.splat(1));
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, step: usize, q: &mut [S::U]) {
        let plus_128 = s.splat(0x8080_8080);
        for column in 0..4 {
            let words = rows.columns(4 + 64 * step + 16 * column);
            for (i, word) in words.into_iter().enumerate() {
                q[4 * column + i] = s.xor(word, plus_128);
            }
        }
    }
}

/// See [`BlockFormat::ENCODE`]. The extreme value, whichever its sign, becomes exactly -127.
fn encode(values: &[f32], _importance: Option<&[f32]>, block: &mut [u8]) {
    let mut extreme = 0f32;
    for &value in values {
        if value.abs() > extreme.abs() {
            extreme = value;
        }
    }
    let inverse = if extreme == 0.0 { 0.0 } else { -127.0 / extreme };
    let d = if inverse == 0.0 { 0.0 } else { 1.0 / inverse };
    block[..4].copy_from_slice(&d.to_le_bytes());
    let (weights, sums) = block[4..].split_at_mut(256);
    for (&value, w) in values.iter().zip(&mut *weights) {
        *w = (value * inverse).round_ties_even().min(127.0) as i8 as u8;
    }
    for (sum, run) in sums.chunks_exact_mut(2).zip(weights.chunks_exact(16)) {
        let total: i16 = run.iter().map(|&w| i16::from(w as i8)).sum();
        sum.copy_from_slice(&total.to_le_bytes());
    }
}
