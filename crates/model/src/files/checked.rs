//! All arithmetic on numbers that come out of a file.
//!
//! Sizes in model files are hostile 64-bit numbers, and a wrapped product has been the field's
//! most repeated vulnerability. So no `+`, `*` or rounding on such a number is written anywhere
//! else below `files/`: every operation answers `None` instead of wrapping, in every build.

use std::ops::Range;

/// `a + b`.
pub(super) fn add(a: u64, b: u64) -> Option<u64> {
    a.checked_add(b)
}

/// `a * b`.
pub(super) fn mul(a: u64, b: u64) -> Option<u64> {
    a.checked_mul(b)
}

/// Rounds `value` up to a multiple of `step`, which must not be zero.
pub(super) fn round_up(value: u64, step: u64) -> Option<u64> {
    value.checked_next_multiple_of(step)
}

/// The product of all of `factors`; 1 where there are none.
///
/// A zero anywhere gives zero even if the other factors would overflow.
pub(super) fn product(factors: &[u64]) -> Option<u64> {
    if factors.contains(&0) {
        return Some(0);
    }
    factors.iter().try_fold(1u64, |acc, &factor| mul(acc, factor))
}

/// Bytes that `elements` take in a format of `block_bytes` per `block_len` elements.
///
/// `None` on overflow, or where `elements` is no whole number of blocks.
pub(super) fn block_bytes(elements: u64, block_len: u64, block_bytes: u64) -> Option<u64> {
    if !elements.is_multiple_of(block_len) {
        return None;
    }
    mul(elements / block_len, block_bytes)
}

/// Bytes that `elements` of `bits` each take; `None` on overflow or a broken last byte.
pub(super) fn bit_bytes(elements: u64, bits: u64) -> Option<u64> {
    let bits = mul(elements, bits)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The range of `len` elements from `start`, for slicing memory; `None` where it does not fit.
pub(super) fn range(start: u64, len: u64) -> Option<Range<usize>> {
    let end = usize::try_from(add(start, len)?).ok()?;
    Some(usize::try_from(start).ok()?..end)
}
