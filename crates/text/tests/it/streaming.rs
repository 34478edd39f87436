//! Streams: whole characters only (T8), and stop strings that span pieces.

use std::sync::Arc;

use moeba_text::{Detokenizer, Specials, StopError, StopStrings, Tokenizer};

use crate::chat::byte_tokenizer;
use crate::fixtures::{corpus, data, sentence_piece, smollm2_tokenizer};

#[test]
fn streamed_text_is_what_decoding_at_once_gives() {
    let spm = Tokenizer::from_gguf(&sentence_piece().gguf("llama", None)).unwrap();
    let gemma = Tokenizer::from_tokenizer_json(&data("tokenizers/gemma.json"), None).unwrap();
    for tokenizer in [smollm2_tokenizer(), spm, gemma] {
        let tokenizer = Arc::new(tokenizer);
        for text in corpus() {
            let ids = tokenizer.encode(&text, Specials::Parse).unwrap();
            let mut detokenizer = Detokenizer::new(tokenizer.clone());
            let mut whole = String::new();
            for &id in &ids {
                let mut piece = String::new();
                detokenizer.push(id, &mut piece);
                whole.push_str(&piece);
            }
            detokenizer.finish(&mut whole);
            assert_eq!(whole, tokenizer.decode(&ids, false));
        }
    }
}

#[test]
fn broken_characters_become_replacement_characters_like_everywhere() {
    let tokenizer = Arc::new(byte_tokenizer(&["<|a|>", "<|im_end|>"]));
    let mut state = 7u32;
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..12)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                // Lead bytes, continuation bytes and ASCII, so that all kinds of breakage occur.
                [0x41, 0x80, 0xBF, 0xC3, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0x98, 0x80, 0xED]
                    [(state >> 20) as usize % 12]
            })
            .collect();
        let mut detokenizer = Detokenizer::new(tokenizer.clone());
        let mut out = String::new();
        for &byte in &bytes {
            detokenizer.push(byte.into(), &mut out);
        }
        detokenizer.finish(&mut out);
        assert_eq!(out, String::from_utf8_lossy(&bytes), "{bytes:x?}");
    }
    let mut detokenizer = Detokenizer::new(tokenizer.clone());
    let mut out = String::new();
    detokenizer.push(u32::MAX, &mut out);
    detokenizer.push(257, &mut out);
    assert_eq!(out, "", "ids outside the vocabulary and control tokens have no text");
    let mut detokenizer = Detokenizer::new(tokenizer.clone()).show_control();
    detokenizer.push(257, &mut out);
    assert_eq!(out, "<|im_end|>");
}

/// Feeds `pieces` and returns what came out and what stopped it.
fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
    let mut stream = StopStrings::new(stops.iter().map(ToString::to_string).collect()).unwrap();
    let mut out = String::new();
    let mut stopped = None;
    for piece in pieces {
        let found = stream.push(piece, &mut out).map(str::to_owned);
        stopped = stopped.or(found);
    }
    stream.finish(&mut out);
    (out, stopped)
}

#[test]
fn stop_strings_are_found_across_pieces_and_never_shown() {
    let check = |stops: &[&str], pieces: &[&str], out: &str, stop: Option<&str>| {
        assert_eq!(run(stops, pieces), (out.to_owned(), stop.map(str::to_owned)), "{pieces:?}");
    };
    check(&[], &["a", "b"], "ab", None);
    check(&["###"], &["one #", "# two", " ##", "# three"], "one ## two ", Some("###"));
    check(&["\n\nUser:"], &["hi\n", "\n", "Us", "er", ":", "x"], "hi", Some("\n\nUser:"));
    check(&["\n\nUser:"], &["hi\n", "\n", "Us", "ed"], "hi\n\nUsed", None);
    check(&["ab", "b"], &["xab"], "x", Some("ab"));
    check(&["aab"], &["aaa", "ab"], "aa", Some("aab"));
    check(&["</s>", "<end>"], &["a<", "e", "nd", ">", "b"], "a", Some("<end>"));
    check(&["né"], &["ann", "n\u{e9}e"], "ann", Some("né"));
    check(&["é"], &["日本", "é"], "日本", Some("é"));
    let new = |stops: Vec<String>| StopStrings::new(stops).err();
    assert_eq!(new(vec![String::new()]), Some(StopError::Empty { index: 0 }));
    assert_eq!(new(vec!["x".into(); 65]), Some(StopError::TooMany { found: 65 }));
    let long = "x".repeat(4097);
    assert_eq!(new(vec![long]), Some(StopError::TooLong { index: 0, bytes: 4097 }));
}

#[test]
fn text_is_handed_out_as_soon_as_it_is_certain() {
    let mut stream = StopStrings::new(vec!["STOP".into()]).unwrap();
    let mut out = String::new();
    assert_eq!(stream.push("go S", &mut out), None);
    assert_eq!(out, "go ");
    assert_eq!(stream.push("T", &mut out), None);
    assert_eq!(out, "go ");
    assert_eq!(stream.push("ART", &mut out), None);
    assert_eq!(out, "go START");
}
