//! The door of the engine: start it, submit, cancel, look at its figures.
//!
//! Handles are cheap to clone and may be used from any thread. Submitting checks the request and
//! the bounds on the spot, so a refusal costs microseconds and never waits for a step. When the
//! last handle is dropped the engine finishes what it has and its thread ends.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::blocks::BlockObserver;
use crate::channel::{Channel, Doorbell, EventSender, EventStream, channel, lock};
use crate::forward::Forward;
use crate::request::{CancelReason, InvalidRequest, Request, RequestId};
use crate::run;
use crate::speculation::DraftCounts;

/// Bounds and fixed choices of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most sequences with cache blocks at a time.
    pub sequences_max: usize,
    /// The most tokens of a step: decode first, the rest of the budget goes to prompts.
    pub batch_tokens_max: usize,
    /// The most requests that wait while `sequences_max` run; further ones are refused.
    pub waiting_max: usize,
    /// The most prompt tokens of all unfinished requests together; further ones are refused.
    pub waiting_tokens_max: usize,
    /// The most unread events of a request before its sequence pauses.
    pub events_max: usize,
    /// How many steps of head start one level of priority is worth.
    pub priority_step: u32,
    /// The model's end-of-sequence tokens.
    pub eos_tokens: Vec<u32>,
    /// Whether computed blocks are kept for requests with the same beginning.
    pub prefix_cache: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            sequences_max: 32,
            batch_tokens_max: 512,
            waiting_max: 256,
            waiting_tokens_max: 1 << 22,
            events_max: 128,
            priority_step: 256,
            eos_tokens: Vec::new(),
            prefix_cache: true,
        }
    }
}

/// What the engine knows of its model; see [`Forward`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// Number of tokens in the vocabulary.
    pub vocab_size: usize,
    /// The most tokens a sequence may have.
    pub context_length: usize,
    /// Number of cache blocks.
    pub num_blocks: usize,
    /// The most tokens of a step.
    pub batch_tokens_max: usize,
    /// The most rows of logits of a step.
    pub logit_rows_max: usize,
}

impl ModelFacts {
    /// Asks a model.
    pub fn of(model: &dyn Forward) -> ModelFacts {
        ModelFacts {
            vocab_size: model.vocab_size(),
            context_length: model.context_length(),
            num_blocks: model.num_blocks(),
            batch_tokens_max: model.batch_tokens_max(),
            logit_rows_max: model.logit_rows_max(),
        }
    }

    /// The most tokens one sequence may have, prompt and output, if it is alone.
    pub fn sequence_tokens_max(&self) -> usize {
        self.context_length.min(self.num_blocks * moeba_model::batch::BLOCK_TOKENS)
    }
}

/// A request was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A field is outside its range.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    /// Too many requests are unfinished; try again later.
    #[error("the engine has {unfinished} unfinished requests, it takes at most {limit}")]
    QueueFull {
        /// Requests waiting or running.
        unfinished: usize,
        /// The most it takes, [`Limits::waiting_max`] and [`Limits::sequences_max`] together.
        limit: usize,
    },
    /// Too many prompt tokens are unfinished; try again later.
    #[error("the engine has {unfinished} prompt tokens to serve, it takes at most {limit}")]
    TokensFull {
        /// Prompt tokens of all unfinished requests and this one.
        unfinished: usize,
        /// [`Limits::waiting_tokens_max`].
        limit: usize,
    },
    /// The engine's thread has ended.
    #[error("the engine has stopped: {0}")]
    Stopped(
        /// Why.
        String,
    ),
}

/// Figures of an engine since its start, as of its last step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences with cache blocks.
    pub running: usize,
    /// Of these, sequences whose reader is slow.
    pub paused: usize,
    /// Requests that wait, those preempted included.
    pub waiting: usize,
    /// Cache blocks in all.
    pub blocks: usize,
    /// Blocks a new sequence could have now, those of the prefix cache included.
    pub blocks_free: usize,
    /// Blocks that hold a beginning other requests may share.
    pub blocks_cached: usize,
    /// Steps of the model.
    pub steps: u64,
    /// Tokens computed, wrong guesses included.
    pub tokens_computed: u64,
    /// Tokens generated.
    pub tokens_generated: u64,
    /// Prompt tokens found in the prefix cache.
    pub tokens_cached: u64,
    /// Sequences that lost their blocks and were computed again.
    pub preemptions: u64,
    /// Bytes of expert weights read.
    pub expert_bytes: u64,
    /// Tokens guessed ahead.
    pub drafts: DraftCounts,
    /// Requests finished, for whatever reason.
    pub finished: u64,
    /// How long the present step has been running, if one is; a long time means a stuck engine.
    pub step_running: Option<Duration>,
    /// Why the engine has stopped, if it has.
    pub stopped: Option<String>,
}

/// A request on its way from a handle to the engine thread.
pub(crate) struct Submission {
    pub(crate) id: RequestId,
    pub(crate) request: Request,
    pub(crate) seed: u64,
    pub(crate) sender: EventSender,
    pub(crate) submitted: Instant,
}

#[derive(Default)]
struct Inbox {
    submissions: VecDeque<Submission>,
    /// Unfinished requests, for cancellation by id and for the bounds.
    live: HashMap<RequestId, Live>,
    live_tokens: usize,
    next_id: u64,
    closing: Option<Closing>,
    stopped: Option<String>,
}

struct Live {
    channel: Arc<Channel>,
    prompt_tokens: usize,
}

/// How the engine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closing {
    /// Take nothing more, finish what is there.
    Drain,
    /// Cancel what is there.
    Now,
}

/// What handles and the engine thread share.
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    stats: Mutex<EngineStats>,
    step_since: Mutex<Option<Instant>>,
    doorbell: Arc<Doorbell>,
    pub(crate) limits: Limits,
    pub(crate) model: ModelFacts,
    entropy: RandomState,
}

impl Shared {
    pub(crate) fn new(limits: Limits, model: ModelFacts) -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Mutex::default(),
            stats: Mutex::default(),
            step_since: Mutex::default(),
            doorbell: Arc::default(),
            limits,
            model,
            entropy: RandomState::new(),
        })
    }

    pub(crate) fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        request.validate(&self.model)?;
        let submitted = Instant::now();
        let mut inbox = lock(&self.inbox);
        self.check_bounds(&inbox, request.tokens.len())?;
        let id = RequestId(inbox.next_id);
        inbox.next_id += 1;
        let seed = request.sampling.seed.unwrap_or_else(|| self.entropy.hash_one(id.0));
        let (sender, stream) = channel(id, self.limits.events_max, self.doorbell.clone());
        let prompt_tokens = request.tokens.len();
        inbox.live.insert(id, Live { channel: sender.channel(), prompt_tokens });
        inbox.live_tokens += prompt_tokens;
        inbox.submissions.push_back(Submission { id, request, seed, sender, submitted });
        drop(inbox);
        self.doorbell.ring();
        Ok(stream)
    }

    fn check_bounds(&self, inbox: &Inbox, prompt_tokens: usize) -> Result<(), SubmitError> {
        if let Some(message) = &inbox.stopped {
            return Err(SubmitError::Stopped(message.clone()));
        }
        if inbox.closing.is_some() {
            return Err(SubmitError::Stopped("it is shutting down".into()));
        }
        let (unfinished, limit) =
            (inbox.live.len(), self.limits.waiting_max + self.limits.sequences_max);
        if unfinished >= limit {
            return Err(SubmitError::QueueFull { unfinished, limit });
        }
        let (unfinished, limit) =
            (inbox.live_tokens + prompt_tokens, self.limits.waiting_tokens_max);
        if unfinished > limit {
            return Err(SubmitError::TokensFull { unfinished, limit });
        }
        Ok(())
    }

    pub(crate) fn cancel(&self, id: RequestId, reason: CancelReason) -> bool {
        let channel = lock(&self.inbox).live.get(&id).map(|live| live.channel.clone());
        channel.is_some_and(|channel| channel.cancel(reason))
    }

    /// Moves new submissions to `into`, in order; says whether the engine is to end.
    pub(crate) fn take_submissions(&self, into: &mut VecDeque<Submission>) -> Option<Closing> {
        let mut inbox = lock(&self.inbox);
        into.append(&mut inbox.submissions);
        inbox.closing
    }

    /// Forgets a request that is over.
    pub(crate) fn retire(&self, id: RequestId) {
        let mut inbox = lock(&self.inbox);
        if let Some(live) = inbox.live.remove(&id) {
            inbox.live_tokens -= live.prompt_tokens;
        }
    }

    /// Refuses all further requests and ends those the engine has not taken yet.
    pub(crate) fn stop(&self, message: &str) {
        let mut inbox = lock(&self.inbox);
        inbox.stopped.get_or_insert_with(|| message.to_owned());
        let orphans = std::mem::take(&mut inbox.submissions);
        inbox.live.clear();
        inbox.live_tokens = 0;
        drop(inbox);
        for orphan in orphans {
            orphan.sender.finish(crate::channel::stopped_summary(message));
        }
    }

    fn close(&self, closing: Closing) {
        let mut inbox = lock(&self.inbox);
        inbox.closing = inbox.closing.max(Some(closing));
        drop(inbox);
        self.doorbell.ring();
    }

    pub(crate) fn wait(&self) {
        self.doorbell.wait();
    }

    pub(crate) fn publish(&self, update: impl FnOnce(&mut EngineStats)) {
        update(&mut lock(&self.stats));
    }

    pub(crate) fn mark_step(&self, since: Option<Instant>) {
        *lock(&self.step_since) = since;
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let mut stats = lock(&self.stats).clone();
        stats.step_running = lock(&self.step_since).map(|since| since.elapsed());
        stats.stopped.clone_from(&lock(&self.inbox).stopped);
        stats
    }
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Moves `model` onto a thread of its own and serves it within `limits`.
    ///
    /// `limits.batch_tokens_max` and `limits.sequences_max` are lowered to what the model's
    /// scratch memory allows.
    pub fn start(model: Box<dyn Forward + Send>, limits: Limits) -> EngineHandle {
        Engine::start_observed(model, limits, None)
    }

    /// Like [`Engine::start`]; tells `observer` which beginnings the prefix cache holds, so that a
    /// router can send a request where its beginning is.
    pub fn start_observed(
        model: Box<dyn Forward + Send>,
        mut limits: Limits,
        observer: Option<Box<dyn BlockObserver>>,
    ) -> EngineHandle {
        let facts = ModelFacts::of(model.as_ref());
        limits.clamp_to(&facts);
        let shared = Shared::new(limits, facts);
        let thread = run::spawn(model, &shared, observer);
        EngineHandle { owner: Arc::new(Owner { shared, thread: Mutex::new(thread) }) }
    }
}

/// The queue is allocated at the start; beyond this length a request would wait for days.
const WAITING_MAX: usize = 1 << 16;

impl Limits {
    /// Lowers what exceeds the model and raises what would stop the engine altogether.
    pub(crate) fn clamp_to(&mut self, model: &ModelFacts) {
        self.batch_tokens_max = self.batch_tokens_max.min(model.batch_tokens_max).max(1);
        // Each running sequence may need a row of logits and a token in every step.
        let rows = model.logit_rows_max.min(self.batch_tokens_max).min(model.num_blocks);
        self.sequences_max = self.sequences_max.min(rows).max(1);
        self.waiting_max = self.waiting_max.min(WAITING_MAX);
        self.events_max = self.events_max.max(1);
        self.priority_step = self.priority_step.max(1);
    }
}

/// A running engine. Clones speak to the same one.
#[derive(Clone)]
pub struct EngineHandle {
    owner: Arc<Owner>,
}

/// Held by handles only, not by streams: its end is the engine's.
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.close(Closing::Drain);
    }
}

impl EngineHandle {
    /// Checks and queues a request. Never blocks.
    ///
    /// # Errors
    /// The request is out of range, there is no room for it now, or the engine has stopped.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        self.owner.shared.submit(request)
    }

    /// Asks for the end of a request at the next step. False when it is over already.
    pub fn cancel(&self, id: RequestId, reason: CancelReason) -> bool {
        self.owner.shared.cancel(id, reason)
    }

    /// The engine's figures.
    pub fn stats(&self) -> EngineStats {
        self.owner.shared.stats()
    }

    /// What the engine knows of its model.
    pub fn model(&self) -> ModelFacts {
        self.owner.shared.model
    }

    /// The limits in force, after lowering to what the model allows.
    pub fn limits(&self) -> &Limits {
        &self.owner.shared.limits
    }

    /// Refuses new requests, finishes those there are, and waits for the thread to end: for as long
    /// as readers take to read, unless somebody calls [`EngineHandle::shut_down`] meanwhile.
    pub fn drain(&self) {
        self.end(Closing::Drain);
    }

    /// Refuses new requests, cancels those there are, and waits for the thread to end.
    pub fn shut_down(&self) {
        self.end(Closing::Now);
    }

    fn end(&self, closing: Closing) {
        self.owner.shared.close(closing);
        // Held while waiting, so that whoever comes second waits as long as the first.
        let mut thread = lock(&self.owner.thread);
        if let Some(thread) = thread.take() {
            // The loop catches panics itself and tells every stream; nothing is left to report.
            let _ = thread.join();
        }
    }
}
