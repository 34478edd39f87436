//! One task of attention, by tiles; [`crate::attention::bfloats`] has the arithmetic.
//!
//! ```text
//! for each block of 128 keys:                    keys and values are laid out as tiles, once
//!     for each pair of tiles of queries:
//!         scores of this pair                    by tiles; between their instructions,
//!         weights of the pair before             by vectors
//!         weighted sums of the pair before that  by tiles, likewise
//! ```

mod layout;
mod weigh;

use std::ops::Range;

use self::weigh::Weigh;
use super::Tiles;
use crate::attention::bfloats::{
    Bfloats, DEPTH, KEYS, PAIR, ROWS, Scores, Sums, TileTask, Weights, pad,
};

/// Computes a task.
///
/// # Safety
/// The machine has AVX-512 and tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
pub(in crate::arch) unsafe fn attend(task: TileTask<'_>) {
    let key_tiles = task.args.keys.layout.dim.div_ceil(DEPTH);
    let value_tiles = pad(task.args.value_dim()) / ROWS;
    // SAFETY: the caller promises tiles.
    let tiles = unsafe { Tiles::new() };
    let mut attend = Attend { tiles, task, key_tiles, value_tiles };
    attend.begin();
    let states = &attend.task.scratch.states[..attend.task.rows.len()];
    let (first, last) = (&states[0].window, &states[states.len() - 1].window);
    for block in first.start / KEYS..last.end.div_ceil(KEYS) {
        attend.block(block * KEYS);
    }
    attend.finish();
}

struct Attend<'a> {
    tiles: Tiles,
    task: TileTask<'a>,
    /// Tiles that a key's dimensions make.
    key_tiles: usize,
    /// Tiles that a value's dimensions make; an even number.
    value_tiles: usize,
}

impl Attend<'_> {
    /// Adds what the queries see of the block of keys at position `start`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    fn block(&mut self, start: usize) {
        let states = &self.task.scratch.states[..self.task.rows.len()];
        let first = states.partition_point(|state| state.window.end <= start);
        let end = states.partition_point(|state| state.window.start < start + KEYS);
        if first >= end {
            return;
        }
        let broken = self.load(start, self.chunks(first..end, start));
        let pairs = first / PAIR..end.div_ceil(PAIR);
        for pair in pairs.start..pairs.end + 2 {
            self.step(start, pair, &pairs, broken);
        }
    }

    /// Which 32s of the block's keys are seen by some of these queries.
    fn chunks(&self, rows: Range<usize>, start: usize) -> Range<usize> {
        let states = &self.task.scratch.states[rows];
        let first = states[0].window.start.max(start) - start;
        let end = states[states.len() - 1].window.end.min(start + KEYS).max(start) - start;
        first / DEPTH..end.div_ceil(DEPTH)
    }

    /// Scores of `pair`, weights of the one before, sums of the one before that.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    fn step(&mut self, start: usize, pair: usize, pairs: &Range<usize>, broken: bool) {
        let rows = self.task.rows.len();
        let seen = |pair: usize| {
            if !pairs.contains(&pair) {
                return 0..0;
            }
            self.chunks(pair * PAIR..rows.min((pair + 1) * PAIR), start)
        };
        let (middle, last) = (pair.wrapping_sub(1), pair.wrapping_sub(2));
        let (scored, added) = (seen(pair), seen(last));
        let (key_tiles, value_tiles) = (self.key_tiles, self.value_tiles);
        let scratch = &mut *self.task.scratch;
        let (to_fill, filled) = turns(&mut scratch.scores, pair);
        let (weights, to_weigh) = turns(&mut scratch.weights, pair);
        // Results of the pair at `last`, and of the one at `middle`.
        let per_pair = 2 * value_tiles;
        let weighs = pairs.contains(&middle);
        let between = if weighs { middle * per_pair } else { scratch.o.len() };
        let (before, after) = scratch.o.split_at_mut(between);
        let first_row = if weighs { middle * PAIR } else { 0 };
        let end_row = if weighs { rows.min(first_row + PAIR) } else { 0 };
        let steps = scored.len() * key_tiles + added.len() * value_tiles / 2;
        let mut weigh = Weigh {
            scores: filled,
            weights: to_weigh,
            o: after,
            value_tiles,
            states: &mut scratch.states[first_row..end_row],
            start,
            softcap: self.task.args.softcap,
            broken: broken.then_some(&scratch.broken),
            done: 0,
            steps,
            step: 0,
        };
        if !scored.is_empty() {
            let q = &scratch.q[pair * 2 * key_tiles..][..2 * key_tiles];
            score(&self.tiles, q, &scratch.keys, scored, to_fill, || weigh.advance());
        }
        if !added.is_empty() {
            let o = &mut before[last * per_pair..][..per_pair];
            add_values(&self.tiles, weights, &scratch.values, added, o, || weigh.advance());
        }
        weigh.finish();
    }
}

/// Two buffers, first the one that is `pair`'s.
fn turns<T>(buffers: &mut [T], pair: usize) -> (&mut T, &mut T) {
    let [even, odd] = buffers else { unreachable!("there are two") };
    if pair.is_multiple_of(2) { (even, odd) } else { (odd, even) }
}

/// Scores of two tiles of queries `q`, `[2, key tiles]`, with the chunks of 32 keys. Calls
/// `between` after each four products.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
#[inline]
fn score(
    tiles: &Tiles,
    q: &[Bfloats],
    keys: &[Bfloats],
    chunks: Range<usize>,
    scores: &mut Scores,
    mut between: impl FnMut(),
) {
    let (q0, q1) = q.split_at(q.len() / 2);
    for chunk in chunks {
        let keys = &keys[2 * chunk * q0.len()..][..q.len()];
        let (keys0, keys1) = keys.split_at(q0.len());
        tiles.clear::<0>();
        tiles.clear::<1>();
        tiles.clear::<2>();
        tiles.clear::<3>();
        for depth in 0..q0.len() {
            let rows = [&q0[depth], &q1[depth]];
            multiply(tiles, rows, [&keys0[depth], &keys1[depth]]);
            between();
        }
        tiles.store::<0>(&mut scores[0][2 * chunk].0);
        tiles.store::<1>(&mut scores[1][2 * chunk].0);
        tiles.store::<2>(&mut scores[0][2 * chunk + 1].0);
        tiles.store::<3>(&mut scores[1][2 * chunk + 1].0);
    }
}

/// Adds the chunks' weighted values to the results of two tiles of queries, `[2, value tiles]`.
/// Calls `between` after each four products.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
#[inline]
fn add_values(
    tiles: &Tiles,
    weights: &Weights,
    values: &[Bfloats],
    chunks: Range<usize>,
    o: &mut [Sums],
    mut between: impl FnMut(),
) {
    let value_tiles = o.len() / 2;
    let (o0, o1) = o.split_at_mut(value_tiles);
    for d in (0..value_tiles).step_by(2) {
        tiles.load_sums::<0>(&o0[d].0);
        tiles.load_sums::<1>(&o1[d].0);
        tiles.load_sums::<2>(&o0[d + 1].0);
        tiles.load_sums::<3>(&o1[d + 1].0);
        for chunk in chunks.clone() {
            let values = &values[chunk * value_tiles + d..][..2];
            multiply(tiles, [&weights[0][chunk], &weights[1][chunk]], [&values[0], &values[1]]);
            between();
        }
        tiles.store::<0>(&mut o0[d].0);
        tiles.store::<1>(&mut o1[d].0);
        tiles.store::<2>(&mut o0[d + 1].0);
        tiles.store::<3>(&mut o1[d + 1].0);
    }
}

/// Adds the four products of two tiles of rows and two of columns to tiles 0 to 3.
#[inline(always)]
fn multiply(tiles: &Tiles, rows: [&Bfloats; 2], columns: [&Bfloats; 2]) {
    tiles.load_bfloats::<4>(&rows[0].0);
    tiles.load_bfloats::<6>(&columns[0].0);
    tiles.multiply::<0, 4, 6>();
    tiles.load_bfloats::<5>(&rows[1].0);
    tiles.multiply::<1, 5, 6>();
    tiles.load_bfloats::<7>(&columns[1].0);
    tiles.multiply::<2, 4, 7>();
    tiles.multiply::<3, 5, 7>();
}
