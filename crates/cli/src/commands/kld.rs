//! `moeba kld`: how far a model's predictions are from those of another type or engine.

use anyhow::{Context, Result, ensure};
use moeba_model::comparison::Prediction;
use serde_json::{Value, json};

use crate::args::KldArgs;
use crate::output::{note, print, print_json, size, table};
use crate::predictions::{Base, Recorder};
use crate::settings::Settings;
use crate::windows::{Mean, Windows};

/// Runs the command.
///
/// # Errors
/// If model, text or base cannot be read, or do not belong together.
pub(crate) fn run(args: &KldArgs, settings: &Settings) -> Result<()> {
    match (&args.base, &args.save_logits) {
        (Some(base), _) => compare(args, &Base::open(base)?, settings),
        (None, Some(path)) => record(args, path, settings),
        (None, None) => unreachable!("one of them is required"),
    }
}

/// Writes the model's own predictions.
fn record(args: &KldArgs, path: &std::path::Path, settings: &Settings) -> Result<()> {
    let mut windows = Windows::open(&args.text, None, settings)?;
    let vocab = windows.runner.model.spec().vocab_size;
    let path = super::output_file(path)?;
    let shape = [windows.len(), windows.window()];
    let mut recorder = Recorder::create(&path, shape, vocab)?;
    let rate = windows.each(|window| {
        ensure!(window.first == 1, "every token but the first is predicted");
        recorder.tokens(&window.tokens);
        window.predict(|logits, _| recorder.row(logits))
    })?;
    let bytes = recorder.finish()?;
    if settings.voice.chatty {
        note(&format!("wrote `{}`: {}, {rate:.0} tokens/s", path.display(), size(bytes)));
    }
    if !args.json {
        return Ok(());
    }
    print_json(&json!({
        "path": path.display().to_string(),
        "rows": shape[0] * (shape[1] - 1),
        "bytes": bytes,
        "tokens_per_second": rate,
    }))
}

/// What a comparison has found so far.
#[derive(Default)]
struct Found {
    /// Kullback-Leibler divergence of each token, nats.
    divergences: Vec<f64>,
    divergence: Mean,
    /// Nats per token of the base and of the model.
    base: Mean,
    model: Mean,
    /// Of the model over the base, per token.
    ratio: Mean,
    /// 1 where both think the same token the likeliest.
    agreement: Mean,
    /// Change of the right token's probability.
    change: Mean,
    changes: Vec<f64>,
    change_square: Mean,
}

impl Found {
    /// Takes one position: both log-probabilities `[vocab]`, and the token that really follows.
    fn add(&mut self, base: &[f32], logits: &[f32], next: usize) {
        let (base, model) = (Prediction::of(base), Prediction::of(logits));
        let divergence = model.divergence_from(&base);
        self.divergences.push(divergence);
        self.divergence.add(divergence);
        let (p, q) = (base.log_share(next), model.log_share(next));
        self.base.add(-p);
        self.model.add(-q);
        self.ratio.add(p - q);
        self.agreement.add(f64::from(u8::from(base.likeliest() == model.likeliest())));
        let change = q.exp() - p.exp();
        self.change.add(change);
        self.change_square.add(change * change);
        self.changes.push(change);
    }
}

fn compare(args: &KldArgs, base: &Base, settings: &Settings) -> Result<()> {
    let mut windows = Windows::open(&args.text, None, settings)?;
    let vocab = windows.runner.model.spec().vocab_size;
    ensure!(
        base.vocab() == vocab,
        "the base predicts {} tokens, the model {vocab}: not the same vocabulary",
        base.vocab()
    );
    let mut found = Found::default();
    let (mut row, mut index) = (0, 0);
    let mut base_row = vec![0.0; vocab];
    let rate = windows.each(|window| {
        base.check_window(index, &window.tokens)?;
        index += 1;
        window.predict(|logits, next| {
            base.read(row, &mut base_row).context("the base ends before the text")?;
            found.add(&base_row, logits, next as usize);
            row += 1;
            Ok(())
        })
    })?;
    found.divergences.sort_by(f64::total_cmp);
    found.changes.sort_by(f64::total_cmp);
    if args.json { print_json(&to_json(&found, rate)) } else { print_table(&found, rate, settings) }
}

/// The value that a share `p` of the sorted values does not exceed.
fn percentile(sorted: &[f64], p: f64) -> f64 {
    let place = p * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

fn to_json(found: &Found, rate: f64) -> Value {
    let at = |p| percentile(&found.divergences, p);
    let mean = |mean: &Mean| json!({ "mean": mean.mean(), "error": mean.error() });
    let ratio = found.ratio.mean().exp();
    json!({
        "tokens": found.divergence.count(),
        "kl": {
            "mean": found.divergence.mean(), "error": found.divergence.error(),
            "median": at(0.5), "p90": at(0.9), "p95": at(0.95), "p99": at(0.99),
            "p999": at(0.999), "max": at(1.0),
        },
        "top1_agreement": mean(&found.agreement),
        "delta_p": {
            "mean": found.change.mean(), "error": found.change.error(),
            "rms": found.change_square.mean().sqrt(),
            "p5": percentile(&found.changes, 0.05), "p95": percentile(&found.changes, 0.95),
        },
        "perplexity": found.model.mean().exp(),
        "perplexity_error": found.model.mean().exp() * found.model.error(),
        "base_perplexity": found.base.mean().exp(),
        "perplexity_ratio": ratio,
        "perplexity_ratio_error": ratio * found.ratio.error(),
        "tokens_per_second": rate,
    })
}

fn print_table(found: &Found, rate: f64, settings: &Settings) -> Result<()> {
    let at = |p| format!("{:.6}", percentile(&found.divergences, p));
    let error = |mean: &Mean, scale: f64| {
        format!("{:.4} ± {:.4}", scale * mean.mean(), scale * mean.error())
    };
    let ratio = found.ratio.mean().exp();
    let mut rows = vec![["MEASURE", "VALUE"].map(str::to_owned).to_vec()];
    let mut row = |name: &str, value: String| rows.push(vec![name.to_owned(), value]);
    row(
        "mean KL divergence, nats",
        format!("{:.6} ± {:.6}", found.divergence.mean(), found.divergence.error()),
    );
    row("median", at(0.5));
    row("90 %", at(0.9));
    row("95 %", at(0.95));
    row("99 %", at(0.99));
    row("99.9 %", at(0.999));
    row("largest", at(1.0));
    row("same likeliest token, %", error(&found.agreement, 100.0));
    row("change of the right token's probability, %", error(&found.change, 100.0));
    row(
        "the same, root of the mean square, %",
        format!("{:.4}", 100.0 * found.change_square.mean().sqrt()),
    );
    row("perplexity", format!("{:.4}", found.model.mean().exp()));
    row("perplexity of the base", format!("{:.4}", found.base.mean().exp()));
    row("ratio of both", format!("{ratio:.5} ± {:.5}", ratio * found.ratio.error()));
    row("tokens", found.divergence.count().to_string());
    print(&table(&rows, &[1], settings.voice.out_colours))?;
    if settings.voice.chatty {
        note(&format!("{rate:.0} tokens/s"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_what_the_formula_says() {
        let mut found = Found::default();
        let (base, model) = ([0.5f32.ln(), 0.5f32.ln()], [0.9f32.ln(), 0.1f32.ln()]);
        found.add(&base, &model, 0);
        let expected = 0.5 * (0.5f64 / 0.9).ln() + 0.5 * (0.5f64 / 0.1).ln();
        assert!((found.divergence.mean() - expected).abs() < 1e-6);
        assert!((found.change.mean() - 0.4).abs() < 1e-6);
        assert_eq!(found.agreement.mean(), 1.0);
        assert!((percentile(&[1.0, 2.0, 3.0], 0.75) - 2.5).abs() < 1e-12);
    }
}
