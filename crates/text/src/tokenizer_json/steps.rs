//! The steps of a `tokenizer.json` pipeline: normalizers, pre-tokenizers, decoders, and what the
//! post-processor puts around a text. One `match` arm per step; unknown steps are refused by name.

use serde_json::Value as Json;

use super::FILE;
use crate::error::{LoadError, field, shorten, unsupported};
use crate::pattern::{Pattern, steps_max};
use crate::pre::GPT2;
use crate::words::{Behavior, Normalizer, PrefixPlace, Splitter};

/// Deepest nesting of `Sequence` steps and most steps in all.
const DEPTH_MAX: usize = 8;
const STEPS_MAX: usize = 64;

/// Everything the pipeline says, in our own terms.
#[derive(Default)]
pub(super) struct Steps {
    pub(super) normalizers: Vec<Normalizer>,
    pub(super) preparations: Vec<Normalizer>,
    pub(super) splitters: Vec<Splitter>,
    /// Tokens are spelled in the byte alphabet.
    pub(super) byte_level: bool,
    /// `▁` in tokens means a space.
    pub(super) decodes_spaces: bool,
    pub(super) strip_leading_space: bool,
    /// Number of steps read, bounded by [`STEPS_MAX`].
    count: usize,
}

type Read = Result<(), LoadError>;

impl Steps {
    pub(super) fn read_normalizer(&mut self, json: Option<&Json>) -> Read {
        self.each(json, "normalizer", "normalizers", 0, &mut Self::normalizer)
    }

    pub(super) fn read_pre_tokenizer(&mut self, json: Option<&Json>) -> Read {
        self.each(json, "pre_tokenizer", "pretokenizers", 0, &mut Self::pre_tokenizer)
    }

    pub(super) fn read_decoder(&mut self, json: Option<&Json>) -> Read {
        self.each(json, "decoder", "decoders", 0, &mut Self::decoder)
    }

    /// A text after all normalizers.
    pub(super) fn normalize(&self, text: &str) -> Result<String, LoadError> {
        let mut budget = steps_max(text.len());
        let mut text = text.into();
        for step in &self.normalizers {
            text = step.apply(text, true, &mut budget).map_err(|_| {
                field(FILE, "normalizer", "steps that added tokens pass", shorten("too much work"))
            })?;
        }
        Ok(text.into_owned())
    }

    /// Calls `read` for every step, unfolding sequences.
    fn each(
        &mut self,
        json: Option<&Json>,
        place: &str,
        members: &str,
        depth: usize,
        read: &mut dyn FnMut(&mut Self, &Json, &str) -> Read,
    ) -> Read {
        let Some(json) = json.filter(|json| !json.is_null()) else { return Ok(()) };
        self.count += 1;
        if depth > DEPTH_MAX || self.count > STEPS_MAX {
            let expected = format!("at most {STEPS_MAX} steps, {DEPTH_MAX} levels deep");
            return Err(field(FILE, place, expected, "more"));
        }
        if kind(json) != "Sequence" {
            return read(self, json, place);
        }
        for member in json[members].as_array().into_iter().flatten() {
            self.each(Some(member), place, members, depth + 1, read)?;
        }
        Ok(())
    }

    fn normalizer(&mut self, json: &Json, place: &str) -> Read {
        let step = match kind(json) {
            "NFC" => Normalizer::Nfc,
            "NFD" => Normalizer::Nfd,
            "NFKC" => Normalizer::Nfkc,
            "NFKD" => Normalizer::Nfkd,
            "Lowercase" => Normalizer::Lowercase,
            "Prepend" => Normalizer::Prepend(text(json, place, "prepend")?.to_owned()),
            "Strip" => {
                let side = |name: &str| json[name].as_bool().unwrap_or(true);
                Normalizer::Strip { left: side("strip_left"), right: side("strip_right") }
            }
            "Replace" => {
                let to = text(json, place, "content")?.to_owned();
                match &json["pattern"]["Regex"] {
                    Json::String(source) => {
                        Normalizer::ReplacePattern { from: Box::new(compile(source, place)?), to }
                    }
                    _ => Normalizer::Replace { from: literal(json, place)?.to_owned(), to },
                }
            }
            "ByteLevel" => {
                self.byte_level = true;
                return Ok(());
            }
            other => return Err(unknown(place, other)),
        };
        self.normalizers.push(step);
        Ok(())
    }

    fn pre_tokenizer(&mut self, json: &Json, place: &str) -> Read {
        if self.byte_level && self.splitters.is_empty() {
            self.only_before_bytes(place)?;
        }
        let name = kind(json);
        // After `ByteLevel` text is spelled in its own alphabet, which we never make.
        if self.byte_level && name != "ByteLevel" {
            let hint = "steps after `ByteLevel` are not";
            return Err(unsupported(FILE, place, name, hint));
        }
        match name {
            "ByteLevel" => self.byte_level_step(json, place),
            "Metaspace" => self.metaspace(json, place),
            "Digits" => {
                let one = json["individual_digits"].as_bool().unwrap_or(false);
                self.cut(if one { r"\p{N}" } else { r"\p{N}+" }, Behavior::Isolated, false, place)
            }
            "Split" => {
                let behavior = behavior(json, place)?;
                let invert = json["invert"].as_bool().unwrap_or(false);
                let pattern = match &json["pattern"]["Regex"] {
                    Json::String(source) => compile(source, place)?,
                    _ => Pattern::literal(literal(json, place)?)
                        .map_err(|reason| field(FILE, place, "a pattern that compiles", reason))?,
                };
                self.splitters.push(Splitter { pattern, behavior, invert });
                Ok(())
            }
            "Punctuation" => {
                let behavior = match &json["behavior"] {
                    Json::Null => Behavior::Isolated,
                    _ => behavior(json, place)?,
                };
                self.cut(r"[!-/:-@\[-`{-~\p{P}]", behavior, false, place)
            }
            "Whitespace" => self.cut(r"\w+|[^\w\s]+", Behavior::Removed, true, place),
            "WhitespaceSplit" => self.cut(r"\s", Behavior::Removed, false, place),
            other => Err(unknown(place, other)),
        }
    }

    /// A `ByteLevel` normalizer spells text before pre-tokenizers see it, which no published
    /// decoder model combines with patterns of its own.
    fn only_before_bytes(&self, place: &str) -> Read {
        if self.normalizers.is_empty() {
            return Ok(());
        }
        let hint = "put `ByteLevel` into the pre-tokenizer";
        Err(unsupported(FILE, place, "a `ByteLevel` normalizer with others", hint))
    }

    fn cut(&mut self, source: &str, behavior: Behavior, invert: bool, place: &str) -> Read {
        self.splitters.push(Splitter { pattern: compile(source, place)?, behavior, invert });
        Ok(())
    }

    fn byte_level_step(&mut self, json: &Json, place: &str) -> Read {
        self.byte_level = true;
        if json["add_prefix_space"].as_bool().unwrap_or(true) {
            if !self.splitters.is_empty() {
                let hint = "a prefix space after cutting is not";
                return Err(unsupported(FILE, place, "ByteLevel.add_prefix_space", hint));
            }
            let text = " ".to_owned();
            self.preparations.push(Normalizer::Prefix { text, place: PrefixPlace::Always });
        }
        if json["use_regex"].as_bool().unwrap_or(true) {
            self.cut(GPT2, Behavior::Isolated, false, place)?;
        }
        Ok(())
    }

    fn metaspace(&mut self, json: &Json, place: &str) -> Read {
        if !self.splitters.is_empty() {
            let hint = "it must come before steps that cut";
            return Err(unsupported(FILE, place, "Metaspace", hint));
        }
        let mark = json["replacement"].as_str().unwrap_or("▁").to_owned();
        let prefix = match json["prepend_scheme"].as_str() {
            Some("always") => Some(PrefixPlace::Always),
            Some("first") => Some(PrefixPlace::First),
            Some("never") => None,
            Some(other) => {
                let expected = "`always`, `first` or `never`";
                return Err(field(FILE, place, expected, shorten(other)));
            }
            None => {
                json["add_prefix_space"].as_bool().unwrap_or(true).then_some(PrefixPlace::Always)
            }
        };
        self.preparations.push(Normalizer::Replace { from: " ".to_owned(), to: mark.clone() });
        if let Some(place) = prefix {
            self.preparations.push(Normalizer::Prefix { text: mark.clone(), place });
        }
        if json["split"].as_bool().unwrap_or(true) {
            let pattern = Pattern::literal(&mark)
                .map_err(|reason| field(FILE, place, "a replacement of one character", reason))?;
            let behavior = Behavior::MergedWithNext;
            self.splitters.push(Splitter { pattern, behavior, invert: false });
        }
        Ok(())
    }

    fn decoder(&mut self, json: &Json, place: &str) -> Read {
        match kind(json) {
            "ByteLevel" if self.byte_level => {}
            "ByteFallback" | "Fuse" => {}
            "Replace" => {
                let (from, to) = (literal(json, place)?, text(json, place, "content")?);
                if (from, to) != ("▁", " ") {
                    let found = format!("Replace `{}`", shorten(from));
                    return Err(unsupported(FILE, place, found, "only `▁` to a space is"));
                }
                self.decodes_spaces = true;
            }
            "Strip" => {
                let number = |name: &str| json[name].as_u64().unwrap_or(0);
                let (start, stop) = (number("start"), number("stop"));
                if json["content"].as_str() != Some(" ") || start > 1 || stop > 0 {
                    let hint = "only one space at the start is";
                    return Err(unsupported(FILE, place, "Strip", hint));
                }
                self.strip_leading_space = start == 1;
            }
            "Metaspace" => {
                self.decodes_spaces = true;
                let never = json["prepend_scheme"].as_str() == Some("never")
                    || json["add_prefix_space"].as_bool() == Some(false);
                self.strip_leading_space = !never;
            }
            other => return Err(unknown(place, other)),
        }
        Ok(())
    }
}

/// What a post-processor puts before and after one text. Only single tokens are known.
pub(super) fn surroundings(
    json: Option<&Json>,
    find: &dyn Fn(&str) -> Option<u32>,
) -> Result<(Option<u32>, Option<u32>), LoadError> {
    const PLACE: &str = "post_processor";
    let Some(json) = json.filter(|json| !json.is_null()) else { return Ok((None, None)) };
    match kind(json) {
        "ByteLevel" => Ok((None, None)),
        "Sequence" => {
            let mut found = (None, None);
            for member in json["processors"].as_array().into_iter().flatten() {
                if kind(member) == "Sequence" {
                    return Err(unsupported(FILE, PLACE, "nested Sequence", "one level is"));
                }
                let (first, last) = surroundings(Some(member), find)?;
                found = (first.or(found.0), last.or(found.1));
            }
            Ok(found)
        }
        "TemplateProcessing" => {
            let (mut first, mut last, mut seen_text) = (None, None, false);
            for part in json["single"].as_array().into_iter().flatten() {
                if part.get("Sequence").is_some() {
                    seen_text = true;
                    continue;
                }
                let name = part["SpecialToken"]["id"].as_str().unwrap_or_default();
                let id = find(name).ok_or_else(|| {
                    let field_name = "post_processor.single";
                    field(
                        FILE,
                        field_name,
                        "special tokens that exist",
                        format!("`{}`", shorten(name)),
                    )
                })?;
                let side = if seen_text { &mut last } else { &mut first };
                if side.replace(id).is_some() {
                    let hint = "at most one token on each side of a text is";
                    return Err(unsupported(FILE, PLACE, "two tokens in a row", hint));
                }
            }
            Ok((first, last))
        }
        other => Err(unknown(PLACE, other)),
    }
}

/// The `type` of a step.
fn kind(json: &Json) -> &str {
    json["type"].as_str().unwrap_or_default()
}

fn unknown(place: &str, name: &str) -> LoadError {
    unsupported(FILE, format!("{place}.type"), name, "no decoder model known to us uses it")
}

/// A string field of a step.
fn text<'a>(json: &'a Json, place: &str, name: &str) -> Result<&'a str, LoadError> {
    json[name].as_str().ok_or_else(|| {
        field(FILE, format!("{place}.{name}"), "a string", shorten(&json[name].to_string()))
    })
}

/// `{"pattern": {"String": …}}`, not empty.
fn literal<'a>(json: &'a Json, place: &str) -> Result<&'a str, LoadError> {
    let value = &json["pattern"]["String"];
    value.as_str().filter(|text| !text.is_empty()).ok_or_else(|| {
        let expected = "a `String` that is not empty, or a `Regex`";
        field(FILE, format!("{place}.pattern"), expected, shorten(&json["pattern"].to_string()))
    })
}

fn compile(source: &str, place: &str) -> Result<Pattern, LoadError> {
    Pattern::new(source).map_err(|reason| {
        let expected = r"a pattern without look-around other than `\s+(?!\S)`";
        field(
            FILE,
            format!("{place}.pattern"),
            expected,
            format!("{} ({})", shorten(source), shorten(&reason)),
        )
    })
}

fn behavior(json: &Json, place: &str) -> Result<Behavior, LoadError> {
    Ok(match json["behavior"].as_str().unwrap_or_default() {
        "Removed" => Behavior::Removed,
        "Isolated" => Behavior::Isolated,
        "MergedWithPrevious" => Behavior::MergedWithPrevious,
        "MergedWithNext" => Behavior::MergedWithNext,
        "Contiguous" => Behavior::Contiguous,
        other => {
            let expected = "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous";
            return Err(field(FILE, format!("{place}.behavior"), expected, shorten(other)));
        }
    })
}
