//! Commands that tell numbers: inspect, logits, tokenize, bench.

use std::fs;
use std::path::Path;

use moeba_model::files::Value;

use crate::tiny::{fixture, with_changes, with_words};
use crate::world::World;

/// `logits` of a safetensors file: its shape and numbers.
pub(crate) fn read_logits(path: &Path, tensor: &str) -> (Vec<u64>, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let about = &header[tensor];
    assert_eq!(about["dtype"], "F32");
    let shape = about["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    let at = |i: usize| about["data_offsets"][i].as_u64().unwrap() as usize;
    let numbers = data[at(0)..at(1)]
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    (shape, numbers)
}

#[test]
fn parameters_published_for_known_models_are_reproduced_from_configurations() {
    let world = World::new("inspect_published");
    let mixtral = r#"{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_hidden_layers": 32, "num_local_experts": 8,
        "num_experts_per_tok": 2, "rms_norm_eps": 1e-05, "rope_theta": 1000000.0,
        "max_position_embeddings": 32768, "vocab_size": 32000, "hidden_act": "silu",
        "tie_word_embeddings": false}"#;
    let qwen3 = r#"{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_hidden_layers": 48, "num_experts": 128, "num_experts_per_tok": 8,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": true,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "max_position_embeddings": 40960,
        "vocab_size": 151936, "hidden_act": "silu", "tie_word_embeddings": false}"#;
    for (name, config, total, active) in [
        ("mixtral-8x7b", mixtral, 46_702_792_704_u64, 12_879_925_248_u64),
        ("qwen3-30b-a3b", qwen3, 30_532_122_624, 3_353_430_016),
    ] {
        let dir = world.home.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("config.json"), config).unwrap();
        let shown = world.run(&["inspect", dir.to_str().unwrap(), "--json"]).json();
        let found = &shown["parameters"];
        assert_eq!(found["total"].as_u64().unwrap() / 100_000_000, total / 100_000_000, "{name}");
        assert_eq!(found["active"].as_u64().unwrap() / 100_000_000, active / 100_000_000, "{name}");
        assert!(shown["weights"].is_null() && shown["memory"]["kv_cache"].is_u64(), "{name}");
        assert!(world.run(&["inspect", dir.to_str().unwrap()]).succeeded().out.contains("Q4_K"));
    }
}

#[test]
fn inspect_tells_weights_and_memory() {
    let world = World::new("inspect_weights");
    for family in ["mixtral", "mistral4", "llama"] {
        for model in [fixture(family), fixture(family).join("model.gguf")] {
            let model = model.to_str().unwrap();
            let shown = world.run(&["inspect", "-m", model, "--json", "--ctx", "100"]).json();
            assert_eq!(shown["family"], family);
            assert_eq!(shown["experts"].is_null(), family == "llama");
            let weights = &shown["weights"];
            assert!(weights["bytes_per_token"].as_u64() <= weights["bytes"].as_u64());
            let memory = &shown["memory"];
            assert_eq!(memory["ctx"], 100);
            assert!(memory["total"].as_u64() > weights["bytes"].as_u64());
            assert_eq!(memory["fits"], true);
        }
    }
    let model = fixture("mixtral").join("model.gguf");
    let text =
        world.run(&["inspect", model.to_str().unwrap(), "--tensors", "--metadata"]).succeeded().out;
    for words in ["blk.1.ffn_up_exps.weight", "llama.expert_count", "4 a layer, 2 per token"] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    world.run(&["inspect", "qwen3-30b-a3b"]).failed_saying(&["moeba pull qwen3-30b-a3b"]);
}

#[test]
fn logits_need_no_tokenizer() {
    let world = World::new("logits");
    let out = world.home.join("out.safetensors");
    let model = fixture("mixtral");
    let logits = |model: &Path, tokens: &str| {
        let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
        world.run(&["logits", "-m", model, "--tokens", tokens, "-o", out])
    };
    logits(&model, "1,2,3, 4").succeeded();
    let (shape, numbers) = read_logits(&out, "logits");
    assert_eq!(shape, [4, 128]);
    assert!(numbers.len() == 4 * 128 && numbers.iter().all(|x| x.is_finite()));
    let ids = world.home.join("ids.txt");
    fs::write(&ids, "1 2\n3 4\n").unwrap();
    logits(&model.join("model.gguf"), &format!("@{}", ids.display())).succeeded();
    let (_, from_gguf) = read_logits(&out, "logits");
    let distance = numbers.iter().zip(&from_gguf).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(distance < 1e-3, "{distance}");
    logits(&model, "1,128").failed_saying(&["token `128` is not below 128"]);
    logits(&model, "1,x").failed_saying(&["`x` is no token id"]);
    logits(&model, "").failed_saying(&["no token ids"]);
    assert_eq!(read_logits(&out, "logits").0, [4, 128], "a refusal leaves the file alone");
}

#[test]
fn text_becomes_ids_and_text_again() {
    let world = World::new("tokenize");
    let model = with_words(&world);
    let tokenize = |args: &[&str]| {
        let all: Vec<&str> = ["tokenize", "-m", &model].iter().chain(args).copied().collect();
        world.run(&all)
    };
    let ids = tokenize(&["A b\n"]).succeeded().out;
    assert_eq!(ids, "32,94,65,95\n");
    assert_eq!(tokenize(&["--decode", ids.trim()]).succeeded().out, "A b\n\n");
    assert_eq!(tokenize(&["<end>", "--json"]).json()["count"], 1);
    assert_eq!(tokenize(&["<end>", "--json", "--plain"]).json()["count"], 5);
    let chat = tokenize(&["<end>", "--json", "--chat"]).json();
    assert_eq!(chat["count"], 1 + 5 + 2, "what a user writes never becomes control tokens");
    assert_eq!(chat["pieces"][0]["text"], "<user>");
    assert_eq!(chat["pieces"][0]["control"], true);
}

#[test]
fn bench_counts_bytes_and_operations_of_sequences_together() {
    let world = World::new("bench_batch");
    let model = fixture("mixtral").join("model.gguf");
    let args = ["-p", "0", "-n", "6", "-d", "17", "-b", "1,4", "-r", "1", "--no-machine"];
    let args = [&["bench", model.to_str().unwrap(), "--profile"][..], &args].concat();
    let shown = world.run(&[&args[..], &["--json"]].concat()).json();
    let tests = shown["tests"].as_array().unwrap();
    assert_eq!(tests.iter().map(|t| t["batch"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 4]);
    let number = |test: usize, key: &str| tests[test][key].as_f64().unwrap();
    let inspected = world.run(&["inspect", args[1], "--json"]).json();
    let alone = inspected["weights"]["bytes_per_token"].as_f64().unwrap();
    assert_eq!(number(0, "weight_bytes_per_token").round(), alone);
    assert!(number(1, "weight_bytes_per_token") < alone);
    assert!(number(1, "expert_bytes_per_token") < number(0, "expert_bytes_per_token"));
    assert_eq!(number(1, "cache_bytes_per_token"), number(0, "cache_bytes_per_token"));
    assert_eq!(tests[0]["operations_per_token"], tests[1]["operations_per_token"]);
    for test in tests {
        let profile = &test["profile"];
        assert_eq!(profile["steps"], 6);
        let layers = profile["layers"].as_array().unwrap();
        assert_eq!(layers.len() as u64, inspected["layers"].as_u64().unwrap() + 1);
        assert!(layers[0]["parts"]["router"]["seconds_per_step"].as_f64().unwrap() > 0.0);
        assert!(profile["parts"]["attention itself"]["operations_per_step"].as_f64() > Some(0.0));
    }
    let text = world.run(&args).succeeded().out;
    for words in ["experts' gate and up", "REGIONS", "ends", "batch 4, depth 17"] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
}

#[test]
fn probe_tells_the_machines_limits() {
    let world = World::new("probe");
    let shown = world.run(&["probe", "--json", "-t", "1"]).json();
    assert_eq!(shown["threads"], 1);
    for key in ["read_bytes_per_second", "int8_ops_per_second", "f32_ops_per_second"] {
        assert!(shown[key].as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn bench_tells_medians_and_spread() {
    let world = World::new("bench");
    let model = fixture("mixtral").join("model.gguf");
    let args = ["bench", "-m", model.to_str().unwrap(), "-p", "8,20", "-n", "4", "-r", "3", "-t1"];
    let bench = |more: &[&str]| {
        let all: Vec<&str> = args.iter().chain(&["--no-machine"]).chain(more).copied().collect();
        world.run(&all)
    };
    let shown = bench(&["--json"]).json();
    let tests = shown["tests"].as_array().unwrap();
    let kinds: Vec<_> = tests.iter().map(|t| t["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["prefill", "prefill", "decode"]);
    for test in tests {
        let number = |key: &str| test[key].as_f64().unwrap();
        assert!(number("tokens_per_second_min") <= number("tokens_per_second"));
        assert!(number("tokens_per_second") <= number("tokens_per_second_max"));
        assert_eq!(test["runs"].as_array().unwrap().len(), 3);
        assert!(number("expert_bytes_per_token") > 0.0);
    }
    assert!(shown["machine"]["isa"].is_string());
    assert!(bench(&[]).succeeded().out.contains("TOKENS/S"));
    bench(&["-b", "33"]).failed_saying(&["`33` sequences at once"]);
    world
        .run(&["bench", "-m", args[2], "-p", "0", "-n", "0"])
        .failed_saying(&["nothing to measure"]);
}

#[test]
fn bench_compares_answers_with_and_without_guesses() {
    let world = World::new("bench_speculate");
    // Prompts of single characters are long.
    let longer = |metadata: &mut Vec<(String, Value)>| {
        let context = metadata.iter_mut().find(|(key, _)| key == "llama.context_length").unwrap();
        context.1 = Value::U32(4096);
    };
    let model = with_changes(&world, "llama", longer);
    let args = ["bench", "--speculate", "-m", &model, "-n", "40", "-r", "2", "-t1"];
    let shown = world.run(&[&args[..], &["--json"]].concat()).json();
    let tests = shown["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 6);
    for test in tests {
        assert_eq!(test["same_answer_as_off"], true, "{test}");
        assert_eq!(test["runs"].as_array().unwrap().len(), 2);
        assert!(test["tokens_per_step"].as_f64().unwrap() >= 1.0);
        let guessed = test["guessed_tokens"].as_u64().unwrap();
        assert!(test["speculate"] != "off" || guessed == 0);
    }
    let text = world.run(&args).succeeded().out;
    for word in ["edit", "story", "off", "auto", "ngram", "TIMES OFF", "RIGHT"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
    let both = [&args[..], &["--batch", "2"]].concat();
    assert_eq!(world.run(&both).code, Some(2));
}
