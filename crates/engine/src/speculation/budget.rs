//! Which drafts join a step, and how much of them.
//!
//! Of all guesses the likelier come first, whoever's they are. With the first `n` of them a step of
//! `s` sequences yields `s + Σ chances` tokens in the time of `s + n` rows; the `n` with the most
//! tokens per second is taken, none unless it is worth a little more than nothing.

use super::{STEP_ROWS_MAX, Speculation, StepCosts};

/// Tokens per second must rise by this factor: less is within what measuring gets wrong.
const GAIN_MIN: f32 = 1.05;

/// One guessed token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guess {
    /// Index of the planned span that it continues.
    pub(crate) span: usize,
    /// How many guesses are before it there.
    place: usize,
    /// How likely it is right, and all guesses before it.
    chance: f32,
    /// Whether it is computed whatever it costs.
    forced: bool,
}

/// Scratch for the choice.
#[derive(Debug)]
pub(crate) struct Budget {
    guesses: Vec<Guess>,
    rows_max: usize,
}

impl Budget {
    /// For steps of at most `rows_max` rows of logits.
    pub(crate) fn new(rows_max: usize) -> Budget {
        let guesses = Vec::with_capacity(STEP_ROWS_MAX * super::DRAFT_TOKENS_MAX);
        Budget { guesses, rows_max: rows_max.min(STEP_ROWS_MAX) }
    }

    /// Begins a step of so many sequences; false when it has no room for guesses.
    pub(crate) fn begin(&mut self, sequences: usize) -> bool {
        self.guesses.clear();
        sequences < self.rows_max
    }

    /// Adds the guesses of one span, whose `chances` fall.
    pub(crate) fn offer(
        &mut self,
        span: usize,
        chances: impl Iterator<Item = f32>,
        speculation: Speculation,
    ) {
        let forced = speculation == Speculation::Always;
        let guess = |(place, chance)| Guess { span, place, chance, forced };
        self.guesses.extend(chances.enumerate().map(guess));
    }

    /// The guesses to compute beside one token of each of `sequences`. Of each span they are the
    /// first it offered.
    pub(crate) fn choose(&mut self, sequences: usize, costs: &StepCosts) -> &[Guess] {
        self.guesses.sort_unstable_by(|a, b| {
            let likelier = b.forced.cmp(&a.forced).then(b.chance.total_cmp(&a.chance));
            likelier.then((a.place, a.span).cmp(&(b.place, b.span)))
        });
        self.guesses.truncate(self.rows_max - sequences);
        let forced = self.guesses.iter().filter(|guess| guess.forced).count();
        let worth = match costs.from(sequences) {
            Some(seconds) => most_per_second(sequences, &self.guesses, seconds),
            None => 0,
        };
        &self.guesses[..worth.max(forced)]
    }
}

/// How many of `guesses` yield the most tokens per second; `seconds` are those of a step without
/// any, with one, ….
fn most_per_second(
    sequences: usize,
    guesses: &[Guess],
    mut seconds: impl Iterator<Item = f32>,
) -> usize {
    let mut tokens = sequences as f32;
    let (mut best, mut count) = (GAIN_MIN * tokens / seconds.next().unwrap_or(f32::MAX), 0);
    for (index, (guess, seconds)) in guesses.iter().zip(seconds).enumerate() {
        tokens += guess.chance;
        if tokens / seconds > best {
            (best, count) = (tokens / seconds, index + 1);
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Steps of 10 ms and some for each row more than one.
    fn costs(per_row_ms: u64) -> StepCosts {
        let mut costs = StepCosts::default();
        for rows in 1..=STEP_ROWS_MAX {
            for _ in 0..3 {
                costs.note(rows, Duration::from_millis(10 + per_row_ms * (rows as u64 - 1)));
            }
        }
        costs
    }

    fn chosen(per_row_ms: u64, spans: &[&[f32]]) -> Vec<usize> {
        let mut budget = Budget::new(8);
        assert!(budget.begin(spans.len()));
        for (span, chances) in spans.iter().enumerate() {
            budget.offer(span, chances.iter().copied(), Speculation::Measured);
        }
        let guesses = budget.choose(spans.len(), &costs(per_row_ms));
        (0..spans.len()).map(|span| guesses.iter().filter(|g| g.span == span).count()).collect()
    }

    #[test]
    fn guesses_are_computed_as_far_as_they_are_worth_their_rows() {
        let falling = [0.9, 0.8, 0.6, 0.4, 0.2];
        assert_eq!(chosen(1, &[&falling]), [4]);
        assert_eq!(chosen(3, &[&falling]), [3]);
        assert_eq!(chosen(7, &[&falling]), [2]);
        assert_eq!(chosen(9, &[&falling]), [0], "a gain of a few percent is none");
        assert_eq!(chosen(1, &[&[0.1; 5]]), [0]);
    }

    #[test]
    fn the_likeliest_come_first_whoever_guesses_and_rows_are_bounded() {
        assert_eq!(chosen(1, &[&[0.9, 0.1], &[0.8, 0.7, 0.01]]), [1, 2]);
        assert_eq!(chosen(0, &[&[0.9; 6], &[0.8; 6]]), [6, 0]);
        assert_eq!(chosen(0, &[&[0.9; 6], &[0.9; 6]]), [3, 3]);
        let mut budget = Budget::new(4);
        assert!(!budget.begin(4) && budget.begin(3));
    }

    #[test]
    fn without_times_only_what_is_forced() {
        let mut budget = Budget::new(8);
        budget.begin(2);
        budget.offer(0, [0.9; 3].into_iter(), Speculation::Measured);
        budget.offer(1, [0.1; 3].into_iter(), Speculation::Always);
        let guesses = budget.choose(2, &StepCosts::default());
        assert!(guesses.len() == 3 && guesses.iter().all(|guess| guess.span == 1));
    }
}
