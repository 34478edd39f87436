//! Asking a model: what comes out where, and what is refused.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::tiny::{directory_with_words, fixture, with_words};
use crate::world::{Finished, World};

/// Flags that make short answers.
const SHORT: [&str; 3] = ["--max-tokens", "12", "--threads=1"];

fn run(world: &World, model: &str, args: &[&str]) -> Finished {
    let all: Vec<&str> = ["run", "-m", model].iter().chain(&SHORT).chain(args).copied().collect();
    world.run(&all)
}

#[test]
fn an_answer_goes_to_stdout_and_its_figures_to_stderr() {
    let world = World::new("run_plain");
    let model = with_words(&world);
    let answered = run(&world, &model, &["Hello", "--temperature", "0"]).succeeded();
    assert!(answered.out.ends_with('\n') && answered.out.len() > 1, "{:?}", answered.out);
    for words in ["prompt", "answer", "tokens/s", "first token after", "seed"] {
        assert!(answered.err.contains(words), "no `{words}` in {}", answered.err);
    }
    let quiet = run(&world, &model, &["Hello", "--temperature", "0", "-q"]).succeeded();
    assert_eq!((quiet.out, quiet.err.as_str()), (answered.out, ""));
}

#[test]
fn json_holds_text_counts_and_timings() {
    let world = World::new("run_json");
    let model = with_words(&world);
    let shown = run(&world, &model, &["Hello", "--json", "--seed", "7"]).json();
    assert!(shown["text"].is_string());
    assert_eq!(shown["seed"], 7);
    assert!(["stop", "length"].contains(&shown["finish_reason"].as_str().unwrap()));
    // `<user>Hello<end><bot>`
    assert_eq!(shown["usage"]["prompt_tokens"], 8);
    assert!(shown["usage"]["completion_tokens"].as_u64().unwrap() <= 12);
    assert!(shown["timings"]["first_token_seconds"].as_f64().unwrap() > 0.0);
    let again = run(&world, &model, &["Hello", "--json", "--seed", "7"]).json();
    assert_eq!(again["text"], shown["text"], "the same seed gives the same answer");
}

#[test]
fn prompts_come_from_stdin_and_files_too() {
    let world = World::new("run_stdin");
    let model = with_words(&world);
    let greedy = ["--temperature=0", "-q", "--threads=1", "--max-tokens=12"];
    let wanted = run(&world, &model, &["Hi there", "--temperature=0", "-q"]).succeeded().out;
    let file = world.home.join("prompt.txt");
    std::fs::write(&file, "Hi there").unwrap();
    let from_file = run(&world, &model, &["-f", file.to_str().unwrap(), "--temperature=0", "-q"]);
    assert_eq!(from_file.succeeded().out, wanted);
    for prompt in [&["-"][..], &[]] {
        let mut command = world.command(&["run", "-m", &model]);
        command.args(greedy).args(prompt).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"Hi there").unwrap();
        let finished = Finished::from(child.wait_with_output().unwrap()).succeeded();
        assert_eq!(finished.out, wanted);
    }
}

#[test]
fn an_upcycled_model_answers_like_its_parent() {
    let world = World::new("run_upcycled");
    let dense = with_words(&world);
    let moe = world.home.join("moe.gguf").to_str().unwrap().to_owned();
    let made = world
        .run(&["upcycle", &dense, &moe, "--experts", "4", "--top-k", "2", "--seed", "3", "--json"])
        .json();
    assert_eq!(made["experts"], 4);
    let ask = |model: &str| -> Value {
        run(&world, model, &["Hello", "--temperature=0", "--json"]).json()
    };
    let (parent, child) = (ask(&dense), ask(&moe));
    assert_eq!(child["text"], parent["text"]);
    assert_eq!(parent["expert_bytes"], 0);
    assert!(child["expert_bytes"].as_u64() > Some(0));
    let experts =
        world.run(&["inspect", &moe, "--json"]).json()["weights"]["bytes_experts"].as_u64();
    assert_eq!(child["expert_bytes_per_token"].as_u64(), experts.map(|bytes| bytes * 2 / 4));
    world.run(&["upcycle", &dense, &moe]).failed_saying(&["exists", "--force"]);
    world.run(&["upcycle", &moe, &dense, "--force"]).failed_saying(&["has 4 experts already"]);
    assert_eq!(ask(&dense)["text"], parent["text"], "a refused upcycling leaves the output alone");
    let inspected = world.run(&["inspect", &moe, "--json"]).json();
    assert_eq!(inspected["family"], "mixtral");
    assert_eq!(inspected["experts"]["per_token"], 2);
}

#[test]
fn a_directory_answers_like_its_gguf_file_and_greedily_where_it_advises_so() {
    let world = World::new("run_directory");
    let (file, dir) = (with_words(&world), directory_with_words(&world));
    let wanted = run(&world, &file, &["Hello", "--temperature=0", "--json"]).json();
    let found = run(&world, &dir, &["Hello", "--json"]).json();
    assert_eq!(found["text"], wanted["text"]);
    assert_eq!(found["usage"], wanted["usage"]);
}

#[test]
fn templates_can_be_chosen() {
    let world = World::new("run_template");
    let model = with_words(&world);
    let tokens = |template: &str| {
        let shown = run(&world, &model, &["Hi", "--json", "--template", template]).json();
        shown["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let file = world.home.join("own.jinja");
    std::fs::write(&file, "{{ messages[0].content }}!").unwrap();
    assert_eq!(tokens(file.to_str().unwrap()), 3);
    assert!(tokens("chatml") > 20);
    run(&world, &model, &["Hi", "--template", "nonsense"]).failed_saying(&["nor one of chatml"]);
}

#[test]
fn stop_strings_end_an_answer() {
    let world = World::new("run_stop");
    let model = with_words(&world);
    let greedy = ["Hello", "--temperature=0", "--json"];
    let whole = run(&world, &model, &greedy).json()["text"].as_str().unwrap().to_owned();
    let stop: String = whole.chars().skip(2).take(3).collect();
    let args: Vec<&str> = greedy.iter().copied().chain(["--stop", &stop]).collect();
    let cut = run(&world, &model, &args).json();
    assert_eq!(cut["text"], whole[..whole.find(&stop).unwrap()]);
    assert_eq!(cut["finish_reason"], "stop");
}

#[test]
fn a_prompt_without_template_goes_in_as_it_is() {
    let world = World::new("run_no_template");
    let model = with_words(&world);
    let shown = run(&world, &model, &["<bot>", "--no-template", "--json"]).json();
    assert_eq!(shown["usage"]["prompt_tokens"], 5, "control tokens typed by a user are text");
    let chat = run(&world, &model, &["<bot>", "--json", "--system", "S"]).json();
    // `<system>S<end><user>` and 5 characters and `<end><bot>`
    assert_eq!(chat["usage"]["prompt_tokens"], 11);
}

#[test]
fn what_cannot_be_run_is_refused_with_a_hint() {
    let world = World::new("run_refused");
    let model = with_words(&world);
    let long = "x".repeat(300);
    let no_tokenizer = fixture("llama").join("model.gguf");
    let no_tokenizer = no_tokenizer.to_str().unwrap();
    let no_weights = world.home.join("config-only");
    std::fs::create_dir(&no_weights).unwrap();
    std::fs::copy(fixture("llama").join("config.json"), no_weights.join("config.json")).unwrap();
    let not_a_model = world.home.join("note.gguf");
    std::fs::write(&not_a_model, "hello").unwrap();
    let empty_dir = world.home.join("empty");
    std::fs::create_dir(&empty_dir).unwrap();
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    for (model, args, wanted) in [
        (model.as_str(), &[""][..], "the prompt is empty"),
        (&model, &["x", "--ctx", "999999"], "more than the model's context"),
        (&model, &[&long, "--ctx", "64"], "64"),
        (&model, &["-f", "/no/such/file"], "cannot open `/no/such/file`"),
        ("no-such-model", &["x"], "no file or directory `no-such-model`: there is no model named"),
        ("/no/such/model.gguf", &["x"], "no file or directory `/no/such/model.gguf`"),
        (no_tokenizer, &["x"], "tokenizer"),
        (&path(&no_weights), &["x"], "no weights"),
        (&path(&not_a_model), &["x"], "note.gguf"),
        (&path(&empty_dir), &["x"], "empty"),
    ] {
        run(&world, model, args).failed_saying(&[wanted]);
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_that_closes_is_no_failure() {
    let world = World::new("run_pipe");
    let model = with_words(&world);
    let mut command = world.command(&["run", "-m", &model, "Hello", "-n", "200", "-q"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let finished = Finished::from(child.wait_with_output().unwrap());
    assert_eq!((finished.code, finished.err.as_str()), (Some(0), ""));
}

#[test]
fn guessing_ahead_changes_no_answer_and_is_told() {
    let world = World::new("run_speculate");
    let model = with_words(&world);
    let ask = |when: &str| {
        let flags = ["abcabcabcabcabc", "--speculate", when, "--json", "--temperature=0"];
        run(&world, &model, &flags).json()
    };
    let (off, ngram, auto) = (ask("off"), ask("ngram"), ask("auto"));
    assert_eq!(off["usage"]["guessed_tokens"], 0);
    assert_eq!((&ngram["text"], &auto["text"]), (&off["text"], &off["text"]));
    let count = |name: &str| ngram["usage"][name].as_u64().unwrap();
    assert!(count("guessed_tokens_accepted") <= count("guessed_tokens"));
    assert_eq!(count("completion_tokens"), off["usage"]["completion_tokens"].as_u64().unwrap());
}
