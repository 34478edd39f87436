//! One metadata value, whichever container it came from.
//!
//! GGUF arrays stay where they are in the mapped file: a vocabulary of 150,000 strings costs one
//! walk over its lengths at opening and no allocation. JSON values are owned.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use moeba_kernels::os::memory::Bytes;

/// A JSON object, or the top level of either container. Sorted, so that listings are stable.
pub type Object = BTreeMap<String, Value>;

/// A metadata value. JSON numbers arrive as `U64`, `I64` (negative) or `F64`.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the variants are the containers' own scalar types")]
pub enum Value {
    Null,
    Bool(bool),
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Text(String),
    Array(Array),
    Object(Object),
}

impl Value {
    /// What this is, for messages: `u32 7`, `string "yarn"`, `array of 3 f32`.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(v) => v.to_string(),
            Self::Text(v) => format!("string \"{}\"", v.chars().take(60).collect::<String>()),
            Self::Array(v) => format!("array of {} {}", v.len(), v.element_name()),
            Self::Object(v) => format!("object of {} keys", v.len()),
            Self::F32(v) => format!("number {v:?}"),
            Self::F64(v) => format!("number {v:?}"),
            number => format!("integer {}", number.integer().expect("all others are integers")),
        }
    }

    /// The value of any integer type; `None` for everything else, floats included.
    pub fn integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// The value of a float, or of an integer a double holds exactly.
    pub fn number(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            _ => self.integer().filter(|v| v.unsigned_abs() <= 1 << 53).map(|v| v as f64),
        }
    }
}

/// The element types of a GGUF array (and GGUF's value types), with the file's numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are the container's own type names")]
pub enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

/// Kinds in the order of their numbers in the file, with names and sizes in bytes (0: varies).
const KINDS: [(Kind, &str, u64); 13] = [
    (Kind::U8, "u8", 1),
    (Kind::I8, "i8", 1),
    (Kind::U16, "u16", 2),
    (Kind::I16, "i16", 2),
    (Kind::U32, "u32", 4),
    (Kind::I32, "i32", 4),
    (Kind::F32, "f32", 4),
    (Kind::Bool, "bool", 1),
    (Kind::Text, "string", 0),
    (Kind::Array, "array", 0),
    (Kind::U64, "u64", 8),
    (Kind::I64, "i64", 8),
    (Kind::F64, "f64", 8),
];

impl Kind {
    /// The kind a file numbers `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        KINDS.get(usize::try_from(id).ok()?).map(|row| row.0)
    }

    /// The file's number for it.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        KINDS[self as usize].1
    }

    /// Bytes of one element; `None` for strings and arrays, whose size varies.
    pub fn bytes(self) -> Option<u64> {
        Some(KINDS[self as usize].2).filter(|&bytes| bytes > 0)
    }
}

/// An array of metadata values.
#[derive(Debug, Clone)]
pub enum Array {
    /// A GGUF array, still in its file encoding (elements little-endian, strings prefixed by a
    /// 64-bit length, nested arrays by kind and count); the reader has checked all lengths.
    Packed {
        /// What the elements are.
        kind: Kind,
        /// How many there are.
        count: usize,
        /// Their encoding.
        bytes: Packed,
    },
    /// A JSON array.
    List(Vec<Value>),
}

/// Encoded elements: a piece of a mapped file, or memory of their own.
#[derive(Clone)]
pub enum Packed {
    /// Part of the file they were read from.
    Mapped(Bytes),
    /// Made in memory, to be written.
    Owned(Arc<[u8]>),
}

impl Deref for Packed {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Packed { count, .. } => *count,
            Self::List(values) => values.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name; JSON arrays may mix them.
    pub fn element_name(&self) -> &'static str {
        match self {
            Self::Packed { kind, .. } => kind.name(),
            Self::List(_) => "values",
        }
    }

    /// An array of strings, in GGUF encoding.
    pub fn of_strings<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Self {
        let (mut count, mut bytes) = (0, Vec::new());
        for string in strings {
            let string = string.as_ref();
            bytes.extend_from_slice(&(string.len() as u64).to_le_bytes());
            bytes.extend_from_slice(string.as_bytes());
            count += 1;
        }
        Self::Packed { kind: Kind::Text, count, bytes: Packed::Owned(bytes.into()) }
    }

    /// An array of `u32`, in GGUF encoding.
    pub fn of_u32(values: &[u32]) -> Self {
        Self::of(Kind::U32, values, u32::to_le_bytes)
    }

    /// An array of `i32`, in GGUF encoding.
    pub fn of_i32(values: &[i32]) -> Self {
        Self::of(Kind::I32, values, i32::to_le_bytes)
    }

    /// An array of `f32`, in GGUF encoding.
    pub fn of_f32(values: &[f32]) -> Self {
        Self::of(Kind::F32, values, f32::to_le_bytes)
    }

    fn of<T: Copy, const N: usize>(kind: Kind, values: &[T], encode: fn(T) -> [u8; N]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(v)).collect();
        Self::Packed { kind, count: values.len(), bytes: Packed::Owned(bytes.into()) }
    }

    /// All elements as values; nested GGUF arrays are not decoded and give `None`, as does a
    /// string that is not UTF-8.
    pub fn values(&self) -> Option<Vec<Value>> {
        match self {
            Self::List(values) => Some(values.clone()),
            Self::Packed { kind: Kind::Text, .. } => {
                Some(self.texts()?.into_iter().map(|t| Value::Text(t.to_owned())).collect())
            }
            Self::Packed { kind, bytes, .. } => {
                let size = usize::try_from(kind.bytes()?).ok()?;
                bytes.chunks_exact(size).map(|chunk| scalar(*kind, chunk)).collect()
            }
        }
    }

    /// All elements as strings, borrowed from the file; `None` where one is none or not UTF-8.
    pub fn texts(&self) -> Option<Vec<&str>> {
        match self {
            Self::List(values) => values
                .iter()
                .map(|value| if let Value::Text(text) = value { Some(&**text) } else { None })
                .collect(),
            Self::Packed { kind: Kind::Text, count, bytes } => {
                let mut rest: &[u8] = bytes;
                let mut texts = Vec::with_capacity(*count);
                for _ in 0..*count {
                    let (len, tail) = rest.split_first_chunk::<8>()?;
                    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
                    let (text, tail) = tail.split_at_checked(len)?;
                    texts.push(std::str::from_utf8(text).ok()?);
                    rest = tail;
                }
                Some(texts)
            }
            Self::Packed { .. } => None,
        }
    }
}

/// Decodes one scalar of `kind`, or `None` where `bytes` is not its size or it is no scalar.
///
/// A byte that is neither 0 nor 1 is no bool.
pub(super) fn scalar(kind: Kind, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        Kind::U8 => Value::U8(u8::from_le_bytes(bytes.try_into().ok()?)),
        Kind::I8 => Value::I8(i8::from_le_bytes(bytes.try_into().ok()?)),
        Kind::U16 => Value::U16(u16::from_le_bytes(bytes.try_into().ok()?)),
        Kind::I16 => Value::I16(i16::from_le_bytes(bytes.try_into().ok()?)),
        Kind::U32 => Value::U32(u32::from_le_bytes(bytes.try_into().ok()?)),
        Kind::I32 => Value::I32(i32::from_le_bytes(bytes.try_into().ok()?)),
        Kind::U64 => Value::U64(u64::from_le_bytes(bytes.try_into().ok()?)),
        Kind::I64 => Value::I64(i64::from_le_bytes(bytes.try_into().ok()?)),
        Kind::F32 => Value::F32(f32::from_le_bytes(bytes.try_into().ok()?)),
        Kind::F64 => Value::F64(f64::from_le_bytes(bytes.try_into().ok()?)),
        Kind::Bool => match bytes {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            _ => return None,
        },
        Kind::Text | Kind::Array => return None,
    })
}
