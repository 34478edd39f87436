//! The bounds a model file has to stay within, whatever it claims.
//!
//! They are far above anything published and far below what could hurt. Every one is checked
//! before memory is set aside for the claim.

/// Upper bounds on what a file may claim. All of them can be raised by whoever trusts the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one string: key, value or tensor name.
    pub string_bytes: u64,
    /// Elements of one metadata array.
    pub array_elements: u64,
    /// Arrays within arrays, the outermost counted.
    pub array_depth: u32,
    /// Key/value pairs of one file.
    pub metadata_entries: u64,
    /// Tensors of one file.
    pub tensors: u64,
    /// Alignment of the data section, in bytes.
    pub alignment: u64,
    /// Files that one model may be split into.
    pub shards: u32,
    /// Bytes of a safetensors header, and of a shard index.
    pub header_bytes: u64,
    /// Bytes of `config.json` and its like.
    pub config_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            string_bytes: 16 << 20,
            array_elements: 16 << 20,
            array_depth: 4,
            metadata_entries: 1 << 20,
            tensors: 1 << 20,
            alignment: 64 << 10,
            shards: 4096,
            header_bytes: 100_000_000,
            config_bytes: 4 << 20,
        }
    }
}
