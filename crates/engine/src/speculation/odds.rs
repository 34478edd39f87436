//! How often guesses were right, by how much spoke for them.
//!
//! After a match of two tokens the next one is a guess like any other; after a match of thirty the
//! text is being copied. So the odds are kept in classes, each twice as long a match as the last.

use std::array;

/// Matches of 1, 2 to 3, 4 to 7, 8 to 15, 16 to 31, and more.
const CLASSES: usize = 6;

/// How often a guess is right where nobody knows better: less often than those of SmolLM2 were
/// (docs/lab/2026-11-22-speculation.md: 0.56, 0.71, 0.87, 0.85 from the second class on), because
/// larger models repeat themselves less.
const PRIOR: [f32; CLASSES] = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9];

/// As many guesses as the prior counts for.
const PRIOR_WEIGHT: f32 = 4.0;

/// A guess counts this much less with every later one of its class: texts change their manner, and
/// the last thirty say more than all before.
const FADING: f32 = 31.0 / 32.0;

#[derive(Clone, Copy, Debug)]
struct Class {
    right: f32,
    all: f32,
}

/// How often the guesses of one sequence were right.
#[derive(Debug)]
pub(super) struct Odds([Class; CLASSES]);

impl Default for Odds {
    fn default() -> Odds {
        let class = |class| Class { right: PRIOR[class] * PRIOR_WEIGHT, all: PRIOR_WEIGHT };
        Odds(array::from_fn(class))
    }
}

impl Odds {
    /// The probability that a guess with this `support` is right.
    pub(super) fn of(&self, support: usize) -> f32 {
        let class = self.0[class(support)];
        class.right / class.all
    }

    /// Notes whether one was.
    pub(super) fn note(&mut self, support: usize, right: bool) {
        let class = &mut self.0[class(support)];
        class.right = FADING * class.right + f32::from(u8::from(right));
        class.all = FADING * class.all + 1.0;
    }
}

fn class(support: usize) -> usize {
    (support.max(1).ilog2() as usize).min(CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_learn_apart_and_what_is_long_ago_fades() {
        let mut odds = Odds::default();
        assert_eq!(odds.of(5), 0.5);
        for _ in 0..40 {
            odds.note(5, true);
        }
        assert!(odds.of(4) > 0.9 && odds.of(7) > 0.9, "{odds:?}");
        assert_eq!((odds.of(3), odds.of(8), odds.of(1000)), (0.3, 0.7, 0.9));
        for _ in 0..40 {
            odds.note(6, false);
        }
        assert!(odds.of(4) < 0.3, "{odds:?}");
    }
}
