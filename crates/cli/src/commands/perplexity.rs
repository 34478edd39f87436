//! `moeba perplexity`: how surprised a model is by a text.

use std::num::NonZero;

use anyhow::Result;
use moeba_model::comparison::Prediction;
use serde_json::json;

use crate::args::PerplexityArgs;
use crate::output::{print, print_json};
use crate::settings::Settings;
use crate::windows::{Mean, Windows};

/// Runs the command.
///
/// # Errors
/// If model or text cannot be read, or the model cannot be run.
pub(crate) fn run(args: &PerplexityArgs, settings: &Settings) -> Result<()> {
    let stride = args.stride.map_or_else(|| args.text.ctx.get().div_ceil(2), NonZero::get);
    let mut windows = Windows::open(&args.text, Some(stride), settings)?;
    let mut surprise = Mean::default(); // nats per token
    let rate = windows.each(|window| {
        window.predict(|logits, next| {
            surprise.add(-Prediction::of(logits).log_share(next as usize));
            Ok(())
        })
    })?;
    let perplexity = surprise.mean().exp();
    // The error of exp(x) is exp(x) times that of x.
    let error = perplexity * surprise.error();
    if args.json {
        return print_json(&json!({
            "perplexity": perplexity,
            "perplexity_error": error,
            "nats_per_token": surprise.mean(),
            "tokens_counted": surprise.count(),
            "windows": windows.len(),
            "window_tokens": windows.window(),
            "tokens_per_second": rate,
        }));
    }
    print(&format!(
        "perplexity {perplexity:.4} ± {error:.4}\n\
         {} tokens counted, {} windows of {}, {rate:.0} tokens/s\n",
        surprise.count(),
        windows.len(),
        windows.window(),
    ))
}
