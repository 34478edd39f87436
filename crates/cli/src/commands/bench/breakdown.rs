//! `moeba bench --profile`: where the time of a test goes, by part and by layer.

use anyhow::Result;
use moeba_kernels::probe::MachineLimits;
use moeba_model::observer::Part;
use moeba_model::profile::{PARTS, Profile, Share};
use serde_json::{Value, json};

use super::test::{Test, arithmetic_share};
use crate::output::{Style, operations, size, styled, table};
use crate::runner::Runner;

/// What the parts of one run took.
pub(super) struct Breakdown {
    /// `[layers + 1][parts]`; the last is what belongs to no layer.
    layers: Vec<[Share; PARTS.len()]>,
    threads: usize,
    by_tiles: bool,
}

impl Breakdown {
    /// Runs a test once more, and looks.
    pub(super) fn of(test: &Test, runner: &mut Runner) -> Result<Self> {
        let tokens = test.prepare(runner)?;
        runner.start_profile();
        let done = test.feed(runner, &tokens);
        let profile = runner.profile.take();
        done?;
        let layers = profile.map_or_else(Vec::new, Profile::into_shares);
        Ok(Self { layers, threads: runner.threads(), by_tiles: test.by_tiles })
    }

    /// Each part summed over layers, the longest first; attention with what it reads and does.
    fn parts(&self, test: &Test) -> Vec<(Part, Share)> {
        let sum = |part: Part| {
            let mut sum = Share::default();
            self.layers.iter().for_each(|layer| sum += layer[part as usize]);
            if part == Part::Attention {
                sum.bytes += test.work.cache_bytes;
                sum.operations.attention += test.work.operations.attention;
            }
            (part, sum)
        };
        let mut parts: Vec<_> = PARTS.map(sum).into_iter().filter(|(_, s)| s.nanos > 0).collect();
        parts.sort_by_key(|(_, share)| std::cmp::Reverse(share.nanos));
        parts
    }

    pub(super) fn to_json(&self, test: &Test) -> Value {
        let steps = test.steps() as f64;
        let share = |share: &Share| {
            json!({
                "seconds_per_step": share.nanos as f64 / 1e9 / steps,
                "regions_per_step": share.regions as f64 / steps,
                "region_seconds_per_step": share.region_nanos as f64 / 1e9 / steps,
                "idle_worker_seconds_per_step": share.idle_nanos as f64 / 1e9 / steps,
                "bytes_per_step": share.bytes as f64 / steps,
                "operations_per_step": share.operations.total() as f64 / steps,
            })
        };
        let summed = self.parts(test);
        let parts = summed.iter().map(|(part, sum)| (name(*part).to_owned(), share(sum)));
        let layers = self.layers.iter().enumerate().map(|(index, layer)| {
            let parts = PARTS.iter().zip(layer).filter(|(_, part)| part.nanos > 0);
            let parts = parts.map(|(part, took)| (name(*part).to_owned(), share(took)));
            let layer = (index + 1 < self.layers.len()).then_some(index);
            json!({ "layer": layer, "parts": Value::Object(parts.collect()) })
        });
        json!({
            "steps": test.steps(),
            "parts": Value::Object(parts.collect()),
            "layers": layers.collect::<Vec<_>>(),
        })
    }

    /// Two tables: parts, and layers.
    pub(super) fn to_text(
        &self,
        test: &Test,
        limits: Option<&MachineLimits>,
        colours: bool,
    ) -> String {
        let parts = self.parts(test);
        let mut all = Share::default();
        for (_, share) in &parts {
            all += *share;
        }
        let title = format!(
            "\n{} {}, batch {}, depth {}: steps watched: {}",
            test.name(),
            test.tokens,
            test.sequences,
            test.depth,
            test.steps()
        );
        let heading = [
            "PART", "MS/STEP", "SHARE", "REGIONS", "IDLE", "SERIAL", "READ/S", "OF LIMIT", "OPS/S",
            "OF LIMIT",
        ];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        let named = parts.iter().map(|(part, share)| (name(*part), share));
        for (name, share) in named.chain([("all", &all)]) {
            rows.push(self.row(name, share, &all, test.steps(), limits));
        }
        let columns: Vec<usize> = (1..heading.len()).collect();
        let mut text = styled(&title, Style::Bold, colours) + "\n";
        text.push_str(&table(&rows, &columns, colours));
        text.push('\n');
        text.push_str(&self.layer_table(test.steps(), all.nanos, colours));
        text
    }

    fn row(
        &self,
        name: &str,
        share: &Share,
        all: &Share,
        steps: usize,
        limits: Option<&MachineLimits>,
    ) -> Vec<String> {
        let (nanos, seconds) = (share.nanos as f64, share.nanos as f64 / 1e9);
        let percent = |part: f64| format!("{:.0} %", 100.0 * part);
        let rate = |n: u64, unit: fn(u64) -> String| {
            if n == 0 { String::new() } else { unit((n as f64 / seconds) as u64) }
        };
        let of_limit = |n: u64, reached: &dyn Fn(&MachineLimits) -> f64| {
            limits.filter(|_| n > 0).map_or_else(String::new, |limits| percent(reached(limits)))
        };
        let (bytes, done) = (share.bytes, share.operations.total());
        vec![
            name.to_owned(),
            format!("{:.3}", nanos / 1e6 / steps as f64),
            percent(nanos / all.nanos as f64),
            format!("{:.0}", share.regions as f64 / steps as f64),
            percent(share.idle_nanos as f64 / (self.threads as f64 * nanos)),
            percent(1.0 - share.region_nanos as f64 / nanos),
            rate(bytes, size),
            of_limit(bytes, &|l| bytes as f64 / seconds / l.read_bytes_per_s_best),
            rate(done, operations),
            of_limit(done, &|l| arithmetic_share(&share.operations, seconds, l, self.by_tiles)),
        ]
    }

    /// What each layer took, in milliseconds a step.
    fn layer_table(&self, steps: usize, nanos_total: u64, colours: bool) -> String {
        let heading = ["LAYER", "MS/STEP", "SHARE", "ATTENTION", "ROUTER", "FFN", "REST"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        for (index, layer) in self.layers.iter().enumerate() {
            let mut groups = [0; 4];
            for (part, share) in PARTS.iter().zip(layer) {
                groups[group(*part)] += share.nanos;
            }
            let nanos: u64 = groups.iter().sum();
            let ms = |nanos: u64| format!("{:.3}", nanos as f64 / 1e6 / steps as f64);
            let last = index + 1 == self.layers.len();
            let mut row = vec![
                if last { "ends".to_owned() } else { index.to_string() },
                ms(nanos),
                format!("{:.1} %", 100.0 * nanos as f64 / nanos_total as f64),
            ];
            row.extend(groups.map(ms));
            rows.push(row);
        }
        table(&rows, &[1, 2, 3, 4, 5, 6], colours)
    }
}

/// The column of a part in the table of layers.
fn group(part: Part) -> usize {
    match part {
        Part::Projections | Part::Positions | Part::Attention => 0,
        Part::Router => 1,
        Part::ExpertsIn | Part::DenseIn | Part::Activation | Part::ExpertsOut | Part::DenseOut => 2,
        Part::Embedding | Part::Norms | Part::Rounding | Part::Sums | Part::Head => 3,
    }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Embedding => "embedding",
        Part::Norms => "norms",
        Part::Rounding => "rounding of inputs",
        Part::Projections => "attention's matrices",
        Part::Positions => "positions and cache",
        Part::Attention => "attention itself",
        Part::Router => "router",
        Part::ExpertsIn => "experts' gate and up",
        Part::DenseIn => "dense gate and up",
        Part::Activation => "activation",
        Part::ExpertsOut => "experts' down",
        Part::DenseOut => "dense down",
        Part::Sums => "sums",
        Part::Head => "head",
    }
}
