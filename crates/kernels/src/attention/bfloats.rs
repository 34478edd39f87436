//! Attention of prompts by tiles of bfloats: its arithmetic, when it pays, and what it works on.
//!
//! ```text
//! q' = bfloat(q · scale · log2 e)         k, v rounded to bfloats
//! for each 128 keys, ascending:
//!     s[j] = sum over d of q'[d]·k[j][d]                        by tiles, in single precision
//!     if max_j s[j] > m + 8:  c = 2^(m - max);  l = l·c;  o = o·c;  m = max
//!     p[j] = bfloat(2^(s[j] - m));    l = l + p[j]              16 running sums
//!     o[d] = o[d] + sum over j of p[j]·v[j][d]                  by tiles, in single precision
//! ```
//!
//! and at the end o_d / (sum of the 16 l). Keys outside a query's window have p = 0; a value that
//! is no finite number is replaced by 0 and makes NaN of the scores it belongs to, so that queries
//! that do not see it stay as they are. A query's result does not depend on which others share
//! the tiles, nor on threads; it differs from what [`super`] describes by the rounding to bfloats.
//! The running maximum lags behind by up to 8 (a factor of 256, of which floats have plenty),
//! because following it would mean to rescale o after most blocks.

use std::ops::Range;

use super::{AttentionArgs, BLOCK_TOKENS, Span};
use crate::disjoint::Disjoint;

/// Keys that are laid out together.
pub(crate) const KEYS: usize = 128;
/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Bfloats in a row of a tile: key dimensions of scores, keys of weighted sums.
pub(crate) const DEPTH: usize = 32;
/// Queries that are multiplied together: two tiles.
pub(crate) const PAIR: usize = 2 * ROWS;

/// A tile of bfloats.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bfloats(pub(crate) [[u16; DEPTH]; ROWS]);

/// A tile of sums.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums(pub(crate) [[f32; ROWS]; ROWS]);

/// The scores of a pair of tiles of queries, `[2]` of keys by 16.
pub(crate) type Scores = [[Sums; KEYS / ROWS]; 2];
/// The weights of a pair of tiles of queries, `[2]` of keys by 32.
pub(crate) type Weights = [[Bfloats; KEYS / DEPTH]; 2];

/// How much of the second cache the queries and results of a task may take, so that the keys and
/// values of a block fit beside them.
const ROWS_BYTES: usize = 640 << 10;
/// Queries of a task, at most.
const ROWS_MAX: usize = 512;

/// One worker's buffers. R = queries of a full task; dimensions are padded to 32.
#[derive(Debug)]
pub(crate) struct TileScratch {
    /// Queries of a full task.
    rows: usize,
    /// Queries, `[R / 16, key dim / 32]` tiles of 16 queries.
    pub(crate) q: Vec<Bfloats>,
    /// A block's keys, `[128 / 16, key dim / 32]` tiles; a row is two dimensions of 16 keys.
    pub(crate) keys: Vec<Bfloats>,
    /// A block's values, `[128 / 32, value dim / 16]` tiles; a row is two keys, 16 dimensions.
    pub(crate) values: Vec<Bfloats>,
    /// `[2]`: those of one pair of tiles of queries, and of the next.
    pub(crate) scores: Vec<Scores>,
    /// `[2]`, likewise.
    pub(crate) weights: Vec<Weights>,
    /// Running results, `[R / 16, value dim / 16]` tiles of 16 queries.
    pub(crate) o: Vec<Sums>,
    /// Of each query, `[R]`.
    pub(crate) states: Vec<State>,
    /// 32 keys of the cache, `[2, key dim padded, 16]`, or 16 values, `[16, value dim]`, widened.
    pub(crate) numbers: Vec<f32>,
    /// 0 for each key of the block, NaN where its value is no finite number.
    pub(crate) broken: [f32; KEYS],
}

/// What is known of one query so far.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Running sums.
    pub(crate) l: [f32; ROWS],
    /// The running maximum, or a little less.
    pub(crate) m: f32,
    /// Visible positions; over the queries of a task both ends ascend.
    pub(crate) window: Range<usize>,
}

impl TileScratch {
    /// Buffers for rows of keys and values up to these lengths.
    pub(super) fn new(key_dim: usize, value_dim: usize) -> Self {
        let (keys, values) = (key_dim.div_ceil(DEPTH), pad(value_dim) / ROWS);
        let rows = Self::rows_max(key_dim, value_dim);
        let bfloats = |tiles: usize| vec![Bfloats([[0; DEPTH]; ROWS]); tiles];
        let sums = Sums([[0.0; ROWS]; ROWS]);
        let state = State { l: [0.0; ROWS], m: 0.0, window: 0..0 };
        Self {
            rows,
            q: bfloats(rows / ROWS * keys),
            keys: bfloats(KEYS / ROWS * keys),
            values: bfloats(KEYS / DEPTH * values),
            scores: vec![[[sums; KEYS / ROWS]; 2]; 2],
            weights: vec![[[Bfloats([[0; DEPTH]; ROWS]); KEYS / DEPTH]; 2]; 2],
            o: vec![sums; rows / ROWS * values],
            states: vec![state; rows],
            numbers: vec![0.0; Self::numbers(key_dim, value_dim)],
            broken: [0.0; KEYS],
        }
    }

    /// Bytes of these buffers.
    pub(super) fn num_bytes(key_dim: usize, value_dim: usize) -> usize {
        let (keys, values) = (pad(key_dim), pad(value_dim));
        let rows = Self::rows_max(key_dim, value_dim);
        let of_rows = Self::row_bytes(key_dim, value_dim) + size_of::<State>();
        let of_block = KEYS * (keys + values) * size_of::<u16>();
        rows * of_rows
            + of_block
            + Self::numbers(key_dim, value_dim) * size_of::<f32>()
            + 2 * (size_of::<Scores>() + size_of::<Weights>())
            + size_of::<Self>()
    }

    /// Queries of a full task.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    fn rows_max(key_dim: usize, value_dim: usize) -> usize {
        let rows = ROWS_BYTES / Self::row_bytes(key_dim, value_dim);
        (rows / PAIR * PAIR).clamp(PAIR, ROWS_MAX)
    }

    fn row_bytes(key_dim: usize, value_dim: usize) -> usize {
        pad(key_dim) * size_of::<u16>() + pad(value_dim) * size_of::<f32>()
    }

    /// Numbers that are widened at once: keys of two blocks of the cache, or values of one.
    fn numbers(key_dim: usize, value_dim: usize) -> usize {
        BLOCK_TOKENS * (2 * pad(key_dim)).max(value_dim)
    }
}

/// `dim`, padded to whole tiles.
pub(crate) fn pad(dim: usize) -> usize {
    dim.next_multiple_of(DEPTH)
}

/// Some queries of a sequence that read the same key head.
pub(crate) struct TileTask<'a> {
    pub(crate) args: &'a AttentionArgs<'a>,
    pub(crate) span: &'a Span,
    pub(crate) kv_head: usize,
    /// Queries of the span and key head: row r is token r / group, head r % group.
    pub(crate) rows: Range<usize>,
    pub(crate) scratch: &'a mut TileScratch,
    pub(crate) out: &'a Disjoint<'a, f32>,
}

impl TileTask<'_> {
    /// Batch row and query head of a row of the task.
    pub(crate) fn token_and_head(&self, row: usize) -> (usize, usize) {
        self.args.token_and_head(self.span, self.kv_head, self.rows.start + row)
    }
}
