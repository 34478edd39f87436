//! Weights are read, must be numbers, and are hashed.
//!
//! Damage rarely breaks a file's layout. A flipped bit in one block's scale is met only when that
//! expert is chosen, perhaps days later; this finds it now, and names tensor and expert. A flipped
//! bit elsewhere leaves a number: only a hash from better days can tell.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail, ensure};
use moeba_model::error::LoadError;
use moeba_model::files::{
    self, BadPlace, ModelFiles, StoredType, TensorHeader, first_bad_of, first_bad_power,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::machine;
use crate::output::{hex, print_json, size};
use crate::progress::{Bar, Progress};
use crate::settings::Settings;

/// Damaged tensors that an error lists; JSON has them all.
const LISTED_MAX: usize = 20;

/// A tensor that is not as it should be.
#[derive(Debug)]
struct Damage {
    tensor: String,
    place: BadPlace,
}

impl Damage {
    fn line(&self) -> String {
        format!("tensor `{}`, {}: not a finite number", self.tensor, self.place)
    }
}

/// How much of each tensor is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Every weight.
    All,
    /// Every weight, and a hash of every tensor.
    Hashed,
    /// Some rows of each tensor, of every expert at least one.
    Sampled,
}

/// Rows of a tensor that a sample looks at, or one of each expert if that is more.
const SAMPLED_ROWS: usize = 256;

/// What was read, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    tensors_fine: usize,
    bytes: u64,
    /// In the order of the file; one finding a tensor.
    damaged: Vec<Damage>,
    /// Tensors in formats that Moeba cannot read, nor needs.
    unread: Vec<String>,
    /// Tensors and their hashes in hexadecimal, in the order of the file, where asked for.
    pub(super) hashes: Vec<(String, String)>,
    sampled: bool,
}

impl Verified {
    /// Reads all tensors of the model at `path`. Where some are damaged, the result is told here,
    /// as JSON on stdout too if `json`.
    ///
    /// # Errors
    /// If there are no weights, they cannot be read, or some are no numbers.
    pub(crate) fn of(path: &Path, json: bool, settings: &Settings) -> Result<Self> {
        let found = Self::scan(&files::open(path)?, Depth::All, settings)?;
        if found.damaged.is_empty() {
            return Ok(found);
        }
        if json {
            print_json(&json!({ "path": path, "verified": found.to_json() }))?;
        }
        bail!("`{}` is damaged: {}", path.display(), found.complaint());
    }

    /// Reads all tensors of an opened model.
    ///
    /// # Errors
    /// If there are no weights, or they cannot be read.
    pub(super) fn scan(files: &ModelFiles, depth: Depth, settings: &Settings) -> Result<Self> {
        let path = files.path.display();
        ensure!(!files.tensors.is_empty(), "`{path}` holds no weights to verify");
        let title = match depth {
            Depth::All | Depth::Hashed => "Reading every weight",
            Depth::Sampled => "Reading some of the weights",
        };
        let total = files.tensors.total_bytes();
        let bar = Progress::new(settings.voice).bytes(title, Some(total));
        let found = Scan::new(files, depth, &bar).run(machine::threads(settings))?;
        bar.clear();
        Ok(found)
    }

    /// A sentence for each damaged tensor.
    pub(super) fn findings(&self) -> impl Iterator<Item = String> {
        self.damaged.iter().map(Damage::line)
    }

    /// One hash over the names and hashes of all tensors, in the order of their names.
    pub(super) fn fingerprint(&self) -> Option<String> {
        let mut sorted: Vec<&(String, String)> = self.hashes.iter().collect();
        sorted.sort();
        let mut hash = Sha256::new();
        for (name, own) in &sorted {
            hash.update(format!("{own}  {name}\n"));
        }
        (!sorted.is_empty()).then(|| hex(&hash.finalize()))
    }

    /// All is well, in words.
    pub(crate) fn line(&self) -> String {
        let all = format!("all weights of {} tensors are numbers", self.tensors_fine);
        let read = if self.sampled {
            format!("a sample of {}", size(self.bytes))
        } else {
            size(self.bytes)
        };
        match self.unread.len() {
            0 => format!("{all} ({read} read)"),
            n => format!("{all} ({read} read; {n} tensors in formats Moeba does not use were not)"),
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let damaged: Vec<Value> = self
            .damaged
            .iter()
            .map(|damage| {
                let BadPlace { row, expert } = damage.place;
                json!({ "tensor": damage.tensor, "expert": expert, "row": row })
            })
            .collect();
        json!({
            "tensors_fine": self.tensors_fine,
            "bytes": self.bytes,
            "damaged": damaged,
            "unread": self.unread,
            "sampled": self.sampled,
            "sha256": self.fingerprint(),
            "tensors_sha256": (!self.hashes.is_empty()).then(|| {
                let entries = self.hashes.iter();
                entries.map(|(name, hash)| (name.clone(), json!(hash))).collect::<Map<_, _>>()
            }),
        })
    }

    fn complaint(&self) -> String {
        let mut lines: Vec<String> =
            self.damaged.iter().take(LISTED_MAX).map(Damage::line).collect();
        let more = self.damaged.len() - lines.len();
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        format!(
            "{}; damaged tensors: {}, sound ones: {} (obtain the file again)",
            lines.join("; "),
            self.damaged.len(),
            self.tensors_fine
        )
    }
}

/// What came of reading one tensor: the first bad place, and a hash if asked for.
type Look = Result<(Option<BadPlace>, Option<String>), LoadError>;

/// Threads that take one tensor after the other.
struct Scan<'a> {
    files: &'a ModelFiles,
    depth: Depth,
    bar: &'a Bar,
    next: AtomicUsize,
    done: AtomicU64,
    /// With the tensors' indices, in no order.
    found: Mutex<Vec<(usize, Look)>>,
}

impl<'a> Scan<'a> {
    fn new(files: &'a ModelFiles, depth: Depth, bar: &'a Bar) -> Self {
        let (next, done, found) = Default::default();
        Self { files, depth, bar, next, done, found }
    }

    fn run(self, threads: usize) -> Result<Verified> {
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(|| self.work());
            }
            self.work();
        });
        let mut found = self.found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|(index, _)| *index);
        let sampled = self.depth == Depth::Sampled;
        let mut verified = Verified { sampled, ..Verified::default() };
        for (index, result) in found {
            let header = &self.files.tensors.headers()[index];
            let (place, hash) = result?;
            verified.hashes.extend(hash.map(|hash| (header.name.clone(), hash)));
            let is_known = is_readable(header) || is_whole(header);
            match place {
                Some(place) => {
                    verified.damaged.push(Damage { tensor: header.name.clone(), place });
                }
                None if is_known => verified.tensors_fine += 1,
                None => verified.unread.push(header.name.clone()),
            }
            if is_known {
                verified.bytes += header.bytes;
            }
        }
        Ok(verified)
    }

    fn work(&self) {
        let headers = self.files.tensors.headers();
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(header) = headers.get(index) else { return };
            let result = self.look(header);
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
            let done = self.done.fetch_add(header.bytes, Ordering::Relaxed) + header.bytes;
            self.bar.set(done);
        }
    }

    fn look(&self, header: &TensorHeader) -> Look {
        let tensors = &self.files.tensors;
        let hash = match self.depth {
            Depth::Hashed => Some(hex(&Sha256::digest(&*tensors.bytes_of(&header.name)?))),
            Depth::All | Depth::Sampled => None,
        };
        if !is_readable(header) {
            // Of whole numbers only those can go wrong that stand for powers of two.
            let is_plane = ["_scale", "_scales"].iter().any(|end| header.name.ends_with(end));
            let is_power = is_plane && ["U8", "F8_E8M0"].contains(&header.stored.name());
            let bytes = is_power.then(|| tensors.bytes_of(&header.name)).transpose()?;
            return Ok((bytes.and_then(|bytes| first_bad_power(&bytes, &header.shape)), hash));
        }
        let experts = if header.shape.len() > 2 { header.shape[0] } else { 1 };
        let rows = match self.depth {
            Depth::All | Depth::Hashed => usize::MAX,
            Depth::Sampled => SAMPLED_ROWS.max(experts),
        };
        Ok((first_bad_of(&tensors.get(&header.name)?, rows), hash))
    }
}

/// Whether a tensor holds whole numbers or packed codes, each of which stands for a number.
fn is_whole(header: &TensorHeader) -> bool {
    let name = header.stored.name();
    name == "F8_E8M0"
        || name.strip_prefix(['U', 'I']).is_some_and(|bits| bits.parse::<u8>().is_ok())
}

fn is_readable(header: &TensorHeader) -> bool {
    matches!(header.stored, StoredType::Known(_))
}
