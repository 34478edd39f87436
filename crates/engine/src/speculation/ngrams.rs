//! Guesses by looking the text up in itself: what followed the last time these tokens came?
//!
//! Answers repeat: code that is edited, texts that are quoted, names, lists, JSON. The end of the
//! text is searched for among all its runs of 4, then 3, then 2 tokens, and what followed the
//! latest such run is the draft. (Prompt lookup; Saxena, 2023.) A run that has been found is
//! followed from token to token without being searched again.
//!
//! Runs are found through one table of positions by hash, in which a later run overwrites an
//! earlier one of the same place; whatever is found there is compared with the text itself. So a
//! token costs three hashes, and a sequence of any length a table of bounded size.

use super::{DRAFT_TOKENS_MAX, Draft, Drafter};
use crate::sampler::mix;

/// The longest run that is searched for. Longer matches are measured once they are found, so a
/// longer search would only choose between several places where all of 4 tokens agree.
const RUN_MAX: usize = 4;

/// The shortest. A match of one token says next to nothing; one of two is right in a third of
/// cases, and rarely worth a row itself, but being followed it grows.
const RUN_MIN: usize = 2;

/// Where the classes of [`super::Odds`] end, so that a longer match says no more.
const MATCH_MAX: usize = 32;

/// Entries of the table: 4 KiB at least, and at most 4 MiB, which hold the runs of 256 Ki tokens
/// with two of three still to be found at the end.
const PLACES_MIN: usize = 1 << 10;
const PLACES_MAX: usize = 1 << 20;

/// A text that is looked up in itself.
#[derive(Debug, Default)]
pub(crate) struct Ngrams {
    /// By hash of a run, the position after it; 0 is none. A power of two of them.
    places: Vec<u32>,
    /// Runs that end before this position are in `places`.
    indexed: usize,
    /// Where the match goes on that is being followed; 0 is nowhere.
    source: usize,
    /// Number of known tokens up to which it has been followed.
    followed: usize,
}

impl Drafter for Ngrams {
    fn reserve(&mut self, tokens_max: usize) {
        if self.places.is_empty() {
            let runs = tokens_max.saturating_mul(RUN_MAX - RUN_MIN + 1).max(PLACES_MIN);
            self.places = vec![0; runs.min(PLACES_MAX).next_power_of_two()];
        }
    }

    fn draft(&mut self, known: &[u32], draft: &mut Draft) {
        if self.places.is_empty() {
            return;
        }
        self.follow(known);
        self.index(known);
        draft.support = matched(known, self.source);
        if draft.support < RUN_MAX {
            self.search(known, draft.support);
            draft.support = matched(known, self.source);
        }
        if self.source == 0 {
            return;
        }
        for at in self.source..self.source + DRAFT_TOKENS_MAX {
            // A source that reaches the end of the text goes on in the draft: a loop.
            let token = known.get(at).copied().unwrap_or_else(|| draft.tokens[at - known.len()]);
            draft.tokens.push(token);
        }
    }
}

impl Ngrams {
    /// Goes on with the match as far as what has come since agrees with it.
    fn follow(&mut self, known: &[u32]) {
        for &token in &known[self.followed..] {
            if self.source > 0 {
                self.source = if known[self.source] == token { self.source + 1 } else { 0 };
            }
        }
        self.followed = known.len();
    }

    /// Notes all runs but those that end with the text: they are what is searched for.
    fn index(&mut self, known: &[u32]) {
        for end in self.indexed.max(RUN_MIN)..known.len() {
            for length in RUN_MIN..=RUN_MAX.min(end) {
                let place = self.place(&known[end - length..end]);
                self.places[place] = end as u32;
            }
        }
        self.indexed = known.len();
    }

    /// Looks for a match longer than `found`, the longest first.
    fn search(&mut self, known: &[u32], found: usize) {
        for length in (RUN_MIN.max(found + 1)..=RUN_MAX.min(known.len())).rev() {
            let run = &known[known.len() - length..];
            let end = self.places[self.place(run)] as usize;
            if end >= length && known[end - length..end] == *run {
                self.source = end;
                return;
            }
        }
    }

    fn place(&self, run: &[u32]) -> usize {
        let hash = run.iter().fold(run.len() as u64, |hash, &token| mix(hash ^ u64::from(token)));
        hash as usize & (self.places.len() - 1)
    }
}

/// How many tokens before `source` equal those at the end of the text.
fn matched(known: &[u32], source: usize) -> usize {
    let pairs = known[..source].iter().rev().zip(known.iter().rev());
    pairs.take(MATCH_MAX).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Drafts after `known`, asked at every length from `asked` on.
    fn drafted(known: &[u32], asked: usize) -> (Vec<u32>, usize) {
        let mut ngrams = Ngrams::default();
        ngrams.reserve(known.len());
        let mut draft = Draft::default();
        for length in asked..=known.len() {
            draft.tokens.clear();
            ngrams.draft(&known[..length], &mut draft);
        }
        (draft.tokens, draft.support)
    }

    #[test]
    fn what_followed_the_longest_and_then_the_latest_match_is_the_draft() {
        let cases: [(&[u32], &[u32], usize); 6] = [
            (&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], &[3, 4, 5, 6, 7, 8, 9], 2),
            // The latest of two matches of two; the longer of two matches though it is earlier.
            (&[1, 2, 3, 0, 1, 2, 4, 5, 6, 7, 8, 9, 1, 2], &[4, 5, 6, 7, 8, 9, 1], 2),
            (&[7, 1, 2, 3, 9, 1, 2, 4, 7, 1, 2], &[3, 9, 1, 2, 4, 7, 1], 3),
            // A loop of two goes on in the draft.
            (&[5, 1, 2, 1, 2, 1, 2], &[1, 2, 1, 2, 1, 2, 1], 4),
            (&[1, 2, 3, 4], &[], 0),
            (&[1], &[], 0),
        ];
        for (known, expected, support) in cases {
            assert_eq!(drafted(known, known.len()), (expected.to_vec(), support), "{known:?}");
            assert_eq!(drafted(known, 1).0, expected, "{known:?} token by token");
        }
    }

    #[test]
    fn a_match_is_followed_until_it_ends_and_counts_all_its_tokens() {
        let mut known: Vec<u32> = (10..60).collect();
        known.extend(20..40);
        let (draft, support) = drafted(&known, 1);
        assert_eq!((draft, support), ((40..47).collect(), 20));
        known.push(99);
        assert_eq!(drafted(&known, 1), (vec![], 0));
        known.extend(10..56);
        assert_eq!(drafted(&known, 1), (vec![56, 57, 58, 59, 20, 21, 22], MATCH_MAX));
    }

    #[test]
    fn the_table_is_bounded_and_what_it_lost_is_not_invented() {
        let mut ngrams = Ngrams::default();
        ngrams.reserve(usize::MAX);
        assert_eq!(ngrams.places.len(), PLACES_MAX);
        let mut ngrams = Ngrams::default();
        ngrams.reserve(0);
        assert_eq!(ngrams.places.len(), PLACES_MIN);
        // Twenty times as many runs as places: most are overwritten, all that is found is true.
        let mut known: Vec<u32> = (0..7000).map(|i| mix(i) as u32 % 50).collect();
        let mut draft = Draft::default();
        let mut found = 0;
        for _ in 0..200 {
            draft.tokens.clear();
            ngrams.draft(&known, &mut draft);
            if draft.tokens.is_empty() {
                known.push(mix(known.len() as u64) as u32 % 50);
            } else {
                found += 1;
                let end = &known[known.len() - draft.support..];
                let joined: Vec<u32> = end.iter().chain(&draft.tokens).copied().collect();
                let loops = ngrams.source + DRAFT_TOKENS_MAX > known.len();
                assert!(loops || known.windows(joined.len()).any(|window| window == joined));
                known.push(500 + found);
            }
        }
        assert!(found > 0);
    }
}
