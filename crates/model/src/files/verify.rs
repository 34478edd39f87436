//! Proving that every weight of a tensor is a number.
//!
//! Damage rarely breaks a file's layout: a flipped bit in a block's scale leaves one expert of
//! one layer answering NaN, which is noticed only when that expert is chosen. Decoding costs as
//! much as reading, so this is done when asked for, and for small tensors that every token uses.

use moeba_kernels::dtype::DType;

use super::tensors::{TensorInfo, TensorSource};
use crate::error::LoadError;

/// Decodes the tensor `name` and refuses it if a weight is infinite or NaN.
///
/// # Errors
/// If there is no such tensor, it cannot be read, or a weight is no finite number; the message
/// names the tensor, and the expert where experts are stacked.
pub fn verify(source: &TensorSource, name: &str) -> Result<(), LoadError> {
    verify_read(source, name, &source.get(name)?)
}

/// As [`verify`], for a tensor that has been read already.
///
/// # Errors
/// If a weight is no finite number.
pub fn verify_read(
    source: &TensorSource,
    name: &str,
    tensor: &TensorInfo,
) -> Result<(), LoadError> {
    let Some(row) = first_bad_row(tensor.dtype, &tensor.shape, &tensor.bytes) else {
        return Ok(());
    };
    let found = match tensor.shape[..] {
        [_, rows, _] => format!("one that is not in row {} of expert {}", row % rows, row / rows),
        _ => format!("one that is not in row {row}"),
    };
    let fault = source.fault(name).expected("finite weights").found(found);
    Err(fault.hint("the file is damaged; obtain it again").damaged())
}

/// The first row, counted over all outer dimensions, that does not decode to finite numbers.
fn first_bad_row(dtype: DType, shape: &[usize], bytes: &[u8]) -> Option<usize> {
    let cols = shape.last().copied().unwrap_or(1);
    let row_bytes = dtype.row_bytes(cols)?.max(1);
    let mut values = vec![0.0; cols];
    bytes.chunks_exact(row_bytes).position(|row| {
        dtype.decode_row(row, &mut values);
        values.iter().any(|value| !value.is_finite())
    })
}
