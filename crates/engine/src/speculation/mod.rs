//! Guessing ahead: tokens that may come next are computed together with the one that surely does.
//!
//! ```text
//!   known tokens ──► Drafter ──► draft ──► budget: worth its rows? ──► rows of the batch
//!                                              ▲          ▲                   │
//!                                            Odds     StepCosts ◄── clock ── step
//!                                              └── what was chosen ◄── sampler, row by row
//! ```
//!
//! The sampler chooses every token from its own row of logits, as ever; a guess is kept while it
//! equals what was chosen, and the first that does not is forgotten with all after it. So a guess
//! changes no token, only how many a step yields, as long as a row's logits do not depend on how
//! many rows there are. A draft never joins a sequence's known tokens before it was chosen:
//! penalties, constraints, names of blocks and the prefix cache never see it.
//!
//! Rows cost. In a Mixture of Experts each brings experts of its own, so a wrong guess may cost as
//! much as a token. Hence two measurements, and a choice by them:
//! - [`Odds`]: how often guesses are right. Drafts are made and compared in every step, computed or
//!   not, so this costs nothing.
//! - [`StepCosts`]: how long steps of so many rows take.
//!
//! A drafter is anything that guesses: [`Ngrams`] looks the text up in itself; a head of the model
//! that predicts several tokens would be another.

mod budget;
mod costs;
mod ngrams;
mod odds;
#[cfg(test)]
mod tests;

use moeba_kernels::activations::SHARED_MIN;

pub(crate) use budget::Budget;
pub(crate) use costs::StepCosts;
pub(crate) use ngrams::Ngrams;
use odds::Odds;

/// The most rows of a step that has drafts. Below the number at which some machines turn to other
/// arithmetic (`Precision::Mixed`), so that drafts change no bit in any mode.
pub const STEP_ROWS_MAX: usize = SHARED_MIN - 1;

/// The most tokens of one draft; with the token they follow they are eight rows. Longer ones are
/// rarely right to the end, and where they are, the next step goes on with them.
pub const DRAFT_TOKENS_MAX: usize = 7;

/// Whether a request's tokens are guessed ahead. It changes none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where guesses make tokens come sooner, by what steps took and how often guesses were right.
    #[default]
    Measured,
    /// Wherever there is a guess, whatever it costs: to measure, and to test.
    Always,
}

/// How many tokens were guessed and computed, and how many of these were right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Tokens computed on a guess.
    pub computed: u64,
    /// Of these, tokens that became part of the output.
    pub accepted: u64,
}

impl std::ops::AddAssign for DraftCounts {
    fn add_assign(&mut self, other: DraftCounts) {
        self.computed += other.computed;
        self.accepted += other.accepted;
    }
}

/// Something that guesses the next tokens of one sequence.
pub(crate) trait Drafter: Send {
    /// Makes room for a sequence of `tokens_max` tokens, so that drafting never allocates.
    fn reserve(&mut self, tokens_max: usize);

    /// Fills `draft`, which is empty, with what may follow `known`: all tokens of the sequence. It
    /// may be asked at every length or only at some, and `known` only grows.
    fn draft(&mut self, known: &[u32], draft: &mut Draft);
}

/// Tokens that may come next.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    /// At most [`DRAFT_TOKENS_MAX`].
    pub(crate) tokens: Vec<u32>,
    /// How much speaks for the first; each that proves right adds one for the next. [`Odds`] are
    /// kept by this.
    pub(crate) support: usize,
}

/// What a sequence's future is guessed by.
pub(crate) struct Foresight {
    pub(crate) speculation: Speculation,
    drafter: Option<Box<dyn Drafter>>,
    draft: Draft,
    odds: Odds,
}

impl Foresight {
    /// Guesses nothing before it has a drafter.
    pub(crate) fn new(speculation: Speculation) -> Foresight {
        let (draft, odds) = <(Draft, Odds)>::default();
        Foresight { speculation, drafter: None, draft, odds }
    }

    /// Takes a drafter, unless nothing is to be guessed.
    pub(crate) fn guess_by(&mut self, drafter: Box<dyn Drafter>) {
        if self.speculation != Speculation::Off {
            self.drafter = Some(drafter);
        }
    }

    /// Makes room for a sequence of `tokens_max` tokens.
    pub(crate) fn reserve(&mut self, tokens_max: usize) {
        if let Some(drafter) = &mut self.drafter {
            self.draft.tokens.reserve(DRAFT_TOKENS_MAX);
            drafter.reserve(tokens_max);
        }
    }

    /// Drafts what may follow `known`.
    pub(crate) fn look(&mut self, known: &[u32]) {
        self.draft.tokens.clear();
        if let Some(drafter) = &mut self.drafter {
            drafter.draft(known, &mut self.draft);
            self.draft.tokens.truncate(DRAFT_TOKENS_MAX);
        }
    }

    /// The tokens of the last draft.
    pub(crate) fn draft(&self) -> &[u32] {
        &self.draft.tokens
    }

    /// How likely the first token of the draft is right; then how likely the second is, too; ….
    pub(crate) fn chances(&self) -> impl Iterator<Item = f32> {
        let support = self.draft.support;
        (0..self.draft.tokens.len()).scan(1.0, move |chance, place| {
            *chance *= self.odds.of(support + place);
            Some(*chance)
        })
    }

    /// Compares the draft with what was `chosen`, whether or not it had been computed.
    pub(crate) fn learn(&mut self, chosen: &[u32]) {
        for (place, (guess, token)) in self.draft.tokens.iter().zip(chosen).enumerate() {
            self.odds.note(self.draft.support + place, guess == token);
            if guess != token {
                break;
            }
        }
        self.draft.tokens.clear();
    }

    /// Guesses nothing any more: a step with this sequence's draft has failed, and perhaps because
    /// of it.
    pub(crate) fn give_up(&mut self) {
        self.drafter = None;
        self.draft.tokens.clear();
    }
}
