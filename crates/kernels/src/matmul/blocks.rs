//! Products with quantised weights: unpack a panel of rows once, multiply it by many tokens.
//!
//! A panel is `LANES` rows by 256 columns (one block of 256, or eight of 32), unpacked from the
//! file's own blocks into words whose lane `i` belongs to row `i`. Tokens are then taken a few at
//! a time; each word of four columns is multiplied by the token's same four inputs, broadcast to
//! all lanes. No lane ever meets another, so the sums of 16 rows cost no more than those of one.
//! One token or two take the same steps in the same order, without the panel (`few`).

use std::ops::Range;

use super::{Unit, few};
use crate::activations::{LONG_SUM_WORDS, QuantisedRow};
use crate::dtype::ScaleLayout;
use crate::formats::apart::Part;
use crate::formats::rows::{BlockRows, LookAhead};
use crate::formats::{
    BYTE, BlockFormat, Form, LANES_MAX, NIBBLE, PANEL_BLOCKS, PANEL_BYTES_MAX, PANEL_COLS,
    PANEL_WORDS, PER_ROW, Panel,
};
use crate::simd::Simd;
use crate::tensor::Factor;

/// Rows of i8 that share one unpacking: their running sums and inputs should stay in the caches.
const INPUTS: usize = 64;

/// Computes `unit`.
#[inline(always)]
pub(crate) fn run<S: Simd, F: BlockFormat>(s: S, unit: &Unit<'_>) {
    let mut panel = Panel::new(s);
    let mut inputs = [QuantisedRow::default(); INPUTS];
    let limbs = unit.input.precision().limbs();
    let mut token = unit.span.start;
    while token < unit.span.end {
        let tokens = token..(token + INPUTS / limbs).min(unit.span.end);
        for (index, input) in inputs[..tokens.len() * limbs].iter_mut().enumerate() {
            let row = unit.tokens.at(token + index / limbs);
            *input = unit.input.quantised(F::INPUT, (row, index % limbs), unit.input_col);
        }
        let inputs = &inputs[..tokens.len() * limbs];
        let mut first = unit.rows.start;
        while first < unit.rows.end {
            let rows = first..(first + S::LANES).min(unit.rows.end);
            if !few::panel_rows::<S, F>(s, unit, &mut panel, rows.clone(), inputs, tokens.clone()) {
                panel_rows::<S, F>(s, unit, &mut panel, rows.clone(), inputs, tokens.clone());
            }
            first = rows.end;
        }
        token = tokens.end;
    }
}

/// All columns of `rows` (at most `LANES`) for the `inputs` (at most [`INPUTS`], one or more limbs
/// each) of output rows `tokens`.
#[inline(always)]
fn panel_rows<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    rows: Range<usize>,
    inputs: &[QuantisedRow<'_>],
    tokens: Range<usize>,
) {
    let num_blocks = unit.weight.cols() / F::BLOCK_LEN;
    // Blocks of the file may hold several blocks of inputs.
    let parts = F::BLOCK_LEN / <F::Form as Form>::INPUT_LEN;
    let mut acc = [s.splat_f32(0.0); INPUTS];
    let mut block = 0;
    while block < num_blocks {
        let end = num_blocks.min(block + PANEL_COLS / F::BLOCK_LEN);
        let part = block * F::BLOCK_BYTES..end * F::BLOCK_BYTES;
        let ahead = LookAhead::behind(&unit.weight, &rows, part);
        unpack::<S, F>(s, unit, panel, (rows.clone(), block..end), &ahead);
        tiles::<S, F::Form>(s, panel, block * parts..end * parts, inputs, &mut acc);
        block = end;
    }
    unit.store_limbs(s, &acc[..inputs.len()], tokens, rows);
}

impl Unit<'_> {
    /// Stores a panel's sums of some tokens: `sums` are those of their limbs, one or two each.
    #[inline(always)]
    pub(super) fn store_limbs<S: Simd>(
        &self,
        s: S,
        sums: &[S::F],
        tokens: Range<usize>,
        rows: Range<usize>,
    ) {
        for (limbs, token) in sums.chunks_exact(sums.len() / tokens.len()).zip(tokens) {
            let sum = match limbs {
                // The coarse limb first, then what it left over: one order, so one result.
                [coarse, fine] => s.fma(*fine, s.splat_f32(1.0), *coarse),
                _ => limbs[0],
            };
            self.store(s, sum, token, rows.clone());
        }
    }

    /// Stores a panel's sums of token `token`, times the matrix's factor.
    #[inline(always)]
    pub(crate) fn store<S: Simd>(&self, s: S, sums: S::F, token: usize, rows: Range<usize>) {
        let factor = self.weight.factor();
        self.output(token, rows, |out| {
            s.store(sums, out);
            if factor != Factor::ONE {
                for out in out {
                    *out = factor.apply(*out);
                }
            }
        });
    }
}

/// Unpacks `blocks` of `rows` as the panel, with their scales.
#[inline(always)]
pub(crate) fn unpack<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    place: (Range<usize>, Range<usize>),
    ahead: &LookAhead,
) {
    unpack_by::<S, F, true>(s, unit, panel, place, ahead);
}

/// [`unpack`] where only the scales are wanted.
#[inline(always)]
pub(crate) fn unpack_scales<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    place: (Range<usize>, Range<usize>),
) {
    unpack_by::<S, F, false>(s, unit, panel, place, &LookAhead::nothing());
}

/// Unpacks scales, wherever they lie, and `CODES` if they are wanted. (A constant, not a function
/// that is passed: those are not always inlined, and then lose the vector instructions.)
#[inline(always)]
fn unpack_by<S: Simd, F: BlockFormat, const CODES: bool>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    (rows, blocks): (Range<usize>, Range<usize>),
    ahead: &LookAhead,
) {
    let (bytes, stride) = (unit.weight.bytes(), unit.weight.row_bytes());
    let offset = blocks.start * F::BLOCK_BYTES;
    let first = rows.start * stride + offset;
    let mut copy = None;
    let (bytes, first, stride) = if rows.len() == S::LANES {
        (bytes, first, stride)
    } else {
        // Too few rows for a whole panel: the missing ones are zeros whose sums nobody stores.
        let copy = copy.insert([0u8; LANES_MAX * PANEL_BYTES_MAX]);
        let len = blocks.len() * F::BLOCK_BYTES;
        for (index, row) in copy.chunks_exact_mut(len).take(rows.len()).enumerate() {
            row.copy_from_slice(&bytes[first + index * stride..][..len]);
        }
        (&copy[..], 0, len)
    };
    for slot in 0..blocks.len() {
        let offset = first + slot * F::BLOCK_BYTES;
        let rows = BlockRows::new(s, bytes, offset, (stride, F::BLOCK_BYTES), ahead);
        if CODES {
            F::unpack(s, &rows, panel, slot);
        } else {
            F::unpack_scales(s, &rows, panel, slot);
        }
    }
    if <F::Form as Form>::INPUT_LEN == PANEL_COLS && <F::Form as Form>::SYMMETRIC {
        // Here `m = offset * sc`: the panel's `m` are the `sc`, two to a word, and `offset` comes
        // in once per block and token.
        for pair in 0..PANEL_COLS / <F::Form as Form>::SUB_LEN / 2 {
            let first = s.and(panel.sc[2 * pair], s.splat(0xffff));
            panel.m[pair] = s.or(first, s.shl::<16>(panel.sc[2 * pair + 1]));
        }
    }
    if F::SCALES != ScaleLayout::Inside {
        let cols = blocks.start * F::BLOCK_LEN..blocks.end * F::BLOCK_LEN;
        F::scale(s, &Part { weight: &unit.weight, rows, cols }, panel);
    }
}

/// Multiplies the panel, which holds `blocks` of the inputs, with all `inputs`, as many at a time
/// as registers allow. Tiles of many are functions that formats of one form share.
#[inline(always)]
fn tiles<S: Simd, F: Form>(
    s: S,
    panel: &Panel<S>,
    blocks: Range<usize>,
    inputs: &[QuantisedRow<'_>],
    acc: &mut [S::F; INPUTS],
) {
    let mut done = 0;
    while done < inputs.len() {
        let (inputs, acc) = (&inputs[done..], &mut acc[done..]);
        done += if S::TILE >= 8 && inputs.len() >= 8 {
            s.tile::<F, 8>(panel, blocks.clone(), inputs, acc)
        } else if S::TILE >= 4 && inputs.len() >= 4 {
            s.tile::<F, 4>(panel, blocks.clone(), inputs, acc)
        } else if S::TILE >= 2 && inputs.len() >= 2 {
            tile::<S, F, 2>(s, panel, blocks.clone(), inputs, acc)
        } else {
            tile::<S, F, 1>(s, panel, blocks.clone(), inputs, acc)
        };
    }
}

/// Multiplies the panel with the first `T` inputs; returns `T`.
#[inline(always)]
pub(crate) fn tile<S: Simd, F: Form, const T: usize>(
    s: S,
    panel: &Panel<S>,
    blocks: Range<usize>,
    inputs: &[QuantisedRow<'_>],
    acc: &mut [S::F],
) -> usize {
    let inputs: &[QuantisedRow<'_>; T] = inputs.first_chunk().expect("at least T inputs");
    let acc: &mut [S::F; T] = acc.first_chunk_mut().expect("one sum per input");
    match F::INPUT_LEN {
        16 => short_blocks::<S, F, T, { 2 * PANEL_BLOCKS }>(s, panel, blocks, inputs, acc),
        32 => short_blocks::<S, F, T, PANEL_BLOCKS>(s, panel, blocks, inputs, acc),
        _ => {
            let (mut total, words) = ([s.splat(0); T], words::<F, T>(inputs, blocks.start));
            long_words::<S, F, T>(s, panel, (|word| word, &panel.q), &words, &mut total);
            long_end::<S, F, T>(s, panel, (blocks.start, inputs), total, acc);
        }
    }
    T
}

/// Multiplies short blocks of the panel, `N` to a whole one.
#[inline(always)]
fn short_blocks<S: Simd, F: Form, const T: usize, const N: usize>(
    s: S,
    panel: &Panel<S>,
    blocks: Range<usize>,
    inputs: &[QuantisedRow<'_>; T],
    acc: &mut [S::F; T],
) {
    let x = ShortInputs::<T, N>::new::<S, F>(inputs, blocks.start);
    let mut total = *acc;
    for (block, q) in panel.q.chunks_exact(PANEL_WORDS / N).take(blocks.len()).enumerate() {
        short_block::<S, F, T, N>(s, panel, (block, q), &x, &mut total);
    }
    *acc = total;
}

/// A panel's worth of `values` from `first` on.
#[inline(always)]
fn window<T, const N: usize>(values: &[T], first: usize) -> &[T; N] {
    values[first..].first_chunk().expect("rows are padded by a whole panel")
}

/// What inputs whose blocks are short bring to `N` blocks of a panel.
pub(super) struct ShortInputs<'a, const T: usize, const N: usize> {
    words: [&'a [u32; PANEL_WORDS]; T],
    scales: [&'a [f32; N]; T],
    sums: [&'a [u32; N]; T],
    /// Symmetric formats whose `M` is the same for all rows start from `-M`.
    starts: [[u32; N]; T],
}

impl<'a, const T: usize, const N: usize> ShortInputs<'a, T, N> {
    /// Those of the panel that begins with block `first` of the inputs.
    #[inline(always)]
    pub(super) fn new<S: Simd, F: Form>(inputs: &[QuantisedRow<'a>; T], first: usize) -> Self {
        let sums: [&[u32; N]; T] = std::array::from_fn(|t| window(inputs[t].sums, first));
        let offset = short_offset::<S, F>();
        Self {
            words: words::<F, T>(inputs, first),
            scales: std::array::from_fn(|t| window(inputs[t].scales, first)),
            sums,
            starts: std::array::from_fn(|t| sums[t].map(|sum| sum.wrapping_mul(offset as u32))),
        }
    }
}

/// What is still to be added to each `q` of a block of one sub-block.
#[inline(always)]
const fn short_offset<S: Simd, F: Form>() -> i32 {
    let bias = if F::Q_MAX == BYTE { S::FULL_BIAS } else { 0 };
    if F::SYMMETRIC { bias.wrapping_sub(F::OFFSET) } else { bias }
}

/// Adds the products of the panel's block `block`, a short one with the codes `q`, to `total`.
#[inline(always)]
pub(super) fn short_block<S: Simd, F: Form, const T: usize, const N: usize>(
    s: S,
    panel: &Panel<S>,
    (block, q): (usize, &[S::U]),
    x: &ShortInputs<'_, T, N>,
    total: &mut [S::F; T],
) {
    let start = |t: usize| {
        if F::OFFSET == PER_ROW {
            // The upper i16 of `m` is 0.
            s.dot_pairs(s.splat(0), panel.m[block % 8], s.splat(x.sums[t][block]))
        } else {
            s.splat(if short_offset::<S, F>() == 0 { 0 } else { x.starts[t][block] })
        }
    };
    let halves = F::Q_MAX == NIBBLE && S::NIBBLE_HALVES;
    let mut sum: [S::U; T] = std::array::from_fn(|t| if halves { s.splat(0) } else { start(t) });
    for (word, &q) in q.iter().enumerate() {
        for t in 0..T {
            let x = x.words[t][PANEL_WORDS / N * block + word];
            sum[t] = dot::<S, F>(s, sum[t], q, s.splat(x));
        }
    }
    for t in 0..T {
        if halves {
            sum[t] = s.dot_pairs(start(t), sum[t], s.splat(0x0001_0001));
        }
        let dx = s.splat_f32(x.scales[t][block]);
        total[t] = s.fma(s.mul(panel.d[block], dx), s.to_f32(sum[t]), total[t]);
        if !F::SYMMETRIC {
            let m = (x.sums[t][block] as i32 * F::OFFSET) as f32;
            total[t] = s.fnma(s.mul(panel.e[block % 8], dx), s.splat_f32(m), total[t]);
        }
    }
}

/// Adds the products of some words of a block of several sub-blocks, which are `q`, to `total`:
/// whole sub-blocks with their scales. `place` tells which word of the block is the given one.
#[inline(always)]
pub(super) fn long_words<S: Simd, F: Form, const T: usize>(
    s: S,
    panel: &Panel<S>,
    (place, q): (impl Fn(usize) -> usize, &[S::U]),
    words: &[&[u32; PANEL_WORDS]; T],
    total: &mut [S::U; T],
) {
    // Four products of four columns each fit in an i16 where `q` is a nibble; then the one
    // instruction that multiplies pairs of i16 (the other half is 0, or half of the sum) is
    // cheaper than a full multiplication, even twice.
    let run = if F::Q_MAX == NIBBLE { 4 } else { F::SUB_LEN / 4 };
    for (index, q) in q.chunks_exact(run).enumerate() {
        let first = place(index * run);
        let mut sum = [s.splat(0); T];
        for (word, &q) in q.iter().enumerate() {
            for t in 0..T {
                sum[t] = dot::<S, F>(s, sum[t], q, s.splat(words[t][first + word]));
            }
        }
        let mut sc = panel.sc[first / (F::SUB_LEN / 4)];
        if F::Q_MAX == NIBBLE && S::NIBBLE_HALVES {
            sc = s.or(sc, s.shl::<16>(sc));
        }
        for t in 0..T {
            total[t] = if F::Q_MAX == NIBBLE {
                s.dot_pairs(total[t], sum[t], sc)
            } else {
                s.mul_add(total[t], sum[t], sc)
            };
        }
    }
}

/// Ends a block of several sub-blocks: adds the `total` of its products and its offsets to `acc`.
#[inline(always)]
pub(super) fn long_end<S: Simd, F: Form, const T: usize>(
    s: S,
    panel: &Panel<S>,
    (block, inputs): (usize, &[QuantisedRow<'_>; T]),
    total: [S::U; T],
    acc: &mut [S::F; T],
) {
    let num_subs = PANEL_COLS / F::SUB_LEN;
    let bias = if F::Q_MAX == BYTE { S::FULL_BIAS } else { 0 };
    let first_sum = if F::SUB_LEN == 32 { 0 } else { LONG_SUM_WORDS - 8 };
    for t in 0..T {
        let sums: &[u32; LONG_SUM_WORDS] = window(inputs[t].sums, block * LONG_SUM_WORDS);
        let dx = s.splat_f32(inputs[t].scales[block]);
        let mut m = s.splat(0);
        for pair in 0..num_subs / 2 {
            m = s.dot_pairs(m, panel.m[pair], s.splat(sums[first_sum + pair]));
        }
        if F::SYMMETRIC {
            // Here `panel.m` is `sc`; part of `offset` may have been subtracted from `q` already.
            let offset = s.splat((bias - F::OFFSET) as u32);
            let difference = s.mul_add(total[t], m, offset);
            acc[t] = s.fma(s.mul(panel.d[0], dx), s.to_f32(difference), acc[t]);
        } else {
            acc[t] = s.fma(s.mul(panel.d[0], dx), s.to_f32(total[t]), acc[t]);
            acc[t] = s.fnma(s.mul(panel.e[0], dx), s.to_f32(m), acc[t]);
        }
    }
}

/// The words of the inputs that the panel which begins with block `block` is multiplied with.
#[inline(always)]
pub(super) fn words<'a, F: Form, const T: usize>(
    inputs: &[QuantisedRow<'a>; T],
    block: usize,
) -> [&'a [u32; PANEL_WORDS]; T] {
    std::array::from_fn(|t| window(inputs[t].words, block * F::INPUT_LEN / 4))
}

/// The dot product of four columns that the format's range of `q` asks for.
#[inline(always)]
fn dot<S: Simd, F: Form>(s: S, acc: S::U, q: S::U, x: S::U) -> S::U {
    if F::Q_MAX == BYTE {
        s.dot_full(acc, q, x)
    } else if F::Q_MAX == NIBBLE {
        s.dot_nibbles(acc, q, x)
    } else {
        s.dot(acc, q, x)
    }
}
