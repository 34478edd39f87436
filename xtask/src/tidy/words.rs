//! Words that must not stand somewhere: the architecture's invariants, most of them absences.

use super::{Findings, Source};

/// One invariant: `word` may stand only in files for which `allowed` is true.
struct Invariant {
    words: &'static [&'static str],
    allowed: fn(&str) -> bool,
    why: &'static str,
}

const INVARIANTS: &[Invariant] = &[
    Invariant {
        words: &["env::var", "env::args", "env::current_dir", "env::temp_dir"],
        allowed: |path| path.starts_with("crates/cli/") || path.starts_with("xtask/"),
        why: "the environment is read by the command line alone",
    },
    Invariant {
        words: &["Instant::now", "SystemTime::now"],
        allowed: |path| !path.ends_with("engine/src/scheduler.rs"),
        why: "the scheduler is a pure function and knows no clock",
    },
    Invariant {
        words: &["_mm256_", "_mm512_", "target_feature"],
        allowed: |path| path.starts_with("crates/kernels/"),
        why: "instruction sets are the kernels' business",
    },
    Invariant {
        words: &["Mixtral", "Olmoe", "Qwen", "Gemma", "DeepSeek", "Mistral4", "GptOss"],
        allowed: |path| !path.starts_with("crates/model/src/") || path.contains("/families/"),
        why: "families are data: their names stand only in families/",
    },
    Invariant {
        words: &["tokio"],
        allowed: |path| path.starts_with("crates/server/") || path.starts_with("crates/cli/"),
        why: "async lives at the edge only",
    },
];

/// File and module names that say nothing.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "manager", "base"];

/// Checks the words of one file.
pub(crate) fn check(source: &Source, findings: &mut Findings) {
    check_name(source, findings);
    if source.path.starts_with("xtask/") {
        return;
    }
    check_unsafe(source, findings);
    let tests_from = source.text.find("#[cfg(test)]").unwrap_or(source.text.len());
    for (index, line) in source.text[..tests_from].lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for invariant in INVARIANTS {
            let stands = invariant.words.iter().find(|word| code.contains(**word));
            if let Some(word) = stands
                && !source.is_test()
                && !(invariant.allowed)(&source.path)
            {
                let (path, why, line) = (&source.path, invariant.why, index + 1);
                findings.push(format!("{path}:{line}: `{word}`: {why}"));
            }
        }
        if code.contains("#[allow(") || code.contains("#![allow(") {
            findings.push(format!(
                "{}:{}: a bare `allow`; write `expect` with a reason",
                source.path,
                index + 1
            ));
        }
    }
}

fn check_name(source: &Source, findings: &mut Findings) {
    let stem = source.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    if EMPTY_NAMES.contains(&stem) {
        findings.push(format!("{}:1: the name `{stem}` says nothing", source.path));
    }
}

/// Every crate but `kernels` forbids unsafe code at its root, so that the compiler keeps the wall.
fn check_unsafe(source: &Source, findings: &mut Findings) {
    let is_root = source.path.ends_with("/src/lib.rs") || source.path.ends_with("/src/main.rs");
    let kernels = source.path.starts_with("crates/kernels/");
    if is_root && !kernels && !source.text.contains("#![forbid(unsafe_code)]") {
        findings.push(format!("{}:1: no `#![forbid(unsafe_code)]`", source.path));
    }
}
