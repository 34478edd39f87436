//! Grouped-query attention: project, norm, rotate, cache, attend, project back.

use moeba_kernels::activations::Activations;
use moeba_kernels::attention::{AttentionArgs, Strides, attention};
use moeba_kernels::ops;

use crate::decoder::{BranchIo, Pass};
use crate::error::LoadError;
use crate::families::names::Role;
use crate::kv::LayerCache;
use crate::observer::{Part, done, multiply};
use crate::rope::{RopeTable, Ropes};
use crate::spec::{AttentionBias, Gqa, Mixer, ModelSpec, QkNorm, RopePairing};
use crate::weights::{Loader, Weight};

use super::linear::{Linear, kinds};
use super::norm::NormLayer;

/// The weights of one layer's attention.
#[derive(Debug)]
pub(crate) struct GqaLayer {
    spec: Gqa,
    /// Which of the model's ropes rotates it.
    rope: Option<usize>,
    /// `[heads · head_dim, hidden]`
    pub(crate) query: Linear,
    /// `[kv_heads · head_dim, hidden]`
    pub(crate) key: Linear,
    /// `[kv_heads · head_dim, hidden]`
    pub(crate) value: Linear,
    /// `[hidden, heads · head_dim]`
    pub(crate) output: Linear,
    /// Norms of queries and of keys.
    pub(crate) norms: Option<[NormLayer; 2]>,
    /// `[heads]`
    pub(crate) sinks: Option<Vec<f32>>,
}

/// Buffers for the widest layer and as many tokens as a batch may have.
#[derive(Debug)]
pub(crate) struct GqaScratch {
    /// `[tokens, heads, head_dim]`
    query: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    key: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    value: Vec<f32>,
    /// `[tokens, heads, head_dim]`
    attended: Vec<f32>,
}

impl GqaScratch {
    pub(crate) fn new(spec: &ModelSpec, tokens: usize) -> GqaScratch {
        let buffer = |width: fn(&Gqa) -> usize| vec![0.0; widest(spec, width) * tokens];
        GqaScratch {
            query: buffer(Gqa::query_width),
            key: buffer(Gqa::key_width),
            value: buffer(Gqa::key_width),
            attended: buffer(Gqa::query_width),
        }
    }

    /// Bytes of these buffers for each token of a batch.
    pub(crate) fn bytes_per_token(spec: &ModelSpec) -> usize {
        let floats = 2 * widest(spec, Gqa::query_width) + 2 * widest(spec, Gqa::key_width);
        floats * size_of::<f32>()
    }
}

/// The widest of all layers that have this mixer.
fn widest(spec: &ModelSpec, width: fn(&Gqa) -> usize) -> usize {
    let widths = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        Mixer::Gqa(gqa) => Some(width(gqa)),
        Mixer::Mla(_) => None,
    });
    widths.max().unwrap_or(0)
}

impl Gqa {
    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn key_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl GqaLayer {
    pub(crate) fn load(
        loader: &mut Loader,
        spec: &Gqa,
        layer: usize,
        hidden: usize,
        ropes: &mut Ropes,
    ) -> Result<GqaLayer, LoadError> {
        let (q, kv) = (spec.query_width(), spec.key_width());
        let mut linear =
            |role, shape, biased: bool| Linear::load(loader, role, layer, shape, biased);
        let qkv = spec.bias != AttentionBias::None;
        let out = spec.bias == AttentionBias::QkvAndOutput;
        let query = linear(Role::Query, [q, hidden], qkv)?;
        let key = linear(Role::Key, [kv, hidden], qkv)?;
        let value = linear(Role::Value, [kv, hidden], qkv)?;
        let output = linear(Role::Output, [hidden, q], out)?;
        let norms = match &spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead(norm) | QkNorm::PerHeadAfterRope(norm) => {
                Some((norm, spec.head_dim, spec.head_dim))
            }
            QkNorm::FullWidth(norm) => Some((norm, q, kv)),
        };
        let norms = match norms {
            None => None,
            Some((norm, q, k)) => Some([
                NormLayer::load(loader, *norm, Role::QueryNorm, layer, q)?,
                NormLayer::load(loader, *norm, Role::KeyNorm, layer, k)?,
            ]),
        };
        let heads = spec.num_attention_heads;
        let sinks = spec.sinks.then(|| loader.vector(Role::Sinks, layer, heads)).transpose()?;
        let rope = spec.rope.as_ref().map(|rope| ropes.add(rope));
        Ok(GqaLayer { spec: spec.clone(), rope, query, key, value, output, norms, sinks })
    }

    pub(crate) fn forward(
        &self,
        pass: &Pass,
        cache: &mut LayerCache,
        scratch: &mut GqaScratch,
        branch: BranchIo,
    ) {
        let BranchIo { input, output, acts } = branch;
        let (pool, tokens, spec) = (pass.pool, pass.batch.len(), &self.spec);
        let (q_width, k_width) = (spec.query_width(), spec.key_width());
        let query = &mut scratch.query[..tokens * q_width];
        let key = &mut scratch.key[..tokens * k_width];
        let value = &mut scratch.value[..tokens * k_width];
        let attended = &mut scratch.attended[..tokens * q_width];

        let weights = [&self.query.weight, &self.key.weight, &self.value.weight];
        acts.set(pool, input, tokens, input.len() / tokens, kinds(weights));
        done(pass.watch, Part::Rounding);
        self.project(pass, acts, [query, key, value]);
        done(pass.watch, Part::Projections);
        if let Some(bound) = spec.clip {
            pool.for_each_row(value, k_width, |_, heads| clip(heads, bound));
        }
        let [q_norm, k_norm] =
            self.norms.as_ref().map_or([None, None], |[q, k]| [Some(q), Some(k)]);
        pool.for_each_row(query, q_width, |token, heads| {
            self.position(pass, q_norm, token, heads);
            let scale = spec.query_scale.at(pass.batch.positions[token]);
            if scale != 1.0 {
                ops::scale_assign(heads, scale);
            }
        });
        pool.for_each_row(key, k_width, |token, heads| self.position(pass, k_norm, token, heads));
        cache.store(pass.slots, key, Some(value));
        done(pass.watch, Part::Positions);

        let strides = Strides::token_major(spec.num_attention_heads, spec.head_dim);
        let args = AttentionArgs {
            q: query,
            q_strides: strides,
            num_heads: spec.num_attention_heads,
            keys: cache.keys(),
            values: cache.values(),
            spans: &pass.batch.spans,
            block_ids: &pass.batch.block_ids,
            positions: &pass.batch.positions,
            mask: spec.mask,
            scale: spec.scale,
            softcap: spec.score_softcap,
            sinks: self.sinks.as_deref(),
            out_strides: strides,
        };
        attention(pool, &args, pass.attention, attended);
        done(pass.watch, Part::Attention);
        acts.set(pool, attended, tokens, q_width, kinds([&self.output.weight]));
        done(pass.watch, Part::Rounding);
        self.output.forward(pool, pass.watch, acts, output);
        done(pass.watch, Part::Projections);
    }

    /// All matrices.
    pub(crate) fn weights(&self) -> Vec<&Weight> {
        [&self.query, &self.key, &self.value, &self.output].map(|linear| &linear.weight).to_vec()
    }

    fn project(&self, pass: &Pass, acts: &Activations, [query, key, value]: [&mut [f32]; 3]) {
        let rows = 0..acts.rows();
        let mut jobs = [
            self.query.job(acts, rows.clone(), query),
            self.key.job(acts, rows.clone(), key),
            self.value.job(acts, rows, value),
        ];
        let weights = [&self.query.weight, &self.key.weight, &self.value.weight];
        multiply(pass.pool, pass.watch, &mut jobs, |index| weights[index].name());
        let [query, key, value] = jobs.map(|job| job.output);
        self.query.add_bias(pass.pool, query);
        self.key.add_bias(pass.pool, key);
        self.value.add_bias(pass.pool, value);
    }

    /// Norms and rotates one token's heads `[heads, head_dim]`, in the order the family has.
    fn position(&self, pass: &Pass, norm: Option<&NormLayer>, token: usize, heads: &mut [f32]) {
        let norm_after = matches!(self.spec.qk_norm, QkNorm::PerHeadAfterRope(_));
        if let (Some(norm), false) = (norm, norm_after) {
            norm.in_place(heads);
        }
        if let Some(bound) = self.spec.clip {
            clip(heads, bound);
        }
        if let (Some(rope), Some(index)) = (&self.spec.rope, self.rope) {
            rotate(rope.pairing, &pass.ropes[index], token, heads, self.spec.head_dim);
        }
        if let (Some(norm), true) = (norm, norm_after) {
            norm.in_place(heads);
        }
    }
}

/// Cuts values off at `bound` on either side; what is no number stays none.
fn clip(values: &mut [f32], bound: f32) {
    for value in values {
        *value = value.clamp(-bound, bound);
    }
}

/// Rotates the front of each of a token's heads `[heads, head_dim]`.
pub(crate) fn rotate(
    pairing: RopePairing,
    table: &RopeTable,
    token: usize,
    heads: &mut [f32],
    head_dim: usize,
) {
    let (cos, sin) = table.row(token);
    match pairing {
        RopePairing::Half => ops::rope_half(heads, head_dim, cos, sin),
        RopePairing::Interleaved => ops::rope_interleaved(heads, head_dim, cos, sin),
    }
}
