//! Loading a file in a process of its own, under limits, and judging how that ended.
//!
//! A hostile file must end in a typed error: not in a panic, an abort, a signal, a second of
//! work or a heap of memory. Aborts cannot be caught, so each row of the bad-file suite runs in
//! a child, which is this very test binary asked to run [`child_loads_what_it_is_given`] alone.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use moeba_model::error::LoadError;
use moeba_model::files::open;
use moeba_model::{LoadOptions, Model};

/// Tells the child which file to load.
const ASKED: &str = "MOEBA_TEST_CHILD_LOADS";

/// Tells the child how far to go.
const DEPTH: &str = "MOEBA_TEST_CHILD_DEPTH";

/// How far loading goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Open, and ask for every tensor.
    Files,
    /// Make a model of it.
    Model,
}

/// Starts the child's report on its standard output.
const REPORT: &str = "moeba-child-report:";

/// The most memory a refusal may take, beyond what the child had before it opened the file.
const RSS_KIB_MAX: u64 = 64 << 10;

/// The most processor time a refusal may take.
const CPU_MS_MAX: u64 = 1000;

/// Address space of the child: its own, the file's, and 512 MiB; far below any absurd claim.
const ADDRESS_SPACE_KIB: u64 = 1 << 20;

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Exit code: 0 loaded, 1 refused, 101 panicked; `None` for a signal.
    pub(crate) code: Option<i32>,
    /// The error's message, or `loaded`.
    pub(crate) message: String,
    rss_kib: u64,
    cpu_ms: u64,
}

/// Loads `path` in a child.
pub(crate) fn load(path: &Path, depth: Depth) -> Outcome {
    let binary = std::env::current_exe().unwrap();
    let script = format!("ulimit -v {ADDRESS_SPACE_KIB}; ulimit -t 5; ulimit -c 0; exec \"$@\"");
    let output = Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(binary)
        .args(["--exact", "files::child::child_loads_what_it_is_given", "--nocapture"])
        .args(["--test-threads", "1"])
        .env(ASKED, path)
        .env(DEPTH, if depth == Depth::Model { "model" } else { "files" })
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    let report = stdout.split_once(REPORT).map_or("0 0 ", |(_, report)| report);
    let mut fields = report.trim_end().splitn(3, ' ');
    let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
    let (rss_kib, cpu_ms) = (number(), number());
    let message = match fields.next() {
        Some(message) if !message.is_empty() => message.to_owned(),
        _ => String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    Outcome { code: output.status.code(), message, rss_kib, cpu_ms }
}

/// Demands that `path` is refused within the limits, by a message that has all of `words`.
pub(crate) fn check_refused(row: &str, path: &Path, words: &[&str]) {
    check_refused_at(Depth::Files, row, path, words);
}

/// As [`check_refused`], at the latest when loading has gone to `depth`.
pub(crate) fn check_refused_at(depth: Depth, row: &str, path: &Path, words: &[&str]) {
    let outcome = load(path, depth);
    assert_eq!(outcome.code, Some(1), "{row}: not refused but {outcome:?}");
    assert!(outcome.rss_kib <= RSS_KIB_MAX, "{row}: too much memory: {outcome:?}");
    assert!(outcome.cpu_ms <= CPU_MS_MAX, "{row}: too much work: {outcome:?}");
    assert!(!outcome.message.contains(['\u{1b}', '\0', '\n']), "{row}: unescaped: {outcome:?}");
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let stem = name.split("-0000").next().unwrap_or(&name);
    assert!(outcome.message.contains(stem), "{row}: file not named: {outcome:?}");
    for word in words {
        assert!(outcome.message.contains(word), "{row}: no `{word}` in: {}", outcome.message);
    }
}

/// Demands that `path` loads.
pub(crate) fn check_loads(row: &str, path: &Path) {
    check_loads_at(Depth::Files, row, path);
}

/// As [`check_loads`], to `depth`.
pub(crate) fn check_loads_at(depth: Depth, row: &str, path: &Path) {
    let outcome = load(path, depth);
    assert_eq!(outcome.code, Some(0), "{row}: {outcome:?}");
}

/// Not a test of its own: does nothing unless a test above runs it in a child.
#[test]
fn child_loads_what_it_is_given() {
    let Some(path) = std::env::var_os(ASKED) else { return };
    let (rss_before, cpu_before) = (rss_kib(), cpu_ms());
    let path = Path::new(&path);
    let result = match std::env::var(DEPTH).as_deref() {
        Ok("model") => Model::load(path, &LoadOptions::default()).map(drop),
        _ => load_all(path),
    };
    let (rss, cpu) = (rss_kib() - rss_before, cpu_ms() - cpu_before);
    let (message, code) = match result {
        Ok(()) => ("loaded".to_owned(), 0),
        Err(error) => (error.to_string(), 1),
    };
    let mut out = std::io::stdout();
    writeln!(out, "{REPORT}{rss} {cpu} {message}").unwrap();
    out.flush().unwrap();
    std::process::exit(code);
}

/// Opens the model and asks for every tensor.
fn load_all(path: &Path) -> Result<(), LoadError> {
    let files = open(path)?;
    for name in files.tensors.names() {
        files.tensors.get(name)?;
    }
    Ok(())
}

/// This process' peak memory.
fn rss_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Processor time this process has used: fields 14 and 15 of `stat`, in hundredths of a second.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.map(|field| field.parse::<u64>().unwrap() * 10).sum()
}
