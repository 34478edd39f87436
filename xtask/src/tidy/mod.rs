//! `tidy`: the rules that a compiler does not know.
//!
//! A rule that only stands in a document is broken within a month, so everything `STYLE.md` and
//! `ARCHITECTURE.md` promise about the shape of the tree is checked here: the sizes, the walls
//! between crates, the words, and the links of the documents. Each finding is one line
//! `file:line: what is wrong`, and none is a warning.

mod crates;
mod documents;
mod shape;
mod words;

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// What one rule found wrong, as `file:line: message`.
pub(crate) type Findings = Vec<String>;

/// A Rust source file of the workspace.
pub(crate) struct Source {
    /// Path relative to the repository root, with `/` separators.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
    /// The parsed file.
    pub(crate) syntax: syn::File,
}

impl Source {
    /// Whether the whole file is test, bench or example code.
    pub(crate) fn is_test(&self) -> bool {
        ["/tests/", "/benches/", "/examples/"].iter().any(|part| self.path.contains(part))
            || self.path.ends_with("/tests.rs")
    }
}

/// Runs every rule over the working tree.
///
/// # Errors
/// Fails with all findings, one a line, or when a file cannot be read or parsed.
#[expect(clippy::print_stderr, reason = "the summary belongs on the terminal")]
pub(crate) fn run() -> Result<()> {
    let root = repository_root();
    let sources = rust_sources(&root)?;
    let mut findings = Findings::new();
    for source in &sources {
        shape::check(source, &mut findings);
        words::check(source, &mut findings);
    }
    crates::check(&root, &mut findings)?;
    let documents = documents::check(&root, &mut findings)?;
    if !findings.is_empty() {
        findings.sort();
        findings.dedup();
        bail!("tidy found {} problems:\n{}", findings.len(), findings.join("\n"));
    }
    let lines: usize = sources.iter().filter(|s| !s.is_test()).map(shape::code_lines).sum();
    eprintln!(
        "tidy: {} Rust files, {lines} lines without tests, {documents} documents, no findings",
        sources.len()
    );
    Ok(())
}

/// The workspace root: the parent of this crate's own folder.
pub(crate) fn repository_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().expect("xtask lies in the repository root").to_path_buf()
}

/// Every `.rs` file below `crates/` and `xtask/`, parsed.
fn rust_sources(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for top in ["crates", "xtask"] {
        files_below(&root.join(top), "rs", &mut paths)?;
    }
    paths.sort();
    paths.iter().map(|path| read_source(root, path)).collect()
}

fn read_source(root: &Path, path: &Path) -> Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let syntax = syn::parse_file(&text).with_context(|| format!("parsing {}", path.display()))?;
    let path = path.strip_prefix(root)?.to_string_lossy().replace('\\', "/");
    Ok(Source { path, text, syntax })
}

/// Collects the files below `folder` that end in `.extension`, leaving out build output.
pub(crate) fn files_below(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files_below(&path, extension, found)?;
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    Ok(())
}
