//! Stop strings, found in a stream of text pieces.
//!
//! A stop string may begin in one token and end three tokens later, so text that could still turn
//! out to be its beginning is held back. What is handed out never contains a stop string and never
//! ends with a part of one that later completes.

/// Most stop strings a request may have.
pub const STOPS_MAX: usize = 64;
/// Longest stop string in bytes.
pub const STOP_BYTES_MAX: usize = 4096;

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// Too many of them.
    #[error("{found} stop strings; at most {STOPS_MAX} are allowed")]
    TooMany {
        /// How many there were.
        found: usize,
    },
    /// An empty stop string would stop before the first word.
    #[error("stop string {index} is empty; leave it out to never stop")]
    Empty {
        /// Which one, counted from 0.
        index: usize,
    },
    /// A stop string is too long.
    #[error("stop string {index} has {bytes} bytes; at most {STOP_BYTES_MAX} are allowed")]
    TooLong {
        /// Which one, counted from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
}

/// Watches one stream for stop strings.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Prepares for a stream. No stops: everything passes through.
    ///
    /// # Errors
    /// [`StopError`] when there are too many, or one is empty or too long.
    pub fn new(stops: Vec<String>) -> Result<StopStrings, StopError> {
        if stops.len() > STOPS_MAX {
            return Err(StopError::TooMany { found: stops.len() });
        }
        for (index, stop) in stops.iter().enumerate() {
            if stop.is_empty() {
                return Err(StopError::Empty { index });
            }
            if stop.len() > STOP_BYTES_MAX {
                return Err(StopError::TooLong { index, bytes: stop.len() });
            }
        }
        Ok(StopStrings { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece and appends what is certain to `out`. Returns the stop string that was
    /// completed, if one was: the text before it has been handed out, itself and the rest are
    /// gone, and later pieces are ignored.
    pub fn push(&mut self, piece: &str, out: &mut String) -> Option<&str> {
        if self.stopped {
            return None;
        }
        if self.stops.is_empty() {
            out.push_str(piece);
            return None;
        }
        self.held.push_str(piece);
        let first = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(index, stop)| Some((self.held.find(stop.as_str())?, index)))
            .min();
        if let Some((at, index)) = first {
            out.push_str(&self.held[..at]);
            self.held.clear();
            self.stopped = true;
            return Some(&self.stops[index]);
        }
        let safe = self.held.len() - self.possible_beginning();
        out.push_str(&self.held[..safe]);
        self.held.drain(..safe);
        None
    }

    /// Ends the stream: what was held back was no stop string after all.
    pub fn finish(&mut self, out: &mut String) {
        out.push_str(&self.held);
        self.held.clear();
    }

    /// Length in bytes of the longest end of `held` that begins a stop string.
    fn possible_beginning(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|&n| held.ends_with(&stop.as_bytes()[..n])).unwrap_or(0)
        };
        self.stops.iter().map(longest).max().unwrap_or(0)
    }
}
