//! How unpacking reads weights: the same few bytes of many rows at once.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

use crate::arch;
use crate::simd::Simd;
use crate::tensor::Matrix;

/// The same block of `LANES` consecutive rows, still as bytes.
pub(crate) struct BlockRows<'a, S> {
    s: S,
    first: *const u8,
    stride: usize,
    block_bytes: usize,
    ahead: &'a LookAhead,
    bytes: PhantomData<&'a [u8]>,
}

impl<'a, S: Simd> BlockRows<'a, S> {
    /// Row `i`'s block of `block_bytes` starts `offset + i * stride` bytes into `bytes`.
    #[inline(always)]
    pub(crate) fn new(
        s: S,
        bytes: &'a [u8],
        offset: usize,
        (stride, block_bytes): (usize, usize),
        ahead: &'a LookAhead,
    ) -> Self {
        // Gathers add offsets of 32 bits, signed, to the first row's address.
        assert!(stride <= i32::MAX as usize / 15, "rows too far apart for one gather");
        let end = offset + (S::LANES - 1) * stride + block_bytes;
        assert!(end <= bytes.len(), "a panel reaches past its matrix");
        // SAFETY: `offset <= end <= len`, so the pointer stays within the slice.
        let first = unsafe { bytes.as_ptr().add(offset) };
        Self { s, first, stride, block_bytes, ahead, bytes: PhantomData }
    }

    /// Bytes `offset..offset + 16` of the block, as four words of every row.
    #[inline(always)]
    pub(crate) fn columns(&self, offset: usize) -> [S::U; 4] {
        assert!(offset + 16 <= self.block_bytes, "columns past the end of the block");
        self.ahead.request();
        // SAFETY: `new` checked that every row has `block_bytes`, and the assert that these 16
        // bytes are among them.
        unsafe { self.s.columns(self.first.add(offset), self.stride) }
    }

    /// The whole block of row `i`.
    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> &[u8] {
        assert!(i < S::LANES, "a row past the end of the panel");
        // About as many requests as a block of this size has reads of 16 bytes.
        if i.is_multiple_of(4) {
            self.ahead.request();
        }
        // SAFETY: `new` checked that every row has `block_bytes`, and the bytes are borrowed for
        // as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.first.add(i * self.stride), self.block_bytes) }
    }

    /// Bytes `offset..offset + 4` of the block, as one word of every row.
    #[inline(always)]
    pub(crate) fn column(&self, offset: usize) -> S::U {
        assert!(offset + 4 <= self.block_bytes, "a column past the end of the block");
        // SAFETY: as in `columns`, with 4 bytes.
        unsafe { self.s.column(self.first.add(offset), self.stride) }
    }
}

/// Lines still to be requested from memory for later rows, a few with every read of these: all at
/// once they would fill the processor's line buffers and stall the reads behind them.
///
/// They are requested as [`STREAMS`] runs of consecutive lines side by side. Memory hands out
/// neighbouring lines fastest; one run alone leaves it idle wherever a page ends.
pub(crate) struct LookAhead {
    next: Cell<*const u8>,
    end: *const u8,
    apart: usize,
}

/// Runs of lines that are requested side by side.
const STREAMS: usize = 4;

impl LookAhead {
    /// What to request while `part` of the bytes of each of `rows` is read: its share of as many
    /// rows behind them. Those lie in memory one after the other and are requested in that order,
    /// however short they are. Behind a unit they may be another thread's, who then finds them
    /// nearer than memory; past the matrix there is nothing.
    #[inline(always)]
    pub(crate) fn behind(weight: &Matrix<'_>, rows: &Range<usize>, part: Range<usize>) -> Self {
        if rows.end + rows.len() > weight.rows() {
            return Self::nothing();
        }
        let (share, stride) = (rows.len() / STREAMS, weight.row_bytes());
        let first = rows.end * stride + share * part.start;
        let bytes = weight.bytes()[first..][..share * part.len()].as_ptr_range();
        Self { next: Cell::new(bytes.start), end: bytes.end, apart: share * stride }
    }

    /// Requests nothing.
    pub(crate) fn nothing() -> Self {
        let bytes = [].as_ptr_range();
        Self { next: Cell::new(bytes.start), end: bytes.end, apart: 0 }
    }

    /// Requests the next line of every run: 256 bytes, as much as 16 rows' next 16 bytes.
    #[inline(always)]
    pub(crate) fn request(&self) {
        let line = self.next.get();
        if line < self.end {
            for run in 0..STREAMS {
                arch::prefetch(line.wrapping_add(run * self.apart));
            }
            self.next.set(line.wrapping_add(64));
        }
    }
}
