//! A weight matrix as kernels see it: borrowed bytes with a format and a shape.

use std::ops::Range;

use crate::dtype::DType;

/// Weights `[rows, cols]`, row-major in the format's own blocks, borrowed from a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// Views `bytes` as `[rows, cols]` weights of `dtype`.
    ///
    /// # Panics
    /// If `cols` is not a whole number of blocks or `bytes` has another length than the shape
    /// asks for. Loaders check both first, and name the file and the tensor when they refuse.
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        let row_bytes = dtype.row_bytes(cols);
        let row_bytes = row_bytes.unwrap_or_else(|| {
            panic!("a row of `{cols}` weights is no whole number of {} blocks", dtype.name())
        });
        let expected = row_bytes.checked_mul(rows).expect("a matrix in memory fits in usize");
        assert_eq!(bytes.len(), expected, "bytes of a {} [{rows}, {cols}] matrix", dtype.name());
        Self { dtype, rows, cols, bytes }
    }

    /// The weight format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows: the width of the product.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: the width of the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes of the whole matrix.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols).expect("checked when the matrix was made")
    }

    /// The rows `range` as a matrix of their own: one expert of a stack, one half of gate-and-up.
    ///
    /// # Panics
    /// If `range` reaches past the last row.
    #[must_use]
    pub fn slice_rows(&self, range: Range<usize>) -> Matrix<'a> {
        assert!(range.start <= range.end && range.end <= self.rows, "rows {range:?} of {self:?}");
        let row_bytes = self.row_bytes();
        let bytes = &self.bytes[range.start * row_bytes..range.end * row_bytes];
        Matrix { rows: range.len(), bytes, ..*self }
    }

    /// Decodes one row (an embedding, say) to `out` `[cols]`.
    ///
    /// # Panics
    /// If `row` is past the end or `out` is not `cols` long.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "one output per column");
        let row_bytes = self.row_bytes();
        self.dtype.decode_row(&self.bytes[row * row_bytes..(row + 1) * row_bytes], out);
    }
}
