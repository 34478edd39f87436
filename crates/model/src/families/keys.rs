//! The hyperparameters of a GGUF file, from the spec: what the families read, answered.
//!
//! Keys are the readers' own, so both directions change together. What other engines expect of
//! every file is always written; the rest where the file's family asks for it. Whether that says
//! all of the spec is found out by reading it again (`convert/`).

use crate::error::LoadError;
use crate::files::{ModelFiles, Value};
use crate::spec::{
    Ffn, Gqa, Mask, Mixer, Mla, ModelSpec, Moe, QueryScale, Renormalise, Rope, RopeScaling,
    RouterScore,
};

use super::config::{INTERMEDIATE_MAX, Key, key};
use super::rope::{
    GGUF_ATTENTION, GGUF_DIM, GGUF_FACTOR, GGUF_FAST, GGUF_ORIGINAL, GGUF_SLOW, GGUF_TYPE, RopeFrom,
};
use super::{find, gemma3, granitemoe, latent, llama4, mistral4, olmoe, parts, routed};
use crate::LoadOptions;

/// What cosine and sine are multiplied by beside what the scaling says.
pub(crate) const AMPLITUDE: &str = GGUF_ATTENTION.gguf;

/// A key of a file to be.
pub(crate) struct Written {
    /// Without the architecture.
    pub(crate) name: &'static str,
    pub(crate) value: Value,
    /// Whether only families get it that ask for it.
    pub(crate) if_asked: bool,
}

/// What GGUF has a place for and specs have none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unspoken {
    /// Width of dense networks, where no layer has one.
    intermediate_size: Option<usize>,
    /// The weight of YaRN's magnitude in the scale of scores.
    yarn_weight: Option<f64>,
    /// The context first trained on, where the rope has factors for longer ones.
    original: Option<f64>,
}

impl Unspoken {
    /// What `files` say.
    pub(crate) fn read(files: &ModelFiles) -> Result<Unspoken, LoadError> {
        const ORIGINAL: Key = key(
            &[
                "rope_parameters.original_max_position_embeddings",
                "rope_scaling.original_max_position_embeddings",
                "original_max_position_embeddings",
            ],
            "",
        );
        let (_, c) = find(files, &LoadOptions::default())?;
        Ok(Unspoken {
            intermediate_size: c.count_if_any(parts::INTERMEDIATE, 0..=INTERMEDIATE_MAX)?,
            yarn_weight: latent::mscale_weight(&c)?,
            original: c.number_if_any(ORIGINAL)?,
        })
    }
}

/// The keys that say what the spec says.
pub(crate) fn keys(spec: &ModelSpec, unspoken: Unspoken) -> Vec<Written> {
    let mut keys = Keys { unspoken, written: Vec::new() };
    keys.count(parts::VOCAB_SIZE, spec.vocab_size);
    keys.count(parts::CONTEXT, spec.context_length);
    keys.count(parts::HIDDEN_SIZE, spec.hidden_size);
    keys.count(parts::NUM_LAYERS, spec.layers.len());
    keys.number(parts::EPS, spec.final_norm.eps);
    keys.if_asked(granitemoe::EMBEDDING, Value::F32(spec.embedding_scale));
    keys.if_asked(granitemoe::RESIDUAL, Value::F32(spec.layers[0].residual_scale));
    keys.if_asked(granitemoe::LOGITS, Value::F32((1.0 / f64::from(spec.logit_scale)) as f32));
    if let Some(cap) = spec.logit_softcap {
        keys.number(gemma3::FINAL_SOFTCAP, cap);
    }
    // Layers may differ in their windows and in whether they turn queries and keys; everything
    // else is that of the first full layer that does, or of the first that does.
    let mixers = || spec.layers.iter().map(|layer| &layer.mixer);
    let roped = |mixer: &&Mixer| mixer.rope().is_some();
    let full = |mixer: &&Mixer| roped(mixer) && window_of(mixer).is_none();
    match mixers().find(full).or(mixers().find(roped)).unwrap_or(&spec.layers[0].mixer) {
        Mixer::Gqa(gqa) => keys.gqa(gqa),
        Mixer::Mla(mla) => keys.mla(mla),
    }
    if let Some((mixer, window)) = mixers().find_map(|mixer| Some((mixer, window_of(mixer)?))) {
        keys.count(parts::SLIDING_WINDOW, window);
        if let Some(rope) = mixer.rope() {
            keys.if_asked(gemma3::LOCAL_BASE, Value::F32(rope.base as f32));
        }
    }
    if let Some((beta, original)) = mixers().find_map(query_scale_of) {
        keys.number(parts::QUERY_BETA, beta);
        keys.if_asked(mistral4::BETA_LENGTH, Value::U32(original));
    }
    keys.ffn(spec);
    keys.written
}

/// The first rope that turns anything.
pub(crate) fn first_rope(spec: &ModelSpec) -> Option<&Rope> {
    spec.layers.iter().find_map(|layer| layer.mixer.rope())
}

fn window_of(mixer: &Mixer) -> Option<usize> {
    match mixer {
        Mixer::Gqa(Gqa { mask: Mask::Sliding(window) | Mask::Chunked(window), .. }) => {
            Some(*window)
        }
        _ => None,
    }
}

fn query_scale_of(mixer: &Mixer) -> Option<(f32, u32)> {
    match mixer {
        Mixer::Gqa(Gqa { query_scale: QueryScale::LogSteps { beta, original, .. }, .. })
        | Mixer::Mla(Mla { query_scale: QueryScale::LogSteps { beta, original, .. }, .. }) => {
            Some((*beta, *original))
        }
        _ => None,
    }
}

/// Before which layer no network is a mixture, and at which step they are: layer `l` from there on
/// is one if `step` divides `l + 1`; where possible, all such layers are. What cannot be said so is
/// found when it is read again.
fn sparse_layers(spec: &ModelSpec) -> (usize, usize) {
    let sparse: Vec<bool> = spec.layers.iter().map(|layer| layer.ffn.moe().is_some()).collect();
    let first = sparse.iter().position(|sparse| *sparse).unwrap_or(sparse.len());
    let said = |from: usize, step: usize| {
        let says = |layer: usize| layer >= from && (layer + 1).is_multiple_of(step);
        sparse.iter().enumerate().all(|(layer, sparse)| says(layer) == *sparse)
    };
    let mut steps = [0, first]
        .into_iter()
        .flat_map(|from| (1..=sparse.len()).filter(move |step| said(from, *step)));
    (first, steps.next().unwrap_or(1))
}

struct Keys {
    unspoken: Unspoken,
    written: Vec<Written>,
}

impl Keys {
    fn put(&mut self, key: Key, value: Value) {
        self.written.push(Written { name: key.gguf, value, if_asked: false });
    }

    fn count(&mut self, key: Key, value: usize) {
        self.put(key, Value::U32(value as u32));
    }

    fn number(&mut self, key: Key, value: f32) {
        self.put(key, Value::F32(value));
    }

    fn if_asked(&mut self, key: Key, value: Value) {
        self.written.push(Written { name: key.gguf, value, if_asked: true });
    }

    fn gqa(&mut self, gqa: &Gqa) {
        self.count(parts::HEADS, gqa.num_attention_heads);
        self.count(parts::KV_HEADS, gqa.num_key_value_heads);
        self.count(parts::HEAD_DIM, gqa.head_dim);
        self.count(parts::VALUE_DIM, gqa.head_dim);
        self.if_asked(granitemoe::ATTENTION, Value::F32(gqa.scale));
        if let Some(cap) = gqa.score_softcap {
            self.number(gemma3::SCORE_SOFTCAP, cap);
        }
        if let Some(clip) = gqa.clip {
            self.number(olmoe::CLIP, clip);
        }
        let Some(rope) = &gqa.rope else { return };
        self.rope(rope);
        // The weight of the magnitude that is divided out again: none, or all of it.
        if matches!(&rope.scaling, RopeScaling::Yarn(yarn) if yarn.attention_factor == 1.0) {
            self.if_asked(latent::MSCALE, Value::F32(1.0));
        }
    }

    /// Elsewhere latent attention is attention with one key/value head: latent, then rope part.
    fn mla(&mut self, mla: &Mla) {
        self.count(parts::HEADS, mla.num_attention_heads);
        self.count(parts::KV_HEADS, 1);
        if let Some(rank) = mla.q_lora_rank {
            self.count(latent::Q_RANK, rank);
        }
        self.count(latent::KV_RANK, mla.kv_lora_rank);
        self.count(parts::HEAD_DIM, mla.cache_dim());
        self.count(parts::VALUE_DIM, mla.kv_lora_rank);
        self.count(latent::KEY_DIM, mla.qk_head_dim());
        self.count(latent::VALUE_DIM, mla.v_head_dim);
        self.rope(&mla.rope);
        let is_yarn = matches!(mla.rope.scaling, RopeScaling::Yarn(_));
        if let Some(weight) = self.unspoken.yarn_weight.filter(|_| is_yarn) {
            self.number(latent::MSCALE, (weight * latent::GGUF_MSCALE_UNIT) as f32);
        }
    }

    fn rope(&mut self, rope: &Rope) {
        self.count(GGUF_DIM, rope.dim);
        self.number(RopeFrom::model(0.0).base, rope.base as f32);
        let kind = |name: &str| Value::Text(name.to_owned());
        match &rope.scaling {
            RopeScaling::None | RopeScaling::Llama3(_) => {}
            RopeScaling::Linear { factor } => {
                self.put(GGUF_TYPE, kind("linear"));
                self.number(GGUF_FACTOR, *factor as f32);
            }
            RopeScaling::Yarn(yarn) => {
                self.put(GGUF_TYPE, kind("yarn"));
                self.number(GGUF_FACTOR, yarn.factor as f32);
                self.count(GGUF_ORIGINAL, yarn.original as usize);
                self.number(GGUF_FAST, yarn.beta_fast as f32);
                self.number(GGUF_SLOW, yarn.beta_slow as f32);
            }
            RopeScaling::Factors { amplitude, .. } => {
                if let Some(original) = self.unspoken.original {
                    self.count(GGUF_ORIGINAL, original as usize);
                }
                self.number(GGUF_ATTENTION, *amplitude);
            }
        }
    }

    fn ffn(&mut self, spec: &ModelSpec) {
        let layers = || spec.layers.iter().map(|layer| &layer.ffn);
        let dense = layers().find_map(|ffn| match ffn {
            Ffn::Dense(dense) => Some(dense.intermediate_size),
            Ffn::Moe(_) => None,
        });
        let mixture = layers().find_map(Ffn::moe);
        let width = mixture.map_or(0, |moe| moe.expert.intermediate_size);
        let dense = dense.or(self.unspoken.intermediate_size).unwrap_or(width);
        self.count(parts::INTERMEDIATE, dense);
        let (first, step) = if mixture.is_some() { sparse_layers(spec) } else { (0, 0) };
        self.if_asked(routed::DENSE_LAYERS, Value::U32(first as u32));
        self.if_asked(llama4::MOE_STEP, Value::U32(step as u32));
        if let Some(moe) = mixture {
            self.moe(moe);
        }
    }

    fn moe(&mut self, moe: &Moe) {
        let (width, router) = (moe.expert.intermediate_size, &moe.router);
        self.count(parts::NUM_EXPERTS, moe.num_experts);
        self.count(parts::EXPERTS_PER_TOK, moe.num_experts_per_tok);
        self.count(parts::EXPERT_INTERMEDIATE, width);
        let shared = moe.shared.as_ref().map_or(0, |shared| shared.intermediate_size);
        self.if_asked(routed::SHARED, Value::U32((shared / width.max(1)) as u32));
        if shared > 0 {
            self.if_asked(granitemoe::SHARED, Value::U32(shared as u32));
        }
        self.if_asked(routed::ROUTED_SCALE, Value::F32(router.scale));
        let is_normed = router.renormalise != Renormalise::Never;
        self.if_asked(routed::NORM_TOPK, Value::Bool(is_normed));
        match router.score {
            RouterScore::Softmax => self.if_asked(routed::GATING, Value::U32(routed::SOFTMAX)),
            RouterScore::Sigmoid => self.put(routed::GATING, Value::U32(routed::SIGMOID)),
            _ => {}
        }
        let groups = router.groups.map_or([1, 1], |groups| [groups.count, groups.keep]);
        self.if_asked(routed::GROUPS, Value::U32(groups[0] as u32));
        self.if_asked(routed::GROUPS_KEPT, Value::U32(groups[1] as u32));
    }
}
