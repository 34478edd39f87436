//! `bench-vs`: Moeba and another engine in turn, on the same file, with the same threads.
//!
//! A comparison is fair when both see the same machine: each round runs both, every other round in
//! the other order, and what is compared is the ratio within a round. Everything that could bend
//! the numbers is printed with them: versions, commands, threads, the machine's load before each
//! run, and what was left out. `docs/benchmarks.md` says how to use it.

mod arguments;
mod engine;
mod plot;
mod summary;

use std::fs;

use anyhow::{Context, Result, ensure};

use self::arguments::Arguments;
use self::engine::{Engine, Rates};
use self::summary::{Comparison, Round};

pub(crate) const HELP: &str = arguments::HELP;

/// Runs the command.
#[expect(clippy::print_stdout, reason = "a command-line program answers on stdout")]
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let mut arguments = Arguments::parse(arguments)?;
    let peer = Engine::peer(&arguments)?;
    let moeba = Engine::moeba(&arguments)?;
    let remarks = remarks(&peer, &arguments);
    if !peer.decodes_batches() {
        arguments.plan.batch = 1;
    }
    let mut comparison = Comparison {
        model: arguments.model.display().to_string(),
        model_bytes: fs::metadata(&arguments.model).map_or(0, |about| about.len()),
        threads: arguments.plan.threads,
        engines: [moeba.about(&arguments)?, peer.about(&arguments)?],
        remarks,
        rounds: Vec::new(),
    };
    for index in 0..arguments.rounds {
        let round = play(index, [&moeba, &peer], &arguments)?;
        comparison.rounds.push(round);
    }
    ensure!(!comparison.tests().is_empty(), "no test was measured by both");
    if let Some(path) = &arguments.svg {
        fs::write(path, plot::svg(&comparison))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparison.to_json())?);
    } else {
        print!("{}", comparison.to_text());
    }
    Ok(())
}

/// One round: both engines, Moeba first in even ones.
#[expect(clippy::print_stderr, reason = "progress belongs on the terminal")]
fn play(index: usize, engines: [&Engine; 2], arguments: &Arguments) -> Result<Round> {
    let mut round = Round { load: [0.0; 2], rates: [Rates::new(), Rates::new()] };
    let order = if index.is_multiple_of(2) { [0, 1] } else { [1, 0] };
    for which in order {
        let engine = engines[which];
        let load = load();
        eprintln!(
            "round {} of {}: {} (load {load:.2})",
            index + 1,
            arguments.rounds,
            engine.name()
        );
        round.load[which] = load;
        round.rates[which] = engine.measure(arguments)?;
    }
    Ok(round)
}

/// The machine's load over the last minute; 0 where it does not say. Our own runs are part of it.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// What the numbers do not hold, and what has to be known about them.
fn remarks(peer: &Engine, arguments: &Arguments) -> Vec<String> {
    let mut lines = vec![
        "not counted: loading, tokenising and sampling of either".to_owned(),
        "not counted: each engine's own warm-up before each test".to_owned(),
    ];
    if arguments.plan.batch > 1 && !peer.decodes_batches() {
        lines.push(format!(
            "not measured: decoding {} sequences together, for which {} has nothing here",
            arguments.plan.batch,
            peer.name()
        ));
    }
    lines.extend(peer.caveat().map(|caveat| format!("note: {caveat}")));
    lines
}
