//! What can go wrong with text, sorted by what the caller can do about it.
//!
//! A bad file names the file's field, what was expected, what was found and a hint; a request that
//! cannot be encoded or rendered is that request's failure and nobody else's.

/// Why a tokenizer or a template could not be loaded. The file, not the request, is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The source is not well formed: broken JSON, broken base64, a syntax error in a template.
    #[error("`{file}` cannot be read: {reason}")]
    Malformed {
        /// Which source: `tokenizer.json`, `tekken.json`, `chat template`.
        file: &'static str,
        /// What the parser said, with a position where it knows one.
        reason: String,
    },
    /// A field is missing, has the wrong type, or contradicts another one.
    #[error("`{file}`, field `{field}`: expected {expected}, found {found}")]
    Field {
        /// Which source: `tokenizer.json`, `tekken.json`, `GGUF vocabulary`.
        file: &'static str,
        /// The field, as a path inside the source.
        field: String,
        /// What would have been accepted, with a hint.
        expected: String,
        /// What was there instead.
        found: String,
    },
    /// The field is well formed, but names something Moeba does not do.
    #[error("`{file}`, field `{field}`: `{found}` is not supported; {hint}")]
    Unsupported {
        /// Which source.
        file: &'static str,
        /// The field, as a path inside the source.
        field: String,
        /// The value that is not supported.
        found: String,
        /// What is supported, or what to do.
        hint: String,
    },
}

/// Why a text could not be made into tokens. Only this text is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The pattern that splits text into words needed more work than any sane pattern does.
    #[error(
        "splitting {bytes} bytes of text took more than {steps} steps; the tokenizer's pattern \
         is quadratic on this text"
    )]
    TooMuchWork {
        /// Length of the text in bytes.
        bytes: usize,
        /// The budget that ran out.
        steps: u64,
    },
    /// The text is longer than positions can count.
    #[error("text has {bytes} bytes; at most {limit} can be encoded at once")]
    TooLong {
        /// Length of the text in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
}

/// Why a conversation could not be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// The template itself refused, by calling `raise_exception`: the message is its own.
    #[error("the chat template refused this conversation: {0}")]
    Refused(String),
    /// The template needed more steps, bytes or depth than allowed.
    #[error("the chat template exceeded its limit of {0}")]
    Limit(String),
    /// The template failed: an undefined value, a wrong type, an unknown filter.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The conversation cannot be protected against control tokens in its text.
    #[error("the conversation uses every private sentinel character, so it cannot be rendered")]
    NoSentinel,
}

/// Builds a [`LoadError::Field`].
pub(crate) fn field(
    file: &'static str,
    field: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> LoadError {
    LoadError::Field { file, field: field.into(), expected: expected.into(), found: found.into() }
}

/// Builds a [`LoadError::Unsupported`].
pub(crate) fn unsupported(
    file: &'static str,
    field: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> LoadError {
    LoadError::Unsupported {
        file,
        field: field.into(),
        found: shorten(&found.into()),
        hint: hint.into(),
    }
}

/// Cuts hostile values short and escapes what a terminal could obey.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    let mut out: String = text.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        out.push('…');
    }
    out
}
