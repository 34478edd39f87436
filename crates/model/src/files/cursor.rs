//! Reading little-endian numbers and strings from a byte slice without ever leaving it.
//!
//! Each failure names the file, the offset, and how many bytes the file would have needed: that
//! is what tells a half-finished download from a damaged file.

use std::path::Path;

use super::{checked, limits::Limits};
use crate::error::{Fault, LoadError};

/// A position in a file's bytes. Reading moves it; it never passes the end.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    pub(super) file: &'a Path,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Path, bytes: &'a [u8]) -> Self {
        Self { file, bytes, position: 0 }
    }

    /// Bytes read so far, which is also the offset in the file.
    pub(super) fn position(&self) -> u64 {
        self.position as u64
    }

    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    /// A finding at the current position.
    pub(super) fn fault(&self) -> Fault {
        Fault::new(self.file).at(self.position())
    }

    /// The next `len` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], LoadError> {
        let range = checked::range(self.position(), len).filter(|r| r.end <= self.bytes.len());
        let Some(range) = range else {
            return Err(self
                .fault()
                .expected(format_args!("{len} bytes of {what}"))
                .found(format_args!(
                    "{} bytes before the end of the file ({} bytes in all)",
                    self.remaining(),
                    self.bytes.len()
                ))
                .hint("the file is cut short or damaged; obtain it again")
                .damaged());
        };
        self.position = range.end;
        Ok(&self.bytes[range])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], LoadError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns as many bytes as asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, LoadError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, LoadError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A 64-bit length followed by that many bytes, which need not be UTF-8.
    pub(super) fn length_prefixed(
        &mut self,
        limits: &Limits,
        what: &str,
    ) -> Result<&'a [u8], LoadError> {
        let len = self.u64(what)?;
        if len > limits.string_bytes {
            return Err(self
                .fault()
                .expected(format_args!("{what} of at most {} bytes", limits.string_bytes))
                .found(format_args!("a length of {len}"))
                .limit());
        }
        self.take(len, what)
    }

    /// A length-prefixed string, checked to be UTF-8.
    pub(super) fn string(&mut self, limits: &Limits, what: &str) -> Result<&'a str, LoadError> {
        let fault = self.fault();
        let bytes = self.length_prefixed(limits, what)?;
        std::str::from_utf8(bytes).map_err(|_| {
            fault
                .expected(format_args!("{what} in UTF-8"))
                .found(String::from_utf8_lossy(bytes))
                .damaged()
        })
    }

    /// Refuses a `count` of items of at least `item_bytes` each that the file cannot hold.
    ///
    /// Called before anything is allocated for the items.
    pub(super) fn check_count(
        &self,
        count: u64,
        item_bytes: u64,
        limit: u64,
        what: &str,
    ) -> Result<(), LoadError> {
        if checked::mul(count, item_bytes).is_none_or(|bytes| bytes > self.remaining()) {
            return Err(self
                .fault()
                .expected(format_args!(
                    "no more {what} than the {} bytes left could hold ({} bytes in all)",
                    self.remaining(),
                    self.bytes.len()
                ))
                .found(format_args!("a count of {count}"))
                .damaged());
        }
        if count > limit {
            return Err(self
                .fault()
                .expected(format_args!("at most {limit} {what}"))
                .found(format_args!("a count of {count}"))
                .limit());
        }
        Ok(())
    }
}
