//! A model with its cache and scratch, as the engine wants to see one.

use moeba_engine::{Forward, StepError, StepStats};
use moeba_kernels::pool::Pool;
use moeba_model::batch::Batch;
use moeba_model::kv::KvCache;
use moeba_model::workspace::Workspace;
use moeba_model::{ForwardError, Model};

/// Everything a step needs.
pub(super) struct Decoder {
    pub(super) model: Model,
    pub(super) pool: Pool,
    pub(super) cache: KvCache,
    pub(super) workspace: Workspace,
}

impl Forward for Decoder {
    fn forward(&mut self, batch: &Batch) -> Result<StepStats, StepError> {
        let step = self.model.forward(&self.pool, batch, &mut self.cache, &mut self.workspace);
        match step {
            Ok(()) => {
                Ok(StepStats { expert_bytes: self.workspace.expert_bytes(), experts_used: 0 })
            }
            Err(error @ ForwardError::Batch(_)) => Err(StepError::Fatal(error.to_string())),
            Err(error) => Err(StepError::Batch(error.to_string())),
        }
    }

    fn logits(&self, row: usize) -> &[f32] {
        let width = self.vocab_size();
        &self.workspace.logits()[row * width..(row + 1) * width]
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
