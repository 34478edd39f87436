//! The inputs of matrix products: float rows, and the same rows as 8-bit integers.
//!
//! Quantised weights are multiplied in integers, so a row is rounded to i8 once and used by every
//! product that reads it. A block of `B` values (16, 32 or 256, as the weight format wants) becomes
//! `q[i] = round(x[i] * (127 / amax))`, ties to even, with `amax` the largest magnitude and
//! `scale = amax / 127`; a block whose `127 / amax` overflows (or is all zero) becomes zeros.
//! A block holding an infinity or a NaN gets scale NaN, so that what follows is visibly broken
//! instead of quietly wrong. Sums of `q` serve the formats whose weights have a minimum. Formats
//! that keep neighbouring weights in one byte read the integers in that order: see [`ActKind`].
//!
//! Eight bits are what other engines use, and they are the largest error of a forward pass
//! (`docs/lab/2026-11-22-parity.md`). With [`Precision::Sixteen`] what the rounding left over,
//! `x - scale * q`, is rounded to a second row of i8 with scales of its own. Products then see two
//! input rows, multiply both by weights that were unpacked once, and add the two results: the
//! integers stay 8 bits wide and exact, and the error shrinks by a factor of about 250.

use std::ops::{BitOr, Range};

use crate::arch;
use crate::disjoint::Disjoint;
use crate::dtype::{ActKind, DType};
use crate::formats::half;
use crate::isa::{self, Isa};
use crate::pool::Pool;

/// Which quantised forms of a row are wanted, beside the floats. Combine with `|`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActKinds(u8);

impl ActKinds {
    /// Floats alone.
    pub const F32: Self = Self(0);
    /// Every form that integer products read.
    pub const ALL: Self = Self((1 << QUANTISED.len()) - 1);
    /// Bfloats, which products by tiles read.
    const BFLOATS: Self = Self(1 << QUANTISED.len());

    /// What weights of `dtype` are multiplied with.
    pub fn of(dtype: DType) -> Self {
        Self::from(dtype.format().activation)
    }

    /// Whether every form in `other` is also in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The quantised kinds, in the order in which [`Activations`] keeps them.
const QUANTISED: [ActKind; 5] =
    [ActKind::I8x32, ActKind::I8x256, ActKind::I8x16, ActKind::I8x16Pairs, ActKind::I8x32Pairs];

impl From<ActKind> for ActKinds {
    fn from(kind: ActKind) -> Self {
        let place = QUANTISED.iter().position(|quantised| *quantised == kind);
        place.map_or(Self::F32, |place| Self(1 << place))
    }
}

impl BitOr for ActKinds {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How finely inputs of quantised weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// 8 bits with one scale per block, as other engines do: the fastest.
    Eight,
    /// Twice 8 bits: what the first rounding left over is kept as well.
    #[default]
    Sixteen,
    /// As `Sixteen` where few inputs share a product; where many do, bfloats, if the machine
    /// multiplies tiles of them ([`Isa::Amx`]): several times faster, and what a token becomes
    /// then depends a little on how many others are computed with it.
    Mixed,
}

impl Precision {
    /// Rows of i8 that one input row becomes.
    pub fn limbs(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen | Self::Mixed => LIMBS_MAX,
        }
    }

    /// Whether there are bfloats, too, on this machine: then long steps pay, because each expert's
    /// weights are made bfloats once a step.
    pub fn has_bfloats(self) -> bool {
        self == Self::Mixed && isa::current() == Isa::Amx
    }
}

/// As many inputs as share a product at least, or tokens an attended span, where bfloats are used:
/// fewer are as fast, and better, otherwise. Below it no token depends on its company.
pub const SHARED_MIN: usize = 12;

/// Parts that each thread's share of the rows is rounded in, to even out a thread that is held up.
const CHUNKS_PER_THREAD: usize = 8;

/// Rows of i8 of one input row, at most.
pub(crate) const LIMBS_MAX: usize = 2;

/// Input rows `[rows, cols]`, as floats and as integers. Made once, filled for every product.
#[derive(Debug)]
pub struct Activations {
    precision: Precision,
    rows: usize,
    cols: usize,
    rows_max: usize,
    cols_max: usize,
    /// The forms there is room for.
    room: ActKinds,
    kinds: ActKinds,
    floats: Vec<f32>, // [rows, stride]
    /// `[rows, limbs]` of each of [`QUANTISED`]; empty where there is no room for the kind.
    forms: [Quantised; QUANTISED.len()],
    bfloats: Vec<u16>, // [rows, stride]; empty unless the precision has them
}

/// Rows as i8 in blocks of one length; a row here is one limb of an input row.
#[derive(Debug)]
struct Quantised {
    block_len: usize,
    words: Vec<u32>,  // [rows, stride / 4], four i8 each
    scales: Vec<f32>, // [rows, stride / block_len]
    sums: Vec<u32>,   // [rows, stride / block_len, SUM_WORDS of the block length]
}

/// Columns that a panel reads at once; rows have room for a last one.
const PANEL_COLS: usize = crate::formats::PANEL_COLS;
/// A short block's sum is one i32.
const SHORT_SUM_WORDS: usize = 1;
/// A long block has the sums of its 8 runs of 32, then of its 16 runs of 16, as pairs of i16.
pub(crate) const LONG_SUM_WORDS: usize = 4 + 8;

/// Values from one row to the next. The last panel's worth is room, so that a window of a panel
/// that starts at any block of the row lies within the row's own storage; the odd line on top
/// keeps the same column of many rows from falling into the same cache set. What lies past the
/// row's last block is never multiplied, and so never filled.
fn stride(cols: usize) -> usize {
    cols.next_multiple_of(PANEL_COLS) + PANEL_COLS
}

/// One row's quantised form from some column on, at least one panel of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QuantisedRow<'a> {
    /// Four i8 each.
    pub(crate) words: &'a [u32],
    /// One per block.
    pub(crate) scales: &'a [f32],
    /// Per block; see [`Activations`]' fields.
    pub(crate) sums: &'a [u32],
}

impl Quantised {
    fn with_capacity(block_len: usize, rows_max: usize, cols_max: usize) -> Self {
        let values = rows_max * stride(cols_max);
        let blocks = values / block_len;
        let sum_words = Self::sum_words(block_len);
        Self {
            block_len,
            words: vec![0; values / 4],
            scales: vec![0.0; blocks],
            sums: vec![0; blocks * sum_words],
        }
    }

    fn sum_words(block_len: usize) -> usize {
        if block_len == 256 { LONG_SUM_WORDS } else { SHORT_SUM_WORDS }
    }

    fn row(&self, row: usize, col: usize, stride: usize) -> QuantisedRow<'_> {
        let (first, end) = (row * stride + col, (row + 1) * stride);
        let sum_words = Self::sum_words(self.block_len);
        let blocks = first / self.block_len..end / self.block_len;
        QuantisedRow {
            words: &self.words[first / 4..end / 4],
            sums: &self.sums[blocks.start * sum_words..blocks.end * sum_words],
            scales: &self.scales[blocks],
        }
    }
}

impl Activations {
    /// Room for `rows_max` rows of up to `cols_max` columns in every form of `kinds`, rounded as
    /// finely as `precision` says. Nothing is allocated later.
    pub fn with_capacity(
        rows_max: usize,
        cols_max: usize,
        precision: Precision,
        kinds: ActKinds,
    ) -> Self {
        let limbs = rows_max * precision.limbs();
        let forms = QUANTISED.map(|kind| {
            let rows = if kinds.contains(kind.into()) { limbs } else { 0 };
            Quantised::with_capacity(kind.block_len(), rows, cols_max)
        });
        Self {
            precision,
            rows: 0,
            cols: 0,
            rows_max,
            cols_max,
            room: kinds,
            kinds: ActKinds::F32,
            floats: vec![0.0; rows_max * stride(cols_max)],
            forms,
            bfloats: vec![0; if precision.has_bfloats() { rows_max * stride(cols_max) } else { 0 }],
        }
    }

    /// Bytes of memory that so much room takes, filled or not.
    pub fn num_bytes(
        rows_max: usize,
        cols_max: usize,
        precision: Precision,
        kinds: ActKinds,
    ) -> usize {
        let values = rows_max * stride(cols_max);
        let quantised = |kind: ActKind| {
            let (limbs, block_len) = (values * precision.limbs(), kind.block_len());
            limbs + limbs / block_len * 4 * (1 + Quantised::sum_words(block_len))
        };
        let held = QUANTISED.into_iter().filter(|kind| kinds.contains((*kind).into()));
        let bfloats = if precision.has_bfloats() { values * size_of::<u16>() } else { 0 };
        values * size_of::<f32>() + held.map(quantised).sum::<usize>() + bfloats
    }

    /// Number of rows last set.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns last set.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How finely rows are rounded.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The quantised forms last asked for.
    pub fn kinds(&self) -> ActKinds {
        self.kinds
    }

    /// Row `row` as it was given, `[cols]`.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.floats(row, 0)[..self.cols]
    }

    /// Takes `x` `[rows, cols]` and rounds it to every form in `kinds`; all rows share products.
    ///
    /// # Panics
    /// If there are more rows or columns than room, no room for a kind, or `x` is not
    /// `rows * cols` long.
    pub fn set(&mut self, pool: &Pool, x: &[f32], rows: usize, cols: usize, kinds: ActKinds) {
        self.set_shared(pool, x, [rows, cols], kinds, rows);
    }

    /// [`Activations::set`], where about `shared` of the rows share a product.
    ///
    /// # Panics
    /// As [`Activations::set`].
    pub fn set_shared(
        &mut self,
        pool: &Pool,
        x: &[f32],
        [rows, cols]: [usize; 2],
        kinds: ActKinds,
        shared: usize,
    ) {
        assert!(rows <= self.rows_max, "`{rows}` rows, room for `{}`", self.rows_max);
        assert!(cols <= self.cols_max, "`{cols}` columns, room for `{}`", self.cols_max);
        assert_eq!(x.len(), rows * cols, "length of a [{rows}, {cols}] input");
        assert!(self.room.contains(kinds), "{kinds:?}, room for {:?}", self.room);
        let by_tiles = !self.bfloats.is_empty() && kinds != ActKinds::F32 && shared >= SHARED_MIN;
        let kinds = if by_tiles { ActKinds::BFLOATS } else { kinds };
        (self.rows, self.cols, self.kinds) = (rows, cols, kinds);
        let fill = Fill {
            x,
            cols,
            kinds,
            limbs: self.precision.limbs(),
            stride: stride(cols),
            floats: Disjoint::new(&mut self.floats),
            forms: self.forms.each_mut().map(Parts::new),
            bfloats: Disjoint::new(&mut self.bfloats),
        };
        let isa = isa::current();
        let chunk = rows.div_ceil(pool.threads() * CHUNKS_PER_THREAD);
        pool.for_each_chunk(rows, chunk, |_, rows| arch::fill(isa, &fill, rows));
    }

    /// Row `row` as floats, from column `col` to the end of its storage.
    #[inline]
    pub(crate) fn floats(&self, row: usize, col: usize) -> &[f32] {
        let stride = stride(self.cols);
        &self.floats[row * stride + col..(row + 1) * stride]
    }

    /// Whether products are to be made by tiles: the rows are there as bfloats, not as integers.
    #[inline]
    pub(crate) fn by_tiles(&self) -> bool {
        self.kinds.contains(ActKinds::BFLOATS)
    }

    /// Row `row` as bfloats, from column `col` to the end of its storage.
    #[inline]
    pub(crate) fn bfloats(&self, row: usize, col: usize) -> &[u16] {
        let stride = stride(self.cols);
        &self.bfloats[row * stride + col..(row + 1) * stride]
    }

    /// One limb of row `row` as integers of `kind`, from column `col` (a block's first) on.
    #[inline]
    pub(crate) fn quantised(
        &self,
        kind: ActKind,
        (row, limb): (usize, usize),
        col: usize,
    ) -> QuantisedRow<'_> {
        let place = QUANTISED.iter().position(|quantised| *quantised == kind);
        let form = &self.forms[place.expect("products of floats ask for floats")];
        form.row(row * self.precision.limbs() + limb, col, stride(self.cols))
    }
}

/// A [`Quantised`] whose rows several workers fill.
struct Parts<'a> {
    words: Disjoint<'a, u32>,
    scales: Disjoint<'a, f32>,
    sums: Disjoint<'a, u32>,
}

impl<'a> Parts<'a> {
    fn new(form: &'a mut Quantised) -> Self {
        Self {
            words: Disjoint::new(&mut form.words),
            scales: Disjoint::new(&mut form.scales),
            sums: Disjoint::new(&mut form.sums),
        }
    }
}

/// Everything workers need to fill rows.
pub(crate) struct Fill<'a> {
    x: &'a [f32], // [rows, cols]
    cols: usize,
    kinds: ActKinds,
    limbs: usize,
    stride: usize,
    floats: Disjoint<'a, f32>,
    forms: [Parts<'a>; QUANTISED.len()],
    bfloats: Disjoint<'a, u16>,
}

impl Fill<'_> {
    /// Fills `rows`. Compiled once per instruction set; plain Rust, so the bits are the same.
    #[inline(always)]
    pub(crate) fn rows(&self, rows: Range<usize>) {
        for row in rows {
            let x = &self.x[row * self.cols..(row + 1) * self.cols];
            let first = row * self.stride;
            // SAFETY: `set` gives every row to exactly one worker.
            let floats = unsafe { self.floats.piece(first..first + self.stride) };
            floats[..self.cols].copy_from_slice(x);
            // Zeros to the end of the last block, whatever its length.
            let end = self.cols.next_multiple_of(PANEL_COLS);
            floats[self.cols..end].fill(0.0);
            for (kind, parts) in QUANTISED.into_iter().zip(&self.forms) {
                if self.kinds.contains(kind.into()) {
                    self.fill_form(kind, row, &floats[..end], parts);
                }
            }
            if self.kinds.contains(ActKinds::BFLOATS) {
                // SAFETY: as above.
                let bfloats = unsafe { self.bfloats.piece(first..first + self.stride) };
                for (bfloat, float) in bfloats.iter_mut().zip(&floats[..end]) {
                    *bfloat = half::f32_to_bf16(*float);
                }
            }
        }
    }

    /// Fills one form of a row, whose values are padded to a whole panel.
    #[inline(always)]
    fn fill_form(&self, kind: ActKind, row: usize, floats: &[f32], parts: &Parts<'_>) {
        let place = Place { first: row * self.limbs * self.stride, stride: self.stride };
        let floats = &floats[..self.cols.next_multiple_of(kind.block_len())];
        let limbs = self.limbs;
        match kind {
            ActKind::F32 => {}
            ActKind::I8x32 => fill_row::<32, 1, false>(floats, place, limbs, parts, short_sum),
            ActKind::I8x256 => {
                fill_row::<256, LONG_SUM_WORDS, false>(floats, place, limbs, parts, long_sums);
            }
            ActKind::I8x16 => fill_row::<16, 1, false>(floats, place, limbs, parts, short_sum),
            ActKind::I8x16Pairs => fill_row::<16, 1, true>(floats, place, limbs, parts, short_sum),
            ActKind::I8x32Pairs => fill_row::<32, 1, true>(floats, place, limbs, parts, short_sum),
        }
    }
}

/// Where a row's limbs are stored.
#[derive(Clone, Copy)]
struct Place {
    /// The first limb's first value.
    first: usize,
    /// Values from one limb to the next.
    stride: usize,
}

/// Quantises one row, block by block, into its `limbs` rows of i8. With `PAIRS` each eight
/// integers are stored as the four at even columns, then the four at odd ones.
#[inline(always)]
fn fill_row<const B: usize, const SUMS: usize, const PAIRS: bool>(
    floats: &[f32],
    place: Place,
    limbs: usize,
    parts: &Parts<'_>,
    sum: impl Fn(&[i8; B], &mut [u32]),
) {
    let end = place.first + limbs * place.stride;
    let blocks = place.first / B..end / B;
    // SAFETY: these are the row's own words, and `set` gives every row to exactly one worker.
    let words = unsafe { parts.words.piece(place.first / 4..end / 4) };
    // SAFETY: as above, the row's own scales.
    let scales = unsafe { parts.scales.piece(blocks.clone()) };
    // SAFETY: as above, the row's own sums.
    let sums = unsafe { parts.sums.piece(blocks.start * SUMS..blocks.end * SUMS) };
    let (blocks, _) = floats.as_chunks::<B>();
    for (index, block) in blocks.iter().enumerate() {
        let mut left = *block;
        for limb in 0..limbs {
            let index = limb * (place.stride / B) + index;
            let (q, scale) = quantise(&left);
            scales[index] = scale;
            sum(&q, &mut sums[index * SUMS..(index + 1) * SUMS]);
            let words = &mut words[index * B / 4..(index + 1) * B / 4];
            for (words, q) in words.as_chunks_mut::<2>().0.iter_mut().zip(q.as_chunks::<8>().0) {
                let [a, b, c, d, e, f, g, h] = q.map(|q| q as u8);
                let [low, high] =
                    if PAIRS { [[a, c, e, g], [b, d, f, h]] } else { [[a, b, c, d], [e, f, g, h]] };
                *words = [u32::from_le_bytes(low), u32::from_le_bytes(high)];
            }
            if limb + 1 == limbs {
                break;
            }
            for (left, q) in left.iter_mut().zip(q) {
                *left -= f32::from(q) * scale;
            }
        }
    }
}

/// Added to a small float, 1.5 * 2^23 pushes the fraction out: the sum rounds to nearest even, and
/// its lowest byte is the integer in two's complement.
const ROUND: f32 = 12_582_912.0;

/// Rounds one block to integers and their scale.
#[inline(always)]
fn quantise<const B: usize>(x: &[f32; B]) -> ([i8; B], f32) {
    // As integers, magnitudes order like the floats, with infinities and NaNs above all numbers.
    let mut top = [0i32; 16];
    for lanes in x.as_chunks::<16>().0 {
        for (top, x) in top.iter_mut().zip(lanes) {
            *top = (*top).max((x.to_bits() & 0x7fff_ffff) as i32);
        }
    }
    let amax = f32::from_bits(top.into_iter().max().expect("16 lanes") as u32);
    if !amax.is_finite() {
        return ([0; B], f32::NAN);
    }
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        return ([0; B], 0.0);
    }
    (x.map(|x| (x * inverse + ROUND).to_bits() as u8 as i8), amax / 127.0)
}

/// The sum of a short block.
#[inline(always)]
fn short_sum<const B: usize>(q: &[i8; B], sums: &mut [u32]) {
    sums[0] = q.iter().map(|&q| i32::from(q)).sum::<i32>() as u32;
}

/// Two sums as the i16 halves of a word.
#[inline(always)]
fn pair(low: i16, high: i16) -> u32 {
    u32::from(low as u16) | u32::from(high as u16) << 16
}

/// Sums of a long block: 8 runs of 32 and 16 runs of 16, in pairs.
#[inline(always)]
fn long_sums(q: &[i8; 256], sums: &mut [u32]) {
    let mut sixteens = [0i16; 16];
    for (sum, run) in sixteens.iter_mut().zip(q.as_chunks::<16>().0) {
        *sum = run.iter().map(|&q| i16::from(q)).sum();
    }
    for i in 0..4 {
        let four = &sixteens[4 * i..4 * i + 4];
        sums[i] = pair(four[0] + four[1], four[2] + four[3]);
        sums[4 + 2 * i] = pair(four[0], four[1]);
        sums[4 + 2 * i + 1] = pair(four[2], four[3]);
    }
}
