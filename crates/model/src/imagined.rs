//! A model nobody has: the tensors that a spec calls for, as they would lie in a GGUF file of some
//! type. What it would cost to run can then be counted as for any other model.
//!
//! The list follows the loader, which asks for exactly these tensors; a test holds it against what
//! conversions make of real files.

use std::path::Path;

use crate::convert::{Target, formats};
use crate::error::{Fault, LoadError};
use crate::families::names::{Naming, Role, bias_of};
use crate::families::{self, Described};
use crate::files::{GgufTensor, ModelFiles, TensorHeader};
use crate::spec::{
    AttentionBias, DenseFfn, Ffn, FfnBias, Gqa, Head, LayerSpec, Mixer, Mla, ModelSpec, Moe, Norm,
    NormKind, QkNorm, RouterBias, SharedWeight,
};
use crate::weights::Turning;
use crate::{LoadOptions, Model};

/// Experts of all layers together, beyond which a configuration is not believed.
const EXPERTS_MAX: usize = 1 << 20;
/// Numbers in vectors, which loading copies, beyond which a configuration is not believed.
const VECTOR_NUMBERS_MAX: usize = 1 << 28;

impl Model {
    /// The model that `files` describe, converted to `target`, and its tensors; one to look at, not
    /// to run. The files need not hold weights.
    pub(crate) fn imagined(
        files: &ModelFiles,
        options: &LoadOptions,
        target: &Target,
    ) -> Result<(Model, Vec<TensorHeader>), LoadError> {
        let Described { spec, asked, notes, .. } = families::describe(files, options)?;
        let (_, naming) = families::in_gguf(spec.family);
        let named = Tensors::of(&spec, naming).0;
        check_size(&files.path, &spec, &named)?;
        let imagined = ModelFiles::imagined(&files.path, &typed(named, target))?;
        let described = Described { spec, naming, asked, notes };
        let model = Model::assemble(&imagined, described, options, Turning::Never)?;
        Ok((model, imagined.tensors.headers().to_vec()))
    }
}

/// Tensors in the formats that `target` gives them.
fn typed(named: Vec<(String, Vec<usize>)>, target: &Target) -> Vec<GgufTensor> {
    let formats = formats(&named, target);
    let tensor = |((name, shape), dtype)| GgufTensor { name, dtype, shape };
    named.into_iter().zip(formats).map(tensor).collect()
}

/// Refuses what is far above anything published, before memory is set aside for it.
fn check_size(
    path: &Path,
    spec: &ModelSpec,
    tensors: &[(String, Vec<usize>)],
) -> Result<(), LoadError> {
    let experts = spec.layers.iter().filter_map(|layer| layer.ffn.moe());
    let experts = experts.fold(0usize, |sum, moe| sum.saturating_add(moe.num_experts));
    let is_vector = |name: &str, shape: &[usize]| shape.len() == 1 || !name.ends_with(".weight");
    let vectors = tensors.iter().filter(|(name, shape)| is_vector(name, shape));
    let numbers = vectors.fold(0usize, |sum, (_, shape)| {
        let product = shape.iter().fold(1usize, |product, len| product.saturating_mul(*len));
        sum.saturating_add(product)
    });
    let fault = Fault::new(path);
    if experts > EXPERTS_MAX {
        return Err(fault
            .expected(format!("at most {EXPERTS_MAX} experts"))
            .found(experts)
            .limit());
    }
    if numbers > VECTOR_NUMBERS_MAX {
        let expected = format!("at most {VECTOR_NUMBERS_MAX} numbers in norms and biases");
        return Err(fault.expected(expected).found(numbers).limit());
    }
    Ok(())
}

/// Names in GGUF and shapes, outermost dimension first.
struct Tensors(Vec<(String, Vec<usize>)>, Naming);

impl Tensors {
    fn of(spec: &ModelSpec, naming: Naming) -> Tensors {
        let mut tensors = Tensors(Vec::new(), naming);
        let ends = [spec.vocab_size, spec.hidden_size];
        tensors.add(Role::Embedding, 0, &ends);
        if spec.head != Head::Tied {
            tensors.add_biased(Role::Head, 0, &ends, spec.head == Head::OwnWithBias);
        }
        tensors.norm(Role::FinalNorm, 0, spec.final_norm, spec.hidden_size);
        for (index, layer) in spec.layers.iter().enumerate() {
            tensors.layer(index, layer, spec.hidden_size);
        }
        tensors
    }

    fn layer(&mut self, index: usize, layer: &LayerSpec, hidden: usize) {
        let norms = [
            (Role::MixerNorm, Some(layer.mixer_norm)),
            (Role::MixerPostNorm, layer.mixer_post_norm),
            (Role::FfnNorm, Some(layer.ffn_norm)),
            (Role::FfnPostNorm, layer.ffn_post_norm),
        ];
        for (role, norm) in norms {
            if let Some(norm) = norm {
                self.norm(role, index, norm, hidden);
            }
        }
        match &layer.mixer {
            Mixer::Gqa(gqa) => self.gqa(index, gqa, hidden),
            Mixer::Mla(mla) => self.mla(index, mla, hidden),
        }
        match &layer.ffn {
            Ffn::Dense(dense) => {
                self.dense([Role::FfnGate, Role::FfnUp, Role::FfnDown], index, dense, hidden);
            }
            Ffn::Moe(moe) => self.moe(index, moe, hidden),
        }
    }

    fn gqa(&mut self, layer: usize, gqa: &Gqa, hidden: usize) {
        let (q, kv) = (gqa.query_width(), gqa.key_width());
        let qkv_biased = gqa.bias != AttentionBias::None;
        self.add_biased(Role::Query, layer, &[q, hidden], qkv_biased);
        self.add_biased(Role::Key, layer, &[kv, hidden], qkv_biased);
        self.add_biased(Role::Value, layer, &[kv, hidden], qkv_biased);
        let out_biased = gqa.bias == AttentionBias::QkvAndOutput;
        self.add_biased(Role::Output, layer, &[hidden, q], out_biased);
        let normed = match gqa.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead(norm) | QkNorm::PerHeadAfterRope(norm) => {
                Some((norm, [gqa.head_dim; 2]))
            }
            QkNorm::FullWidth(norm) => Some((norm, [q, kv])),
        };
        if let Some((norm, [q, k])) = normed {
            self.norm(Role::QueryNorm, layer, norm, q);
            self.norm(Role::KeyNorm, layer, norm, k);
        }
        if gqa.sinks {
            self.add(Role::Sinks, layer, &[gqa.num_attention_heads]);
        }
    }

    fn mla(&mut self, layer: usize, mla: &Mla, hidden: usize) {
        let (heads, latent, v) = (mla.num_attention_heads, mla.kv_lora_rank, mla.v_head_dim);
        let q = heads * mla.qk_head_dim();
        match mla.q_lora_rank {
            None => self.add(Role::Query, layer, &[q, hidden]),
            Some(rank) => {
                self.add(Role::QueryDown, layer, &[rank, hidden]);
                self.norm(Role::QueryDownNorm, layer, mla.lora_norm, rank);
                self.add(Role::QueryUp, layer, &[q, rank]);
            }
        }
        self.add(Role::LatentDown, layer, &[mla.cache_dim(), hidden]);
        self.norm(Role::LatentNorm, layer, mla.lora_norm, latent);
        self.add(Role::LatentKey, layer, &[heads, latent, mla.qk_nope_head_dim]);
        self.add(Role::LatentValue, layer, &[heads, v, latent]);
        self.add(Role::Output, layer, &[hidden, heads * v]);
    }

    fn dense(&mut self, roles: [Role; 3], layer: usize, dense: &DenseFfn, hidden: usize) {
        let ([gate, up, down], width) = (roles, dense.intermediate_size);
        let biased = dense.bias == FfnBias::All;
        self.add_biased(gate, layer, &[width, hidden], biased);
        self.add_biased(up, layer, &[width, hidden], biased);
        self.add_biased(down, layer, &[hidden, width], biased);
    }

    fn moe(&mut self, layer: usize, moe: &Moe, hidden: usize) {
        let (count, width) = (moe.num_experts, moe.expert.intermediate_size);
        let logits_biased = moe.router.bias == RouterBias::Logits;
        self.add_biased(Role::Router, layer, &[count, hidden], logits_biased);
        if moe.router.bias == RouterBias::Choice {
            self.add(Role::RouterChoiceBias, layer, &[count]);
        }
        let biased = moe.expert.bias == FfnBias::All;
        self.add_biased(Role::ExpertGate, layer, &[count, width, hidden], biased);
        self.add_biased(Role::ExpertUp, layer, &[count, width, hidden], biased);
        self.add_biased(Role::ExpertDown, layer, &[count, hidden, width], biased);
        if let Some(shared) = &moe.shared {
            let roles = [Role::SharedGate, Role::SharedUp, Role::SharedDown];
            self.dense(roles, layer, shared, hidden);
        }
        if moe.shared_weight == SharedWeight::Sigmoid {
            self.add(Role::SharedWeight, layer, &[1, hidden]);
        }
    }

    fn norm(&mut self, role: Role, layer: usize, norm: Norm, width: usize) {
        match norm.kind {
            NormKind::RmsBare => {}
            NormKind::Rms | NormKind::RmsMinusOne => self.add(role, layer, &[width]),
            NormKind::Layer => self.add_biased(role, layer, &[width], true),
        }
    }

    fn add(&mut self, role: Role, layer: usize, shape: &[usize]) {
        self.add_biased(role, layer, shape, false);
    }

    /// Adds a tensor and, where it has one, its bias: one number for each row.
    fn add_biased(&mut self, role: Role, layer: usize, shape: &[usize], is_biased: bool) {
        let name = self.1.first(role, layer, 0);
        if is_biased {
            let rows = if shape.len() > 1 { &shape[..shape.len() - 1] } else { shape };
            self.0.push((bias_of(&name), rows.to_vec()));
        }
        self.0.push((name, shape.to_vec()));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;
    use crate::convert::{Conversion, Recipe};
    use crate::files;

    /// The tensors that are imagined from the fixtures' configurations are those that converting
    /// the weights beside them would give, in the same formats, but for what a rope is scaled by.
    #[test]
    fn conversions_give_the_tensors_that_are_imagined() {
        let models = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models");
        let mut families = 0;
        for entry in std::fs::read_dir(models).unwrap() {
            let dir = entry.unwrap().path();
            let files = files::open(&dir).unwrap();
            let target = Target::from_name("Q4_K_M").unwrap();
            let (importance, words) = (None, &[][..]);
            let recipe = Recipe { target, is_pure: false, choose: &|_| None, importance, words };
            let Ok(conversion) = Conversion::plan(&files, &recipe) else { continue };
            let set = |tensors: &[GgufTensor]| -> BTreeSet<(String, Vec<usize>, &str)> {
                let known = tensors.iter();
                let known = known.filter(|t| !families::FACTORS_TENSORS.contains(&&*t.name));
                known.map(|t| (t.name.clone(), t.shape.clone(), t.dtype.name())).collect()
            };
            let spec = families::describe(&files, &LoadOptions::default()).unwrap().spec;
            let (_, naming) = families::in_gguf(spec.family);
            let named = Tensors::of(&spec, naming).0;
            let imagined = set(&typed(named, target));
            let converted = set(conversion.tensors());
            let differing: Vec<_> = imagined.symmetric_difference(&converted).collect();
            assert!(differing.is_empty(), "{}: {differing:?}", dir.display());
            families += 1;
        }
        assert!(families > 15, "{families}");
    }
}
