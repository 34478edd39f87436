//! A tiny model that reads and writes: a fixture's random weights, and a vocabulary of single
//! characters put in front of them.

use std::fs;
use std::path::{Path, PathBuf};

use moeba_model::files::{Array, GgufHeader, GgufTensor, GgufWriter, StoredType, Value, open};
use serde_json::json;

use crate::world::World;

/// Prompts become `<user>…<end><bot>`.
const TEMPLATE: &str = "{%- for m in messages %}{{ '<' + m.role + '>' + m.content + '<end>' }}\
                        {%- endfor %}{%- if add_generation_prompt %}{{ '<bot>' }}{% endif %}";

/// A folder of a committed fixture.
pub(crate) fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models").join(family)
}

/// Writes `tiny.gguf` into the world's home: the dense fixture, able to read ASCII.
pub(crate) fn with_words(world: &World) -> String {
    with_changes(world, "llama", |_| ())
}

/// As [`with_words`], of another fixture, with changed metadata.
pub(crate) fn with_changes(
    world: &World,
    family: &str,
    change: impl FnOnce(&mut Vec<(String, Value)>),
) -> String {
    let path = world.home.join("tiny.gguf");
    let files = open(&fixture(family).join("model.gguf")).unwrap();
    let vocab_size = files.metadata.u32("llama.vocab_size").unwrap() as usize;
    let (tokens, types) = vocabulary(vocab_size);
    let mut metadata: Vec<(String, Value)> = files
        .metadata
        .entries()
        .iter()
        .filter(|(key, _)| !key.starts_with("tokenizer."))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let end = tokens.iter().position(|token| token == "<end>").unwrap() as u32;
    let text = |text: &str| Value::Text(text.into());
    for (key, value) in [
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", Value::Array(Array::of_strings(&tokens))),
        ("tokenizer.ggml.token_type", Value::Array(Array::of_i32(&types))),
        ("tokenizer.ggml.merges", Value::Array(Array::of_strings::<&str>([]))),
        ("tokenizer.ggml.eos_token_id", Value::U32(end)),
        ("tokenizer.chat_template", text(TEMPLATE)),
    ] {
        metadata.push((key.to_owned(), value));
    }
    change(&mut metadata);
    let tensors = files
        .tensors
        .headers()
        .iter()
        .map(|tensor| {
            let StoredType::Known(dtype) = tensor.stored else { panic!("{}", tensor.name) };
            GgufTensor { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() }
        })
        .collect();
    let mut writer = GgufWriter::create(&path, &GgufHeader { metadata, tensors }).unwrap();
    for name in files.tensors.names() {
        writer.write_tensor(name, &files.tensors.get(name).unwrap().bytes).unwrap();
    }
    writer.finish().unwrap();
    path.to_str().unwrap().to_owned()
}

/// Makes a model directory in the world's home that reads and writes as [`with_words`] does.
pub(crate) fn directory_with_words(world: &World) -> String {
    let dir = world.home.join("tiny");
    fs::create_dir(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("llama").join(name), dir.join(name)).unwrap();
    }
    let (tokens, types) = vocabulary(128);
    let control = |(id, content): (usize, &String)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "lstrip": false, "rstrip": false, "single_word": false,
        })
    };
    let is_control = |(id, _): &(usize, &String)| types[*id] == 3;
    let added: Vec<_> = tokens.iter().enumerate().filter(is_control).map(control).collect();
    let normal = tokens.iter().enumerate().filter(|pair| !is_control(pair));
    let vocab: serde_json::Map<_, _> = normal.map(|(id, t)| (t.clone(), id.into())).collect();
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
    let write = |name: &str, value: serde_json::Value| {
        fs::write(dir.join(name), value.to_string()).unwrap();
    };
    write(
        "tokenizer.json",
        json!({
            "version": "1.0", "added_tokens": added, "pre_tokenizer": bytes, "decoder": bytes,
            "model": { "type": "BPE", "vocab": vocab, "merges": [] },
        }),
    );
    write("tokenizer_config.json", json!({ "eos_token": "<end>", "chat_template": TEMPLATE }));
    write("generation_config.json", json!({ "do_sample": false, "eos_token_id": [100] }));
    dir.to_str().unwrap().to_owned()
}

/// Printable ASCII, space and line feed in byte-level spelling, control tokens, fillers.
fn vocabulary(size: usize) -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
    tokens.extend(["Ġ", "Ċ"].map(str::to_owned));
    let mut types = vec![1; tokens.len()];
    for control in ["<user>", "<system>", "<assistant>", "<bot>", "<end>"] {
        tokens.push(control.to_owned());
        types.push(3);
    }
    while tokens.len() < size {
        tokens.push(format!("~{}~", tokens.len()));
        types.push(1);
    }
    (tokens, types)
}
