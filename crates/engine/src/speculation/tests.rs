//! Guessing ahead in a whole engine but for its thread: with guesses all right, all wrong, or
//! poison, requests end where they would without.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use super::{DRAFT_TOKENS_MAX, Draft, Drafter, Speculation};
use crate::blocks::{BlockName, BlockObserver};
use crate::channel::lock;
use crate::constraint::{ConstraintError, TokenConstraint, TokenMask};
use crate::handle::Limits;
use crate::request::{Event, FinishReason, Request, SamplingParams, Summary};
use crate::sim::{Bench, EOS, FAILS_BATCH, FAILS_SPAN, FakeModel, TURNS_NAN, VOCAB_SIZE};

/// Guesses as it was told to.
struct Told {
    future: Vec<u32>,
    spoil: Spoil,
}

/// What becomes of a guess that would be right.
type Spoil = fn(u32) -> u32;

impl Drafter for Told {
    fn reserve(&mut self, _: usize) {}
    fn draft(&mut self, known: &[u32], draft: &mut Draft) {
        let ahead = self.future.iter().skip(known.len()).take(DRAFT_TOKENS_MAX);
        draft.tokens.extend(ahead.map(|&token| (self.spoil)(token)));
        draft.support = 3;
    }
}

fn right(token: u32) -> u32 {
    token
}

fn wrong(token: u32) -> u32 {
    (token + 1) % 60
}

/// Which beginnings can be found.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashSet<BlockName>>>);

impl BlockObserver for Names {
    fn stored(&mut self, name: BlockName, _: BlockName, _: &[u32]) {
        lock(&self.0).insert(name);
    }
    fn evicted(&mut self, name: BlockName) {
        lock(&self.0).remove(&name);
    }
}

/// What came of a request.
struct Outcome {
    events: Vec<Event>,
    summary: Summary,
    names: HashSet<BlockName>,
    /// Of the model.
    steps: u64,
    /// By the simulator's clock.
    micros: u64,
}

impl Outcome {
    fn tokens(&self) -> Vec<u32> {
        let id = |event: &Event| match event {
            Event::Token { id, .. } => *id,
            Event::Finished(_) => panic!("the end is kept apart"),
        };
        self.events.iter().map(id).collect()
    }
}

const BLOCKS: usize = 64;

fn outcome(request: Request, model: FakeModel, told: Option<(Vec<u32>, Spoil)>) -> Outcome {
    let names = Names::default();
    let limits = Limits { eos_tokens: vec![EOS], events_max: 2000, ..Limits::default() };
    let clock = model.clock();
    let mut bench = Bench::new(model, limits, Some(Box::new(names.clone())));
    if let Some((future, spoil)) = told {
        bench.core.make_drafter =
            Box::new(move |_| Box::new(Told { future: future.clone(), spoil }));
    }
    let mut stream = bench.shared.submit(request).expect("the request is sound");
    let mut events = Vec::new();
    loop {
        bench.turn();
        while let Poll::Ready(Some(event)) = stream.try_recv() {
            let Event::Finished(summary) = event else {
                events.push(event);
                continue;
            };
            assert_eq!(bench.shared.stats().blocks_free, BLOCKS);
            let (steps, names) = (bench.shared.stats().steps, lock(&names.0).clone());
            return Outcome { events, summary, names, steps, micros: clock() };
        }
    }
}

fn model() -> FakeModel {
    FakeModel::new(BLOCKS, 64)
}

/// Runs what `request` makes without guesses, and with guesses that are all right, all wrong, and
/// right only now and then; all must end alike. The outcomes without, and with right ones.
fn the_same(request: impl Fn() -> Request) -> (Outcome, Outcome) {
    let plain = outcome(Request { speculation: Speculation::Off, ..request() }, model(), None);
    // Guesses reach beyond the end.
    let mut future = request().tokens;
    future.extend(plain.tokens());
    if let FinishReason::Stop { token } = plain.summary.reason {
        future.push(token);
    }
    future.extend([7; 20]);
    let guessed = |spoil: Spoil| {
        let request = Request { speculation: Speculation::Always, ..request() };
        let guessed = outcome(request, model(), Some((future.clone(), spoil)));
        assert_eq!(guessed.events, plain.events);
        assert_eq!(guessed.summary.reason, plain.summary.reason);
        let (usage, expected) = (guessed.summary.usage, plain.summary.usage);
        assert_eq!(usage.completion_tokens, expected.completion_tokens);
        assert_eq!(guessed.names, plain.names, "no more and no less can be found");
        guessed
    };
    let none = guessed(wrong).summary.usage.drafts;
    assert_eq!(none.accepted, 0);
    guessed(|token| if token % 3 == 0 { wrong(token) } else { token });
    let all = guessed(right);
    (plain, all)
}

fn request(max_tokens: usize) -> Request {
    let mut request = Request::new((1..20).collect());
    request.sampling = SamplingParams { seed: Some(5), ..SamplingParams::default() };
    (request.max_tokens, request.logprobs, request.ignore_eos) = (Some(max_tokens), Some(2), true);
    request
}

#[test]
fn right_guesses_make_eight_tokens_a_step_and_every_limit_holds() {
    for max_tokens in 1..40 {
        let (plain, guessed) = the_same(|| request(max_tokens));
        assert_eq!(plain.summary.reason, FinishReason::Length);
        // One step reads the prompt and yields a token.
        assert_eq!(plain.steps, max_tokens as u64);
        let rest = max_tokens as u64 - 1;
        let usage = guessed.summary.usage;
        // The last token is never a guess: its keys and values are of no use.
        let per_step = 1 + DRAFT_TOKENS_MAX as u64;
        assert_eq!(guessed.steps, 1 + rest.div_ceil(per_step));
        assert_eq!(usage.drafts.accepted, usage.drafts.computed);
        assert_eq!(usage.drafts.accepted, max_tokens as u64 - guessed.steps);
        assert_eq!(usage.tokens_per_step(), Some(max_tokens as f64 / guessed.steps as f64));
    }
}

#[test]
fn the_context_ends_in_the_middle_of_a_draft() {
    // 1024 tokens of room and a prompt of 19: 1005 are generated.
    let endless = || Request { max_tokens: None, ..request(1) };
    let off = outcome(Request { speculation: Speculation::Off, ..endless() }, model(), None);
    let future: Vec<u32> = endless().tokens.into_iter().chain(off.tokens()).chain([7; 9]).collect();
    let always = Request { speculation: Speculation::Always, ..endless() };
    let guessed = outcome(always, model(), Some((future, right)));
    assert_eq!((off.tokens().len(), guessed.events), (1005, off.events));
    assert_eq!(guessed.steps, 1 + 1004_u64.div_ceil(8));
}

#[test]
fn a_stop_token_in_a_draft_ends_the_answer_there() {
    let (endless, _) = the_same(|| request(60));
    for place in 0..40 {
        let stop = endless.tokens()[place];
        let (plain, guessed) = the_same(|| Request { stop_tokens: vec![stop], ..request(60) });
        assert_eq!(plain.summary.reason, FinishReason::Stop { token: stop });
        assert!(guessed.steps < plain.steps || plain.steps < 3);
    }
}

#[test]
fn samplers_see_one_token_after_the_other() {
    let change: [fn(&mut SamplingParams); 4] = [
        |s| s.temperature = 0.0,
        |s| (s.repetition_penalty, s.frequency_penalty) = (1.5, 0.7),
        |s| (s.temperature, s.presence_penalty, s.top_k) = (3.0, 2.0, 12),
        |s| (s.top_p, s.min_p, s.logit_bias) = (0.7, 0.02, vec![(4, 5.0)]),
    ];
    for change in change {
        let (plain, guessed) = the_same(|| {
            let mut request = request(100);
            change(&mut request.sampling);
            request
        });
        assert!(guessed.steps * 4 < plain.steps);
    }
}

/// Allows what is not divisible by the number of tokens so far, which must be chosen one by one,
/// and is complete after some.
struct Counting {
    accepted: usize,
    complete: usize,
}

impl TokenConstraint for Counting {
    fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
        let count = self.accepted as u32 + 2;
        (0..VOCAB_SIZE as u32).filter(|token| token % count != 0).for_each(|t| mask.allow(t));
        Ok(())
    }
    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert_ne!(token % (self.accepted as u32 + 2), 0, "only what is allowed is accepted");
        self.accepted += 1;
        Ok(())
    }
    fn is_complete(&self) -> bool {
        self.accepted == self.complete
    }
}

#[test]
fn a_constraint_sees_what_is_chosen_and_ends_in_the_middle_of_a_draft() {
    for complete in 1..30 {
        let constrained = || {
            let constraint: Box<dyn TokenConstraint> = Box::new(Counting { accepted: 0, complete });
            Request { constraint: Some(constraint), ..request(60) }
        };
        let (plain, _) = the_same(constrained);
        assert_eq!(plain.summary.reason, FinishReason::ConstraintComplete);
    }
}

#[test]
fn a_step_that_fails_because_of_a_draft_is_repeated_without() {
    for poison in [FAILS_BATCH, FAILS_SPAN, TURNS_NAN] {
        let spoil: Spoil = match poison {
            FAILS_BATCH => |_| FAILS_BATCH,
            FAILS_SPAN => |_| FAILS_SPAN,
            _ => |_| TURNS_NAN,
        };
        let ask = |speculation| Request { speculation, ..request(50) };
        let plain = outcome(ask(Speculation::Off), model(), None);
        let future = vec![1; 100];
        let guessed = outcome(ask(Speculation::Always), model(), Some((future, spoil)));
        assert_eq!((guessed.events, guessed.names), (plain.events, plain.names));
        assert_eq!(guessed.summary.reason, FinishReason::Length);
        let failed = u64::from(poison != TURNS_NAN);
        assert_eq!(guessed.steps, plain.steps + failed, "one failure is enough to learn from");
    }
}

#[test]
fn measured_drafts_gain_where_they_can_and_lose_next_to_nothing_where_they_cannot() {
    let ask = |speculation| Request { speculation, ..request(900) };
    let (cheap, dear) = (100, 1200);
    let mut future = request(1).tokens;
    let plain = outcome(ask(Speculation::Off), model(), None);
    future.extend(plain.tokens());
    let compare = |row_micros, spoil| {
        let model = || model().with_row_cost(row_micros);
        let plain = outcome(ask(Speculation::Off), model(), None);
        let told = Some((future.clone(), spoil));
        let guessed = outcome(ask(Speculation::Measured), model(), told);
        assert_eq!(guessed.events, plain.events);
        guessed.micros as f64 / plain.micros as f64
    };
    // Eight tokens in the time of 1.7 steps, but for the steps that measure what one takes.
    let gain = compare(cheap, right);
    assert!(gain < 0.25, "{gain}");
    for (row_micros, spoil) in [(cheap, wrong as Spoil), (dear, right), (dear, wrong)] {
        let loss = compare(row_micros, spoil);
        assert!(loss < 1.02, "{loss} at {row_micros}");
    }
}
