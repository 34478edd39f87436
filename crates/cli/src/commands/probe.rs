//! `moeba probe`: what this machine can do at best, whatever the model.

use anyhow::{Context, Result};
use moeba_kernels::probe::MachineLimits;
use serde_json::{Value, json};

use crate::args::ProbeArgs;
use crate::machine;
use crate::output::{operations, pairs, print, print_json, size};
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// If there is no memory to read.
pub(crate) fn run(args: &ProbeArgs, settings: &Settings) -> Result<()> {
    let pool = machine::pool(settings)?;
    let limits = machine::limits(&pool, settings.voice).context("no memory to read")?;
    if args.json {
        return print_json(&to_json(&limits));
    }
    let reads = format!(
        "{}/s, median {}/s",
        size(limits.read_bytes_per_s_best as u64),
        size(limits.read_bytes_per_s_median as u64)
    );
    let peak = |rate: f64| format!("{}/s", operations(rate as u64));
    let mut rows = vec![
        ("threads", limits.threads.to_string()),
        ("instructions", limits.isa.to_string()),
        ("memory read", reads),
        ("int8", peak(limits.int8_ops_per_s_best)),
    ];
    rows.extend(limits.bf16_ops_per_s_best.map(|rate| ("bf16", peak(rate))));
    rows.push(("f32", peak(limits.f32_ops_per_s_best)));
    print(&pairs(&rows, settings.voice.out_colours))
}

/// The limits, for programs.
pub(super) fn to_json(limits: &MachineLimits) -> Value {
    json!({
        "threads": limits.threads,
        "isa": limits.isa.name(),
        "read_bytes_per_second": limits.read_bytes_per_s_best,
        "read_bytes_per_second_median": limits.read_bytes_per_s_median,
        "int8_ops_per_second": limits.int8_ops_per_s_best,
        "bf16_ops_per_second": limits.bf16_ops_per_s_best,
        "f32_ops_per_second": limits.f32_ops_per_s_best,
    })
}

/// The limits in a line, for people.
pub(super) fn line(limits: &MachineLimits) -> String {
    let peak = |rate: f64| operations(rate as u64);
    let bf16 = limits
        .bf16_ops_per_s_best
        .map_or_else(String::new, |rate| format!(", {} of bf16", peak(rate)));
    format!(
        "this machine reads {}/s and does {} of int8{bf16} and {} of f32 per second",
        size(limits.read_bytes_per_s_best as u64),
        peak(limits.int8_ops_per_s_best),
        peak(limits.f32_ops_per_s_best)
    )
}
