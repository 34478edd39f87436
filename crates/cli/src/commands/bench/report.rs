//! What `moeba bench` says: a table for people, JSON for programs.

use moeba_kernels::isa::Isa;
use moeba_kernels::probe::MachineLimits;
use serde_json::{Value, json};

use super::breakdown::Breakdown;
use super::test::{Kind, Test, arithmetic_share};
use crate::commands::probe;
use crate::machine;
use crate::output::{Style, operations, rate, size, styled, table};

/// What is known of the model and the machine beside the tests.
pub(super) struct Facts {
    pub(super) path: String,
    pub(super) family: &'static str,
    pub(super) bytes_per_token: u64,
    pub(super) threads: usize,
    pub(super) isa: Isa,
    /// Rows of 8-bit integers that an input of quantised weights becomes.
    pub(super) limbs: usize,
    /// How busy the machine was before anything was measured.
    pub(super) load: Option<f64>,
    pub(super) limits: Option<MachineLimits>,
}

/// Shares of the machine's limits that a test reached.
struct Reached {
    reading: f64,
    arithmetic: f64,
}

impl Reached {
    fn by(test: &Test, limits: &MachineLimits) -> Self {
        let seconds = test.tokens_total() as f64 / test.median();
        Self {
            reading: test.per_second(test.work.bytes()) / limits.read_bytes_per_s_best,
            arithmetic: arithmetic_share(&test.work.operations, seconds, limits, test.by_tiles),
        }
    }
}

/// Everything, for programs.
pub(super) fn to_json(tests: &[Test], breakdowns: &[Breakdown], facts: &Facts) -> Value {
    let shown: Vec<Value> = tests
        .iter()
        .enumerate()
        .map(|(index, test)| {
            let mut shown = test_to_json(test, facts);
            if let Some(breakdown) = breakdowns.get(index) {
                shown["profile"] = breakdown.to_json(test);
            }
            shown
        })
        .collect();
    let mut machine = facts.limits.as_ref().map_or_else(|| json!({}), probe::to_json);
    machine["threads"] = facts.threads.into();
    machine["isa"] = facts.isa.name().into();
    machine["load_before"] = facts.load.into();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "tests": shown,
        "machine": machine,
        "model": {
            "path": facts.path,
            "family": facts.family,
            "bytes_per_token": facts.bytes_per_token,
            "activation_bits": 8 * facts.limbs,
        },
    })
}

fn test_to_json(test: &Test, facts: &Facts) -> Value {
    let (min, max) = test.min_max();
    let reached = facts.limits.as_ref().map(|limits| Reached::by(test, limits));
    let work = &test.work;
    json!({
        "kind": test.name(),
        "tokens": test.tokens,
        "batch": test.sequences,
        "depth": test.depth,
        "tokens_per_second": test.median(),
        "tokens_per_second_min": min,
        "tokens_per_second_max": max,
        "runs": test.rates,
        "tokens_per_second_predicted": test.predicted.map(|span| [span.low, span.high]),
        "expert_bytes_per_token": test.per_token(work.expert_bytes),
        "weight_bytes_per_token": test.per_token(work.weight_bytes()),
        "cache_bytes_per_token": test.per_token(work.cache_bytes),
        "bytes_per_second": test.per_second(work.bytes()),
        "read_bandwidth_share": reached.as_ref().map(|reached| reached.reading),
        "operations_per_token": {
            "integer": test.per_token(work.operations.integer),
            "float": test.per_token(work.operations.float),
            "attention": test.per_token(work.operations.attention),
        },
        "operations_per_second": test.per_second(work.operations.total()),
        "arithmetic_share": reached.as_ref().map(|reached| reached.arithmetic),
    })
}

/// The table, and what has to be known to read it.
pub(super) fn to_text(tests: &[Test], facts: &Facts, colours: bool) -> String {
    let heading = [
        "TEST",
        "TOKENS",
        "BATCH",
        "DEPTH",
        "TOKENS/S",
        "MIN",
        "MAX",
        "READ/TOKEN",
        "READ/S",
        "OF LIMIT",
        "OPS/TOKEN",
        "OPS/S",
        "OF LIMIT",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for test in tests {
        let (min, max) = test.min_max();
        let reached = facts.limits.as_ref().map(|limits| Reached::by(test, limits));
        let percent = |share: fn(&Reached) -> f64| {
            let shown = |reached| format!("{:.0} %", 100.0 * share(reached));
            reached.as_ref().map_or_else(String::new, shown)
        };
        let (bytes, done) = (test.work.bytes(), test.work.operations.total());
        rows.push(vec![
            test.name().to_owned(),
            test.tokens.to_string(),
            test.sequences.to_string(),
            test.depth.to_string(),
            format!("{:.1}", test.median()),
            format!("{min:.1}"),
            format!("{max:.1}"),
            size(test.per_token(bytes) as u64),
            size(test.per_second(bytes) as u64),
            percent(|reached| reached.reading),
            operations(test.per_token(done) as u64),
            operations(test.per_second(done) as u64),
            percent(|reached| reached.arithmetic),
        ]);
    }
    let columns: Vec<usize> = (1..heading.len()).collect();
    let mut text = table(&rows, &columns, colours);
    for line in remarks(tests, facts) {
        text.push_str(&styled(&line, Style::Dim, colours));
        text.push('\n');
    }
    text
}

fn remarks(tests: &[Test], facts: &Facts) -> Vec<String> {
    let Facts { path, family, threads, isa, .. } = facts;
    let mut lines = vec![format!("{path} ({family}), {threads} threads, {isa}")];
    let decoded = tests.iter().find(|test| test.kind == Kind::Decode);
    if let Some(test) = decoded.filter(|test| test.work.expert_bytes > 0) {
        lines.push(format!(
            "a token alone reads {} of weights; decoded, {} of experts",
            size(facts.bytes_per_token),
            size(test.per_token(test.work.expert_bytes) as u64)
        ));
    } else {
        lines.push(format!("a token alone reads {} of weights", size(facts.bytes_per_token)));
    }
    if facts.limbs > 1 {
        lines.push(format!(
            "inputs of {} bits: each operation with a quantised weight is done {} times and \
             counted once",
            8 * facts.limbs,
            facts.limbs
        ));
    }
    if tests.iter().any(|test| test.by_tiles) {
        lines.push("prompts are multiplied by tiles of bfloats, unless --deterministic".into());
    }
    lines.extend(facts.limits.as_ref().map(probe::line));
    lines.extend(facts.load.filter(|load| *load > machine::BUSY).map(|load| {
        format!("the machine was busy before (load {load:.1}): trust neither rates nor limits")
    }));
    lines.extend(predictions(tests));
    lines
}

/// What `moeba fit` would have said, next to what came of it.
fn predictions(tests: &[Test]) -> Option<String> {
    let line = |test: &Test| {
        let span = test.predicted?;
        let (low, high, found) = (rate(span.low), rate(span.high), rate(test.median()));
        let (name, tokens) = (test.name(), test.tokens);
        Some(format!("{name} {tokens} predicted {low} to {high}, measured {found}"))
    };
    let lines: Vec<String> = tests.iter().filter_map(line).collect();
    (!lines.is_empty()).then(|| format!("tokens/s: {}", lines.join("; ")))
}
