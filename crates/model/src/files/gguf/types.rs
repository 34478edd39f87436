//! The tensor types a GGUF file can name: enough to check any file's layout.
//!
//! The kernels read most of them. The others are listed so that a file using them is described
//! correctly and refused by name; their sizes follow the ggml type table.

use moeba_kernels::dtype::DType;

use super::super::tensors::StoredType;

/// One tensor type of the container.
pub(super) struct GgmlType {
    pub(super) stored: StoredType,
    /// Elements of one block.
    pub(super) block_len: u64,
    /// Bytes of one block.
    pub(super) block_bytes: u64,
}

impl GgmlType {
    /// The type numbered `id`; `None` for numbers never given out or withdrawn.
    pub(super) fn find(id: u32) -> Option<Self> {
        DType::from_ggml(id).map(Self::of).or_else(|| {
            let &(_, name, block_len, block_bytes) = OTHERS.iter().find(|row| row.0 == id)?;
            Some(Self { stored: StoredType::Other(name), block_len, block_bytes })
        })
    }

    /// The type of a format that the kernels read.
    fn of(dtype: DType) -> Self {
        let format = dtype.format();
        let [block_len, block_bytes] =
            [format.block_len, format.block_bytes].map(|size| size as u64);
        Self { stored: StoredType::Known(dtype), block_len, block_bytes }
    }
}

/// Number, name, elements and bytes of a block of those the kernels do not read. 4, 5, 31 to 33 and
/// 36 to 38 were withdrawn.
static OTHERS: [(u32, &str, u64, u64); 8] = [
    (9, "Q8_1", 32, 36),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];
