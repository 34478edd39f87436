//! A request on its way through the engine.
//!
//! A sequence is its known tokens (the prompt and what was generated) and how many of them are
//! computed, that is, have their keys and values in its blocks. Running closes the gap; when it is
//! closed, the last token's logits yield the next known token. There is no other state: no prefill
//! and no decode, and a preempted sequence is one whose `computed` fell back to 0.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crate::blocks::{BlockAllocator, BlockTable};
use crate::channel::EventSender;
use crate::handle::{Limits, ModelFacts, Submission};
use crate::request::{ExpertReads, FinishReason, RequestId, Summary, Timings, Usage};
use crate::sampler::SamplingState;
use crate::speculation::{DraftCounts, Foresight};

/// Who comes first: the lower, the earlier. Fixed at submission.
///
/// `rank` is the step of arrival minus a head start for priority, so waiting makes up for
/// priority at a fixed rate without anything having to be recomputed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) rank: i64,
    pub(crate) id: RequestId,
}

/// A request inside the engine.
pub(crate) struct Sequence {
    pub(crate) order: Order,
    pub(crate) priority: i32,
    /// Known tokens; the first `prompt_tokens` are the prompt.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt_tokens: usize,
    /// How many of `tokens` have keys and values in `table`.
    pub(crate) computed: usize,
    pub(crate) table: BlockTable,
    /// The reader is slow: no step runs this sequence.
    pub(crate) paused: bool,
    /// Tokens its reader has room for.
    pub(crate) reader_room: usize,
    /// Was part of a step that failed with nobody to blame: runs alone until it succeeds.
    pub(crate) suspect: bool,
    pub(crate) sampling: SamplingState,
    pub(crate) foresight: Foresight,
    pub(crate) ending: Ending,
    pub(crate) tally: Tally,
    pub(crate) sender: EventSender,
}

/// When the output is over.
pub(crate) struct Ending {
    /// Length of prompt and output at which it is cut.
    pub(crate) tokens_max: usize,
    pub(crate) stop_tokens: Vec<u32>,
    pub(crate) ignore_eos: bool,
}

/// What the summary will say.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) cached_tokens: Option<usize>, // set at the first admission
    pub(crate) preemptions: usize,
    pub(crate) experts: ExpertReads,
    pub(crate) drafts: DraftCounts,
    pub(crate) clock: Clock,
}

/// When things happened; written by the loop, read by nobody who decides.
#[derive(Default)]
pub(crate) struct Clock {
    pub(crate) submitted: Option<Instant>,
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
}

impl Sequence {
    /// A waiting sequence for a request that arrived before step `step`.
    pub(crate) fn new(
        submission: Submission,
        step: u64,
        limits: &Limits,
        model: &ModelFacts,
    ) -> Sequence {
        let Submission { id, mut request, seed, sender, submitted } = submission;
        let prompt_tokens = request.tokens.len();
        let tokens_max = match request.max_tokens {
            Some(max) => prompt_tokens + max,
            None => model.sequence_tokens_max(),
        };
        let head_start = i64::from(request.priority) * i64::from(limits.priority_step);
        let sampling = SamplingState::new(&mut request, seed);
        let clock = Clock { submitted: Some(submitted), ..Clock::default() };
        Sequence {
            order: Order { rank: step as i64 - head_start, id },
            priority: request.priority,
            tokens: request.tokens,
            prompt_tokens,
            computed: 0,
            table: BlockTable::new(request.cache_salt),
            paused: false,
            reader_room: 0,
            suspect: false,
            sampling,
            foresight: Foresight::new(request.speculation),
            ending: Ending {
                tokens_max,
                stop_tokens: request.stop_tokens,
                ignore_eos: request.ignore_eos,
            },
            tally: Tally { clock, ..Tally::default() },
            sender,
        }
    }

    /// Makes room for the whole output, so that no later step allocates. Done when the sequence
    /// first runs: what merely waits is to cost little.
    pub(crate) fn reserve(&mut self) {
        self.tokens.reserve_exact(self.ending.tokens_max - self.tokens.len());
        self.table.reserve(self.ending.tokens_max);
        self.sampling.reserve(self.ending.tokens_max - self.tokens.len());
        self.foresight.reserve(self.ending.tokens_max);
    }

    /// Known tokens that are not computed.
    pub(crate) fn gap(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// How many guessed tokens a step may compute after the last known one: with all of them right
    /// it yields one more, and neither the output's limit nor the reader's room is exceeded.
    pub(crate) fn draft_room(&self) -> usize {
        let output = self.ending.tokens_max - self.tokens.len();
        output.min(self.reader_room).saturating_sub(1)
    }

    /// Gives up all blocks; they may be found again through the prefix cache.
    pub(crate) fn release(&mut self, blocks: &mut BlockAllocator) {
        self.table.release(blocks);
        self.computed = 0;
    }

    /// Whether `token` ends the output.
    pub(crate) fn stops_at(&self, token: u32, eos_tokens: &[u32]) -> bool {
        self.ending.stop_tokens.contains(&token)
            || !self.ending.ignore_eos && eos_tokens.contains(&token)
    }

    /// Ends the sequence: delivers `Finished`. The blocks must have been released.
    pub(crate) fn finish(self, reason: FinishReason) {
        assert!(self.table.ids().is_empty(), "blocks are released before the end is told");
        let summary = self.summary(reason);
        self.sender.finish(summary);
    }

    /// Ends the sequence of an engine that cannot go on.
    pub(crate) fn abandon(self, message: &str) {
        let summary = self.summary(FinishReason::EngineStopped(message.to_owned()));
        self.sender.finish(summary);
    }

    fn summary(&self, reason: FinishReason) -> Summary {
        // The stop token was generated and is not among `tokens`.
        let stop_token = usize::from(matches!(reason, FinishReason::Stop { .. }));
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.tally.cached_tokens.unwrap_or(0),
            completion_tokens: self.tokens.len() - self.prompt_tokens + stop_token,
            preemptions: self.tally.preemptions,
            drafts: self.tally.drafts,
        };
        Summary {
            reason,
            usage,
            timings: self.tally.clock.timings(),
            experts: self.tally.experts,
            seed: self.sampling.seed,
        }
    }
}

impl Clock {
    fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => Duration::ZERO,
        };
        Timings {
            queued: between(self.submitted, self.started),
            prompt: between(self.started, self.first_token),
            decode: between(self.first_token, self.last_token),
        }
    }
}

/// All unfinished sequences, each list in [`Order`].
pub(crate) struct Sequences {
    /// Those with blocks.
    pub(crate) running: Vec<Sequence>,
    /// Those without: new or preempted.
    pub(crate) waiting: Vec<Sequence>,
}

impl Sequences {
    /// None yet; room for as many as `limits` allow.
    pub(crate) fn new(limits: &Limits) -> Sequences {
        let running = Vec::with_capacity(limits.sequences_max);
        let waiting = Vec::with_capacity(limits.sequences_max + limits.waiting_max);
        Sequences { running, waiting }
    }

    /// Puts a sequence without blocks where its order says.
    pub(crate) fn wait(&mut self, sequence: Sequence) {
        insert(&mut self.waiting, sequence);
    }

    /// Moves `waiting[index]` among the running; its new index.
    pub(crate) fn admit(&mut self, index: usize) -> usize {
        let mut sequence = self.waiting.remove(index);
        sequence.reserve();
        insert(&mut self.running, sequence)
    }

    /// Takes the blocks of `running[index]` and lets it wait.
    pub(crate) fn preempt(&mut self, index: usize, blocks: &mut BlockAllocator) {
        let mut sequence = self.running.remove(index);
        sequence.release(blocks);
        sequence.tally.preemptions += 1;
        self.wait(sequence);
    }
}

fn insert(list: &mut Vec<Sequence>, sequence: Sequence) -> usize {
    let index = list.partition_point(|other| match other.order.cmp(&sequence.order) {
        Ordering::Less => true,
        Ordering::Equal => panic!("request `{}` is in the engine once", sequence.order.id),
        Ordering::Greater => false,
    });
    list.insert(index, sequence);
    index
}
