//! The tokens themselves: id to bytes, bytes to id, and what kind of token each is.
//!
//! All token texts lie in one arena, so a vocabulary of 262,144 tokens is three allocations and
//! not 262,144. Bytes are the truth: a byte-level token may be half a character, and only the
//! [detokenizer](crate::Detokenizer) turns bytes into text.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use crate::error::{LoadError, field};

/// Most tokens a vocabulary may have; four times the largest published one.
pub(crate) const TOKENS_MAX: usize = 1 << 20;
/// Longest token in bytes; the longest published ones are runs of 512 spaces.
pub(crate) const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Most bytes of token text in a vocabulary.
pub(crate) const TEXT_BYTES_MAX: usize = 64 << 20;

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type` in GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// A piece of text.
    Normal = 1,
    /// Stands for text the vocabulary cannot express.
    Unknown = 2,
    /// Structure, never text: begin of sequence, end of turn.
    Control = 3,
    /// Text that is always one token, looked for before anything else.
    UserDefined = 4,
    /// A spare id.
    Unused = 5,
    /// One byte, used when a character has no token.
    Byte = 6,
}

impl TokenKind {
    /// The kind for a GGUF number; 0 (undefined) counts as normal, as it does elsewhere.
    pub(crate) fn from_ggml(number: i32) -> Option<TokenKind> {
        Some(match number {
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// May merging produce this token? Control, unknown and byte tokens never come from text.
    pub(crate) fn is_text(self) -> bool {
        matches!(self, TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused)
    }
}

/// Id ⇄ bytes for every token.
pub(crate) struct Vocabulary {
    text: Vec<u8>,
    /// `ends[id]` is one past the last byte of token `id` in `text`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    /// What tokens mean, where that differs from how merging spells them (`▁the` means ` the`):
    /// text and ends, as above.
    meaning: Option<(Vec<u8>, Vec<u32>)>,
    /// Ids of text tokens, found by their bytes.
    by_bytes: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Vocabulary {
    /// An empty vocabulary with room for `tokens` tokens.
    pub(crate) fn with_capacity(tokens: usize) -> Vocabulary {
        Vocabulary {
            text: Vec::with_capacity(tokens.saturating_mul(8)),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            meaning: None,
            by_bytes: HashTable::with_capacity(tokens),
            hasher: DefaultHashBuilder::default(),
        }
    }

    /// Appends the next token; its id is the number of tokens before it.
    ///
    /// # Errors
    /// [`LoadError::Field`] when a count or a length passes its limit.
    pub(crate) fn push(
        &mut self,
        file: &'static str,
        bytes: &[u8],
        kind: TokenKind,
    ) -> Result<u32, LoadError> {
        let id = self.ends.len();
        let limit = |what: &str, limit: usize, found: usize| {
            Err(field(
                file,
                format!("token {id}"),
                format!("at most {limit} {what}"),
                found.to_string(),
            ))
        };
        if id >= TOKENS_MAX {
            return limit("tokens", TOKENS_MAX, id + 1);
        }
        if bytes.len() > TOKEN_BYTES_MAX {
            return limit("bytes in a token", TOKEN_BYTES_MAX, bytes.len());
        }
        if self.text.len() + bytes.len() > TEXT_BYTES_MAX {
            return limit("bytes in all tokens", TEXT_BYTES_MAX, self.text.len() + bytes.len());
        }
        self.text.extend_from_slice(bytes);
        self.ends.push(self.text.len() as u32);
        self.kinds.push(kind);
        if kind.is_text() && !bytes.is_empty() {
            self.index(id as u32);
        }
        Ok(id as u32)
    }

    /// Enters `id` into the lookup. Two tokens with the same bytes: normal text wins over user
    /// defined text (which is found before merging anyway), then the later one wins.
    fn index(&mut self, id: u32) {
        let Vocabulary { text, ends, kinds, by_bytes, hasher, .. } = self;
        let bytes_of = |id: u32| slice(text, ends, id);
        let bytes = bytes_of(id);
        let hash = hasher.hash_one(bytes);
        if let Some(other) = by_bytes.find_mut(hash, |&other| bytes_of(other) == bytes) {
            let old = kinds[*other as usize];
            if old != TokenKind::Normal || kinds[id as usize] == TokenKind::Normal {
                *other = id;
            }
            return;
        }
        by_bytes.insert_unique(hash, id, |&other| hasher.hash_one(bytes_of(other)));
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Token `id` as merging spells it; nothing for an id outside the vocabulary.
    pub(crate) fn spelling(&self, id: u32) -> &[u8] {
        if (id as usize) < self.ends.len() { slice(&self.text, &self.ends, id) } else { &[] }
    }

    /// The bytes that token `id` stands for; nothing for an id outside the vocabulary.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        match &self.meaning {
            Some((text, ends)) if (id as usize) < ends.len() => slice(text, ends, id),
            Some(_) => &[],
            None => self.spelling(id),
        }
    }

    /// Fills in the meaning of every token from its spelling.
    pub(crate) fn set_meaning(&mut self, meaning: impl Fn(&[u8], TokenKind, &mut Vec<u8>)) {
        let (mut text, mut ends) =
            (Vec::with_capacity(self.text.len()), Vec::with_capacity(self.ends.len()));
        for (_, spelling, kind) in self.iter() {
            meaning(spelling, kind, &mut text);
            ends.push(text.len() as u32);
        }
        self.meaning = Some((text, ends));
    }

    /// Changes the kind of token `id`. Only for tokens that files mislabel as text.
    pub(crate) fn make_control(&mut self, id: u32) {
        let bytes = self.spelling(id).to_vec();
        if self.id(&bytes) == Some(id) {
            let hash = self.hasher.hash_one(bytes.as_slice());
            if let Ok(entry) = self.by_bytes.find_entry(hash, |&other| other == id) {
                entry.remove();
            }
        }
        self.kinds[id as usize] = TokenKind::Control;
    }

    /// The kind of token `id`; unused for an id outside the vocabulary.
    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// The text token with exactly these bytes. Control tokens are not found here, on purpose.
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        let hash = self.hasher.hash_one(bytes);
        self.by_bytes.find(hash, |&id| slice(&self.text, &self.ends, id) == bytes).copied()
    }

    /// Every id with its spelling and kind, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &[u8], TokenKind)> {
        (0..self.ends.len() as u32).map(|id| (id, self.spelling(id), self.kinds[id as usize]))
    }
}

/// Token `id` in the arena.
fn slice<'a>(text: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &text[start..ends[id] as usize]
}
