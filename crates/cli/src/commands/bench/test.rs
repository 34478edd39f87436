//! One thing that `moeba bench` measures: its runs, and what they make a machine read and do.

use std::time::Instant;

use anyhow::Result;
use moeba_kernels::attention::KvDType;
use moeba_kernels::probe::MachineLimits;
use moeba_model::batch::WantLogits;
use moeba_model::cost::{Cost, Operations, StepShape, Work};
use moeba_model::prediction::{self, Conditions, Limits, Span};

use crate::runner::Runner;

/// One thing to measure.
pub(super) struct Test {
    pub(super) kind: Kind,
    /// Tokens of each sequence.
    pub(super) tokens: usize,
    /// Sequences that take each step together.
    pub(super) sequences: usize,
    /// Tokens of each sequence that are there already.
    pub(super) depth: usize,
    /// Most tokens of one step of the runner.
    pub(super) step_tokens_max: usize,
    /// Whether most products are of bfloats, by tiles.
    pub(super) by_tiles: bool,
    /// Tokens per second of each run, of all sequences together.
    pub(super) rates: Vec<f64>,
    /// What a run reads and does; experts' bytes are those of the last run.
    pub(super) work: Work,
    /// What `moeba fit` would have said, for one sequence on a machine whose limits are known.
    pub(super) predicted: Option<Span>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Prefill,
    Decode,
}

impl Test {
    pub(super) fn new(kind: Kind, tokens: usize, sequences: usize, depth: usize) -> Self {
        Self {
            kind,
            tokens,
            sequences,
            depth,
            step_tokens_max: sequences,
            by_tiles: false,
            rates: Vec::new(),
            work: Work::default(),
            predicted: None,
        }
    }

    /// Tokens of a sequence when it is done.
    pub(super) fn end(&self) -> usize {
        self.depth.saturating_add(self.tokens)
    }

    /// Tokens that a run computes, of all sequences together.
    pub(super) fn tokens_total(&self) -> usize {
        self.tokens * self.sequences
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Prefill => "prefill",
            Kind::Decode => "decode",
        }
    }

    /// Tokens of a sequence that are computed in one step.
    fn step_tokens(&self) -> usize {
        match self.kind {
            Kind::Prefill => self.step_tokens_max / self.sequences,
            Kind::Decode => 1,
        }
    }

    /// How many steps a run takes.
    pub(super) fn steps(&self) -> usize {
        self.tokens.div_ceil(self.step_tokens())
    }

    /// Runs once; tokens per second.
    pub(super) fn measure(&mut self, runner: &mut Runner) -> Result<f64> {
        let tokens = self.prepare(runner)?;
        let bytes_before = runner.expert_bytes;
        let start = Instant::now();
        self.feed(runner, &tokens)?;
        let seconds = start.elapsed().as_secs_f64();
        self.work.expert_bytes = runner.expert_bytes - bytes_before;
        Ok(self.tokens_total() as f64 / seconds)
    }

    /// Computes what is to be there already; the tokens to feed, `[sequences][tokens]`.
    pub(super) fn prepare(&self, runner: &mut Runner) -> Result<Vec<Vec<u32>>> {
        let vocab_size = runner.model.spec().vocab_size as u64;
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        // Any tokens do, but each sequence has its own: they must not all choose the same experts.
        let mut next_token = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((random >> 33) % vocab_size) as u32
        };
        let mut sequence = |len: usize| (0..len).map(|_| next_token()).collect();
        let contexts: Vec<Vec<u32>> = (0..self.sequences).map(|_| sequence(self.depth)).collect();
        let tokens: Vec<Vec<u32>> = (0..self.sequences).map(|_| sequence(self.tokens)).collect();
        runner.restart();
        runner.feed_each(&contexts, runner.step_tokens() / self.sequences, WantLogits::No)?;
        Ok(tokens)
    }

    /// Does what is measured.
    pub(super) fn feed(&self, runner: &mut Runner, tokens: &[Vec<u32>]) -> Result<()> {
        runner.feed_each(tokens, self.step_tokens(), WantLogits::Last)
    }

    /// Counts what a run reads and does; experts' bytes have been measured.
    pub(super) fn count(&mut self, cost: &Cost, kv_dtype: KvDType) {
        let step_tokens = self.step_tokens();
        let mut work = Work::default();
        for start in (self.depth..self.end()).step_by(step_tokens) {
            let positions = start..self.end().min(start + step_tokens);
            let wanted = self.kind == Kind::Decode || positions.end == self.end();
            let logit_rows = if wanted { self.sequences } else { 0 };
            let sequences = self.sequences;
            work += cost.step(&StepShape { sequences, positions, logit_rows, kv_dtype });
        }
        self.work = Work { expert_bytes: self.work.expert_bytes, ..work };
    }

    /// Predicts the rate from what was measured of the machine. Batches are not predicted.
    pub(super) fn predict(&mut self, cost: &Cost, conditions: &Conditions, limits: &Limits) {
        self.predicted = (self.sequences == 1).then(|| match self.kind {
            Kind::Prefill => prediction::prefill(cost, self.tokens, conditions, limits),
            Kind::Decode => {
                let middle = self.depth + self.tokens / 2;
                prediction::decode(cost, middle, conditions, limits)
            }
        });
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.rates.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub(super) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let n = sorted.len();
        f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2])
    }

    pub(super) fn min_max(&self) -> (f64, f64) {
        let sorted = self.sorted();
        (sorted[0], sorted[sorted.len() - 1])
    }

    /// Of a number for the whole run, that for each token.
    pub(super) fn per_token(&self, of_run: u64) -> f64 {
        of_run as f64 / self.tokens_total() as f64
    }

    /// Of a number for the whole run, that for each second of the median run.
    pub(super) fn per_second(&self, of_run: u64) -> f64 {
        self.per_token(of_run) * self.median()
    }
}

/// The share of `seconds` that `operations` would take at the machine's peaks: that of bytes for
/// quantised weights, or that of bfloats where products and attention are computed `by_tiles`.
pub(super) fn arithmetic_share(
    operations: &Operations,
    seconds: f64,
    limits: &MachineLimits,
    by_tiles: bool,
) -> f64 {
    let tiles = limits.bf16_ops_per_s_best.filter(|_| by_tiles);
    let quantised = tiles.unwrap_or(limits.int8_ops_per_s_best);
    let attended = tiles.unwrap_or(limits.f32_ops_per_s_best);
    let floats = operations.float as f64 / limits.f32_ops_per_s_best;
    let integers = operations.integer as f64 / quantised;
    (integers + floats + operations.attention as f64 / attended) / seconds
}
