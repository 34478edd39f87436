//! The text that both paths read.

use anyhow::{Context, Result, ensure};
use moeba_model::files::ModelFiles;
use moeba_text::Specials;

use crate::args::VerifyArgs;
use crate::input;
use crate::session::Words;

/// What is read where nobody says otherwise: prose, numbers, code and other scripts, so that many
/// experts get something to do.
const TEXT: &str = "The lighthouse keeper counted 1,984 waves before the storm broke: \
    \"Not yet,\" she said, and lit the lamp. Elle pensait à la mer; er dachte an den Wind; \
    海は静かだった。 Энергия равна mc². \
    fn area(r: f64) -> f64 { std::f64::consts::PI * r * r } \
    | day | rain mm |\n| Mon | 12.5 | {\"ok\": true, \"next\": [3, 5, 8, 13]} 🙂";
/// Most tokens taken from a text: the reference is slow.
const TOKENS_MAX: usize = 4096;
/// Tokens of the built-in text that are used.
const TEXT_TOKENS: usize = 96;
/// Tokens where there is no tokenizer.
const DRAWN_TOKENS: usize = 64;

/// The tokens, and where they are from.
pub(super) struct Probe {
    pub(super) tokens: Vec<u32>,
    pub(super) from: &'static str,
}

impl Probe {
    /// Takes what the arguments say, else the built-in text, else tokens that mean nothing.
    ///
    /// # Errors
    /// If there is no such file, no tokenizer for a given text, or the text is empty or too long.
    pub(super) fn new(args: &VerifyArgs, files: &ModelFiles, vocab_size: usize) -> Result<Self> {
        let probe = if let Some(typed) = &args.tokens {
            Self { tokens: input::tokens_typed(typed)?, from: "tokens given" }
        } else if args.text.is_some() || args.file.is_some() {
            let text = input::text_of(args.text.as_deref(), args.file.as_deref())?;
            let words = Words::of_files(files).context("a text needs a tokenizer; see --tokens")?;
            Self {
                tokens: words.tokenizer.encode_document(&text, Specials::Plain)?,
                from: "text given",
            }
        } else if let Ok(words) = Words::of_files(files) {
            let mut tokens = words.tokenizer.encode_document(TEXT, Specials::Plain)?;
            tokens.truncate(TEXT_TOKENS);
            Self { tokens, from: "built-in text" }
        } else {
            Self { tokens: drawn(vocab_size), from: "arbitrary tokens, for want of a tokenizer" }
        };
        let count = probe.tokens.len();
        ensure!(count > 0, "there is nothing to read");
        ensure!(count <= TOKENS_MAX, "`{count}` tokens; at most {TOKENS_MAX} are verified");
        input::check_tokens(&probe.tokens, vocab_size)?;
        Ok(probe)
    }
}

/// Tokens from all over the vocabulary, always the same.
fn drawn(vocab_size: usize) -> Vec<u32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) % vocab_size as u64) as u32
    };
    (0..DRAWN_TOKENS).map(|_| next()).collect()
}
