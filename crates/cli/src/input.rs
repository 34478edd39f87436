//! What commands are given to read: text, or token ids.

use std::fs;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Longest text taken from a file or stdin: more than any context holds.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// The text given as an argument, in a file, or on stdin, which is also called `-`.
pub(crate) fn text_of(text: Option<&str>, file: Option<&Path>) -> Result<String> {
    let mut read = String::new();
    match (text, file) {
        (Some(text), _) if text != "-" => return Ok(text.to_owned()),
        (_, Some(path)) if path != Path::new("-") => {
            let file = fs::File::open(path)
                .with_context(|| format!("cannot open `{}`", path.display()))?;
            file.take(TEXT_BYTES_MAX + 1)
                .read_to_string(&mut read)
                .with_context(|| format!("cannot read `{}` as text", path.display()))?;
        }
        _ => {
            let stdin = io::stdin().lock();
            stdin
                .take(TEXT_BYTES_MAX + 1)
                .read_to_string(&mut read)
                .context("cannot read stdin as text")?;
        }
    }
    ensure!(read.len() as u64 <= TEXT_BYTES_MAX, "the text is longer than {TEXT_BYTES_MAX} bytes");
    Ok(read)
}

/// Token ids between commas or white space.
pub(crate) fn token_ids(text: &str) -> Result<Vec<u32>> {
    let ids = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|id| !id.is_empty());
    let ids = ids
        .map(|id| id.parse().ok().with_context(|| format!("`{id}` is no token id, a whole number")))
        .collect::<Result<Vec<u32>>>()?;
    ensure!(!ids.is_empty(), "no token ids given");
    Ok(ids)
}

/// Refuses tokens that are none of a vocabulary of so many.
pub(crate) fn check_tokens(tokens: &[u32], vocab_size: usize) -> Result<()> {
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(wrong) => bail!("token `{wrong}` is not below {vocab_size}, the vocabulary's size"),
        None => Ok(()),
    }
}

/// Reads `1,2,3` or `@FILE`.
pub(crate) fn tokens_typed(typed: &str) -> Result<Vec<u32>> {
    match typed.strip_prefix('@') {
        Some(path) => token_ids(&text_of(None, Some(Path::new(path)))?),
        None => token_ids(typed),
    }
}
