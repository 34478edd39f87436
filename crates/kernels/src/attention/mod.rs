//! Attention over a paged cache: grouped heads, latent (MLA) heads, windows, sinks, in one code.
//!
//! **One arithmetic per query.** For a query at position p, blocks of 16 keys are visited
//! ascending; within a block
//!
//! ```text
//! s[j] = scale * (sum over even d of q[d]·k[j][d]  +  sum over odd d)     fused, d ascending
//! m'   = max(m, max_j s[j])           c = e^(m - m')
//! p[j] = e^(s[j] - m')                l[j] = l[j]·c + p[j]                16 running sums
//! o[d] = o[d]·c + sum_j p[j]·v[j][d]                                      fused, j ascending
//! ```
//!
//! and at the end o_d / (sum of the 16 l, folded 8, 4, 2, 1). Keys outside the query's window are
//! left out, not multiplied by zero. Nothing depends on which other queries share the call, on the
//! split over workers, or on where a chunk of the prompt began, so whole prefill, chunked prefill
//! and token-by-token decoding give the same bits.
//!
//! Queries that read the same keys (several tokens, and the heads of a group) form a tile: the tile
//! widens each block once and keeps the multipliers busy.
//!
//! Prompts of [`Precision::Mixed`] are another arithmetic where a machine has tiles of bfloats:
//! `bfloats` describes it.

pub(crate) mod bfloats;
mod cache;
mod tile;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub(crate) use cache::widen;
pub use cache::{BLOCK_TOKENS, KvDType, KvLayout, KvRole, KvTensor, kv_store};

use crate::activations::{Precision, SHARED_MIN};
use crate::arch;
use crate::disjoint::Disjoint;
use crate::isa::{self, Isa};
use crate::lanes;
use crate::pool::Pool;
use bfloats::{TileScratch, TileTask};
use tile::{Tile, WorkerScratch};

/// Queries in a full tile. More would amortise widening better but fall out of the first cache.
const TILE_ROWS: usize = 32;
/// Queries of a key head, and a span of [`SHARED_MIN`] tokens at least, from which on they go to
/// tiles of bfloats, which are faster from 8 to 12 on.
const TILE_ROWS_MIN: usize = 16;

/// Which keys a query at position p sees, beside "none after p".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// All of 0..=p.
    Full,
    /// The last n positions, p included.
    Sliding(usize),
    /// Those of p's chunk of n positions: p / n * n ..= p.
    Chunked(usize),
}

impl Mask {
    /// The first position a query at `position` sees.
    #[inline]
    pub fn first_visible(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Sliding(n) => (position + 1).saturating_sub(n),
            Self::Chunked(n) => position / n * n,
        }
    }
}

/// Where a head's vector of a token starts: `token * self.token + head * self.head`, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// From one token to the next.
    pub token: usize,
    /// From one head to the next.
    pub head: usize,
}

impl Strides {
    /// `[token][head][dim]`.
    pub fn token_major(num_heads: usize, dim: usize) -> Self {
        Self { token: num_heads * dim, head: dim }
    }

    /// `[head][token][dim]`.
    pub fn head_major(num_tokens: usize, dim: usize) -> Self {
        Self { token: dim, head: num_tokens * dim }
    }
}

/// Where values come from.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// A cache of their own, with as many heads as the keys.
    Cache(KvTensor<'a>),
    /// The first n numbers of each key row (MLA: keys are latent and rope part, values the latent).
    KeyPrefix(usize),
}

/// Consecutive positions of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The rows of the batch it covers.
    pub tokens: Range<usize>,
    /// Its blocks, as a range of the batch's block ids: block i holds positions 16i..16i+16.
    pub blocks: Range<usize>,
}

/// The inputs of [`attention`].
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs<'a> {
    /// Queries, already rotated, `[tokens, num_heads, key dim]` as the strides say.
    pub q: &'a [f32],
    /// Where queries lie in `q`.
    pub q_strides: Strides,
    /// Query heads; a multiple of the keys' heads. Query head h reads key head h / (ratio).
    pub num_heads: usize,
    /// The layer's keys, those of this batch already stored.
    pub keys: KvTensor<'a>,
    /// The layer's values, likewise.
    pub values: Values<'a>,
    /// The sequences of the batch. Rows outside all spans are left alone.
    pub spans: &'a [Span],
    /// Block ids the spans point into.
    pub block_ids: &'a [u32],
    /// Position of each row of the batch, `[tokens]`.
    pub positions: &'a [u32],
    /// Which keys are visible.
    pub mask: Mask,
    /// Factor on the dot product, usually 1 / sqrt(head_dim).
    pub scale: f32,
    /// `cap * tanh(score / cap)`, if the family bounds its scores.
    pub softcap: Option<f32>,
    /// One extra score per query head that takes weight but has no value, `[num_heads]`.
    pub sinks: Option<&'a [f32]>,
    /// Where results go in `out`, `[tokens, num_heads, value dim]`.
    pub out_strides: Strides,
}

impl AttentionArgs<'_> {
    pub(crate) fn value_dim(&self) -> usize {
        match self.values {
            Values::Cache(values) => values.layout.dim,
            Values::KeyPrefix(n) => n,
        }
    }

    /// Query heads per key head.
    fn group(&self) -> usize {
        self.num_heads / self.keys.layout.num_kv_heads
    }

    /// Batch row and query head of row `row` of a span and key head: the heads of a group, token
    /// after token.
    #[inline(always)]
    fn token_and_head(&self, span: &Span, kv_head: usize, row: usize) -> (usize, usize) {
        let group = self.group();
        (span.tokens.start + row / group, kv_head * group + row % group)
    }

    fn check(&self, out: &[f32]) {
        let keys = self.keys.layout;
        assert_eq!(keys.role, KvRole::Keys, "attention: keys must be stored as keys");
        assert!(
            keys.num_kv_heads > 0 && self.num_heads.is_multiple_of(keys.num_kv_heads),
            "attention: {} query heads over {} key heads",
            self.num_heads,
            keys.num_kv_heads
        );
        match self.values {
            Values::Cache(values) => assert!(
                values.layout.role == KvRole::Values
                    && values.layout.num_kv_heads == keys.num_kv_heads,
                "attention: values do not match the keys"
            ),
            Values::KeyPrefix(n) => assert!(n <= keys.dim, "attention: values beyond the key row"),
        }
        if let Some(sinks) = self.sinks {
            assert_eq!(sinks.len(), self.num_heads, "attention: one sink per head");
        }
        assert!(!matches!(self.mask, Mask::Sliding(0) | Mask::Chunked(0)), "attention: empty mask");
        self.check_spans(out);
    }

    /// Tasks write to `out` at once, so no two queries of the spans may share a place there.
    fn check_spans(&self, out: &[f32]) {
        let (key_dim, value_dim) = (self.keys.layout.dim, self.value_dim());
        let mut next = 0;
        for span in self.spans {
            if span.tokens.is_empty() {
                continue;
            }
            assert!(next <= span.tokens.start, "attention: spans overlap or descend");
            next = span.tokens.end;
            let last = |strides: Strides, dim: usize| {
                let token = (span.tokens.end - 1).checked_mul(strides.token)?;
                let head = (self.num_heads - 1).checked_mul(strides.head)?;
                token.checked_add(head)?.checked_add(dim)
            };
            let within = |last: Option<usize>, len: usize| last.is_some_and(|last| last <= len);
            assert!(within(last(self.q_strides, key_dim), self.q.len()), "attention: q too short");
            assert!(
                within(last(self.out_strides, value_dim), out.len()),
                "attention: out too short"
            );
            let reach = self.positions[span.tokens.end - 1] as usize;
            assert!(reach < span.blocks.len() * BLOCK_TOKENS, "attention: span beyond its blocks");
        }
        let Strides { token, head } = self.out_strides;
        // Heads within a token, or tokens within a head; either way one after the other.
        let apart = |inner: usize, count: usize, outer: usize| {
            inner >= value_dim && count.checked_mul(inner).is_some_and(|all| all <= outer)
        };
        assert!(
            next == 0 || apart(head, self.num_heads, token) || apart(token, next, head),
            "attention: outputs overlap"
        );
    }
}

/// Working memory of [`attention`], made once and used for every layer and step.
#[derive(Debug)]
pub struct AttentionScratch {
    /// One per worker; the locks are never contended.
    workers: Vec<Mutex<Worker>>,
}

#[derive(Debug)]
struct Worker {
    vectors: WorkerScratch,
    /// Where prompts may be attended by tiles.
    tiles: Option<TileScratch>,
}

impl AttentionScratch {
    /// Scratch for a pool of `threads` workers and rows of keys and values up to these lengths.
    /// With [`Precision::Mixed`] prompts are attended by tiles, if the machine has them.
    pub fn new(
        threads: usize,
        key_dim_max: usize,
        value_dim_max: usize,
        precision: Precision,
    ) -> Self {
        let make = |_| {
            Mutex::new(Worker {
                vectors: WorkerScratch::new(TILE_ROWS, key_dim_max, value_dim_max),
                tiles: precision
                    .has_bfloats()
                    .then(|| TileScratch::new(key_dim_max, value_dim_max)),
            })
        };
        Self { workers: (0..threads).map(make).collect() }
    }

    /// Bytes of memory that such scratch takes.
    pub fn num_bytes(
        threads: usize,
        key_dim_max: usize,
        value_dim_max: usize,
        precision: Precision,
    ) -> usize {
        let vectors = WorkerScratch::num_bytes(TILE_ROWS, key_dim_max, value_dim_max);
        let by_tiles = precision.has_bfloats();
        let tiles = if by_tiles { TileScratch::num_bytes(key_dim_max, value_dim_max) } else { 0 };
        threads * (vectors + tiles)
    }

    /// Queries of a full task by tiles, if there is room for any.
    fn tile_rows(&self) -> Option<usize> {
        let worker = self.workers.first()?.lock().unwrap_or_else(PoisonError::into_inner);
        worker.tiles.as_ref().map(TileScratch::rows)
    }
}

/// Attends every query of the spans; see the top of the file for the arithmetic.
///
/// `out` receives `[tokens, num_heads, value dim]` as `out_strides` say. Allocates nothing.
///
/// # Panics
/// If shapes do not fit each other, or `scratch` is too small for them.
pub fn attention(pool: &Pool, args: &AttentionArgs, scratch: &AttentionScratch, out: &mut [f32]) {
    attention_on(isa::current(), pool, args, scratch, out);
}

/// [`attention`] on a chosen instruction set.
pub(crate) fn attention_on(
    isa: Isa,
    pool: &Pool,
    args: &AttentionArgs,
    scratch: &AttentionScratch,
    out: &mut [f32],
) {
    args.check(out);
    assert!(scratch.workers.len() >= pool.threads(), "attention: scratch for too few workers");
    let plan = Plan::new(isa, args, scratch, pool.threads());
    let tasks = plan.tasks();
    let out = Disjoint::new(out);
    pool.for_each_chunk(tasks, 1, |worker, range| {
        let mut worker = scratch.workers[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let Worker { vectors, tiles } = &mut *worker;
        for task in range {
            // Late tiles of a long span see most keys: they go first, small ones fill the gaps.
            let (span, kv_head, rows) = plan.find(tasks - 1 - task);
            match tiles {
                Some(scratch) if plan.by_tiles(span) => {
                    arch::attend(isa, TileTask { args, span, kv_head, rows, scratch, out: &out });
                }
                _ => {
                    let tile = Tile { args, span, kv_head, rows, scratch: vectors, out: &out };
                    lanes::run(isa, tile);
                }
            }
        }
    });
}

/// How the queries are divided into tasks.
struct Plan<'a> {
    args: &'a AttentionArgs<'a>,
    /// Queries of a task by vectors.
    vector_rows: usize,
    /// Queries of a task by tiles of bfloats, if there are any.
    tile_rows: Option<usize>,
}

impl<'a> Plan<'a> {
    /// Tasks become smaller where whole ones would leave workers without any.
    fn new(
        isa: Isa,
        args: &'a AttentionArgs<'a>,
        scratch: &AttentionScratch,
        threads: usize,
    ) -> Self {
        let tile_rows = if isa == Isa::Amx { scratch.tile_rows() } else { None };
        let mut plan = Self { args, vector_rows: TILE_ROWS, tile_rows };
        while threads > 1 && plan.tasks() < 2 * threads {
            match plan.tile_rows {
                Some(rows) if rows > bfloats::PAIR => {
                    plan.tile_rows = Some((rows / 2).next_multiple_of(bfloats::PAIR));
                }
                _ if plan.vector_rows > 8 => plan.vector_rows /= 2,
                _ => break,
            }
        }
        plan
    }

    /// Whether a span has enough tokens and queries for tiles. However many sequences decode
    /// together, each has a span of its own.
    fn by_tiles(&self, span: &Span) -> bool {
        let (tokens, rows) = (span.tokens.len(), span.tokens.len() * self.args.group());
        self.tile_rows.is_some() && tokens >= SHARED_MIN && rows >= TILE_ROWS_MIN
    }

    fn rows_per_task(&self, span: &Span) -> usize {
        match self.tile_rows {
            Some(rows) if self.by_tiles(span) => rows,
            _ => self.vector_rows,
        }
    }

    fn tasks_of(&self, span: &Span) -> usize {
        let rows = span.tokens.len() * self.args.group();
        rows.div_ceil(self.rows_per_task(span)) * self.args.keys.layout.num_kv_heads
    }

    fn tasks(&self) -> usize {
        self.args.spans.iter().map(|span| self.tasks_of(span)).sum()
    }

    /// The task's span, key head, and queries: row r of a (span, key head) is token r / group,
    /// head r % group within the group.
    fn find(&self, mut task: usize) -> (&'a Span, usize, Range<usize>) {
        for span in self.args.spans {
            let tasks = self.tasks_of(span);
            if task < tasks {
                let heads = self.args.keys.layout.num_kv_heads;
                let (tile, kv_head) = (task / heads, task % heads);
                let (rows, per_task) =
                    (span.tokens.len() * self.args.group(), self.rows_per_task(span));
                let start = tile * per_task;
                return (span, kv_head, start..rows.min(start + per_task));
            }
            task -= tasks;
        }
        unreachable!("task numbers are below the sum over all spans")
    }
}

#[cfg(test)]
mod tests;
