//! Matrix products: `y[t, r] = sum over k of w[r, k] * x[t, k]`, for any mix of formats at once.
//!
//! **One arithmetic.** The same weights and inputs give the same bits on every instruction set,
//! for one token or many, for any number of threads. For quantised weights (`weight = d * sc * q
//! - e * m` per sub-block, see `formats`) against rows of 8-bit integers (`x = dx * q`, see
//! [`crate::activations`]), one chain starts at 0 and takes the blocks `b` of its row in order:
//!
//! ```text
//! S = sum over sub-blocks of sc * sum(q * x)     exact, i32
//! M = sum over sub-blocks of m * sum(x)          exact, i32
//! symmetric formats:   acc = fma(d * dx, float(S - M), acc)
//! others:              acc = fma(d * dx, float(S), acc);  acc = fma(-(e * dx), float(M), acc)
//! ```
//!
//! By default an input row is two such rows, its coarse and its fine limb; each has a chain of its
//! own, and the output is the coarse chain plus the fine chain. With inputs of eight bits there is
//! one limb, and its chain is the output.
//!
//! Blocks are as long as `d` reaches: 16, 32 or 256 weights. A matrix with a factor multiplies the
//! output by it, or divides, last of all.
//!
//! Integer sums are exact, so their order is free, and that is where all the speed is; the float
//! chain is short and has one order. Float weights sum in 16 lanes: lane `l` takes the columns
//! `k = l mod 16` in order with fma (the tail padded with zeros), then lanes are added as a fixed
//! tree. Where float weights have scales apart, lanes are summed for each tile of columns alone,
//! and `acc = fma(scale, lanes, acc)` joins the tiles in order. `tests/it` holds every kernel to
//! this, bit for bit.
//!
//! The exception are inputs that were set as bfloats ([`crate::activations::Precision::Mixed`],
//! many inputs to a product, a machine with AMX): their products with quantised weights are `sum
//! of bfloat(w) * bfloat(x)` in single precision, in an order that tiles choose; of Q4_K, where few
//! share a product, not weights are rounded but what their scales are multiplied with.

mod blocks;
mod few;
mod floats;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::activations::{ActKinds, Activations};
use crate::disjoint::Disjoint;
use crate::isa::{self, Isa};
use crate::pool::Pool;
use crate::tensor::Matrix;

#[cfg(target_arch = "x86_64")]
pub(crate) use blocks::unpack_scales;
pub(crate) use blocks::{run as run_blocks, tile, unpack};
pub(crate) use floats::run as run_floats;

/// Which input rows a product reads: output row `i` comes from the `i`-th of these.
#[derive(Debug, Clone)]
pub enum Rows<'a> {
    /// Consecutive rows.
    Range(Range<usize>),
    /// Rows in any order: an expert's tokens.
    Gather(&'a [u32]),
}

impl Rows<'_> {
    /// Number of input rows, which is the number of output rows.
    pub fn len(&self) -> usize {
        match self {
            Self::Range(range) => range.len(),
            Self::Gather(rows) => rows.len(),
        }
    }

    /// Whether there is nothing to multiply.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The input row behind output row `index`.
    #[inline(always)]
    pub fn at(&self, index: usize) -> usize {
        match self {
            Self::Range(range) => range.start + index,
            Self::Gather(rows) => rows[index] as usize,
        }
    }

    /// One past the highest input row.
    fn end(&self) -> usize {
        match self {
            Self::Range(range) => range.end,
            Self::Gather(rows) => rows.iter().max().map_or(0, |&row| row as usize + 1),
        }
    }
}

/// One matrix product.
#[derive(Debug)]
pub struct Job<'a> {
    /// The weights, `[weight.rows(), weight.cols()]`.
    pub weight: Matrix<'a>,
    /// The inputs; they must hold the form that the weights' format is multiplied with.
    pub input: &'a Activations,
    /// The first input column; a whole number of blocks. The product reads `weight.cols()`.
    pub input_col: usize,
    /// The input rows.
    pub rows: Rows<'a>,
    /// The product, `[rows.len(), weight.rows()]`; overwritten.
    pub output: &'a mut [f32],
}

/// A few rows of one product, for all of its inputs or some: what a worker takes at a time.
pub(crate) struct Unit<'a> {
    pub(crate) weight: Matrix<'a>,
    pub(crate) rows: Range<usize>,
    pub(crate) input: &'a Activations,
    pub(crate) input_col: usize,
    /// The inputs of the whole product.
    pub(crate) tokens: &'a Rows<'a>,
    /// Those of this unit.
    pub(crate) span: Range<usize>,
    output: Disjoint<'a, f32>,
}

impl Unit<'_> {
    /// Lets `write` fill the outputs of `rows` for token `token`, both within the unit's own.
    #[inline(always)]
    pub(crate) fn output(&self, token: usize, rows: Range<usize>, write: impl FnOnce(&mut [f32])) {
        assert!(self.rows.start <= rows.start && rows.end <= self.rows.end, "another unit's rows");
        assert!(self.span.contains(&token), "another unit's tokens");
        let first = token * self.weight.rows();
        // SAFETY: every unit has its own rows and tokens (checked), and the slice lives for one
        // call of a closure that cannot reach the unit's outputs otherwise.
        write(unsafe { self.output.piece(first + rows.start..first + rows.end) });
    }
}

/// Rows come in multiples of this, so that only the last unit of a matrix has a partial panel.
const UNIT_ROWS: usize = 16;
/// Units per thread that the work is cut into, at least: what evens out a busy neighbour.
const UNITS_PER_THREAD: usize = 16;
/// The same where tiles multiply: whoever takes a unit lays its inputs out.
const TILED_UNITS_PER_THREAD: usize = 4;
/// Weight bytes of a unit, at most: beyond this, taking a unit costs nothing anyway.
const UNIT_BYTES_MAX: usize = 2 << 20;
/// The same where tiles multiply: laying inputs out has to cost nothing, too.
const TILED_UNIT_BYTES_MAX: usize = 8 << 20;
/// Inputs of a unit that tiles multiply, at most. Weights are converted for as many at a time
/// anyway; a unit of all inputs and a few rows would lay out more than it multiplies.
const TILED_UNIT_TOKENS: usize = 128;
/// Inputs of a unit of float weights, at most: as many as the second cache holds for every row.
const FLOAT_UNIT_TOKENS: usize = 64;

/// Computes all `jobs` as one parallel region with the current instruction set.
///
/// # Panics
/// If a job's shapes disagree, or its input lacks the form its weights need.
pub fn matmul(pool: &Pool, jobs: &mut [Job<'_>]) {
    matmul_with(isa::current(), pool, jobs);
}

/// [`matmul`] with the given instruction set. Every one gives the same bits.
///
/// # Panics
/// As [`matmul`], and if this machine cannot run `isa`.
pub fn matmul_with(isa: Isa, pool: &Pool, jobs: &mut [Job<'_>]) {
    assert!(isa.is_available(), "this machine cannot run {isa}");
    let (mut cost, mut units_per_thread) = (0, UNITS_PER_THREAD);
    for job in jobs.iter() {
        check(isa, job);
        cost += job_cost(job);
        if job.input.by_tiles() {
            units_per_thread = TILED_UNITS_PER_THREAD;
        }
    }
    let share = (cost / (pool.threads() * units_per_thread)).max(1);
    let units: usize = jobs.iter().map(|job| num_units(job, share)).sum();
    let jobs: &[Job<'_>] = jobs;
    let next = AtomicUsize::new(0);
    let work = |_worker: usize| {
        let (mut job, mut units_before) = (0, 0);
        loop {
            let unit = next.fetch_add(1, Ordering::Relaxed);
            if unit >= units {
                return;
            }
            while unit - units_before >= num_units(&jobs[job], share) {
                units_before += num_units(&jobs[job], share);
                job += 1;
            }
            // SAFETY: the counter gives each unit to one worker, and the jobs' outputs are
            // mutably borrowed until all workers are done.
            unsafe { run_unit(isa, &jobs[job], unit - units_before, share) };
        }
    };
    if units > 0 {
        pool.run(&work);
    }
}

/// Asserts that a job's shapes agree, and that its inputs are what `isa` multiplies.
fn check(isa: Isa, job: &Job<'_>) {
    let (weight, input) = (&job.weight, job.input);
    let block_len = weight.dtype().format().block_len;
    assert!(job.input_col.is_multiple_of(block_len), "the first column starts a block");
    assert!(job.input_col + weight.cols() <= input.cols(), "columns read are columns set");
    assert!(job.rows.end() <= input.rows(), "rows read are rows set");
    assert_eq!(job.output.len(), job.rows.len() * weight.rows(), "length of the product");
    let kind = ActKinds::of(weight.dtype());
    let held = if input.by_tiles() { isa == Isa::Amx } else { input.kinds().contains(kind) };
    assert!(held || kind == ActKinds::F32, "{} weights need {kind:?} inputs", weight.dtype());
}

/// Roughly, bytes that would take as long to read as the job takes: weights are read once, and
/// every eight tokens cost about as much again.
fn row_cost(job: &Job<'_>) -> usize {
    let bytes = row_bytes(job);
    bytes + bytes * job.rows.len() / 8
}

fn row_bytes(job: &Job<'_>) -> usize {
    job.weight.num_bytes() / job.weight.rows().max(1)
}

fn job_cost(job: &Job<'_>) -> usize {
    if job.rows.is_empty() { 0 } else { row_cost(job) * job.weight.rows() }
}

/// Into how many spans of about the same length the inputs of a job are cut, and how many rows its
/// units have when each should cost about `share`.
fn cut(job: &Job<'_>, share: usize) -> (usize, usize) {
    let is_float = ActKinds::of(job.weight.dtype()) == ActKinds::F32;
    let (tokens_max, bytes_max) = match (is_float, job.input.by_tiles()) {
        (true, _) => (FLOAT_UNIT_TOKENS, UNIT_BYTES_MAX),
        (false, true) => (TILED_UNIT_TOKENS, TILED_UNIT_BYTES_MAX),
        (false, false) => (usize::MAX, UNIT_BYTES_MAX),
    };
    let spans = job.rows.len().div_ceil(tokens_max).max(1);
    let rows = (share * spans / row_cost(job).max(1)).min(bytes_max / row_bytes(job).max(1));
    (spans, rows.max(1).next_multiple_of(UNIT_ROWS))
}

fn num_units(job: &Job<'_>, share: usize) -> usize {
    let (spans, rows) = cut(job, share);
    if job.rows.is_empty() { 0 } else { spans * job.weight.rows().div_ceil(rows) }
}

/// Computes unit `index` of `job`.
///
/// # Safety
/// No other thread computes the same unit, and nothing else touches the job's output meanwhile.
unsafe fn run_unit(isa: Isa, job: &Job<'_>, index: usize, share: usize) {
    let (spans, rows) = cut(job, share);
    // Spans of the same rows follow one another: their weights are in the caches still.
    let part = |index: usize, step: usize, len: usize| index * step..((index + 1) * step).min(len);
    let tokens = job.rows.len();
    let span = part(index % spans, tokens.div_ceil(spans), tokens);
    let rows = part(index / spans, rows, job.weight.rows());
    let output = std::ptr::from_ref(&job.output).cast::<*mut [f32]>();
    // SAFETY: a `&mut [f32]` has the layout of a `*mut [f32]`; reading it as one makes no second
    // reference to the output, of which every unit takes only its own rows and tokens.
    let output = unsafe { Disjoint::from_raw(output.read()) };
    let unit = Unit {
        weight: job.weight,
        rows,
        input: job.input,
        input_col: job.input_col,
        tokens: &job.rows,
        span,
        output,
    };
    (job.weight.dtype().format().product)(isa, &unit);
}
