//! One output, many writers: a slice that workers split among themselves.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice whose parts several threads write at once, each its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disjoint<'a, T> {
    first: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is a `&mut [T]` in pieces; whoever takes a piece promises that nobody else has it.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; shared access hands out only pieces promised to be disjoint.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for as long as pieces of it are written.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { first: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The same from a pointer.
    ///
    /// # Safety
    /// `slice` is valid for reads and writes for `'a`, and nothing else touches it meanwhile
    /// except through pieces that stay disjoint.
    pub(crate) unsafe fn from_raw(slice: *mut [T]) -> Self {
        Self { first: slice.cast(), len: slice.len(), slice: PhantomData }
    }

    /// The piece `range`.
    ///
    /// # Safety
    /// No other live piece overlaps `range`, on this thread or another.
    #[inline(always)]
    pub(crate) unsafe fn piece(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "a piece outside its slice");
        // SAFETY: the range lies in the slice (checked) and overlaps no other piece (promised).
        unsafe { std::slice::from_raw_parts_mut(self.first.add(range.start), range.len()) }
    }
}
