//! What a user may type: every command and flag, as data.
//!
//! Help, shell completions and man pages all come from these definitions. They hold what was
//! *typed*; [`crate::settings`] turns it, with the environment, into what it *means*.

mod inference;
mod models;
mod quantise;

use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum};
use moeba_kernels::activations::Precision;

pub(crate) use inference::{
    BenchArgs, LogitsArgs, ProbeArgs, RunArgs, SamplingArgs, TokenizeArgs, VerifyArgs,
};
pub(crate) use models::{FitArgs, InspectArgs, ListArgs, PullArgs, UpcycleArgs};
pub(crate) use quantise::{ImatrixArgs, KldArgs, PerplexityArgs, QuantizeArgs, TextArgs};

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "moeba",
    version,
    about = "Run Mixture-of-Experts language models on a CPU, fast.",
    long_about = "Run Mixture-of-Experts language models on a CPU, fast.\n\n\
        Start with `moeba run \"Explain mixture of experts to a child.\"`: the default model is \
        obtained once, checked, and used. Answers go to stdout, everything else to stderr.",
    after_help = "Exit codes: 0 done, 1 could not be done, 2 asked for wrongly, 130 Ctrl-C.",
    disable_help_subcommand = true,
    propagate_version = false
)]
pub(crate) struct Cli {
    /// Flags every command takes.
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(crate) struct GlobalArgs {
    /// Threads to compute with [default: one per physical core we may use]
    #[arg(long, short = 't', global = true, env = "MOEBA_THREADS", value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Instruction set to use [default: the best this CPU has]
    #[arg(long, global = true, env = "MOEBA_ISA", value_name = "ISA")]
    pub(crate) isa: Option<IsaChoice>,
    /// How finely inputs of quantised weights are rounded [default: mixed; 16 for `logits`, `kld`,
    /// `perplexity` and `verify`]
    #[arg(long, global = true, env = "MOEBA_ACTIVATIONS", value_name = "BITS")]
    pub(crate) activations: Option<ActivationBits>,
    /// Give the same tokens for the same request, alone or beside others, whatever of its prompt
    /// was computed before: no mixed rounding
    #[arg(long, global = true)]
    pub(crate) deterministic: bool,
    /// How attention is scaled where engines disagree, as about Mistral Small 4
    #[arg(
        long,
        global = true,
        default_value = "trained",
        value_name = "HOW",
        hide_short_help = true
    )]
    pub(crate) attention_scale: AttentionScale,
    /// When to use colours
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    pub(crate) color: ColorChoice,
    /// Say nothing on stderr but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// The instruction sets a user can force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsaChoice {
    /// Plain Rust: slow, and the reference for all others
    Scalar,
    /// AVX2 with FMA
    Avx2,
    /// AVX-512 with VNNI
    Avx512,
    /// AVX-512, and AMX tiles for prompts
    Amx,
}

/// How attention is scaled where engines disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AttentionScale {
    /// As its makers' engines do, also where a GGUF file has lost how
    Trained,
    /// As llama.cpp does: scores also by YaRN's magnitude, queries only as the file says
    LlamaCpp,
}

/// How finely the inputs of quantised weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActivationBits {
    /// As most engines do
    #[value(name = "8")]
    Eight,
    /// Twice 8 bits
    #[value(name = "16")]
    Sixteen,
    /// 16; where many tokens share a product, bfloats on CPUs with AMX: prompts are read several
    /// times faster
    Mixed,
}

impl From<ActivationBits> for Precision {
    fn from(bits: ActivationBits) -> Self {
        match bits {
            ActivationBits::Eight => Self::Eight,
            ActivationBits::Sixteen => Self::Sixteen,
            ActivationBits::Mixed => Self::Mixed,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Ask a model: one answer to a prompt, or a chat when there is none
    #[command(visible_alias = "chat")]
    Run(RunArgs),
    /// Fetch a model of the catalogue, checked and resumable
    Pull(PullArgs),
    /// List the catalogue's models and which are here
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Show what a model is made of: experts, parameters, bytes per token, memory
    Inspect(InspectArgs),
    /// Tell, before a model is fetched, whether it fits here and how fast it will be
    #[command(
        long_about = "Tell, before a model is fetched, whether it fits here and how fast it \
        will be.\n\nMODEL may also be a config.json alone, under any name. The machine and the \
        disk are measured for a few seconds; predictions are ranges."
    )]
    Fit(FitArgs),
    /// Prove a model: weights, hashes, and every layer against plain arithmetic
    Verify(VerifyArgs),
    /// Measure prefill and decode speed, next to what this machine can do
    Bench(BenchArgs),
    /// Measure this machine's own limits: memory bandwidth and arithmetic
    Probe(ProbeArgs),
    /// Write the logits of given tokens to a safetensors file
    Logits(LogitsArgs),
    /// Turn text into token ids, or ids into text
    Tokenize(TokenizeArgs),
    /// Convert a model to another type, as GGUF: smaller, or ready for other engines
    Quantize(QuantizeArgs),
    /// Measure on a text which weights matter, for `quantize`
    Imatrix(ImatrixArgs),
    /// Measure how surprised a model is by a text
    Perplexity(PerplexityArgs),
    /// Measure how far a model's predictions are from those of another type or engine
    Kld(KldArgs),
    /// Make a Mixture of Experts out of a dense model
    Upcycle(UpcycleArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell: bash, zsh, fish, elvish or powershell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write one per command to a directory
    Man {
        /// Directory to write `moeba.1`, `moeba-run.1` … to
        dir: Option<std::path::PathBuf>,
    },
}

/// Which model to look at.
#[derive(Debug, Args)]
pub(crate) struct ModelName {
    /// A GGUF file, a model directory, or a name from `moeba list` [default: the default model]
    #[arg(long, short, env = "MOEBA_MODEL", value_name = "MODEL")]
    model: Option<String>,
    /// The same, without -m
    #[arg(value_name = "MODEL")]
    typed: Option<String>,
}

impl ModelName {
    /// What is typed without -m wins over the environment, which counts as -m.
    pub(crate) fn get(&self) -> Option<&str> {
        self.typed.as_deref().or(self.model.as_deref())
    }
}

/// Which model, and how much context to give it.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A GGUF file, a model directory, or a name from `moeba list` [default: the default model]
    #[arg(long, short, env = "MOEBA_MODEL", value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Tokens of context to make room for [default: 4096, or less if the model has less]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) ctx: Option<std::num::NonZeroUsize>,
    /// How keys and values are kept: f16 is the usual choice, q8 takes half of it
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub(crate) kv_type: KvType,
}

/// Formats of the key/value cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvType {
    /// 4 bytes a number: exact
    F32,
    /// 2 bytes a number
    F16,
    /// 2 bytes a number, wider range
    Bf16,
    /// A little over 1 byte a number
    Q8,
}
