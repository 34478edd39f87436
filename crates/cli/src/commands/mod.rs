//! The commands, one file each: flags in, words and files out.

mod bench;
mod fit;
mod imatrix;
mod inspect;
mod kld;
mod list;
mod logits;
mod manual;
mod perplexity;
mod printer;
mod probe;
mod pull;
mod quantize;
mod repl;
mod run;
mod tokenize;
mod upcycle;
mod verify;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::args::Command;
use crate::settings::Settings;

/// Runs a command.
///
/// # Errors
/// What went wrong, for people.
pub(crate) fn run(command: Command, settings: &Settings) -> Result<()> {
    match command {
        Command::List(args) => list::run(&args, settings),
        Command::Pull(args) => pull::run(&args, settings),
        Command::Quantize(args) => quantize::run(&args, settings),
        Command::Imatrix(args) => imatrix::run(&args, &settings.alike()),
        Command::Perplexity(args) => perplexity::run(&args, &settings.alike()),
        Command::Kld(args) => kld::run(&args, &settings.alike()),
        Command::Upcycle(args) => upcycle::run(&args, settings),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man(dir.as_deref()),
        Command::Run(args) => run::run(&args, settings),
        Command::Inspect(args) => inspect::run(&args, settings),
        Command::Fit(args) => fit::run(&args, settings),
        Command::Verify(args) => verify::run(&args, &settings.alike()),
        Command::Bench(args) => bench::run(&args, settings),
        Command::Probe(args) => probe::run(&args, settings),
        Command::Logits(args) => logits::run(&args, &settings.alike()),
        Command::Tokenize(args) => tokenize::run(&args, settings),
    }
}

/// The file that `path` names for output: new or regular, links followed. Results are renamed into
/// place, which would quietly put a file where a device or a link was.
fn output_file(path: &Path) -> Result<PathBuf> {
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {
            fs::canonicalize(path).with_context(|| format!("cannot find `{}`", path.display()))
        }
        Ok(_) => bail!("`{}` is no regular file and cannot be written to", path.display()),
        Err(_) => {
            // Said now, and not after minutes of work.
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            if let Some(dir) = dir.filter(|dir| !dir.is_dir()) {
                bail!("there is no directory `{}` to write `{}` to", dir.display(), path.display());
            }
            ensure!(path != Path::new("-"), "results go to files, not to stdout; name one");
            Ok(path.to_owned())
        }
    }
}

/// As [`output_file`], for results that replace a file only on request.
fn new_output_file(path: &Path, may_replace: bool) -> Result<PathBuf> {
    let output = output_file(path)?;
    ensure!(
        may_replace || !output.exists(),
        "`{}` exists; --force overwrites it",
        output.display()
    );
    Ok(output)
}
