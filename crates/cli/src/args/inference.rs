//! Flags of the commands that compute with a model.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use moeba_engine::Speculation;
use moeba_text::Effort;

use super::ModelArgs;

/// Flags of `moeba run`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag a user types")]
pub(crate) struct RunArgs {
    /// What to ask; `-` reads stdin. Without it: stdin if piped, else a chat
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file; `-` is stdin
    #[arg(long, short, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) file: Option<PathBuf>,
    /// Which model.
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Standing instructions for the model
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Chat template instead of the model's: chatml, qwen, harmony, llama3 … or a Jinja file
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) template: Option<String>,
    /// Give the prompt to the model as it is, without a chat template
    #[arg(long, conflicts_with_all = ["template", "system"])]
    pub(crate) no_template: bool,
    /// Compute the plain way, to compare with: many times slower, no fast arithmetic
    #[arg(long)]
    pub(crate) reference: bool,
    /// How hard to think: none, minimal, low, medium, high, xhigh; the nearest the model knows
    #[arg(long, value_name = "LEVEL", conflicts_with = "no_template")]
    pub(crate) reasoning_effort: Option<Effort>,
    /// Do not show what the model thinks before it answers
    #[arg(long)]
    pub(crate) hide_reasoning: bool,
    /// Tools to offer: a JSON file with a list, as in the OpenAI API. Calls are shown, not made
    #[arg(long, value_name = "FILE", conflicts_with = "no_template")]
    pub(crate) tools: Option<PathBuf>,
    /// Chat even if stdin is no terminal: each line of it is a question or a /command
    #[arg(long, conflicts_with_all = ["prompt", "file", "json"])]
    pub(crate) chat: bool,
    /// Print one JSON object with the answer, token counts and timings
    #[arg(long)]
    pub(crate) json: bool,
    /// Pass terminal control characters in the answer through
    #[arg(long)]
    pub(crate) raw: bool,
    /// No figures on stderr at the end
    #[arg(long)]
    pub(crate) no_stats: bool,
    /// Guess tokens ahead where the text repeats itself: the same answer, often sooner
    #[arg(long, default_value = "auto", value_name = "WHEN")]
    pub(crate) speculate: Speculate,
    /// How to choose tokens.
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// When tokens are guessed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speculate {
    /// While measured times say that it gains
    Auto,
    /// Whenever the end of the text has come before, whatever it costs
    Ngram,
    /// Never
    Off,
}

impl From<Speculate> for Speculation {
    fn from(when: Speculate) -> Self {
        match when {
            Speculate::Auto => Self::Measured,
            Speculate::Ngram => Self::Always,
            Speculate::Off => Self::Off,
        }
    }
}

/// How the next token is chosen. What is not given comes from the model's own advice.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// Spread of choice: 0 always takes the likeliest token [default: the model's advice, or 0.7]
    #[arg(long, value_name = "X", value_parser = non_negative, allow_negative_numbers = true)]
    pub(crate) temperature: Option<f32>,
    /// Keep only the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<u32>,
    /// Keep the likeliest tokens that make up this share of probability
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens less likely than this share of the likeliest
    #[arg(long, value_name = "P", value_parser = share)]
    pub(crate) min_p: Option<f32>,
    /// Divide the logits of tokens already seen by this; 1 is off
    #[arg(long, value_name = "X", value_parser = positive)]
    pub(crate) repeat_penalty: Option<f32>,
    /// Subtract from the logits of tokens already in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) presence_penalty: Option<f32>,
    /// Subtract, once per use, from the logits of tokens already in the answer
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub(crate) frequency_penalty: Option<f32>,
    /// Same seed, same answer [default: drawn, and shown with the figures]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Longest answer, in tokens [default: 1024, or what the context leaves]
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max_tokens: Option<NonZeroUsize>,
    /// Stop when the answer contains this; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

/// Flags of `moeba bench`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag a user types")]
pub(crate) struct BenchArgs {
    /// Which model.
    #[command(flatten)]
    pub(crate) model: super::ModelName,
    /// Prompt lengths to measure, in tokens; 0 for none
    #[arg(long, short, value_delimiter = ',', default_value = "512", value_name = "TOKENS")]
    pub(crate) prompt: Vec<usize>,
    /// Answer lengths to measure, in tokens; 0 for none
    #[arg(long, short = 'n', value_delimiter = ',', default_value = "64", value_name = "TOKENS")]
    pub(crate) generate: Vec<usize>,
    /// How many sequences decode together, in one step each; rates are of all of them
    #[arg(long, short, value_delimiter = ',', default_value = "1", value_name = "SEQUENCES")]
    pub(crate) batch: Vec<usize>,
    /// Tokens of context already there when decoding starts
    #[arg(long, short, default_value_t = 0, value_name = "TOKENS")]
    pub(crate) depth: usize,
    /// Runs of each test, after one that is not counted
    #[arg(long, short, default_value = "5", value_name = "N")]
    pub(crate) runs: NonZeroUsize,
    /// How keys and values are kept
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub(crate) kv_type: super::KvType,
    /// Tell where the time goes, by part and layer, in one more run of each test
    #[arg(long)]
    pub(crate) profile: bool,
    /// Skip measuring the machine's own limits
    #[arg(long)]
    pub(crate) no_machine: bool,
    /// Measure guessing ahead instead: an edit and a story, with and without guesses by turns
    #[arg(long, conflicts_with_all = ["prompt", "batch", "depth", "profile", "no_machine"])]
    pub(crate) speculate: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba probe`.
#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba logits`.
#[derive(Debug, Args)]
pub(crate) struct LogitsArgs {
    /// A GGUF file, a model directory, or a name from `moeba list`
    #[arg(long, short, value_name = "MODEL")]
    pub(crate) model: String,
    /// Token ids: `1,2,3`, or `@FILE` with ids between commas or white space
    #[arg(long, value_name = "IDS")]
    pub(crate) tokens: String,
    /// The safetensors file to write: tensor `logits`, f32, [tokens, vocabulary]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
    /// How keys and values are kept
    #[arg(long, default_value = "f32", value_name = "TYPE")]
    pub(crate) kv_type: super::KvType,
    /// Compute the plain way, to compare with: many times slower, no fast arithmetic
    #[arg(long)]
    pub(crate) reference: bool,
    /// Print what was written as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba verify`.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Which model.
    #[command(flatten)]
    pub(crate) model: super::ModelName,
    /// Text that both paths read; `-` reads stdin [default: some built-in lines]
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["file", "tokens"])]
    pub(crate) text: Option<String>,
    /// Read the text from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "tokens")]
    pub(crate) file: Option<PathBuf>,
    /// Token ids instead of a text: `1,2,3`, or `@FILE`
    #[arg(long, value_name = "IDS")]
    pub(crate) tokens: Option<String>,
    /// Look at some rows of each tensor only, hash no tensors, and check no product alone
    #[arg(long)]
    pub(crate) quick: bool,
    /// An earlier report of --json: hashes must be the same
    #[arg(long, value_name = "REPORT", conflicts_with = "quick")]
    pub(crate) against: Option<PathBuf>,
    /// How the fast path keeps keys and values
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub(crate) kv_type: super::KvType,
    /// Print the whole report as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba tokenize`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag a user types")]
pub(crate) struct TokenizeArgs {
    /// The text; without it, stdin
    #[arg(value_name = "TEXT")]
    pub(crate) text: Option<String>,
    /// A GGUF file, a model directory, or a name from `moeba list` [default: the default model]
    #[arg(long, short, env = "MOEBA_MODEL", value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Read the text from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "text")]
    pub(crate) file: Option<PathBuf>,
    /// Treat `<|im_end|>` and the like as ordinary text
    #[arg(long)]
    pub(crate) plain: bool,
    /// Put the text into the model's chat template, as a user's message, first
    #[arg(long, conflicts_with = "decode")]
    pub(crate) chat: bool,
    /// The other way: TEXT is ids, print their text
    #[arg(long)]
    pub(crate) decode: bool,
    /// Print JSON: ids and the text of each
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a number that is finite and not negative.
pub(super) fn non_negative(text: &str) -> Result<f32, String> {
    number(text, |x| x >= 0.0, "a number of at least 0")
}

/// Parses a number that is finite and above zero.
fn positive(text: &str) -> Result<f32, String> {
    number(text, |x| x > 0.0, "a number above 0")
}

/// Parses a share: 0 to 1.
fn share(text: &str) -> Result<f32, String> {
    number(text, |x| (0.0..=1.0).contains(&x), "a number from 0 to 1")
}

/// Parses a finite number that `fits`, or says what was `wanted`.
fn number(text: &str, fits: impl Fn(f32) -> bool, wanted: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(x) if x.is_finite() && fits(x) => Ok(x),
        _ => Err(format!("expected {wanted}")),
    }
}
