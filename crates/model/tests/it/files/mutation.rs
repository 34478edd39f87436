//! Sound files with random damage: whatever comes of it, it is an answer and not a panic.

use moeba_model::files::fuzz;

use super::bad_safetensors::{entry, file};
use super::gguf_bytes::GgufBytes;

/// Damaged copies per reader. A fuzzer does better; this is what every test run can afford.
const COPIES: u64 = 20_000;

/// Numbers that sit on the edges where arithmetic goes wrong.
const EDGES: [u64; 10] =
    [0, 1, 7, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX];

/// The next number of a xorshift generator.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// One to three changes: a bit, a byte, an edge number anywhere, a cut, or a piece twice.
fn damage(sound: &[u8], state: &mut u64) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for _ in 0..=next(state) % 3 {
        let at = next(state) as usize % bytes.len();
        match next(state) % 5 {
            0 => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes[at] = next(state) as u8,
            2 => {
                let edge = EDGES[next(state) as usize % EDGES.len()].to_le_bytes();
                let len = if next(state).is_multiple_of(2) { 4 } else { 8 };
                let end = (at + len).min(bytes.len());
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            3 => bytes.truncate(at.max(1)),
            _ => {
                let end = (at + next(state) as usize % 32).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = next(state) as usize % bytes.len();
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

fn check(sound: &[u8], reader: fn(&[u8]) -> bool) {
    assert!(reader(sound), "the undamaged file is accepted");
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let refused = (0..COPIES).filter(|_| !reader(&damage(sound, &mut state))).count();
    assert!(refused > COPIES as usize / 4, "damage is noticed more often: {refused}");
}

#[test]
fn damaged_gguf() {
    check(&GgufBytes::sound().encode().0, fuzz::gguf);
}

#[test]
fn damaged_safetensors() {
    let (a, b) = (entry("a", "F32", "[2,3]", 8, 32), entry("b", "BF16", "[2,2]", 0, 8));
    check(&file(&format!("{{\"__metadata__\":{{\"k\":\"v\"}},{a},{b}}}"), 32), fuzz::safetensors);
}

#[test]
fn damaged_config() {
    let config = r#"{"model_type": "x", "n": 7, "l": [1, -2, 3.5], "o": {"e": 1e-5, "z": null},
        "t": "text", "b": [true, false], "s": ["a", "\u00e9"]}"#;
    check(config.as_bytes(), fuzz::config);
}
