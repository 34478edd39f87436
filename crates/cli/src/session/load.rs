//! From files to a session: weights, memory, engine, words.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use moeba_engine::{Decoder, Engine, Forward, Limits, ReferenceDecoder};
use moeba_kernels::os::cpu;
use moeba_kernels::pool::Pool;
use moeba_model::batch::BLOCK_TOKENS;
use moeba_model::files;
use moeba_model::kv::KvCache;
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::reference;
use moeba_model::workspace::Workspace;
use moeba_model::{LoadOptions, Model};

use super::{Advice, Session, Words};
use crate::args::KvType;
use crate::machine;
use crate::runner::{ANSWER_LOGITS_MAX, step_tokens_max};
use crate::settings::Settings;

/// Tokens of context where nobody says otherwise.
pub(crate) const CTX_DEFAULT: usize = 4096;

/// What to load and how much room to give it.
#[derive(Debug)]
pub(crate) struct LoadPlan {
    /// The model.
    pub(crate) path: PathBuf,
    /// Tokens of context.
    pub(crate) ctx: usize,
    /// The user named `ctx`, so it is not quietly lowered to what the model claims.
    pub(crate) ctx_is_asked: bool,
    /// Format of the key/value cache.
    pub(crate) kv_type: KvType,
    /// Compute the plain way instead of the fast one.
    pub(crate) reference: bool,
}

impl Session {
    /// Loads a model and starts its engine.
    ///
    /// # Errors
    /// If the files are wrong, the memory does not suffice, or there is no tokenizer.
    pub(crate) fn load(plan: &LoadPlan, settings: &Settings) -> Result<Self> {
        let start = Instant::now();
        let files = files::open(&plan.path)?;
        if files.tensors.is_empty() {
            bail!("`{}` holds no weights, only a configuration", plan.path.display());
        }
        let words = Words::of_files(&files)?;
        let advice = Advice::of_files(&files)?;
        let context_tokens = Some(plan.ctx);
        let options = LoadOptions { context_tokens, ..settings.load_options() };
        let model = Model::from_files(&files, &options)?;
        let claimed = model.spec().context_length;
        if plan.ctx_is_asked && plan.ctx > claimed {
            bail!("--ctx {} is more than the model's context of {claimed} tokens", plan.ctx);
        }
        let pool = machine::pool(settings)?;
        let demand = Demand {
            context_tokens: plan.ctx.min(claimed),
            kv_dtype: plan.kv_type.into(),
            tokens_max: step_tokens_max(settings.precision),
            logit_rows_max: ANSWER_LOGITS_MAX,
            threads: pool.threads(),
            precision: settings.precision,
            input_kinds: model.input_kinds(),
        };
        let mut available = cpu::ram().available as u64;
        if plan.reference {
            // Keys and values of another kind come on top of what is planned.
            let blocks = demand.context_tokens.div_ceil(BLOCK_TOKENS) as u64;
            let taken = reference::Cache::bytes_per_block(model.spec()) * blocks;
            available = available.saturating_sub(taken);
        }
        // What was made anew in memory is no longer available, and its original is read once.
        let weights = files.tensors.total_bytes().saturating_sub(model.turned_bytes());
        let memory = MemoryPlan::new(model.spec(), weights, &demand, available)?;
        let notes = model.notes().to_vec();
        let decoder = decoder(plan, model, pool, &memory)?;
        let limits = Limits {
            sequences_max: 1,
            batch_tokens_max: memory.tokens_max.min(decoder.batch_tokens_max()),
            eos_tokens: words.tokenizer.special().end_of_generation.clone(),
            ..Limits::default()
        };
        let engine = Engine::start(decoder, limits);
        Ok(Self { engine, words, advice, notes, load_time: start.elapsed() })
    }
}

/// The model with the room that was planned, fast or plain.
fn decoder(
    plan: &LoadPlan,
    model: Model,
    pool: Pool,
    &MemoryPlan { num_blocks, tokens_max, .. }: &MemoryPlan,
) -> Result<Box<dyn Forward + Send>> {
    if plan.reference {
        return Ok(Box::new(ReferenceDecoder::new(model, pool, num_blocks)));
    }
    let cache = KvCache::new(model.spec(), num_blocks, plan.kv_type.into())
        .context("no memory for the cache of keys and values")?;
    let workspace = Workspace::new(&model, &pool, tokens_max, ANSWER_LOGITS_MAX);
    Ok(Box::new(Decoder::new(model, pool, cache, workspace)))
}
