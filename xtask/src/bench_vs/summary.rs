//! What all rounds say together: medians, ratios within rounds, and their spread.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::engine::{Rates, Test};

/// All that was measured, Moeba first and its peer second wherever there are two.
pub(super) struct Comparison {
    pub(super) model: String,
    pub(super) model_bytes: u64,
    pub(super) threads: usize,
    pub(super) engines: [About; 2],
    pub(super) remarks: Vec<String>,
    pub(super) rounds: Vec<Round>,
}

/// What was run.
pub(super) struct About {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) commands: Vec<String>,
}

/// One round.
pub(super) struct Round {
    /// The machine's load before each.
    pub(super) load: [f64; 2],
    pub(super) rates: [Rates; 2],
}

/// A median with the lowest and the highest.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

/// One test over all rounds.
pub(super) struct Row {
    pub(super) test: Test,
    /// Tokens per second.
    pub(super) rates: [Spread; 2],
    /// Moeba's rate divided by the peer's of the same round.
    pub(super) ratio: Spread,
}

impl Spread {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Spread {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let median = f64::midpoint(values[(count - 1) / 2], values[count / 2]);
        Spread { median, min: values[0], max: values[count - 1] }
    }

    fn to_json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Comparison {
    /// The tests that both ran in every round.
    pub(super) fn tests(&self) -> Vec<Row> {
        let Some(first) = self.rounds.first() else { return Vec::new() };
        let both = |test: &&Test| {
            self.rounds.iter().all(|round| round.rates.iter().all(|r| r.contains_key(test)))
        };
        let row = |test: &Test| {
            let rates_of = |which: usize| {
                self.rounds.iter().map(|round| round.rates[which][test]).collect::<Vec<_>>()
            };
            let (ours, theirs) = (rates_of(0), rates_of(1));
            let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect();
            let (rates, ratio) = ([Spread::of(ours), Spread::of(theirs)], Spread::of(ratios));
            Row { test: *test, rates, ratio }
        };
        first.rates[0].keys().filter(both).map(row).collect()
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        let gb = self.model_bytes as f64 / 1e9;
        let _ = writeln!(text, "{} ({gb:.2} GB), {} threads", self.model, self.threads);
        for about in &self.engines {
            let _ = writeln!(text, "{} {}", about.name, about.version);
            about.commands.iter().for_each(|command| _ = writeln!(text, "  {command}"));
        }
        for (index, round) in self.rounds.iter().enumerate() {
            let [ours, theirs] = round.load;
            let _ = writeln!(text, "load before round {}: {ours:.2}, {theirs:.2}", index + 1);
        }
        text.push_str("(load: average of the last minute, these runs included)\n");
        self.remarks.iter().for_each(|line| _ = writeln!(text, "{line}"));
        let [ours, theirs] = self.engines.each_ref().map(|about| &*about.name);
        let _ = writeln!(
            text,
            "\n{:<16} {ours:>8} {:>17} {theirs:>16} {:>17} {:>8} {:>15}",
            "tokens/s", "spread", "spread", "ratio", "spread"
        );
        for row in self.tests() {
            let [ours, theirs] = row.rates;
            let spread = |s: Spread| format!("{:.1} to {:.1}", s.min, s.max);
            let _ = writeln!(
                text,
                "{:<16} {:>8.1} {:>17} {:>16.1} {:>17} {:>8.2} {:>15}",
                row.test.to_string(),
                ours.median,
                spread(ours),
                theirs.median,
                spread(theirs),
                row.ratio.median,
                format!("{:.2} to {:.2}", row.ratio.min, row.ratio.max)
            );
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let engines = self.engines.iter().map(|about| {
            json!({ "name": about.name, "version": about.version, "commands": about.commands })
        });
        let rounds = self.rounds.iter().enumerate().map(|(index, round)| {
            let rates = round.rates.iter().map(|rates| {
                let named = rates.iter().map(|(test, rate)| (test.to_string(), json!(rate)));
                Value::Object(named.collect())
            });
            json!({
                "first": self.engines[index % 2].name,
                "load": round.load,
                "tokens_per_second": rates.collect::<Vec<_>>(),
            })
        });
        let tests = self.tests();
        let tests = tests.iter().map(|row| {
            json!({
                "test": row.test.to_string(),
                "tokens_per_second": row.rates.map(Spread::to_json),
                "ratio": row.ratio.to_json(),
            })
        });
        json!({
            "model": self.model,
            "model_bytes": self.model_bytes,
            "threads": self.threads,
            "engines": engines.collect::<Vec<_>>(),
            "remarks": self.remarks,
            "rounds": rounds.collect::<Vec<_>>(),
            "tests": tests.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench_vs) fn sample() -> Comparison {
        let rates = |prefill: f64, decode: f64| {
            Rates::from([(Test::Prefill(512), prefill), (Test::Decode(64), decode)])
        };
        let about = |name: &str| About {
            name: name.to_owned(),
            version: "1 <&> 2".to_owned(),
            commands: vec![format!("{name} -t 2")],
        };
        let mut last = rates(600.0, 33.0);
        last.insert(Test::Batch(16, 64), 200.0);
        Comparison {
            model: "m.gguf".to_owned(),
            model_bytes: 2_500_000_000,
            threads: 2,
            engines: [about("moeba"), about("llama.cpp")],
            remarks: vec!["not counted: loading".to_owned()],
            rounds: vec![
                Round { load: [0.1, 1.9], rates: [rates(500.0, 30.0), rates(100.0, 20.0)] },
                Round { load: [1.8, 1.9], rates: [rates(400.0, 36.0), rates(100.0, 18.0)] },
                Round { load: [2.0, 1.9], rates: [last, rates(200.0, 22.0)] },
            ],
        }
    }

    #[test]
    fn ratios_are_those_of_rounds() {
        let rows = sample().tests();
        assert_eq!(
            rows.iter().map(|r| r.test).collect::<Vec<_>>(),
            [Test::Prefill(512), Test::Decode(64)]
        );
        assert_eq!(rows[0].rates[0], Spread { median: 500.0, min: 400.0, max: 600.0 });
        assert_eq!(rows[0].ratio, Spread { median: 4.0, min: 3.0, max: 5.0 });
        assert_eq!(rows[1].ratio, Spread { median: 1.5, min: 1.5, max: 2.0 });
        assert_eq!(Spread::of(vec![3.0, 1.0]).median, 2.0);
    }

    #[test]
    fn reports_tell_what_was_run_and_what_was_not() {
        let text = sample().to_text();
        let told =
            ["2.50 GB", "moeba -t 2", "not counted: loading", "round 3: 2.00", "3.00 to 5.00"];
        for words in told {
            assert!(text.contains(words), "no `{words}` in:\n{text}");
        }
        let json = sample().to_json();
        assert_eq!(json["rounds"][1]["first"], "llama.cpp");
        assert_eq!(json["tests"][1]["ratio"]["max"], 2.0);
    }
}
