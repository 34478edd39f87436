//! Strict JSON: as serde_json reads it, but a duplicate key is an error.
//!
//! JSON readers disagree on which of two equal keys counts, so a file that has them means
//! different things to different programs. Depth is bounded by serde_json (128 levels).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

use super::value::{Array, Object, Value};
use crate::error::{Fault, LoadError};

/// Reads the whole of a JSON file of at most `bytes_max` bytes.
pub(super) fn read_file<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<T, LoadError> {
    parse(path, 0, &read_bytes(path, bytes_max)?)
}

/// Reads the whole of a regular file of at most `bytes_max` bytes.
pub(super) fn read_bytes(path: &Path, bytes_max: u64) -> Result<Vec<u8>, LoadError> {
    let about = std::fs::metadata(path).map_err(|e| LoadError::io("open", path, e))?;
    if !about.is_file() {
        return Err(Fault::new(path)
            .expected("a regular file")
            .found("a directory, pipe or device")
            .unsupported());
    }
    if about.len() > bytes_max {
        return Err(Fault::new(path)
            .expected(format_args!("at most {bytes_max} bytes"))
            .found(about.len())
            .limit());
    }
    let file = File::open(path).map_err(|e| LoadError::io("open", path, e))?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).map_err(|e| LoadError::io("read", path, e))?;
    Ok(bytes)
}

/// Parses JSON that stands at `offset` in `path`.
pub(super) fn parse<T: DeserializeOwned>(
    path: &Path,
    offset: u64,
    bytes: &[u8],
) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|error| Fault::new(path).at(offset).expected("valid JSON").found(error).damaged())
}

/// A JSON object as key/value pairs in the file's order, every key once.
#[derive(Debug)]
pub(super) struct Unique<T>(pub(super) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(UniqueVisitor(PhantomData))
    }
}

struct UniqueVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for UniqueVisitor<T> {
    type Value = Unique<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
        let mut pairs = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            if pairs.contains_key(&key) {
                return Err(serde::de::Error::custom(format_args!("duplicate key `{key}`")));
            }
            pairs.insert(key, map.next_value()?);
        }
        Ok(Unique(pairs))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::U64(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::I64(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::F64(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Value, S::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(Array::List(values)))
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Value, M::Error> {
        let Unique(object): Unique<Value> = UniqueVisitor(PhantomData).visit_map(map)?;
        Ok(Value::Object(object as Object))
    }
}
