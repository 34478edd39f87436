//! Queries, keys and values to tiles, and results back.

use std::arch::x86_64::*;
use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::Attend;
use super::weigh::{load, store_bfloats, store_line};
use crate::arch::amx::bfloats;
use crate::attention::bfloats::{Bfloats, DEPTH, KEYS, ROWS, pad};
use crate::attention::{BLOCK_TOKENS, Values, widen};
use crate::isa::Isa;
use crate::lanes::transpose_16;

impl Attend<'_> {
    /// Lays the queries out and sets the running state to "nothing seen yet".
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    pub(super) fn begin(&mut self) {
        let args = self.task.args;
        // Scores are exponents of 2; a softcap wants twice its argument.
        let factor = args.scale * LOG2_E * args.softcap.map_or(1.0, |cap| 2.0 / cap);
        let factor = _mm512_set1_ps(factor);
        let rows = self.task.rows.len();
        for row in 0..rows {
            let (token, head) = self.task.token_and_head(row);
            let position = args.positions[token] as usize;
            let sink = args.sinks.map(|sinks| sinks[head]);
            let scratch = &mut *self.task.scratch;
            let state = &mut scratch.states[row];
            state.window = args.mask.first_visible(position)..position + 1;
            // A sink is a key of weight 2^0 relative to itself whose value is zero. Differences
            // from a finite maximum are numbers, also where nothing is seen.
            state.m = sink.map_or(f32::MIN, |sink| (sink * LOG2_E).clamp(f32::MIN, f32::MAX));
            state.l = [0.0; ROWS];
            state.l[0] = if sink.is_some() { 1.0 } else { 0.0 };
            let start = token * args.q_strides.token + head * args.q_strides.head;
            let q = &args.q[start..start + args.keys.layout.dim];
            let tiles = &mut scratch.q[row / ROWS * self.key_tiles..][..self.key_tiles];
            for (tile, q) in tiles.iter_mut().zip(q.chunks(DEPTH)) {
                let (low, high) = q.split_at(q.len().min(ROWS));
                let [low, high] = [low, high].map(|q| _mm512_mul_ps(load_part(q), factor));
                store_bfloats(&mut tile.0[row % ROWS], low, high);
            }
        }
        for sums in &mut self.task.scratch.o[..rows.div_ceil(ROWS) * self.value_tiles] {
            sums.0 = [[0.0; ROWS]; ROWS];
        }
    }

    /// Lays out the keys and values of some 32s of the block at position `start`. Returns whether
    /// there are values that are no finite numbers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    pub(super) fn load(&mut self, start: usize, chunks: Range<usize>) -> bool {
        self.task.scratch.broken = [0.0; KEYS];
        let mut any = 0;
        for chunk in chunks {
            self.load_keys(start, chunk);
            let broken = match self.task.args.values {
                Values::Cache(_) => self.load_values(start, chunk),
                Values::KeyPrefix(_) => self.turn_keys(start, chunk),
            };
            any |= broken;
            for key in (0..DEPTH).filter(|key| broken >> key & 1 == 1) {
                self.task.scratch.broken[chunk * DEPTH + key] = f32::NAN;
            }
        }
        any != 0
    }

    /// Position after the last one that the task sees.
    fn end(&self) -> usize {
        self.task.scratch.states[self.task.rows.len() - 1].window.end
    }

    /// The cache's blocks that hold a chunk, as far as they are seen.
    fn blocks(&self, start: usize, chunk: usize) -> [Option<usize>; 2] {
        let first = start / BLOCK_TOKENS + chunk * (DEPTH / BLOCK_TOKENS);
        [first, first + 1].map(|block| {
            let seen = block * BLOCK_TOKENS < self.end();
            let ids = &self.task.args.block_ids[self.task.span.blocks.clone()];
            seen.then(|| ids[block] as usize)
        })
    }

    /// 32 keys to tiles, and left widened as `[2, key dim padded, 16]` for who wants values of
    /// them.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    fn load_keys(&mut self, start: usize, chunk: usize) {
        let keys = self.task.args.keys;
        let (dim, padded) = (keys.layout.dim, pad(keys.layout.dim));
        let blocks = self.blocks(start, chunk);
        let scratch = &mut *self.task.scratch;
        let halves = scratch.numbers.chunks_exact_mut(BLOCK_TOKENS * padded);
        for (half, (block, numbers)) in blocks.into_iter().zip(halves).enumerate() {
            // What is not seen needs to be no keys, only numbers.
            if let Some(block) = block {
                let tile = keys.tile(block, self.task.kv_head);
                widen(Isa::Amx, &keys.layout, tile, numbers);
            } else {
                numbers.fill(0.0);
            }
            numbers[BLOCK_TOKENS * dim..].fill(0.0);
            let tiles = &mut scratch.keys[(2 * chunk + half) * self.key_tiles..];
            let lines = tiles[..self.key_tiles].iter_mut().flat_map(|tile| &mut tile.0);
            let dims = numbers.as_chunks().0.as_chunks::<2>().0;
            for (line, [even, odd]) in lines.zip(dims) {
                store_line(line, by_turns(bfloats(load(even), load(odd))));
            }
        }
    }

    /// Values of 32 keys that were just widened. Returns a bit for each that is broken.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    fn turn_keys(&mut self, start: usize, chunk: usize) -> u32 {
        let (seen, padded) = (self.seen(start, chunk), pad(self.task.args.keys.layout.dim));
        let dim = self.task.args.value_dim();
        let scratch = &mut *self.task.scratch;
        let (low, high) = scratch.numbers.split_at(BLOCK_TOKENS * padded);
        let (low, high) = (low.as_chunks::<ROWS>().0, high.as_chunks::<ROWS>().0);
        let tiles = &mut scratch.values[chunk * self.value_tiles..][..self.value_tiles];
        let mut broken = 0;
        for (index, tile) in tiles.iter_mut().enumerate() {
            let mut lines = [_mm512_setzero_ps(); ROWS];
            for (d, line) in (index * ROWS..dim).zip(&mut lines) {
                let (finite, not) = finite(bfloats(load(&low[d]), load(&high[d])), seen);
                broken |= not;
                *line = _mm512_castsi512_ps(finite);
            }
            // SAFETY: the machine has AVX-512.
            let lines = unsafe { transpose_16(lines) };
            for (to, line) in tile.0.iter_mut().zip(lines) {
                store_line(to, _mm512_castps_si512(line));
            }
        }
        broken
    }

    /// Values of 32 keys from their own cache. Returns a bit for each that is broken.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    fn load_values(&mut self, start: usize, chunk: usize) -> u32 {
        let Values::Cache(values) = self.task.args.values else { return 0 };
        let (seen, dim) = (self.seen(start, chunk), values.layout.dim);
        let blocks = self.blocks(start, chunk);
        let scratch = &mut *self.task.scratch;
        let tiles = &mut scratch.values[chunk * self.value_tiles..][..self.value_tiles];
        let mut broken = 0;
        for (half, block) in blocks.into_iter().enumerate() {
            let numbers = &mut scratch.numbers[..BLOCK_TOKENS * dim];
            if let Some(block) = block {
                let tile = values.tile(block, self.task.kv_head);
                widen(Isa::Amx, &values.layout, tile, numbers);
            }
            for (pair, two) in numbers.chunks_exact(2 * dim).enumerate() {
                let first = half * BLOCK_TOKENS + 2 * pair;
                // All dimensions of one key, then all of the other.
                let seen = [seen >> first & 1, seen >> first >> 1 & 1].map(|bit| 0xffff * bit);
                let (even, odd) = two.split_at(dim);
                let row = half * ROWS / 2 + pair;
                let [a, b] = turn_values(even, odd, tiles, row, seen[0] | seen[1] << 16);
                broken |= u32::from(a) << first | u32::from(b) << (first + 1);
            }
        }
        broken
    }

    /// A bit for each key of the chunk that the task sees.
    fn seen(&self, start: usize, chunk: usize) -> u32 {
        let left = self.end().saturating_sub(start + chunk * DEPTH);
        if left >= DEPTH { u32::MAX } else { (1 << left) - 1 }
    }

    /// Divides by the sums and writes the results.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
    pub(super) fn finish(&mut self) {
        let args = self.task.args;
        let dim = args.value_dim();
        for row in 0..self.task.rows.len() {
            let (token, head) = self.task.token_and_head(row);
            let start = token * args.out_strides.token + head * args.out_strides.head;
            // SAFETY: this (token, head) belongs to this task alone.
            let out = unsafe { self.task.out.piece(start..start + dim) };
            let scratch = &*self.task.scratch;
            let total = _mm512_set1_ps(_mm512_reduce_add_ps(load(&scratch.states[row].l)));
            let tiles = &scratch.o[row / ROWS * self.value_tiles..];
            for (out, sums) in out.chunks_mut(ROWS).zip(tiles) {
                let o = _mm512_div_ps(load(&sums.0[row % ROWS]), total);
                let lanes = lanes(out.len());
                // SAFETY: only as many numbers as there are in `out` are written.
                unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, o) };
            }
        }
    }
}

/// Values `even` and `odd` of two neighbouring keys to row `row` of `tiles`, 16 dimensions to a
/// tile, where `seen` has a bit. Returns whether either is broken.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c")]
#[inline]
fn turn_values(
    even: &[f32],
    odd: &[f32],
    tiles: &mut [Bfloats],
    row: usize,
    seen: u32,
) -> [bool; 2] {
    let mut broken = 0;
    let mut chunks = even.chunks(ROWS).zip(odd.chunks(ROWS));
    for tile in tiles {
        let (even, odd) = chunks.next().unwrap_or_default();
        let (finite, not) = finite(bfloats(load_part(even), load_part(odd)), seen);
        broken |= not;
        store_line(&mut tile.0[row], by_turns(finite));
    }
    [broken & 0xffff != 0, broken >> 16 != 0]
}

/// Numbers that are `seen` and finite, zeros in the place of others; and which are seen but not
/// finite.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn finite(numbers: __m512i, seen: u32) -> (__m512i, u32) {
    let exponent = _mm512_set1_epi16(0x7f80);
    let bits = _mm512_and_si512(numbers, exponent);
    let finite = _mm512_mask_cmpneq_epi16_mask(seen, bits, exponent);
    (_mm512_maskz_mov_epi16(finite, numbers), seen & !finite)
}

/// Sixteen bfloats that are followed by sixteen others, now by turns.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn by_turns(halves: __m512i) -> __m512i {
    let turns = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
        19, 3, 18, 2, 17, 1, 16, 0,
    );
    _mm512_permutexvar_epi16(turns, halves)
}

/// A mask of the first `n` lanes, at most all.
fn lanes(n: usize) -> __mmask16 {
    if n >= ROWS { !0 } else { (1 << n) - 1 }
}

/// Up to 16 numbers, and zeros behind them.
#[target_feature(enable = "avx512f")]
#[inline]
fn load_part(numbers: &[f32]) -> __m512 {
    // SAFETY: only as many numbers are read as there are.
    unsafe { _mm512_maskz_loadu_ps(lanes(numbers.len()), numbers.as_ptr()) }
}
