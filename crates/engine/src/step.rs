//! One step: the plan becomes a batch, the batch becomes logits, logits become tokens and events.
//!
//! [`Core`] is the engine without its thread: everything mutable, and one method that does one
//! step. The loop in [`crate::run`] calls it on a thread, the simulator calls it directly, and so
//! both run the same code. What a step needs is allocated when the engine starts or when a
//! sequence first runs; a step that only decodes allocates nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use moeba_model::batch::{BLOCK_TOKENS, Batch, WantLogits};

use crate::blocks::{BlockAllocator, BlockObserver};
use crate::channel::stopped_summary;
use crate::forward::{Forward, StepError, StepStats};
use crate::handle::{Closing, EngineStats, Shared, Submission};
use crate::request::{CancelReason, Event, FinishReason, RequestId};
use crate::sampler::{SampleError, Sampler, check_row};
use crate::scheduler::{self, Bounds, PlannedSpan, StepPlan};
use crate::sequence::{Sequence, Sequences};
use crate::speculation::{Budget, DRAFT_TOKENS_MAX, DraftCounts, Drafter, Ngrams, StepCosts};

/// The engine's mutable world, owned by one thread.
pub(crate) struct Core {
    model: Box<dyn Forward + Send>,
    shared: Arc<Shared>,
    bounds: Bounds,
    pub(crate) sequences: Sequences,
    pub(crate) blocks: BlockAllocator,
    sampler: Sampler,
    plan: StepPlan,
    batch: Batch,
    incoming: VecDeque<Submission>,
    ended: Vec<(usize, FinishReason)>, // (index of a running sequence, why), ascending
    totals: EngineStats,
    budget: Budget,
    costs: StepCosts,
    /// Makes what guesses a request's tokens; the simulator has another.
    pub(crate) make_drafter: MakeDrafter,
    /// The time; the simulator has its own.
    pub(crate) clock: Box<dyn Fn() -> Instant + Send>,
}

type MakeDrafter = Box<dyn Fn(RequestId) -> Box<dyn Drafter> + Send>;

/// What a turn has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A step ran; there may be more to do.
    Worked,
    /// Nothing can run until somebody submits, cancels or reads.
    Idle,
    /// Nothing is left and nothing will come.
    Done,
}

impl Core {
    /// The world before the first request.
    pub(crate) fn new(
        model: Box<dyn Forward + Send>,
        shared: Arc<Shared>,
        observer: Option<Box<dyn BlockObserver>>,
    ) -> Core {
        let (limits, facts) = (&shared.limits, shared.model);
        let bounds = Bounds {
            sequences_max: limits.sequences_max,
            batch_tokens_max: limits.batch_tokens_max,
            prefix_cache: limits.prefix_cache,
        };
        let blocks_max = facts.sequence_tokens_max().div_ceil(BLOCK_TOKENS);
        let block_ids_max = blocks_max * limits.sequences_max;
        Core {
            bounds,
            sequences: Sequences::new(limits),
            blocks: BlockAllocator::new(facts.num_blocks, observer),
            sampler: Sampler::new(facts.vocab_size),
            plan: StepPlan::new(limits.sequences_max),
            batch: Batch::with_capacity(limits.batch_tokens_max, block_ids_max),
            incoming: VecDeque::with_capacity(limits.sequences_max + limits.waiting_max),
            ended: Vec::with_capacity(limits.sequences_max),
            totals: EngineStats { blocks: facts.num_blocks, ..EngineStats::default() },
            budget: Budget::new(facts.logit_rows_max.min(limits.batch_tokens_max)),
            costs: StepCosts::default(),
            make_drafter: Box::new(|_| Box::new(Ngrams::default())),
            clock: Box::new(Instant::now),
            model,
            shared,
        }
    }

    /// Takes what has come in, drops what was cancelled, and computes one step.
    ///
    /// # Errors
    /// The message of a model that cannot be used any more.
    pub(crate) fn turn(&mut self) -> Result<Turn, String> {
        let closing = self.take_in();
        self.look_after_readers(closing);
        scheduler::plan(&mut self.sequences, &mut self.blocks, self.bounds, &mut self.plan);
        self.totals.preemptions += self.plan.preemptions;
        self.totals.tokens_cached += self.plan.cached_tokens;
        self.speculate();
        let outcome = if self.plan.spans.is_empty() {
            let none = self.sequences.running.is_empty() && self.sequences.waiting.is_empty();
            Ok(if closing.is_some() && none { Turn::Done } else { Turn::Idle })
        } else {
            self.step().map(|()| Turn::Worked)
        };
        self.publish_stats();
        outcome
    }

    fn take_in(&mut self) -> Option<Closing> {
        let closing = self.shared.take_submissions(&mut self.incoming);
        while let Some(submission) = self.incoming.pop_front() {
            let (limits, model) = (&self.shared.limits, &self.shared.model);
            let drafter = (self.make_drafter)(submission.id);
            let mut sequence = Sequence::new(submission, self.totals.steps, limits, model);
            sequence.foresight.guess_by(drafter);
            self.sequences.wait(sequence);
        }
        closing
    }

    /// Ends what was cancelled, in every state, and notes who cannot take another token.
    fn look_after_readers(&mut self, closing: Option<Closing>) {
        let cancel = (closing == Some(Closing::Now)).then_some(CancelReason::Shutdown);
        let look = |sequence: &mut Sequence| {
            let status = sequence.sender.status();
            (sequence.paused, sequence.reader_room) = (status.paused, status.room);
            status.cancelled.or(cancel)
        };
        let mut index = 0;
        while index < self.sequences.waiting.len() {
            match look(&mut self.sequences.waiting[index]) {
                None => index += 1,
                Some(reason) => {
                    let sequence = self.sequences.waiting.remove(index);
                    self.end(sequence, FinishReason::Cancelled(reason));
                }
            }
        }
        let mut index = 0;
        while index < self.sequences.running.len() {
            match look(&mut self.sequences.running[index]) {
                None => index += 1,
                Some(reason) => {
                    let sequence = self.sequences.running.remove(index);
                    self.end(sequence, FinishReason::Cancelled(reason));
                }
            }
        }
    }

    /// Lets drafts join a step in which every sequence computes its last known token. Beside a
    /// prompt they have no place: it takes what time there is.
    fn speculate(&mut self) {
        let Core { plan: StepPlan { spans, .. }, sequences, blocks, budget, costs, .. } = self;
        let running = &mut sequences.running;
        let generates = |span: &PlannedSpan| {
            let sequence = &running[span.sequence];
            span.tokens.len() == 1 && sequence.gap() == 1 && !sequence.suspect
        };
        if !spans.iter().all(generates) || !budget.begin(spans.len()) {
            return;
        }
        for (index, span) in spans.iter().enumerate() {
            let sequence = &mut running[span.sequence];
            sequence.foresight.look(&sequence.tokens);
            let chances = sequence.foresight.chances().take(sequence.draft_room());
            budget.offer(index, chances, sequence.foresight.speculation);
        }
        for guess in budget.choose(spans.len(), costs) {
            spans[guess.span].draft += 1;
        }
        for span in spans.iter_mut().filter(|span| span.draft > 0) {
            // Everybody's next block comes before anybody's guess.
            let spare = blocks.available() > running.len();
            let Sequence { table, tokens, .. } = &mut running[span.sequence];
            if spare {
                table.grow(tokens.len() + span.draft, blocks);
            }
            span.draft = span.draft.min(table.tokens_max() - tokens.len());
        }
    }

    /// Computes the planned spans and hands out what comes of them.
    fn step(&mut self) -> Result<(), String> {
        self.fill_batch();
        let begun = (self.clock)();
        for span in &self.plan.spans {
            let clock = &mut self.sequences.running[span.sequence].tally.clock;
            clock.started.get_or_insert(begun);
        }
        self.shared.mark_step(Some(begun));
        let result = self.model.forward(&self.batch);
        self.shared.mark_step(None);
        self.totals.steps += 1;
        match result {
            Ok(stats) => {
                let now = (self.clock)();
                if self.plan.spans.iter().all(|span| span.tokens.len() == 1) {
                    self.costs.note(self.batch.len(), now.saturating_duration_since(begun));
                }
                self.harvest(stats, now);
            }
            Err(StepError::Fatal(message)) => return Err(message),
            Err(_) if self.drop_drafts() => {}
            Err(StepError::Spans { spans, message }) => self.blame(spans, &message),
            Err(StepError::Batch(message)) => self.suspect(&message),
        }
        self.end_marked();
        Ok(())
    }

    fn fill_batch(&mut self) {
        self.batch.clear();
        for span in &self.plan.spans {
            let sequence = &self.sequences.running[span.sequence];
            let first = u32::try_from(span.tokens.start).expect("positions fit 32 bits");
            let end = span.tokens.end + span.draft;
            let blocks = &sequence.table.ids()[..end.div_ceil(BLOCK_TOKENS)];
            let known = &sequence.tokens[span.tokens.clone()];
            if span.draft == 0 {
                self.batch.push_span(known, first, blocks, WantLogits::Last);
                continue;
            }
            let mut tokens = [0; 1 + DRAFT_TOKENS_MAX];
            let tokens = &mut tokens[..=span.draft];
            tokens[0] = known[0];
            tokens[1..].copy_from_slice(&sequence.foresight.draft()[..span.draft]);
            self.batch.push_span(tokens, first, blocks, WantLogits::All);
        }
    }

    /// After a step that succeeded. A span owns one row of logits, and one more for each token of
    /// its draft.
    fn harvest(&mut self, stats: StepStats, now: Instant) {
        let total = self.batch.len();
        self.totals.tokens_computed += total as u64;
        self.totals.expert_bytes += stats.expert_bytes;
        let mut row = 0;
        for index in 0..self.plan.spans.len() {
            let span = self.plan.spans[index].clone();
            let (end, accepted) = self.advance(&span, row);
            row += 1 + span.draft;
            let sequence = &mut self.sequences.running[span.sequence];
            let drafts = DraftCounts { computed: span.draft as u64, accepted: accepted as u64 };
            self.totals.drafts += drafts;
            sequence.tally.drafts += drafts;
            let computed = span.tokens.len() + span.draft;
            let share = u128::from(stats.expert_bytes) * computed as u128 / total as u128;
            let decode = span.tokens.start >= sequence.prompt_tokens;
            sequence.tally.experts.add(share as u64, span.tokens.len() + accepted, decode);
            if !matches!(end, Some(FinishReason::NumericalError)) && self.bounds.prefix_cache {
                let Sequence { table, tokens, computed, .. } = sequence;
                table.publish(*computed, tokens, &mut self.blocks);
            }
            // A stop token ends the output without joining it, but it was chosen all the same.
            let stopped = matches!(end, Some(FinishReason::Stop { .. }));
            if stopped || sequence.tokens.len() > sequence.prompt_tokens {
                let clock = &mut sequence.tally.clock;
                clock.first_token.get_or_insert(now);
                clock.last_token = Some(now);
            }
            if let Some(reason) = end {
                self.ended.push((span.sequence, reason));
            }
        }
    }

    /// Moves a sequence on by what was computed of it, whose logits begin at `row`. A gap that is
    /// closed yields a token, and one more for each token of the draft that was right. Why the
    /// sequence ends, if it does, and how many were.
    fn advance(&mut self, span: &PlannedSpan, row: usize) -> (Option<FinishReason>, usize) {
        let sequence = &mut self.sequences.running[span.sequence];
        sequence.suspect = false;
        sequence.computed = span.tokens.end;
        if sequence.gap() > 0 {
            return (check_row(self.model.logits(row)).err().map(sampling_failed), 0);
        }
        let eos_tokens = &self.shared.limits.eos_tokens;
        let known = sequence.tokens.len();
        let mut accepted = 0;
        let end = loop {
            let logits = self.model.logits(row + accepted);
            let end = sample(&mut self.sampler, logits, sequence, eos_tokens);
            self.totals.tokens_generated += 1;
            let guessed = sequence.foresight.draft()[..span.draft].get(accepted);
            if end.is_some() || guessed != sequence.tokens.last() {
                break end;
            }
            accepted += 1;
            sequence.computed += 1;
        };
        // What was computed on wrong guesses is forgotten: nobody reads beyond `computed`, and the
        // next step writes there.
        sequence.table.shrink(sequence.tokens.len(), &mut self.blocks);
        sequence.foresight.learn(&sequence.tokens[known..]);
        (end, accepted)
    }

    /// After a step that failed: takes drafts out of it, for good, and says whether there were any.
    /// What nobody asked for must not end a request, so the step is repeated without them.
    fn drop_drafts(&mut self) -> bool {
        let mut any = false;
        for span in self.plan.spans.iter().filter(|span| span.draft > 0) {
            let sequence = &mut self.sequences.running[span.sequence];
            sequence.foresight.give_up();
            sequence.table.shrink(sequence.tokens.len(), &mut self.blocks);
            any = true;
        }
        any
    }

    /// Ends the requests of the failed spans; the others have computed nothing and try again.
    fn blame(&mut self, mut spans: Vec<usize>, message: &str) {
        spans.retain(|&span| span < self.plan.spans.len());
        spans.sort_unstable();
        spans.dedup();
        if spans.is_empty() {
            return self.suspect(message);
        }
        for span in spans {
            let reason = FinishReason::ModelError(message.to_owned());
            self.ended.push((self.plan.spans[span].sequence, reason));
        }
    }

    /// A step failed and nobody knows whose fault it was, unless there was only one.
    fn suspect(&mut self, message: &str) {
        if let [span] = &self.plan.spans[..] {
            let reason = FinishReason::ModelError(message.to_owned());
            return self.ended.push((span.sequence, reason));
        }
        for span in &self.plan.spans {
            self.sequences.running[span.sequence].suspect = true;
        }
    }

    fn end_marked(&mut self) {
        // From the back, so that the indices of those still to come stay right.
        while let Some((index, reason)) = self.ended.pop() {
            let sequence = self.sequences.running.remove(index);
            self.end(sequence, reason);
        }
    }

    fn end(&mut self, mut sequence: Sequence, reason: FinishReason) {
        sequence.release(&mut self.blocks);
        self.totals.finished += 1;
        // Before the end is told: who has read it may submit again at once and find room.
        self.shared.retire(sequence.order.id);
        sequence.finish(reason);
    }

    fn publish_stats(&self) {
        let counts = self.blocks.counts();
        let running = &self.sequences.running;
        self.shared.publish(|stats| {
            let totals = &self.totals;
            stats.running = running.len();
            stats.paused = running.iter().filter(|sequence| sequence.paused).count();
            stats.waiting = self.sequences.waiting.len();
            stats.blocks = totals.blocks;
            stats.blocks_free = counts.free + counts.cached;
            stats.blocks_cached = self.blocks.num_names();
            stats.steps = totals.steps;
            stats.tokens_computed = totals.tokens_computed;
            stats.tokens_generated = totals.tokens_generated;
            stats.tokens_cached = totals.tokens_cached;
            stats.preemptions = totals.preemptions;
            stats.expert_bytes = totals.expert_bytes;
            stats.drafts = totals.drafts;
            stats.finished = totals.finished;
        });
    }

    /// Ends every request because the engine cannot go on. Blocks are not returned: they go down
    /// with the engine, and their accounts may be what is broken.
    pub(crate) fn abandon(self, message: &str) {
        let Sequences { running, waiting } = self.sequences;
        for sequence in running.into_iter().chain(waiting) {
            sequence.abandon(message);
        }
        for submission in self.incoming {
            submission.sender.finish(stopped_summary(message));
        }
    }

    /// Panics unless every block is where it should be, and nobody holds more than it needs.
    pub(crate) fn check(&self) {
        let running = &self.sequences.running;
        for Sequence { table, tokens, .. } in running {
            let needed = tokens.len().div_ceil(BLOCK_TOKENS);
            assert!(table.ids().len() <= needed, "blocks of a draft go back");
        }
        self.blocks.check(running.iter().flat_map(|sequence| sequence.table.ids()).copied());
    }
}

/// Chooses the next token of a sequence whose gap is closed, and says so to its reader.
fn sample(
    sampler: &mut Sampler,
    logits: &[f32],
    sequence: &mut Sequence,
    eos_tokens: &[u32],
) -> Option<FinishReason> {
    let position = sequence.tokens.len();
    let choice = match sampler.choose(logits, position, &mut sequence.sampling) {
        Ok(choice) => choice,
        Err(error) => return Some(sampling_failed(error)),
    };
    let token = choice.token;
    if sequence.stops_at(token, eos_tokens) {
        return Some(FinishReason::Stop { token });
    }
    sequence.tokens.push(token);
    sequence.sampling.generated(token);
    sequence.sender.send(Event::Token {
        id: token,
        logprob: choice.logprob,
        top_logprobs: choice.top_logprobs,
    });
    if let Some(constraint) = &mut sequence.sampling.constraint {
        match constraint.accept(token) {
            Err(error) => return Some(FinishReason::ConstraintError(error.to_string())),
            Ok(()) if constraint.is_complete() => return Some(FinishReason::ConstraintComplete),
            Ok(()) => {}
        }
    }
    (sequence.tokens.len() >= sequence.ending.tokens_max).then_some(FinishReason::Length)
}

fn sampling_failed(error: SampleError) -> FinishReason {
    match error {
        SampleError::NotNumbers => FinishReason::NumericalError,
        SampleError::Constraint(message) => FinishReason::ConstraintError(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handle::Limits;
    use crate::request::{Request, SamplingParams};
    use crate::sim::{Bench, FAILS_BATCH, FakeModel};
    use std::task::Poll;

    #[test]
    fn a_decode_step_allocates_nothing() {
        let limits = Limits { batch_tokens_max: 64, ..Limits::default() };
        let mut bench = Bench::new(FakeModel::new(256, 64), limits, None);
        let sampling = [
            SamplingParams::greedy(),
            SamplingParams { top_k: 20, repetition_penalty: 1.1, ..SamplingParams::default() },
            SamplingParams { top_p: 0.9, logit_bias: vec![(3, 1.0)], ..SamplingParams::default() },
            SamplingParams { min_p: 0.05, ..SamplingParams::default() },
        ];
        let mut streams = Vec::new();
        for (index, sampling) in sampling.into_iter().enumerate() {
            let mut request = Request::new(vec![1 + index as u32; 40]);
            request.sampling = sampling;
            streams.push(bench.shared.submit(request).expect("the request is sound"));
        }
        for _ in 0..8 {
            bench.turn();
        }
        // Long enough for every sequence to fill, name and publish several blocks.
        let allocated = allocation_counter::measure(|| {
            for _ in 0..100 {
                assert_eq!(bench.core.turn(), Ok(Turn::Worked));
                for stream in &mut streams {
                    assert!(matches!(stream.try_recv(), Poll::Ready(Some(Event::Token { .. }))));
                }
            }
        });
        assert_eq!(allocated.count_total, 0, "{allocated:?}");
        assert!(bench.core.blocks.num_names() > 4 * 6);
    }

    #[test]
    fn after_a_failure_without_a_culprit_the_innocent_run_together_again() {
        let limits = Limits { batch_tokens_max: 64, ..Limits::default() };
        let mut bench = Bench::new(FakeModel::new(64, 64), limits, None);
        let mut streams = Vec::new();
        for first in [1, FAILS_BATCH, 2] {
            let request = Request::new(vec![first, 5]);
            streams.push(bench.shared.submit(request).expect("the request is sound"));
        }
        for _ in 0..5 {
            bench.turn();
        }
        assert_eq!(bench.core.plan.spans.len(), 2);
        let Poll::Ready(Some(Event::Finished(summary))) = streams[1].try_recv() else {
            panic!("the culprit is still there");
        };
        assert!(matches!(summary.reason, FinishReason::ModelError(_)));
        let Poll::Ready(Some(Event::Token { .. })) = streams[0].try_recv() else {
            panic!("the innocent got nothing");
        };
    }
}
