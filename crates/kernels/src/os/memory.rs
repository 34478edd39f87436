//! Memory for weights and scratch: file maps, huge pages, and cheap shared views of both.
//!
//! Weights are read once per token, front to back, at the speed of memory: 4 KiB pages would spend
//! a good part of that on address translation, so owned memory asks for 2 MiB pages. A file map
//! costs nothing to open but cannot have huge pages on common file systems; [`Region::read_file`]
//! copies the file (all cores at once) into memory that can.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use memmap2::{Advice, Mmap, MmapMut, MmapOptions};

use crate::disjoint::Disjoint;

/// Bytes per read call: large enough to hide the call, small enough to spread over threads.
const READ_CHUNK: usize = 4 << 20;
/// More readers than this gain nothing from one file.
const READERS_MAX: usize = 16;

/// One stretch of memory: a read-only file map, or memory of our own.
#[derive(Debug)]
pub struct Region(Backing);

#[derive(Debug)]
enum Backing {
    File(Mmap),
    Anonymous { map: MmapMut, len: usize },
}

impl Region {
    /// Maps the whole file read-only. Pages are read when first touched.
    ///
    /// The file must not be truncated while mapped: touching a page beyond its end then ends the
    /// process with `SIGBUS`, as for every program that maps files.
    ///
    /// # Errors
    /// Whatever the operating system answers, for example for a directory or a pipe.
    pub fn map_file(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only and private to this process. Another process that writes to
        // the file can change the bytes we see; they are plain numbers, valid in every state.
        let map = unsafe { Mmap::map(file)? };
        Ok(Self(Backing::File(map)))
    }

    /// `len` zero bytes, page-aligned, with huge pages asked for. Pages are real memory only
    /// once they are touched.
    ///
    /// # Errors
    /// When the address space or memory limit does not allow it.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len.max(1)).map_anon()?;
        // A kernel without huge pages refuses; ordinary pages are correct too.
        let _ = map.advise(Advice::HugePage);
        Ok(Self(Backing::Anonymous { map, len }))
    }

    /// `len` bytes that read as zero and are counted by nobody as long as only a few of them are
    /// read: room that is spoken of, not used.
    ///
    /// # Errors
    /// When the address space does not allow it.
    pub fn reserved(len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len.max(1)).no_reserve_swap().map_anon()?;
        Ok(Self(Backing::Anonymous { map, len }))
    }

    /// Reads `range` (bytes of the file) into huge pages, by several threads at once.
    ///
    /// # Errors
    /// As [`Region::anonymous`]; `UnexpectedEof` if the file ends before `range`; any read error.
    pub fn read_file(file: &File, range: Range<u64>) -> io::Result<Self> {
        let len = range.end.checked_sub(range.start).and_then(|n| usize::try_from(n).ok());
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        if file.metadata()?.len() < range.end {
            // Found before gigabytes are reserved for a corrupt header.
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut region = Self::anonymous(len)?;
        read_parallel(file, range.start, region.bytes_mut())?;
        Ok(region)
    }

    /// The bytes, for writing. Only before the region is shared.
    ///
    /// # Panics
    /// If the region is a file map.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Backing::Anonymous { map, len } => &mut map[..*len],
            Backing::File(_) => panic!("a file map is read-only"),
        }
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Backing::File(map) => map,
            Backing::Anonymous { map, len } => &map[..*len],
        }
    }
}

/// Fills `out` from `offset` of the file; threads claim chunks.
fn read_parallel(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let chunks = out.len().div_ceil(READ_CHUNK);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(READERS_MAX).min(chunks);
    let len = out.len();
    let next = AtomicUsize::new(0);
    let out = Disjoint::new(out);
    let read_claimed = || -> io::Result<()> {
        loop {
            let start = next.fetch_add(1, Ordering::Relaxed).saturating_mul(READ_CHUNK);
            if start >= len {
                return Ok(());
            }
            let size = READ_CHUNK.min(len - start);
            // SAFETY: chunk indices are claimed once each, so pieces do not overlap.
            let chunk = unsafe { out.piece(start..start + size) };
            file.read_exact_at(chunk, offset + start as u64)?;
        }
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (1..threads).map(|_| scope.spawn(read_claimed)).collect();
        let mut result = read_claimed();
        for reader in readers {
            result = result.and(reader.join().expect("reading bytes does not panic"));
        }
        result
    })
}

/// A shared view of part of a [`Region`]. Cloning and slicing copy no bytes; the region lives as
/// long as any view of it.
#[derive(Clone)]
pub struct Bytes {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Bytes {
    /// A view of the whole region.
    pub fn new(region: Arc<Region>) -> Self {
        let len = region.len();
        Self { region, offset: 0, len }
    }

    /// A view of `range`, counted in bytes from the start of this view.
    ///
    /// # Panics
    /// If `range` does not lie inside the view.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "slice {range:?} of {} bytes",
            self.len
        );
        Self {
            region: Arc::clone(&self.region),
            offset: self.offset + range.start,
            len: range.end - range.start,
        }
    }

    /// Where this view starts in its region, in bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.region[self.offset..self.offset + self.len]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({}..{})", self.offset, self.offset + self.len)
    }
}

impl From<Region> for Bytes {
    fn from(region: Region) -> Self {
        Self::new(Arc::new(region))
    }
}

impl TryFrom<&[u8]> for Bytes {
    type Error = io::Error;

    /// Copies `bytes` into a region of their own.
    fn try_from(bytes: &[u8]) -> io::Result<Self> {
        let mut region = Region::anonymous(bytes.len())?;
        region.bytes_mut().copy_from_slice(bytes);
        Ok(region.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn temp_file(name: &str, bytes: &[u8]) -> File {
        let path = std::env::temp_dir().join(format!("moeba-{}-{name}", std::process::id()));
        let mut file =
            File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all(bytes).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn read_equals_map() {
        let bytes = pattern(3 * READ_CHUNK + 777);
        let file = temp_file("read", &bytes);
        let mapped = Region::map_file(&file).unwrap();
        assert_eq!(&mapped[..], &bytes[..]);
        for range in [0..bytes.len(), 5..5, 1..READ_CHUNK + 3, 100..bytes.len()] {
            let read = Region::read_file(&file, range.start as u64..range.end as u64).unwrap();
            assert_eq!(&read[..], &bytes[range]);
        }
    }

    #[test]
    fn reading_beyond_the_end_is_an_error() {
        let file = temp_file("short", &pattern(100));
        let error = Region::read_file(&file, 50..101).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(Region::read_file(&file, 0..u64::MAX).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "exactly what a bad header can ask for")]
        let backwards = Region::read_file(&file, 9..3);
        assert!(backwards.is_err());
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = temp_file("empty", &[]);
        assert!(Region::map_file(&file).unwrap().is_empty());
        assert!(Region::anonymous(0).unwrap().is_empty());
    }

    #[test]
    fn views_share_the_region() {
        let bytes = Bytes::try_from(&pattern(1000)[..]).unwrap();
        let view = bytes.slice(100..200).slice(10..20);
        assert_eq!(&view[..], &pattern(1000)[110..120]);
        assert_eq!(view.offset(), 110);
        assert!(Arc::ptr_eq(&view.region, &bytes.region));
        drop(bytes);
        assert_eq!(view.len(), 10);
    }

    #[test]
    #[should_panic(expected = "slice 5..11 of 10 bytes")]
    fn a_view_ends_where_it_ends() {
        let _ = Bytes::try_from(&pattern(20)[..]).unwrap().slice(0..10).slice(5..11);
    }
}
