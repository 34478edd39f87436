//! All scratch of a step, sized once: a step allocates nothing.
//!
//! Buffers are as long as the largest batch needs. Untouched pages cost no memory, so a workspace
//! for long prompts is cheap while only single tokens are decoded.

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::attention::{AttentionScratch, BLOCK_TOKENS};
use moeba_kernels::pool::Pool;

use crate::Model;
use crate::batch::Batch;
use crate::layers::attention::GqaScratch;
use crate::layers::dense_ffn::DenseScratch;
use crate::layers::mla::MlaScratch;
use crate::layers::moe::MoeScratch;
use crate::rope::{RopeTable, Ropes};
use crate::routing::Routing;
use crate::spec::{Ffn, Mixer, ModelSpec};

/// Scratch and results of one forward pass at a time.
#[derive(Debug)]
pub struct Workspace {
    tokens_max: usize,
    logit_rows_max: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// The residual stream, `[tokens, hidden]` of the batch under way.
    pub(crate) stream: Vec<f32>,
    /// The input of a branch, `[tokens, hidden]`.
    pub(crate) normed: Vec<f32>,
    /// The output of a branch, `[tokens, hidden]`.
    pub(crate) branch: Vec<f32>,
    pub(crate) acts: Activations,
    /// Cache slot of each token, `[tokens]`.
    pub(crate) slots: Vec<u32>,
    pub(crate) ropes: Vec<RopeTable>,
    pub(crate) attention: AttentionScratch,
    pub(crate) mixers: MixerScratch,
    pub(crate) ffns: FfnScratch,
    /// `[logit_rows, vocab]` of the batch under way
    pub(crate) logits: Vec<f32>,
    pub(crate) routing: Routing,
    /// Bytes of experts' weights the step read.
    pub(crate) expert_bytes: u64,
}

/// Buffers of each kind of mixer the model has.
#[derive(Debug)]
pub(crate) struct MixerScratch {
    pub(crate) gqa: GqaScratch,
    pub(crate) mla: MlaScratch,
}

/// Buffers of each kind of feed-forward network the model has.
#[derive(Debug)]
pub(crate) struct FfnScratch {
    pub(crate) dense: DenseScratch,
    pub(crate) moe: MoeScratch,
}

impl Workspace {
    /// Scratch for batches of up to `tokens_max` tokens of which up to `logit_rows_max` want
    /// logits, on workers of `pool` (or of any pool with as many).
    pub fn new(model: &Model, pool: &Pool, tokens_max: usize, logit_rows_max: usize) -> Workspace {
        let spec = &model.spec;
        let widths = Widths::of(spec);
        let rows = tokens_max * spec.hidden_size;
        let (precision, kinds) = (model.precision(), model.input_kinds());
        Workspace {
            tokens_max,
            logit_rows_max,
            hidden: spec.hidden_size,
            stream: Vec::with_capacity(rows),
            normed: Vec::with_capacity(rows),
            branch: Vec::with_capacity(rows),
            acts: Activations::with_capacity(tokens_max, widths.input, precision, kinds),
            slots: Vec::with_capacity(tokens_max),
            ropes: model.ropes.0.iter().map(|rope| RopeTable::new(rope, tokens_max)).collect(),
            attention: AttentionScratch::new(pool.threads(), widths.key, widths.value, precision),
            mixers: MixerScratch {
                gqa: GqaScratch::new(spec, tokens_max),
                mla: MlaScratch::new(spec, tokens_max, precision, kinds),
            },
            ffns: FfnScratch {
                dense: DenseScratch::new(widths.dense, tokens_max),
                moe: MoeScratch::new(spec, tokens_max, precision, kinds),
            },
            logits: Vec::with_capacity(logit_rows_max * spec.vocab_size),
            routing: Routing::default(),
            expert_bytes: 0,
        }
    }

    /// Bytes a workspace of this size takes when all of it is in use. Last comes how finely inputs
    /// are rounded, and to which forms.
    pub fn num_bytes(
        spec: &ModelSpec,
        threads: usize,
        tokens_max: usize,
        logit_rows_max: usize,
        (precision, kinds): (Precision, ActKinds),
    ) -> u64 {
        let widths = Widths::of(spec);
        let floats = 3 * spec.hidden_size + 1 + 2 * widths.dense;
        let per_token = floats * size_of::<f32>()
            + Activations::num_bytes(1, widths.input, precision, kinds)
            + GqaScratch::bytes_per_token(spec)
            + MlaScratch::bytes_per_token(spec, precision, kinds)
            + MoeScratch::bytes_per_token(spec, precision, kinds)
            + widths.ropes * size_of::<f32>();
        let logits = logit_rows_max * spec.vocab_size * size_of::<f32>();
        let attention = AttentionScratch::num_bytes(threads, widths.key, widths.value, precision);
        (per_token * tokens_max + logits + attention) as u64
    }

    /// Most tokens a batch may have.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Most rows of logits a batch may ask for.
    pub fn logit_rows_max(&self) -> usize {
        self.logit_rows_max
    }

    /// The logits of the last step, `[logit_rows, vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Bytes of experts' weights the last step read; each expert at work counts once.
    pub fn expert_bytes(&self) -> u64 {
        self.expert_bytes
    }

    /// Which experts fired in the last step; empty unless recording is on.
    pub fn routing(&self) -> &Routing {
        &self.routing
    }

    /// Records routing from the next step on, or stops doing so. Sets memory aside.
    pub fn record_routing(&mut self, model: &Model, on: bool) {
        let tokens = if on { self.tokens_max } else { 0 };
        self.routing = Routing::with_room(&model.spec, tokens);
    }

    /// Takes the shape of a batch that has been checked to fit.
    pub(crate) fn begin(&mut self, batch: &Batch, vocab_size: usize) {
        let rows = batch.len() * self.hidden;
        for buffer in [&mut self.stream, &mut self.normed, &mut self.branch] {
            buffer.resize(rows, 0.0);
        }
        self.logits.resize(batch.logit_rows.len() * vocab_size, 0.0);
        self.slots.clear();
        for span in &batch.spans {
            let blocks = &batch.block_ids[span.blocks.clone()];
            self.slots.extend(batch.positions[span.tokens.clone()].iter().map(|&position| {
                let (block, token) =
                    (position as usize / BLOCK_TOKENS, position as usize % BLOCK_TOKENS);
                blocks[block] * BLOCK_TOKENS as u32 + token as u32
            }));
        }
        for rope in &mut self.ropes {
            rope.set(&batch.positions);
        }
        self.routing.begin();
        self.expert_bytes = 0;
    }
}

/// The widest rows that buffers shared by all layers have to hold.
struct Widths {
    /// Inputs of products, beside those layers hold themselves.
    input: usize,
    /// One head's key.
    key: usize,
    /// One head's value.
    value: usize,
    /// Between up and down of a dense network.
    dense: usize,
    /// Angles of all distinct ropes of a token, twice.
    ropes: usize,
}

impl Widths {
    fn of(spec: &ModelSpec) -> Widths {
        let mut widths = Widths { input: spec.hidden_size, key: 1, value: 1, dense: 0, ropes: 0 };
        let mut ropes = Ropes::default();
        for layer in &spec.layers {
            let (input, key, value) = match &layer.mixer {
                Mixer::Gqa(gqa) => {
                    gqa.rope.iter().for_each(|rope| _ = ropes.add(rope));
                    (gqa.query_width(), gqa.head_dim, gqa.head_dim)
                }
                Mixer::Mla(mla) => {
                    ropes.add(&mla.rope);
                    let joined = mla.num_attention_heads * mla.v_head_dim;
                    let input = joined.max(mla.q_lora_rank.unwrap_or(0));
                    (input, mla.cache_dim(), mla.kv_lora_rank)
                }
            };
            let dense = match &layer.ffn {
                Ffn::Dense(dense) => dense.intermediate_size,
                Ffn::Moe(_) => 0,
            };
            widths.input = widths.input.max(input).max(dense);
            widths.key = widths.key.max(key);
            widths.value = widths.value.max(value);
            widths.dense = widths.dense.max(dense);
        }
        widths.ropes = ropes.0.iter().map(|rope| rope.dim).sum();
        widths
    }
}
