//! A model driven directly, no engine: for commands that measure or record. There is one sequence,
//! or some that go on in step with each other.

use anyhow::{Context, Result, ensure};
use moeba_engine::DRAFT_TOKENS_MAX;
use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;
use moeba_kernels::os::cpu;
use moeba_kernels::pool::Pool;
use moeba_model::Model;
use moeba_model::batch::{BLOCK_TOKENS, Batch, WantLogits};
use moeba_model::kv::KvCache;
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::observer::Observer;
use moeba_model::profile::Profile;
use moeba_model::reference;
use moeba_model::workspace::Workspace;

/// Most tokens of one step, if there is memory.
pub(crate) fn step_tokens_max(precision: Precision) -> usize {
    if precision.has_bfloats() { 2048 } else { 512 }
}

/// Most tokens of a step that wants logits of every token: they are wide.
pub(crate) const STEP_LOGITS_MAX: usize = 32;

/// Rows of logits of a step that answers one conversation: of a token, and of those guessed.
pub(crate) const ANSWER_LOGITS_MAX: usize = 1 + DRAFT_TOKENS_MAX;

/// A model with room for one sequence, or for some shorter ones.
pub(crate) struct Runner {
    pub(crate) model: Model,
    pool: Pool,
    cache: KvCache,
    workspace: Workspace,
    batch: Batch,
    blocks: Vec<u32>,
    position: usize,
    /// Keys and values of the plain path, if that is to be used.
    reference: Option<reference::Cache>,
    /// Bytes of expert weights read since the start.
    pub(crate) expert_bytes: u64,
    /// Who looks where the time goes, if somebody does.
    pub(crate) profile: Option<Profile>,
}

impl Runner {
    /// Makes room for `tokens` tokens.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub(crate) fn new(model: Model, pool: Pool, tokens: usize, kv: KvDType) -> Result<Self> {
        let demand = Demand {
            context_tokens: tokens,
            kv_dtype: kv,
            tokens_max: step_tokens_max(model.precision()),
            logit_rows_max: STEP_LOGITS_MAX,
            threads: pool.threads(),
            precision: model.precision(),
            input_kinds: model.input_kinds(),
        };
        let available = cpu::ram().available as u64;
        let plan = MemoryPlan::new(model.spec(), model.num_bytes(), &demand, available)?;
        let num_blocks = plan.num_blocks;
        let cache = KvCache::new(model.spec(), num_blocks, kv)
            .context("no memory for the cache of keys and values")?;
        let workspace = Workspace::new(&model, &pool, plan.tokens_max, STEP_LOGITS_MAX);
        Ok(Self {
            model,
            pool,
            cache,
            workspace,
            batch: Batch::with_capacity(plan.tokens_max, num_blocks),
            blocks: (0..num_blocks as u32).collect(),
            position: 0,
            reference: None,
            expert_bytes: 0,
            profile: None,
        })
    }

    /// Computes the plain way from now on, from the beginning of a sequence.
    pub(crate) fn use_reference(&mut self) {
        self.reference = Some(reference::Cache::new(&self.model, self.blocks.len()));
        self.position = 0;
    }

    /// Workers that compute.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Starts to look where the time goes.
    pub(crate) fn start_profile(&mut self) {
        self.profile = Some(Profile::new(&self.model, &self.pool));
    }

    /// Most tokens of one step.
    pub(crate) fn step_tokens(&self) -> usize {
        self.workspace.tokens_max()
    }

    /// Begins a new sequence, or new ones.
    pub(crate) fn restart(&mut self) {
        self.position = 0;
    }

    /// Appends tokens; only the last one's logits are computed.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub(crate) fn feed(&mut self, tokens: &[u32]) -> Result<()> {
        let chunks = tokens.len().div_ceil(self.step_tokens());
        for (i, chunk) in tokens.chunks(self.step_tokens()).enumerate() {
            let want = if i + 1 == chunks { WantLogits::Last } else { WantLogits::No };
            self.step(chunk, want)?;
        }
        Ok(())
    }

    /// Appends to each of some sequences its own tokens, all equally many, `step_tokens` of each in
    /// a step. `want` says which logits are computed in the last step, and in every step that
    /// takes one token of each.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub(crate) fn feed_each(
        &mut self,
        sequences: &[Vec<u32>],
        step_tokens: usize,
        want: WantLogits,
    ) -> Result<()> {
        let len = sequences.first().map_or(0, Vec::len);
        for start in (0..len).step_by(step_tokens) {
            let end = len.min(start + step_tokens);
            let wanted = end == len || step_tokens == 1;
            self.batch.clear();
            for (index, tokens) in sequences.iter().enumerate() {
                let want = if wanted { want } else { WantLogits::No };
                self.push(&tokens[start..end], want, (index, sequences.len()))?;
            }
            self.run()?;
            self.position += end - start;
        }
        Ok(())
    }

    /// Appends tokens while `observer` looks on; the last one's logits are computed.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub(crate) fn feed_watched(&mut self, tokens: &[u32], observer: &dyn Observer) -> Result<()> {
        for chunk in tokens.chunks(self.step_tokens()) {
            self.batch.clear();
            self.push(chunk, WantLogits::Last, (0, 1))?;
            let Self { model, pool, batch, cache, workspace, .. } = self;
            model.forward_observed(pool, batch, cache, workspace, observer)?;
            self.position += chunk.len();
        }
        Ok(())
    }

    /// Appends tokens and hands out the logits of each, some rows `[rows, vocab]` at a time.
    ///
    /// # Errors
    /// If the model cannot be run or `on_logits` fails.
    pub(crate) fn score(
        &mut self,
        tokens: &[u32],
        mut on_logits: impl FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        for chunk in tokens.chunks(STEP_LOGITS_MAX) {
            match self.step(chunk, WantLogits::All)? {
                Some(logits) => on_logits(&logits)?,
                None => on_logits(self.workspace.logits())?,
            }
        }
        Ok(())
    }

    /// Runs one step. Its logits are in the workspace, unless they are answered with.
    fn step(&mut self, tokens: &[u32], want: WantLogits) -> Result<Option<Vec<f32>>> {
        self.batch.clear();
        self.push(tokens, want, (0, 1))?;
        self.position += tokens.len();
        if let Some(cache) = &mut self.reference {
            return Ok(Some(reference::forward(&self.model, &self.pool, &self.batch, cache)?));
        }
        self.run()?;
        Ok(None)
    }

    /// Runs the batch.
    fn run(&mut self) -> Result<()> {
        let Self { model, pool, batch, cache, workspace, .. } = self;
        match &self.profile {
            None => model.forward(pool, batch, cache, workspace)?,
            Some(profile) => {
                profile.begin();
                model.forward_observed(pool, batch, cache, workspace, profile)?;
            }
        }
        self.expert_bytes += self.workspace.expert_bytes();
        Ok(())
    }

    /// Puts the next tokens of a sequence into the batch: of the `index`-th of `count` that share
    /// the cache.
    fn push(
        &mut self,
        tokens: &[u32],
        want: WantLogits,
        (index, count): (usize, usize),
    ) -> Result<()> {
        let end = self.position + tokens.len();
        let room = self.blocks.len() / count;
        ensure!(
            end <= room * BLOCK_TOKENS,
            "`{end}` tokens in a cache for {}",
            room * BLOCK_TOKENS
        );
        let first = index * room;
        let blocks = &self.blocks[first..first + end.div_ceil(BLOCK_TOKENS)];
        self.batch.push_span(tokens, self.position as u32, blocks, want);
        Ok(())
    }
}
