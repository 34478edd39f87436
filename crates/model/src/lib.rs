#![forbid(unsafe_code)]
//! Files in, logits out.
//!
//! This crate knows containers, families and layers. It knows no requests and no text, and it
//! holds no state of any request: the caller brings batch, cache and workspace to each step.
//!
//! [`Model::load`] maps a checkpoint and [`Model::forward`] runs a [`batch::Batch`] through it.
//! `files/` reads containers, `families/` turns hyperparameters into a [`spec::ModelSpec`],
//! `layers/` computes what specs say, and `decoder` strings layers together.

pub mod batch;
pub mod comparison;
pub mod convert;
pub mod cost;
mod decoder;
pub mod error;
pub mod experts;
pub mod families;
pub mod files;
mod imagined;
pub mod inspect;
pub mod kv;
mod layers;
pub mod memory_plan;
pub mod observer;
pub mod parameters;
mod planes;
pub mod prediction;
pub mod profile;
pub mod reference;
mod rope;
pub mod routing;
pub mod spec;
pub mod tensor_name;
mod transpose;
mod weights;
pub mod workspace;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use moeba_kernels::activations::{ActKinds, Precision};
use moeba_kernels::attention::KvDType;
use moeba_kernels::pool::Pool;

use crate::batch::{BLOCK_TOKENS, Batch};
use crate::cost::Cost;
use crate::decoder::{Layer, Step};
use crate::error::{Fault, LoadError};
use crate::experts::resident::Resident;
use crate::experts::{ExpertError, ExpertStore};
use crate::families::Described;
use crate::families::names::Role;
use crate::files::{ModelFiles, OpenOptions};
use crate::kv::KvCache;
use crate::layers::linear::Linear;
use crate::layers::norm::NormLayer;
use crate::observer::Observer;
use crate::rope::Ropes;
use crate::spec::{Head, ModelSpec};
use crate::weights::{Loader, Turning, Weight};
use crate::workspace::Workspace;

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Limits on what files may claim, and where weights are kept.
    pub files: OpenOptions,
    /// Which layers to load; all of them if `None`. The model then consists of these alone.
    pub layers: Option<Range<usize>>,
    /// How attention scores are scaled in families whose sources disagree.
    pub softmax_scale: SoftmaxScale,
    /// How queries grow in files that were made without saying so.
    pub absent_query_scale: AbsentQueryScale,
    /// How finely the inputs of quantised weights are rounded.
    pub precision: Precision,
    /// The longest sequence that will be run, in tokens; the model's own context if `None`. Some
    /// families turn queries and keys otherwise where it is long: once and for all, since what is
    /// cached cannot change its mind.
    pub context_tokens: Option<usize>,
}

/// How attention scores are scaled where YaRN stretches the context and sources disagree.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SoftmaxScale {
    /// By the width of a head alone, as the models were trained.
    #[default]
    Plain,
    /// Also by the square of YaRN's magnitude, as some other engines do.
    Yarn,
}

/// How queries grow with the position where a file of a family that was trained so does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AbsentQueryScale {
    /// As the published model of the family does.
    #[default]
    Trained,
    /// Not at all, as engines have it that go by the file alone.
    None,
}

/// A loaded model: its weights, and nothing of any request.
#[derive(Debug)]
pub struct Model {
    pub(crate) spec: ModelSpec,
    /// `[vocab, hidden]`
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) final_norm: NormLayer,
    /// `[vocab, hidden]`
    pub(crate) head: Linear,
    pub(crate) ropes: Ropes,
    pub(crate) experts: Box<dyn ExpertStore>,
    precision: Precision,
    input_kinds: ActKinds,
    notes: Vec<String>,
    unused: Vec<String>,
    /// What tensors are whose stored type does not say it; empty in models to compute with.
    formats: HashMap<String, String>,
    turned_bytes: u64,
}

/// Why a step could not be run. The cache's contents for the batch's positions are undefined then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForwardError {
    /// The batch does not fit the model, the cache or the workspace.
    #[error("batch cannot be run: {0}")]
    Batch(String),
    /// An expert's weights could not be read, or are damaged.
    #[error(transparent)]
    Expert(#[from] ExpertError),
}

impl Model {
    /// Loads the checkpoint at `path`: a GGUF file or a Hugging Face directory. Weights are found
    /// and checked for shape, not read.
    ///
    /// # Errors
    /// If the files are damaged, incomplete or of an unknown architecture.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Model, LoadError> {
        Model::from_files(&files::open_with(path, &options.files)?, options)
    }

    /// Loads a model from files that are open already.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn from_files(files: &ModelFiles, options: &LoadOptions) -> Result<Model, LoadError> {
        Model::build(files, options, Turning::Now)
    }

    /// Loads a model; with [`Turning::Never`] one to look at, not to run.
    pub(crate) fn build(
        files: &ModelFiles,
        options: &LoadOptions,
        turning: Turning,
    ) -> Result<Model, LoadError> {
        let described = families::describe(files, options)?;
        planes::check_method(files)?;
        Model::assemble(files, described, options, turning)
    }

    /// The model that was described, of the tensors in `files`.
    pub(crate) fn assemble(
        files: &ModelFiles,
        described: Described,
        options: &LoadOptions,
        turning: Turning,
    ) -> Result<Model, LoadError> {
        let Described { mut spec, naming, notes, .. } = described;
        let range = options.layers.clone().unwrap_or(0..spec.layers.len());
        if range.is_empty() || range.end > spec.layers.len() {
            let expected = format!("a range within {} layers", spec.layers.len());
            let found = format!("{} to {}", range.start, range.end);
            return Err(Fault::new(&files.path).expected(expected).found(found).config());
        }
        spec.layers = spec.layers[range.clone()].to_vec();

        let mut loader = Loader::new(files, naming, turning);
        loader.plan_turning(&range)?;
        let shape = [spec.vocab_size, spec.hidden_size];
        let embedding = loader.matrix(Role::Embedding, 0, shape)?;
        let head = match spec.head {
            Head::Tied => embedding.clone(),
            Head::Own | Head::OwnWithBias => loader.matrix(Role::Head, 0, shape)?,
        };
        let biased = spec.head == Head::OwnWithBias;
        let bias = biased.then(|| loader.bias(Role::Head, 0, spec.vocab_size)).transpose()?;
        let role = Role::FinalNorm;
        let final_norm = NormLayer::load(&mut loader, spec.final_norm, role, 0, spec.hidden_size)?;
        for name in families::FACTORS_TENSORS {
            loader.mark_used(name);
        }
        loader.check()?;

        let (mut ropes, mut layers, mut experts) = (Ropes::default(), Vec::new(), Vec::new());
        for (index, layer) in spec.layers.iter().enumerate() {
            let numbers = [index, range.start + index];
            let (layer, own) =
                Layer::load(&mut loader, layer, numbers, spec.hidden_size, &mut ropes)?;
            loader.check()?;
            layers.push(layer);
            experts.push(own);
        }
        let unused = loader.check_unused(&range)?;
        let turned_bytes = loader.turned_bytes();
        let turned = (turned_bytes > 0).then(|| {
            let gib = turned_bytes as f64 / f64::from(1 << 30);
            format!(
                "weights lie transposed in the files: {gib:.2} GiB of them are turned in memory"
            )
        });
        let remarks = notes.into_iter().chain(unused).chain(turned);
        Ok(Model {
            embedding,
            layers,
            final_norm,
            head: Linear { weight: head, bias },
            ropes,
            experts: Box::new(Resident::new(experts)),
            precision: options.precision,
            input_kinds: loader.input_kinds(),
            notes: files.notes.iter().cloned().chain(remarks).collect(),
            unused: loader.unused(),
            formats: loader.formats(),
            turned_bytes,
            spec,
        })
    }

    /// What the model computes.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// How finely the inputs of quantised weights are rounded.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The forms of inputs its weights are multiplied with.
    pub fn input_kinds(&self) -> ActKinds {
        self.input_kinds
    }

    /// Remarks on how the checkpoint was understood.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Names of tensors in the files that this model does not use, such as a vision tower's.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused
    }

    /// Bytes of weights that one token reads: everything but idle experts and other tokens'
    /// embeddings.
    pub fn bytes_per_token(&self) -> u64 {
        Cost::of_model(self).token(0, KvDType::F16).weight_bytes()
    }

    /// Bytes of all experts of all layers.
    pub fn expert_bytes(&self) -> u64 {
        self.experts.num_bytes()
    }

    /// Bytes of all weights, embeddings and idle experts included.
    pub fn num_bytes(&self) -> u64 {
        let ends = match self.spec.head {
            Head::Tied => self.embedding.num_bytes(),
            Head::Own | Head::OwnWithBias => {
                self.embedding.num_bytes() + self.head.weight.num_bytes()
            }
        };
        let layers = self.layers.iter().flat_map(Layer::weights).map(Weight::num_bytes);
        (ends + layers.sum::<usize>()) as u64 + self.expert_bytes()
    }

    /// Bytes of weights that do not lie in the files as the kernels read them, and have been made
    /// anew in memory: part of [`Model::num_bytes`], and taken already.
    pub fn turned_bytes(&self) -> u64 {
        self.turned_bytes
    }

    /// Runs a batch: stores its keys and values in `cache`, and leaves the logits of its
    /// `logit_rows` in `workspace`. Allocates nothing.
    ///
    /// # Errors
    /// If the batch does not fit, or experts' weights cannot be read or turn out to be damaged.
    pub fn forward(
        &self,
        pool: &Pool,
        batch: &Batch,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), ForwardError> {
        self.run(&Step { model: self, pool, batch, watch: None }, cache, workspace)
    }

    /// As [`Model::forward`], with somebody who sees everything on the way and may change some
    /// of it.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_observed(
        &self,
        pool: &Pool,
        batch: &Batch,
        cache: &mut KvCache,
        workspace: &mut Workspace,
        observer: &dyn Observer,
    ) -> Result<(), ForwardError> {
        self.run(&Step { model: self, pool, batch, watch: Some(observer) }, cache, workspace)
    }

    fn run(
        &self,
        step: &Step,
        cache: &mut KvCache,
        workspace: &mut Workspace,
    ) -> Result<(), ForwardError> {
        self.check(step.batch, cache, workspace).map_err(ForwardError::Batch)?;
        workspace.begin(step.batch, self.spec.vocab_size);
        if step.batch.is_empty() { Ok(()) } else { step.forward(cache, workspace) }
    }

    /// Says why a batch cannot be run, so that nothing below has to.
    fn check(&self, batch: &Batch, cache: &KvCache, workspace: &Workspace) -> Result<(), String> {
        let (tokens, rows) = (batch.len(), batch.logit_rows.len());
        let fits = |what: &str, count: usize, room: usize| {
            let error = || format!("`{count}` {what}, room for `{room}`");
            if count <= room { Ok(()) } else { Err(error()) }
        };
        fits("tokens", tokens, workspace.tokens_max())?;
        fits("rows of logits", rows, workspace.logit_rows_max())?;
        if cache.num_layers() != self.layers.len() || workspace.hidden != self.spec.hidden_size {
            return Err("cache or workspace were made for another model".to_owned());
        }
        self.check_batch(batch, cache.num_blocks())
    }

    /// Says why a batch is none of this model and a cache of so many blocks.
    fn check_batch(&self, batch: &Batch, num_blocks: usize) -> Result<(), String> {
        let tokens = batch.len();
        if let Some(token) = batch.tokens.iter().find(|t| **t as usize >= self.spec.vocab_size) {
            return Err(format!("token `{token}` of a vocabulary of `{}`", self.spec.vocab_size));
        }
        if let Some(block) = batch.block_ids.iter().find(|b| **b as usize >= num_blocks) {
            return Err(format!("block `{block}` of a cache of `{num_blocks}` blocks"));
        }
        let ascending = batch.logit_rows.is_sorted_by(|a, b| a < b);
        if !ascending || batch.logit_rows.last().is_some_and(|row| *row as usize >= tokens) {
            return Err("rows of logits are not ascending rows of the batch".to_owned());
        }
        check_spans(batch)
    }
}

/// Spans follow each other, hold consecutive positions, and their blocks reach them.
fn check_spans(batch: &Batch) -> Result<(), String> {
    let mut next = 0;
    for span in &batch.spans {
        let (start, end) = (span.tokens.start, span.tokens.end);
        let within = start == next && start < end && end <= batch.positions.len();
        if !within || span.blocks.end > batch.block_ids.len() {
            return Err(format!("span of rows `{start}` to `{end}` is out of place"));
        }
        let positions = &batch.positions[span.tokens.clone()];
        let last = positions[positions.len() - 1] as usize;
        let consecutive = positions.windows(2).all(|pair| pair[1] == pair[0] + 1);
        if !consecutive || last >= span.blocks.len() * BLOCK_TOKENS {
            let blocks = span.blocks.len();
            return Err(format!("positions up to `{last}` in a span of `{blocks}` blocks"));
        }
        next = end;
    }
    if next == batch.tokens.len() && next == batch.positions.len() {
        Ok(())
    } else {
        Err(format!("spans cover `{next}` of `{}` tokens", batch.tokens.len()))
    }
}
