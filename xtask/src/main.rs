#![forbid(unsafe_code)]
//! The project's own chores, as one program: `cargo xtask check` is what a contributor runs before
//! a commit and what CI runs after it, so the two cannot drift apart.

mod bench_vs;
mod check;
mod tidy;

use anyhow::{Result, bail};
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  check     formatting, tidy, clippy, docs and tests: everything that must pass
  tidy      the layout, size and naming rules of STYLE.md and ARCHITECTURE.md
  bench-vs  Moeba and another engine in turn on the same file; `bench-vs help` tells more
";

#[expect(clippy::print_stderr, reason = "a command-line program complains on stderr")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` is the chain of causes on one line; a backtrace would only bury the findings.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a command-line program answers on stdout")]
fn dispatch(arguments: &[String]) -> Result<()> {
    match arguments.first().map(String::as_str) {
        Some("check") => check::run(),
        Some("tidy") => tidy::run(),
        Some("bench-vs") if arguments.get(1).is_none_or(|word| word == "help") => {
            print!("{}", bench_vs::HELP);
            Ok(())
        }
        Some("bench-vs") => bench_vs::run(&arguments[1..]),
        None | Some("help" | "--help" | "-h") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => bail!("unknown command `{other}`\n\n{HELP}"),
    }
}
