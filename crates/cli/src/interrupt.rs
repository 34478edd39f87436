//! Ctrl-C: while an answer is under way it ends the answer, otherwise the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Exit code after Ctrl-C, as shells have it: 128 and the signal's number.
pub(crate) const EXIT_CODE: i32 = 130;

/// An answer is under way and can be ended.
static ARMED: AtomicBool = AtomicBool::new(false);
/// The user wants it to end.
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C, once per process.
///
/// # Errors
/// If the system refuses.
pub(crate) fn install() -> Result<()> {
    let handler = || {
        // A second press does not wait for the first to be heard.
        if !ARMED.load(Ordering::SeqCst) || PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_CODE);
        }
    };
    ctrlc::set_handler(handler).context("cannot take over Ctrl-C")
}

/// While this lives, Ctrl-C ends the answer.
pub(crate) struct Armed(());

/// Begins an answer.
pub(crate) fn arm() -> Armed {
    PRESSED.store(false, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    Armed(())
}

/// Whether Ctrl-C was pressed during the answer.
pub(crate) fn is_pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}

impl Drop for Armed {
    fn drop(&mut self) {
        ARMED.store(false, Ordering::SeqCst);
    }
}
