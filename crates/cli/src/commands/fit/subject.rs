//! Which model is asked about, and what is known of it without running it.
//!
//! In this order: files that are here, a configuration alone, an entry of the catalogue. Weights
//! that are not here are imagined in some type.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use moeba_model::LoadOptions;
use moeba_model::convert::Target;
use moeba_model::files::{self, Limits, ModelFiles};
use moeba_model::inspect::{Inspection, imagine, inspect};

use crate::args::FitArgs;
use crate::commands::quantize::target;
use crate::models::Library;
use crate::models::catalogue::Entry;
use crate::settings::Settings;

/// The type that weights nobody described are imagined in.
const TARGET_DEFAULT: &str = "Q4_K_M";

/// The model that is asked about.
pub(super) struct Subject {
    /// Its name or path.
    pub(super) name: String,
    pub(super) known: Known,
    /// Its configuration, to imagine it in other types.
    pub(super) files: ModelFiles,
    pub(super) options: LoadOptions,
    /// With weights, be they imagined.
    pub(super) inspection: Inspection,
    /// The type its weights are imagined in; `None` if they are taken as they are.
    pub(super) target: Option<&'static Target>,
    /// Bytes that have to be fetched first, and that the disk has to hold.
    pub(super) fetched_bytes: Option<u64>,
    pub(super) place: Place,
}

/// How a model is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Its weights are here.
    Weights,
    /// A configuration is here.
    Configuration,
    /// The catalogue knows its shape.
    Catalogue,
}

/// Where to measure the disk.
pub(super) enum Place {
    /// This file, by reading it.
    File(PathBuf),
    /// This directory, by writing something to it.
    Directory(PathBuf),
}

impl Known {
    /// The word for it in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Configuration => "configuration",
            Self::Catalogue => "catalogue",
        }
    }
}

impl Subject {
    /// The model that the flags name.
    ///
    /// # Errors
    /// If there is none, or its shape is not known.
    pub(super) fn find(args: &FitArgs, library: &Library, settings: &Settings) -> Result<Self> {
        let wanted = args.quant.as_deref().map(target).transpose()?;
        let context_tokens = args.ctx.map(Into::into);
        let options = LoadOptions { context_tokens, ..settings.load_options() };
        let name = args.model.get().unwrap_or(&library.catalogue.default);
        if Path::new(name).exists() {
            return Self::on_disk(name, Path::new(name), wanted, options);
        }
        let entry = library.named(name)?;
        if let Some(local) = library.store.local(&entry.name) {
            return Self::on_disk(&entry.name, &local.path, wanted, options);
        }
        let mut listed = Self::listed(entry, wanted, &options)?;
        listed.place = Place::Directory(existing(&library.store.root().join(&entry.name)));
        Ok(listed)
    }

    /// A model whose files, or configuration, are here.
    fn on_disk(
        name: &str,
        path: &Path,
        wanted: Option<&'static Target>,
        options: LoadOptions,
    ) -> Result<Self> {
        let files = if is_stray_config(path) { stray_config(path)? } else { files::open(path)? };
        let is_whole = !files.tensors.is_empty();
        let target = wanted.or_else(|| (!is_whole).then(default_target));
        let inspection = match target {
            Some(target) => imagine(&files, &options, target)?,
            None => inspect(path, &options)?,
        };
        let known = if is_whole { Known::Weights } else { Known::Configuration };
        let place = match largest_file(path).filter(|_| is_whole) {
            Some(file) => Place::File(file),
            None => Place::Directory(existing(path)),
        };
        let (name, fetched_bytes) = (name.to_owned(), None);
        Ok(Self { name, known, files, options, inspection, target, fetched_bytes, place })
    }

    /// A model of the catalogue that is not here.
    ///
    /// # Errors
    /// If the catalogue does not know its shape.
    pub(super) fn listed(
        entry: &Entry,
        wanted: Option<&'static Target>,
        options: &LoadOptions,
    ) -> Result<Self> {
        let name = &entry.name;
        let Some(config) = &entry.config else {
            bail!(
                "`{name}` is not on this machine, and the catalogue does not know its shape; \
                 `moeba pull {name}` gets it, or name its config.json"
            )
        };
        let config = config.to_string();
        let files = ModelFiles::of_config(name.as_ref(), &config)?;
        let own = entry.target.as_deref().and_then(Target::from_name);
        let target = wanted.or(own).unwrap_or_else(default_target);
        let inspection = imagine(&files, options, target)
            .with_context(|| format!("the catalogue's `config` of `{name}`"))?;
        Ok(Self {
            name: name.clone(),
            known: Known::Catalogue,
            files,
            options: options.clone(),
            inspection,
            target: Some(target),
            fetched_bytes: Some(entry.file_bytes),
            place: Place::Directory(PathBuf::from(".")),
        })
    }
}

fn default_target() -> &'static Target {
    Target::from_name(TARGET_DEFAULT).expect("it is in the table")
}

/// Whether `path` is a configuration under a name of the user's own.
fn is_stray_config(path: &Path) -> bool {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    let usual = ["config.json", "params.json"].map(Some);
    is_json && path.is_file() && !usual.contains(&path.file_name().and_then(|name| name.to_str()))
}

fn stray_config(path: &Path) -> Result<ModelFiles> {
    let bytes_max = Limits::default().config_bytes;
    let mut text = String::new();
    let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    file.take(bytes_max + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    if text.len() as u64 > bytes_max {
        bail!("`{}` is longer than {bytes_max} bytes, as no configuration is", path.display());
    }
    Ok(ModelFiles::of_config(path, &text)?)
}

/// The largest of the model's files: `path` itself, or one beside it.
fn largest_file(path: &Path) -> Option<PathBuf> {
    let is_weights = |path: &Path| path.extension().is_some_and(|e| e == "gguf");
    if is_weights(path) && path.is_file() {
        return Some(path.to_owned());
    }
    let dir = if path.is_dir() { path } else { path.parent()? };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let files = fs::read_dir(dir).ok()?.filter_map(|entry| {
        let path = entry.ok()?.path();
        let about = fs::metadata(&path).ok()?;
        about.is_file().then_some((about.len(), path))
    });
    files.max_by_key(|(bytes, _)| *bytes).map(|(_, path)| path)
}

/// The nearest directory above `path`, itself included, that exists.
fn existing(path: &Path) -> PathBuf {
    let found = path.ancestors().find(|dir| dir.is_dir());
    match found {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}
