//! Multi-head latent attention, always in its absorbed form.
//!
//! Keys and values of all heads are projections of one cached row, `latent ‖ rotated key`. Instead
//! of unpacking it, each query is carried into the latent's space (`W_k · q_nope`), attends there
//! as the many heads of a single key head, and what it gathers is unpacked after (`W_v · latent`).
//! One way for prompt and decode alike, so that the same request gives the same bits; the price is
//! more arithmetic in long prompts, the gain a cache of `latent + rope` values per token.
//!
//! What is per head lies head by head, `[heads, tokens, …]`, so that each head's `W_k` and `W_v`
//! is one product over consecutive rows, and all heads are one parallel region.

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::attention::{AttentionArgs, Mask, Strides, attention};
use moeba_kernels::matmul::{Job, Rows};
use moeba_kernels::ops;

use crate::decoder::{BranchIo, Pass};
use crate::error::LoadError;
use crate::families::names::Role;
use crate::kv::LayerCache;
use crate::observer::{Part, done, multiply};
use crate::rope::Ropes;
use crate::spec::{Mixer, Mla, ModelSpec};
use crate::weights::{Loader, Weight};

use super::attention::rotate;
use super::linear::{JobList, Linear, kinds};
use super::norm::NormLayer;

/// The weights of one layer's latent attention.
#[derive(Debug)]
pub(crate) struct MlaLayer {
    spec: Mla,
    rope: usize,
    pub(crate) query: Query,
    /// `[latent + rope, hidden]`
    pub(crate) latent_down: Linear,
    pub(crate) latent_norm: NormLayer,
    /// `[heads]` of `[latent, nope]`
    pub(crate) to_latent: Vec<Weight>,
    /// `[heads]` of `[v, latent]`
    pub(crate) from_latent: Vec<Weight>,
    /// `[hidden, heads · v]`
    pub(crate) output: Linear,
}

/// How queries are projected.
#[derive(Debug)]
pub(crate) enum Query {
    /// `[heads · (nope + rope), hidden]`
    Direct(Linear),
    /// `[rank, hidden]`, a norm, `[heads · (nope + rope), rank]`
    LowRank { down: Linear, norm: Box<NormLayer>, up: Box<Linear> },
}

/// Buffers for the widest layer and as many tokens as a batch may have.
#[derive(Debug)]
pub(crate) struct MlaScratch {
    /// `[tokens, rank]`, before and after its norm
    low: [Vec<f32>; 2],
    /// `[tokens, heads, nope + rope]`
    query: Vec<f32>,
    /// `[tokens, latent + rope]`
    row: Vec<f32>,
    /// `[heads, tokens, nope]`
    nope: Vec<f32>,
    /// `[heads, tokens, latent]`; what is gathered, after attention
    latent: Vec<f32>,
    /// `[heads, tokens, latent + rope]`
    absorbed: Vec<f32>,
    /// `[heads, tokens, v]`
    value: Vec<f32>,
    /// `[tokens, heads, v]`
    joined: Vec<f32>,
    /// rows `[heads, tokens]`
    acts: Activations,
    jobs: JobList,
}

/// Widths of the buffers of [`MlaScratch`], in the order of its fields.
const WIDTHS: [fn(&Mla) -> usize; 9] = [
    |m| m.q_lora_rank.unwrap_or(0),
    |m| m.q_lora_rank.unwrap_or(0),
    |m| m.num_attention_heads * m.qk_head_dim(),
    Mla::cache_dim,
    |m| m.num_attention_heads * m.qk_nope_head_dim,
    |m| m.num_attention_heads * m.kv_lora_rank,
    |m| m.num_attention_heads * m.cache_dim(),
    |m| m.num_attention_heads * m.v_head_dim,
    |m| m.num_attention_heads * m.v_head_dim,
];

/// The widest of all layers that have this mixer.
fn widest(spec: &ModelSpec, width: fn(&Mla) -> usize) -> usize {
    let widths = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Gqa(_) => None,
        Mixer::Mla(mla) => Some(width(mla)),
    });
    widths.max().unwrap_or(0)
}

/// Rows and columns of the inputs of each head's products, for one token.
fn head_inputs(spec: &ModelSpec) -> [usize; 2] {
    let heads = widest(spec, |mla| mla.num_attention_heads);
    [heads, widest(spec, |mla| mla.qk_nope_head_dim.max(mla.kv_lora_rank))]
}

impl MlaScratch {
    pub(crate) fn new(
        spec: &ModelSpec,
        tokens: usize,
        precision: Precision,
        kinds: ActKinds,
    ) -> MlaScratch {
        let buffers = WIDTHS.map(|width| vec![0.0; widest(spec, width) * tokens]);
        let [low, normed, query, row, nope, latent, absorbed, value, joined] = buffers;
        let [heads, width] = head_inputs(spec);
        MlaScratch {
            low: [low, normed],
            query,
            row,
            nope,
            latent,
            absorbed,
            value,
            joined,
            acts: Activations::with_capacity(heads * tokens, width, precision, kinds),
            jobs: JobList::with_capacity(heads),
        }
    }

    /// Bytes of these buffers for each token of a batch.
    pub(crate) fn bytes_per_token(
        spec: &ModelSpec,
        precision: Precision,
        kinds: ActKinds,
    ) -> usize {
        let floats: usize = WIDTHS.iter().map(|width| widest(spec, *width)).sum();
        let [heads, width] = head_inputs(spec);
        floats * size_of::<f32>() + Activations::num_bytes(heads, width, precision, kinds)
    }
}

impl MlaLayer {
    pub(crate) fn load(
        loader: &mut Loader,
        spec: &Mla,
        layer: usize,
        hidden: usize,
        ropes: &mut Ropes,
    ) -> Result<MlaLayer, LoadError> {
        let heads = spec.num_attention_heads;
        let q_width = heads * spec.qk_head_dim();
        let norm = spec.lora_norm;
        let query = match spec.q_lora_rank {
            None => Query::Direct(linear(loader, Role::Query, layer, [q_width, hidden])?),
            Some(rank) => Query::LowRank {
                down: linear(loader, Role::QueryDown, layer, [rank, hidden])?,
                norm: Box::new(NormLayer::load(loader, norm, Role::QueryDownNorm, layer, rank)?),
                up: Box::new(linear(loader, Role::QueryUp, layer, [q_width, rank])?),
            },
        };
        let latent = spec.kv_lora_rank;
        let latent_down = linear(loader, Role::LatentDown, layer, [spec.cache_dim(), hidden])?;
        let latent_norm = NormLayer::load(loader, norm, Role::LatentNorm, layer, latent)?;
        let (to_latent, from_latent) = load_heads(loader, spec, layer)?;
        let output = linear(loader, Role::Output, layer, [hidden, heads * spec.v_head_dim])?;
        let (spec, rope) = (spec.clone(), ropes.add(&spec.rope));
        Ok(MlaLayer { spec, rope, query, latent_down, latent_norm, to_latent, from_latent, output })
    }

    pub(crate) fn forward(
        &self,
        pass: &Pass,
        cache: &mut LayerCache,
        scratch: &mut MlaScratch,
        branch: BranchIo,
    ) {
        let BranchIo { input, output, acts } = branch;
        let (pool, tokens, spec) = (pass.pool, pass.batch.len(), &self.spec);
        self.project(pass, input, acts, scratch);
        self.position(pass, scratch);
        cache.store(pass.slots, &scratch.row[..tokens * spec.cache_dim()], None);
        done(pass.watch, Part::Positions);
        self.absorb(pass, scratch);

        let heads = spec.num_attention_heads;
        let args = AttentionArgs {
            q: &scratch.absorbed[..heads * tokens * spec.cache_dim()],
            q_strides: Strides::head_major(tokens, spec.cache_dim()),
            num_heads: heads,
            keys: cache.keys(),
            values: cache.values(),
            spans: &pass.batch.spans[..],
            block_ids: &pass.batch.block_ids,
            positions: &pass.batch.positions,
            mask: Mask::Full,
            scale: spec.scale,
            softcap: None,
            sinks: None,
            out_strides: Strides::head_major(tokens, spec.kv_lora_rank),
        };
        let gathered = &mut scratch.latent[..heads * tokens * spec.kv_lora_rank];
        attention(pool, &args, pass.attention, gathered);
        done(pass.watch, Part::Attention);

        self.unpack(pass, scratch);
        let width = heads * spec.v_head_dim;
        let joined = &scratch.joined[..tokens * width];
        acts.set(pool, joined, tokens, width, kinds([&self.output.weight]));
        done(pass.watch, Part::Rounding);
        self.output.forward(pool, pass.watch, acts, output);
        done(pass.watch, Part::Projections);
    }

    /// All matrices.
    pub(crate) fn weights(&self) -> Vec<&Weight> {
        let mut weights = match &self.query {
            Query::Direct(direct) => vec![&direct.weight],
            Query::LowRank { down, up, .. } => vec![&down.weight, &up.weight],
        };
        weights.extend(self.to_latent.iter().chain(&self.from_latent));
        weights.extend([&self.latent_down.weight, &self.output.weight]);
        weights
    }

    /// Queries `[tokens, heads, nope + rope]` and rows `[tokens, latent + rope]`, before rope.
    fn project(&self, pass: &Pass, input: &[f32], acts: &mut Activations, s: &mut MlaScratch) {
        let (pool, tokens) = (pass.pool, pass.batch.len());
        let row = &mut s.row[..tokens * self.spec.cache_dim()];
        let query_width = self.spec.num_attention_heads * self.spec.qk_head_dim();
        let query = &mut s.query[..tokens * query_width];
        let first = match &self.query {
            Query::Direct(direct) => direct,
            Query::LowRank { down, .. } => down,
        };
        let both = kinds([&first.weight, &self.latent_down.weight]);
        acts.set(pool, input, tokens, input.len() / tokens, both);
        done(pass.watch, Part::Rounding);
        let down_row = self.latent_down.job(acts, 0..tokens, row);
        let weights = [&first.weight, &self.latent_down.weight];
        let name_of = |index: usize| weights[index].name();
        match &self.query {
            Query::Direct(direct) => {
                let mut jobs = [direct.job(acts, 0..tokens, query), down_row];
                multiply(pool, pass.watch, &mut jobs, name_of);
            }
            Query::LowRank { down, norm, up } => {
                let rank = down.weight.rows();
                let [low, normed] = s.low.each_mut().map(|low| &mut low[..tokens * rank]);
                let mut jobs = [down.job(acts, 0..tokens, low), down_row];
                multiply(pool, pass.watch, &mut jobs, name_of);
                done(pass.watch, Part::Projections);
                norm.rows(pool, low, normed);
                done(pass.watch, Part::Norms);
                acts.set(pool, normed, tokens, rank, kinds([&up.weight]));
                done(pass.watch, Part::Rounding);
                up.forward(pool, pass.watch, acts, query);
            }
        }
        done(pass.watch, Part::Projections);
    }

    /// Norms the latents, rotates what has positions, and lays queries out head by head.
    fn position(&self, pass: &Pass, scratch: &mut MlaScratch) {
        let (spec, tokens) = (&self.spec, pass.batch.len());
        let (nope, rope, latent) =
            (spec.qk_nope_head_dim, spec.qk_rope_head_dim, spec.kv_lora_rank);
        let (row_dim, q_width) = (spec.cache_dim(), spec.num_attention_heads * spec.qk_head_dim());
        let table = &pass.ropes[self.rope];
        let rows = &mut scratch.row[..tokens * row_dim];
        pass.pool.for_each_row(rows, row_dim, |token, row| {
            let (latent, key) = row.split_at_mut(latent);
            self.latent_norm.in_place(latent);
            rotate(spec.rope.pairing, table, token, key, rope);
        });
        let query = &scratch.query[..tokens * q_width];
        let head_of = |index: usize| {
            let (head, token) = (index / tokens, index % tokens);
            let start = token * q_width + head * spec.qk_head_dim();
            (token, &query[start..start + spec.qk_head_dim()])
        };
        let rows = spec.num_attention_heads * tokens;
        pass.pool.for_each_row(&mut scratch.nope[..rows * nope], nope, |index, out| {
            out.copy_from_slice(&head_of(index).1[..nope]);
        });
        let absorbed = &mut scratch.absorbed[..rows * row_dim];
        pass.pool.for_each_row(absorbed, row_dim, |index, out| {
            let (token, head) = head_of(index);
            let rotated = &mut out[latent..];
            rotated.copy_from_slice(&head[nope..]);
            rotate(spec.rope.pairing, table, token, rotated, rope);
        });
    }

    /// Carries each query's part without positions into the latent's space.
    fn absorb(&self, pass: &Pass, scratch: &mut MlaScratch) {
        let (spec, pool, tokens) = (&self.spec, pass.pool, pass.batch.len());
        let (nope, latent, row_dim) = (spec.qk_nope_head_dim, spec.kv_lora_rank, spec.cache_dim());
        let rows = spec.num_attention_heads * tokens;
        let MlaScratch { acts, jobs, nope: queries, latent: carried, absorbed, .. } = scratch;
        acts.set_shared(
            pool,
            &queries[..rows * nope],
            [rows, nope],
            kinds(&self.to_latent),
            tokens,
        );
        done(pass.watch, Part::Rounding);
        let carried = &mut carried[..rows * latent];
        each_head(pass, jobs, &self.to_latent, acts, carried);
        let carried = &*carried;
        pool.for_each_row(&mut absorbed[..rows * row_dim], row_dim, |index, out| {
            out[..latent].copy_from_slice(&carried[index * latent..(index + 1) * latent]);
            let scale = spec.query_scale.at(pass.batch.positions[index % tokens]);
            if scale != 1.0 {
                ops::scale_assign(out, scale);
            }
        });
        done(pass.watch, Part::Positions);
    }

    /// Turns what each head gathered into its value, and joins the heads of each token.
    fn unpack(&self, pass: &Pass, scratch: &mut MlaScratch) {
        let (spec, pool, tokens) = (&self.spec, pass.pool, pass.batch.len());
        let (latent, width) = (spec.kv_lora_rank, spec.v_head_dim);
        let rows = spec.num_attention_heads * tokens;
        let MlaScratch { acts, jobs, latent: gathered, value, joined, .. } = scratch;
        let gathered = &gathered[..rows * latent];
        acts.set_shared(pool, gathered, [rows, latent], kinds(&self.from_latent), tokens);
        done(pass.watch, Part::Rounding);
        let value = &mut value[..rows * width];
        each_head(pass, jobs, &self.from_latent, acts, value);
        let (value, heads) = (&*value, spec.num_attention_heads);
        pool.for_each_row(&mut joined[..tokens * heads * width], heads * width, |token, out| {
            for (head, out) in out.chunks_exact_mut(width).enumerate() {
                let start = (head * tokens + token) * width;
                out.copy_from_slice(&value[start..start + width]);
            }
        });
        done(pass.watch, Part::Positions);
    }
}

/// Multiplies the rows of each head with that head's weights: rows `[heads, tokens]` of `acts` to
/// `output` `[heads, tokens, weight rows]`.
fn each_head(
    pass: &Pass,
    jobs: &mut JobList,
    weights: &[Weight],
    acts: &Activations,
    output: &mut [f32],
) {
    let tokens = pass.batch.len();
    let width = weights[0].rows();
    jobs.run(
        pass.pool,
        pass.watch,
        |head| weights[head].name(),
        |jobs| {
            let outputs = output.chunks_exact_mut(tokens * width);
            for (head, (weight, output)) in weights.iter().zip(outputs).enumerate() {
                let rows = Rows::Range(head * tokens..(head + 1) * tokens);
                let weight = weight.matrix();
                jobs.push(Job { weight, input: acts, input_col: 0, rows, output });
            }
        },
    );
    done(pass.watch, Part::Projections);
}

fn linear(
    loader: &mut Loader,
    role: Role,
    layer: usize,
    shape: [usize; 2],
) -> Result<Linear, LoadError> {
    Ok(Linear { weight: loader.matrix(role, layer, shape)?, bias: None })
}

/// Each head's way into the latent's space and out of it. Files hold them apart and ready, or as
/// one matrix whose key half has to be turned, once.
fn load_heads(
    loader: &mut Loader,
    spec: &Mla,
    layer: usize,
) -> Result<(Vec<Weight>, Vec<Weight>), LoadError> {
    let (heads, latent) = (spec.num_attention_heads, spec.kv_lora_rank);
    let (nope, v) = (spec.qk_nope_head_dim, spec.v_head_dim);
    if loader.has(Role::LatentKey, layer) {
        let keys = loader.stack(Role::LatentKey, layer, heads, [latent, nope])?;
        return Ok((keys, loader.stack(Role::LatentValue, layer, heads, [v, latent])?));
    }
    let both = loader.matrix(Role::LatentUp, layer, [heads * (nope + v), latent])?;
    if both.num_bytes() == 0 {
        // Missing, which the loader reports after this layer.
        return Ok((vec![both.clone(); heads], vec![both; heads]));
    }
    let keys = loader.turned_heads(&both, heads, nope)?;
    let values = (0..heads).map(|head| both.slice_rows(head * (nope + v) + nope, v)).collect();
    Ok((keys, values))
}
