//! Keeping a model's files within the model's own directory.
//!
//! A model may come out of an archive that plants links to anywhere. Files are found by plain
//! names, and a link is followed only to where a download cache keeps its blobs.

use std::path::{Path, PathBuf};

use crate::error::{Fault, LoadError};

/// Refuses `shard` unless it really lies in the directory in which `named` really lies.
///
/// `named` is the file the user pointed at: following a link there is the user's wish.
pub(super) fn check_sibling(named: &Path, shard: &Path) -> Result<(), LoadError> {
    let home = real(named)?;
    let found = real(shard)?;
    if found.parent() == home.parent() {
        return Ok(());
    }
    Err(outside(shard, &found))
}

/// The path of the file `name` beneath `directory`.
///
/// `name` comes from a file, so it must be a plain name: no separators, no `..`, no NUL. The
/// file may be a link to another place beneath the directory, or into the cache layout of the
/// Hugging Face hub, where `snapshots/REVISION/name` links to `blobs/HASH` two levels up.
pub(super) fn beneath(directory: &Path, name: &str, index: &Path) -> Result<PathBuf, LoadError> {
    let plain =
        !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0']);
    if !plain {
        return Err(Fault::new(index)
            .expected("plain file names, without any directory")
            .found(format_args!("`{name}`"))
            .damaged());
    }
    let path = directory.join(name);
    let home = real(directory)?;
    let found = real(&path)?;
    let blobs = home.parent().and_then(Path::parent).map(|cache| cache.join("blobs"));
    let in_cache = home.parent().and_then(Path::file_name).is_some_and(|n| n == "snapshots")
        && found.parent().is_some_and(|parent| Some(parent) == blobs.as_deref());
    if found.starts_with(&home) || in_cache {
        return Ok(path);
    }
    Err(outside(&path, &found))
}

fn real(path: &Path) -> Result<PathBuf, LoadError> {
    path.canonicalize().map_err(|source| LoadError::io("open", path, source))
}

fn outside(path: &Path, found: &Path) -> LoadError {
    Fault::new(path)
        .expected("a file within the model's directory")
        .found(format_args!("a link to `{}`", found.display()))
        .hint("name the real directory if this is intended")
        .damaged()
}
