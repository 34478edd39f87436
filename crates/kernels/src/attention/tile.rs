//! One tile: up to some dozens of queries of one sequence that read the same key head.

use std::ops::Range;

use super::cache::load_tile;
use super::{AttentionArgs, BLOCK_TOKENS, Span, Values};
use crate::disjoint::Disjoint;
use crate::lanes::{self, Kernel, LANES, Lanes, Narrow};

/// One worker's buffers. R = queries of a full tile; dims padded to 16.
#[derive(Debug)]
pub(super) struct WorkerScratch {
    /// The tile's queries, `[R, key_dim]`.
    q: Vec<f32>,
    /// One block of keys, `[key_dim padded, 16]`.
    keys: Vec<f32>,
    /// One block of values, `[16, value stride]` and 16 more that loads may touch.
    values: Vec<f32>,
    /// Scores, then weights, `[R][16]`.
    p: Vec<[f32; LANES]>,
    /// Running results, `[R, value_dim padded]`.
    o: Vec<f32>,
    /// Running sums, `[R][16]`.
    l: Vec<[f32; LANES]>,
    /// Running maxima, `[R]`.
    m: Vec<f32>,
    /// Maxima including the current block, `[R]`.
    m_next: Vec<f32>,
    /// e^(m - m_next), `[R]`.
    c: Vec<f32>,
    /// Visible positions of each query, `[R]`; both ends ascend.
    window: Vec<Range<usize>>,
    /// Visible keys of the current block, `[R]`.
    visible: Vec<Range<usize>>,
}

impl WorkerScratch {
    pub(super) fn new(rows: usize, key_dim: usize, value_dim: usize) -> Self {
        let (key_pad, value_pad) = (pad(key_dim), pad(value_dim));
        Self {
            q: vec![0.0; rows * key_dim],
            keys: vec![0.0; key_pad * BLOCK_TOKENS],
            values: vec![0.0; BLOCK_TOKENS * value_pad + LANES],
            p: vec![[0.0; LANES]; rows],
            o: vec![0.0; rows * value_pad],
            l: vec![[0.0; LANES]; rows],
            m: vec![0.0; rows],
            m_next: vec![0.0; rows],
            c: vec![0.0; rows],
            window: vec![0..0; rows],
            visible: vec![0..0; rows],
        }
    }

    /// Bytes of these buffers, but for a few per query.
    pub(super) fn num_bytes(rows: usize, key_dim: usize, value_dim: usize) -> usize {
        (rows + BLOCK_TOKENS) * (pad(key_dim) + pad(value_dim) + 2 * LANES) * size_of::<f32>()
    }
}

/// Rounds up to whole vectors.
fn pad(dim: usize) -> usize {
    dim.next_multiple_of(LANES)
}

/// The work of one task.
pub(super) struct Tile<'a> {
    pub(super) args: &'a AttentionArgs<'a>,
    pub(super) span: &'a Span,
    pub(super) kv_head: usize,
    /// Queries of the span and key head: row r is token r / group, head r % group.
    pub(super) rows: Range<usize>,
    pub(super) scratch: &'a mut WorkerScratch,
    pub(super) out: &'a Disjoint<'a, f32>,
}

impl Kernel for Tile<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(mut self) {
        self.begin();
        let first = self.scratch.window[0].start / BLOCK_TOKENS;
        let end = self.scratch.window[self.rows.len() - 1].end.div_ceil(BLOCK_TOKENS);
        for block in first..end {
            let active = self.find_visible(block);
            if active.is_empty() {
                continue;
            }
            let value_stride = self.load_block::<L>(block);
            self.score_rows::<L>(active.clone());
            self.weigh_rows::<L>(active.clone());
            self.add_values::<L>(active, value_stride);
        }
        self.finish();
    }
}

impl Tile<'_> {
    /// Batch row and query head of a row of the tile.
    #[inline(always)]
    fn token_and_head(&self, row: usize) -> (usize, usize) {
        self.args.token_and_head(self.span, self.kv_head, self.rows.start + row)
    }

    /// Copies the queries and sets the running state to "nothing seen yet".
    #[inline(always)]
    fn begin(&mut self) {
        let args = self.args;
        let dim = args.keys.layout.dim;
        let rows = self.rows.len();
        for row in 0..rows {
            let (token, head) = self.token_and_head(row);
            let position = args.positions[token] as usize;
            self.scratch.window[row] = args.mask.first_visible(position)..position + 1;
            let start = token * args.q_strides.token + head * args.q_strides.head;
            self.scratch.q[row * dim..(row + 1) * dim].copy_from_slice(&args.q[start..start + dim]);
            // A sink is a key of weight e^0 relative to itself whose value is zero.
            let sink = args.sinks.map(|sinks| sinks[head]);
            self.scratch.m[row] = sink.unwrap_or(f32::NEG_INFINITY);
            self.scratch.l[row] = [0.0; LANES];
            self.scratch.l[row][0] = if sink.is_some() { 1.0 } else { 0.0 };
        }
        self.scratch.o[..rows * pad(args.value_dim())].fill(0.0);
    }

    /// Finds each row's visible keys of the block; returns the rows that have any, which are
    /// consecutive because windows ascend.
    #[inline(always)]
    fn find_visible(&mut self, block: usize) -> Range<usize> {
        let (start, end) = (block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS);
        let scratch = &mut *self.scratch;
        let mut active = 0..0;
        let windows = scratch.window[..self.rows.len()].iter();
        for (row, (window, visible)) in windows.zip(&mut scratch.visible).enumerate() {
            let from = window.start.clamp(start, end);
            let to = window.end.clamp(from, end);
            *visible = from - start..to - start;
            if from < to {
                active = if active.is_empty() { row..row + 1 } else { active.start..row + 1 };
            }
        }
        active
    }

    /// Widens the block's keys and values; returns the stride between values in scratch.
    #[inline(always)]
    fn load_block<L: Narrow>(&mut self, block: usize) -> usize {
        let id = self.args.block_ids[self.span.blocks.start + block] as usize;
        let keys = &self.args.keys;
        load_tile::<L>(&keys.layout, keys.tile(id, self.kv_head), &mut self.scratch.keys);
        match &self.args.values {
            Values::Cache(values) => {
                let tile = values.tile(id, self.kv_head);
                load_tile::<L>(&values.layout, tile, &mut self.scratch.values);
                values.layout.dim
            }
            Values::KeyPrefix(dim) => {
                let stride = pad(*dim);
                transpose::<L>(&self.scratch.keys, &mut self.scratch.values, stride);
                stride
            }
        }
    }

    /// Scores of the active rows into `p`, invisible keys at minus infinity; maxima into `m_next`.
    #[inline(always)]
    fn score_rows<L: Narrow>(&mut self, active: Range<usize>) {
        let mut row = active.start;
        while row < active.end {
            let left = active.end - row;
            row += match (left, L::REGISTERS) {
                (8.., 32..) => self.score::<L, 8>(row),
                (4.., 32..) => self.score::<L, 4>(row),
                (2.., _) => self.score::<L, 2>(row),
                _ => self.score::<L, 1>(row),
            };
        }
    }

    /// `N` rows at once, for as many independent chains of multiply-adds as hide their latency.
    #[inline(always)]
    fn score<L: Narrow, const N: usize>(&mut self, first: usize) -> usize {
        let dim = self.args.keys.layout.dim;
        let keys = self.scratch.keys.as_chunks::<LANES>().0;
        let scores: [L; N] =
            dot_products(&self.scratch.q[first * dim..(first + N) * dim], dim, keys);
        for (row, score) in (first..).zip(scores) {
            let mut score = score * L::splat(self.args.scale);
            if let Some(cap) = self.args.softcap {
                let cap = L::splat(cap);
                score = cap * lanes::tanh(score / cap);
            }
            let scratch = &mut *self.scratch;
            score.store(&mut scratch.p[row]);
            let visible = scratch.visible[row].clone();
            if visible.len() < BLOCK_TOKENS {
                scratch.p[row][..visible.start].fill(f32::NEG_INFINITY);
                scratch.p[row][visible.end..].fill(f32::NEG_INFINITY);
                score = L::load(&scratch.p[row]);
            }
            let largest = lanes::largest(score);
            let m = scratch.m[row];
            scratch.m_next[row] = if largest > m { largest } else { m };
        }
        N
    }

    /// Scores to weights, and the running sums.
    #[inline(always)]
    fn weigh_rows<L: Narrow>(&mut self, active: Range<usize>) {
        let scratch = &mut *self.scratch;
        for row in active {
            let m_next = scratch.m_next[row];
            let c =
                if scratch.m[row] == m_next { 1.0 } else { exp_one::<L>(scratch.m[row] - m_next) };
            let p = lanes::exp(L::load(&scratch.p[row]) - L::splat(m_next));
            p.store(&mut scratch.p[row]);
            L::load(&scratch.l[row]).mul_add(L::splat(c), p).store(&mut scratch.l[row]);
            scratch.c[row] = c;
            scratch.m[row] = m_next;
        }
    }

    /// Adds the block's weighted values, rows with the same visible keys together.
    #[inline(always)]
    fn add_values<L: Narrow>(&mut self, active: Range<usize>, value_stride: usize) {
        let mut row = active.start;
        while row < active.end {
            let visible = self.scratch.visible[row].clone();
            let same = |other: &&Range<usize>| **other == visible;
            let run = self.scratch.visible[row..active.end].iter().take_while(same).count();
            row += match run {
                4.. => self.add_values_to::<L, 4>(row, visible, value_stride),
                2.. => self.add_values_to::<L, 2>(row, visible, value_stride),
                _ => self.add_values_to::<L, 1>(row, visible, value_stride),
            };
        }
    }

    #[inline(always)]
    fn add_values_to<L: Narrow, const N: usize>(
        &mut self,
        row: usize,
        visible: Range<usize>,
        value_stride: usize,
    ) -> usize {
        let dim = pad(self.args.value_dim());
        let mut d = 0;
        while d < dim {
            d += match (dim - d, L::REGISTERS) {
                (64.., 32..) => self.accumulate::<L, N, 4>(row, d, &visible, value_stride),
                (32.., _) if N <= 2 => self.accumulate::<L, N, 2>(row, d, &visible, value_stride),
                _ => self.accumulate::<L, N, 1>(row, d, &visible, value_stride),
            };
        }
        N
    }

    /// `N` rows times `V` vectors of results stay in registers over the block's keys.
    #[inline(always)]
    fn accumulate<L: Narrow, const N: usize, const V: usize>(
        &mut self,
        row: usize,
        d: usize,
        visible: &Range<usize>,
        value_stride: usize,
    ) -> usize {
        let dim = pad(self.args.value_dim());
        let scratch = &mut *self.scratch;
        let mut acc = [[L::splat(0.0); V]; N];
        for n in 0..N {
            let o = scratch.o[(row + n) * dim + d..][..V * LANES].as_chunks().0;
            for v in 0..V {
                acc[n][v] = L::load(&o[v]) * L::splat(scratch.c[row + n]);
            }
        }
        let weights: &[[f32; LANES]; N] =
            scratch.p[row..row + N].try_into().expect("the slice has N rows");
        for j in visible.clone() {
            let value = scratch.values[j * value_stride + d..][..V * LANES].as_chunks().0;
            let value: [L; V] = std::array::from_fn(|v| L::load(&value[v]));
            for n in 0..N {
                let weight = L::splat(weights[n][j & (LANES - 1)]);
                for v in 0..V {
                    acc[n][v] = weight.mul_add(value[v], acc[n][v]);
                }
            }
        }
        for n in 0..N {
            let o = scratch.o[(row + n) * dim + d..][..V * LANES].as_chunks_mut().0;
            for v in 0..V {
                acc[n][v].store(&mut o[v]);
            }
        }
        V * LANES
    }

    /// Divides by the sums and writes the results.
    #[inline(always)]
    fn finish(&mut self) {
        let args = self.args;
        let dim = args.value_dim();
        for row in 0..self.rows.len() {
            let (token, head) = self.token_and_head(row);
            let start = token * args.out_strides.token + head * args.out_strides.head;
            // SAFETY: this (token, head) belongs to this task alone.
            let out = unsafe { self.out.piece(start..start + dim) };
            let total = <lanes::Scalar as Lanes>::load(&self.scratch.l[row]).sum();
            let o = &self.scratch.o[row * pad(dim)..][..dim];
            for (out, o) in out.iter_mut().zip(o) {
                *out = o / total;
            }
        }
    }
}

/// e^x of one number, the same bits as in a lane.
#[inline(always)]
fn exp_one<L: Lanes>(x: f32) -> f32 {
    let mut out = [0.0; LANES];
    lanes::exp(L::splat(x)).store(&mut out);
    out[0]
}

/// Dot products of `N` queries, `[N, dim]`, with 16 keys, `[dim][16]`: even and odd dimensions
/// apart.
#[inline(always)]
fn dot_products<L: Lanes, const N: usize>(q: &[f32], dim: usize, keys: &[[f32; LANES]]) -> [L; N] {
    assert!(q.len() == N * dim && keys.len() >= dim);
    let mut even = [L::splat(0.0); N];
    let mut odd = [L::splat(0.0); N];
    // SAFETY: n < N and d < dim in every call below, so n * dim + d < q.len().
    let at = |n: usize, d: usize| unsafe { *q.get_unchecked(n * dim + d) };
    let (pairs, rest) = keys[..dim].as_chunks::<2>();
    for (pair, [first, second]) in pairs.iter().enumerate() {
        let (first, second) = (L::load(first), L::load(second));
        for n in 0..N {
            even[n] = L::splat(at(n, 2 * pair)).mul_add(first, even[n]);
            odd[n] = L::splat(at(n, 2 * pair + 1)).mul_add(second, odd[n]);
        }
    }
    if let [last] = rest {
        let last = L::load(last);
        for n in 0..N {
            even[n] = L::splat(at(n, dim - 1)).mul_add(last, even[n]);
        }
    }
    std::array::from_fn(|n| even[n] + odd[n])
}

/// Keys `[stride, 16]` to values `[16, stride]`; `stride` is a multiple of 16.
#[inline(always)]
fn transpose<L: Narrow>(keys: &[f32], values: &mut [f32], stride: usize) {
    let keys = keys.as_chunks::<LANES>().0;
    for d in (0..stride).step_by(LANES) {
        let rows = &keys[d..d + LANES];
        let mut tile: [L; LANES] = std::array::from_fn(|i| L::load(&rows[i]));
        L::transpose(&mut tile);
        for (j, row) in tile.into_iter().enumerate() {
            let to = &mut values[j * stride + d..][..LANES];
            row.store(to.first_chunk_mut().expect("16 numbers were sliced"));
        }
    }
}
