//! Tokens to text as they come, whole characters only.
//!
//! A token may end in the middle of a character. The bytes of such a character are held back until
//! it is complete, so every piece handed out is valid UTF-8 by itself, and all pieces together are
//! exactly what decoding everything at once gives: bytes that never become a character are one
//! U+FFFD per broken sequence, as everywhere in Rust and on the web.

use std::sync::Arc;

use crate::Tokenizer;

/// Streaming decoder for one answer.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The bytes of a character that is not complete: at most 3 between calls.
    pending: Vec<u8>,
    /// Nothing was seen yet, so one leading space may have to go.
    strip_space: bool,
    show_control: bool,
}

impl Detokenizer {
    /// Decodes a text from its start: vocabularies that put a space in front of every text lose
    /// it again. Control tokens are left out.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        let strip_space = tokenizer.strips_leading_space();
        Detokenizer { tokenizer, pending: Vec::new(), strip_space, show_control: false }
    }

    /// Decodes what continues an earlier text, so a leading space stays.
    pub fn continuing(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer { strip_space: false, ..Detokenizer::new(tokenizer) }
    }

    /// Shows control tokens as their names instead of leaving them out.
    #[must_use]
    pub fn show_control(self) -> Detokenizer {
        Detokenizer { show_control: true, ..self }
    }

    /// Takes the next token and appends the characters it completes to `out`.
    pub fn push(&mut self, id: u32, out: &mut String) {
        if !self.show_control && self.tokenizer.is_control(id) {
            return;
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.strip_space && !bytes.is_empty() {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
            self.strip_space = false;
        }
        self.pending.extend_from_slice(bytes);
        self.drain(out);
    }

    /// Ends the text: a character that was never completed becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.pending));
        self.pending.clear();
    }

    /// Moves all complete characters from `pending` to `out`.
    fn drain(&mut self, out: &mut String) {
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    done = self.pending.len();
                    break;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(good));
                    done += good.len();
                    let Some(broken) = error.error_len() else { break };
                    debug_assert!(broken <= bad.len());
                    out.push(char::REPLACEMENT_CHARACTER);
                    done += broken;
                }
            }
        }
        self.pending.drain(..done);
    }
}
