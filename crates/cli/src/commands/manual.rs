//! `moeba completions` and `moeba man`: both written from the definitions of the flags.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::args::Cli;
use crate::output::print;

/// Prints a completion script.
///
/// # Errors
/// If stdout does not take it.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "moeba", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Prints the man page, or writes one per command to `dir`.
///
/// # Errors
/// If a page cannot be written.
pub(crate) fn man(dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return print(&String::from_utf8_lossy(&page));
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), dir))
        .with_context(|| format!("cannot write man pages to `{}`", dir.display()))
}
