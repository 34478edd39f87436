//! `check`: every gate in the order of how soon it tells you something.

use crate::tidy;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;

/// Runs formatting, tidy, clippy, tests and docs, stopping at the first that fails.
#[expect(clippy::print_stderr, reason = "progress belongs on the terminal")]
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    cargo("formatting", &["fmt", "--all", "--check"], &[])?;
    eprintln!("== tidy");
    tidy::run()?;
    cargo(
        "clippy",
        &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"],
        &[],
    )?;
    cargo("tests", &["test", "--workspace", "--locked"], &[])?;
    cargo(
        "docs",
        &["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"],
        &[("RUSTDOCFLAGS", "-D warnings")],
    )?;
    eprintln!("== all checks passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// One `cargo` invocation, named so that a failure says which gate it was.
#[expect(clippy::print_stderr, reason = "progress belongs on the terminal")]
fn cargo(gate: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    eprintln!("== {gate}: cargo {}", arguments.join(" "));
    let status = Command::new("cargo")
        .args(arguments)
        .envs(environment.iter().copied())
        .status()
        .with_context(|| format!("could not start cargo for `{gate}`"))?;
    if !status.success() {
        bail!("{gate} failed ({status})");
    }
    Ok(())
}
