//! Tokens that are looked for in the text itself, before any cutting or merging: control tokens
//! and the words a model's makers added later.
//!
//! Two automata exist on purpose. [`Specials::Parse`] sees control tokens and is only for text the
//! program wrote (a rendered template); [`Specials::Plain`] does not, so text from a user can spell
//! `<|im_end|>` all day and gets letters.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

/// Are control tokens recognised in a text?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Specials {
    /// Yes: the text comes from a template or from someone trusted like one.
    Parse,
    /// No: every byte is text. Right for user input.
    Plain,
}

/// A token that is found by its text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "these are the fields of tokenizer.json")]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    /// A control token: invisible to [`Specials::Plain`].
    pub(crate) special: bool,
    /// Swallows white space on its left.
    pub(crate) lstrip: bool,
    /// Swallows white space on its right.
    pub(crate) rstrip: bool,
    /// Only counts between characters that are not part of a word.
    pub(crate) single_word: bool,
}

/// Most bytes of text all added tokens may have together.
pub(crate) const ADDED_BYTES_MAX: usize = 4 << 20;

/// The two automata over one list of tokens.
#[derive(Default)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    /// Over all of `tokens`.
    parse: Option<AhoCorasick>,
    /// Over the tokens that are not special, and their indices in `tokens`.
    plain: Option<(AhoCorasick, Vec<usize>)>,
}

/// A stretch of text: a token that was found, or text to cut and merge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stretch {
    Token(u32),
    Text(Range<usize>),
}

impl AddedTokens {
    /// Builds the automata. Tokens with empty content must have been refused before.
    ///
    /// # Errors
    /// A reason, when the tokens are too many or too long.
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Result<AddedTokens, String> {
        let bytes: usize = tokens.iter().map(|token| token.content.len()).sum();
        if bytes > ADDED_BYTES_MAX {
            return Err(format!("{bytes} bytes of added tokens; at most {ADDED_BYTES_MAX}"));
        }
        let plain: Vec<usize> = (0..tokens.len()).filter(|&i| !tokens[i].special).collect();
        let parse = automaton(tokens.iter())?;
        let plain = automaton(plain.iter().map(|&i| &tokens[i]))?.map(|found| (found, plain));
        Ok(AddedTokens { tokens, parse, plain })
    }

    /// All tokens.
    pub(crate) fn tokens(&self) -> &[AddedToken] {
        &self.tokens
    }

    /// Cuts `text` at the tokens found in it, in order, nothing empty.
    pub(crate) fn partition(&self, text: &str, specials: Specials) -> Vec<Stretch> {
        let mut out = Vec::new();
        let mut done = 0;
        let mut found = |index: usize, start: usize, end: usize| {
            let token = &self.tokens[index];
            // A token before this one may have swallowed white space that this one starts with.
            if start < done || (token.single_word && !stands_alone(text, start, end)) {
                return;
            }
            let start = if token.lstrip { done.max(text[..start].trim_end().len()) } else { start };
            let end = if token.rstrip { text.len() - text[end..].trim_start().len() } else { end };
            if start > done {
                out.push(Stretch::Text(done..start));
            }
            out.push(Stretch::Token(token.id));
            done = end;
        };
        match (specials, &self.parse, &self.plain) {
            (Specials::Parse, Some(parse), _) => {
                for m in parse.find_iter(text) {
                    found(m.pattern().as_usize(), m.start(), m.end());
                }
            }
            (Specials::Plain, _, Some((plain, indices))) => {
                for m in plain.find_iter(text) {
                    found(indices[m.pattern().as_usize()], m.start(), m.end());
                }
            }
            _ => {}
        }
        if done < text.len() {
            out.push(Stretch::Text(done..text.len()));
        }
        out
    }
}

/// One automaton: the leftmost token wins, the longest of those that start there.
fn automaton<'a>(
    tokens: impl Iterator<Item = &'a AddedToken>,
) -> Result<Option<AhoCorasick>, String> {
    let texts: Vec<&str> = tokens.map(|token| token.content.as_str()).collect();
    if texts.is_empty() {
        return Ok(None);
    }
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(texts)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// Is the match between characters that are not part of a word?
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    !text[..start].chars().next_back().is_some_and(is_word)
        && !text[end..].chars().next().is_some_and(is_word)
}
