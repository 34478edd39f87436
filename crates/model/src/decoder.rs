//! The forward pass: from token ids to logits, on one screen.
//!
//! Every layer is two branches, each `h += scale · post_norm(f(norm(h)))`: a mixer that lets
//! tokens see each other, and a feed-forward network for each token alone. What they compute is in
//! `layers/`; what a family has of them is in its [`crate::spec::LayerSpec`].

use moeba_kernels::activations::Activations;
use moeba_kernels::attention::AttentionScratch;
use moeba_kernels::ops;
use moeba_kernels::pool::Pool;

use crate::batch::Batch;
use crate::error::LoadError;
use crate::experts::ExpertError;
use crate::experts::resident::LayerExperts;
use crate::families::names::Role;
use crate::kv::{KvCache, LayerCache};
use crate::layers::attention::GqaLayer;
use crate::layers::dense_ffn::{DenseLayer, DenseRoles};
use crate::layers::linear::kinds;
use crate::layers::mla::MlaLayer;
use crate::layers::moe::MoeLayer;
use crate::layers::norm::NormLayer;
use crate::observer::{Branch, Part, Watch, done};
use crate::rope::{RopeTable, Ropes};
use crate::spec::{Ffn, LayerSpec, Mixer, Norm};
use crate::weights::{Loader, Weight};
use crate::workspace::Workspace;
use crate::{ForwardError, Model};

/// One layer's weights.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) mixer_norm: NormLayer,
    pub(crate) mixer: MixerLayer,
    pub(crate) mixer_post_norm: Option<NormLayer>,
    pub(crate) ffn_norm: NormLayer,
    pub(crate) ffn: FfnLayer,
    pub(crate) ffn_post_norm: Option<NormLayer>,
    residual_scale: f32,
}

/// How tokens see each other.
#[derive(Debug)]
pub(crate) enum MixerLayer {
    Gqa(Box<GqaLayer>),
    Mla(Box<MlaLayer>),
}

/// What happens to each token alone.
#[derive(Debug)]
pub(crate) enum FfnLayer {
    Dense(Box<DenseLayer>),
    Moe(Box<MoeLayer>),
}

/// What is the same for all layers of a step.
pub(crate) struct Pass<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) batch: &'a Batch,
    /// Where each token's keys and values go: `16 · block + position % 16`, `[tokens]`.
    pub(crate) slots: &'a [u32],
    pub(crate) ropes: &'a [RopeTable],
    pub(crate) attention: &'a AttentionScratch,
    pub(crate) watch: Watch<'a>,
}

/// One branch's input and output, and room to quantise inputs in.
pub(crate) struct BranchIo<'a> {
    /// `[tokens, hidden]`, normed
    pub(crate) input: &'a [f32],
    /// `[tokens, hidden]`, overwritten
    pub(crate) output: &'a mut [f32],
    /// room for `[tokens, widest input]`
    pub(crate) acts: &'a mut Activations,
}

/// A batch that has been checked, and what it runs on.
pub(crate) struct Step<'a> {
    pub(crate) model: &'a Model,
    pub(crate) pool: &'a Pool,
    pub(crate) batch: &'a Batch,
    pub(crate) watch: Watch<'a>,
}

impl Step<'_> {
    /// Runs the batch.
    pub(crate) fn forward(
        &self,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), ForwardError> {
        self.embed(workspace);
        for (index, layer) in self.model.layers.iter().enumerate() {
            self.begin(index, Branch::Mixer, &layer.mixer_norm, workspace);
            self.mix(layer, cache.layer(index), workspace);
            self.join(index, Branch::Mixer, workspace);
            self.begin(index, Branch::Ffn, &layer.ffn_norm, workspace);
            self.feed_forward(index, workspace)?;
            self.join(index, Branch::Ffn, workspace);
        }
        self.head(workspace);
        Ok(())
    }

    /// Looks up the tokens' embeddings: `stream` `[tokens, hidden]`.
    fn embed(&self, workspace: &mut Workspace) {
        let (matrix, spec) = (self.model.embedding.matrix(), &self.model.spec);
        self.pool.for_each_row(&mut workspace.stream, spec.hidden_size, |row, out| {
            matrix.decode_row(self.batch.tokens[row] as usize, out);
            if spec.embedding_scale != 1.0 {
                ops::scale_assign(out, spec.embedding_scale);
            }
        });
        done(self.watch, Part::Embedding);
    }

    /// Norms the stream as a branch's input, both `[tokens, hidden]`.
    fn begin(&self, layer: usize, branch: Branch, norm: &NormLayer, workspace: &mut Workspace) {
        if let Some(observer) = self.watch {
            observer.begins(layer, branch, &mut workspace.stream);
        }
        norm.rows(self.pool, &workspace.stream, &mut workspace.normed);
        done(self.watch, Part::Norms);
    }

    fn mix(&self, layer: &Layer, cache: &mut LayerCache, workspace: &mut Workspace) {
        let Workspace { normed, branch, acts, slots, ropes, attention, mixers, .. } = workspace;
        let Step { pool, batch, watch, .. } = *self;
        let pass = Pass { pool, batch, slots, ropes, attention, watch };
        let branch = BranchIo { input: normed, output: branch, acts };
        match &layer.mixer {
            MixerLayer::Gqa(layer) => layer.forward(&pass, cache, &mut mixers.gqa, branch),
            MixerLayer::Mla(layer) => layer.forward(&pass, cache, &mut mixers.mla, branch),
        }
    }

    fn feed_forward(&self, index: usize, workspace: &mut Workspace) -> Result<(), ExpertError> {
        let Workspace { normed, branch, acts, slots, ropes, attention, ffns, .. } = workspace;
        let Step { model, pool, batch, watch } = *self;
        let pass = Pass { pool, batch, slots, ropes, attention, watch };
        let branch = BranchIo { input: normed, output: branch, acts };
        match &model.layers[index].ffn {
            FfnLayer::Dense(layer) => layer.forward(&pass, &mut ffns.dense, branch),
            FfnLayer::Moe(layer) => {
                let scratch = &mut ffns.moe;
                let bytes = layer.forward(&pass, &*model.experts, scratch, branch)?;
                workspace.expert_bytes += bytes;
                workspace.routing.record(index, layer.per_tok(), batch.len(), scratch);
            }
        }
        Ok(())
    }

    /// Adds a branch to the residual stream, both `[tokens, hidden]`.
    fn join(&self, index: usize, which: Branch, workspace: &mut Workspace) {
        let Workspace { stream, branch, hidden, .. } = workspace;
        let (pool, layer) = (self.pool, &self.model.layers[index]);
        let post_norm = match which {
            Branch::Mixer => &layer.mixer_post_norm,
            _ => &layer.ffn_post_norm,
        };
        if let Some(norm) = post_norm {
            pool.for_each_row(branch, *hidden, |_, row| norm.in_place(row));
            done(self.watch, Part::Norms);
        }
        if let Some(observer) = self.watch {
            observer.ends(index, which, branch);
        }
        let scale = layer.residual_scale;
        pool.for_each_row(stream, *hidden, |row, out| {
            let branch = &branch[row * *hidden..(row + 1) * *hidden];
            if scale == 1.0 { ops::add_assign(out, branch) } else { ops::axpy(scale, branch, out) }
        });
        done(self.watch, Part::Sums);
    }

    /// Computes logits `[logit_rows, vocab]` of the rows the batch wants them for.
    fn head(&self, workspace: &mut Workspace) {
        let Step { model, pool, batch, watch } = *self;
        if let Some(observer) = watch {
            observer.begins(model.layers.len(), Branch::Head, &mut workspace.stream);
        }
        let spec = &model.spec;
        let rows = batch.logit_rows.len();
        let Workspace { stream, branch, normed, hidden, acts, logits, .. } = workspace;
        // Gathered into the buffer of the branches, which are done with.
        let gathered = &mut branch[..rows * *hidden];
        let normed = &mut normed[..rows * *hidden];
        for (out, row) in gathered.chunks_exact_mut(*hidden).zip(&batch.logit_rows) {
            let start = *row as usize * *hidden;
            out.copy_from_slice(&stream[start..start + *hidden]);
        }
        model.final_norm.rows(pool, gathered, normed);
        done(watch, Part::Norms);
        acts.set(pool, normed, rows, *hidden, kinds([&model.head.weight]));
        done(watch, Part::Rounding);
        model.head.forward(pool, watch, acts, logits);
        if spec.logit_scale != 1.0 || spec.logit_softcap.is_some() {
            pool.for_each_row(logits, spec.vocab_size, |_, row| {
                ops::scale_assign(row, spec.logit_scale);
                if let Some(cap) = spec.logit_softcap {
                    ops::softcap(row, cap);
                }
            });
        }
        done(watch, Part::Head);
    }
}

impl Layer {
    /// The matrices every token reads.
    pub(crate) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let mixer = match &self.mixer {
            MixerLayer::Gqa(layer) => layer.weights(),
            MixerLayer::Mla(layer) => layer.weights(),
        };
        let ffn = match &self.ffn {
            FfnLayer::Dense(layer) => layer.weights(),
            FfnLayer::Moe(layer) => layer.weights(),
        };
        mixer.into_iter().chain(ffn)
    }

    /// Finds one layer's weights; `file_layer` is its number in the file, `layer` in the model.
    pub(crate) fn load(
        loader: &mut Loader,
        spec: &LayerSpec,
        [layer, file_layer]: [usize; 2],
        hidden: usize,
        ropes: &mut Ropes,
    ) -> Result<(Layer, LayerExperts), LoadError> {
        let norm = |loader: &mut Loader, norm: Norm, role| {
            NormLayer::load(loader, norm, role, file_layer, hidden)
        };
        let mixer_norm = norm(loader, spec.mixer_norm, Role::MixerNorm)?;
        let ffn_norm = norm(loader, spec.ffn_norm, Role::FfnNorm)?;
        let post = |loader: &mut Loader, post: Option<Norm>, role| {
            post.map(|post| norm(loader, post, role)).transpose()
        };
        let mixer_post_norm = post(loader, spec.mixer_post_norm, Role::MixerPostNorm)?;
        let ffn_post_norm = post(loader, spec.ffn_post_norm, Role::FfnPostNorm)?;
        let mixer = match &spec.mixer {
            Mixer::Gqa(gqa) => {
                MixerLayer::Gqa(Box::new(GqaLayer::load(loader, gqa, file_layer, hidden, ropes)?))
            }
            Mixer::Mla(mla) => {
                MixerLayer::Mla(Box::new(MlaLayer::load(loader, mla, file_layer, hidden, ropes)?))
            }
        };
        let (ffn, experts) = match &spec.ffn {
            Ffn::Dense(dense) => {
                let roles = DenseRoles::FFN;
                let dense = DenseLayer::load(loader, dense, roles, file_layer, hidden)?;
                (FfnLayer::Dense(Box::new(dense)), LayerExperts::default())
            }
            Ffn::Moe(moe) => {
                let (moe, experts) = MoeLayer::load(loader, moe, [layer, file_layer], hidden)?;
                (FfnLayer::Moe(Box::new(moe)), experts)
            }
        };
        let residual_scale = spec.residual_scale;
        let layer = Layer {
            mixer_norm,
            mixer,
            mixer_post_norm,
            ffn_norm,
            ffn,
            ffn_post_norm,
            residual_scale,
        };
        Ok((layer, experts))
    }
}
