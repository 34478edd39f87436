//! Bad sets of GGUF shards, row G14 of the bad-input catalogue.

use std::path::PathBuf;

use moeba_model::files::{open, shard_name};

use super::child::check_refused;
use super::gguf_bytes::{F32, GgufBytes, entry, tensor};
use super::scratch::Scratch;

const U16: u32 = 2;
const I32: u32 = 5;
const COUNT: u32 = 3;

/// What the shards say about themselves.
struct Claims {
    /// Of shard 1 about its number.
    number: u16,
    /// Of shard 1 about the set's size.
    count: u16,
    /// Of shard 0 about the tensors in all.
    tensors: i32,
    /// The name of shard 2's tensor.
    last: &'static str,
}

impl Default for Claims {
    fn default() -> Self {
        Self { number: 1, count: COUNT as u16, tensors: 3, last: "tensor2" }
    }
}

/// Writes a set of three shards with one tensor each; answers their paths.
fn write(scratch: &Scratch, claims: &Claims) -> Vec<PathBuf> {
    (0..COUNT as u16)
        .map(|shard| {
            let (number, count) =
                if shard == 1 { (claims.number, claims.count) } else { (shard, COUNT as u16) };
            let name = if shard == 2 { claims.last.to_owned() } else { format!("tensor{shard}") };
            let mut file = GgufBytes::sound();
            file.entries.push(entry("split.no", U16, number.to_le_bytes()));
            file.entries.push(entry("split.count", U16, count.to_le_bytes()));
            let total = claims.tensors.to_le_bytes();
            file.entries.push(entry("split.tensors.count", I32, total));
            file.tensors = vec![tensor(&name, F32, &[8], 32)];
            let name = shard_name("model", u32::from(shard), COUNT);
            scratch.write(&name, &file.encode().0)
        })
        .collect()
}

#[test]
fn any_shard_opens_the_whole_set() {
    let scratch = Scratch::new();
    for path in write(&scratch, &Claims::default()) {
        let files = open(&path).unwrap();
        assert_eq!(files.tensors.names().collect::<Vec<_>>(), ["tensor0", "tensor1", "tensor2"]);
        assert_eq!(files.tensors.get("tensor2").unwrap().bytes.len(), 32);
        assert_eq!(files.metadata.u32("split.no").unwrap(), 0);
    }
    assert_eq!(open(scratch.path()).unwrap().tensors.headers().len(), 3);
}

#[test]
fn g14_claims_that_disagree() {
    let rows = [
        ("number", Claims { number: 2, ..Claims::default() }, ["00002-of", "split.no"]),
        ("count", Claims { count: 4, ..Claims::default() }, ["00002-of", "split.count"]),
        ("foreign", Claims { tensors: 9, ..Claims::default() }, ["tensors.count", "9"]),
        ("negative", Claims { tensors: -1, ..Claims::default() }, ["tensors.count", "-1"]),
        ("duplicate", Claims { last: "tensor0", ..Claims::default() }, ["00003-of", "duplicate"]),
    ];
    for (row, claims, words) in rows {
        let scratch = Scratch::new();
        let paths = write(&scratch, &claims);
        check_refused(&format!("G14 {row}"), &paths[0], &words);
    }
}

#[test]
fn g14_shards_that_are_not_there() {
    let scratch = Scratch::new();
    let paths = write(&scratch, &Claims::default());
    std::fs::remove_file(&paths[1]).unwrap();
    check_refused("G14 missing", &paths[0], &["00002-of-00003", "no such file"]);
    check_refused("G14 missing, from the last", &paths[2], &["00002-of-00003", "no such file"]);
}

#[test]
fn g14_many_shards_and_other_names() {
    let scratch = Scratch::new();
    let claim = |count: u16| {
        GgufBytes::with(|f| {
            f.entries.push(entry("split.no", U16, 0u16.to_le_bytes()));
            f.entries.push(entry("split.count", U16, count.to_le_bytes()));
        })
    };
    let path = scratch.write(&shard_name("model", 0, 65_535), &claim(65_535));
    check_refused("G14 65535", &path, &["split.count", "65535"]);
    let path = scratch.write("renamed.gguf", &claim(3));
    check_refused("G14 renamed", &path, &["split.count", "-00001-of-00003.gguf"]);
    let path = scratch.write(&shard_name("model", 0, 2), &claim(3));
    check_refused("G14 count in the name", &path, &["split.count", "found 3"]);
    let text = GgufBytes::with(|f| {
        f.entries.push(entry("split.count", 8, super::gguf_bytes::text("3")));
    });
    let path = scratch.write(&shard_name("model", 0, 3), &text);
    check_refused("G14 count as text", &path, &["split.count", "integer"]);
}

#[test]
fn g14_a_shard_that_leads_elsewhere() {
    let (scratch, elsewhere) = (Scratch::new(), Scratch::new());
    let paths = write(&scratch, &Claims::default());
    let moved = elsewhere.path().join("other.gguf");
    std::fs::rename(&paths[1], &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &paths[1]).unwrap();
    check_refused("G14 link", &paths[0], &["00002-of-00003", "link"]);
}
