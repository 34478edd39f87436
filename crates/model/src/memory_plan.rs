//! Where memory goes before anything is loaded: weights, cache and workspace, or a clear refusal.

use std::fmt;

use moeba_kernels::activations::{ActKinds, Precision};
use moeba_kernels::attention::{BLOCK_TOKENS, KvDType};

use crate::kv::KvCache;
use crate::spec::ModelSpec;
use crate::workspace::Workspace;

/// What is asked of the memory.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Tokens all sequences together may keep in the cache.
    pub context_tokens: usize,
    /// How cached numbers are stored.
    pub kv_dtype: KvDType,
    /// Most tokens of one step; fewer are planned for where their scratch would take more than an
    /// eighth of the memory.
    pub tokens_max: usize,
    /// Most rows of logits of one step.
    pub logit_rows_max: usize,
    /// Workers of the pool.
    pub threads: usize,
    /// How finely the inputs of quantised weights are rounded.
    pub precision: Precision,
    /// The forms of inputs its weights are multiplied with.
    pub input_kinds: ActKinds,
}

/// Bytes by what they are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// All weights.
    pub weights: u64,
    /// Cached keys and values.
    pub kv_cache: u64,
    /// How many blocks of 16 tokens the cache has.
    pub num_blocks: usize,
    /// Scratch of a step.
    pub workspace: u64,
    /// Most tokens of one step.
    pub tokens_max: usize,
}

/// Steps are not cut shorter than this to save memory.
const STEP_TOKENS_MIN: usize = 512;

/// The memory does not suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct NotEnough {
    /// What would be needed.
    pub plan: MemoryPlan,
    /// What there is, in bytes.
    pub have: u64,
    /// The longest context that would fit, in tokens; 0 if not even one block does.
    pub context_tokens_max: usize,
}

impl MemoryPlan {
    /// Plans for a model whose weights take `weights` bytes, within `have` bytes.
    ///
    /// # Errors
    /// If they do not suffice.
    pub fn new(
        spec: &ModelSpec,
        weights: u64,
        demand: &Demand,
        have: u64,
    ) -> Result<MemoryPlan, NotEnough> {
        let num_blocks = demand.context_tokens.div_ceil(BLOCK_TOKENS).max(1);
        let block = KvCache::bytes_per_block(spec, demand.kv_dtype);
        let workspace = |tokens_max| {
            let inputs = (demand.precision, demand.input_kinds);
            Workspace::num_bytes(spec, demand.threads, tokens_max, demand.logit_rows_max, inputs)
        };
        let mut tokens_max = demand.tokens_max;
        while tokens_max > STEP_TOKENS_MIN && workspace(tokens_max) > have / 8 {
            tokens_max = (tokens_max / 2).max(STEP_TOKENS_MIN);
        }
        let plan = MemoryPlan {
            weights,
            kv_cache: block.saturating_mul(num_blocks as u64),
            num_blocks,
            workspace: workspace(tokens_max),
            tokens_max,
        };
        if plan.total() <= have {
            return Ok(plan);
        }
        let left = have.saturating_sub(weights.saturating_add(plan.workspace));
        let blocks = (left / block.max(1)) as usize;
        Err(NotEnough { plan, have, context_tokens_max: blocks.saturating_mul(BLOCK_TOKENS) })
    }

    /// Bytes of everything.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.workspace)
    }
}

impl fmt::Display for NotEnough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MemoryPlan { weights, kv_cache, workspace, .. } = self.plan;
        write!(
            f,
            "not enough memory: need {} (weights {}, cache {}, workspace {}), have {}",
            gib(self.plan.total()),
            gib(weights),
            gib(kv_cache),
            gib(workspace),
            gib(self.have)
        )?;
        match self.context_tokens_max {
            0 if weights > self.have => {
                write!(f, "; the weights alone do not fit: choose a smaller model or format")
            }
            0 if weights.saturating_add(workspace) > self.have => {
                write!(
                    f,
                    "; the workspace does not fit beside the weights: run fewer tokens at once"
                )
            }
            0 => write!(f, "; no cache fits beside weights and workspace"),
            tokens => write!(f, "; a context of {tokens} tokens would fit"),
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
