//! A loaded model as the engine sees it: weights, threads, cache and scratch in one piece.

use moeba_kernels::pool::Pool;
use moeba_model::Model;
use moeba_model::batch::Batch;
use moeba_model::kv::KvCache;
use moeba_model::workspace::Workspace;

use crate::forward::{Forward, StepError, StepStats};

/// A real [`Forward`]. The parts must have been made for each other.
#[derive(Debug)]
pub struct Decoder {
    model: Model,
    pool: Pool,
    cache: KvCache,
    workspace: Workspace,
    pinned: bool,
}

impl Decoder {
    /// Joins a model, the threads it computes on, a cache and scratch made for it.
    pub fn new(model: Model, pool: Pool, cache: KvCache, workspace: Workspace) -> Decoder {
        Decoder { model, pool, cache, workspace, pinned: false }
    }
}

impl Forward for Decoder {
    fn forward(&mut self, batch: &Batch) -> Result<StepStats, StepError> {
        if !self.pinned {
            // Here and not in `new`, which runs on another thread than the engine's.
            self.pool.pin_caller();
            self.pinned = true;
        }
        // Whatever fails, an expert that cannot be read or a batch that does not fit, others may
        // do without it: the engine finds out who needs it.
        self.model
            .forward(&self.pool, batch, &mut self.cache, &mut self.workspace)
            .map_err(|error| StepError::Batch(error.to_string()))?;
        Ok(StepStats { expert_bytes: self.workspace.expert_bytes() })
    }

    fn logits(&self, row: usize) -> &[f32] {
        let width = self.vocab_size();
        &self.workspace.logits()[row * width..][..width]
    }

    fn vocab_size(&self) -> usize {
        self.model.spec().vocab_size
    }

    fn context_length(&self) -> usize {
        self.model.spec().context_length
    }

    fn num_blocks(&self) -> usize {
        self.cache.num_blocks()
    }

    fn batch_tokens_max(&self) -> usize {
        self.workspace.tokens_max()
    }

    fn logit_rows_max(&self) -> usize {
        self.workspace.logit_rows_max()
    }
}
