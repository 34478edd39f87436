//! `moeba logits`: what the model says, in numbers, for comparing with other engines.

use std::path::Path;

use anyhow::Result;
use moeba_model::{LoadOptions, Model};
use serde_json::json;

use crate::args::LogitsArgs;
use crate::input;
use crate::machine;
use crate::models::Library;
use crate::models::store::Unfinished;
use crate::output::{note, print_json};
use crate::predictions::header;
use crate::runner::Runner;
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// If the tokens are no tokens of the model, or anything cannot be read, run or written.
pub(crate) fn run(args: &LogitsArgs, settings: &Settings) -> Result<()> {
    let tokens = input::tokens_typed(&args.tokens)?;
    let path = Library::open(settings)?.resolve(Some(&args.model))?.path;
    let context_tokens = Some(tokens.len());
    let options = LoadOptions { context_tokens, ..settings.load_options() };
    let model = Model::load(&path, &options)?;
    let vocab_size = model.spec().vocab_size;
    input::check_tokens(&tokens, vocab_size)?;
    let pool = machine::pool(settings)?;
    let mut runner = Runner::new(model, pool, tokens.len(), args.kv_type.into())?;
    if args.reference {
        runner.use_reference();
        if settings.voice.chatty {
            note("note: computing the plain way, which is slow");
        }
    }
    let output = super::output_file(&args.output)?;
    write_logits(&output, &tokens, vocab_size, &mut runner)?;
    if settings.voice.chatty {
        note(&format!("wrote `logits` [{}, {vocab_size}] of f32", tokens.len()));
    }
    if !args.json {
        return Ok(());
    }
    print_json(&json!({
        "path": output.display().to_string(),
        "tensor": "logits",
        "shape": [tokens.len(), vocab_size],
        "expert_bytes": runner.expert_bytes,
    }))
}

/// Streams the tensor into a temporary file, then gives it its name.
fn write_logits(path: &Path, tokens: &[u32], vocab_size: usize, runner: &mut Runner) -> Result<()> {
    let mut out = Unfinished::create(path)?;
    let bytes = tokens.len() as u64 * vocab_size as u64 * 4;
    let shape = [tokens.len(), vocab_size];
    out.put(&header(json!({
        "logits": { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] },
    })))?;
    runner.score(tokens, |rows| rows.iter().try_for_each(|x| out.put(&x.to_le_bytes())))?;
    out.publish().map(drop)
}
