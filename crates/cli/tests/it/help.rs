//! Help, completions and man pages come from the flags' definitions; the help is kept to be read.

use std::fs;
use std::path::Path;

use crate::world::World;

/// Compares with a kept text; with `MOEBA_BLESS=1` keeps the new one.
#[track_caller]
fn check(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/help").join(name);
    if std::env::var_os("MOEBA_BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, found).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == found, "`{name}` changed; read it, then run with MOEBA_BLESS=1:\n{found}");
}

#[test]
fn help_reads_as_kept() {
    let world = World::new("help");
    check("moeba.txt", &world.run(&["-h"]).succeeded().out);
    for command in [
        "run",
        "pull",
        "list",
        "inspect",
        "fit",
        "verify",
        "bench",
        "probe",
        "logits",
        "tokenize",
        "quantize",
        "imatrix",
        "perplexity",
        "kld",
        "upcycle",
    ] {
        check(&format!("{command}.txt"), &world.run(&[command, "-h"]).succeeded().out);
    }
}

#[test]
fn completions_know_every_command() {
    let world = World::new("completions");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = world.run(&["completions", shell]).succeeded().out;
        assert!(script.contains("upcycle") && script.contains("temperature"), "{shell}");
    }
}

#[test]
fn man_pages_are_written() {
    let world = World::new("man");
    assert!(world.run(&["man"]).succeeded().out.contains(".TH moeba 1"));
    let dir = world.home.join("man1");
    world.run(&["man", dir.to_str().unwrap()]).succeeded();
    for page in ["moeba.1", "moeba-run.1", "moeba-upcycle.1"] {
        assert!(fs::read_to_string(dir.join(page)).unwrap().contains(".SH"), "{page}");
    }
}

#[test]
fn wrong_flags_exit_with_2() {
    let world = World::new("flags");
    for args in [
        &["frobnicate"][..],
        &[],
        &["pull"],
        &["run", "--temperature", "nan", "x"],
        &["run", "--top-p", "1.5", "x"],
        &["run", "--isa", "sse9", "x"],
        &["list", "--threads", "0"],
        &["list", "--threads", "1000000000"],
        &["upcycle", "a", "b", "--experts", "0"],
        &["run", "x", "--max-tokens", "0"],
    ] {
        assert_eq!(world.run(args).code, Some(2), "{args:?}");
    }
}
