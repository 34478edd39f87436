//! `moeba tokenize`: text to token ids and back.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use moeba_model::files;
use moeba_text::{ChatRequest, Specials, message};
use serde_json::{Value, json};

use crate::args::TokenizeArgs;
use crate::clock;
use crate::input;
use crate::models::Library;
use crate::output::{print, print_json};
use crate::session::Words;
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// If the model has no tokenizer, or the text cannot be encoded or the ids decoded.
pub(crate) fn run(args: &TokenizeArgs, settings: &Settings) -> Result<()> {
    let path = Library::open(settings)?.resolve(args.model.as_deref())?.path;
    let words = Words::of_files(&files::open(&path)?)?;
    let text = input::text_of(args.text.as_deref(), args.file.as_deref())?;
    let ids = if args.decode { input::token_ids(&text)? } else { encode(args, &words, &text)? };
    input::check_tokens(&ids, words.tokenizer.vocabulary_size())?;
    if args.json {
        return print_json(&to_json(&words, &ids));
    }
    if args.decode {
        return print(&(words.tokenizer.decode(&ids, true) + "\n"));
    }
    let mut line = ids.iter().fold(String::new(), |mut line, id| {
        let separator = if line.is_empty() { "" } else { "," };
        let _ = write!(line, "{separator}{id}");
        line
    });
    line.push('\n');
    print(&line)
}

fn encode(args: &TokenizeArgs, words: &Words, text: &str) -> Result<Vec<u32>> {
    let specials = if args.plain { Specials::Plain } else { Specials::Parse };
    if !args.chat {
        return Ok(words.tokenizer.encode(text, specials)?);
    }
    let chat = words.chat.as_ref().context("this model has no chat template")?;
    let messages = [message("user", text)];
    let now = Some(clock::local_seconds());
    let request = ChatRequest { messages: &messages, now, ..ChatRequest::default() };
    Ok(chat.prompt(&request)?.ids)
}

fn to_json(words: &Words, ids: &[u32]) -> Value {
    let pieces: Vec<Value> = ids
        .iter()
        .map(|&id| {
            let bytes = words.tokenizer.token_bytes(id);
            // A token may be a part of a character; then only its bytes can be told.
            let text = std::str::from_utf8(bytes).ok();
            let control = words.tokenizer.is_control(id);
            json!({ "id": id, "text": text, "bytes": bytes, "control": control })
        })
        .collect();
    json!({
        "ids": ids,
        "count": ids.len(),
        "pieces": pieces,
        "text": words.tokenizer.decode(ids, true),
    })
}
