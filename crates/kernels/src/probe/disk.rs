//! How fast a disk reads what a model's experts are: pieces of megabytes, scattered over a file.
//!
//! Reads go past the page cache where the file system lets them (`O_DIRECT`), since what is cached
//! says nothing about the disk. Time and bytes are bounded, and nothing is left behind: a file that
//! has to be written for the purpose never has a name, or has lost it before it is filled.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags, fadvise, statvfs};

use crate::os::memory::Region;

/// What a disk reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiskRate {
    /// Bytes per second, all readers together.
    pub bytes_per_s: f64,
    /// How many bytes were read to find out.
    pub bytes: u64,
    /// Reads went past the page cache. If not, part of them may have come from memory.
    pub is_direct: bool,
}

/// Bytes of one read: about one matrix of an expert.
const READ_BYTES: usize = 2 << 20;
/// Reads under way at once: a solid-state disk needs several to show what it can do.
const READERS: usize = 4;
/// Neither more bytes nor more time than these.
const BYTES_MAX: u64 = 512 << 20;
const TIME_MAX: Duration = Duration::from_millis(1500);
/// Bytes written where there is no file to read, time spent on it, and bytes between looks at the
/// clock, for which a disk cannot be hurried.
const WRITTEN_BYTES: u64 = if cfg!(test) { 8 << 20 } else { 64 << 20 };
const WRITING_TIME_MAX: Duration = Duration::from_secs(2);
const WRITTEN_AT_ONCE: u64 = 4 << 20;
/// A disk with less room than this is left alone.
const FREE_BYTES_MIN: u64 = 1 << 30;
/// Pieces are read in steps of this many; a prime, so that all have their turn.
const STRIDE: u64 = 7919;

/// Bytes that may still be written to the file system `dir` lies on.
///
/// # Errors
/// What the operating system answers.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let about = statvfs(dir)?;
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Reads pieces of the file at `path`; a second and a half at most.
///
/// # Errors
/// If it cannot be read, or is empty.
pub fn of_file(path: &Path) -> io::Result<DiskRate> {
    let direct =
        OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path);
    match direct {
        Ok(file) => read(&file, true),
        // The file system knows no such reads, or a container forbids them.
        Err(_) => read(&File::open(path)?, false),
    }
}

/// Writes a nameless file to the directory `dir` and reads it; four seconds at most. What was just
/// written may read faster than what has lain there for long.
///
/// # Errors
/// If the directory cannot be written to, or its disk is nearly full.
pub fn of_directory(dir: &Path) -> io::Result<DiskRate> {
    if free_bytes(dir)? < FREE_BYTES_MIN {
        let message = "less than 1 GiB is free, so nothing was written to measure";
        return Err(io::Error::new(io::ErrorKind::StorageFull, message));
    }
    let direct = nameless(dir, OFlags::DIRECT).map(|file| (file, true));
    let (file, is_direct) =
        direct.or_else(|_| nameless(dir, OFlags::empty()).map(|file| (file, false)))?;
    fill(&file)?;
    read(&file, is_direct)
}

/// A file in `dir` without a name, to write and read.
fn nameless(dir: &Path, flags: OFlags) -> io::Result<File> {
    let flag_bits = |flags: OFlags| flags.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let never_named = options.custom_flags(flag_bits(flags | OFlags::TMPFILE)).open(dir);
    never_named.or_else(|_| {
        let path = dir.join(format!(".moeba-probe.{}", std::process::id()));
        let file = options.custom_flags(flag_bits(flags)).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        Ok(file)
    })
}

/// Fills a new file with noise, which no file system or disk can shorten.
fn fill(mut file: &File) -> io::Result<()> {
    let mut piece = Region::anonymous(READ_BYTES)?;
    let (mut state, start) = (0x9e37_79b9_7f4a_7c15_u64, Instant::now());
    for written in 0..WRITTEN_BYTES / READ_BYTES as u64 {
        for bytes in piece.bytes_mut().as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *bytes = state.to_ne_bytes();
        }
        file.write_all(&piece)?;
        if written % (WRITTEN_AT_ONCE / READ_BYTES as u64) == 1 {
            file.sync_data()?;
            if start.elapsed() > WRITING_TIME_MAX {
                break;
            }
        }
    }
    file.sync_data()
}

/// Reads scattered pieces of `file` until all are read, or the bounds are reached.
fn read(file: &File, is_direct: bool) -> io::Result<DiskRate> {
    let len = file.metadata()?.len();
    if !is_direct {
        // A wish: pages that others use, or that are not written yet, stay.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
    }
    let pieces = len.div_ceil(READ_BYTES as u64);
    let wanted = pieces.min(BYTES_MAX / READ_BYTES as u64);
    let (next, start) = (AtomicU64::new(0), Instant::now());
    let reader = || -> io::Result<u64> {
        let (mut buffer, mut bytes) = (Region::anonymous(READ_BYTES)?, 0);
        loop {
            let turn = next.fetch_add(1, Ordering::Relaxed);
            if turn >= wanted || start.elapsed() > TIME_MAX {
                return Ok(bytes);
            }
            let offset = turn * STRIDE % pieces * READ_BYTES as u64;
            bytes += file.read_at(buffer.bytes_mut(), offset)? as u64;
        }
    };
    let bytes = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
        let join = |reader: thread::ScopedJoinHandle<'_, io::Result<u64>>| {
            reader.join().expect("reading bytes does not panic")
        };
        readers.into_iter().map(join).sum::<io::Result<u64>>()
    })?;
    if bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(DiskRate { bytes_per_s: bytes as f64 / start.elapsed().as_secs_f64(), bytes, is_direct })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("moeba-disk-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_file_is_read_once_whole_if_it_is_small() {
        let dir = scratch("file");
        let path = dir.join("model");
        fs::write(&path, vec![1; 3 * READ_BYTES + 5]).unwrap();
        let rate = of_file(&path).unwrap();
        assert_eq!(rate.bytes, 3 * READ_BYTES as u64 + 5);
        assert!(rate.bytes_per_s > 0.0, "{rate:?}");
        fs::write(&path, []).unwrap();
        assert_eq!(of_file(&path).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(of_file(&dir.join("none")).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nothing_is_left_in_a_directory() {
        let dir = scratch("directory");
        match of_directory(&dir) {
            Ok(rate) => assert!(rate.bytes > 0 && rate.bytes <= WRITTEN_BYTES, "{rate:?}"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}"),
        }
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(&dir).unwrap();
    }
}
