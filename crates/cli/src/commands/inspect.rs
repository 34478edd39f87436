//! `moeba inspect`: what a model is made of and what it would cost to run, without running it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use moeba_kernels::activations::ActKinds;
use moeba_kernels::os::cpu;
use moeba_model::LoadOptions;
use moeba_model::files::{self, Container, TensorHeader};
use moeba_model::inspect::{Inspection, inspect};
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::spec::{Ffn, Mixer, ModelSpec, Moe};
use serde_json::{Value, json};

use super::verify::weights::Verified;
use crate::args::InspectArgs;
use crate::machine;
use crate::models::Library;
use crate::output::{Style, count, harmless, pairs, print, print_json, size, styled, table};
use crate::runner::{ANSWER_LOGITS_MAX, step_tokens_max};
use crate::session::CTX_DEFAULT;
use crate::settings::Settings;

/// Weight formats a model without weights is imagined in, with their bits per weight.
const IMAGINED: [(&str, f64); 4] = [("BF16", 16.0), ("Q8_0", 8.5), ("Q6_K", 6.5625), ("Q4_K", 4.5)];

/// Runs the command.
///
/// # Errors
/// If the model is not here, or cannot be understood.
pub(crate) fn run(args: &InspectArgs, settings: &Settings) -> Result<()> {
    let library = Library::open(settings)?;
    let path = library.locate(args.model.get().unwrap_or(&library.catalogue.default))?;
    // First, because damage may be why the rest cannot be told.
    let verified = if args.verify { Some(Verified::of(&path, args.json, settings)?) } else { None };
    let inspection = inspect(&path, &LoadOptions::default())?;
    let memory = Memory::plan(&inspection, args, settings);
    if args.json {
        let mut shown = to_json(&path, &inspection, &memory, args)?;
        if let Some(verified) = verified {
            shown["verified"] = verified.to_json();
        }
        return print_json(&shown);
    }
    let colours = settings.voice.out_colours;
    let mut text = summary(&path, &inspection, &memory, colours);
    if let Some(verified) = verified {
        let _ = writeln!(text, "{}  {}", styled("verified", Style::Bold, colours), verified.line());
    }
    if args.metadata || args.tensors {
        text.push_str(&listings(&path, &inspection, args, colours)?);
    }
    print(&text)
}

/// What the model would take of this machine's memory.
struct Memory {
    ctx: usize,
    kv_type: String,
    /// `None` where the weights' size is not known.
    plan: Option<MemoryPlan>,
    kv_cache: u64,
    available: u64,
}

impl Memory {
    fn plan(inspection: &Inspection, args: &InspectArgs, settings: &Settings) -> Self {
        let spec = &inspection.spec;
        let ctx = args.ctx.map_or_else(|| spec.context_length.min(CTX_DEFAULT), Into::into);
        let demand = Demand {
            context_tokens: ctx,
            kv_dtype: args.kv_type.into(),
            tokens_max: step_tokens_max(settings.precision),
            logit_rows_max: ANSWER_LOGITS_MAX,
            threads: machine::threads(settings),
            precision: settings.precision,
            input_kinds: inspection.weights.as_ref().map_or(ActKinds::F32, |w| w.input_kinds),
        };
        let weights = inspection.weights.as_ref().map(|weights| weights.bytes_total);
        let available = cpu::ram().available as u64;
        let plan = MemoryPlan::new(spec, weights.unwrap_or(0), &demand, available)
            .unwrap_or_else(|refusal| refusal.plan);
        Self {
            ctx,
            kv_type: format!("{:?}", args.kv_type).to_lowercase(),
            kv_cache: plan.kv_cache,
            plan: weights.map(|_| plan),
            available,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "ctx": self.ctx,
            "kv_type": self.kv_type,
            "kv_cache": self.kv_cache,
            "weights": self.plan.map(|plan| plan.weights),
            "workspace": self.plan.map(|plan| plan.workspace),
            "total": self.plan.map(|plan| plan.total()),
            "available": self.available,
            "fits": self.plan.map(|plan| plan.total() <= self.available),
        })
    }
}

/// The layers that have experts; the first stands for all in summaries.
fn moes(spec: &ModelSpec) -> impl Iterator<Item = &Moe> {
    spec.layers.iter().filter_map(|layer| layer.ffn.moe())
}

fn to_json(
    path: &Path,
    inspection: &Inspection,
    memory: &Memory,
    args: &InspectArgs,
) -> Result<Value> {
    let Inspection { spec, parameters, .. } = inspection;
    let experts = moes(spec).next().map(|moe| {
        json!({
            "count": moe.num_experts,
            "per_token": moe.num_experts_per_tok,
            "shared": moe.shared.is_some(),
            "intermediate_size": moe.expert.intermediate_size,
            "layers": moes(spec).count(),
        })
    });
    let weights = inspection.weights.as_ref().map(|weights| {
        let formats: Vec<Value> = weights
            .formats
            .iter()
            .map(|f| json!({ "format": f.format, "tensors": f.tensors, "bytes": f.bytes }))
            .collect();
        json!({
            "bytes": weights.bytes_total,
            "bytes_per_token": weights.bytes_per_token,
            "bytes_experts": weights.bytes_experts,
            "formats": formats,
            "unused_tensors": weights.unused,
        })
    });
    let mut shown = json!({
        "path": path.display().to_string(),
        "container": container_name(inspection.container),
        "family": spec.family,
        "layers": spec.layers.len(),
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "context_length": spec.context_length,
        "attention": attention(spec),
        "experts": experts,
        "parameters": {
            "total": parameters.total,
            "active": parameters.active,
            "active_share": parameters.active as f64 / parameters.total.max(1) as f64,
        },
        "weights": weights,
        "memory": memory.to_json(),
        "notes": inspection.notes,
    });
    if args.tensors || args.metadata {
        let files = files::open(path)?;
        let tensors = files.tensors.headers().iter().map(|tensor| {
            json!({
                "name": tensor.name,
                "format": format_of(inspection, tensor),
                "stored": tensor.stored.name(),
                "shape": tensor.shape,
                "bytes": tensor.bytes,
            })
        });
        if args.tensors {
            shown["tensors"] = tensors.collect();
        }
        if args.metadata {
            let entries = files.metadata.entries().iter();
            shown["metadata"] =
                entries.map(|(key, value)| (key.clone(), json!(value.describe()))).collect();
        }
    }
    Ok(shown)
}

fn container_name(container: Container) -> &'static str {
    match container {
        Container::Gguf => "gguf",
        Container::HuggingFace => "huggingface",
        Container::Mistral => "mistral",
    }
}

/// Heads in words, of the first layer.
fn attention(spec: &ModelSpec) -> String {
    match spec.layers.first().map(|layer| &layer.mixer) {
        None => "none".to_owned(),
        Some(Mixer::Gqa(gqa)) => format!(
            "{} query heads on {} of keys and values, {} wide",
            gqa.num_attention_heads, gqa.num_key_value_heads, gqa.head_dim
        ),
        Some(Mixer::Mla(mla)) => format!(
            "{} heads over a latent of {} and a rotated key of {}",
            mla.num_attention_heads, mla.kv_lora_rank, mla.qk_rope_head_dim
        ),
    }
}

fn summary(path: &Path, inspection: &Inspection, memory: &Memory, colours: bool) -> String {
    let Inspection { spec, parameters, .. } = inspection;
    let mut rows: Vec<(&str, String)> = vec![
        ("model", path.display().to_string()),
        ("family", format!("{} ({})", spec.family, container_name(inspection.container))),
        ("layers", format!("{}, {} wide", spec.layers.len(), spec.hidden_size)),
        ("attention", attention(spec)),
        ("vocabulary", spec.vocab_size.to_string()),
        ("context", format!("{} tokens", spec.context_length)),
        ("experts", experts(spec)),
    ];
    let share = 100.0 * parameters.active as f64 / parameters.total.max(1) as f64;
    rows.push((
        "parameters",
        format!(
            "{} in all, {} at work on a token ({share:.1} %)",
            count(parameters.total),
            count(parameters.active)
        ),
    ));
    rows.extend(weights(inspection));
    rows.extend(memory_rows(memory));
    rows.extend(inspection.notes.iter().map(|note| ("note", note.clone())));
    pairs(&rows, colours)
}

fn experts(spec: &ModelSpec) -> String {
    let Some(moe) = moes(spec).next() else { return "none: a dense model".to_owned() };
    let dense = spec.layers.iter().filter(|layer| matches!(layer.ffn, Ffn::Dense(_))).count();
    let shared = if moe.shared.is_some() { ", and one for every token" } else { "" };
    let dense = if dense > 0 { format!("; {dense} layers are dense") } else { String::new() };
    format!(
        "{} a layer, {} per token{shared}, {} wide{dense}",
        moe.num_experts, moe.num_experts_per_tok, moe.expert.intermediate_size
    )
}

fn weights(inspection: &Inspection) -> Vec<(&'static str, String)> {
    let Some(weights) = &inspection.weights else {
        let parameters = inspection.parameters;
        return IMAGINED
            .iter()
            .map(|(format, bits)| {
                let bytes = |n: u64| size((n as f64 * bits / 8.0) as u64);
                let (all, token) = (bytes(parameters.total), bytes(parameters.active));
                ("in", format!("{format}: about {all}, {token} read per token"))
            })
            .collect();
    };
    let formats: Vec<String> = weights
        .formats
        .iter()
        .map(|f| format!("{} {} in {} tensors", size(f.bytes), f.format, f.tensors))
        .collect();
    let mut rows = vec![
        ("weights", format!("{}: {}", size(weights.bytes_total), formats.join(", "))),
        ("per token", format!("{} of weights are read", size(weights.bytes_per_token))),
    ];
    if weights.bytes_experts > 0 {
        rows.push(("in experts", size(weights.bytes_experts)));
    }
    if !weights.unused.is_empty() {
        rows.push((
            "unused",
            format!("{} tensors, e.g. {}", weights.unused.len(), weights.unused[0]),
        ));
    }
    rows
}

fn memory_rows(memory: &Memory) -> Vec<(&'static str, String)> {
    let context = format!("{} tokens in {}", memory.ctx, memory.kv_type);
    let Some(plan) = memory.plan else {
        return vec![(
            "memory",
            format!("{} for {context}, beside weights", size(memory.kv_cache)),
        )];
    };
    let verdict = if plan.total() <= memory.available { "fits" } else { "does not fit" };
    vec![(
        "memory",
        format!(
            "{} = weights {} + {} for {context} + scratch {}; {verdict}: {} are free",
            size(plan.total()),
            size(plan.weights),
            size(plan.kv_cache),
            size(plan.workspace),
            size(memory.available)
        ),
    )]
}

/// What a tensor is; the container may only know its packed form.
fn format_of<'a>(inspection: &'a Inspection, tensor: &TensorHeader) -> &'a str {
    let told = inspection.weights.as_ref().and_then(|weights| weights.told.get(&tensor.name));
    told.map_or(tensor.stored.name(), String::as_str)
}

fn listings(
    path: &Path,
    inspection: &Inspection,
    args: &InspectArgs,
    colours: bool,
) -> Result<String> {
    let files = files::open(path)?;
    let mut text = String::new();
    if args.metadata {
        let mut rows = vec![vec!["KEY".to_owned(), "VALUE".to_owned()]];
        for (key, value) in files.metadata.entries() {
            rows.push(vec![harmless(key), harmless(&value.describe())]);
        }
        let _ = write!(text, "\n{}", table(&rows, &[], colours));
    }
    if args.tensors {
        let heading = ["TENSOR", "FORMAT", "SHAPE", "BYTES"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for tensor in files.tensors.headers() {
            rows.push(vec![
                harmless(&tensor.name),
                format_of(inspection, tensor).to_owned(),
                format!("{:?}", tensor.shape),
                tensor.bytes.to_string(),
            ]);
        }
        let _ = write!(text, "\n{}", table(&rows, &[3], colours));
    }
    Ok(text)
}
