//! The committed vocabularies, unpacked. The formats are described in `xtask/oracle/text.py`.

use std::fs;
use std::path::PathBuf;

use moeba_text::{GgufVocabulary, Tokenizer};

/// A file of `tests/data/text`.
pub(crate) fn data(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/text").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A JSON file of `tests/data/text`.
pub(crate) fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&data(name)).unwrap()
}

/// The texts every tokenizer is compared on.
pub(crate) fn corpus() -> Vec<String> {
    serde_json::from_slice(&data("corpus.json")).unwrap()
}

/// The hash used in `golden.json`: FNV-1a with 64 bits over little-endian ids (or bytes, each
/// written as an id).
pub(crate) fn fnv_ids(ids: &[u32]) -> String {
    let step = |value: u64, byte| (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    format!("{:016x}", bytes.fold(0xCBF2_9CE4_8422_2325, step))
}

/// Byte `b` as byte-level vocabularies spell it.
pub(crate) fn spell(byte: u8) -> String {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let c = if plain(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&b| !plain(b)).count() as u32;
        char::from_u32(0x100 + before).unwrap()
    };
    c.to_string()
}

/// Reads little-endian numbers and strings off the front of a file.
struct Reader(Vec<u8>, usize);

impl Reader {
    fn take(&mut self, bytes: usize) -> &[u8] {
        self.1 += bytes;
        &self.0[self.1 - bytes..self.1]
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> usize {
        u16::from_le_bytes(self.take(2).try_into().unwrap()).into()
    }

    fn u32(&mut self) -> usize {
        u32::from_le_bytes(self.take(4).try_into().unwrap()) as usize
    }

    fn short_bytes(&mut self) -> Vec<u8> {
        let length = self.u8().into();
        self.take(length).to_vec()
    }
}

/// An owned vocabulary as a GGUF file would hold it.
pub(crate) struct Owned {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    pub(crate) scores: Vec<f32>,
}

impl Owned {
    pub(crate) fn gguf<'a>(&'a self, model: &'a str, pre: Option<&'a str>) -> GgufVocabulary<'a> {
        GgufVocabulary {
            model,
            pre,
            tokens: self.tokens.iter().map(String::as_bytes).collect(),
            scores: self.scores.clone(),
            token_types: self.types.clone(),
            merges: self.merges.iter().map(String::as_bytes).collect(),
            bos: Some(1),
            eos: Some(2),
            unk: Some(0),
            ..GgufVocabulary::default()
        }
    }
}

/// SmolLM2: 49,152 tokens, byte level.
pub(crate) fn smollm2() -> Owned {
    let mut reader = Reader(data("smollm2.bin"), 0);
    let (tokens, merges) = (reader.u32(), reader.u32());
    let mut made: Vec<Option<(usize, usize)>> = Vec::new();
    let mut owned = Owned { tokens: vec![], types: vec![], merges: vec![], scores: vec![] };
    for _ in 0..tokens {
        let kind = reader.u8();
        if kind == 0 {
            made.push(Some((reader.u16(), reader.u16())));
            owned.tokens.push(String::new());
            owned.types.push(1);
        } else {
            made.push(None);
            owned.tokens.push(String::from_utf8(reader.short_bytes()).unwrap());
            owned.types.push(kind.into());
        }
    }
    // In order of merging, parts stand before what is made of them.
    for _ in 0..merges {
        let whole = reader.u16();
        let (left, right) = made[whole].unwrap();
        owned.merges.push(format!("{} {}", owned.tokens[left], owned.tokens[right]));
        owned.tokens[whole] = [owned.tokens[left].as_str(), &owned.tokens[right]].concat();
    }
    owned
}

/// SmolLM2 as its GGUF describes it.
pub(crate) fn smollm2_tokenizer() -> Tokenizer {
    Tokenizer::from_gguf(&smollm2().gguf("gpt2", Some("smollm"))).unwrap()
}

/// A SentencePiece vocabulary of 32,000 pieces.
pub(crate) fn sentence_piece() -> Owned {
    let mut reader = Reader(data("spm.bin"), 0);
    let mut owned = Owned { tokens: vec![], types: vec![], merges: vec![], scores: vec![] };
    for id in 0..reader.u32() {
        let kind = reader.u8();
        owned.tokens.push(String::from_utf8(reader.short_bytes()).unwrap());
        owned.types.push((kind & 0x7F).into());
        let stored = kind & 0x80 != 0;
        let usual = -(id as f32 - 259.0);
        owned.scores.push(if stored { f32::from_bits(reader.u32() as u32) } else { usual });
    }
    owned
}

/// The first ranks of a tekken vocabulary, as a `tekken.json`.
pub(crate) fn tekken_json() -> String {
    use base64::Engine;
    let mut reader = Reader(data("tekken.bin"), 0);
    let ranks = reader.u32();
    let vocab: Vec<_> = (0..ranks)
        .map(|rank| {
            let bytes = reader.short_bytes();
            let text = base64::engine::general_purpose::STANDARD.encode(bytes);
            serde_json::json!({ "rank": rank, "token_bytes": text, "token_str": null })
        })
        .collect();
    let pattern = concat!(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\",
        r"r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}|",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    );
    let config = serde_json::json!({
        "pattern": pattern, "num_vocab_tokens": 150000, "default_vocab_size": ranks + 1000,
        "default_num_special_tokens": 1000, "version": "v3",
    });
    serde_json::json!({ "config": config, "vocab": vocab }).to_string()
}
