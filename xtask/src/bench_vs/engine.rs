//! How each engine is started, and how its answer is read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::arguments::{Arguments, Plan};
use super::summary::About;
use crate::tidy::repository_root;

/// What is measured, in the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Test {
    /// A prompt of so many tokens.
    Prefill(usize),
    /// An answer of so many tokens.
    Decode(usize),
    /// So many sequences, each with an answer of so many tokens.
    Batch(usize, usize),
}

/// Tokens per second.
pub(super) type Rates = BTreeMap<Test, f64>;

/// Context of each sequence before it decodes in a batch: llama-batched-bench wants some.
const BATCH_DEPTH: usize = 16;

/// An engine that can be run.
pub(super) enum Engine {
    Moeba(PathBuf),
    /// llama-bench, and llama-batched-bench if it is there.
    LlamaBench(PathBuf, Option<PathBuf>),
    /// The Python of an environment with a package in it, and how to run that.
    Package(PathBuf, &'static Package),
}

/// An engine on PyPI.
pub(super) struct Package {
    name: &'static str,
    /// In `xtask/peers`: takes the plan as JSON, prints what [`read_package`] reads.
    script: &'static str,
    caveat: &'static str,
}

const PACKAGES: [Package; 2] = [
    Package {
        name: "mistralrs",
        script: "measure_mistralrs.py",
        caveat: "mistralrs takes text, not tokens: its prompts are made of words, and their length \
                 may differ by a few tokens; rates are what it reports itself",
    },
    Package {
        name: "llama-cpp-python",
        script: "measure_llama_cpp_python.py",
        caveat: "one sequence at a time; a little Python runs between tokens",
    },
];

impl Engine {
    /// Moeba, built for release unless one is named.
    pub(super) fn moeba(arguments: &Arguments) -> Result<Engine> {
        if let Some(path) = &arguments.moeba {
            return Ok(Engine::Moeba(path.clone()));
        }
        let mut build = Command::new("cargo");
        build.args(["build", "--release", "-p", "moeba"]).current_dir(repository_root());
        ensure!(build.status()?.success(), "moeba could not be built");
        Ok(Engine::Moeba(repository_root().join("target/release/moeba")))
    }

    /// The peer, installed if need be.
    pub(super) fn peer(arguments: &Arguments) -> Result<Engine> {
        let peer = &*arguments.peer;
        if let Some(package) = PACKAGES.iter().find(|package| package.name == peer) {
            return Ok(Engine::Package(install(package)?, package));
        }
        let path = PathBuf::from(peer);
        let known = PACKAGES.map(|package| package.name).join(", ");
        ensure!(path.is_file(), "`{peer}` is no file, and none of the known packages: {known}");
        let batched = path.with_file_name("llama-batched-bench");
        let batched = batched.is_file().then_some(batched);
        Ok(Engine::LlamaBench(path, batched))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Engine::Moeba(_) => "moeba",
            Engine::LlamaBench(..) => "llama.cpp",
            Engine::Package(_, package) => package.name,
        }
    }

    /// Whether sequences that decode together can be measured.
    pub(super) fn decodes_batches(&self) -> bool {
        matches!(self, Engine::Moeba(_) | Engine::LlamaBench(_, Some(_)))
    }

    /// What has to be known about its numbers.
    pub(super) fn caveat(&self) -> Option<&'static str> {
        match self {
            Engine::Moeba(_) | Engine::LlamaBench(..) => None,
            Engine::Package(_, package) => Some(package.caveat),
        }
    }

    /// Its version, and what it is run with.
    pub(super) fn about(&self, arguments: &Arguments) -> Result<About> {
        let version = match self {
            // Some print it to stdout, some to stderr.
            Engine::Moeba(path) | Engine::LlamaBench(path, _) => {
                let output = Command::new(path).arg("--version").output();
                let output = output.with_context(|| format!("cannot run `{}`", path.display()))?;
                [output.stdout, output.stderr].concat()
            }
            Engine::Package(python, package) => {
                let code = "import importlib.metadata, sys; \
                            print(importlib.metadata.version(sys.argv[1]))";
                Command::new(python).args(["-c", code, package.name]).output()?.stdout
            }
        };
        let version = String::from_utf8_lossy(&version);
        let version = version.lines().find(|line| line.contains(char::is_numeric));
        // `moeba 0.1.0` and `version: 0.6.0 (build 1)` say more than is wanted.
        let said = version.unwrap_or("unknown").trim();
        let words = ["moeba ", "version: "].iter().find_map(|word| said.strip_prefix(word));
        Ok(About {
            name: self.name().to_owned(),
            version: words.unwrap_or(said).to_owned(),
            commands: self.commands(arguments).iter().map(shown).collect(),
        })
    }

    /// Runs everything once.
    pub(super) fn measure(&self, arguments: &Arguments) -> Result<Rates> {
        let mut rates = Rates::new();
        for mut command in self.commands(arguments) {
            let named = shown(&command);
            let output = command.output().with_context(|| format!("cannot run `{named}`"))?;
            let (said, complaint) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            ensure!(output.status.success(), "`{named}` failed:\n{complaint}");
            let read = match self {
                Engine::Moeba(_) => read_moeba(&said),
                Engine::LlamaBench(..) => read_llama(&said),
                Engine::Package(..) => read_package(&said),
            };
            rates.extend(read.with_context(|| format!("`{named}` answered:\n{said}"))?);
        }
        Ok(rates)
    }

    fn commands(&self, arguments: &Arguments) -> Vec<Command> {
        let (model, plan) = (&arguments.model, &arguments.plan);
        let mut commands = match self {
            Engine::Moeba(path) => moeba_commands(path, model, plan),
            Engine::LlamaBench(path, batched) => {
                llama_commands(path, batched.as_deref(), model, plan)
            }
            Engine::Package(python, package) => vec![package_command(python, package, model, plan)],
        };
        let more = match self {
            Engine::Moeba(_) => &arguments.moeba_args,
            Engine::LlamaBench(..) | Engine::Package(..) => &arguments.peer_args,
        };
        for command in &mut commands {
            command.args(more);
        }
        commands
    }
}

/// A command as it would be typed.
fn shown(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        if word.contains([' ', '"']) { format!("'{word}'") } else { word.into_owned() }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn list(numbers: &[usize]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn moeba_commands(path: &Path, model: &Path, plan: &Plan) -> Vec<Command> {
    let command = |prompt: &str, batch: usize, depth: usize| {
        let mut command = Command::new(path);
        command.args(["bench", "--no-machine", "--json", "-q", "-r", "1", "-m"]).arg(model);
        command.args(["-p", prompt, "-n", &plan.generate.to_string()]);
        command.args(["-b", &batch.to_string(), "-d", &depth.to_string()]);
        command.args(["-t", &plan.threads.to_string()]);
        command
    };
    let batched = (plan.batch > 1).then(|| command("0", plan.batch, BATCH_DEPTH));
    [command(&list(&plan.prompt), 1, 0)].into_iter().chain(batched).collect()
}

fn llama_commands(path: &Path, batched: Option<&Path>, model: &Path, plan: &Plan) -> Vec<Command> {
    let (generate, threads) = (plan.generate.to_string(), plan.threads.to_string());
    let mut single = Command::new(path);
    single.arg("-m").arg(model).args(["-p", &list(&plan.prompt), "-n", &generate]);
    single.args(["-t", &threads, "-r", "1", "-o", "json"]);
    let batched = batched.filter(|_| plan.batch > 1).map(|path| {
        let context = plan.batch * (BATCH_DEPTH + plan.generate);
        let mut command = Command::new(path);
        command.arg("-m").arg(model).args(["-c", &context.to_string(), "-t", &threads]);
        command.args(["-npp", &BATCH_DEPTH.to_string(), "-ntg", &generate]);
        command.args(["-npl", &plan.batch.to_string(), "--output-format", "jsonl"]);
        command
    });
    [single].into_iter().chain(batched).collect()
}

fn package_command(python: &Path, package: &Package, model: &Path, plan: &Plan) -> Command {
    let plan_json = json!({
        "model": model.display().to_string(),
        "prompt": plan.prompt,
        "generate": plan.generate,
        "threads": plan.threads,
    });
    let mut command = Command::new(python);
    let script = repository_root().join("xtask/peers").join(package.script);
    command.arg(script).arg(plan_json.to_string());
    let threads = plan.threads.to_string();
    command.env("RAYON_NUM_THREADS", &threads).env("OMP_NUM_THREADS", &threads);
    command
}

/// Installs a package into an environment of its own, once; its Python.
fn install(package: &Package) -> Result<PathBuf> {
    let folder = repository_root().join("target/bench-vs").join(package.name);
    let python = folder.join("bin/python");
    let run = |command: &mut Command| -> Result<()> {
        let named = shown(command);
        let status = command.status().with_context(|| format!("cannot run `{named}`"))?;
        ensure!(status.success(), "`{named}` failed");
        Ok(())
    };
    if !python.is_file() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    run(Command::new(&python).args(["-m", "pip", "install", "-q", package.name]))?;
    Ok(python)
}

/// The answer of `moeba bench --json`.
fn read_moeba(said: &str) -> Result<Rates> {
    let answer: Value = serde_json::from_str(said)?;
    let tests = answer["tests"].as_array().context("no `tests`")?;
    tests
        .iter()
        .map(|test| {
            let tokens = number(test, "tokens")?;
            let which = match (test["kind"].as_str(), number(test, "batch")?) {
                (Some("prefill"), _) => Test::Prefill(tokens),
                (Some("decode"), 1) => Test::Decode(tokens),
                (Some("decode"), batch) => Test::Batch(batch, tokens),
                (other, _) => bail!("unknown kind `{other:?}`"),
            };
            Ok((which, rate(test, "tokens_per_second")?))
        })
        .collect()
}

/// The answer of llama-bench, a list, or of llama-batched-bench, an object in a line.
fn read_llama(said: &str) -> Result<Rates> {
    if let Ok(Value::Array(tests)) = serde_json::from_str(said) {
        let read = |test: &Value| {
            let which = match [number(test, "n_prompt")?, number(test, "n_gen")?] {
                [prompt, 0] => Test::Prefill(prompt),
                [0, generate] => Test::Decode(generate),
                both => bail!("a test of prompt and answer together: {both:?}"),
            };
            Ok((which, rate(test, "avg_ts")?))
        };
        return tests.iter().map(read).collect();
    }
    let tests = said.lines().filter(|line| line.starts_with('{')).map(|line| {
        let test: Value = serde_json::from_str(line)?;
        let which = Test::Batch(number(&test, "pl")?, number(&test, "tg")?);
        Ok((which, rate(&test, "speed_tg")?))
    });
    let rates = tests.collect::<Result<Rates>>()?;
    ensure!(!rates.is_empty(), "no results");
    Ok(rates)
}

/// The answer of a package's script: the last line, `[[kind, tokens, rate], …]`.
fn read_package(said: &str) -> Result<Rates> {
    let last = said.lines().rfind(|line| line.starts_with('[')).context("no results")?;
    let tests: Vec<(String, usize, f64)> = serde_json::from_str(last)?;
    let read = |(kind, tokens, rate): (String, usize, f64)| match &*kind {
        "prefill" => Ok((Test::Prefill(tokens), rate)),
        "decode" => Ok((Test::Decode(tokens), rate)),
        other => bail!("unknown kind `{other}`"),
    };
    tests.into_iter().map(read).collect()
}

fn number(test: &Value, key: &str) -> Result<usize> {
    let found = test[key].as_u64().with_context(|| format!("no number `{key}`"))?;
    Ok(found as usize)
}

fn rate(test: &Value, key: &str) -> Result<f64> {
    let found = test[key].as_f64().filter(|rate| *rate > 0.0);
    found.with_context(|| format!("no rate `{key}`"))
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Test::Prefill(tokens) => write!(f, "prefill {tokens}"),
            Test::Decode(tokens) => write!(f, "decode {tokens}"),
            Test::Batch(batch, tokens) => write!(f, "decode {batch} × {tokens}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let moeba = r#"{"tests": [
            {"kind": "prefill", "tokens": 512, "batch": 1, "tokens_per_second": 300.5},
            {"kind": "decode", "tokens": 64, "batch": 1, "tokens_per_second": 20.0},
            {"kind": "decode", "tokens": 64, "batch": 16, "tokens_per_second": 90}]}"#;
        let read = read_moeba(moeba).unwrap();
        let wanted =
            [(Test::Prefill(512), 300.5), (Test::Decode(64), 20.0), (Test::Batch(16, 64), 90.0)];
        assert_eq!(read, Rates::from(wanted));

        let llama = r#"[{"build_commit": "unknown", "n_prompt": 8, "n_gen": 0, "avg_ts": 17.67,
            "samples_ts": [18.9, 16.3]}, {"n_prompt": 0, "n_gen": 4, "avg_ts": 6.5}]"#;
        let wanted = [(Test::Prefill(8), 17.67), (Test::Decode(4), 6.5)];
        assert_eq!(read_llama(llama).unwrap(), Rates::from(wanted));

        let batched = "some words\n{\"n_kv_max\": 160, \"pp\": 16, \"tg\": 4, \"pl\": 8, \
                       \"n_kv\": 160, \"speed_pp\": 90.1, \"speed_tg\": 31.5, \"speed\": 60.0}\n";
        assert_eq!(read_llama(batched).unwrap(), Rates::from([(Test::Batch(8, 4), 31.5)]));

        let package = "loading\n[[\"prefill\", 512, 30.5], [\"decode\", 64, 2.5]]\n";
        let wanted = [(Test::Prefill(512), 30.5), (Test::Decode(64), 2.5)];
        assert_eq!(read_package(package).unwrap(), Rates::from(wanted));
    }

    #[test]
    fn answers_that_say_nothing_are_errors() {
        assert!(read_moeba("{}").is_err() && read_llama("").is_err() && read_package("").is_err());
        assert!(read_llama(r#"[{"n_prompt": 8, "n_gen": 0, "avg_ts": 0.0}]"#).is_err());
        assert!(read_llama(r#"[{"n_prompt": 8, "n_gen": 8, "avg_ts": 1.0}]"#).is_err());
        assert!(read_package(r#"[["other", 1, 2.0]]"#).is_err());
    }

    #[test]
    fn both_engines_are_asked_for_the_same() {
        let plan = Plan { prompt: vec![8, 20], generate: 4, batch: 3, threads: 2 };
        let model = Path::new("m.gguf");
        let words = |commands: Vec<Command>| commands.iter().map(shown).collect::<Vec<_>>();
        let ours = words(moeba_commands(Path::new("moeba"), model, &plan));
        let batched = Some(Path::new("llama-batched-bench"));
        let theirs = words(llama_commands(Path::new("llama-bench"), batched, model, &plan));
        assert_eq!((ours.len(), theirs.len()), (2, 2));
        for command in ours.iter().chain(&theirs) {
            assert!(command.contains("-t 2") && command.contains("m.gguf"), "{command}");
        }
        assert!(ours[0].contains("-p 8,20 -n 4"), "{}", ours[0]);
        assert!(theirs[0].contains("-p 8,20 -n 4"), "{}", theirs[0]);
        assert!(ours[1].contains("-b 3 -d 16"), "{}", ours[1]);
        assert!(theirs[1].contains("-c 60") && theirs[1].contains("-npl 3"));
        let alone = Plan { batch: 1, ..plan };
        assert_eq!(moeba_commands(Path::new("moeba"), model, &alone).len(), 1);
    }
}
