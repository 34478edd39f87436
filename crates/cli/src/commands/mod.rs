//! The commands, one file each: flags in, words and files out.

mod list;
mod manual;
mod pull;
mod upcycle;

use anyhow::Result;

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
        Command::Upcycle(args) => upcycle::run(&args, settings),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { dir } => manual::man(dir.as_deref()),
        _ => anyhow::bail!("this command comes with a later change"),
    }
}
