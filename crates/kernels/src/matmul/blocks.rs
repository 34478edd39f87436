//! Products with quantised weights: unpack a panel of rows once, multiply it by many tokens.
//!
//! A panel is `LANES` rows by 256 columns (one block of 256, or eight of 32), unpacked from the
//! file's own blocks into words whose lane `i` belongs to row `i`. Tokens are then taken a few at
//! a time; each word of four columns is multiplied by the token's same four inputs, broadcast to
//! all lanes. No lane ever meets another, so the sums of 16 rows cost no more than those of one,
//! and one token or sixty-four run through the same code.

use std::ops::Range;

use super::Unit;
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
/// How many panels ahead of use weights are requested from memory.
const LOOK_AHEAD_PANELS: usize = 4;

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
            panel_rows::<S, F>(s, unit, &mut panel, rows.clone(), inputs, tokens.clone());
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
        let ahead = if rows.len() == S::LANES {
            look_ahead::<S, F>(unit, rows.start, block)
        } else {
            LookAhead::nothing()
        };
        unpack::<S, F>(s, unit, panel, (rows.clone(), block..end), &ahead);
        tiles::<S, F::Form>(s, panel, block * parts..end * parts, inputs, &mut acc);
        block = end;
    }
    for (limbs, token) in acc.chunks_exact(inputs.len() / tokens.len()).zip(tokens) {
        let sum = match limbs {
            // The coarse limb first, then what it left over: one order, so one result.
            [coarse, fine] => s.fma(*fine, s.splat_f32(1.0), *coarse),
            _ => limbs[0],
        };
        unit.store(s, sum, token, rows.clone());
    }
}

impl Unit<'_> {
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
    unpack_by::<S, F>(s, unit, panel, place, ahead, |rows, panel, slot| {
        F::unpack(s, rows, panel, slot);
    });
}

/// [`unpack`] where only the scales are wanted.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only tiles read rows"))]
#[inline(always)]
pub(crate) fn unpack_scales<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    place: (Range<usize>, Range<usize>),
) {
    let nothing = LookAhead::nothing();
    unpack_by::<S, F>(s, unit, panel, place, &nothing, |rows, panel, slot| {
        F::unpack_scales(s, rows, panel, slot);
    });
}

/// Calls `unpack` for each of `blocks`, and brings scales that lie apart.
#[inline(always)]
fn unpack_by<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    (rows, blocks): (Range<usize>, Range<usize>),
    ahead: &LookAhead,
    unpack: impl Fn(&BlockRows<'_, S>, &mut Panel<S>, usize),
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
        unpack(&rows, panel, slot);
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

/// What to request from memory while the panel of block `block` and the rows from `row` on is
/// unpacked: a few panels further on. Past the end of the rows come the next panel's rows; past the
/// matrix, nothing.
#[inline(always)]
fn look_ahead<S: Simd, F: BlockFormat>(unit: &Unit<'_>, row: usize, block: usize) -> LookAhead {
    let (bytes, stride) = (unit.weight.bytes(), unit.weight.row_bytes());
    let offset = block * F::BLOCK_BYTES;
    let panel_bytes = PANEL_COLS / F::BLOCK_LEN * F::BLOCK_BYTES;
    let mut distance = LOOK_AHEAD_PANELS * panel_bytes;
    if offset + distance >= stride {
        distance += (S::LANES - 1) * stride;
    }
    // A panel is unpacked by about `panel_bytes / 16` reads; they share the rows out.
    let rows_per_read = (S::LANES * 16).div_ceil(panel_bytes);
    let first = row * stride + offset + distance;
    LookAhead::new(bytes, first, stride, (rows_per_read, panel_bytes.div_ceil(64)))
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
    let words: [&[u32; PANEL_WORDS]; T] =
        std::array::from_fn(|t| window(inputs[t].words, blocks.start * F::INPUT_LEN / 4));
    match F::INPUT_LEN {
        16 => short_blocks::<S, F, T, { 2 * PANEL_BLOCKS }>(s, panel, blocks, inputs, &words, acc),
        32 => short_blocks::<S, F, T, PANEL_BLOCKS>(s, panel, blocks, inputs, &words, acc),
        _ => long_block::<S, F, T>(s, panel, blocks.start, inputs, &words, acc),
    }
    T
}

/// A panel's worth of `values` from `first` on.
#[inline(always)]
fn window<T, const N: usize>(values: &[T], first: usize) -> &[T; N] {
    values[first..].first_chunk().expect("rows are padded by a whole panel")
}

/// Blocks of one sub-block, `N` to a panel. Where `M` is the same for all rows, symmetric formats
/// start from `-M`.
#[inline(always)]
fn short_blocks<S: Simd, F: Form, const T: usize, const N: usize>(
    s: S,
    panel: &Panel<S>,
    blocks: Range<usize>,
    inputs: &[QuantisedRow<'_>; T],
    words: &[&[u32; PANEL_WORDS]; T],
    acc: &mut [S::F; T],
) {
    let bias = if F::Q_MAX == BYTE { S::FULL_BIAS } else { 0 };
    let offset = if F::SYMMETRIC { bias - F::OFFSET } else { bias };
    let scales: [&[f32; N]; T] = std::array::from_fn(|t| window(inputs[t].scales, blocks.start));
    let sums: [&[u32; N]; T] = std::array::from_fn(|t| window(inputs[t].sums, blocks.start));
    let starts: [[u32; N]; T] =
        std::array::from_fn(|t| sums[t].map(|sum| sum.wrapping_mul(offset as u32)));
    let mut total = *acc;
    for block in 0..blocks.len().min(N) {
        let start = |t: usize| {
            if F::OFFSET == PER_ROW {
                // The upper i16 of `m` is 0.
                s.dot_pairs(s.splat(0), panel.m[block % 8], s.splat(sums[t][block]))
            } else {
                s.splat(if offset == 0 { 0 } else { starts[t][block] })
            }
        };
        let halves = F::Q_MAX == NIBBLE && S::NIBBLE_HALVES;
        let mut sum: [S::U; T] =
            std::array::from_fn(|t| if halves { s.splat(0) } else { start(t) });
        let per_block = PANEL_WORDS / N;
        for word in per_block * block..per_block * (block + 1) {
            let q = panel.q[word];
            for t in 0..T {
                sum[t] = dot::<S, F>(s, sum[t], q, s.splat(words[t][word]));
            }
        }
        for t in 0..T {
            if halves {
                sum[t] = s.dot_pairs(start(t), sum[t], s.splat(0x0001_0001));
            }
            let dx = s.splat_f32(scales[t][block]);
            total[t] = s.fma(s.mul(panel.d[block], dx), s.to_f32(sum[t]), total[t]);
            if !F::SYMMETRIC {
                let m = (sums[t][block] as i32 * F::OFFSET) as f32;
                total[t] = s.fnma(s.mul(panel.e[block % 8], dx), s.splat_f32(m), total[t]);
            }
        }
    }
    *acc = total;
}

/// One block of several sub-blocks with integer scales of their own.
#[inline(always)]
fn long_block<S: Simd, F: Form, const T: usize>(
    s: S,
    panel: &Panel<S>,
    block: usize,
    inputs: &[QuantisedRow<'_>; T],
    words: &[&[u32; PANEL_WORDS]; T],
    acc: &mut [S::F; T],
) {
    let num_subs = PANEL_COLS / F::SUB_LEN;
    let bias = if F::Q_MAX == BYTE { S::FULL_BIAS } else { 0 };
    let sums: [&[u32; LONG_SUM_WORDS]; T] =
        std::array::from_fn(|t| window(inputs[t].sums, block * LONG_SUM_WORDS));
    let first_sum = if F::SUB_LEN == 32 { 0 } else { LONG_SUM_WORDS - 8 };
    let mut total = [s.splat(0); T];
    // Four products of four columns each fit in an i16 where `q` is a nibble; then the one
    // instruction that multiplies pairs of i16 (the other half is 0, or half of the sum) is
    // cheaper than a full multiplication, even twice.
    let run = if F::Q_MAX == NIBBLE { 4 } else { F::SUB_LEN / 4 };
    for first in (0..PANEL_WORDS).step_by(run) {
        let mut sum = [s.splat(0); T];
        for word in first..first + run {
            let q = panel.q[word];
            for t in 0..T {
                sum[t] = dot::<S, F>(s, sum[t], q, s.splat(words[t][word]));
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
    for t in 0..T {
        let dx = s.splat_f32(inputs[t].scales[block]);
        let mut m = s.splat(0);
        for pair in 0..num_subs / 2 {
            m = s.dot_pairs(m, panel.m[pair], s.splat(sums[t][first_sum + pair]));
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
