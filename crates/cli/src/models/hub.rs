//! The Hugging Face hub: which files a repository has, and the hashes it lists for them.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use ureq::Agent;

use super::catalogue::{HubPick, file_name_of};
use super::download::fetch_text;
use crate::settings::Hub;

/// Longest listing worth reading.
const LISTING_BYTES_MAX: u64 = 16 << 20;

/// A file of a repository, found and with its hash.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct HubFile {
    /// Where to get it.
    pub(crate) url: String,
    /// Its path in the repository.
    pub(crate) path: String,
    /// Its hash, ours or the hub's.
    pub(crate) sha256: String,
    /// Its size, if the hub was asked.
    pub(crate) bytes: Option<u64>,
}

/// One line of the hub's listing.
#[derive(Debug, Deserialize)]
struct Listed {
    path: String,
    size: u64,
    lfs: Option<LargeFile>,
}

/// What the listing says about a large file.
#[derive(Debug, Deserialize)]
struct LargeFile {
    /// Its SHA-256.
    oid: String,
}

/// Finds the files a source means.
///
/// # Errors
/// If the hub cannot be asked or has no such files.
pub(crate) fn find(
    agent: &Agent,
    hub: &Hub,
    repo: &str,
    revision: &str,
    pick: &HubPick,
) -> Result<Vec<HubFile>> {
    let locate = |path: &str, sha256: &str, bytes| HubFile {
        url: format!("{}/{repo}/resolve/{revision}/{path}", hub.endpoint),
        path: path.to_owned(),
        sha256: sha256.to_owned(),
        bytes,
    };
    if let HubPick::File { path, sha256: Some(sha256) } = pick {
        return Ok(vec![locate(path, sha256, None)]);
    }
    let url = format!("{}/api/models/{repo}/tree/{revision}?recursive=true", hub.endpoint);
    let text = fetch_text(agent, &url, hub.token.as_deref(), LISTING_BYTES_MAX)?;
    let listing: Vec<Listed> =
        serde_json::from_str(&text).with_context(|| format!("{url} sent no listing"))?;
    let paths = match pick {
        HubPick::File { path, .. } => vec![path.clone()],
        HubPick::Quant(quant) => pick_quant(&listing, quant)
            .with_context(|| format!("{repo} has no GGUF files of type `{quant}`"))?,
    };
    let mut files = Vec::new();
    for path in paths {
        file_name_of(&path)?;
        let Some(listed) = listing.iter().find(|listed| listed.path == path) else {
            bail!("{repo} has no file `{path}`");
        };
        let hash = listed.lfs.as_ref().map(|lfs| lfs.oid.to_ascii_lowercase());
        let hash = hash.filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
        let hash = hash.with_context(|| format!("the hub lists no hash for `{path}`"))?;
        files.push(locate(&path, &hash, Some(listed.size)));
    }
    Ok(files)
}

/// The files of one weight type: one GGUF, or all pieces of a split one in order.
///
/// Where several match (`UD-Q4_K_M` beside `Q4_K_M`), the shortest name is the plain one.
fn pick_quant(listing: &[Listed], quant: &str) -> Option<Vec<String>> {
    let matches = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
        let stem = name.strip_suffix(".gguf")?.to_owned();
        let whole = strip_piece(&stem);
        let wanted = quant.to_ascii_lowercase();
        let before = whole.strip_suffix(&wanted)?;
        let stands_alone = before.is_empty() || before.ends_with(['-', '.', '_']);
        (stands_alone && !name.starts_with("mmproj")).then(|| whole.to_owned())
    };
    let mut found: Vec<(String, String)> = listing
        .iter()
        .filter_map(|listed| Some((matches(&listed.path)?, listed.path.clone())))
        .collect();
    found.sort_by(|a, b| (a.0.len(), &a.0, &a.1).cmp(&(b.0.len(), &b.0, &b.1)));
    let whole = found.first()?.0.clone();
    Some(found.into_iter().filter(|(name, _)| *name == whole).map(|(_, path)| path).collect())
}

/// `name-00001-of-00003` without its piece number.
fn strip_piece(stem: &str) -> &str {
    let Some((rest, of)) = stem.rsplit_once("-of-") else { return stem };
    let Some((name, piece)) = rest.rsplit_once('-') else { return stem };
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    if is_number(of) && is_number(piece) { name } else { stem }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(paths: &[&str], quant: &str) -> Option<Vec<String>> {
        let listing: Vec<Listed> = paths
            .iter()
            .map(|path| Listed { path: (*path).to_owned(), size: 1, lfs: None })
            .collect();
        pick_quant(&listing, quant)
    }

    #[test]
    fn the_plain_file_of_a_type_is_picked() {
        let paths = [
            "README.md",
            "m-Q4_K_M_L.gguf",
            "m-UD-Q4_K_M.gguf",
            "mmproj-Q4_K_M.gguf",
            "M-q4_k_m.gguf",
            "m-IQ4_K_M.gguf",
        ];
        assert_eq!(pick(&paths, "Q4_K_M"), Some(vec!["M-q4_k_m.gguf".to_owned()]));
        assert_eq!(pick(&paths, "Q8_0"), None);
    }

    #[test]
    fn all_pieces_of_a_split_file_are_picked_in_order() {
        let paths = ["Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf"];
        let wanted = vec![paths[1].to_owned(), paths[0].to_owned()];
        assert_eq!(pick(&paths, "Q4_K_M"), Some(wanted));
    }
}
