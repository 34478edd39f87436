//! Products of few inputs: codes are multiplied as they are unpacked, and never stored.
//!
//! A token should cost no more than reading the weights. Where the codes of a panel go to the
//! stack and come back, as for many inputs, unpacking and multiplying take a core about as long as
//! reading does; a few codes at a time stay in registers and take two thirds of that. Sums are the
//! same numbers in the same order, so the bits are, too.

use std::ops::Range;

use super::Unit;
use super::blocks::{ShortInputs, long_end, long_words, short_block, unpack_scales, words};
use crate::activations::QuantisedRow;
use crate::formats::rows::{BlockRows, LookAhead};
use crate::formats::{BlockFormat, Form, PANEL_BLOCKS, PANEL_COLS, PANEL_WORDS, Panel, STEP_MAX};
use crate::simd::Simd;

/// All columns of `rows` for the `inputs` (one or more limbs each) of output rows `tokens`, if this
/// is how few inputs of the format are best multiplied; returns whether. Of `panel` only the scales
/// are used.
#[inline(always)]
pub(super) fn panel_rows<S: Simd, F: BlockFormat>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    rows: Range<usize>,
    inputs: &[QuantisedRow<'_>],
    tokens: Range<usize>,
) -> bool {
    // Plain Rust, the others' reference, stays with panels.
    if F::STEP == 0 || S::TILE == 1 || rows.len() < S::LANES {
        return false;
    }
    match *inputs {
        [a] => {
            let sums = sums::<S, F, 1>(s, unit, panel, rows.start, &[a]);
            unit.store_limbs(s, &sums, tokens, rows);
        }
        [a, b] => {
            let sums = sums::<S, F, 2>(s, unit, panel, rows.start, &[a, b]);
            unit.store_limbs(s, &sums, tokens, rows);
        }
        [a, b, c, d] => {
            let sums = sums::<S, F, 4>(s, unit, panel, rows.start, &[a, b, c, d]);
            unit.store_limbs(s, &sums, tokens, rows);
        }
        _ => return false,
    }
    true
}

/// The sums of `LANES` rows from row `first` on, for all `inputs`.
#[inline(always)]
fn sums<S: Simd, F: BlockFormat, const T: usize>(
    s: S,
    unit: &Unit<'_>,
    panel: &mut Panel<S>,
    first: usize,
    inputs: &[QuantisedRow<'_>; T],
) -> [S::F; T] {
    let num_blocks = unit.weight.cols() / F::BLOCK_LEN;
    let mut acc = [s.splat_f32(0.0); T];
    let mut block = 0;
    while block < num_blocks {
        let end = num_blocks.min(block + PANEL_COLS / F::BLOCK_LEN);
        unpack_scales::<S, F>(s, unit, panel, (first..first + S::LANES, block..end));
        let few = Few { s, unit, panel, first, blocks: block..end };
        match <F::Form as Form>::INPUT_LEN {
            16 => few.short::<F, T, { 2 * PANEL_BLOCKS }>(inputs, &mut acc),
            32 => few.short::<F, T, PANEL_BLOCKS>(inputs, &mut acc),
            _ => few.long::<F, T>(inputs, &mut acc),
        }
        block = end;
    }
    acc
}

/// A panel of which only the scales are unpacked: `blocks` of the `LANES` rows from `first` on.
struct Few<'a, S: Simd> {
    s: S,
    unit: &'a Unit<'a>,
    panel: &'a Panel<S>,
    first: usize,
    blocks: Range<usize>,
}

impl<S: Simd> Few<'_, S> {
    /// A block of several sub-blocks, which is the whole panel.
    #[inline(always)]
    fn long<F: BlockFormat, const T: usize>(
        &self,
        inputs: &[QuantisedRow<'_>; T],
        acc: &mut [S::F; T],
    ) {
        let (s, first) = (self.s, self.blocks.start);
        let ahead = self.look_ahead::<F>();
        let rows = self.block::<F>(0, &ahead);
        let (mut total, words) = ([s.splat(0); T], words::<F::Form, T>(inputs, first));
        for step in 0..PANEL_WORDS / F::STEP {
            let mut q = [s.splat(0); STEP_MAX];
            F::unpack_step(s, &rows, step, &mut q[..F::STEP]);
            let q = (|word| F::place(step, word), &q[..F::STEP]);
            long_words::<S, F::Form, T>(s, self.panel, q, &words, &mut total);
        }
        long_end::<S, F::Form, T>(s, self.panel, (first, inputs), total, acc);
    }

    /// Short blocks, each unpacked in one step; the inputs have `N` to a panel.
    #[inline(always)]
    fn short<F: BlockFormat, const T: usize, const N: usize>(
        &self,
        inputs: &[QuantisedRow<'_>; T],
        acc: &mut [S::F; T],
    ) {
        let s = self.s;
        let ahead = self.look_ahead::<F>();
        // Blocks of the file may hold several blocks of inputs.
        let parts = F::BLOCK_LEN / <F::Form as Form>::INPUT_LEN;
        let x = ShortInputs::<T, N>::new::<S, F::Form>(inputs, self.blocks.start * parts);
        let mut total = *acc;
        for slot in 0..self.blocks.len() {
            let mut q = [s.splat(0); STEP_MAX];
            F::unpack_step(s, &self.block::<F>(slot, &ahead), 0, &mut q[..F::STEP]);
            for (part, q) in q[..F::STEP].chunks_exact(F::STEP / parts).enumerate() {
                let block = (slot * parts + part, q);
                short_block::<S, F::Form, T, N>(s, self.panel, block, &x, &mut total);
            }
        }
        *acc = total;
    }

    /// What to request from memory meanwhile.
    #[inline(always)]
    fn look_ahead<F: BlockFormat>(&self) -> LookAhead {
        let part = self.blocks.start * F::BLOCK_BYTES..self.blocks.end * F::BLOCK_BYTES;
        LookAhead::behind(&self.unit.weight, &(self.first..self.first + S::LANES), part)
    }

    /// The panel's block `slot`, as it lies in the file.
    #[inline(always)]
    fn block<'a, F: BlockFormat>(&'a self, slot: usize, ahead: &'a LookAhead) -> BlockRows<'a, S> {
        let (bytes, stride) = (self.unit.weight.bytes(), self.unit.weight.row_bytes());
        let offset = self.first * stride + (self.blocks.start + slot) * F::BLOCK_BYTES;
        BlockRows::new(self.s, bytes, offset, (stride, F::BLOCK_BYTES), ahead)
    }
}
