//! What `moeba fit` says, in words and as JSON.

use moeba_kernels::probe::disk::DiskRate;
use moeba_model::prediction::{Span, Streaming};
use serde_json::{Value, json};

use super::subject::{Known, Place, Subject};
use super::{Disk, Fit, Predicted, weights};
use crate::commands::probe;
use crate::machine;
use crate::output::{count, pairs, rate, size};

/// The report for people.
pub(super) fn to_text(fit: &Fit, colours: bool) -> String {
    let Fit { subject, .. } = fit;
    let parameters = subject.inspection.parameters;
    let weights = weights(&subject.inspection);
    let mut rows = vec![
        ("model", model(subject)),
        (
            "parameters",
            format!(
                "{} in all, {} at work on a token",
                count(parameters.total),
                count(parameters.active)
            ),
        ),
        (
            "weights",
            format!(
                "{}, of which a token reads {}",
                size(weights.bytes_total),
                size(weights.bytes_per_token)
            ),
        ),
        ("memory", memory(fit)),
        ("context", context(fit)),
    ];
    rows.extend(fit.disk.as_ref().map(|disk| ("disk", disk_words(disk, subject))));
    if let Some(limits) = &fit.machine {
        let (threads, isa) = (limits.threads, limits.isa);
        rows.push(("machine", format!("{threads} threads, {isa}: {}", probe::line(limits))));
    }
    if let Some(predicted) = &fit.predicted {
        rows.extend(speeds(fit, predicted));
    }
    rows.extend(fit.alternatives.iter().map(|alternative| {
        ("would fit", format!("{}: {}", alternative.name, size(alternative.bytes)))
    }));
    rows.extend(notes(fit).into_iter().map(|note| ("note", note)));
    pairs(&rows, colours)
}

fn model(subject: &Subject) -> String {
    let spec = &subject.inspection.spec;
    let layers = format!("{}, {} layers", spec.family, spec.layers.len());
    let experts = spec.layers.iter().find_map(|layer| layer.ffn.moe()).map_or_else(
        || "no experts".to_owned(),
        |moe| format!("{} experts a layer, {} per token", moe.num_experts, moe.num_experts_per_tok),
    );
    let known = match (subject.known, subject.target) {
        (Known::Weights, None) => "as it is here".to_owned(),
        (Known::Weights, Some(target)) => format!("if it were {}", target.name),
        (Known::Configuration, Some(target)) => {
            format!("from its configuration, if it were {}", target.name)
        }
        (_, target) => format!("not here, as {}", target.map_or("it is", |target| target.name)),
    };
    format!("{} ({layers}, {experts}), {known}", subject.name)
}

fn memory(fit: &Fit) -> String {
    let super::Memory { plan, available, .. } = &fit.memory;
    format!(
        "{} = weights {} + {} for {} tokens in {} + scratch {}; {}: {} are free",
        size(plan.total()),
        size(plan.weights),
        size(plan.kv_cache),
        fit.ctx,
        fit.kv_type,
        size(plan.workspace),
        if fit.memory.fits() { "fits" } else { "does not fit" },
        size(*available)
    )
}

fn context(fit: &Fit) -> String {
    let claimed = fit.subject.inspection.spec.context_length;
    match fit.memory.ctx_max {
        0 => format!("none fits; the model has up to {claimed} tokens"),
        all if all >= claimed => format!("all of its {claimed} tokens fit"),
        some => format!("up to {some} tokens fit, of {claimed}"),
    }
}

fn disk_words(disk: &Disk, subject: &Subject) -> String {
    let measured = match (&disk.rate, &subject.place) {
        (Ok(rate), Place::File(_)) => format!("{} of the model's file", reads(rate)),
        (Ok(rate), Place::Directory(dir)) => {
            format!("{} of a file just written in {}", reads(rate), dir.display())
        }
        (Err(error), _) => format!("not measured: {error}"),
    };
    let how = match &disk.rate {
        Ok(rate) if !rate.is_direct => {
            ", through the page cache: part of it may have come from memory"
        }
        _ => "",
    };
    let free = disk.free_bytes.map_or_else(String::new, |free| match subject.fetched_bytes {
        Some(needed) if needed > free => {
            format!("; {} are free, and {} would be fetched", size(free), size(needed))
        }
        Some(needed) => format!("; {} of {} free would be taken", size(needed), size(free)),
        None => String::new(),
    });
    format!("{measured}{how}{free}")
}

fn reads(rate: &DiskRate) -> String {
    format!("reads {}/s, by {}", size(rate.bytes_per_s as u64), size(rate.bytes))
}

fn speeds(fit: &Fit, predicted: &Predicted) -> Vec<(&'static str, String)> {
    let Predicted { prefill: (prompt, prefill), decode: [(_, first), (depth, last)], .. } =
        predicted;
    let fits = fit.memory.fits();
    let condition = if fits { "" } else { "with enough memory " };
    let mut rows = vec![
        (
            "decode",
            format!(
                "{condition}{} tokens/s at first, {} after {depth} tokens",
                range(*first),
                range(*last)
            ),
        ),
        (
            "prefill",
            format!("{condition}{} tokens/s for a prompt of {prompt} tokens", range(*prefill)),
        ),
    ];
    let disk = fit.disk.as_ref().and_then(Disk::bytes_per_s);
    if let Some(disk_rate) = disk.filter(|_| fits) {
        let seconds = fit.memory.plan.weights as f64 / disk_rate;
        rows.push(("first start", format!("about {} s to read all weights once", rate(seconds))));
    }
    if !fits {
        rows.push(("from disk", from_disk(predicted.streaming, disk)));
    }
    rows
}

/// What streaming experts would allow.
fn from_disk(streaming: Option<Streaming>, disk: Option<f64>) -> String {
    const LATER: &str = "running experts from disk comes with a later version";
    let Some(streaming) = streaming else {
        return format!("{LATER}; here what is no expert does not fit either");
    };
    let share = 100.0 * streaming.resident_share;
    let bound = disk.and_then(|bytes| streaming.tokens_per_s_max(bytes)).map_or_else(
        || "how fast is not known without the disk's rate".to_owned(),
        |most| {
            format!(
                "this disk alone would allow {} tokens/s, an upper bound: experts called evenly, \
                 nothing else taking time",
                rate(most)
            )
        },
    );
    format!("{LATER}; {share:.0} % of the experts would stay in memory, and {bound}")
}

/// Remarks that make predictions doubtful, and those on how the model was understood.
fn notes(fit: &Fit) -> Vec<String> {
    let weights = weights(&fit.subject.inspection);
    let slow = weights.formats.iter().map(|share| &share.format);
    let slow: Vec<&str> = slow
        .map(String::as_str)
        .filter(|name| ["IQ1", "IQ2", "IQ3"].iter().any(|slow| name.starts_with(slow)))
        .collect();
    let mut notes = fit.subject.inspection.notes.clone();
    if !slow.is_empty() {
        notes.push(format!(
            "{} are computed slowly: expect far less than is predicted",
            slow.join(", ")
        ));
    }
    let busy = fit.load.filter(|load| fit.machine.is_some() && *load > machine::BUSY);
    notes.extend(busy.map(|load| {
        format!("the machine is busy (load {load:.1}): alone, the model will be faster than this")
    }));
    if fit.machine.is_none() {
        notes.push("nothing was measured, so no speed is predicted".to_owned());
    }
    notes
}

/// A range of rates.
fn range(span: Span) -> String {
    format!("{} to {}", rate(span.low), rate(span.high))
}

/// The report for programs.
pub(super) fn to_json(fit: &Fit) -> Value {
    let Fit { subject, memory, .. } = fit;
    let inspection = &subject.inspection;
    let weights = weights(inspection);
    json!({
        "model": subject.name,
        "known_from": subject.known.name(),
        "type": subject.target.map(|target| target.name),
        "family": inspection.spec.family,
        "parameters": {
            "total": inspection.parameters.total,
            "active": inspection.parameters.active,
        },
        "weights": {
            "bytes": weights.bytes_total,
            "bytes_per_token": weights.bytes_per_token,
            "bytes_experts": weights.bytes_experts,
        },
        "fetched_bytes": subject.fetched_bytes,
        "memory": {
            "ctx": fit.ctx,
            "kv_type": fit.kv_type,
            "weights": memory.plan.weights,
            "kv_cache": memory.plan.kv_cache,
            "workspace": memory.plan.workspace,
            "total": memory.plan.total(),
            "available": memory.available,
            "fits": memory.fits(),
            "ctx_max": memory.ctx_max,
        },
        "machine": fit.machine.as_ref().map(probe::to_json),
        "load_before": fit.load,
        "disk": fit.disk.as_ref().map(|disk| disk_json(disk, &subject.place)),
        "predicted": fit.predicted.as_ref().map(|predicted| predicted_json(fit, predicted)),
        "would_fit": fit.alternatives.iter()
            .map(|alternative| json!({ "name": alternative.name, "bytes": alternative.bytes }))
            .collect::<Vec<_>>(),
        "notes": notes(fit),
    })
}

fn disk_json(disk: &Disk, place: &Place) -> Value {
    let rate = disk.rate.as_ref().ok();
    let (Place::File(path) | Place::Directory(path)) = place;
    json!({
        "path": path.display().to_string(),
        "is_written_for_this": matches!(place, Place::Directory(_)),
        "read_bytes_per_second": rate.map(|rate| rate.bytes_per_s),
        "past_page_cache": rate.map(|rate| rate.is_direct),
        "free_bytes": disk.free_bytes,
        "error": disk.rate.as_ref().err().map(ToString::to_string),
    })
}

fn predicted_json(fit: &Fit, predicted: &Predicted) -> Value {
    let span = |span: &Span| json!([span.low, span.high]);
    let (tokens, prefill) = &predicted.prefill;
    let decode = predicted.decode.iter();
    let disk = fit.disk.as_ref().and_then(Disk::bytes_per_s);
    json!({
        "prefill": [{ "tokens": tokens, "tokens_per_second": span(prefill) }],
        "decode": decode
            .map(|(depth, decode)| json!({ "depth": depth, "tokens_per_second": span(decode) }))
            .collect::<Vec<_>>(),
        "needs_more_memory": !fit.memory.fits(),
        "from_disk": predicted.streaming.map(|streaming| json!({
            "resident_share": streaming.resident_share,
            "miss_bytes_per_token": streaming.miss_bytes_per_token,
            "tokens_per_second_max": disk.and_then(|bytes| streaming.tokens_per_s_max(bytes)),
        })),
    })
}
