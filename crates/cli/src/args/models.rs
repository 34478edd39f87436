//! Flags of the commands that obtain, look at and make models.

use std::path::PathBuf;

use clap::Args;

/// Flags of `moeba pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Names from `moeba list`
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Print what was obtained as JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Fetch again even if the model is here
    #[arg(long)]
    pub(crate) force: bool,
}

/// Flags of `moeba list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    /// Only models that are on this machine
    #[arg(long)]
    pub(crate) local: bool,
}

/// Flags of `moeba inspect`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct InspectArgs {
    /// Which model.
    #[command(flatten)]
    pub(crate) model: super::ModelName,
    /// Context length, in tokens, to plan memory for [default: 4096, or less if the model has less]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) ctx: Option<std::num::NonZeroUsize>,
    /// How keys and values would be kept
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub(crate) kv_type: super::KvType,
    /// List every tensor
    #[arg(long)]
    pub(crate) tensors: bool,
    /// List every metadata key
    #[arg(long)]
    pub(crate) metadata: bool,
    /// Read every weight and check that it is a number; exits with 1 if one is not
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba fit`.
#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Which model.
    #[command(flatten)]
    pub(crate) model: super::ModelName,
    /// Context length, in tokens, to plan for [default: 4096, or less if the model has less]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) ctx: Option<std::num::NonZeroUsize>,
    /// Plan as if it were of this type, such as Q4_K_M or MXFP4 [default: as it is or is listed]
    #[arg(long, value_name = "TYPE")]
    pub(crate) quant: Option<String>,
    /// Length of the prompt that prefill is predicted for, in tokens
    #[arg(long, short, default_value = "512", value_name = "TOKENS")]
    pub(crate) prompt: std::num::NonZeroUsize,
    /// How keys and values would be kept
    #[arg(long, default_value = "f16", value_name = "TYPE")]
    pub(crate) kv_type: super::KvType,
    /// Measure nothing: tell the memory plan alone
    #[arg(long)]
    pub(crate) no_machine: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `moeba upcycle`.
#[derive(Debug, Args)]
pub(crate) struct UpcycleArgs {
    /// A dense GGUF of the llama family (or the catalogue name of one)
    pub(crate) input: String,
    /// The GGUF to write
    pub(crate) output: PathBuf,
    /// Experts per layer, each a copy of the layer's feed-forward network
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = up_to_1024())]
    pub(crate) experts: u32,
    /// Experts each token goes to
    #[arg(long, default_value_t = 2, value_name = "K", value_parser = up_to_1024())]
    pub(crate) top_k: u32,
    /// Seed of the routers
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub(crate) seed: u64,
    /// Noise added to the copies, as a share of each tensor's own spread; 0 keeps them exact
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", allow_negative_numbers = true,
        value_parser = super::inference::non_negative)]
    pub(crate) noise: f32,
    /// Overwrite OUTPUT if it exists
    #[arg(long)]
    pub(crate) force: bool,
    /// Print what was made as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Parses a count of experts.
fn up_to_1024() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1024)
}
