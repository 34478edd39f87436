//! The byte budget of one rendering: everything a template creates is paid for.
//!
//! The engine counts steps, but one step can double a string; 34 of them would want 128 GiB. So
//! every value that grows is charged before or while it is made, and an empty purse ends the
//! rendering with an error instead of the process.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// What every rendering may create, in bytes, before its input is counted.
const BASE_BYTES: usize = 16 << 20;
/// How many bytes a rendering may create for each byte of its input.
const PER_INPUT_BYTE: usize = 16;
/// What one element of a list costs.
const ELEMENT_BYTES: usize = 24;

/// One rendering's purse.
pub(super) struct Budget {
    limit: usize,
    spent: AtomicUsize,
    refusal: Mutex<Option<String>>,
}

impl Budget {
    /// A budget for a conversation of `bytes` bytes.
    pub(super) fn for_input(bytes: usize) -> Budget {
        let limit = BASE_BYTES.saturating_add(bytes.saturating_mul(PER_INPUT_BYTE));
        Budget { limit, spent: AtomicUsize::new(0), refusal: Mutex::default() }
    }

    /// The whole budget in bytes.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Has more been asked for than there is?
    pub(super) fn is_spent(&self) -> bool {
        self.spent.load(Ordering::Relaxed) > self.limit
    }

    /// Remembers what the template said when it refused.
    pub(super) fn refuse(&self, message: String) {
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
    }

    /// What the template said when it refused.
    pub(super) fn refusal(&self) -> Option<String> {
        self.refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pays for `bytes`.
    pub(super) fn charge(&self, bytes: usize) -> Result<(), Error> {
        let before = self.spent.load(Ordering::Relaxed);
        self.spent.store(before.saturating_add(bytes), Ordering::Relaxed);
        if self.is_spent() {
            return Err(Error::new(ErrorKind::OutOfFuel, "the template created too many bytes"));
        }
        Ok(())
    }

    /// Pays for a value that exists already: strings by length, lists by elements.
    pub(super) fn charge_value(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.charge(text.len()),
            None if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) => {
                self.charge(value.len().unwrap_or(0).saturating_mul(ELEMENT_BYTES))
            }
            None => Ok(()),
        }
    }

    /// Pays for a list of `elements` elements.
    pub(super) fn charge_list(&self, elements: usize) -> Result<(), Error> {
        self.charge(elements.saturating_mul(ELEMENT_BYTES))
    }

    /// `value` as text appended to `out`, paid for while it is written.
    pub(super) fn write(&self, value: &Value, out: &mut String) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            self.charge(text.len())?;
            out.push_str(text);
            return Ok(());
        }
        let mut paid = Paid { budget: self, out };
        write!(paid, "{value}")
            .map_err(|_| Error::new(ErrorKind::OutOfFuel, "the template created too many bytes"))
    }

    /// `value` as text.
    pub(super) fn text(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.write(value, &mut out)?;
        Ok(out)
    }
}

/// A string that is paid for while it grows.
struct Paid<'a> {
    budget: &'a Budget,
    out: &'a mut String,
}

impl Write for Paid<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.budget.charge(text.len()).map_err(|_| fmt::Error)?;
        self.out.push_str(text);
        Ok(())
    }
}
