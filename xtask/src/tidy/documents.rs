//! Documents rot quietly: every relative link and every path in backticks must still exist.

use super::{Findings, files_below};
use anyhow::{Context, Result};
use std::path::Path;

const ARCHITECTURE_LINES: usize = 400;

/// Checks all Markdown files; returns how many there are.
pub(crate) fn check(root: &Path, findings: &mut Findings) -> Result<usize> {
    let mut paths = Vec::new();
    files_below(root, "md", &mut paths)?;
    for path in &paths {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root)?.display().to_string();
        let folder = path.parent().context("a file lies in a folder")?;
        for (index, line) in text.lines().enumerate() {
            for target in link_targets(line).filter(|t| !exists(folder, t)) {
                findings.push(format!("{name}:{}: dead link `{target}`", index + 1));
            }
            for target in path_mentions(line).filter(|t| !root.join(t).exists()) {
                findings.push(format!("{name}:{}: no such path `{target}`", index + 1));
            }
        }
        if name == "ARCHITECTURE.md" && text.lines().count() > ARCHITECTURE_LINES {
            findings.push(format!("{name}:1: longer than {ARCHITECTURE_LINES} lines"));
        }
    }
    Ok(paths.len())
}

/// Targets of `[text](target)` that point into the repository, without their `#anchor`.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://"))
}

/// Backticked words that begin like a path of this repository and are no pattern.
fn path_mentions(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|word| {
        let ours = ["crates/", "xtask/", "docs/", "tests/"].iter().any(|top| word.starts_with(top));
        ours && !word.contains(['*', '{', '<', ' ', '…']) && !word.contains("NAME")
    })
}

fn exists(folder: &Path, target: &str) -> bool {
    folder.join(target).exists()
}
