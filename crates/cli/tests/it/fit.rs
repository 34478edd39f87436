//! `moeba fit`: what is told before a model is there. Speeds are never compared with anything.

use std::fs;

use crate::tiny::fixture;
use crate::world::World;

#[test]
fn a_model_that_is_not_here_is_planned_from_the_catalogue() {
    let world = World::new("fit_catalogue");
    let fit = |args: &[&str]| {
        let all: Vec<&str> = ["fit", "--no-machine"].iter().chain(args).copied().collect();
        world.run(&all)
    };
    let shown = fit(&["qwen3-30b-a3b", "--json", "--ctx", "8192"]).json();
    assert_eq!((&shown["known_from"], &shown["type"]), (&"catalogue".into(), &"Q4_K_M".into()));
    assert_eq!(shown["parameters"]["total"], 30_532_122_624_u64);
    let memory = &shown["memory"];
    let bytes = |key: &str| memory[key].as_u64().unwrap();
    assert_eq!(bytes("kv_cache"), 8192 * 48 * 2 * 4 * 128 * 2);
    assert_eq!(bytes("total"), bytes("weights") + bytes("kv_cache") + bytes("workspace"));
    assert_eq!(memory["fits"], bytes("total") <= bytes("available"));
    assert!(shown["predicted"].is_null() && shown["disk"].is_null());
    let larger = fit(&["qwen3-30b-a3b", "--json", "--quant", "q8_0"]).json();
    assert_eq!(larger["type"], "Q8_0");
    assert!(larger["weights"]["bytes"].as_u64() > shown["weights"]["bytes"].as_u64());
    let text = fit(&["qwen3-30b-a3b"]).succeeded().out;
    for words in ["not here, as Q4_K_M", "128 experts a layer", "no speed is predicted"] {
        assert!(text.contains(words), "no `{words}` in:\n{text}");
    }
    fit(&["qwen3-30b-a3b", "--quant", "Q9"]).failed_saying(&["no type is called `Q9`", "Q4_K_M"]);
    fit(&["qwen3-30b-a3b", "--ctx", "40961"]).failed_saying(&["context of 40960"]);
    fit(&["qwen3-30"]).failed_saying(&["did you mean `qwen3-30b-a3b`"]);
    world.catalogue("{ hf = \"o/r\", quant = \"Q8_0\" }");
    fit(&["tiny"]).failed_saying(&["does not know its shape", "moeba pull tiny"]);
}

#[test]
fn files_and_configurations_are_planned_as_they_are_inspected() {
    let world = World::new("fit_files");
    let dir = fixture("mixtral");
    let (gguf, config) = (dir.join("model.gguf"), dir.join("config.json"));
    let fit = |args: &[&str]| {
        let common = ["fit", "--no-machine", "--json", "--ctx", "100"];
        world.run(&common.iter().chain(args).copied().collect::<Vec<_>>())
    };
    for path in [gguf.to_str().unwrap(), dir.to_str().unwrap()] {
        let inspected = world.run(&["inspect", path, "--json", "--ctx", "100"]).json();
        let fitted = fit(&[path]).json();
        assert_eq!(fitted["known_from"], "weights");
        for key in ["weights", "kv_cache", "workspace", "total"] {
            assert_eq!(fitted["memory"][key], inspected["memory"][key], "{path} {key}");
        }
        let per_token = &inspected["weights"]["bytes_per_token"];
        assert_eq!(&fitted["weights"]["bytes_per_token"], per_token);
    }
    let stray = world.home.join("my-model.json");
    fs::copy(&config, &stray).unwrap();
    let stray = stray.to_str().unwrap();
    let alone = fit(&[stray, "--quant", "F32"]).json();
    assert_eq!(alone["known_from"], "configuration");
    let there = fit(&[gguf.to_str().unwrap()]).json();
    for key in ["weights", "kv_cache", "workspace", "total"] {
        assert_eq!(alone["memory"][key], there["memory"][key], "{key}");
    }
    assert_eq!(fit(&[stray]).json()["type"], "Q4_K_M");
    fs::write(stray, "{}").unwrap();
    fit(&[stray]).failed_saying(&["my-model.json", "architectures"]);
}

#[test]
fn what_is_measured_becomes_ranges_and_leaves_no_file() {
    let world = World::new("fit_measured");
    fs::create_dir_all(world.home.join("models")).unwrap();
    let shown = world.run(&["fit", "olmoe-1b-7b-instruct", "--json", "-t1"]).json();
    let predicted = &shown["predicted"];
    for rate in [&predicted["prefill"][0], &predicted["decode"][0], &predicted["decode"][1]] {
        let [low, high] = [0, 1].map(|end| rate["tokens_per_second"][end].as_f64().unwrap());
        assert!(0.0 < low && low < high, "{predicted}");
    }
    let disk = &shown["disk"];
    assert!(disk["error"].is_string() || disk["read_bytes_per_second"].as_f64() > Some(0.0));
    assert_eq!(fs::read_dir(world.home.join("models")).unwrap().count(), 0);
}
