//! Llama 2 and 3, and everything published under their name: plain grouped-query attention.
//!
//! GGUF files of Mistral and Mixtral say `llama` too; those with experts are Mixtral's.

use crate::error::LoadError;
use crate::spec::{Ffn, Mixer, ModelSpec};

use super::config::Config;
use super::parts::{
    Attention, INTERMEDIATE, MLP_BIAS, NUM_EXPERTS, dense, layer, model, norm, num_layers,
};
use super::{Family, mixtral};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    hf: &["LlamaForCausalLM"],
    gguf: &["llama"],
    spec,
    defaults: &[],
    names: &[],
};

fn spec(c: &Config) -> Result<ModelSpec, LoadError> {
    if c.is_gguf() && c.count_if_any(NUM_EXPERTS, 0..=usize::MAX)?.is_some_and(|n| n > 0) {
        return mixtral::spec(c);
    }
    c.refuse(MLP_BIAS, "a feed-forward bias")?;
    let mixer = Mixer::Gqa(Attention::PERMUTED.read(c)?);
    let ffn = Ffn::Dense(dense(c, INTERMEDIATE)?);
    let layers = vec![layer(norm(c, 1e-6)?, mixer, ffn); num_layers(c)?];
    model(c, FAMILY.name, layers, false)
}
