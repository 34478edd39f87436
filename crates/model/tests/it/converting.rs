//! Conversions: the result is the model, whatever the container, and survives interruptions.

use std::ops::ControlFlow;
use std::path::Path;

use moeba_kernels::dtype::DType;
use moeba_kernels::pool::{Pinning, Pool};
use moeba_model::LoadOptions;
use moeba_model::convert::{Conversion, Ending, Importance, Recipe, Target};
use moeba_model::error::LoadError;
use moeba_model::families::FAMILIES;
use moeba_model::files::{ModelFiles, StoredType, Value, open};
use moeba_model::inspect::inspect;
use moeba_model::spec::ModelSpec;

use crate::families::fixture;
use crate::files::scratch::Scratch;
use crate::oracle::{Runner, check, containers};
use crate::quantised::{self, bytes_of, wide_mixtral, write_gguf};

/// Converts; `stop_at` breaks off after so many bytes.
fn convert(
    input: &Path,
    output: &Path,
    target: &str,
    (threads, stop_at): (usize, u64),
) -> Result<Ending, LoadError> {
    let target = Target::from_name(target).unwrap();
    let choose = |_: &str| None;
    let words = [("tokenizer.ggml.model".to_owned(), Value::Text("no_vocab".to_owned()))];
    // A GGUF file has words of its own.
    let words = if input.is_dir() { &words[..] } else { &[] };
    let recipe = Recipe { target, is_pure: false, choose: &choose, importance: None, words };
    let conversion = Conversion::plan(&open(input)?, &recipe)?;
    let writer = conversion.start(output)?;
    conversion.write(writer, &Pool::new(threads, Pinning::None), &mut |done| {
        if done > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

fn describe(path: &Path) -> Result<ModelSpec, LoadError> {
    inspect(path, &LoadOptions::default()).map(|inspection| inspection.spec)
}

/// Numbers of a tensor, whatever its format.
fn numbers(files: &ModelFiles, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = files.tensors.get(name).unwrap();
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.dtype.decode_row(&tensor.bytes, &mut values);
    (tensor.shape, values)
}

/// What differs between a converted file and the one that llama.cpp's conventions make of the same
/// weights. Only the latter holds layers that predict further tokens, and may join gate and up.
fn differences(converted: &ModelFiles, fixture: &ModelFiles) -> Vec<String> {
    let mut differences = Vec::new();
    let prefix = fixture.metadata.str("general.architecture").unwrap();
    let count = |name: &str| fixture.metadata.u32(&format!("{prefix}.{name}")).unwrap_or(0);
    let layers = count("block_count") - count("nextn_predict_layers");
    let same = |wanted: &Value, found: Option<&Value>| {
        let numbers = wanted.number().zip(found.and_then(Value::number));
        match numbers {
            Some((a, b)) => (a - b).abs() <= 1e-6 * a.abs(),
            None => found.is_some_and(|found| found.describe() == wanted.describe()),
        }
    };
    for (key, value) in fixture.metadata.entries() {
        let name = key.strip_prefix(&format!("{prefix}.")).unwrap_or(key);
        let is_other = match name {
            "block_count" => converted.metadata.u32(key).unwrap() != layers,
            "nextn_predict_layers" | "general.name" => false,
            // What no key says, and what one group means.
            "rope.scaling.type" if value.describe() == "string \"none\"" => false,
            "rope.scaling.factor" | "expert_group_used_count" if value.number() == Some(1.0) => {
                false
            }
            "rope.scaling.yarn_log_multiplier" if value.number() == Some(0.0) => false,
            _ => !same(value, converted.metadata.value(key)),
        };
        if is_other {
            let found = converted.metadata.value(key).map(Value::describe);
            differences.push(format!("{key}: {found:?}, not {}", value.describe()));
        }
    }
    let held = |name: &&str| {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        layer.is_none_or(|layer: u32| layer < layers)
    };
    let wanted: Vec<&str> = fixture.tensors.names().filter(held).collect();
    for &name in &wanted {
        let (shape, values) = numbers(fixture, name);
        let found = if let Some(layer) = name.strip_suffix("ffn_gate_up_exps.weight") {
            let halves = ["gate", "up"].map(|half| format!("{layer}ffn_{half}_exps.weight"));
            let [gate, up] = halves.map(|name| numbers(converted, &name).1);
            let one = shape[1] / 2 * shape[2];
            let pairs = gate.chunks(one).zip(up.chunks(one));
            pairs.flat_map(|(gate, up)| [gate, up].concat()).collect()
        } else if !converted.tensors.contains(name) {
            differences.push(format!("{name} is missing"));
            continue;
        } else {
            let (found, values) = numbers(converted, name);
            if found != shape {
                differences.push(format!("{name} is {found:?}, not {shape:?}"));
            }
            values
        };
        if found != values {
            differences.push(format!("{name} holds other numbers"));
        }
    }
    let joined = wanted.iter().filter(|name| name.contains("ffn_gate_up_exps")).count();
    if converted.tensors.names().count() != wanted.len() + joined {
        let extra = converted.tensors.names().filter(|name| !wanted.contains(name));
        differences.push(format!("tensors beside: {:?}", extra.collect::<Vec<_>>()));
    }
    differences
}

#[test]
fn directories_become_the_files_that_others_make_of_them() {
    let scratch = Scratch::new();
    let mut failures = Vec::new();
    for family in FAMILIES.iter().map(|family| family.name) {
        let fixture = fixture(family);
        let model = open(&fixture.join("model.gguf")).unwrap();
        let spec = |path: &Path| describe(path).map_err(|error| error.to_string());
        for directory in containers(&fixture).into_iter().filter(|path| path.is_dir()) {
            let output = scratch.path().join(format!("{family}.gguf"));
            if let Err(error) = convert(&directory, &output, "F32", (2, u64::MAX)) {
                failures.push(format!("{}: {error}", directory.display()));
                continue;
            }
            let found = differences(&open(&output).unwrap(), &model);
            failures.extend(found.into_iter().map(|found| format!("{family}: {found}")));
            if spec(&output) != spec(&fixture.join("model.gguf")) {
                failures.push(format!("{family}: another spec"));
            }
            if let Err(error) = check(&output, &fixture.join("reference.safetensors")) {
                failures.push(format!("{family}: {error}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What is stored quantised is decoded; MXFP4 to MXFP4 loses nothing.
#[test]
fn quantised_directories_become_files_of_the_same_numbers() {
    let scratch = Scratch::new();
    let output = scratch.path().join("model.gguf");
    for name in quantised::FIXTURES {
        let directory = quantised::quantised(name);
        convert(&directory, &output, "F32", (2, u64::MAX)).unwrap();
        let error = check(&output, &directory.join("reference.safetensors"));
        error.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let input = quantised::quantised("mxfp4-compressed");
    convert(&input, &output, "F32", (2, u64::MAX)).unwrap();
    let packed = scratch.path().join("packed.gguf");
    convert(&input, &packed, "MXFP4", (2, u64::MAX)).unwrap();
    let [whole, packed] = [&output, &packed].map(|path| open(path).unwrap());
    for name in packed.tensors.names().filter(|name| name.contains("_exps")) {
        assert_eq!(packed.tensors.get(name).unwrap().dtype, DType::Mxfp4, "{name}");
        assert!(numbers(&packed, name) == numbers(&whole, name), "{name}");
    }
}

#[test]
fn interrupted_conversions_end_in_the_same_bytes() {
    let scratch = Scratch::new();
    let input = fixture("mixtral").join("model.gguf");
    let whole = scratch.path().join("whole.gguf");
    assert_eq!(convert(&input, &whole, "Q8_0", (1, u64::MAX)).unwrap(), Ending::Written);
    let whole = std::fs::read(whole).unwrap();
    let output = scratch.path().join("resumed.gguf");
    let partial = scratch.path().join("resumed.gguf.partial");
    for stop_at in [0, 3_000, 20_000, whole.len() as u64 / 2] {
        let ending = convert(&input, &output, "Q8_0", (3, stop_at)).unwrap();
        assert_eq!(ending, Ending::Stopped);
        assert!(partial.exists() && !output.exists());
        // What follows the last whole tensor may be anything.
        let mut bytes = std::fs::read(&partial).unwrap();
        bytes.extend(b"torn");
        std::fs::write(&partial, &bytes).unwrap();
    }
    // A finished tensor that has changed on disk is made anew, and all that follow.
    let mut bytes = std::fs::read(&partial).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&partial, &bytes).unwrap();
    assert_eq!(convert(&input, &output, "Q8_0", (2, u64::MAX)).unwrap(), Ending::Written);
    assert!(std::fs::read(&output).unwrap() == whole);
    let journal = scratch.path().join("resumed.gguf.partial.journal");
    assert!(!partial.exists() && !journal.exists());
}

#[test]
fn another_type_does_not_go_on_with_the_first() {
    let scratch = Scratch::new();
    let input = fixture("llama").join("model.gguf");
    let output = scratch.path().join("model.gguf");
    assert_eq!(convert(&input, &output, "F16", (1, 9_000)).unwrap(), Ending::Stopped);
    assert_eq!(convert(&input, &output, "BF16", (1, u64::MAX)).unwrap(), Ending::Written);
    let fresh = scratch.path().join("fresh.gguf");
    convert(&input, &fresh, "BF16", (1, u64::MAX)).unwrap();
    assert!(std::fs::read(output).unwrap() == std::fs::read(fresh).unwrap());
}

/// Weights far below the smallest scales of NVFP4, and far above the largest, lose no more than
/// others: factors lie beside them, one for each expert.
#[test]
fn nvfp4_is_written_with_factors_that_are_read() {
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name);
    let (metadata, tensors) = wide_mixtral();
    // What the experts' first matrices are multiplied with, their last ones are divided by.
    for (name, unit) in [("plain", 1.0f32), ("units", 1e-5)] {
        let written = tensors.iter().map(|(name, shape, values)| {
            let each = values.len() / shape[0];
            let unit = |at: usize| match (at / each % 2, &name[5..]) {
                (0, ".ffn_up_exps.weight") => unit,
                (0, ".ffn_down_exps.weight") => 1.0 / unit,
                _ => 1.0,
            };
            let values: Vec<f32> = (0..values.len()).map(|at| values[at] * unit(at)).collect();
            (name.clone(), DType::F32, shape.clone(), bytes_of(&values))
        });
        write_gguf(&path(name), &metadata, &written.collect::<Vec<_>>());
        convert(&path(name), &path(&format!("{name}.gguf")), "NVFP4", (1, u64::MAX)).unwrap();
    }
    let files = open(&path("units.gguf")).unwrap();
    let weight = files.tensors.header("blk.0.ffn_up_exps.weight").unwrap();
    let factors = files.tensors.header("blk.0.ffn_up_exps.scale").unwrap();
    assert_eq!(weight.stored, StoredType::Known(DType::Nvfp4));
    assert_eq!(factors.shape, weight.shape[..1]);
    // The largest weight of an expert becomes the largest number: 448 times 6.
    let (_, values) = numbers(&open(&path("units")).unwrap(), "blk.0.ffn_up_exps.weight");
    let (_, factors) = numbers(&files, "blk.0.ffn_up_exps.scale");
    for (values, factor) in values.chunks(values.len() / factors.len()).zip(factors) {
        let largest = values.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        assert_eq!(factor, largest / 2688.0);
    }

    let tokens: Vec<u32> = (3..40).collect();
    let score = |name: &str| Runner::load(&path(name), 64).unwrap().score(&tokens, 0).unwrap();
    let [precise, coarse, units] = ["plain", "plain.gguf", "units.gguf"].map(score);
    let difference = |a: &[f32], b: &[f32]| {
        let miss: f32 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
        miss / a.iter().map(|a| a * a).sum::<f32>()
    };
    let (loss, more) = (difference(&precise, &coarse), difference(&coarse, &units));
    assert!(loss < 0.1 && more < 1e-4, "{loss} {more}");

    // Stopped within every matrix, and between each tensor and its factors.
    for stop_at in (0..).step_by(997) {
        if convert(&path("units"), &path("x"), "NVFP4", (3, stop_at)).unwrap() == Ending::Written {
            assert!(stop_at > 20_000, "it was stopped often");
            break;
        }
    }
    assert!(std::fs::read(path("x")).unwrap() == std::fs::read(path("units.gguf")).unwrap());
}

#[test]
fn routers_and_norms_stay_precise() {
    let files = open(&fixture("mixtral").join("model.gguf")).unwrap();
    let choose = |name: &str| name.ends_with("attn_q.weight").then_some(DType::BF16);
    let target = Target::from_name("Q8_0").unwrap();
    let recipe = Recipe { target, is_pure: false, choose: &choose, importance: None, words: &[] };
    let conversion = Conversion::plan(&files, &recipe).unwrap();
    for tensor in conversion.tensors() {
        let name = &tensor.name;
        if name.contains("norm") || name.contains("ffn_gate_inp") {
            assert_eq!(tensor.dtype, DType::F32, "{name}");
        } else if name.ends_with("attn_q.weight") {
            assert_eq!(tensor.dtype, DType::BF16, "{name}");
        }
    }
    let bytes: u64 = conversion.shares().iter().map(|share| share.bytes).sum();
    assert_eq!(bytes, conversion.num_bytes());
}

#[test]
fn importances_survive_their_file() {
    let scratch = Scratch::new();
    let path = scratch.path().join("importance.gguf");
    let mut importance = Importance::new(Some("a text".to_owned()), 2, 64);
    importance.add("blk.0.ffn_up_exps.weight", 3, 1, &[1.0, 2.0]);
    importance.add("blk.0.ffn_up_exps.weight", 3, 1, &[3.0, 0.0]);
    importance.add("blk.0.attn_q.weight", 1, 0, &[0.5; 32]);
    importance.write(&path).unwrap();
    let back = Importance::read(&path).unwrap();
    assert_eq!(back, importance);
    assert_eq!((back.len(), back.unseen()), (2, (2, 4)));
    let model = fixture("llama").join("model.gguf");
    assert!(Importance::read(&model).unwrap_err().to_string().contains("general.type"));
}
