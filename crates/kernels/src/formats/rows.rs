//! How unpacking reads weights: the same few bytes of many rows at once.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::arch;
use crate::simd::Simd;

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

/// Lines still to be requested from memory for a later panel, a few with every read of this one:
/// all at once they would fill the processor's line buffers and stall the reads behind them.
pub(crate) struct LookAhead {
    next: Cell<*const u8>,
    /// No row is requested that starts here or later.
    end: *const u8,
    stride: usize,
    rows_per_read: usize,
    lines: usize,
}

impl LookAhead {
    /// Requests `lines` cache lines of each row, `rows_per_read` rows at a time; the rows start
    /// `first` bytes into `bytes` and are `stride` apart. Nothing past `bytes` is requested: it
    /// may be another tensor's, or nobody's.
    #[inline(always)]
    pub(crate) fn new(
        bytes: &[u8],
        first: usize,
        stride: usize,
        (rows_per_read, lines): (usize, usize),
    ) -> Self {
        let next = Cell::new(bytes.as_ptr().wrapping_add(first));
        let beside_first = 64 * lines.saturating_sub(1);
        let end = bytes.as_ptr().wrapping_add(bytes.len().saturating_sub(beside_first));
        Self { next, end, stride, rows_per_read, lines }
    }

    /// Requests nothing.
    pub(crate) fn nothing() -> Self {
        Self::new(&[], 0, 0, (0, 0))
    }

    /// Requests the next rows.
    #[inline(always)]
    pub(crate) fn request(&self) {
        for _ in 0..self.rows_per_read {
            let row = self.next.get();
            if row >= self.end {
                return;
            }
            for line in 0..self.lines {
                arch::prefetch(row.wrapping_add(64 * line));
            }
            self.next.set(row.wrapping_add(self.stride));
        }
    }
}
