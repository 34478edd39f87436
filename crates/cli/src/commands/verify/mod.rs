//! `moeba verify`: is this model whole, and is it computed as it should be?
//!
//! Three questions, one verdict: are all weights numbers (and, against an earlier report, the same
//! ones), what are tokenizer and template (as hashes), and does the fast path say what plain
//! arithmetic says, layer by layer. See `docs/verify.md`.

mod hashes;
mod probe;
mod report;
pub(super) mod weights;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use moeba_kernels::os::cpu;
use moeba_kernels::pool::Pool;
use moeba_model::Model;
use moeba_model::comparison::{Comparing, Comparison, Limits, compare};
use moeba_model::files::{self, ModelFiles};
use moeba_model::memory_plan::MemoryPlan;
use serde_json::Value;

use self::hashes::Hashes;
use self::probe::Probe;
use self::report::Report;
use self::weights::{Depth, Verified};
use crate::args::VerifyArgs;
use crate::input;
use crate::interrupt;
use crate::machine;
use crate::models::Library;
use crate::output::print_json;
use crate::progress::Progress;
use crate::settings::Settings;

/// Rows of each product that are checked alone.
const PRODUCT_ROWS: usize = 4;
/// Findings that the last line names.
const NAMED_MAX: usize = 5;

/// Runs the command.
///
/// # Errors
/// If the model does not pass, or cannot be read or run at all.
pub(crate) fn run(args: &VerifyArgs, settings: &Settings) -> Result<()> {
    let start = Instant::now();
    // Read before minutes are spent.
    let earlier = args.against.as_deref().map(read_report).transpose()?;
    let path = Library::open(settings)?.resolve(args.model.get())?.path;
    let files = files::open(&path)?;
    let model = Model::from_files(&files, &settings.load_options());
    // What was asked for wrongly is no fault of the model's.
    let size = model.as_ref().ok().map(|model| model.spec().vocab_size);
    let probe = size.map(|size| Probe::new(args, &files, size)).transpose()?;
    interrupt::install()?;

    let depth = if args.quick { Depth::Sampled } else { Depth::Hashed };
    let weights = Verified::scan(&files, depth, settings)?;
    let hashes = Hashes::of(&files)?;
    let mut findings: Vec<String> = weights.findings().collect();
    if let Some(earlier) = &earlier {
        findings.extend(changes(earlier, &weights, &hashes));
    }
    let mut report = Report::new(&path, settings, args, weights, hashes);
    report.probe = probe;
    let compared = model.map_err(Into::into);
    match compared.and_then(|model| paths(args, settings, (&files, &model), &mut report)) {
        Ok((comparison, limits)) => {
            findings.extend(limits.findings(&comparison).into_iter().map(|f| f.message));
            report.comparison = Some((comparison, limits));
        }
        // What cannot be run is a finding beside the others, which may be why.
        Err(error) => findings.push(format!("the model cannot be compared: {error:#}")),
    }
    report.findings = findings;
    report.seconds = start.elapsed().as_secs_f64();
    if args.json {
        print_json(&report.to_json())?;
    } else {
        report.print(settings.voice.out_colours)?;
    }
    verdict(&path, &report.findings)
}

/// Runs the fast path beside the reference.
fn paths(
    args: &VerifyArgs,
    settings: &Settings,
    (files, model): (&ModelFiles, &Model),
    report: &mut Report,
) -> Result<(Comparison, Limits)> {
    let pool = machine::pool(settings)?;
    let probe = report.probe.as_ref().expect("a model that loads is given tokens");
    let comparing = Comparing {
        tokens: probe.tokens.clone(),
        kv_dtype: args.kv_type.into(),
        product_rows: if args.quick { 0 } else { PRODUCT_ROWS },
    };
    report.family = model.spec().family;
    check_memory(files, model, &pool, &comparing)?;
    let layers = model.spec().layers.len();
    let title = "Comparing with plain arithmetic, layer by layer";
    let bar = Progress::new(settings.voice).steps(title, layers as u64);
    let on_layer = |layer: usize| bar.set(layer as u64);
    let comparison = compare(model, model, &pool, &comparing, &on_layer)?;
    bar.clear();
    Ok((comparison, Limits::new(settings.precision, args.kv_type.into())))
}

/// Refuses what would not fit, before it is tried.
fn check_memory(
    files: &ModelFiles,
    model: &Model,
    pool: &Pool,
    comparing: &Comparing,
) -> Result<()> {
    let extra = comparing.extra_bytes(model.spec());
    let have = (cpu::ram().available as u64).saturating_sub(extra);
    let demand = comparing.demand(model, pool.threads());
    MemoryPlan::new(model.spec(), files.tensors.total_bytes(), &demand, have)?;
    Ok(())
}

fn read_report(path: &Path) -> Result<Value> {
    let text = input::text_of(None, Some(path))?;
    let report: Value =
        serde_json::from_str(&text).with_context(|| format!("`{}` is no JSON", path.display()))?;
    let has_hashes = report["weights"]["tensors_sha256"].is_object();
    ensure!(has_hashes, "`{}` is no report with hashes of tensors", path.display());
    Ok(report)
}

/// What is not as it was when `earlier` was written.
fn changes(earlier: &Value, weights: &Verified, hashes: &Hashes) -> Vec<String> {
    let mut found = Vec::new();
    let before = earlier["weights"]["tensors_sha256"].as_object();
    let before = before.expect("checked when the report was read");
    for (name, hash) in &weights.hashes {
        match before.get(name) {
            None => found.push(format!("tensor `{name}` is not in the earlier report")),
            Some(old) if old != hash => {
                found.push(format!("tensor `{name}` is not what it was: its hash has changed"));
            }
            Some(_) => {}
        }
    }
    let now = |name: &String| weights.hashes.iter().any(|(own, _)| own == name);
    let lost = before.keys().filter(|name| !now(name));
    found.extend(lost.map(|name| format!("tensor `{name}` of the earlier report is gone")));
    let hashes = hashes.to_json();
    for (key, what) in
        [("tokenizer_sha256", "the tokenizer"), ("chat_template_sha256", "the chat template")]
    {
        if hashes[key] != earlier[key] {
            found.push(format!("{what} is not what it was: its hash has changed"));
        }
    }
    found
}

fn verdict(path: &Path, findings: &[String]) -> Result<()> {
    if findings.is_empty() {
        return Ok(());
    }
    let named = findings.iter().take(NAMED_MAX).map(String::as_str).collect::<Vec<_>>().join("; ");
    let more = findings.len().saturating_sub(NAMED_MAX);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    bail!("`{}` does not pass: {named}{more}", path.display())
}
