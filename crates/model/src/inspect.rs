//! What a checkpoint is, without running it: for people who choose one.
//!
//! Works on a directory that holds only a `config.json`: family, shape and parameter counts come
//! from hyperparameters alone. Where weights are at hand, their formats and sizes are told too.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use moeba_kernels::activations::ActKinds;

use crate::convert::Target;
use crate::cost::Cost;
use crate::error::LoadError;
use crate::families;
use crate::files::{self, Container, ModelFiles, TensorHeader};
use crate::parameters::{self, Parameters};
use crate::spec::ModelSpec;
use crate::weights::Turning;
use crate::{LoadOptions, Model};

/// What is known about a checkpoint.
#[derive(Debug)]
pub struct Inspection {
    /// What the model computes.
    pub spec: ModelSpec,
    /// Which kind of file it came in.
    pub container: Container,
    /// Counted from the spec.
    pub parameters: Parameters,
    /// Its weights; `None` if only the configuration is there.
    pub weights: Option<WeightSummary>,
    /// Remarks on how it was understood.
    pub notes: Vec<String>,
}

/// The weights of a checkpoint in bytes.
#[derive(Debug)]
pub struct WeightSummary {
    /// Tensors by format: name, number of tensors, bytes; largest first.
    pub formats: Vec<FormatShare>,
    /// Bytes of all tensors.
    pub bytes_total: u64,
    /// Bytes of weights that one token reads: everything but idle experts and other tokens'
    /// embeddings.
    pub bytes_per_token: u64,
    /// Bytes of all experts together.
    pub bytes_experts: u64,
    /// What steps with them cost.
    pub cost: Cost,
    /// The forms of inputs the weights are multiplied with.
    pub input_kinds: ActKinds,
    /// Names of tensors the text model does not use.
    pub unused: Vec<String>,
    /// Formats of tensors whose stored type does not tell, by their names: packed codes, and what
    /// lies beside them.
    pub told: HashMap<String, String>,
}

/// One format's share of a checkpoint.
#[derive(Debug)]
pub struct FormatShare {
    /// The format's name.
    pub format: String,
    /// How many tensors have it.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Looks at the checkpoint at `path`.
///
/// # Errors
/// If the files are damaged, incomplete or of an unknown architecture.
pub fn inspect(path: &Path, options: &LoadOptions) -> Result<Inspection, LoadError> {
    let files = files::open_with(path, &options.files)?;
    let container = files.container;
    if files.tensors.is_empty() {
        let described = families::describe(&files, options)?;
        let notes = files.notes.into_iter().chain(described.notes).collect();
        let parameters = parameters::of_model(&described.spec);
        return Ok(Inspection {
            spec: described.spec,
            container,
            parameters,
            weights: None,
            notes,
        });
    }
    let model = Model::build(&files, options, Turning::Never)?;
    Ok(summary(model, container, files.tensors.headers()))
}

/// Looks at what the model in `files` would be as GGUF of type `target`, whether or not its weights
/// are there.
///
/// # Errors
/// If its configuration makes no sense.
pub fn imagine(
    files: &ModelFiles,
    options: &LoadOptions,
    target: &Target,
) -> Result<Inspection, LoadError> {
    let (model, headers) = Model::imagined(files, options, target)?;
    Ok(summary(model, files.container, &headers))
}

/// What a model is, whose tensors are those of `headers`.
fn summary(mut model: Model, container: Container, headers: &[TensorHeader]) -> Inspection {
    let mut formats: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in headers {
        let told = model.formats.get(&tensor.name).map(String::as_str);
        let (tensors, bytes) = formats.entry(told.unwrap_or(tensor.stored.name())).or_default();
        *tensors += 1;
        *bytes += tensor.bytes;
    }
    let share = |(format, (tensors, bytes)): (&str, _)| FormatShare {
        format: format.to_owned(),
        tensors,
        bytes,
    };
    let mut formats: Vec<FormatShare> = formats.into_iter().map(share).collect();
    formats.sort_by_key(|share| std::cmp::Reverse(share.bytes));
    let weights = WeightSummary {
        formats,
        bytes_total: headers.iter().map(|tensor| tensor.bytes).sum(),
        bytes_per_token: model.bytes_per_token(),
        cost: Cost::of_model(&model),
        bytes_experts: model.expert_bytes(),
        input_kinds: model.input_kinds(),
        unused: model.unused_tensors().to_vec(),
        told: std::mem::take(&mut model.formats),
    };
    Inspection {
        parameters: parameters::of_model(model.spec()),
        container,
        weights: Some(weights),
        notes: model.notes().to_vec(),
        spec: model.spec,
    }
}
