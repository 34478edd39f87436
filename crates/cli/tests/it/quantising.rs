//! Commands that make models smaller and tell what that costs.

use std::fs;

use crate::numbers::read_logits;
use crate::tiny::with_words;
use crate::world::World;

/// A model that reads, its home, and a text of some hundred tokens.
fn world(name: &str) -> (World, String, String) {
    let world = World::new(name);
    let model = with_words(&world);
    let text = world.home.join("text.txt");
    fs::write(&text, "the quick brown fox jumps over the lazy dog; ".repeat(8)).unwrap();
    let text = text.to_str().unwrap().to_owned();
    (world, model, text)
}

fn path(world: &World, name: &str) -> String {
    world.home.join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_model_is_quantised_and_compared() {
    let (world, model, text) = world("quantise");
    let (small, base) = (path(&world, "small.gguf"), path(&world, "base.safetensors"));
    let importance = path(&world, "importance.gguf");
    let dry = world.run(&["quantize", &model, "--type", "q8_0", "--dry-run", "--json"]).json();
    world
        .run(&["imatrix", "-m", &model, "-f", &text, "--ctx", "64", "-o", &importance])
        .succeeded();
    let told = ["--imatrix", &importance, "--tensor-type", "attn_q=BF16", "--json"];
    let made = [&["quantize", &model, &small, "--type", "q8_0"][..], &told].concat();
    let made = world.run(&made).json();
    assert_eq!(made["tensors"], dry["tensors"]);
    assert!(made["bytes"].as_u64() > dry["bytes"].as_u64());
    let formats = made["formats"].as_array().unwrap();
    assert!(formats.iter().any(|format| format["format"] == "BF16"), "{formats:?}");
    world.run(&["quantize", &model, &small, "--type", "Q8_0"]).failed_saying(&["exists"]);
    for (output, words) in [("/no/such/x.gguf", "no directory `/no/such`"), ("-", "not to stdout")]
    {
        world.run(&["quantize", &model, output, "--type", "Q8_0"]).failed_saying(&[words]);
    }

    let on = ["-f", &text, "--ctx", "64"];
    let run = |args: &[&str]| world.run(&[args, &on].concat());
    run(&["kld", "-m", &model, "--save-logits", &base]).succeeded();
    let same = run(&["kld", "-m", &model, "--base", &base, "--json"]).json();
    assert!(same["kl"]["mean"].as_f64().unwrap() < 1e-6, "{same}");
    assert!(same["top1_agreement"]["mean"].as_f64().unwrap() > 0.99);
    let other = run(&["kld", "-m", &small, "--base", &base, "--json"]).json();
    assert!(other["kl"]["mean"].as_f64() > same["kl"]["mean"].as_f64());
    assert!(run(&["kld", "-m", &small, "--base", &base]).succeeded().out.contains("99.9 %"));
    let perplexity = run(&["perplexity", "-m", &model, "--json"]).json();
    let expected = same["perplexity"].as_f64().unwrap();
    // Both count the same text, in other windows.
    assert!((perplexity["perplexity"].as_f64().unwrap() / expected - 1.0).abs() < 0.5);
}

/// What is measured and what is written are the same everywhere: the whole way from the model's
/// forward pass to the file.
#[test]
fn instruction_sets_and_threads_change_no_byte() {
    let (world, model, text) = world("quantise_isa");
    // What this processor does not have is the only thing that may fail.
    let made = ["scalar", "avx2", "avx512"].into_iter().zip(["1", "2", "3"]).filter_map(
        |(isa, threads)| {
            let how = ["--isa", isa, "--threads", threads];
            let [importance, small] =
                ["gguf", "Q4_K_M"].map(|name| path(&world, &format!("{isa}.{name}")));
            let measure = ["imatrix", "-m", &model, "-f", &text, "--ctx", "64", "-o", &importance];
            let measured = world.run(&[&measure[..], &how].concat());
            if isa != "scalar" && measured.err.contains("this CPU does not have") {
                return None;
            }
            measured.succeeded();
            let quantise =
                ["quantize", &model, &small, "--type", "Q4_K_M", "--imatrix", &importance];
            world.run(&[&quantise[..], &how].concat()).succeeded();
            Some([importance, small].map(|path| fs::read(path).unwrap()))
        },
    );
    let made: Vec<_> = made.collect();
    assert!(made.iter().all(|files| *files == made[0]));
}

#[test]
fn another_text_is_refused() {
    let (world, model, text) = world("kld_text");
    let base = path(&world, "base.safetensors");
    world
        .run(&["kld", "-m", &model, "-f", &text, "--ctx", "64", "--save-logits", &base])
        .succeeded();
    fs::write(&text, "another text entirely. ".repeat(16)).unwrap();
    let refused = world.run(&["kld", "-m", &model, "-f", &text, "--ctx", "64", "--base", &base]);
    refused.failed_saying(&["another text"]);
    fs::write(&base, "no such file").unwrap();
    let refused = world.run(&["kld", "-m", &model, "-f", &text, "--base", &base]);
    refused.failed_saying(&["predictions"]);
}

#[test]
fn logits_of_another_engine_are_a_base_too() {
    let (world, model, _) = world("kld_logits");
    let (tokens, logits) = ("5,9,12,7,30,31,8", path(&world, "logits.safetensors"));
    world.run(&["logits", "-m", &model, "--tokens", tokens, "-o", &logits]).succeeded();
    let on = ["kld", "-m", &model, "--tokens", tokens, "--base", &logits, "--json"];
    let same = world.run(&on).json();
    assert_eq!(same["tokens"], 6);
    assert!(same["kl"]["mean"].as_f64().unwrap() < 1e-5, "{same}");
}

/// Nats of each token but the first, from the logits of the others.
fn surprises(world: &World, model: &str, tokens: &[u32]) -> Vec<f64> {
    let out = world.home.join("surprises.safetensors");
    let typed: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let output = out.to_str().unwrap();
    world.run(&["logits", "-m", model, "--tokens", &typed.join(","), "-o", output]).succeeded();
    let (shape, logits) = read_logits(&out, "logits");
    let rows = logits.chunks_exact(shape[1] as usize).zip(&tokens[1..]);
    let nats = rows.map(|(logits, next)| {
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(logits[*next as usize])
    });
    nats.collect()
}

/// In windows of 4 tokens that are 2 apart, the second counts the last two of its own.
#[test]
fn perplexity_is_that_of_the_tokens_that_follow() {
    let (world, model, _) = world("perplexity");
    let tokens = [5, 9, 12, 7, 30, 31, 8, 40];
    let whole = surprises(&world, &model, &tokens);
    let mut windows = surprises(&world, &model, &tokens[..4]);
    for start in [2, 4] {
        windows.extend(&surprises(&world, &model, &tokens[start..start + 4])[1..]);
    }
    let typed = "5,9,12,7,30,31,8,40";
    let on = ["perplexity", "-m", &model, "--tokens", typed, "--kv-type", "f32", "--json"];
    for (nats, options) in [(whole, &[][..]), (windows, &["--ctx", "4", "--stride", "2"])] {
        let told = world.run(&[&on, options].concat()).json();
        assert_eq!(told["tokens_counted"], nats.len());
        let mean = nats.iter().sum::<f64>() / nats.len() as f64;
        assert!((told["nats_per_token"].as_f64().unwrap() - mean).abs() < 1e-5, "{told} {mean}");
    }
}

/// Quantises to F32 until a limit on files' size, which is the full disk that every user may have.
fn on_a_full_disk(world: &World, model: &str, output: &str) -> std::process::Output {
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec \"{}\" quantize \"{model}\" \"{output}\" --type F32",
        env!("CARGO_BIN_EXE_moeba"),
    );
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", &script]).env("MOEBA_HOME", &world.home).output().unwrap()
}

#[test]
fn a_full_disk_leaves_nothing_under_the_final_name_and_can_be_continued() {
    let (world, model, _) = world("quantise_full");
    let output = path(&world, "full.gguf");
    let full = on_a_full_disk(&world, &model, &output);
    let words = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{words}");
    assert!(words.contains("what is done is kept"), "{words}");
    assert!(!world.home.join("full.gguf").exists());
    assert!(world.home.join("full.gguf.partial").exists());
    let going_on = world.run(&["quantize", &model, &output, "--type", "F32"]).succeeded();
    assert!(going_on.err.contains("going on after "), "{}", going_on.err);
    let fresh = path(&world, "fresh.gguf");
    world.run(&["quantize", &model, &fresh, "--type", "F32"]).succeeded();
    assert!(fs::read(&output).unwrap() == fs::read(&fresh).unwrap());
    assert!(!world.home.join("full.gguf.partial").exists());
}

#[test]
fn another_input_starts_anew_and_says_so() {
    let (world, model, _) = world("quantise_changed");
    let output = path(&world, "out.gguf");
    on_a_full_disk(&world, &model, &output);
    assert!(world.home.join("out.gguf.partial").exists() && !world.home.join("out.gguf").exists());
    // One byte in the middle of a tensor that was done.
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, &bytes).unwrap();
    let told = world.run(&["quantize", &model, &output, "--type", "F32"]).succeeded();
    assert!(told.err.contains("starting over"), "{}", told.err);
    let fresh = path(&world, "fresh.gguf");
    world.run(&["quantize", &model, &fresh, "--type", "F32"]).succeeded();
    assert!(fs::read(&output).unwrap() == fs::read(&fresh).unwrap());
}

#[test]
fn wrong_types_are_named() {
    let (world, model, _) = world("quantise_types");
    let output = path(&world, "x.gguf");
    let run = |more: &[&str]| world.run(&[&["quantize", &model, &output], more].concat());
    run(&["--type", "Q9_Z"]).failed_saying(&["`Q9_Z`", "Q4_K_M"]);
    run(&["--type", "Q8_0", "--tensor-type", "x=Q9"]).failed_saying(&["`Q9`"]);
    run(&["--type", "Q8_0", "--tensor-type", "(=F16"]).failed_saying(&["`(`"]);
    world
        .run(&["quantize", &model, &model, "--type", "Q8_0", "--force"])
        .failed_saying(&["the input itself"]);
}
