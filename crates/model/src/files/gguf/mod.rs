//! GGUF, versions 2 and 3: reading one file's header, and checking its layout to the last byte.
//!
//! A file is: magic, version, counts, key/value pairs, tensor descriptions, padding, data. Every
//! tensor must begin exactly where the one before it ended, rounded up to the alignment; that
//! single rule excludes overlaps, gaps, disorder, and a tensor whose tail would be its
//! neighbour's bytes. The format is described in ggml's `docs/gguf.md`.

mod journal;
mod split;
mod types;
mod writer;

use std::collections::HashSet;
use std::path::Path;

use moeba_kernels::os::memory::Bytes;

pub(crate) use journal::Hash as ContentHash;
pub(super) use split::open;
pub use split::shard_name;
pub use writer::{GgufHeader, GgufTensor, GgufWriter};

use super::cursor::Cursor;
use super::limits::Limits;
use super::tensors::{TensorHeader, supported_types};
use super::value::{Array, Kind, Object, Packed, Value, scalar};
use super::{checked, tensors::Part};
use crate::error::{Fault, LoadError};

pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of the data where the file does not say.
const ALIGNMENT_DEFAULT: u64 = 32;

/// A tensor of more dimensions does not exist in the format.
const DIMENSIONS_MAX: u32 = 4;

/// What one file says, checked.
pub(super) struct Contents {
    pub(super) metadata: Object,
    pub(super) tensors: Vec<TensorHeader>,
}

/// Reads and checks the header of `part`, which is number `index` of its set.
pub(super) fn read(part: &Part, index: usize, limits: &Limits) -> Result<Contents, LoadError> {
    let mut reader =
        Reader { cursor: Cursor::new(&part.path, &part.bytes), bytes: &part.bytes, limits };
    reader.magic_and_version()?;
    let tensor_count = reader.cursor.u64("tensor count")?;
    let entry_count = reader.cursor.u64("metadata count")?;
    // The smallest pair is an empty key with a one-byte value; the smallest description has an
    // empty name and one dimension.
    reader.cursor.check_count(entry_count, 13, limits.metadata_entries, "key/value pairs")?;
    reader.cursor.check_count(tensor_count, 32, limits.tensors, "tensor descriptions")?;
    let metadata = reader.metadata(entry_count)?;
    let alignment = alignment(&part.path, &metadata, limits)?;
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..tensor_count {
        let at = reader.cursor.position();
        let description = reader.description()?;
        if !names.insert(description.header.name.clone()) {
            return Err(Fault::new(&part.path)
                .tensor(&description.header.name)
                .at(at)
                .expected("each tensor name once")
                .found("a duplicate")
                .damaged());
        }
        tensors.push(description);
    }
    let tensors = check_layout(&reader.cursor, part, index, tensors, alignment)?;
    Ok(Contents { metadata, tensors })
}

/// A tensor description whose offset still counts from the data section's start.
struct Description {
    header: TensorHeader,
    /// Where the description itself stands, for messages.
    at: u64,
}

struct Reader<'a> {
    cursor: Cursor<'a>,
    bytes: &'a Bytes,
    limits: &'a Limits,
}

impl Reader<'_> {
    fn magic_and_version(&mut self) -> Result<(), LoadError> {
        let start = self.cursor.fault();
        let magic = self.cursor.take(4, "the magic `GGUF`")?;
        if magic != MAGIC {
            return Err(start
                .expected("the magic `GGUF`")
                .found(format_args!("`{}`", String::from_utf8_lossy(magic)))
                .hint(
                    "this is no GGUF file; of safetensors name the directory; a failed download \
                     often leaves a web page",
                )
                .damaged());
        }
        let fault = self.cursor.fault();
        let version = self.cursor.u32("version")?;
        if version == 2 || version == 3 {
            return Ok(());
        }
        let fault = fault.expected("GGUF version 2 or 3").found(version);
        Err(match version {
            1 => fault.hint("version 1 is obsolete; convert the model again"),
            _ if matches!(version.swap_bytes(), 1..=3) => fault.hint("this file is big-endian"),
            _ => fault.hint("the file is newer than this program, or damaged"),
        }
        .unsupported())
    }

    fn metadata(&mut self, count: u64) -> Result<Object, LoadError> {
        let mut metadata = Object::new();
        for _ in 0..count {
            let fault = self.cursor.fault();
            let key = self.cursor.string(self.limits, "key")?;
            if key.is_empty() {
                return Err(fault.expected("a key").found("an empty string").damaged());
            }
            let value = self.value().map_err(|error| with_key(error, key))?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(fault
                    .key(key)
                    .expected("each key once")
                    .found("a duplicate")
                    .damaged());
            }
        }
        Ok(metadata)
    }

    fn kind(&mut self) -> Result<Kind, LoadError> {
        let fault = self.cursor.fault();
        let id = self.cursor.u32("value type")?;
        Kind::from_id(id)
            .ok_or_else(|| fault.expected("a value type from 0 to 12").found(id).damaged())
    }

    fn value(&mut self) -> Result<Value, LoadError> {
        let kind = self.kind()?;
        match (kind, kind.bytes()) {
            (Kind::Array, _) => self.array(1).map(Value::Array),
            (_, None) => Ok(Value::Text(self.cursor.string(self.limits, "string")?.to_owned())),
            (_, Some(size)) => {
                let fault = self.cursor.fault();
                let bytes = self.cursor.take(size, kind.name())?;
                scalar(kind, bytes).ok_or_else(|| bad_bool(fault))
            }
        }
    }

    /// Walks over an array, checking every length in it, and keeps it as the bytes it is.
    fn array(&mut self, depth: u32) -> Result<Array, LoadError> {
        let kind = self.kind()?;
        let fault = self.cursor.fault();
        let count = self.cursor.u64("array length")?;
        // An element takes at least: its size, a string's length field, an array's two fields.
        let smallest = kind.bytes().unwrap_or(if kind == Kind::Text { 8 } else { 12 });
        self.cursor.check_count(count, smallest, self.limits.array_elements, "array elements")?;
        let start = self.cursor.position();
        match (kind, kind.bytes()) {
            (Kind::Array, _) => {
                if depth >= self.limits.array_depth {
                    return Err(fault
                        .expected(format_args!("at most {} nested arrays", self.limits.array_depth))
                        .found("deeper ones")
                        .limit());
                }
                for _ in 0..count {
                    self.array(depth + 1)?;
                }
            }
            (_, None) => {
                for _ in 0..count {
                    self.cursor.length_prefixed(self.limits, "string")?;
                }
            }
            (_, Some(size)) => {
                // Cannot overflow: the count was checked against the bytes that are left.
                let bytes = checked::mul(count, size).unwrap_or(u64::MAX);
                let elements = self.cursor.take(bytes, "array elements")?;
                if kind == Kind::Bool && elements.iter().any(|&byte| byte > 1) {
                    return Err(bad_bool(fault));
                }
            }
        }
        let range = start as usize..self.cursor.position() as usize;
        let bytes = Packed::Mapped(self.bytes.slice(range));
        Ok(Array::Packed { kind, count: count as usize, bytes })
    }

    fn description(&mut self) -> Result<Description, LoadError> {
        let at = self.cursor.position();
        let name = self.cursor.string(self.limits, "tensor name")?;
        if name.is_empty() {
            return Err(self.cursor.fault().expected("a tensor name").found("none").damaged());
        }
        let fault = self.cursor.fault().tensor(name);
        let dimensions = self.cursor.u32("number of dimensions")?;
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(fault.expected("1 to 4 dimensions").found(dimensions).damaged());
        }
        let mut extents = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            extents.push(self.cursor.u64("dimension")?);
        }
        let (stored, bytes) = self.stored_type(name, &extents)?;
        let offset = self.cursor.u64("tensor offset")?;
        // The file lists the fastest dimension first; Moeba's shapes are outermost first. The
        // conversion cannot fail: the product of the extents fits 64 bits and none is zero.
        let shape = extents.iter().rev().map(|&extent| extent as usize).collect();
        let header = TensorHeader { name: name.to_owned(), stored, shape, bytes, offset, part: 0 };
        Ok(Description { header, at })
    }

    /// Reads the type and answers it with the size that type and shape give, in bytes.
    fn stored_type(
        &mut self,
        name: &str,
        extents: &[u64],
    ) -> Result<(super::tensors::StoredType, u64), LoadError> {
        let fault = self.cursor.fault().tensor(name);
        let id = self.cursor.u32("tensor type")?;
        let Some(row) = types::GgmlType::find(id) else {
            return Err(fault
                .expected(format_args!("a tensor type, such as {}", supported_types()))
                .found(format_args!("type number {id}"))
                .unsupported());
        };
        if extents.contains(&0) {
            return Err(fault.expected("no empty dimension").found(shape_text(extents)).damaged());
        }
        if !extents[0].is_multiple_of(row.block_len) {
            return Err(fault
                .expected(format_args!(
                    "rows of a multiple of {} elements, as {} wants",
                    row.block_len,
                    row.stored.name()
                ))
                .found(shape_text(extents))
                .damaged());
        }
        let bytes = checked::product(extents)
            .filter(|&elements| usize::try_from(elements).is_ok())
            .and_then(|e| checked::block_bytes(e, row.block_len, row.block_bytes));
        let Some(bytes) = bytes else {
            return Err(fault
                .expected("a size that fits 64 bits")
                .found(shape_text(extents))
                .damaged());
        };
        Ok((row.stored, bytes))
    }
}

fn shape_text(extents: &[u64]) -> String {
    let outermost_first: Vec<String> = extents.iter().rev().map(u64::to_string).collect();
    format!("shape [{}]", outermost_first.join(", "))
}

fn bad_bool(fault: Fault) -> LoadError {
    fault.expected("a bool of 0 or 1").found("another byte").damaged()
}

/// Adds the key to a finding inside its value.
fn with_key(error: LoadError, key: &str) -> LoadError {
    match error {
        LoadError::Damaged(fault) => fault.key(key).damaged(),
        LoadError::Limit(fault) => fault.key(key).limit(),
        other => other,
    }
}

/// The alignment the file asks for: a power of two, as an unsigned 32-bit value.
fn alignment(file: &Path, metadata: &Object, limits: &Limits) -> Result<u64, LoadError> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT_DEFAULT) };
    match *value {
        Value::U32(v) if v.is_power_of_two() && u64::from(v) <= limits.alignment => Ok(v.into()),
        _ => Err(Fault::new(file)
            .key("general.alignment")
            .expected(format_args!("a u32 power of two up to {}", limits.alignment))
            .found(value.describe())
            .damaged()),
    }
}

/// Checks that the tensors tile the data section, and makes their offsets absolute.
///
/// The tensors are compared with each other before any is compared with the file's size: where
/// reserved bytes do not match a shape, that is the cause, and a short file only its effect.
fn check_layout(
    cursor: &Cursor<'_>,
    part: &Part,
    index: usize,
    descriptions: Vec<Description>,
    alignment: u64,
) -> Result<Vec<TensorHeader>, LoadError> {
    let mut expected = Some(0); // offset within the data section
    for Description { header, at } in &descriptions {
        let fault = Fault::new(&part.path).tensor(&header.name).at(*at);
        if Some(header.offset) != expected {
            return Err(misplaced(fault, header.offset, expected, alignment));
        }
        expected = checked::add(header.offset, header.bytes)
            .and_then(|end| checked::round_up(end, alignment));
    }
    let file_bytes = part.bytes.len() as u64;
    let data = checked::round_up(cursor.position(), alignment);
    let mut end = Some(cursor.position()); // of the last tensor, in the file
    let mut tensors = Vec::with_capacity(descriptions.len());
    for Description { mut header, at } in descriptions {
        let start = data.and_then(|data| checked::add(data, header.offset));
        end = start.and_then(|start| checked::add(start, header.bytes));
        let (Some(start), true) = (start, end.is_some_and(|end| end <= file_bytes)) else {
            let end = end.map_or("2^64".to_owned(), |end| end.to_string());
            return Err(Fault::new(&part.path)
                .tensor(&header.name)
                .at(at)
                .expected(format_args!("a file of at least {end} bytes"))
                .found(format_args!("{file_bytes} bytes"))
                .hint("the file is cut short; obtain it again")
                .damaged());
        };
        (header.offset, header.part) = (start, index);
        tensors.push(header);
    }
    // Writers pad the last tensor too, or do not; anything beyond that padding is foreign.
    let padded = end.and_then(|end| checked::round_up(end, alignment)).unwrap_or(u64::MAX);
    if file_bytes > padded {
        return Err(Fault::new(&part.path)
            .at(padded)
            .expected(format_args!("a file of at most {padded} bytes"))
            .found(format_args!("{file_bytes} bytes"))
            .hint("something was appended, or the tensor count is wrong")
            .damaged());
    }
    Ok(tensors)
}

/// The error for a tensor that does not begin where the one before it ended.
fn misplaced(fault: Fault, offset: u64, expected: Option<u64>, alignment: u64) -> LoadError {
    let Some(expected) = expected else {
        return fault.expected("tensors that end within 64 bits").damaged();
    };
    let what = if !offset.is_multiple_of(alignment) {
        "unaligned"
    } else if offset > expected {
        "a gap before it"
    } else {
        "an overlap with the tensors before it"
    };
    fault
        .expected(format_args!("data offset {expected}, where the tensor before it ends"))
        .found(format_args!("offset {offset}, {what}"))
        .hint("the reserved bytes do not match the types and shapes")
        .damaged()
}
