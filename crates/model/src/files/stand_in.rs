//! Stands in for the kernels' table of weight formats until that lands; same names, same calls.

/// The format weights are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "documented in the kernels' table, which replaces this")]
pub enum DType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q4K,
    Q5K,
    Q6K,
}

/// The part of a format's row that files need.
#[derive(Debug)]
pub struct Format {
    /// The format's name in code.
    pub dtype: DType,
    /// The name in files.
    pub name: &'static str,
    /// The type number in GGUF files.
    pub ggml_type: u32,
}

const fn row(dtype: DType, name: &'static str, ggml_type: u32) -> Format {
    Format { dtype, name, ggml_type }
}

/// Every weight format.
pub static FORMATS: [Format; 9] = [
    row(DType::F32, "F32", 0),
    row(DType::F16, "F16", 1),
    row(DType::BF16, "BF16", 30),
    row(DType::Q8_0, "Q8_0", 8),
    row(DType::Q4_0, "Q4_0", 2),
    row(DType::Q4_1, "Q4_1", 3),
    row(DType::Q4K, "Q4_K", 12),
    row(DType::Q5K, "Q5_K", 13),
    row(DType::Q6K, "Q6_K", 14),
];

impl DType {
    /// The format's row.
    pub fn format(self) -> &'static Format {
        &FORMATS[self as usize]
    }

    /// The name in files.
    pub fn name(self) -> &'static str {
        self.format().name
    }

    /// The format with this type number in GGUF files.
    pub fn from_ggml(ggml_type: u32) -> Option<Self> {
        FORMATS.iter().find(|f| f.ggml_type == ggml_type).map(|f| f.dtype)
    }

    /// The format called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        FORMATS.iter().find(|f| f.name.eq_ignore_ascii_case(name)).map(|f| f.dtype)
    }
}
