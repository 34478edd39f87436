//! How many parameters a model has, and how many of them work on one token.
//!
//! Counted from the [`ModelSpec`] alone, so a directory that holds only a `config.json` can be
//! judged before anything is downloaded. Embedding and head count in both numbers, as publishers
//! count them; a tied head counts once.

use crate::spec::{
    AttentionBias, DenseFfn, Ffn, FfnBias, Gqa, Head, LayerSpec, Mixer, Mla, ModelSpec, Moe, Norm,
    NormKind, QkNorm, RouterBias, SharedWeight,
};

/// Parameters of a model or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// All of them.
    pub total: u64,
    /// Those that work on one token.
    pub active: u64,
}

impl Parameters {
    fn all(count: usize) -> Parameters {
        Parameters { total: count as u64, active: count as u64 }
    }

    fn plus(self, other: Parameters) -> Parameters {
        Parameters { total: self.total + other.total, active: self.active + other.active }
    }
}

/// Counts a whole model.
pub fn of_model(spec: &ModelSpec) -> Parameters {
    let matrix = spec.vocab_size * spec.hidden_size;
    let ends = match spec.head {
        Head::Tied => matrix,
        Head::Own => 2 * matrix,
        Head::OwnWithBias => 2 * matrix + spec.vocab_size,
    };
    let ends = Parameters::all(ends + norm(spec.final_norm, spec.hidden_size));
    spec.layers.iter().fold(ends, |sum, layer| sum.plus(of_layer(layer, spec.hidden_size)))
}

/// Counts one layer of a model whose residual stream is `hidden_size` wide.
pub fn of_layer(layer: &LayerSpec, hidden_size: usize) -> Parameters {
    let norms = [Some(&layer.mixer_norm), layer.mixer_post_norm.as_ref()]
        .into_iter()
        .chain([Some(&layer.ffn_norm), layer.ffn_post_norm.as_ref()])
        .flatten()
        .map(|n| norm(*n, hidden_size))
        .sum::<usize>();
    let mixer = match &layer.mixer {
        Mixer::Gqa(gqa) => of_gqa(gqa, hidden_size),
        Mixer::Mla(mla) => of_mla(mla, hidden_size),
    };
    let ffn = match &layer.ffn {
        Ffn::Dense(dense) => Parameters::all(of_dense(dense, hidden_size)),
        Ffn::Moe(moe) => of_moe(moe, hidden_size),
    };
    Parameters::all(norms + mixer).plus(ffn)
}

fn norm(norm: Norm, width: usize) -> usize {
    match norm.kind {
        NormKind::RmsBare => 0,
        NormKind::Rms | NormKind::RmsMinusOne => width,
        NormKind::Layer => 2 * width,
    }
}

fn of_gqa(gqa: &Gqa, hidden_size: usize) -> usize {
    let q = gqa.num_attention_heads * gqa.head_dim;
    let kv = gqa.num_key_value_heads * gqa.head_dim;
    let matrices = hidden_size * (q + 2 * kv) + q * hidden_size;
    let biases = match gqa.bias {
        AttentionBias::None => 0,
        AttentionBias::Qkv => q + 2 * kv,
        AttentionBias::QkvAndOutput => q + 2 * kv + hidden_size,
    };
    let norms = match &gqa.qk_norm {
        QkNorm::None => 0,
        QkNorm::PerHead(n) | QkNorm::PerHeadAfterRope(n) => 2 * norm(*n, gqa.head_dim),
        QkNorm::FullWidth(n) => norm(*n, q) + norm(*n, kv),
    };
    let sinks = if gqa.sinks { gqa.num_attention_heads } else { 0 };
    matrices + biases + norms + sinks
}

fn of_mla(mla: &Mla, hidden_size: usize) -> usize {
    let q_width = mla.num_attention_heads * mla.qk_head_dim();
    let query = match mla.q_lora_rank {
        Some(rank) => hidden_size * rank + norm(mla.lora_norm, rank) + rank * q_width,
        None => hidden_size * q_width,
    };
    let latent = hidden_size * mla.cache_dim() + norm(mla.lora_norm, mla.kv_lora_rank);
    let heads = mla.num_attention_heads;
    let unpack = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim);
    query + latent + unpack + heads * mla.v_head_dim * hidden_size
}

/// Counts one gated network.
pub(crate) fn of_dense(dense: &DenseFfn, hidden_size: usize) -> usize {
    let biases = match dense.bias {
        FfnBias::None => 0,
        FfnBias::All => 2 * dense.intermediate_size + hidden_size,
    };
    3 * hidden_size * dense.intermediate_size + biases
}

fn of_moe(moe: &Moe, hidden_size: usize) -> Parameters {
    let expert = of_dense(&moe.expert, hidden_size);
    let bias = match moe.router.bias {
        RouterBias::None => 0,
        RouterBias::Logits | RouterBias::Choice => moe.num_experts,
    };
    let shared = moe.shared.as_ref().map_or(0, |s| of_dense(s, hidden_size));
    let weight = match moe.shared_weight {
        SharedWeight::One => 0,
        SharedWeight::Sigmoid => hidden_size,
    };
    let always = moe.num_experts * hidden_size + bias + shared + weight;
    let total = always + moe.num_experts * expert;
    let active = always + moe.num_experts_per_tok * expert;
    Parameters { total: total as u64, active: active as u64 }
}
