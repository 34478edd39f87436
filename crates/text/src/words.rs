//! What happens to text before merging: it is normalised, then cut into words that never merge
//! across a cut. Both are lists of small steps, which tokenizer.json spells out and the GGUF
//! `tokenizer.ggml.pre` name abbreviates.

use std::borrow::Cow;
use std::ops::Range;

use unicode_normalization::UnicodeNormalization;

use crate::pattern::{OutOfSteps, Pattern};

/// Longest text after normalisation, as a multiple of the text before; NFKD expands one character
/// to 18, and a hostile `Replace` step must not expand without end.
const GROWTH_MAX: usize = 32;

/// One step of normalisation.
pub(crate) enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    /// Puts text in front of any text that is not empty.
    Prepend(String),
    /// Puts text in front, by a rule about where the text stands and how it starts.
    Prefix {
        text: String,
        place: PrefixPlace,
    },
    /// Replaces every occurrence of a plain string.
    Replace {
        from: String,
        to: String,
    },
    /// Replaces every match of a pattern.
    ReplacePattern {
        from: Box<Pattern>,
        to: String,
    },
    /// Removes white space at the ends.
    Strip {
        left: bool,
        right: bool,
    },
}

/// Where a prefix is put, unless the text already starts with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixPlace {
    /// In front of every stretch between special tokens.
    Always,
    /// Only in front of the very first stretch.
    First,
}

impl Normalizer {
    /// Applies the step. `first`: no special token and no text stood before this stretch.
    pub(crate) fn apply<'a>(
        &self,
        text: Cow<'a, str>,
        first: bool,
        steps: &mut u64,
    ) -> Result<Cow<'a, str>, OutOfSteps> {
        let limit = text.len().saturating_mul(GROWTH_MAX).saturating_add(1 << 16);
        let out: Cow<'a, str> = match self {
            // Only ASCII text is certainly normal in all four forms, and it is the common case.
            Normalizer::Nfc | Normalizer::Nfd | Normalizer::Nfkc | Normalizer::Nfkd
                if text.is_ascii() =>
            {
                text
            }
            Normalizer::Nfc => text.nfc().collect::<String>().into(),
            Normalizer::Nfd => text.nfd().collect::<String>().into(),
            Normalizer::Nfkc => text.nfkc().collect::<String>().into(),
            Normalizer::Nfkd => text.nfkd().collect::<String>().into(),
            Normalizer::Lowercase => {
                text.chars().flat_map(char::to_lowercase).collect::<String>().into()
            }
            Normalizer::Prepend(prefix) if !text.is_empty() => format!("{prefix}{text}").into(),
            Normalizer::Prepend(_) => text,
            Normalizer::Prefix { text: prefix, place } => {
                let wanted = *place == PrefixPlace::Always || first;
                if wanted && !text.is_empty() && !text.starts_with(prefix.as_str()) {
                    format!("{prefix}{text}").into()
                } else {
                    text
                }
            }
            Normalizer::Replace { from, to } => {
                let found = text.matches(from.as_str()).count();
                if found == 0 {
                    text
                } else if text.len().saturating_add(found.saturating_mul(to.len())) > limit {
                    return Err(OutOfSteps);
                } else {
                    text.replace(from.as_str(), to).into()
                }
            }
            Normalizer::ReplacePattern { from, to } => {
                replace_pattern(&text, from, to, limit, steps)?.into()
            }
            Normalizer::Strip { left, right } => {
                let mut rest = &*text;
                rest = if *left { rest.trim_start() } else { rest };
                rest = if *right { rest.trim_end() } else { rest };
                rest.to_owned().into()
            }
        };
        Ok(out)
    }
}

/// `text` with every match of `from` replaced by `to`.
fn replace_pattern(
    text: &str,
    from: &Pattern,
    to: &str,
    limit: usize,
    steps: &mut u64,
) -> Result<String, OutOfSteps> {
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    let mut too_long = false;
    from.matches(text, 0..text.len(), steps, |found| {
        too_long |= out.len() + to.len() > limit;
        if !too_long {
            out.push_str(&text[done..found.start]);
            out.push_str(to);
        }
        done = found.end;
    })?;
    if too_long {
        return Err(OutOfSteps);
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// One step of cutting text into words.
pub(crate) struct Splitter {
    pub(crate) pattern: Pattern,
    pub(crate) behavior: Behavior,
    /// Treat what does not match as the match.
    pub(crate) invert: bool,
}

/// What becomes of a match when text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Behavior {
    /// It is dropped.
    Removed,
    /// It is a word of its own.
    Isolated,
    /// It ends the word before it.
    MergedWithPrevious,
    /// It starts the word after it.
    MergedWithNext,
    /// Matches in a row are one word.
    Contiguous,
}

impl Splitter {
    /// A splitter whose matches and gaps are both words, as most are.
    pub(crate) fn isolated(source: &str) -> Result<Splitter, String> {
        Ok(Splitter { pattern: Pattern::new(source)?, behavior: Behavior::Isolated, invert: false })
    }

    /// Cuts every word in `words` (ranges of `text`) further; `spare` is scratch space.
    pub(crate) fn split(
        &self,
        text: &str,
        words: &mut Vec<Range<usize>>,
        spare: &mut Vec<Range<usize>>,
        steps: &mut u64,
    ) -> Result<(), OutOfSteps> {
        spare.clear();
        let mut cutter = Cutter { behavior: self.behavior, previous_matched: false, open: false };
        for word in words.iter() {
            cutter.restart();
            let mut done = word.start;
            self.pattern.matches(text, word.clone(), steps, |found| {
                if found.start > done {
                    cutter.piece(done..found.start, self.invert, spare);
                }
                done = found.end;
                cutter.piece(found, !self.invert, spare);
            })?;
            if done < word.end {
                cutter.piece(done..word.end, self.invert, spare);
            }
        }
        std::mem::swap(words, spare);
        Ok(())
    }
}

/// Joins matches and gaps into words by one [`Behavior`].
struct Cutter {
    behavior: Behavior,
    previous_matched: bool,
    /// There is a previous piece in this word, so joining to it is possible.
    open: bool,
}

impl Cutter {
    fn restart(&mut self) {
        self.open = false;
        self.previous_matched = false;
    }

    fn piece(&mut self, piece: Range<usize>, matched: bool, out: &mut Vec<Range<usize>>) {
        let join = self.open
            && match self.behavior {
                Behavior::Removed | Behavior::Isolated => false,
                Behavior::Contiguous => matched == self.previous_matched,
                Behavior::MergedWithPrevious => matched && !self.previous_matched,
                Behavior::MergedWithNext => !matched && self.previous_matched,
            };
        self.previous_matched = matched;
        if self.behavior == Behavior::Removed && matched {
            self.open = false;
            return;
        }
        self.open = true;
        match out.last_mut() {
            Some(last) if join => last.end = piece.end,
            _ => out.push(piece),
        }
    }
}
