//! The `moeba` command: obtain, look at, run and measure Mixture-of-Experts models on a CPU.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 could not be done, 2
//! asked for wrongly, 130 ended by Ctrl-C. This crate alone reads the environment and speaks to
//! people.

#![forbid(unsafe_code)]

mod args;
mod clock;
mod commands;
mod gguf_words;
mod input;
mod interrupt;
mod machine;
mod models;
mod output;
mod predictions;
mod progress;
mod runner;
mod session;
mod settings;
mod windows;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::interrupt::Stopped;
use crate::output::{Style, note, styled};
use crate::settings::Settings;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut colours = false;
    let done = Settings::resolve(&cli.global).and_then(|settings| {
        colours = settings.voice.err_colours;
        commands::run(cli.command, &settings)
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough: `moeba list | head`.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<Stopped>() => {
            note("stopped");
            ExitCode::from(interrupt::EXIT_CODE)
        }
        Err(error) => {
            let error_word = styled("error", Style::Red, colours);
            // Names in it may come from a file, so it is made safe to show.
            note(&format!("{error_word}: {}", output::harmless(&format!("{error:#}"))));
            ExitCode::FAILURE
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
