//! One weight format per file, and the form in which products see all of them.
//!
//! A quantised format is a [`BlockFormat`]: a block of weights, cut into sub-blocks,
//! where `weight = d * sc * q - e * m`. `q` is an unsigned byte, `sc` and `m` are small integers
//! of the sub-block, `d` and `e` floats of the block. Its file says how the bits lie, decodes and
//! encodes one block, and unpacks the same block of many rows into a [`Panel`]. Products, tiles,
//! threads and instruction sets are none of its business. Where scales lie apart from the weights
//! (see `apart`), the format brings those of a panel into lanes after its blocks.
//!
//! Float formats are a [`FloatFormat`]: how to widen 16 weights.

pub(crate) mod apart;
pub(crate) mod bf16;
pub(crate) mod f16;
pub(crate) mod f32;
pub(crate) mod f8_e4m3;
mod grid;
pub(crate) mod half;
pub(crate) mod int4;
pub(crate) mod iq1_m;
pub(crate) mod iq1_s;
pub(crate) mod iq2_s;
pub(crate) mod iq2_xs;
pub(crate) mod iq2_xxs;
pub(crate) mod iq3_s;
pub(crate) mod iq3_xxs;
pub(crate) mod iq4_nl;
pub(crate) mod iq4_xs;
pub(crate) mod k_scales;
pub(crate) mod minifloat;
pub(crate) mod mxfp4;
pub(crate) mod mxfp4_planes;
pub(crate) mod nvfp4;
pub(crate) mod nvfp4_planes;
pub(crate) mod q2_k;
pub(crate) mod q3_k;
pub(crate) mod q4_0;
pub(crate) mod q4_1;
pub(crate) mod q4_k;
pub(crate) mod q5_0;
pub(crate) mod q5_1;
pub(crate) mod q5_k;
pub(crate) mod q6_k;
pub(crate) mod q8_0;
pub(crate) mod q8_k;
pub(crate) mod rows;
mod scale_bytes;
pub(crate) mod search;
pub(crate) mod tq1_0;
pub(crate) mod tq2_0;

use self::apart::Part;
use self::rows::BlockRows;
use crate::arch;
use crate::dtype::{ActKind, DType, EncodeBlock, Format, ScaleLayout};
use crate::lanes::Narrow;
use crate::matmul;
use crate::simd::Simd;

/// Columns of a panel: one long block, or eight short ones.
pub(crate) const PANEL_COLS: usize = 256;
/// Words of four weights in a panel.
pub(crate) const PANEL_WORDS: usize = PANEL_COLS / 4;
/// Blocks of 32 in a panel.
pub(crate) const PANEL_BLOCKS: usize = PANEL_COLS / 32;
/// Words of a step, at most: they and their sums have to fit in registers.
pub(crate) const STEP_MAX: usize = 16;
/// Lanes of the widest vector.
pub(crate) const LANES_MAX: usize = 16;
/// Bytes of a row's panel in the widest format: a block of Q8_K.
pub(crate) const PANEL_BYTES_MAX: usize = 292;

/// What a block looks like once it is integers: all that products know of a format. They are
/// compiled once for each form, and formats of the same form share them.
pub(crate) trait Form: 'static {
    /// Values of the inputs that share a scale, which is the reach of `d`: 16, 32 or 256.
    const INPUT_LEN: usize;
    /// Weights per sub-block: the reach of one `sc` and `m`. Equal to `INPUT_LEN` where there is
    /// only one, with `sc = 1`.
    const SUB_LEN: usize;
    /// The largest `q`: [`NIBBLE`], [`SEVEN_BITS`] or [`BYTE`].
    const Q_MAX: u8;
    /// `m` where it is the same for every block of the format; `m / sc` in symmetric formats of
    /// several sub-blocks; unused in the others. Or [`PER_ROW`].
    const OFFSET: i32;
    /// `e == d`: both integer sums are taken together before the one rounding.
    const SYMMETRIC: bool;
}

/// `q` is at most 15; at most 24 in blocks of 16.
pub(crate) const NIBBLE: u8 = 15;
/// `q` is at most 127.
pub(crate) const SEVEN_BITS: u8 = 127;
/// `q` may be any byte. With several sub-blocks, such a format must be symmetric.
pub(crate) const BYTE: u8 = 255;
/// The offset of formats where `m` differs from row to row though a block has only one sub-block:
/// `panel.m` holds `-m` of each block, an i16 under a zero.
pub(crate) const PER_ROW: i32 = i32::MAX;

/// A [`Form`], spelled out.
pub(crate) struct Spelled<
    const INPUT_LEN: usize,
    const SUB_LEN: usize,
    const Q_MAX: u8,
    const OFFSET: i32,
    const SYMMETRIC: bool,
>;

/// Formats with `e == d`.
pub(crate) type Symmetric<
    const INPUT_LEN: usize,
    const SUB_LEN: usize,
    const Q_MAX: u8,
    const OFFSET: i32,
> = Spelled<INPUT_LEN, SUB_LEN, Q_MAX, OFFSET, true>;

/// Formats with an `e` of their own; where a block has only one sub-block, `m = 1`.
pub(crate) type Affine<const INPUT_LEN: usize, const SUB_LEN: usize, const Q_MAX: u8> =
    Spelled<INPUT_LEN, SUB_LEN, Q_MAX, 1, false>;

impl<const INPUT: usize, const SUB: usize, const Q_MAX: u8, const OFFSET: i32, const SYM: bool> Form
    for Spelled<INPUT, SUB, Q_MAX, OFFSET, SYM>
{
    const INPUT_LEN: usize = INPUT;
    const SUB_LEN: usize = SUB;
    const Q_MAX: u8 = Q_MAX;
    const OFFSET: i32 = OFFSET;
    const SYMMETRIC: bool = SYM;
}

/// [`PANEL_COLS`] columns of `LANES` rows as integers: lane `i` of every vector is row `i`.
pub(crate) struct Panel<S: Simd> {
    /// Weights, four columns to a word, in the order of the columns.
    pub(crate) q: [S::U; PANEL_WORDS],
    /// `sc` of each sub-block (formats with several sub-blocks): as i32, or where `q` are nibbles
    /// as i16 under a zero.
    pub(crate) sc: [S::U; 16],
    /// `m` of each two neighbouring sub-blocks as a pair of i16 (formats with several sub-blocks
    /// that are not symmetric; the others leave it alone).
    pub(crate) m: [S::U; 8],
    /// `d` of each block.
    pub(crate) d: [S::F; 2 * PANEL_BLOCKS],
    /// `e` of each block (formats that are not symmetric).
    pub(crate) e: [S::F; PANEL_BLOCKS],
}

impl<S: Simd> Panel<S> {
    /// A panel of zeros: the scratch of one worker.
    #[inline(always)]
    pub(crate) fn new(s: S) -> Self {
        let (zero, none) = (s.splat(0), s.splat_f32(0.0));
        Self {
            q: [zero; PANEL_WORDS],
            sc: [zero; 16],
            m: [zero; 8],
            d: [none; 2 * PANEL_BLOCKS],
            e: [none; PANEL_BLOCKS],
        }
    }
}

/// How the codes of a block lie in it, for products that read a row at a time.
#[derive(Clone, Copy)]
pub(crate) enum Codes {
    /// In a way that only [`BlockFormat::unpack`] knows: rows are put together from lanes.
    Various,
    /// Nibbles, from byte `first` on. The low halves of `run` bytes are as many columns, their high
    /// halves the next; `levels` are the `q` of each nibble.
    Nibbles { first: usize, run: usize, levels: &'static [u8; 16] },
    /// One i8 per column, from byte `first` on: `q - 128`.
    Bytes { first: usize },
    /// Six bits, twice 128 columns. The low halves of 64 bytes from byte 0 on are as many columns,
    /// their high halves the next; of 32 bytes from byte `upper` on each pair of bits belongs to 32
    /// columns.
    Sixes { upper: usize },
}

impl Codes {
    /// Nibbles that are the `q` themselves.
    pub(crate) const fn nibbles(first: usize, run: usize) -> Self {
        Self::Nibbles {
            first,
            run,
            levels: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
        }
    }
}

/// A quantised weight format. See the module's words, and `docs/add-a-format.md`.
pub(crate) trait BlockFormat: 'static {
    /// Its name in code.
    const DTYPE: DType;
    /// Its name in files.
    const NAME: &'static str;
    /// Its number in GGUF files.
    const GGML_TYPE: Option<u32>;
    /// Weights per block: a divisor of 256.
    const BLOCK_LEN: usize;
    /// Bytes per block.
    const BLOCK_BYTES: usize;
    /// What it is multiplied with: inputs in blocks as long as the reach of `d`.
    const INPUT: ActKind =
        if Self::BLOCK_LEN == PANEL_COLS { ActKind::I8x256 } else { ActKind::I8x32 };
    /// Where its scales are.
    const SCALES: ScaleLayout = ScaleLayout::Inside;
    /// What a block looks like once it is integers.
    type Form: Form;
    /// How its codes lie; where this says so, [`BlockFormat::unpack_scales`] has to be there, too.
    const CODES: Codes = Codes::Various;
    /// Words of codes (four columns each) that [`BlockFormat::unpack_step`] brings, at most
    /// [`STEP_MAX`], whole sub-blocks only; in formats of short blocks all of a block, in order.
    /// Such formats have an [`BlockFormat::unpack_scales`], too. 0 where the format has an
    /// [`BlockFormat::unpack`] of its own instead.
    const STEP: usize = 0;
    /// Encodes one block: `values` `[BLOCK_LEN]` and how much an error in each counts (see
    /// [`EncodeBlock`]) to `block` `[BLOCK_BYTES]`; `None` if the format can only be read.
    const ENCODE: Option<EncodeBlock>;

    /// Decodes one block: `block` `[BLOCK_BYTES]` to `values` `[BLOCK_LEN]`.
    fn decode(block: &[u8], values: &mut [f32]);
    /// The codes of some columns of one block of every row: step `step` of the block.
    #[inline(always)]
    fn unpack_step<S: Simd>(_s: S, _rows: &BlockRows<'_, S>, _step: usize, _q: &mut [S::U]) {
        unreachable!("a format with steps says what they bring");
    }
    /// Which word of the block is word `word` of a step. Sub-blocks stay together.
    #[inline(always)]
    fn place(step: usize, word: usize) -> usize {
        step * Self::STEP + word
    }
    /// Unpacks one block of every row, scales and codes, as block number `slot` of the panel.
    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        Self::unpack_scales(s, rows, panel, slot);
        for step in 0..Self::BLOCK_LEN / 4 / Self::STEP {
            let mut q = [s.splat(0); STEP_MAX];
            Self::unpack_step(s, rows, step, &mut q[..Self::STEP]);
            for (word, &q) in q[..Self::STEP].iter().enumerate() {
                panel.q[Self::BLOCK_LEN / 4 * slot + Self::place(step, word)] = q;
            }
        }
    }
    /// The part of [`BlockFormat::unpack`] that brings scales (`d`, `e`, `sc`, `m`).
    #[inline(always)]
    fn unpack_scales<S: Simd>(s: S, rows: &BlockRows<'_, S>, panel: &mut Panel<S>, slot: usize) {
        Self::unpack(s, rows, panel, slot);
    }
    /// Brings the scales of a panel into `panel.d`, where they lie apart.
    #[inline(always)]
    fn scale<S: Simd>(_s: S, _part: &Part<'_>, _panel: &mut Panel<S>) {}
}

/// A format of plain floating-point numbers.
pub(crate) trait FloatFormat: 'static {
    /// Its name in code.
    const DTYPE: DType;
    /// Its name in files.
    const NAME: &'static str;
    /// Its number in GGUF files.
    const GGML_TYPE: Option<u32>;
    /// Bytes per weight.
    const BYTES: usize;
    /// Where its scales are.
    const SCALES: ScaleLayout = ScaleLayout::Inside;

    /// Widens one weight.
    fn decode(bytes: &[u8], value: &mut [f32]);
    /// Rounds one weight.
    fn encode(value: &[f32], bytes: &mut [u8]);
    /// Widens 16 weights: `bytes` `[16 * BYTES]`.
    fn load16<L: Narrow>(bytes: &[u8]) -> L;
}

/// The table row of a quantised format.
pub(crate) const fn block_row<F: BlockFormat>() -> Format {
    assert!(PANEL_COLS.is_multiple_of(F::BLOCK_LEN));
    assert!(PANEL_COLS / F::BLOCK_LEN * F::BLOCK_BYTES <= PANEL_BYTES_MAX);
    assert!(F::BLOCK_LEN.is_multiple_of(<F::Form as Form>::INPUT_LEN));
    assert!(F::INPUT.block_len() == <F::Form as Form>::INPUT_LEN);
    assert!(matches!(<F::Form as Form>::Q_MAX, NIBBLE | SEVEN_BITS | BYTE));
    assert!(F::STEP <= STEP_MAX && (F::STEP == 0 || (F::BLOCK_LEN / 4).is_multiple_of(F::STEP)));
    assert!(F::STEP.is_multiple_of(<F::Form as Form>::SUB_LEN / 4));
    let is_long = <F::Form as Form>::INPUT_LEN == PANEL_COLS;
    assert!(F::STEP == 0 || is_long || F::STEP == F::BLOCK_LEN / 4);
    assert!(<F::Form as Form>::SYMMETRIC || <F::Form as Form>::Q_MAX < BYTE || F::BLOCK_LEN == 32);
    assert!(match F::CODES {
        Codes::Various => true,
        Codes::Nibbles { run: 32, .. } =>
            F::BLOCK_LEN == PANEL_COLS && <F::Form as Form>::SUB_LEN == 32,
        Codes::Nibbles { run, .. } => matches!(run, 1 | 8 | 16),
        Codes::Sixes { upper } =>
            F::BLOCK_LEN == PANEL_COLS
                && <F::Form as Form>::SUB_LEN == 16
                && <F::Form as Form>::Q_MAX == SEVEN_BITS
                && upper >= 128
                && upper + 64 <= F::BLOCK_BYTES,
        Codes::Bytes { .. } => <F::Form as Form>::SYMMETRIC && <F::Form as Form>::OFFSET == 128,
    });
    Format {
        dtype: F::DTYPE,
        name: F::NAME,
        ggml_type: F::GGML_TYPE,
        block_len: F::BLOCK_LEN,
        block_bytes: F::BLOCK_BYTES,
        activation: F::INPUT,
        scales: F::SCALES,
        decode: F::decode,
        encode: F::ENCODE,
        product: arch::run_blocks::<F>,
    }
}

/// The table row of a float format.
pub(crate) const fn float_row<F: FloatFormat>() -> Format {
    Format {
        dtype: F::DTYPE,
        name: F::NAME,
        ggml_type: F::GGML_TYPE,
        block_len: 1,
        block_bytes: F::BYTES,
        activation: ActKind::F32,
        scales: F::SCALES,
        decode: F::decode,
        encode: Some(encode_float::<F>),
        product: matmul::run_floats::<F>,
    }
}

/// Rounds one weight to the nearest there is, however much it counts.
fn encode_float<F: FloatFormat>(value: &[f32], _importance: Option<&[f32]>, bytes: &mut [u8]) {
    F::encode(value, bytes);
}
