//! NVFP4 as GGUF holds it: 64 E2M1 weights in 4 sub-blocks of 16, each with an E4M3 scale that has
//! no sign. `weight = scale * e2m1`, times a factor of the whole tensor that lies elsewhere.
//!
//! ```text
//! byte  0..4     scale of each sub-block; 0x7f stands for 0
//!       4..36    sub-block s in bytes 4 + 8s..: low nibble of byte i is w[16s + i],
//!                high nibble w[16s + i + 8]
//! ```
//! As integers, in blocks of 16: `q = 2 * e2m1 + 12`, `m = 12`, `d = e = scale / 2`.

use super::rows::BlockRows;
use super::{BlockFormat, Codes, NIBBLE, Panel, Symmetric, block_row, minifloat};
use crate::dtype::{ActKind, DType, EncodeBlock, Format};
use crate::simd::Simd;

/// The table row.
pub(crate) const FORMAT: Format = block_row::<Nvfp4>();

struct Nvfp4;

const _: () = assert!(Nvfp4::BLOCK_BYTES == 64 / 16 + 64 / 2);

/// Of both ways to store it. Sums of 16 weights of at most 24 fit where those of 32 nibbles do.
pub(super) type Form = Symmetric<16, 16, NIBBLE, { minifloat::E2M1_OFFSET }>;

/// A scale's value: the sign means nothing, and what would be no number is zero.
fn scale(byte: u8) -> f32 {
    match byte {
        0x7f => 0.0,
        // Read as one more step above the largest number.
        0xff => 480.0,
        _ => minifloat::e4m3(byte & 0x7f),
    }
}

impl BlockFormat for Nvfp4 {
    const DTYPE: DType = DType::Nvfp4;
    const NAME: &'static str = "NVFP4";
    const GGML_TYPE: Option<u32> = Some(40);
    const BLOCK_LEN: usize = 64;
    const BLOCK_BYTES: usize = 36;
    const INPUT: ActKind = ActKind::I8x16;
    const STEP: usize = 16;
    type Form = Form;
    const CODES: Codes = Codes::Nibbles { first: 4, run: 8, levels: &minifloat::E2M1_Q };
    const ENCODE: Option<EncodeBlock> = Some(encode);

    fn decode(block: &[u8], values: &mut [f32]) {
        let (scales, codes) = block.split_at(4);
        for (sub, values) in values.chunks_exact_mut(16).enumerate() {
            let d = scale(scales[sub]) * 0.5;
            // Zero has no sign here: codes are read as integers.
            let value = |code: u8| d * f32::from(minifloat::E2M1_DOUBLED[usize::from(code)]);
            for (i, byte) in codes[8 * sub..8 * sub + 8].iter().enumerate() {
                values[i] = value(byte & 15);
                values[i + 8] = value(byte >> 4);
            }
        }
    }

    #[inline(always)]
    fn unpack_step<S: Simd>(s: S, rows: &BlockRows<'_, S>, _step: usize, q: &mut [S::U]) {
        let low = s.splat(0x0f0f_0f0f);
        for half in 0..2 {
            for (i, word) in rows.columns(4 + 16 * half).into_iter().enumerate() {
                let first = 8 * half + 4 * (i / 2) + i % 2;
                q[first] = s.lookup(&minifloat::E2M1_Q, s.and(word, low));
                q[first + 2] = s.lookup(&minifloat::E2M1_Q, s.and(s.shr::<4>(word), low));
            }
        }
    }

    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        let scales = without_7f(s, rows.column(0));
        let scales = s.and(scales, s.splat(0x7f7f_7f7f));
        let halves = minifloat::halves_of_e4m3(s, scales);
        panel.d[4 * slot..4 * slot + 4].copy_from_slice(&halves);
    }
}

/// `words` with zeros for the bytes that are 0x7f.
#[inline(always)]
fn without_7f<S: Simd>(s: S, words: S::U) -> S::U {
    let sevens = s.splat(0x7f7f_7f7f);
    let minus_sevens = s.splat(0x7f7f_7f7fu32.wrapping_neg());
    let other = s.xor(words, sevens);
    // The top bit of each byte that is not zero in `other`, then all of its bits.
    let top = s.and(s.or(s.sub(s.and(other, sevens), minus_sevens), other), s.splat(0x8080_8080));
    let all = s.or(s.sub(top, s.shr::<7>(top)), top);
    s.and(words, all)
}

/// See [`BlockFormat::ENCODE`].
fn encode(values: &[f32], importance: Option<&[f32]>, block: &mut [u8]) {
    for (sub, values) in values.as_chunks::<16>().0.iter().enumerate() {
        let importance = importance.map(|all| &all[16 * sub..16 * sub + 16]);
        let (scale, codes) = best(values, importance);
        block[sub] = scale;
        for i in 0..8 {
            block[4 + 8 * sub + i] = codes[i] | codes[i + 8] << 4;
        }
    }
}

/// The scale (E4M3, positive) and codes of 16 values that lose least: tried are the scales about
/// those that bring the largest value to 6, to 4 and to 3, the magnitudes with the widest gaps
/// below them.
pub(super) fn best(values: &[f32; 16], importance: Option<&[f32]>) -> (u8, [u8; 16]) {
    let amax = values.iter().fold(0f32, |amax, v| amax.max(v.abs()));
    let mut found = (f32::INFINITY, 0, [0; 16]);
    for target in [6.0, 4.0, 3.0] {
        let middle = minifloat::to_e4m3(amax / target).min(0x7e);
        for scale in middle.saturating_sub(2)..=(middle + 2).min(0x7e) {
            let d = minifloat::e4m3(scale);
            let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
            let codes = values.map(|value| minifloat::to_e2m1(value * inverse));
            let mut error = 0f32;
            for (k, (value, code)) in values.iter().zip(codes).enumerate() {
                let miss = value - d * minifloat::e2m1(code);
                error += importance.map_or(1.0, |all| all[k]) * miss * miss;
            }
            if error < found.0 {
                found = (error, scale, codes);
            }
        }
    }
    (found.1, found.2)
}
