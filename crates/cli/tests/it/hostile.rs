//! Vocabularies that strangers wrote into a GGUF: rows G19 and G23 of the catalogue of bad
//! inputs. Each is met by the program itself, as a child with a second of processor time and a
//! bounded address space, which must end with exit code 1 and name file, key and finding.

use std::process::Command;

use moeba_model::files::{Array, Kind, Packed, Value};

use crate::tiny::with_changes;
use crate::world::{Finished, World};

type Metadata = Vec<(String, Value)>;

/// Seconds of processor time and KiB of address space of a child.
const LIMITS: &str = "ulimit -t 1; ulimit -v 1048576; ulimit -c 0; exec \"$0\" \"$@\"";

fn set(metadata: &mut Metadata, key: &str, value: Value) {
    let key = format!("tokenizer.ggml.{key}");
    metadata.retain(|pair| pair.0 != key);
    metadata.push((key, value));
}

fn bytes_array(count: usize) -> Value {
    let bytes = Packed::Owned(vec![1; count].into());
    Value::Array(Array::Packed { kind: Kind::U8, count, bytes })
}

/// Tokenizes with the fixture after `change`.
fn tokenize(world: &World, change: impl FnOnce(&mut Metadata)) -> Finished {
    let model = with_changes(world, "mixtral", change);
    let mut command = Command::new("sh");
    command.args(["-c", LIMITS, env!("CARGO_BIN_EXE_moeba")]);
    command.args(["tokenize", "-m", &model, "ab"]).env_clear().env("MOEBA_HOME", &world.home);
    command.output().unwrap().into()
}

#[track_caller]
fn refused(world: &World, words: &[&str], change: impl FnOnce(&mut Metadata)) {
    let finished = tokenize(world, change).failed_saying(&["tiny.gguf", "expected", "found"]);
    assert!(finished.out.is_empty(), "{}", finished.out);
    assert!(finished.err.len() < 1000, "{}", finished.err);
    finished.failed_saying(words);
}

/// How many tokens the untouched vocabulary has.
fn num_tokens(metadata: &Metadata) -> usize {
    let tokens = metadata.iter().find(|(key, _)| key == "tokenizer.ggml.tokens");
    let Some((_, Value::Array(tokens))) = tokens else { panic!("the fixture has tokens") };
    tokens.len()
}

/// Replaces the vocabulary by a small one of the `llama` model, whose token 3 is typed as a byte.
fn sentence_piece(metadata: &mut Metadata, byte_token: &str) {
    let tokens = ["<unk>", "<s>", "</s>", byte_token, "▁", "a", "b"];
    set(metadata, "model", Value::Text("llama".to_owned()));
    set(metadata, "tokens", Value::Array(Array::of_strings(tokens)));
    set(metadata, "token_type", Value::Array(Array::of_i32(&[2, 3, 3, 6, 1, 1, 1])));
    set(metadata, "scores", Value::Array(Array::of_f32(&[0.0; 7])));
    set(metadata, "eos_token_id", Value::U32(2));
}

#[test]
fn the_untouched_vocabularies_load() {
    let world = World::new("hostile_untouched");
    tokenize(&world, |_| ()).succeeded();
    tokenize(&world, |metadata| sentence_piece(metadata, "<0x0A>")).succeeded();
}

#[test]
fn g19_arrays_shorter_or_longer_than_the_vocabulary() {
    let world = World::new("hostile_counts");
    for change in [-1, 1] {
        let other = |metadata: &Metadata| num_tokens(metadata).checked_add_signed(change).unwrap();
        refused(&world, &["tokenizer.ggml.scores", "one entry per token"], |metadata| {
            let scores = vec![0.0; other(metadata)];
            set(metadata, "scores", Value::Array(Array::of_f32(&scores)));
        });
        refused(&world, &["tokenizer.ggml.token_type", "one entry per token"], |metadata| {
            let types = vec![1; other(metadata)];
            set(metadata, "token_type", Value::Array(Array::of_i32(&types)));
        });
    }
    let words = ["tokenizer.ggml.scores", "one entry per token (7), or none", "found 3"];
    refused(&world, &words, |metadata| {
        sentence_piece(metadata, "<0x0A>");
        set(metadata, "scores", Value::Array(Array::of_f32(&[0.0; 3])));
    });
}

#[test]
fn g19_arrays_of_other_types() {
    let world = World::new("hostile_types");
    for key in ["scores", "token_type", "tokens", "merges"] {
        refused(&world, &[&format!("tokenizer.ggml.{key}"), "an array of", "u8"], |metadata| {
            let array = bytes_array(num_tokens(metadata));
            set(metadata, key, array);
        });
        refused(&world, &[&format!("tokenizer.ggml.{key}"), "an array of"], |metadata| {
            set(metadata, key, Value::U32(7));
        });
    }
    refused(&world, &["tokenizer.ggml.scores", "an array of"], |metadata| {
        let integers = vec![1; num_tokens(metadata)];
        set(metadata, "scores", Value::Array(Array::of_i32(&integers)));
    });
    refused(&world, &["tokenizer.ggml.token_type[5]", "found 77"], |metadata| {
        let mut types = vec![1; num_tokens(metadata)];
        types[5] = 77;
        set(metadata, "token_type", Value::Array(Array::of_i32(&types)));
    });
}

#[test]
fn g23_byte_tokens_that_are_no_bytes() {
    let world = World::new("hostile_bytes");
    for token in ["<0x-1>", "<0xGG>", "<0x+1>", "<0x>", "<0x100>", "<0xé>", "", "<0x0A"] {
        let words = ["tokenizer.ggml.tokens[3]", "a byte token like"];
        refused(&world, &words, |metadata| sentence_piece(metadata, token));
    }
    // Byte-level vocabularies have no byte tokens: what is typed as one is never parsed.
    let finished = tokenize(&world, |metadata| {
        let size = num_tokens(metadata);
        let mut types = vec![1; size];
        types[size - 1] = 6;
        set(metadata, "token_type", Value::Array(Array::of_i32(&types)));
    });
    finished.succeeded();
}

#[test]
fn g23_special_ids_outside_the_vocabulary() {
    let world = World::new("hostile_ids");
    for key in ["bos", "eos", "unknown", "padding", "eot", "eom"] {
        let key = format!("{key}_token_id");
        refused(&world, &[&key, "integer -1"], |metadata| set(metadata, &key, Value::I32(-1)));
        for beyond in [None, Some(u32::MAX)] {
            refused(&world, &[&key, "an id below"], |metadata| {
                let id = beyond.unwrap_or(num_tokens(metadata) as u32);
                set(metadata, &key, Value::U32(id));
            });
        }
        refused(&world, &[&key], |metadata| set(metadata, &key, Value::F32(1.0)));
    }
}

#[test]
fn g23_tokens_of_a_mebibyte() {
    let world = World::new("hostile_long");
    let words = ["tokenizer.ggml.tokens[3]", "bytes in a token", "1048576"];
    let long = "x".repeat(1 << 20);
    refused(&world, &words, |metadata| sentence_piece(metadata, &long));
    // As text, control token, text of the user's, and byte.
    for kind in [1, 3, 4, 6] {
        refused(&world, &words, |metadata| {
            let mut tokens = vec!["a".to_owned(), "b".to_owned(), "c".to_owned(), long.clone()];
            let types = [1, 1, 1, kind];
            set(metadata, "eos_token_id", Value::U32(0));
            set(metadata, "token_type", Value::Array(Array::of_i32(&types)));
            tokens[3].truncate(1 << 20);
            set(metadata, "tokens", Value::Array(Array::of_strings(&tokens)));
        });
    }
}
