//! `moeba fit`: whether a model fits this machine and how fast it will be, before it is fetched.
//!
//! What the model needs is counted from its files, or from a configuration alone; what the machine
//! and its disk can do is measured, within seconds. Predictions are ranges, made by
//! [`moeba_model::prediction`] alone.

mod report;
mod subject;

use std::io;

use anyhow::{Result, ensure};
use moeba_kernels::os::cpu;
use moeba_kernels::probe::MachineLimits;
use moeba_kernels::probe::disk::{self, DiskRate};
use moeba_model::convert::Target;
use moeba_model::inspect::{Inspection, WeightSummary, imagine};
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::prediction::{self, Conditions, Limits, Span, Streaming};

use crate::args::FitArgs;
use crate::machine;
use crate::models::Library;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::runner::{ANSWER_LOGITS_MAX, step_tokens_max};
use crate::session::CTX_DEFAULT;
use crate::settings::Settings;

use subject::{Place, Subject};

/// Everything the command tells.
struct Fit {
    subject: Subject,
    /// Tokens of context that are planned for.
    ctx: usize,
    kv_type: String,
    memory: Memory,
    machine: Option<MachineLimits>,
    /// Of the machine, before anything was measured.
    load: Option<f64>,
    disk: Option<Disk>,
    predicted: Option<Predicted>,
    /// Only looked for if the model does not fit.
    alternatives: Vec<Alternative>,
}

/// What the model takes of the memory there is.
struct Memory {
    plan: MemoryPlan,
    available: u64,
    /// The longest context that fits, as far as the model has one.
    ctx_max: usize,
}

/// The disk the model lies on, or would.
struct Disk {
    rate: io::Result<DiskRate>,
    free_bytes: Option<u64>,
}

/// Tokens per second.
struct Predicted {
    /// Of a prompt of so many tokens.
    prefill: (usize, Span),
    /// At the beginning of a context, and at its end.
    decode: [(usize, Span); 2],
    /// If the model does not fit, but what is no expert does.
    streaming: Option<Streaming>,
}

/// Something that would fit.
struct Alternative {
    /// What to type.
    name: String,
    /// Weights, cache and scratch.
    bytes: u64,
}

/// Runs the command.
///
/// # Errors
/// If there is no such model, or its shape is not known.
pub(crate) fn run(args: &FitArgs, settings: &Settings) -> Result<()> {
    let library = Library::open(settings)?;
    let subject = Subject::find(args, &library, settings)?;
    let claimed = subject.inspection.spec.context_length;
    let ctx = args.ctx.map_or_else(|| claimed.min(CTX_DEFAULT), Into::into);
    ensure!(ctx <= claimed, "--ctx {ctx} is more than the model's context of {claimed} tokens");
    let demand = |inspection: &Inspection, context_tokens| Demand {
        context_tokens,
        kv_dtype: args.kv_type.into(),
        tokens_max: step_tokens_max(settings.precision),
        logit_rows_max: ANSWER_LOGITS_MAX,
        threads: machine::threads(settings),
        precision: settings.precision,
        input_kinds: weights(inspection).input_kinds,
    };
    let (available, load) = (cpu::ram().available, machine::load());
    let needed = |inspection: &Inspection| {
        let ctx = ctx.min(inspection.spec.context_length);
        planned(inspection, &demand(inspection, ctx), available).0
    };
    let everything = demand(&subject.inspection, claimed);
    let (_, ctx_max) = planned(&subject.inspection, &everything, available);
    let memory = Memory { plan: needed(&subject.inspection), available, ctx_max };
    let machine = if args.no_machine {
        None
    } else {
        machine::limits(&machine::pool(settings)?, settings.voice).ok()
    };
    let disk = (!args.no_machine).then(|| Disk::measure(&subject.place, settings));
    let predicted =
        machine.as_ref().map(|limits| predict(&subject, &memory, args, (ctx, settings), limits));
    let alternatives = if memory.fits() {
        Vec::new()
    } else {
        let needed = |inspection: &Inspection| needed(inspection).total();
        alternatives(&subject, &library, &needed, available)
    };
    let kv_type = format!("{:?}", args.kv_type).to_lowercase();
    let fit = Fit { subject, ctx, kv_type, memory, machine, load, disk, predicted, alternatives };
    if args.json {
        return print_json(&report::to_json(&fit));
    }
    print(&report::to_text(&fit, settings.voice.out_colours))
}

/// The weights of something inspected here, which are always known or imagined.
fn weights(inspection: &Inspection) -> &WeightSummary {
    inspection.weights.as_ref().expect("a subject without weights is imagined with some")
}

/// What is needed, and the longest context that fits into `have` bytes.
fn planned(inspection: &Inspection, demand: &Demand, have: u64) -> (MemoryPlan, usize) {
    let bytes = weights(inspection).bytes_total;
    match MemoryPlan::new(&inspection.spec, bytes, demand, have) {
        Ok(plan) => (plan, demand.context_tokens),
        Err(refusal) => (refusal.plan, refusal.context_tokens_max),
    }
}

/// What of the machine's limits the model will reach.
fn predict(
    subject: &Subject,
    memory: &Memory,
    args: &FitArgs,
    (ctx, settings): (usize, &Settings),
    limits: &MachineLimits,
) -> Predicted {
    let WeightSummary { cost, bytes_experts, .. } = weights(&subject.inspection);
    let conditions = Conditions {
        kv_dtype: args.kv_type.into(),
        precision: settings.precision,
        step_tokens_max: memory.plan.tokens_max,
    };
    let limits = Limits::from(limits);
    let prompt = args.prompt.get().min(ctx);
    let decode = |depth| (depth, prediction::decode(cost, depth, &conditions, &limits));
    let streaming = (!memory.fits() && *bytes_experts > 0)
        .then(|| prediction::streaming(&memory.plan, cost, *bytes_experts, memory.available));
    Predicted {
        prefill: (prompt, prediction::prefill(cost, prompt, &conditions, &limits)),
        decode: [decode(0), decode(ctx - 1)],
        streaming: streaming.flatten(),
    }
}

/// What would fit instead: the finest type of this model, and the largest model of the catalogue.
fn alternatives(
    subject: &Subject,
    library: &Library,
    needed: &dyn Fn(&Inspection) -> u64,
    available: u64,
) -> Vec<Alternative> {
    let own = weights(&subject.inspection).bytes_total;
    let types = Target::all().filter_map(|target| {
        let found = imagine(&subject.files, &subject.options, target).ok()?;
        let (bytes, smaller) = (needed(&found), weights(&found).bytes_total < own);
        (smaller && bytes <= available).then_some((bytes, target))
    });
    let finest = types.max_by_key(|(bytes, _)| *bytes);
    let finest = finest.map(|(bytes, target)| {
        let name = format!("{} as {}", subject.name, target.name);
        Alternative { name, bytes }
    });
    let entries = library.catalogue.models.iter().filter(|entry| entry.name != subject.name);
    let models = entries.filter_map(|entry| {
        let found = Subject::listed(entry, None, &subject.options).ok()?;
        let bytes = needed(&found.inspection);
        (bytes <= available).then_some((entry, bytes))
    });
    // Of models of one size the first that is listed.
    let largest = models.rev().max_by_key(|(entry, _)| entry.total_params);
    let largest = largest.map(|(entry, bytes)| Alternative { name: entry.name.clone(), bytes });
    finest.into_iter().chain(largest).collect()
}

impl Memory {
    fn fits(&self) -> bool {
        self.plan.total() <= self.available
    }
}

impl Disk {
    fn measure(place: &Place, settings: &Settings) -> Self {
        let waiting = Progress::new(settings.voice).wait("measuring the disk");
        let (rate, dir) = match place {
            Place::File(path) => (disk::of_file(path), path.parent().filter(|p| p.is_dir())),
            Place::Directory(dir) => (disk::of_directory(dir), Some(dir.as_path())),
        };
        waiting.clear();
        let free_bytes = disk::free_bytes(dir.unwrap_or(".".as_ref())).ok();
        Self { rate, free_bytes }
    }

    /// Bytes per second, if they could be measured.
    fn bytes_per_s(&self) -> Option<f64> {
        self.rate.as_ref().ok().map(|rate| rate.bytes_per_s)
    }
}
