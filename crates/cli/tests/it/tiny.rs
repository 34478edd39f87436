//! A tiny model that reads and writes: a fixture's random weights, and a vocabulary of single
//! characters put in front of them.

use std::path::{Path, PathBuf};

use moeba_model::files::{Array, GgufHeader, GgufTensor, GgufWriter, StoredType, Value, open};

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
    let path = world.home.join("tiny.gguf");
    let files = open(&fixture("llama").join("model.gguf")).unwrap();
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
