//! How fast a model will be on a machine, from what a step costs and what the machine can do.
//!
//! Pure arithmetic on counts ([`Cost`]) and measured limits: nothing here runs anything. What an
//! engine reaches of a limit is a range, not a number, and so is every prediction. The ranges are
//! what `moeba bench` reached on real models; where they come from, and how to measure them again,
//! is told in `docs/lab/2026-11-22-fit.md`.

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;
use moeba_kernels::isa::Isa;
use moeba_kernels::probe::MachineLimits;

use crate::cost::{Cost, Operations, StepShape, Work};
use crate::memory_plan::MemoryPlan;

/// What a machine does at best, all threads together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// The instruction set in use.
    pub isa: Isa,
    /// Bytes per second read from memory.
    pub read_bytes_per_s: f64,
    /// 8-bit operations per second.
    pub integer_ops_per_s: f64,
    /// Single-precision operations per second.
    pub float_ops_per_s: f64,
}

/// Tokens per second, or shares of a limit: most often between these.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The slow end.
    pub low: f64,
    /// The fast end.
    pub high: f64,
}

/// What a prediction is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// How keys and values are cached.
    pub kv_dtype: KvDType,
    /// How finely the inputs of quantised weights are rounded.
    pub precision: Precision,
    /// Most tokens of one step of a prompt.
    pub step_tokens_max: usize,
}

/// Shares of a machine's limits that the engine reaches.
struct Reached {
    /// Of the read limit, while decoding.
    reading: Span,
    /// Of the 8-bit peak, by products of prompts with quantised weights.
    integer: Span,
    /// Of the single-precision peak, by products of prompts with weights that are floats.
    float: Span,
    /// Of the single-precision peak, by attention of prompts.
    attention: Span,
    /// Of the single-precision peak, by attention of one token that is decoded.
    attention_of_one: Span,
}

const fn span(low: f64, high: f64) -> Span {
    Span { low, high }
}

/// Seconds a decoded token takes for each layer beside reading: starting and ending parallel
/// regions, and what is computed between them.
const SECONDS_PER_LAYER: Span = span(450e-6, 50e-6);

/// Of the 8-bit peak of vectors, by the same products where tiles of bfloats make them.
const BY_TILES: Span = span(0.26, 1.1);

/// Of the single-precision peak of vectors, by attention of prompts where tiles compute it.
const ATTENTION_BY_TILES: Span = span(0.5, 3.0);

/// What was measured.
static REACHED: [(Isa, Reached); 2] = [
    (
        Isa::Avx512,
        Reached {
            reading: span(0.54, 0.85),
            integer: span(0.14, 0.36),
            float: span(0.2, 0.45),
            attention: span(0.2, 0.5),
            attention_of_one: span(0.05, 0.25),
        },
    ),
    (
        Isa::Avx2,
        Reached {
            reading: span(0.5, 0.85),
            integer: span(0.3, 0.6),
            float: span(0.2, 0.5),
            attention: span(0.1, 0.5),
            attention_of_one: span(0.05, 0.25),
        },
    ),
];

/// What is assumed where nobody has measured: wide ranges.
static ASSUMED: Reached = Reached {
    reading: span(0.3, 0.85),
    integer: span(0.05, 0.5),
    float: span(0.1, 0.5),
    attention: span(0.1, 0.5),
    attention_of_one: span(0.01, 0.2),
};

fn reached(isa: Isa) -> &'static Reached {
    // But for its tiles, it is this.
    let isa = if isa == Isa::Amx { Isa::Avx512 } else { isa };
    let measured = REACHED.iter().find(|(measured, _)| *measured == isa);
    measured.map_or(&ASSUMED, |(_, reached)| reached)
}

/// Tokens per second of a sequence that decodes with `position` tokens before it.
pub fn decode(cost: &Cost, position: usize, conditions: &Conditions, limits: &Limits) -> Span {
    let work = cost.token(position, conditions.kv_dtype);
    let reached = reached(limits.isa);
    let seconds = |end: fn(Span) -> f64| {
        work.bytes() as f64 / (limits.read_bytes_per_s * end(reached.reading))
            + work.operations.attention as f64
                / (limits.float_ops_per_s * end(reached.attention_of_one))
            + cost.num_layers() as f64 * end(SECONDS_PER_LAYER)
    };
    Span { low: 1.0 / seconds(|span| span.low), high: 1.0 / seconds(|span| span.high) }
}

/// Tokens per second of a prompt of `tokens` tokens, at least one.
pub fn prefill(cost: &Cost, tokens: usize, conditions: &Conditions, limits: &Limits) -> Span {
    let reached = reached(limits.isa);
    let (mut low, mut high) = (0.0, 0.0);
    for start in (0..tokens).step_by(conditions.step_tokens_max) {
        let end = tokens.min(start + conditions.step_tokens_max);
        let work = cost.step(&StepShape {
            sequences: 1,
            positions: start..end,
            logit_rows: usize::from(end == tokens),
            kv_dtype: conditions.kv_dtype,
        });
        let seconds = |end: fn(Span) -> f64| step_seconds(&work, reached, end, conditions, limits);
        low += seconds(|span| span.low);
        high += seconds(|span| span.high);
    }
    Span { low: tokens as f64 / low, high: tokens as f64 / high }
}

/// Seconds of one step of a prompt. Reading and arithmetic are added up: on the machines measured a
/// product waits for its weights first and then computes with them for all tokens.
fn step_seconds(
    work: &Work,
    reached: &Reached,
    end: fn(Span) -> f64,
    conditions: &Conditions,
    limits: &Limits,
) -> f64 {
    let Operations { integer, float, attention } = work.operations;
    let limbs = conditions.precision.limbs() as f64;
    let by_tiles = limits.isa == Isa::Amx && conditions.precision == Precision::Mixed;
    let (share, attended) = if by_tiles {
        (BY_TILES, ATTENTION_BY_TILES)
    } else {
        (reached.integer, reached.attention)
    };
    let arithmetic = integer as f64 * limbs / (limits.integer_ops_per_s * end(share))
        + float as f64 / (limits.float_ops_per_s * end(reached.float))
        + attention as f64 / (limits.float_ops_per_s * end(attended));
    arithmetic + work.bytes() as f64 / (limits.read_bytes_per_s * end(reached.reading))
}

/// What decoding would cost if experts that do not fit into memory were read from a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streaming {
    /// Share of all experts' bytes that fit into memory beside everything else.
    pub resident_share: f64,
    /// Bytes a token would miss if experts were called evenly.
    pub miss_bytes_per_token: f64,
}

/// What of a model would have to come from a disk with `have` bytes of memory; `None` if all that
/// is no expert does not fit either. `expert_bytes` are those of all experts together.
pub fn streaming(
    plan: &MemoryPlan,
    cost: &Cost,
    expert_bytes: u64,
    have: u64,
) -> Option<Streaming> {
    let others = plan.total().saturating_sub(expert_bytes);
    let room = have.checked_sub(others)?;
    let resident_share = (room as f64 / expert_bytes.max(1) as f64).min(1.0);
    let called = cost.token(0, KvDType::F16).expert_bytes as f64;
    Some(Streaming { resident_share, miss_bytes_per_token: called * (1.0 - resident_share) })
}

impl Streaming {
    /// Tokens per second that a disk of this rate allows: an upper bound, as if nothing else took
    /// time and the disk were never idle. `None` if nothing has to be read.
    pub fn tokens_per_s_max(&self, disk_bytes_per_s: f64) -> Option<f64> {
        let misses = self.miss_bytes_per_token;
        (misses > 0.0).then(|| disk_bytes_per_s / misses)
    }
}

impl From<&MachineLimits> for Limits {
    fn from(measured: &MachineLimits) -> Limits {
        Limits {
            isa: measured.isa,
            read_bytes_per_s: measured.read_bytes_per_s_best,
            integer_ops_per_s: measured.int8_ops_per_s_best,
            float_ops_per_s: measured.f32_ops_per_s_best,
        }
    }
}

impl Span {
    /// Whether `value` lies between the ends.
    pub fn contains(&self, value: f64) -> bool {
        self.low <= value && value <= self.high
    }
}
