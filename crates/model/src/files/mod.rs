//! Model files: GGUF, and directories as Hugging Face or Mistral lay them out, through one view.
//!
//! [`open`] answers with the model's [`Metadata`] (what it is) and its [`TensorSource`] (its
//! weights by name). Opening reads headers only; a tensor's bytes are touched when it is used.
//! Everything here is written against hostile files: see `limits` for the bounds, `checked` for
//! the arithmetic, and the tests' bad-file suite for what must be refused.

mod checked;
mod cursor;
mod directory;
#[doc(hidden)]
pub mod fuzz;
mod gguf;
mod json;
mod limits;
mod metadata;
mod paths;
mod safetensors;
mod tensors;
mod value;
mod verify;

use std::path::{Path, PathBuf};

use moeba_kernels::dtype::DType;
use moeba_kernels::os::memory::{Bytes, Region};

use directory::Layout;
pub(crate) use gguf::ContentHash;
pub use gguf::{GgufHeader, GgufTensor, GgufWriter, shard_name};
pub use limits::Limits;
pub use metadata::{FromValue, Metadata};
pub use tensors::{StoredType, TensorHeader, TensorInfo, TensorSource};
pub use value::{Array, Kind, Object, Packed, Value};
pub use verify::{BadPlace, first_bad, first_bad_of, first_bad_power, verify, verify_read};
pub(crate) use verify::{all_finite, first_bad_row};

use crate::error::{Fault, LoadError};

/// Which kind of file a model came in. Tensor names and metadata keys depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// One GGUF file, or a split set of them.
    Gguf,
    /// A directory with `config.json` and safetensors.
    HuggingFace,
    /// A directory with `params.json` and `consolidated` safetensors, as Mistral publishes.
    Mistral,
}

/// Where the weights are while the model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightMemory {
    /// In the page cache, mapped: the fastest start, and shared between processes.
    #[default]
    Mapped,
    /// Copied into memory of our own, in huge pages where the system has them.
    HugePages,
}

/// How to open a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// What the files may claim.
    pub limits: Limits,
    /// Where tensors that are asked for end up.
    pub memory: WeightMemory,
}

/// An opened model: headers read and checked, weights within reach.
#[derive(Debug)]
pub struct ModelFiles {
    /// The file or directory that was opened.
    pub path: PathBuf,
    /// Which kind it is.
    pub container: Container,
    /// GGUF metadata, `config.json` or `params.json`.
    pub metadata: Metadata,
    /// `generation_config.json`, where there is one.
    pub generation: Option<Metadata>,
    /// `hf_quant_config.json`, where there is one.
    pub quantisation: Option<Metadata>,
    /// The weights; empty for a directory that holds only a configuration.
    pub tensors: TensorSource,
    /// Remarks for the user, such as files that are deliberately not opened.
    pub notes: Vec<String>,
}

impl ModelFiles {
    /// A GGUF file that is not written yet, as far as families look: its keys, its tensors' names
    /// and shapes, and the numbers of those (F32) that say how the model computes.
    pub(crate) fn planned<'a>(
        path: &Path,
        pairs: &[(String, Value)],
        tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    ) -> Result<ModelFiles, LoadError> {
        let (mut bytes, mut headers) = (Vec::new(), Vec::new());
        for (name, shape, values) in tensors {
            let (name, shape) = (name.to_owned(), shape.to_vec());
            let (stored, len) = (StoredType::Known(DType::F32), size_of_val(values) as u64);
            let offset = bytes.len() as u64;
            headers.push(TensorHeader { name, stored, shape, bytes: len, offset, part: 0 });
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let bytes = Bytes::try_from(&bytes[..])
            .map_err(|error| LoadError::io("set aside memory for", path, error))?;
        let parts = vec![tensors::Part::in_memory(path, bytes)];
        Ok(ModelFiles {
            path: path.to_owned(),
            container: Container::Gguf,
            metadata: Metadata::new(path, pairs.iter().cloned().collect()),
            generation: None,
            quantisation: None,
            tensors: TensorSource::new(path, parts, headers, WeightMemory::Mapped)?,
            notes: Vec::new(),
        })
    }

    /// A configuration as Hugging Face writes them, without weights. Errors will call it `path`.
    ///
    /// # Errors
    /// If `text` is no JSON object.
    pub fn of_config(path: &Path, text: &str) -> Result<ModelFiles, LoadError> {
        let json::Unique(root): json::Unique<Value> = json::parse(path, 0, text.as_bytes())?;
        let note = "this is a configuration alone".to_owned();
        Ok(ModelFiles {
            path: path.to_owned(),
            container: Container::HuggingFace,
            metadata: Metadata::new(path, root as Object),
            generation: None,
            quantisation: None,
            tensors: TensorSource::empty(path, note),
            notes: Vec::new(),
        })
    }

    /// A GGUF file that nobody has: tensors of these names, shapes and types, all of which are the
    /// same zeros and take no memory, and no keys.
    pub(crate) fn imagined(path: &Path, tensors: &[GgufTensor]) -> Result<ModelFiles, LoadError> {
        let too_large = || Fault::new(path).expected("tensors of less than 2^63 bytes").limit();
        let header = |tensor: &GgufTensor| {
            let (cols, rows) = tensor.shape.split_last().expect("every tensor has a dimension");
            let rows = rows.iter().try_fold(1usize, |product, len| product.checked_mul(*len))?;
            let bytes = tensor.dtype.row_bytes(*cols)?.checked_mul(rows)?;
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            let stored = StoredType::Known(tensor.dtype);
            Some(TensorHeader { name, stored, shape, bytes: bytes as u64, offset: 0, part: 0 })
        };
        let headers: Option<Vec<TensorHeader>> = tensors.iter().map(header).collect();
        let headers = headers.ok_or_else(too_large)?;
        let total = headers.iter().try_fold(0i64, |sum, h| sum.checked_add_unsigned(h.bytes));
        total.ok_or_else(too_large)?;
        let longest = headers.iter().map(|header| header.bytes).max().unwrap_or(0);
        let bytes = Region::reserved(longest as usize)
            .map_err(|error| LoadError::io("set aside addresses for", path, error))?;
        let parts = vec![tensors::Part::in_memory(path, bytes.into())];
        Ok(ModelFiles {
            path: path.to_owned(),
            container: Container::Gguf,
            metadata: Metadata::new(path, Object::new()),
            generation: None,
            quantisation: None,
            tensors: TensorSource::new(path, parts, headers, WeightMemory::Mapped)?,
            notes: Vec::new(),
        })
    }

    /// The bytes of another file of a model directory, such as `tokenizer.json`; `None` where
    /// there is none, or the model is no directory.
    ///
    /// # Errors
    /// If the file has more than `bytes_max` bytes, is no regular file, leads out of the
    /// directory, or cannot be read.
    pub fn companion(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, LoadError> {
        if self.container == Container::Gguf || self.path.join(name).symlink_metadata().is_err() {
            return Ok(None);
        }
        let path = paths::beneath(&self.path, name, &self.path)?;
        json::read_bytes(&path, bytes_max).map(Some)
    }
}

/// Opens a model with default limits, its weights mapped.
///
/// `path` is a GGUF file, any shard of a split set, a directory as Hugging Face or Mistral lay it
/// out (which may hold only its `config.json` or `params.json`; naming that file chooses the
/// layout where both are there), or a directory with exactly one GGUF model.
///
/// # Errors
/// If there is no model, or anything about it is damaged, unsupported or beyond the limits.
pub fn open(path: &Path) -> Result<ModelFiles, LoadError> {
    open_with(path, &OpenOptions::default())
}

/// Opens a model as [`open`] does, with limits and memory of the caller's choice.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<ModelFiles, LoadError> {
    let about = std::fs::metadata(path).map_err(|e| LoadError::io("open", path, e))?;
    if !about.is_dir() {
        return match Layout::of_file(path) {
            Some(layout) => directory::open(&directory_of(path), layout, options),
            None => open_gguf(path, options),
        };
    }
    if let Some(layout) = Layout::of_directory(path) {
        return directory::open(path, layout, options);
    }
    match &gguf_files(path)?[..] {
        [] => Err(directory::not_one(path)),
        [file] => open_gguf(file, options),
        [first, second, ..] => Err(Fault::new(path)
            .expected("one GGUF model")
            .found(format_args!(
                "several, such as `{}` and `{}`",
                first.display(),
                second.display()
            ))
            .hint("name the file")
            .config()),
    }
}

/// The directory a file lies in.
fn directory_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

fn open_gguf(path: &Path, options: &OpenOptions) -> Result<ModelFiles, LoadError> {
    let (metadata, tensors) = gguf::open(path, options)?;
    Ok(ModelFiles {
        path: path.to_owned(),
        container: Container::Gguf,
        metadata,
        generation: None,
        quantisation: None,
        tensors,
        notes: Vec::new(),
    })
}

/// The GGUF models in `directory`: single files, and the first shard of each set. Projectors of
/// other modalities are no models.
fn gguf_files(directory: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let listing = std::fs::read_dir(directory).map_err(|e| LoadError::io("list", directory, e))?;
    let mut files: Vec<PathBuf> = listing
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let later_shard = name.contains("-of-") && !name.contains("-00001-of-");
            path.extension().is_some_and(|extension| extension == "gguf")
                && !later_shard
                && !name.starts_with("mmproj")
        })
        .collect();
    files.sort();
    Ok(files)
}
