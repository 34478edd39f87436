//! A GGUF file as numbers that can be made wrong one at a time.

/// A file in parts. [`GgufBytes::sound`] is valid; every field may then be bent.
#[derive(Clone)]
pub(crate) struct GgufBytes {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Instead of the true number of tensors.
    pub(crate) tensor_count: Option<u64>,
    /// Instead of the true number of pairs.
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) alignment: usize,
    /// Appended after everything.
    pub(crate) tail: Vec<u8>,
}

/// One key/value pair.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    /// Instead of the key's true length.
    pub(crate) key_len: Option<u64>,
    pub(crate) kind: u32,
    pub(crate) value: Vec<u8>,
}

/// One tensor.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: Vec<u8>,
    /// Instead of the name's true length.
    pub(crate) name_len: Option<u64>,
    /// Instead of the true number of dimensions.
    pub(crate) dimensions: Option<u32>,
    /// Fastest first, as in the file.
    pub(crate) extents: Vec<u64>,
    pub(crate) kind: u32,
    /// Instead of the end of the tensor before.
    pub(crate) offset: Option<u64>,
    pub(crate) data: Vec<u8>,
}

pub(crate) const U32: u32 = 4;
pub(crate) const BOOL: u32 = 7;
pub(crate) const TEXT: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const F32: u32 = 0;
pub(crate) const Q8_0: u32 = 8;

pub(crate) fn entry(key: &str, kind: u32, value: impl Into<Vec<u8>>) -> Entry {
    Entry { key: key.into(), key_len: None, kind, value: value.into() }
}

pub(crate) fn tensor(name: &str, kind: u32, extents: &[u64], bytes: usize) -> Tensor {
    Tensor {
        name: name.into(),
        name_len: None,
        dimensions: None,
        extents: extents.to_vec(),
        kind,
        offset: None,
        data: (0..bytes).map(|i| i as u8).collect(),
    }
}

pub(crate) fn text(value: &str) -> Vec<u8> {
    let mut bytes = (value.len() as u64).to_le_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

/// An array's kind, length and elements.
pub(crate) fn array(kind: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(elements);
    bytes
}

impl GgufBytes {
    /// A valid file with pairs and tensors of several kinds. Its last tensor needs no padding,
    /// so that every shorter file is a truncated one.
    pub(crate) fn sound() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: vec![
                entry("general.architecture", TEXT, text("tiny")),
                entry("tiny.block_count", U32, 1u32.to_le_bytes()),
                entry("tiny.flag", BOOL, [1]),
                entry("tiny.words", ARRAY, array(TEXT, 2, &[text("a"), text("bc")].concat())),
                entry("tiny.sizes", ARRAY, array(U32, 2, &[1, 0, 0, 0, 2, 0, 0, 0])),
            ],
            tensors: vec![
                tensor("norm", F32, &[5], 20),
                tensor("weight", Q8_0, &[64, 3], 3 * 2 * 34),
                tensor("last", F32, &[8, 4], 128),
            ],
            alignment: 32,
            tail: Vec::new(),
        }
    }

    /// The sound file after one change.
    pub(crate) fn with(change: impl FnOnce(&mut Self)) -> Vec<u8> {
        let mut file = Self::sound();
        change(&mut file);
        file.encode().0
    }

    /// The file's bytes, and where each of its sections ends.
    pub(crate) fn encode(&self) -> (Vec<u8>, Vec<usize>) {
        let mut out = self.magic.to_vec();
        let mut ends = vec![out.len()];
        out.extend(self.version.to_le_bytes());
        ends.push(out.len());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        ends.push(out.len());
        out.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        ends.push(out.len());
        for entry in &self.entries {
            out.extend(entry.key_len.unwrap_or(entry.key.len() as u64).to_le_bytes());
            out.extend(&entry.key);
            ends.push(out.len());
            out.extend(entry.kind.to_le_bytes());
            out.extend(&entry.value);
            ends.push(out.len());
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            out.extend(tensor.name_len.unwrap_or(tensor.name.len() as u64).to_le_bytes());
            out.extend(&tensor.name);
            ends.push(out.len());
            out.extend(tensor.dimensions.unwrap_or(tensor.extents.len() as u32).to_le_bytes());
            tensor.extents.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(offset).to_le_bytes());
            offset += tensor.data.len().next_multiple_of(self.alignment) as u64;
            ends.push(out.len());
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            ends.push(out.len());
            out.extend(&tensor.data);
            ends.push(out.len());
        }
        out.extend(&self.tail);
        (out, ends)
    }
}
