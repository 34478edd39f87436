//! A deterministic simulator of the whole engine but for its thread and a real model.
//!
//! A seed makes a scenario: bounds, a cache of a few blocks, requests that share beginnings, their
//! arrivals, cancellations, slow and vanishing readers, prompts the model chokes on. The scenario
//! runs through the very code the engine thread runs, and must end with every block returned,
//! every stream ended once, and every output equal to that of the same request run alone with
//! room to spare. A failure names its seed, and the seed replays it. Answers alone are made without
//! guessing ahead; in company they are guessed rightly and wrongly, and must not change.
//!
//! [`FakeModel`] stands in for the model: its cache holds one number per token, and its logits are
//! a hash of all the numbers it finds there for the positions so far. A block given to two
//! sequences, forgotten, or never computed changes the text. It serves as a model without weights
//! in other crates' tests, too.

mod prophet;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use moeba_model::batch::{BLOCK_TOKENS, Batch};

use crate::blocks::{BlockName, BlockObserver};
use crate::channel::EventStream;
use crate::forward::{Forward, StepError, StepStats};
use crate::handle::{Limits, ModelFacts, Shared, SubmitError};
use crate::request::{CancelReason, Event, FinishReason, Request, SamplingParams};
use crate::sampler::mix;
use crate::speculation::Speculation;
use crate::step::{Core, Turn};
use prophet::Scripture;

/// A prompt token at which [`FakeModel`] fails the step without saying whose fault it is.
pub const FAILS_BATCH: u32 = 60;
/// A prompt token at which [`FakeModel`] fails the step and blames the span.
pub const FAILS_SPAN: u32 = 61;
/// A prompt token after which [`FakeModel`]'s logits are not numbers.
pub const TURNS_NAN: u32 = 62;
/// A prompt token at which [`FakeModel`] panics.
pub const PANICS: u32 = 63;

/// The size of [`FakeModel`]'s vocabulary.
pub const VOCAB_SIZE: usize = 64;

/// The end-of-sequence token of simulated requests.
pub const EOS: u32 = 0;

/// The number in the cache of a token at and after which nothing is a number.
const NOT_A_NUMBER: u64 = 1;

/// A model whose logits depend on nothing but the history of tokens, as its cache holds it.
pub struct FakeModel {
    slots: Vec<u64>,  // [num_blocks * BLOCK_TOKENS], 0 where nothing was computed
    logits: Vec<f32>, // [rows, VOCAB_SIZE]
    rows_max: usize,
    tokens_max: usize,
    micros_per_row: u64,
    /// The simulator's clock: how long all steps have taken, in microseconds.
    clock: Arc<AtomicU64>,
}

/// What a step of [`FakeModel`] takes by the simulator's clock, beside what further rows take.
const STEP_MICROS: u64 = 1000;

impl FakeModel {
    /// A model with a cache of `num_blocks` blocks that takes `tokens_max` tokens a step.
    pub fn new(num_blocks: usize, tokens_max: usize) -> FakeModel {
        FakeModel {
            slots: vec![0; num_blocks * BLOCK_TOKENS],
            logits: Vec::with_capacity(tokens_max * VOCAB_SIZE),
            rows_max: tokens_max,
            tokens_max,
            micros_per_row: 100,
            clock: Arc::default(),
        }
    }

    /// The same with other rows, by the simulator's clock, on which a step of one takes a
    /// millisecond.
    #[must_use]
    pub fn with_row_cost(self, micros_per_row: u64) -> FakeModel {
        FakeModel { micros_per_row, ..self }
    }

    /// Tells how long all steps have taken, in microseconds.
    #[cfg(test)]
    pub(crate) fn clock(&self) -> impl Fn() -> u64 + use<> {
        let clock = self.clock.clone();
        move || clock.load(Ordering::Relaxed)
    }

    fn refuse(batch: &Batch) -> Result<(), StepError> {
        assert!(!batch.tokens.contains(&PANICS), "token `{PANICS}` makes the fake model panic");
        if batch.tokens.contains(&FAILS_BATCH) {
            return Err(StepError::Batch("somebody's token cannot be computed".into()));
        }
        let bad =
            |span: &usize| batch.tokens[batch.spans[*span].tokens.clone()].contains(&FAILS_SPAN);
        let spans: Vec<usize> = (0..batch.spans.len()).filter(bad).collect();
        if spans.is_empty() {
            return Ok(());
        }
        Err(StepError::Spans { spans, message: "this token cannot be computed".into() })
    }

    /// Appends a row of logits that follow from `history`.
    fn push_logits(&mut self, history: u64) {
        for token in 0..VOCAB_SIZE as u32 {
            let noise = mix(history ^ u64::from(token) << 32) >> 40;
            self.logits.push(match token {
                _ if history == NOT_A_NUMBER => f32::NAN,
                FAILS_BATCH..=PANICS => f32::NEG_INFINITY,
                _ => noise as f32 / (1 << 22) as f32,
            });
        }
    }
}

/// What has been before, and one number more.
fn extend(history: u64, number: u64) -> u64 {
    match (history, number) {
        (NOT_A_NUMBER, _) | (_, NOT_A_NUMBER) => NOT_A_NUMBER,
        _ => mix(history.wrapping_mul(31).wrapping_add(number)) | 2,
    }
}

impl Forward for FakeModel {
    fn forward(&mut self, batch: &Batch) -> Result<StepStats, StepError> {
        let took = STEP_MICROS + self.micros_per_row * (batch.len() as u64 - 1);
        self.clock.fetch_add(took, Ordering::Relaxed);
        FakeModel::refuse(batch)?;
        self.logits.clear();
        for span in &batch.spans {
            let blocks = &batch.block_ids[span.blocks.clone()];
            let slot = |position: usize| {
                blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
            };
            let first = batch.positions[span.tokens.start] as usize;
            let mut history = 2;
            for position in 0..first {
                let number = self.slots[slot(position)];
                assert_ne!(number, 0, "position {position} is read and was never computed");
                history = extend(history, number);
            }
            for (position, row) in (first..).zip(span.tokens.clone()) {
                let token = batch.tokens[row];
                // Depends on what is before, as keys and values of all but the first layer do.
                let number = match token {
                    TURNS_NAN => NOT_A_NUMBER,
                    _ => extend(history, u64::from(token) + 10),
                };
                self.slots[slot(position)] = number;
                history = extend(history, number);
                if batch.logit_rows.binary_search(&(row as u32)).is_ok() {
                    self.push_logits(history);
                }
            }
        }
        Ok(StepStats { expert_bytes: 1000 * batch.len() as u64 })
    }

    fn logits(&self, row: usize) -> &[f32] {
        &self.logits[row * VOCAB_SIZE..][..VOCAB_SIZE]
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn context_length(&self) -> usize {
        self.slots.len()
    }

    fn num_blocks(&self) -> usize {
        self.slots.len() / BLOCK_TOKENS
    }

    fn batch_tokens_max(&self) -> usize {
        self.tokens_max
    }

    fn logit_rows_max(&self) -> usize {
        self.rows_max
    }
}

/// What was seen on the way; sums over seeds show that the scenarios reach every corner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests that ran.
    pub requests: u64,
    /// Turns of the engine.
    pub turns: u64,
    /// Tokens received.
    pub tokens: u64,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Prompt tokens that were not computed.
    pub cached_tokens: u64,
    /// Turns in which somebody's reader was slow.
    pub paused_turns: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed, as they would have failed alone.
    pub failed: u64,
    /// Submissions refused for want of room and repeated.
    pub refused: u64,
    /// Tokens computed on a guess.
    pub guessed: u64,
    /// Of these, tokens that were right.
    pub guessed_right: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Report) {
        self.requests += other.requests;
        self.turns += other.turns;
        self.tokens += other.tokens;
        self.preemptions += other.preemptions;
        self.cached_tokens += other.cached_tokens;
        self.paused_turns += other.paused_turns;
        self.cancelled += other.cancelled;
        self.failed += other.failed;
        self.refused += other.refused;
        self.guessed += other.guessed;
        self.guessed_right += other.guessed_right;
    }
}

/// Random numbers of a scenario.
struct Dice(u64);

impl Dice {
    /// A number in `0..sides`.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (mix(self.0) % sides as u64) as usize
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }
}

/// A simulated user: a request, and how its answer is read.
#[derive(Clone)]
struct User {
    tokens: Vec<u32>,
    sampling: SamplingParams,
    max_tokens: Option<usize>,
    logprobs: Option<usize>,
    priority: i32,
    salt: u64,
    arrives: u64,         // turn
    cancels: Option<u64>, // turns after arrival
    vanishes: bool,       // drops the stream instead of cancelling politely
    reads_one_in: usize,  // 1: everything each turn; n: one event in n turns
    speculation: Speculation,
}

impl User {
    fn roll(dice: &mut Dice, tokens_max: usize, beginnings: &[Vec<u32>]) -> User {
        let room = tokens_max - 1;
        let beginning = &beginnings[dice.roll(beginnings.len())];
        let shared = dice.roll(beginning.len().min(room) + 1);
        let mut tokens = beginning[..shared].to_vec();
        let own = dice.roll((room - shared).min(20) + 1);
        tokens.extend((0..own).map(|_| 1 + dice.roll(59) as u32));
        if tokens.is_empty() {
            tokens.push(5);
        }
        if dice.one_in(12) {
            let at = dice.roll(tokens.len());
            tokens[at] = [FAILS_BATCH, FAILS_SPAN, TURNS_NAN][dice.roll(3)];
        }
        let max_tokens = 1 + dice.roll((tokens_max - tokens.len()).min(40));
        User {
            max_tokens: (!dice.one_in(8)).then_some(max_tokens),
            tokens,
            sampling: User::roll_sampling(dice),
            logprobs: dice.one_in(3).then(|| dice.roll(4)),
            priority: dice.roll(5) as i32 - 2,
            salt: u64::from(dice.one_in(4)),
            arrives: dice.roll(60) as u64,
            cancels: dice.one_in(5).then(|| dice.roll(40) as u64),
            vanishes: dice.one_in(2),
            reads_one_in: if dice.one_in(4) { 1 + dice.roll(6) } else { 1 },
            speculation: [Speculation::Off, Speculation::Measured, Speculation::Always]
                [dice.roll(3)],
        }
    }

    fn roll_sampling(dice: &mut Dice) -> SamplingParams {
        let pick = |dice: &mut Dice, values: [f32; 3]| values[dice.roll(3)];
        SamplingParams {
            temperature: pick(dice, [0.0, 0.8, 2.0]),
            top_k: [0, 5, 20][dice.roll(3)],
            top_p: pick(dice, [1.0, 0.9, 0.5]),
            min_p: pick(dice, [0.0, 0.0, 0.1]),
            repetition_penalty: pick(dice, [1.0, 1.0, 1.3]),
            presence_penalty: pick(dice, [0.0, 0.0, 0.5]),
            frequency_penalty: pick(dice, [0.0, 0.0, 0.2]),
            logit_bias: if dice.one_in(4) { vec![(7, 2.0)] } else { Vec::new() },
            seed: Some(dice.roll(1000) as u64),
        }
    }

    fn request(&self) -> Request {
        let mut request = Request::new(self.tokens.clone());
        request.sampling = self.sampling.clone();
        request.max_tokens = self.max_tokens;
        request.logprobs = self.logprobs;
        request.priority = self.priority;
        request.cache_salt = self.salt;
        request.speculation = self.speculation;
        request
    }
}

/// What a user has received.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    tokens: Vec<Event>,
    reason: Option<FinishReason>,
}

impl Answer {
    fn take(&mut self, event: Event) {
        assert!(self.reason.is_none(), "nothing follows the end");
        match event {
            Event::Token { .. } => self.tokens.push(event),
            Event::Finished(summary) => {
                let stop = usize::from(matches!(summary.reason, FinishReason::Stop { .. }));
                assert_eq!(summary.usage.completion_tokens, self.tokens.len() + stop);
                self.reason = Some(summary.reason);
            }
        }
    }
}

/// What is in the prefix cache, as an observer is told.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<HashSet<BlockName>>>);

impl Names {
    fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl BlockObserver for Names {
    fn stored(&mut self, name: BlockName, _: BlockName, tokens: &[u32]) {
        assert!(!tokens.contains(&TURNS_NAN), "broken numbers are not shared");
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(names.insert(name), "a name is stored once");
    }

    fn evicted(&mut self, name: BlockName) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(names.remove(&name), "only what was stored is evicted");
    }
}

/// An engine without a thread.
pub(crate) struct Bench {
    pub(crate) core: Core,
    pub(crate) shared: Arc<Shared>,
}

impl Bench {
    pub(crate) fn new(
        model: FakeModel,
        mut limits: Limits,
        observer: Option<Box<dyn BlockObserver>>,
    ) -> Bench {
        let facts = ModelFacts::of(&model);
        limits.clamp_to(&facts);
        let shared = Shared::new(limits, facts);
        let (clock, begun) = (model.clock.clone(), Instant::now());
        let mut core = Core::new(Box::new(model), shared.clone(), observer);
        core.clock = Box::new(move || begun + Duration::from_micros(clock.load(Ordering::Relaxed)));
        Bench { core, shared }
    }

    /// One turn; the accounts must balance after each.
    pub(crate) fn turn(&mut self) -> Turn {
        let turn = self.core.turn();
        self.core.check();
        turn.unwrap_or_else(|message| panic!("the fake model never gives up: {message}"))
    }
}

/// The answer to `user` with nobody else around, in one chunk, from an empty cache, one token a
/// step.
fn alone(user: &User, tokens_max: usize) -> Answer {
    let num_blocks = tokens_max.div_ceil(BLOCK_TOKENS);
    let limits = Limits {
        sequences_max: 1,
        events_max: tokens_max,
        eos_tokens: vec![EOS],
        prefix_cache: false,
        ..Limits::default()
    };
    let mut bench = Bench::new(FakeModel::new(num_blocks, tokens_max), limits, None);
    let request = Request { speculation: Speculation::Off, ..user.request() };
    let stream = bench.shared.submit(request);
    let mut stream = stream.unwrap_or_else(|error| panic!("alone it is accepted: {error}"));
    let mut answer = Answer { tokens: Vec::new(), reason: None };
    while answer.reason.is_none() {
        bench.turn();
        while let Poll::Ready(Some(event)) = stream.try_recv() {
            answer.take(event);
        }
    }
    answer
}

/// A user's place in a running scenario.
struct Seat {
    user: User,
    /// What is to come.
    expected: Answer,
    stream: Option<EventStream>,
    answer: Answer,
    arrived: Option<u64>,
    gone: bool,
}

impl Seat {
    fn new(user: User, tokens_max: usize) -> Seat {
        let expected = alone(&user, tokens_max);
        let answer = Answer { tokens: Vec::new(), reason: None };
        Seat { user, expected, stream: None, answer, arrived: None, gone: false }
    }

    /// The prompt and the answer to come.
    fn future(&self) -> Vec<u32> {
        let id = |event: &Event| match event {
            Event::Token { id, .. } => Some(*id),
            Event::Finished(_) => None,
        };
        let answer = self.expected.tokens.iter().filter_map(id);
        self.user.tokens.iter().copied().chain(answer).collect()
    }

    fn is_over(&self) -> bool {
        self.gone || self.answer.reason.is_some()
    }

    /// Submits, reads, cancels: whatever the user does before turn `now`.
    fn act(&mut self, now: u64, dice: &mut Dice, world: &World, report: &mut Report) {
        let World { bench, scripture } = world;
        if self.is_over() || now < self.user.arrives {
            return;
        }
        let Some(stream) = &mut self.stream else {
            match bench.shared.submit(self.user.request()) {
                Ok(stream) => {
                    scripture.write(stream.id(), self.future());
                    self.stream = Some(stream);
                    self.arrived = Some(now);
                }
                Err(SubmitError::QueueFull { .. }) => report.refused += 1,
                Err(error) => panic!("a simulated request is sound: {error}"),
            }
            return;
        };
        let since = now - self.arrived.unwrap_or(now);
        if self.user.cancels == Some(since) {
            report.cancelled += 1;
            if self.user.vanishes {
                self.stream = None;
                self.gone = true;
                return;
            }
            bench.shared.cancel(stream.id(), CancelReason::Stop);
        }
        let everything = self.user.reads_one_in == 1;
        if everything || dice.one_in(self.user.reads_one_in) {
            while let Poll::Ready(Some(event)) = stream.try_recv() {
                self.answer.take(event);
                if !everything {
                    break;
                }
            }
        }
    }

    /// Compares what came with what comes when the user is alone.
    fn judge(&self, report: &mut Report) {
        report.tokens += self.answer.tokens.len() as u64;
        let expected = &self.expected;
        let cut = self.gone || matches!(self.answer.reason, Some(FinishReason::Cancelled(_)));
        if cut {
            assert!(expected.tokens.starts_with(&self.answer.tokens), "cut short, not changed");
            return;
        }
        assert_eq!(self.answer, *expected, "the same alone and in company");
        let failed = matches!(
            expected.reason,
            Some(FinishReason::NumericalError | FinishReason::ModelError(_))
        );
        report.failed += u64::from(failed);
    }
}

/// An engine in which the future is known.
struct World {
    bench: Bench,
    scripture: Scripture,
}

impl World {
    fn new(mut bench: Bench) -> World {
        let scripture = Scripture::default();
        let theirs = scripture.clone();
        bench.core.make_drafter = Box::new(move |id| theirs.drafter(id));
        World { bench, scripture }
    }
}

/// A beginning for several prompts. One that repeats itself is made of two blocks only: the same
/// block after different histories.
fn roll_beginning(dice: &mut Dice, repeats: bool) -> Vec<u32> {
    if repeats {
        return (0..dice.roll(7)).flat_map(|_| [3 + dice.roll(2) as u32; BLOCK_TOKENS]).collect();
    }
    (0..dice.roll(100)).map(|_| 1 + dice.roll(59) as u32).collect()
}

/// Runs the scenario of `seed`. Panics when a promise is broken.
pub fn run(seed: u64) -> Report {
    let mut dice = Dice(mix(seed));
    let num_blocks = 2 + dice.roll(14);
    let limits = Limits {
        sequences_max: 1 + dice.roll(6),
        batch_tokens_max: 6 + dice.roll(40),
        waiting_max: 1 + dice.roll(10),
        events_max: 1 + dice.roll(8),
        priority_step: 1 + dice.roll(30) as u32,
        eos_tokens: vec![EOS],
        prefix_cache: !dice.one_in(4),
        ..Limits::default()
    };
    let tokens_max = num_blocks * BLOCK_TOKENS;
    let beginnings = [false, false, true].map(|repeats| roll_beginning(&mut dice, repeats));
    let count = 2 + dice.roll(12);
    let users: Vec<User> =
        (0..count).map(|_| User::roll(&mut dice, tokens_max, &beginnings)).collect();

    let mut seats: Vec<Seat> = users.into_iter().map(|user| Seat::new(user, tokens_max)).collect();

    let names = Names::default();
    let model = FakeModel::new(num_blocks, limits.batch_tokens_max);
    let model = model.with_row_cost([0, 100, 2000][dice.roll(3)]);
    let bench = Bench::new(model, limits, Some(Box::new(names.clone())));
    let mut world = World::new(bench);
    let mut report = Report { requests: count as u64, ..Report::default() };
    // Slow readers take six turns a token on average, so this is generous and finite.
    let turns_max = 2000 + 400 * count as u64 * num_blocks as u64;
    let mut idle = false;
    while !(seats.iter().all(Seat::is_over) && idle) {
        assert!(report.turns < turns_max, "somebody starves after {turns_max} turns");
        for seat in &mut seats {
            seat.act(report.turns, &mut dice, &world, &mut report);
        }
        idle = world.bench.turn() == Turn::Idle;
        let core = &world.bench.core;
        assert_eq!(names.count(), core.blocks.num_names(), "the observer knows the cache");
        let paused = core.sequences.running.iter().any(|sequence| sequence.paused);
        report.paused_turns += u64::from(paused);
        report.turns += 1;
    }
    let stats = world.bench.shared.stats();
    (report.guessed, report.guessed_right) = (stats.drafts.computed, stats.drafts.accepted);
    report.preemptions = stats.preemptions;
    report.cached_tokens = stats.tokens_cached;
    assert_eq!((stats.running, stats.waiting), (0, 0), "nothing is left over");
    assert_eq!(stats.finished, count as u64, "no request is lost");
    assert_eq!(stats.blocks_free, num_blocks, "every block has come back");
    for seat in &seats {
        seat.judge(&mut report);
    }
    report
}
