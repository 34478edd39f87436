//! What the flags and the environment mean together. The only file that reads the environment.
//!
//! Read once, at the start; everything else takes plain values.

use std::env;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ColorChoice;
use moeba_kernels::activations::Precision;
use moeba_model::{AbsentQueryScale, LoadOptions, SoftmaxScale};

use crate::args::{AttentionScale, GlobalArgs, IsaChoice};

/// The resolved surroundings of one command.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Threads to compute with, if the user said so.
    pub(crate) threads: Option<usize>,
    /// Instruction set to use, if the user said so.
    pub(crate) isa: Option<IsaChoice>,
    /// How finely the inputs of quantised weights are rounded.
    pub(crate) precision: Precision,
    /// Whether the user said so.
    precision_given: bool,
    /// How attention is scaled where engines disagree.
    pub(crate) attention_scale: AttentionScale,
    /// Where models are kept: one folder each.
    pub(crate) models_dir: PathBuf,
    /// The user's own catalogue; it need not exist.
    pub(crate) catalogue_file: PathBuf,
    /// Lines typed in the chat; it need not exist.
    pub(crate) history_file: PathBuf,
    /// Where the hub is.
    pub(crate) hub: Hub,
    /// A Python to try before `python3` and `python`.
    pub(crate) python: Option<OsString>,
    /// How to speak to people.
    pub(crate) voice: Voice,
}

/// The model hub and who we are to it.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    /// Its address without a trailing slash.
    pub(crate) endpoint: String,
    /// An access token for gated models, sent to the hub's own host only.
    pub(crate) token: Option<String>,
}

/// Where words go and whether they may be coloured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Voice {
    /// Colours on stdout.
    pub(crate) out_colours: bool,
    /// Colours on stderr.
    pub(crate) err_colours: bool,
    /// Progress and figures on stderr are wanted.
    pub(crate) chatty: bool,
}

impl Settings {
    /// How models are loaded.
    pub(crate) fn load_options(&self) -> LoadOptions {
        let (softmax_scale, absent_query_scale) = match self.attention_scale {
            AttentionScale::Trained => (SoftmaxScale::Plain, AbsentQueryScale::Trained),
            AttentionScale::LlamaCpp => (SoftmaxScale::Yarn, AbsentQueryScale::None),
        };
        let precision = self.precision;
        LoadOptions { precision, softmax_scale, absent_query_scale, ..LoadOptions::default() }
    }

    /// The same for a command that measures how near a model is to another: every token is
    /// computed alike, unless the user said otherwise.
    pub(crate) fn alike(&self) -> Self {
        let mut alike = self.clone();
        if !self.precision_given {
            alike.precision = Precision::Sixteen;
        }
        alike
    }

    /// Resolves flags and environment.
    ///
    /// # Errors
    /// If there is no place for models: none of the variables that could name one is set.
    pub(crate) fn resolve(flags: &GlobalArgs) -> Result<Self> {
        let (cache_dir, config_dir) = match path_variable("MOEBA_HOME") {
            Some(home) => (home.clone(), home),
            None => (
                xdg_dir("XDG_CACHE_HOME", ".cache")?.join("moeba"),
                xdg_dir("XDG_CONFIG_HOME", ".config")?.join("moeba"),
            ),
        };
        let endpoint =
            text_variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let colours = |is_terminal: bool| match flags.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
                is_terminal && !dumb && env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
            }
        };
        Ok(Self {
            threads: flags.threads.map(usize::from),
            precision: match flags.activations.map(Precision::from) {
                None | Some(Precision::Mixed) if flags.deterministic => Precision::Sixteen,
                None => Precision::Mixed,
                Some(given) => given,
            },
            precision_given: flags.activations.is_some() || flags.deterministic,
            attention_scale: flags.attention_scale,
            isa: flags.isa,
            models_dir: cache_dir.join("models"),
            catalogue_file: config_dir.join("models.toml"),
            history_file: cache_dir.join("history"),
            hub: Hub {
                endpoint: endpoint.trim_end_matches('/').to_owned(),
                token: text_variable("HF_TOKEN"),
            },
            python: env::var_os("MOEBA_PYTHON").filter(|value| !value.is_empty()),
            voice: Voice {
                out_colours: colours(std::io::stdout().is_terminal()),
                err_colours: colours(std::io::stderr().is_terminal()),
                chatty: !flags.quiet,
            },
        })
    }
}

fn text_variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// A directory of the XDG base directory specification, which says to ignore relative ones.
fn xdg_dir(variable: &str, below_home: &str) -> Result<PathBuf> {
    if let Some(dir) = path_variable(variable).filter(|dir| dir.is_absolute()) {
        return Ok(dir);
    }
    let home = path_variable("HOME").or_else(|| path_variable("USERPROFILE"));
    let home = home.context("no home directory; set MOEBA_HOME to a directory for models")?;
    Ok(home.join(below_home))
}
