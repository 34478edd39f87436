//! What the engine needs of a model, and nothing more.
//!
//! The engine schedules against this trait; the real model implements it in [`crate::decoder`],
//! a deterministic fake does in the simulator.

use moeba_model::batch::Batch;

/// A model with its cache and scratch memory: tokens of many sequences in, logits out.
pub trait Forward {
    /// Runs one step: writes keys and values of every token into the batch's blocks and computes
    /// the logits of `batch.logit_rows`. Running the same batch again gives the same result, so a
    /// step that failed may be repeated.
    ///
    /// # Errors
    /// Nothing was computed for anybody; the kind says what the engine can do about it.
    fn forward(&mut self, batch: &Batch) -> Result<StepStats, StepError>;

    /// Logits of `batch.logit_rows[row]` of the last step that succeeded: `[vocab_size]`.
    fn logits(&self, row: usize) -> &[f32];

    /// Number of tokens in the vocabulary, which is the length of a row of logits.
    fn vocab_size(&self) -> usize;

    /// The most tokens a sequence may have.
    fn context_length(&self) -> usize;

    /// Number of cache blocks, of [`moeba_model::batch::BLOCK_TOKENS`] tokens each.
    fn num_blocks(&self) -> usize;

    /// The most tokens a step may have.
    fn batch_tokens_max(&self) -> usize;

    /// The most rows of logits a step may ask for.
    fn logit_rows_max(&self) -> usize;
}

/// What a step cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Bytes of expert weights read.
    pub expert_bytes: u64,
}

/// A step failed. The engine ends as few requests as it can.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// These spans of the batch cannot be computed; the others could. The engine ends the blamed
    /// requests and repeats the step without them.
    #[error("{message}")]
    Spans {
        /// Indices into `batch.spans`.
        spans: Vec<usize>,
        /// What went wrong.
        message: String,
    },
    /// The step failed and nobody can be blamed. The engine repeats it one sequence at a time and
    /// ends those that fail alone.
    #[error("{0}")]
    Batch(String),
    /// The model cannot be used any more; the engine stops.
    #[error("{0}")]
    Fatal(String),
}
