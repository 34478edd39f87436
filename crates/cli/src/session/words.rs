//! Tokenizer and chat template of a model, found wherever its files keep them.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use moeba_model::files::{Container, Metadata, ModelFiles};
use moeba_text::{ChatTemplate, GgufVocabulary, Tokenizer};
use serde_json::Value as Json;

/// Longest text file of a model directory worth reading; the largest tokenizer has some 30 MB.
const TEXT_FILE_BYTES_MAX: u64 = 256 << 20;

/// How a model reads and writes.
pub(crate) struct Words {
    /// Text to tokens and back.
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Conversations to prompts, if the model chats.
    pub(crate) template: Option<ChatTemplate>,
}

impl Words {
    /// Finds them.
    ///
    /// # Errors
    /// If there is no tokenizer, or something is wrong with it or the template.
    pub(crate) fn of_files(files: &ModelFiles) -> Result<Self> {
        let (mut tokenizer, template) = match files.container {
            Container::Gguf => of_gguf(&files.metadata).with_context(|| {
                format!("cannot use the vocabulary of {}", files.path.display())
            })?,
            Container::HuggingFace => of_directory(&files.path)?,
        };
        if let Some(generation) = &files.generation {
            tokenizer.add_end_of_generation(&end_tokens(generation));
        }
        Ok(Self { tokenizer: Arc::new(tokenizer), template })
    }
}

/// `eos_token_id` of `generation_config.json`: one id or several.
fn end_tokens(generation: &Metadata) -> Vec<u32> {
    let one = generation.read_optional::<u32>("eos_token_id");
    let many = || generation.read_optional::<Vec<u32>>("eos_token_id");
    match one {
        Ok(id) => id.into_iter().collect(),
        Err(_) => many().ok().flatten().unwrap_or_default(),
    }
}

fn of_gguf(metadata: &Metadata) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let tokenizer = Tokenizer::from_gguf(&vocabulary(metadata)?)?;
    let template = metadata.read_optional::<&str>("tokenizer.chat_template")?;
    let template = template.map(ChatTemplate::new).transpose()?;
    Ok((tokenizer, template))
}

/// The keys of a GGUF vocabulary, as they stand in the file.
fn vocabulary(metadata: &Metadata) -> Result<GgufVocabulary<'_>> {
    ensure!(
        metadata.contains("tokenizer.ggml.model"),
        "`{}` contains no tokenizer",
        metadata.file().display()
    );
    let bytes = |key: &str| -> Result<Vec<&[u8]>> {
        let texts = metadata.read_optional::<Vec<&str>>(key)?.unwrap_or_default();
        Ok(texts.into_iter().map(str::as_bytes).collect())
    };
    let id = |key: &str| metadata.read_optional::<u32>(key);
    let mut end_of_generation = Vec::new();
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        end_of_generation.extend(id(key)?);
    }
    Ok(GgufVocabulary {
        model: metadata.str("tokenizer.ggml.model")?,
        pre: metadata.read_optional("tokenizer.ggml.pre")?,
        tokens: bytes("tokenizer.ggml.tokens")?,
        scores: metadata.read_optional("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata.read_optional("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: bytes("tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        unk: id("tokenizer.ggml.unknown_token_id")?,
        pad: id("tokenizer.ggml.padding_token_id")?,
        end_of_generation,
        add_bos: metadata.read_optional("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.read_optional("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.read_optional("tokenizer.ggml.add_space_prefix")?,
    })
}

fn of_directory(dir: &Path) -> Result<(Tokenizer, Option<ChatTemplate>)> {
    let config = match read_text(&dir.join("tokenizer_config.json"))? {
        Some(text) => serde_json::from_str(&text)
            .with_context(|| format!("`{}/tokenizer_config.json` is no JSON", dir.display()))?,
        None => Json::Null,
    };
    let tokenizer = if let Some(text) = read_text(&dir.join("tokenizer.json"))? {
        tokenizer_json(&text, &config)
    } else if let Some(text) = read_text(&dir.join("tekken.json"))? {
        tekken(&text)
    } else {
        bail!("`{}` has neither `tokenizer.json` nor `tekken.json`", dir.display());
    };
    let tokenizer =
        tokenizer.with_context(|| format!("cannot use the tokenizer in `{}`", dir.display()))?;
    let template = template_source(dir, &config)?;
    let template = template.as_deref().map(ChatTemplate::new).transpose()?;
    Ok((tokenizer, template))
}

fn tokenizer_json(_text: &str, _config: &Json) -> Result<Tokenizer> {
    bail!("tokenizer.json comes with a later change")
}

fn tekken(_text: &str) -> Result<Tokenizer> {
    bail!("tekken.json comes with a later change")
}

/// The chat template of a directory: a file of its own, or a part of the tokenizer's settings.
fn template_source(dir: &Path, config: &Json) -> Result<Option<String>> {
    if let Some(text) = read_text(&dir.join("chat_template.jinja"))? {
        return Ok(Some(text));
    }
    if let Some(text) = read_text(&dir.join("chat_template.json"))? {
        let json: Json = serde_json::from_str(&text).context("`chat_template.json` is no JSON")?;
        return Ok(named_template(&json["chat_template"]));
    }
    Ok(named_template(&config["chat_template"]))
}

/// A template as a string, or the one called `default` of a list.
fn named_template(value: &Json) -> Option<String> {
    let list = match value {
        Json::String(text) => return Some(text.clone()),
        Json::Array(list) => list,
        _ => return None,
    };
    let is_default = |entry: &&Json| entry["name"] == "default";
    let entry = list.iter().find(is_default).or(list.first())?;
    entry["template"].as_str().map(str::to_owned)
}

/// A text file, `None` where there is none.
fn read_text(path: &Path) -> Result<Option<String>> {
    let in_path = || format!("cannot read `{}`", path.display());
    // Looked at before it is opened: opening a pipe would wait for a writer.
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(in_path),
        Ok(about) => ensure!(
            about.is_file() && about.len() <= TEXT_FILE_BYTES_MAX,
            "`{}` is no regular file of at most {TEXT_FILE_BYTES_MAX} bytes",
            path.display()
        ),
    }
    let file = fs::File::open(path).with_context(in_path)?;
    let mut text = String::new();
    file.take(TEXT_FILE_BYTES_MAX).read_to_string(&mut text).with_context(in_path)?;
    Ok(Some(text))
}
