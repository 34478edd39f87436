//! What a verification found, for people and as JSON.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use moeba_kernels::activations::Precision;
use moeba_kernels::isa;
use moeba_model::comparison::{
    Comparison, Differences, LayerComparison, Limits, LogitErrors, ProductErrors, RowErrors,
};
use serde_json::{Value, json};

use super::hashes::Hashes;
use super::probe::Probe;
use super::weights::Verified;
use crate::args::VerifyArgs;
use crate::machine;
use crate::output::{Style, harmless, pairs, print, styled, table};
use crate::settings::Settings;

/// Products that are listed; all of them were checked.
const PRODUCTS_LISTED: usize = 5;

/// Everything that was found.
pub(super) struct Report {
    path: String,
    pub(super) family: &'static str,
    weights: Verified,
    hashes: Hashes,
    pub(super) probe: Option<Probe>,
    /// How the fast path was run.
    settings: Ran,
    pub(super) comparison: Option<(Comparison, Limits)>,
    pub(super) findings: Vec<String>,
    pub(super) seconds: f64,
}

/// What the fast path's rounding depends on, and its speed.
struct Ran {
    activation_bits: u8,
    kv_type: String,
    threads: usize,
}

impl Report {
    pub(super) fn new(
        path: &Path,
        settings: &Settings,
        args: &VerifyArgs,
        weights: Verified,
        hashes: Hashes,
    ) -> Self {
        let activation_bits = match settings.precision {
            Precision::Eight => 8,
            Precision::Sixteen | Precision::Mixed => 16,
        };
        let kv_type = format!("{:?}", args.kv_type).to_lowercase();
        let ran = Ran { activation_bits, kv_type, threads: machine::threads(settings) };
        Self {
            path: path.display().to_string(),
            family: "unknown",
            weights,
            hashes,
            probe: None,
            settings: ran,
            comparison: None,
            findings: Vec::new(),
            seconds: 0.0,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let mut shown = json!({
            "path": self.path,
            "family": self.family,
            "pass": self.findings.is_empty(),
            "findings": self.findings,
            "weights": self.weights.to_json(),
            "tokenizer_sha256": self.hashes.tokenizer,
            "chat_template_sha256": self.hashes.template,
            "probe": self.probe.as_ref().map(|probe| {
                json!({ "from": probe.from, "tokens": probe.tokens })
            }),
            "settings": {
                "activation_bits": self.settings.activation_bits,
                "kv_type": self.settings.kv_type,
                "isa": isa::current().name(),
                "threads": self.settings.threads,
            },
            "seconds": self.seconds,
        });
        if let Some((comparison, limits)) = &self.comparison {
            shown["limits"] = limits_json(limits);
            shown["layers"] = comparison.layers.iter().enumerate().map(layer_json).collect();
            shown["stream"] = rows_json(&comparison.stream);
            shown["products"] = comparison.products.iter().map(product_json).collect();
            shown["logits"] = json!({
                "guided": logits_json(&comparison.guided),
                "free": logits_json(&comparison.free),
            });
        }
        shown
    }

    pub(super) fn print(&self, colours: bool) -> Result<()> {
        let mut rows = vec![("model", format!("{} ({})", self.path, self.family))];
        if self.weights.findings().next().is_none() {
            rows.push(("weights", self.weights.line()));
        }
        let hashes = [
            ("weights", &self.weights.fingerprint()),
            ("tokenizer", &self.hashes.tokenizer),
            ("template", &self.hashes.template),
        ];
        for (what, hash) in hashes {
            let hash = hash.as_deref().unwrap_or("none");
            rows.push(("sha256", format!("{hash} {what}")));
        }
        if let Some(probe) = &self.probe {
            let Ran { activation_bits, kv_type, threads } = &self.settings;
            let (count, from, isa) = (probe.tokens.len(), probe.from, isa::current());
            rows.push((
                "probe",
                format!(
                    "{count} tokens ({from}); {activation_bits}-bit inputs, {kv_type} cache, \
                     {isa}, {threads} threads"
                ),
            ));
        }
        let mut text = pairs(&rows, colours);
        if let Some((comparison, limits)) = &self.comparison {
            text.push('\n');
            text.push_str(&layers_table(comparison, colours));
            text.push('\n');
            text.push_str(&pairs(&summary(comparison, limits), colours));
        }
        text.push('\n');
        for finding in &self.findings {
            let _ =
                writeln!(text, "{} {}", styled("wrong", Style::Red, colours), harmless(finding));
        }
        let (word, style) =
            if self.findings.is_empty() { ("pass", Style::Green) } else { ("FAIL", Style::Red) };
        let _ = writeln!(
            text,
            "{}  findings: {}, in {:.1} s",
            styled(word, style, colours),
            self.findings.len(),
            self.seconds
        );
        print(&text)
    }
}

/// One line a layer: mean errors of the guided branches, of experts and of the free stream.
fn layers_table(comparison: &Comparison, colours: bool) -> String {
    let heading = ["LAYER", "MIXER", "FFN", "ROUTER", "EXPERTS", "OTHER CHOICE", "STREAM SO FAR"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let error = |errors: &RowErrors| format!("{:.1e}", errors.mean());
    for (index, layer) in comparison.layers.iter().enumerate() {
        let routing = layer.routing.as_ref();
        rows.push(vec![
            index.to_string(),
            error(&layer.mixer),
            error(&layer.ffn),
            routing.map_or_else(String::new, |routing| error(&routing.logits)),
            routing.map_or_else(String::new, |routing| error(&routing.outputs)),
            routing.map_or_else(String::new, |r| format!("{} of {}", r.own.tokens, r.tokens)),
            error(&layer.stream),
        ]);
    }
    let cell = |column: usize| match column {
        0 => "head".to_owned(),
        6 => error(&comparison.stream),
        _ => String::new(),
    };
    rows.push((0..heading.len()).map(cell).collect());
    table(&rows, &[0, 1, 2, 3, 4, 5, 6], colours)
}

fn summary(comparison: &Comparison, limits: &Limits) -> Vec<(&'static str, String)> {
    let logits = |errors: &LogitErrors| {
        format!(
            "{:.1e} nats on average, {:.1e} at worst; likeliest token the same in {} of {}",
            errors.kl_mean, errors.kl_max, errors.same_top, errors.rows
        )
    };
    let mut rows = vec![
        ("logits", format!("{} (limit {:.1e})", logits(&comparison.free), limits.kl_mean)),
        ("head alone", logits(&comparison.guided)),
    ];
    for product in comparison.products.iter().take(PRODUCTS_LISTED) {
        let part = product.name.part().map(|part| format!(", part {part}")).unwrap_or_default();
        let name = product.name.name();
        let error = format!("{:.1e} `{name}`{part} ({})", product.errors.max, product.format);
        rows.push(("product", error));
    }
    rows.push((
        "limits",
        format!(
            "a branch {:.1e} on average and {:.1e} at worst, a product {:.1e}",
            limits.branch_mean, limits.branch_max, limits.product_max
        ),
    ));
    rows
}

fn limits_json(limits: &Limits) -> Value {
    json!({
        "branch_mean": limits.branch_mean,
        "branch_max": limits.branch_max,
        "product_max": limits.product_max,
        "expert_weight_max": limits.expert_weight_max,
        "tie_gap": limits.tie_gap,
        "kl_mean": limits.kl_mean,
    })
}

fn rows_json(errors: &RowErrors) -> Value {
    json!({
        "rows": errors.rows,
        "mean": errors.mean(),
        "max": errors.max,
        "worst_row": errors.worst_row,
        "finite": errors.max.is_finite(),
    })
}

fn logits_json(errors: &LogitErrors) -> Value {
    json!({
        "rows": errors.rows,
        "kl_mean": errors.kl_mean,
        "kl_max": errors.kl_max,
        "same_top": errors.same_top,
        "difference_max": errors.difference_max,
    })
}

fn differences_json(differences: Differences) -> Value {
    json!({ "tokens": differences.tokens, "gap_max": differences.gap_max })
}

fn layer_json((index, layer): (usize, &LayerComparison)) -> Value {
    let routing = layer.routing.as_ref().map(|routing| {
        json!({
            "logits": rows_json(&routing.logits),
            "tokens": routing.tokens,
            "own_choice_differs": differences_json(routing.own),
            "same_logits_differ": differences_json(routing.guided),
            "free_choice_differs": differences_json(routing.free),
            "weight_error_max": routing.weight_error_max,
            "outputs": rows_json(&routing.outputs),
            "worst_expert": routing.worst_expert,
        })
    });
    json!({
        "layer": index,
        "stream": rows_json(&layer.stream),
        "mixer": rows_json(&layer.mixer),
        "ffn": rows_json(&layer.ffn),
        "routing": routing,
    })
}

fn product_json(product: &ProductErrors) -> Value {
    json!({
        "tensor": product.name.name(),
        "part": product.name.part(),
        "first_row": product.name.first_row(),
        "format": product.format,
        "errors": rows_json(&product.errors),
    })
}
