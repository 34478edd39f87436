//! The GGUF writer: what it writes is what is read, and a half-written file never has a name.

use moeba_kernels::dtype::DType;
use moeba_model::error::LoadError;
use moeba_model::files::{
    Array, GgufHeader, GgufTensor, GgufWriter, OpenOptions, Value, WeightMemory, open, open_with,
};

use super::scratch::Scratch;

fn tensor(name: &str, dtype: DType, shape: &[usize]) -> GgufTensor {
    GgufTensor { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

/// A value of every kind the format has, and tensors whose sizes need padding.
fn header() -> GgufHeader {
    let pairs = [
        ("bool", Value::Bool(true)),
        ("u8", Value::U8(200)),
        ("i8", Value::I8(-3)),
        ("u16", Value::U16(60_000)),
        ("i16", Value::I16(-300)),
        ("u32", Value::U32(4_000_000_000)),
        ("i32", Value::I32(-70_000)),
        ("u64", Value::U64(1 << 40)),
        ("i64", Value::I64(-(1 << 40))),
        ("f32", Value::F32(1e-5)),
        ("f64", Value::F64(1e-300)),
        ("text", Value::Text("naïve 🦠".to_owned())),
        ("texts", Value::Array(Array::of_strings(["", "b", "çé"]))),
        ("u32s", Value::Array(Array::of_u32(&[1, 2, 3]))),
        ("i32s", Value::Array(Array::of_i32(&[-1, 2]))),
        ("f32s", Value::Array(Array::of_f32(&[0.5, -2.0]))),
        ("none", Value::Array(Array::of_f32(&[]))),
    ];
    GgufHeader {
        metadata: pairs.map(|(key, value)| (key.to_owned(), value)).to_vec(),
        tensors: vec![
            tensor("small", DType::F32, &[3]),
            tensor("stacked", DType::Q8_0, &[2, 3, 64]),
            tensor("large", DType::F16, &[1024, 1000]),
        ],
    }
}

fn bytes_of(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

const SIZES: [usize; 3] = [12, 2 * 3 * 2 * 34, 1024 * 1000 * 2];

fn write(path: &std::path::Path) {
    let mut writer = GgufWriter::create(path, &header()).unwrap();
    writer.write_tensor("small", &bytes_of(1, SIZES[0])).unwrap();
    writer.write_tensor("stacked", &bytes_of(2, SIZES[1])).unwrap();
    for piece in bytes_of(3, SIZES[2]).chunks(100_001) {
        writer.append(piece).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_is_written_is_read() {
    let scratch = Scratch::new();
    let path = scratch.path().join("model.gguf");
    write(&path);
    for memory in [WeightMemory::Mapped, WeightMemory::HugePages] {
        let files = open_with(&path, &OpenOptions { memory, ..OpenOptions::default() }).unwrap();
        let m = &files.metadata;
        for (key, value) in header().metadata {
            let read = m.value(&key).unwrap();
            assert_eq!(read.describe(), value.describe(), "{key}");
        }
        assert_eq!(m.read::<Vec<&str>>("texts").unwrap(), ["", "b", "çé"]);
        assert_eq!(m.read::<Vec<i32>>("i32s").unwrap(), [-1, 2]);
        assert_eq!(m.read::<Vec<f32>>("f32s").unwrap(), [0.5, -2.0]);
        assert_eq!(m.f32("f32").unwrap(), 1e-5);
        let shapes: Vec<_> = files.tensors.headers().iter().map(|t| t.shape.clone()).collect();
        assert_eq!(shapes, [vec![3], vec![2, 3, 64], vec![1024, 1000]]);
        for (i, name) in ["small", "stacked", "large"].into_iter().enumerate() {
            let bytes = files.tensors.get(name).unwrap().bytes;
            assert!(bytes[..] == bytes_of(i as u8 + 1, SIZES[i])[..], "{name}");
        }
    }
}

#[test]
fn metadata_read_from_a_file_is_written_unchanged() {
    let scratch = Scratch::new();
    let first = scratch.path().join("first.gguf");
    write(&first);
    let second = scratch.path().join("second.gguf");
    let files = open(&first).unwrap();
    let entries = files.metadata.entries().clone();
    let header = GgufHeader { metadata: entries.into_iter().collect(), tensors: Vec::new() };
    GgufWriter::create(&second, &header).unwrap().finish().unwrap();
    let copy = open(&second).unwrap();
    assert_eq!(copy.metadata.entries().len(), files.metadata.entries().len());
    assert_eq!(copy.metadata.read::<Vec<&str>>("texts").unwrap(), ["", "b", "çé"]);
}

#[test]
fn an_unfinished_file_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let path = scratch.write("model.gguf", b"the old file");
    let mut writer = GgufWriter::create(&path, &header()).unwrap();
    writer.write_tensor("small", &bytes_of(1, SIZES[0])).unwrap();
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2);
    assert!(matches!(writer.finish(), Err(LoadError::Config(_))));
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert_eq!(left.len(), 1);
    assert_eq!(std::fs::read(&path).unwrap(), b"the old file");
}

/// Tells a child process where to write. See [`a_full_disk_leaves_nothing_behind`].
const ASKED: &str = "MOEBA_TEST_CHILD_WRITES";

#[test]
fn child_writes_where_it_is_told() {
    let Some(path) = std::env::var_os(ASKED) else { return };
    let path = std::path::Path::new(&path);
    let result = GgufWriter::create(path, &header()).and_then(|mut writer| {
        for (i, name) in ["small", "stacked", "large"].into_iter().enumerate() {
            writer.write_tensor(name, &bytes_of(1, SIZES[i]))?;
        }
        writer.finish()
    });
    std::process::exit(i32::from(matches!(result, Err(LoadError::Io { .. }))));
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    // A limit on the size of files stands in for the full disk; without the signal that it
    // would send, a write is refused in the same way. The limit counts in half kilobytes.
    for halves in [0, 1, 2, 100, 2048, 4000] {
        let scratch = Scratch::new();
        let script = format!("trap '' XFSZ; ulimit -f {halves}; exec \"$@\"");
        let status = std::process::Command::new("sh")
            .args(["-c", &script, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "files::writing::child_writes_where_it_is_told"])
            .env(ASKED, scratch.path().join("model.gguf"))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.code(), Some(1), "{halves}");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "{halves}");
    }
}

#[test]
fn data_out_of_order_or_size_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path().join("model.gguf");
    let mut writer = GgufWriter::create(&path, &header()).unwrap();
    assert!(writer.write_tensor("stacked", &bytes_of(2, SIZES[1])).is_err());
    assert!(writer.write_tensor("small", &[0; 13]).is_err());
    assert!(writer.append(&[0; 13]).is_err());
    writer.append(&[0; 4]).unwrap();
    assert!(writer.write_tensor("small", &[0; 12]).is_err());
    writer.append(&[0; 8]).unwrap();
    writer.write_tensor("stacked", &bytes_of(2, SIZES[1])).unwrap();
}

#[test]
fn what_the_format_cannot_hold_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path().join("model.gguf");
    let bad = [
        GgufHeader { metadata: vec![("k".to_owned(), Value::Null)], tensors: Vec::new() },
        GgufHeader { metadata: Vec::new(), tensors: vec![tensor("t", DType::Q8_0, &[2, 33])] },
        GgufHeader { metadata: Vec::new(), tensors: vec![tensor("t", DType::F32, &[])] },
        GgufHeader { metadata: Vec::new(), tensors: vec![tensor("t", DType::F32, &[0])] },
        GgufHeader {
            metadata: Vec::new(),
            tensors: vec![tensor("t", DType::F32, &[usize::MAX; 4])],
        },
    ];
    for header in bad {
        assert!(matches!(GgufWriter::create(&path, &header), Err(LoadError::Config(_))));
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
