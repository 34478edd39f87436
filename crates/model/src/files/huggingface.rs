//! A model directory as Hugging Face lays it out.
//!
//! `config.json` describes the model, `generation_config.json` the sampling its makers advise,
//! and the weights are `model.safetensors` or the shards that `model.safetensors.index.json`
//! lists. Nothing else is opened. In particular no pickle (`.bin`, `.pt`, `.pkl`) and no Python
//! file is ever read: they can carry code, and Moeba has no path that runs any.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::json::{self, Unique};
use super::metadata::Metadata;
use super::tensors::{Part, TensorSource};
use super::value::Object;
use super::{Container, ModelFiles, OpenOptions, paths, safetensors};
use crate::error::{Fault, LoadError};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NATIVE_CONFIG: &str = "params.json";

/// Whether `directory` has this layout.
pub(super) fn is_one(directory: &Path) -> bool {
    directory.join(CONFIG).symlink_metadata().is_ok()
}

/// Opens the model in `directory`.
pub(super) fn open(directory: &Path, options: &OpenOptions) -> Result<ModelFiles, LoadError> {
    let metadata = config(directory, CONFIG, options)?;
    let has = |name: &str| directory.join(name).symlink_metadata().is_ok();
    let generation = if has(GENERATION_CONFIG) {
        Some(config(directory, GENERATION_CONFIG, options)?)
    } else {
        None
    };
    let mut notes = Vec::new();
    if metadata.contains("auto_map") {
        notes.push("`auto_map` names Python code; it is not run".to_owned());
    }
    let pickles = pickles(directory)?;
    if let Some(name) = pickles.first() {
        notes.push(format!(
            "`{}` is never opened, since pickles can run code; convert it to safetensors",
            crate::error::shown(name)
        ));
    }
    let tensors = if has(WEIGHTS) {
        let path = paths::beneath(directory, WEIGHTS, directory)?;
        let part = Part::open(&path)?;
        let headers = safetensors::read(&part, 0, &options.limits)?;
        TensorSource::new(directory, vec![part], headers, options.memory)?
    } else if has(INDEX) {
        sharded(directory, options)?
    } else {
        let note = notes
            .last()
            .cloned()
            .unwrap_or_else(|| format!("the directory has neither `{WEIGHTS}` nor `{INDEX}`"));
        TensorSource::empty(directory, note)
    };
    let container = Container::HuggingFace;
    Ok(ModelFiles { path: directory.to_owned(), container, metadata, generation, tensors, notes })
}

/// The error for a directory that is no model directory.
pub(super) fn not_one(directory: &Path) -> LoadError {
    let fault = Fault::new(directory).expected(format_args!("`{CONFIG}` or one GGUF model"));
    if directory.join(NATIVE_CONFIG).exists() {
        return fault
            .found(format_args!("`{NATIVE_CONFIG}`"))
            .hint("this is Mistral's own layout; obtain the Hugging Face or GGUF form")
            .unsupported();
    }
    fault.found("neither").damaged()
}

fn config(directory: &Path, name: &str, options: &OpenOptions) -> Result<Metadata, LoadError> {
    let path = paths::beneath(directory, name, directory)?;
    let Unique(root): Unique<super::Value> = json::read_file(&path, options.limits.config_bytes)?;
    Ok(Metadata::new(&path, root as Object))
}

/// Names of files that could hold code where weights are looked for.
fn pickles(directory: &Path) -> Result<Vec<String>, LoadError> {
    let listing = std::fs::read_dir(directory).map_err(|e| LoadError::io("list", directory, e))?;
    let mut names: Vec<String> = listing
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            let extension = Path::new(name).extension().and_then(|e| e.to_str());
            matches!(extension, Some("bin" | "pt" | "pth" | "pkl" | "ckpt"))
        })
        .collect();
    names.sort();
    Ok(names)
}

/// The shard index. `metadata` is ignored: its total size says nothing the shards do not.
#[derive(Deserialize)]
struct Index {
    weight_map: Unique<String>,
}

/// Opens every shard the index names. Only tensors it lists exist for the caller.
fn sharded(directory: &Path, options: &OpenOptions) -> Result<TensorSource, LoadError> {
    let index_path = paths::beneath(directory, INDEX, directory)?;
    let Index { weight_map: Unique(map) } =
        json::read_file(&index_path, options.limits.header_bytes)?;
    let mut shards: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for (tensor, shard) in &map {
        if shards.contains_key(&**shard) {
            continue;
        }
        if shards.len() as u64 >= u64::from(options.limits.shards) {
            return Err(Fault::new(&index_path)
                .expected(format_args!("at most {} shards", options.limits.shards))
                .limit());
        }
        shards.insert(shard, shard_path(directory, &index_path, tensor, shard)?);
    }
    let mut parts = Vec::new();
    let mut headers = Vec::new();
    for (number, (shard, path)) in shards.iter().enumerate() {
        let part = Part::open(path)?;
        let found = safetensors::read(&part, number, &options.limits)?;
        headers.extend(found.into_iter().filter(|h| map.get(&h.name).is_some_and(|s| s == shard)));
        parts.push(part);
    }
    if headers.len() < map.len() {
        let found: std::collections::HashSet<&str> = headers.iter().map(|h| &*h.name).collect();
        let absent = map.iter().find(|(name, _)| !found.contains(&***name));
        let (name, shard) = absent.expect("fewer headers than names leave one out");
        return Err(Fault::new(&directory.join(shard))
            .tensor(name)
            .expected("this tensor, which the index places here")
            .found("no tensor of this name")
            .damaged());
    }
    TensorSource::new(directory, parts, headers, options.memory)
}

fn shard_path(
    directory: &Path,
    index: &Path,
    tensor: &str,
    shard: &str,
) -> Result<PathBuf, LoadError> {
    let fault = Fault::new(index).tensor(tensor);
    if Path::new(shard).extension().is_none_or(|extension| extension != "safetensors") {
        return Err(fault
            .expected("a file that ends in `.safetensors`")
            .found(format_args!("`{shard}`"))
            .hint("other formats can carry code and are never opened")
            .damaged());
    }
    match paths::beneath(directory, shard, index) {
        Err(LoadError::Io { file, source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Err(Fault::new(&file)
                .tensor(tensor)
                .expected("this shard, which the index names")
                .found("no such file")
                .hint("obtain all shards of the model")
                .damaged())
        }
        other => other,
    }
}
