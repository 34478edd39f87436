//! Writing a GGUF file, tensor by tensor, without ever leaving half of one behind.
//!
//! The file grows under another name beside its destination and is renamed when it is complete
//! and on disk, so the final name always means a whole file. The header is written first, which
//! is possible because all sizes follow from types and shapes; the data then streams through, so
//! a model of any size is written in little memory. What takes hours can be resumed.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use moeba_kernels::dtype::DType;

use super::super::checked;
use super::super::value::{Array, Kind, Value};
use super::journal::{Hash, Journal};
use super::{ALIGNMENT_DEFAULT, DIMENSIONS_MAX, MAGIC, types};
use crate::error::{Fault, LoadError};

/// One tensor of a file to be written.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// Everything that precedes the data of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct GgufHeader {
    /// Key/value pairs, in the order they are written. JSON lists, objects and nulls have no
    /// place in the format.
    pub metadata: Vec<(String, Value)>,
    /// The tensors, in the order their data will be written.
    pub tensors: Vec<GgufTensor>,
}

/// A GGUF file being written. Dropped before [`GgufWriter::finish`], one that was begun with
/// [`GgufWriter::create`] leaves nothing behind, and one begun with [`GgufWriter::resume`] what
/// the next attempt goes on from.
pub struct GgufWriter {
    out: BufWriter<File>,
    temporary: PathBuf,
    path: PathBuf,
    /// Name and size in bytes of each tensor, in order.
    tensors: Vec<(String, u64)>,
    /// The tensor being written, and how many of its bytes are.
    current: usize,
    written: u64,
    finished: bool,
    /// What is finished, and the hash of the current tensor so far; of files that can be resumed.
    journal: Option<(Journal, Hash)>,
    discarded: bool,
}

impl GgufWriter {
    /// Starts the file and writes its header. An existing file at `path` stays until `finish`.
    ///
    /// # Errors
    /// If a value or shape cannot be expressed, or the disk refuses.
    pub fn create(path: &Path, header: &GgufHeader) -> Result<Self, LoadError> {
        let sizes = tensor_sizes(path, header)?;
        let encoded = encode_header(path, header, &sizes)?;
        let temporary = temporary_path(path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|e| LoadError::io("create", &temporary, e))?;
        let mut writer = Self::new(path, (file, temporary), sizes);
        writer.put(&encoded)?;
        Ok(writer)
    }

    /// A writer to `temporary`, which is open and is to become `path`.
    fn new(path: &Path, (file, temporary): (File, PathBuf), tensors: Vec<(String, u64)>) -> Self {
        Self {
            out: BufWriter::with_capacity(1 << 20, file),
            temporary,
            path: path.to_owned(),
            tensors,
            current: 0,
            written: 0,
            finished: false,
            journal: None,
            discarded: false,
        }
    }

    /// Starts the file, or goes on with what an earlier attempt at the same file has left.
    ///
    /// The file grows as `NAME.partial` beside its destination, with a journal. Tensors an earlier
    /// attempt finished are read back and kept if they are as it left them; the next to write is
    /// [`GgufWriter::num_written`]. `key` stands for everything the data depends on beside the
    /// header: an attempt with another key or header is thrown away.
    ///
    /// # Errors
    /// If a value or shape cannot be expressed, another process writes this file, or the disk
    /// refuses.
    pub fn resume(path: &Path, header: &GgufHeader, key: u64) -> Result<Self, LoadError> {
        let tensors = tensor_sizes(path, header)?;
        let encoded = encode_header(path, header, &tensors)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!("{name}.partial"));
        let refused = |error| LoadError::io("write", &temporary, error);
        let mut file = open_alone(&temporary).map_err(refused)?;
        let mut hash = Hash::default();
        hash.update(&key.to_le_bytes());
        hash.update(&encoded);
        let key = hash.finish();
        let padded = |bytes: u64| bytes + padding(bytes).len() as u64;
        let sizes: Vec<(u64, u64)> = tensors.iter().map(|t| (t.1, padded(t.1))).collect();
        let start = encoded.len() as u64;
        let journal = Journal::path_of(&temporary);
        let done = Journal::finished(&mut file, &journal, key, start, &sizes);
        let discarded = done.is_none();
        let done = done.unwrap_or_default();
        let end: u64 = start + sizes[..done.len()].iter().map(|size| size.1).sum::<u64>();
        // The last one's padding may not have been written. Growing a file fills it with zeros.
        let kept = if done.is_empty() { 0 } else { end };
        file.set_len(kept).and_then(|()| file.seek(SeekFrom::Start(kept))).map_err(refused)?;
        let finished = sizes.iter().map(|size| size.0).zip(done.iter().copied());
        let journal = Journal::start(&temporary, key, finished)
            .map_err(|error| LoadError::io("write", &journal, error))?;
        let mut writer = Self::new(path, (file, temporary), tensors);
        writer.current = done.len();
        writer.journal = Some((journal, Hash::default()));
        writer.discarded = discarded;
        if done.is_empty() {
            writer.put(&encoded)?;
        }
        Ok(writer)
    }

    /// How many tensors are finished; the next to write has this number.
    pub fn num_written(&self) -> usize {
        self.current
    }

    /// Whether an earlier attempt at another file was thrown away.
    pub fn has_discarded(&self) -> bool {
        self.discarded
    }

    /// Writes the whole of the next tensor, which must be `name`.
    ///
    /// # Errors
    /// If another tensor is next, the size is wrong, or the disk refuses.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), LoadError> {
        let next = self.tensors.get(self.current).map(|tensor| &*tensor.0);
        if next != Some(name) || self.written != 0 {
            return Err(self
                .misuse(name)
                .expected(format_args!("data of `{}` next", next.unwrap_or("no tensor")))
                .found(format_args!("data of `{name}`"))
                .config());
        }
        if self.tensors[self.current].1 != bytes.len() as u64 {
            return Err(self
                .misuse(name)
                .expected(format_args!("{} bytes", self.tensors[self.current].1))
                .found(format_args!("{} bytes", bytes.len()))
                .config());
        }
        self.append(bytes)
    }

    /// Writes the next bytes of the current tensor: for tensors made piece by piece.
    ///
    /// Padding follows by itself when the tensor is complete.
    ///
    /// # Errors
    /// If `bytes` would pass the tensor's end, or the disk refuses.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        let Some((name, size)) = self.tensors.get(self.current) else {
            return Err(self.misuse("").expected("no more data").config());
        };
        let size = *size;
        let written = checked::add(self.written, bytes.len() as u64).unwrap_or(u64::MAX);
        if written > size {
            return Err(self
                .misuse(name)
                .expected(format_args!("{size} bytes"))
                .found(format_args!("{written} bytes"))
                .config());
        }
        self.put(bytes)?;
        self.written = written;
        if let Some((_, hash)) = &mut self.journal {
            hash.update(bytes);
        }
        if written == size {
            self.put(&padding(size))?;
            self.note(size)?;
            (self.current, self.written) = (self.current + 1, 0);
        }
        Ok(())
    }

    /// Notes the end of the current tensor in the journal.
    fn note(&mut self, size: u64) -> Result<(), LoadError> {
        let Some((journal, hash)) = &mut self.journal else { return Ok(()) };
        let hash = std::mem::take(hash).finish();
        // The journal may claim less than there is, so the data goes first.
        self.out.flush().map_err(|e| LoadError::io("write", &self.temporary, e))?;
        journal.note(size, hash).map_err(|e| LoadError::io("write", journal.path(), e))
    }

    /// Completes the file: everything to the disk, then the final name.
    ///
    /// # Errors
    /// If a tensor's data is still missing, or the disk refuses.
    pub fn finish(mut self) -> Result<(), LoadError> {
        if let Some((name, size)) = self.tensors.get(self.current) {
            return Err(self
                .misuse(name)
                .expected(format_args!("{size} bytes"))
                .found(format_args!("{} bytes", self.written))
                .config());
        }
        let refused = |e| LoadError::io("write", &self.temporary, e);
        self.out.flush().map_err(refused)?;
        self.out.get_ref().sync_all().map_err(|e| LoadError::io("write", &self.temporary, e))?;
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|e| LoadError::io("rename to", &self.path, e))?;
        self.finished = true;
        if let Some((journal, _)) = &self.journal {
            drop(std::fs::remove_file(journal.path()));
        }
        // The new name must survive a power cut as well. Not every file system can do this, and
        // none of them can undo the rename.
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Ok(directory) = File::open(directory.unwrap_or(Path::new("."))) {
            drop(directory.sync_all());
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), LoadError> {
        self.out.write_all(bytes).map_err(|e| LoadError::io("write", &self.temporary, e))
    }

    fn misuse(&self, tensor: &str) -> Fault {
        Fault::new(&self.path).tensor(tensor)
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        if !self.finished && self.journal.is_none() {
            drop(std::fs::remove_file(&self.temporary));
        }
    }
}

/// Opens or makes a file for this process alone.
fn open_alone(path: &Path) -> io::Result<File> {
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.is_file()
    {
        return Err(io::Error::other("there is something else under this name"));
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Err(std::fs::TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::WouldBlock, "another process is writing it"))
        }
        // Some file systems have no locks; there the user has to know.
        Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(file),
    }
}

/// A name beside `path` that no other writer uses: process number and a count within it.
fn temporary_path(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{name}.{}-{number}.part", std::process::id()))
}

/// Name and bytes of each tensor.
fn tensor_sizes(path: &Path, header: &GgufHeader) -> Result<Vec<(String, u64)>, LoadError> {
    let size = |tensor: &GgufTensor| Ok((tensor.name.clone(), tensor_bytes(path, tensor)?));
    header.tensors.iter().map(size).collect()
}

/// The size of `tensor` in bytes.
fn tensor_bytes(path: &Path, tensor: &GgufTensor) -> Result<u64, LoadError> {
    let ggml_type = tensor.dtype.format().ggml_type.and_then(types::GgmlType::find);
    let Some(row) = ggml_type else {
        let fault = Fault::new(path).tensor(&tensor.name).expected("a type that GGUF has");
        return Err(fault.found(tensor.dtype.name()).config());
    };
    let extents: Vec<u64> = tensor.shape.iter().map(|&extent| extent as u64).collect();
    let dimensions = 1..=DIMENSIONS_MAX as usize;
    let whole_rows = extents.last().is_some_and(|&cols| cols.is_multiple_of(row.block_len));
    let bytes = checked::product(&extents)
        .filter(|&n| n > 0 && dimensions.contains(&extents.len()) && whole_rows)
        .and_then(|n| checked::block_bytes(n, row.block_len, row.block_bytes));
    bytes.ok_or_else(|| {
        Fault::new(path)
            .tensor(&tensor.name)
            .expected(format_args!("1 to 4 dimensions in rows of whole {} blocks", tensor.dtype))
            .found(format_args!("shape {:?}", tensor.shape))
            .config()
    })
}

fn padding(size: u64) -> Vec<u8> {
    vec![0; (size.wrapping_neg() % ALIGNMENT_DEFAULT) as usize]
}

/// Magic, counts, pairs, descriptions and the padding up to the data.
fn encode_header(
    path: &Path,
    header: &GgufHeader,
    tensors: &[(String, u64)],
) -> Result<Vec<u8>, LoadError> {
    // The writer always aligns by the default, so an alignment copied from elsewhere is left out.
    let pairs: Vec<_> =
        header.metadata.iter().filter(|pair| pair.0 != "general.alignment").collect();
    let mut out = Vec::new();
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&(pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        put_text(&mut out, key);
        put_value(&mut out, value).ok_or_else(|| {
            Fault::new(path)
                .key(key)
                .expected("a scalar, a string, or an array in GGUF encoding")
                .found(value.describe())
                .config()
        })?;
    }
    let mut offset = 0u64;
    for (tensor, (name, bytes)) in header.tensors.iter().zip(tensors) {
        put_text(&mut out, name);
        out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
        for &extent in tensor.shape.iter().rev() {
            out.extend_from_slice(&(extent as u64).to_le_bytes());
        }
        let ggml_type = tensor.dtype.format().ggml_type.expect("checked with the size");
        out.extend_from_slice(&ggml_type.to_le_bytes());
        out.extend_from_slice(&offset.to_le_bytes());
        offset = checked::add(offset, *bytes)
            .and_then(|end| checked::round_up(end, ALIGNMENT_DEFAULT))
            .ok_or_else(|| Fault::new(path).tensor(name).expected("a file below 2^64").config())?;
    }
    out.extend(padding(out.len() as u64));
    Ok(out)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Writes type and value; `None` where the format has no place for it.
fn put_value(out: &mut Vec<u8>, value: &Value) -> Option<()> {
    let mut put = |kind: Kind, bytes: &[u8]| {
        out.extend_from_slice(&kind.id().to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match value {
        Value::Null | Value::Object(_) | Value::Array(Array::List(_)) => return None,
        Value::Bool(v) => put(Kind::Bool, &[u8::from(*v)]),
        Value::U8(v) => put(Kind::U8, &v.to_le_bytes()),
        Value::I8(v) => put(Kind::I8, &v.to_le_bytes()),
        Value::U16(v) => put(Kind::U16, &v.to_le_bytes()),
        Value::I16(v) => put(Kind::I16, &v.to_le_bytes()),
        Value::U32(v) => put(Kind::U32, &v.to_le_bytes()),
        Value::I32(v) => put(Kind::I32, &v.to_le_bytes()),
        Value::U64(v) => put(Kind::U64, &v.to_le_bytes()),
        Value::I64(v) => put(Kind::I64, &v.to_le_bytes()),
        Value::F32(v) => put(Kind::F32, &v.to_le_bytes()),
        Value::F64(v) => put(Kind::F64, &v.to_le_bytes()),
        Value::Text(v) => {
            put(Kind::Text, &[]);
            put_text(out, v);
        }
        Value::Array(Array::Packed { kind, count, bytes }) => {
            put(Kind::Array, &kind.id().to_le_bytes());
            out.extend_from_slice(&(*count as u64).to_le_bytes());
            out.extend_from_slice(bytes);
        }
    }
    Some(())
}
