//! `moeba inspect --verify`: every weight of a model is read and must be a number.
//!
//! Damage rarely breaks a file's layout. A flipped bit in one block's scale is met only when that
//! expert is chosen, perhaps days later; this finds it now, and names tensor and expert.

use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail, ensure};
use moeba_model::error::LoadError;
use moeba_model::files::{self, BadPlace, ModelFiles, StoredType, TensorHeader, first_bad};
use serde_json::{Value, json};

use crate::machine;
use crate::output::{print_json, size};
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

/// What was read, and what came of it.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    tensors_fine: usize,
    bytes: u64,
    /// In the order of the file; one finding a tensor.
    damaged: Vec<Damage>,
    /// Tensors in formats that Moeba cannot read, nor needs.
    unread: Vec<String>,
}

impl Verified {
    /// Reads all tensors of the model at `path`. Where some are damaged, the result is told here,
    /// as JSON on stdout too if `json`.
    ///
    /// # Errors
    /// If there are no weights, they cannot be read, or some are no numbers.
    pub(crate) fn of(path: &Path, json: bool, settings: &Settings) -> Result<Self> {
        let files = files::open(path)?;
        ensure!(!files.tensors.is_empty(), "`{}` holds no weights to verify", path.display());
        let bar = Progress::new(settings.voice)
            .bytes("Reading every weight", Some(files.tensors.total_bytes()));
        let found = Scan::new(&files, &bar).run(machine::threads(settings))?;
        bar.clear();
        if found.damaged.is_empty() {
            return Ok(found);
        }
        if json {
            print_json(&json!({ "path": path, "verified": found.to_json() }))?;
        }
        bail!("`{}` is damaged: {}", path.display(), found.complaint());
    }

    /// All is well, in words.
    pub(crate) fn line(&self) -> String {
        let all = format!("all weights of {} tensors are numbers", self.tensors_fine);
        let read = size(self.bytes);
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
            "{}; {} tensors are damaged, {} are fine (obtain the file again)",
            lines.join("; "),
            self.damaged.len(),
            self.tensors_fine
        )
    }
}

/// What came of reading one tensor.
type Look = Result<Option<BadPlace>, LoadError>;

/// Threads that take one tensor after the other.
struct Scan<'a> {
    files: &'a ModelFiles,
    bar: &'a Bar,
    next: AtomicUsize,
    done: AtomicU64,
    /// With the tensors' indices, in no order.
    found: Mutex<Vec<(usize, Look)>>,
}

impl<'a> Scan<'a> {
    fn new(files: &'a ModelFiles, bar: &'a Bar) -> Self {
        let (next, done, found) = Default::default();
        Self { files, bar, next, done, found }
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
        let mut verified = Verified::default();
        for (index, result) in found {
            let header = &self.files.tensors.headers()[index];
            match result? {
                Some(place) => {
                    verified.damaged.push(Damage { tensor: header.name.clone(), place });
                }
                None if is_readable(header) => verified.tensors_fine += 1,
                None => verified.unread.push(header.name.clone()),
            }
            if is_readable(header) {
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
        if !is_readable(header) {
            return Ok(None);
        }
        Ok(first_bad(&self.files.tensors.get(&header.name)?))
    }
}

fn is_readable(header: &TensorHeader) -> bool {
    matches!(header.stored, StoredType::Known(_))
}
