//! What the next step computes. A function of sequences, blocks and bounds: it reads no clock, does
//! no I/O and draws no random number, so a simulation of it is the thing itself.
//!
//! There are no phases. Each step spends a budget of tokens on closing the gaps between known and
//! computed tokens. Chunked prefill, decode, prefix hits and recomputation after a preemption are
//! all the same to it.
//!
//! The rules, in this order:
//! 1. *Growth.* Every running sequence gets blocks for all its known tokens. If none is left,
//!    somebody goes back to waiting and is computed again later: first those whose reader is slow,
//!    then the last in order, the needy one itself if it is the last. So the first in order is
//!    never held up by others, and it is always somebody's turn to be first: nobody starves.
//! 2. *Admission,* strictly in order: a request that does not fit yet is not overtaken by smaller
//!    ones. A sequence is admitted with blocks for all its known tokens, and only if those running
//!    keep a block each to grow into, so that admission does not cause preemption at once.
//! 3. *Budget.* One token for every gap of one, so that long prompts never stall those who
//!    generate. Of the rest the first in order is sure of half, which bounds the wait for a long
//!    prompt; the other half goes to the shortest gaps, so that short prompts start soon. Nobody
//!    computes what another is computing in the same step: it takes it over afterwards.

use std::ops::Range;

use crate::blocks::BlockAllocator;
use crate::sequence::{Sequence, Sequences};

/// The bounds a plan keeps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) sequences_max: usize,
    pub(crate) batch_tokens_max: usize,
    pub(crate) prefix_cache: bool,
}

/// One sequence's part in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedSpan {
    /// Index into the running sequences.
    pub(crate) sequence: usize,
    /// The known tokens to compute, as positions in the sequence.
    pub(crate) tokens: Range<usize>,
    /// How many tokens of the sequence's draft are computed after them. Planning gives none: see
    /// [`crate::speculation`].
    pub(crate) draft: usize,
}

/// What a step computes, and what planning it has changed.
///
/// Every span asks for the logits of its last token. In the middle of a prompt they are not
/// sampled from; they show that what was computed is sound before others may find it.
#[derive(Debug, Default)]
pub(crate) struct StepPlan {
    /// In order of `sequence`, no sequence twice, no span empty.
    pub(crate) spans: Vec<PlannedSpan>,
    pub(crate) preemptions: u64,
    pub(crate) cached_tokens: u64,
    gaps: Vec<(usize, usize)>, // (gap, index) of sequences that want more than one token
}

impl StepPlan {
    /// An empty plan with room for `sequences_max` spans.
    pub(crate) fn new(sequences_max: usize) -> StepPlan {
        StepPlan {
            spans: Vec::with_capacity(sequences_max),
            gaps: Vec::with_capacity(sequences_max),
            ..StepPlan::default()
        }
    }
}

/// Plans the next step into `plan`.
pub(crate) fn plan(
    sequences: &mut Sequences,
    blocks: &mut BlockAllocator,
    bounds: Bounds,
    plan: &mut StepPlan,
) {
    plan.spans.clear();
    (plan.preemptions, plan.cached_tokens) = (0, 0);
    grow(sequences, blocks, plan);
    if plan.preemptions == 0 {
        admit(sequences, blocks, bounds, plan);
    }
    let suspect =
        sequences.running.iter().position(|sequence| sequence.suspect && !sequence.paused);
    if let Some(suspect) = suspect {
        // After a failure without a culprit each suspect runs alone: who fails alone is guilty.
        give(sequences, suspect, bounds.batch_tokens_max, plan);
    } else {
        if bounds.prefix_cache {
            catch_up(sequences, blocks, plan);
        }
        spend(sequences, bounds, plan);
    }
    plan.spans.sort_unstable_by_key(|span| span.sequence);
}

/// Rule 1.
fn grow(sequences: &mut Sequences, blocks: &mut BlockAllocator, plan: &mut StepPlan) {
    let mut index = 0;
    while index < sequences.running.len() {
        let sequence = &mut sequences.running[index];
        if sequence.paused || sequence.table.grow(sequence.tokens.len(), blocks) {
            index += 1;
            continue;
        }
        let victim = last_paused(sequences).unwrap_or(sequences.running.len() - 1);
        sequences.preempt(victim, blocks);
        plan.preemptions += 1;
        // A victim before the needy one (paused, that is) moves it up by one.
        index -= usize::from(victim < index);
    }
}

fn last_paused(sequences: &Sequences) -> Option<usize> {
    sequences.running.iter().rposition(|sequence| sequence.paused)
}

/// Rule 2.
fn admit(
    sequences: &mut Sequences,
    blocks: &mut BlockAllocator,
    bounds: Bounds,
    plan: &mut StepPlan,
) {
    while let Some(head) = sequences.waiting.iter().position(|sequence| !sequence.paused) {
        let Some(hit) = fits(sequences, head, blocks, bounds) else {
            match weaker(sequences, head) {
                // The paused victim waits in front of or behind the head: look for it again.
                Some(victim) => {
                    sequences.preempt(victim, blocks);
                    plan.preemptions += 1;
                    continue;
                }
                None => return,
            }
        };
        let index = sequences.admit(head);
        let sequence = &mut sequences.running[index];
        sequence.table.adopt_prefix(hit, &sequence.tokens, blocks);
        sequence.computed = sequence.table.tokens_max();
        let grown = sequence.table.grow(sequence.tokens.len(), blocks);
        assert!(grown, "an admitted sequence was counted to fit");
        if sequence.tally.cached_tokens.is_none() {
            sequence.tally.cached_tokens = Some(sequence.computed);
            plan.cached_tokens += sequence.computed as u64;
        }
    }
}

/// Whether `waiting[head]` can run beside the others; if so, the number of its blocks that are
/// computed already.
fn fits(
    sequences: &mut Sequences,
    head: usize,
    blocks: &BlockAllocator,
    bounds: Bounds,
) -> Option<usize> {
    if sequences.running.len() >= bounds.sequences_max {
        return None;
    }
    let active = sequences.running.iter().filter(|sequence| !sequence.paused).count();
    let sequence = &mut sequences.waiting[head];
    let (hit, unheld) = if bounds.prefix_cache {
        sequence.table.find_prefix(&sequence.tokens, blocks)
    } else {
        (0, 0)
    };
    // Cached blocks that are hit and held by nobody stop being available by being used.
    let wanted = sequence.table.missing(sequence.tokens.len()) - hit + unheld;
    (wanted + active <= blocks.available()).then_some(hit)
}

/// A running sequence that makes way for `waiting[head]`: one whose reader is slow, or one of
/// lower priority that is also behind in order. Both together keep it finite: priority alone
/// would let newcomers displace somebody for ever, order alone would let the preempted come back
/// at the expense of those they made way for.
fn weaker(sequences: &Sequences, head: usize) -> Option<usize> {
    let head = &sequences.waiting[head];
    last_paused(sequences).or_else(|| {
        sequences
            .running
            .iter()
            .rposition(|other| other.priority < head.priority && other.order > head.order)
    })
}

/// Takes over what others have computed since the last step.
fn catch_up(sequences: &mut Sequences, blocks: &mut BlockAllocator, plan: &mut StepPlan) {
    for sequence in &mut sequences.running {
        let Sequence { table, tokens, computed, tally, .. } = sequence;
        let reached = table.catch_up(*computed, tokens, blocks);
        let found = reached - std::mem::replace(computed, reached);
        if let (Some(cached), 0) = (&mut tally.cached_tokens, tally.preemptions) {
            *cached += found;
            plan.cached_tokens += found as u64;
        }
    }
}

/// Leaves out of `plan.gaps` whoever would compute the very block that somebody before it is
/// computing: it catches up instead. Many requests with one beginning, sent at once, thus cost one
/// beginning. Those left out wait for somebody better in order who is not, so nobody starves.
fn follow(sequences: &mut Sequences, plan: &mut StepPlan) {
    let mut next_name = |index: usize| {
        let sequence = &mut sequences.running[index];
        sequence.table.next_name(sequence.computed, &sequence.tokens)
    };
    let mut kept = 0;
    for place in 0..plan.gaps.len() {
        let name = next_name(plan.gaps[place].1);
        let leads = name.is_none()
            || plan.gaps[..kept].iter().all(|&(_, leader)| next_name(leader) != name);
        if leads {
            plan.gaps.swap(kept, place);
            kept += 1;
        }
    }
    plan.gaps.truncate(kept);
}

/// Rule 3.
fn spend(sequences: &mut Sequences, bounds: Bounds, plan: &mut StepPlan) {
    let mut budget = bounds.batch_tokens_max;
    plan.gaps.clear();
    for index in 0..sequences.running.len() {
        let sequence = &sequences.running[index];
        match sequence.gap() {
            _ if sequence.paused => {}
            0 => unreachable!("a closed gap yields a token or the end"),
            1 => budget -= give_one(sequences, index, budget, plan),
            gap => plan.gaps.push((gap, index)),
        }
    }
    if bounds.prefix_cache {
        follow(sequences, plan);
    }
    let Some(&(first_gap, first)) = plan.gaps.first() else { return };
    let sure = if plan.gaps.len() == 1 { budget } else { budget.div_ceil(2) };
    let mut rest = budget - sure.min(first_gap);
    plan.gaps.swap_remove(0);
    // Equal gaps in order of arrival, which is the order of indices.
    plan.gaps.sort_unstable();
    for place in 0..plan.gaps.len() {
        let (gap, index) = plan.gaps[place];
        let count = gap.min(rest);
        give(sequences, index, count, plan);
        rest -= count;
    }
    give(sequences, first, sure.min(first_gap) + rest, plan);
}

fn give_one(sequences: &Sequences, index: usize, budget: usize, plan: &mut StepPlan) -> usize {
    let count = budget.min(1);
    give(sequences, index, count, plan);
    count
}

/// Plans up to `count` of the sequence's missing tokens.
fn give(sequences: &Sequences, index: usize, count: usize, plan: &mut StepPlan) {
    let sequence = &sequences.running[index];
    let count = count.min(sequence.gap());
    if count > 0 {
        let tokens = sequence.computed..sequence.computed + count;
        plan.spans.push(PlannedSpan { sequence: index, tokens, draft: 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Doorbell, EventStream, channel};
    use crate::handle::{Limits, ModelFacts, Submission};
    use crate::request::{Request, RequestId};
    use std::sync::Arc;
    use std::time::Instant;

    /// Sequences without a model: what is planned counts as computed, and closing a gap makes a
    /// token.
    struct World {
        sequences: Sequences,
        blocks: BlockAllocator,
        bounds: Bounds,
        limits: Limits,
        plan: StepPlan,
        streams: Vec<EventStream>,
        step: u64,
    }

    impl World {
        fn new(num_blocks: usize, sequences_max: usize, batch_tokens_max: usize) -> World {
            let limits = Limits { priority_step: 10, ..Limits::default() };
            World {
                sequences: Sequences::new(&limits),
                blocks: BlockAllocator::new(num_blocks, None),
                bounds: Bounds { sequences_max, batch_tokens_max, prefix_cache: true },
                limits,
                plan: StepPlan::new(sequences_max),
                streams: Vec::new(),
                step: 0,
            }
        }

        fn arrive(&mut self, prompt_tokens: usize, priority: i32) -> RequestId {
            let id = RequestId(self.streams.len() as u64);
            let (sender, stream) = channel(id, 8, Arc::new(Doorbell::default()));
            self.streams.push(stream);
            let mut request = Request::new(vec![id.0 as u32; prompt_tokens]);
            request.priority = priority;
            let submission = Submission { id, request, seed: 0, sender, submitted: Instant::now() };
            let num_blocks = self.blocks.num_blocks();
            let model = ModelFacts {
                vocab_size: 1000,
                context_length: num_blocks * 16,
                num_blocks,
                batch_tokens_max: self.bounds.batch_tokens_max,
                logit_rows_max: self.bounds.sequences_max,
            };
            let sequence = Sequence::new(submission, self.step, &self.limits, &model);
            self.sequences.wait(sequence);
            id
        }

        /// One step; `(request, tokens)` of each span.
        fn step(&mut self) -> Vec<(u64, usize)> {
            plan(&mut self.sequences, &mut self.blocks, self.bounds, &mut self.plan);
            self.step += 1;
            let held = self.sequences.running.iter().flat_map(|s| s.table.ids()).copied();
            self.blocks.check(held);
            let mut spans = Vec::new();
            for span in &self.plan.spans {
                let sequence = &mut self.sequences.running[span.sequence];
                spans.push((sequence.order.id.0, span.tokens.len()));
                assert_eq!(span.tokens.start, sequence.computed);
                sequence.computed = span.tokens.end;
                if sequence.gap() == 0 {
                    sequence.tokens.push(0);
                }
            }
            let total: usize = spans.iter().map(|(_, tokens)| tokens).sum();
            assert!(total <= self.bounds.batch_tokens_max);
            spans
        }

        fn end(&mut self, id: u64) {
            let is = |sequence: &Sequence| sequence.order.id.0 == id;
            let index = self.sequences.running.iter().position(is).expect("it runs");
            self.sequences.running.remove(index).release(&mut self.blocks);
        }
    }

    #[test]
    fn long_prompts_never_stall_those_who_generate() {
        let mut world = World::new(64, 8, 40);
        world.arrive(4, 0);
        world.arrive(4, 0);
        assert_eq!(world.step(), [(0, 4), (1, 4)]);
        world.arrive(200, 0);
        for _ in 0..5 {
            assert_eq!(world.step(), [(0, 1), (1, 1), (2, 38)]);
        }
        assert_eq!(world.step(), [(0, 1), (1, 1), (2, 10)]);
    }

    #[test]
    fn the_first_prompt_is_sure_of_half_and_the_shortest_go_next() {
        let mut world = World::new(64, 8, 40);
        world.arrive(200, 0);
        world.arrive(100, 0);
        world.arrive(6, 0);
        assert_eq!(world.step(), [(0, 20), (1, 14), (2, 6)]);
        assert_eq!(world.step(), [(0, 20), (1, 19), (2, 1)]);
    }

    #[test]
    fn a_big_request_is_not_overtaken_for_ever_by_small_ones() {
        let mut world = World::new(8, 8, 64);
        let mut small = world.arrive(20, 0).0;
        world.step();
        let big = world.arrive(7 * 16 - 1, 0).0;
        for _ in 0..3 {
            world.arrive(20, 0);
            assert!(world.step().iter().all(|&(id, _)| id == small));
        }
        world.end(small);
        small = world.step()[0].0;
        assert_eq!(small, big);
    }

    #[test]
    fn waiting_makes_up_for_priority() {
        let mut world = World::new(4, 1, 64);
        let low = world.arrive(4, -1).0;
        let mut served = 0;
        for _ in 0..40 {
            let high = world.arrive(4, 1).0;
            let spans = world.step();
            if spans == [(low, 4)] {
                break;
            }
            assert_eq!(spans, [(high, 4)], "the newcomer is served before the low one");
            world.end(high);
            served += 1;
        }
        assert_eq!(served, 20, "two levels are worth two head starts of ten steps");
    }

    #[test]
    fn priority_displaces_the_lower_and_only_once() {
        let mut world = World::new(16, 1, 64);
        let low = world.arrive(4, 0).0;
        assert_eq!(world.step(), [(low, 4)]);
        let equal = world.arrive(4, 0).0;
        assert_eq!(world.step(), [(low, 1)]);
        let high = world.arrive(4, 1).0;
        assert_eq!(world.step(), [(high, 4)]);
        world.end(high);
        assert_eq!(world.step(), [(low, 6)]);
        // By now the low one's age outweighs the head start.
        world.step = 20;
        world.arrive(4, 1);
        assert_eq!(world.step(), [(low, 1)]);
        world.end(low);
        assert_eq!(world.step(), [(equal, 4)]);
    }

    #[test]
    fn out_of_blocks_the_last_goes_back_and_returns_when_there_is_room() {
        let mut world = World::new(4, 4, 64);
        world.arrive(30, 0);
        world.arrive(14, 0);
        assert_eq!(world.step(), [(0, 30), (1, 14)]);
        // Four blocks: three for the first when it has 33 tokens, and the other then wants two.
        let together = (0..100).take_while(|_| world.step() == [(0, 1), (1, 1)]).count();
        assert_eq!(together, 2);
        assert_eq!(world.sequences.waiting[0].tally.preemptions, 1);
        assert!((0..3).all(|_| world.step() == [(0, 1)]));
        world.end(0);
        assert_eq!(world.step(), [(1, 17)], "all of it is computed again");
    }

    #[test]
    fn suspects_run_alone_one_after_the_other() {
        let mut world = World::new(16, 4, 64);
        for _ in 0..3 {
            world.arrive(4, 0);
        }
        world.step();
        for index in [0, 2] {
            world.sequences.running[index].suspect = true;
        }
        assert_eq!(world.step(), [(0, 1)]);
        world.sequences.running[0].suspect = false;
        assert_eq!(world.step(), [(2, 1)]);
        world.sequences.running[2].suspect = false;
        assert_eq!(world.step(), [(0, 1), (1, 1), (2, 1)]);
    }

    #[test]
    fn one_beginning_sent_many_times_at_once_is_computed_once() {
        let mut world = World::new(64, 8, 32);
        for _ in 0..4 {
            let id = world.arrive(100, 0).0;
            world.sequences.waiting[id as usize].tokens.fill(7);
        }
        let mut computed = 0;
        for _ in 0..6 {
            computed += world.step().iter().map(|(_, tokens)| tokens).sum::<usize>();
            for sequence in &mut world.sequences.running {
                let Sequence { table, tokens, computed, .. } = sequence;
                table.publish(*computed, tokens, &mut world.blocks);
            }
        }
        let generated: usize = world.sequences.running.iter().map(|s| s.tokens.len() - 100).sum();
        assert!(generated >= 4, "all four have begun to generate");
        // The first 96 once, the 4 tokens after them and what was generated by each.
        assert!(computed <= 96 + 4 * 4 + generated, "{computed} tokens computed");
    }
}
