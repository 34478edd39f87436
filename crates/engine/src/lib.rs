#![forbid(unsafe_code)]
//! Tokens in, tokens out: many requests at once through one model, on one thread.
//!
//! [`Engine::start`] moves a [`Forward`] (a model with its cache and scratch memory) onto a thread
//! of its own and returns an [`EngineHandle`]. A [`Request`] goes in as token ids; an
//! [`EventStream`] comes back and yields [`Event::Token`]s and, always and last, one
//! [`Event::Finished`].
//!
//! What this crate promises:
//! - the same request with the same seed yields the same tokens, whatever else runs beside it,
//!   however its prompt is cut into chunks, preempted or found in the prefix cache, and whether or
//!   not its tokens were guessed ahead;
//! - everything is bounded: waiting requests, running sequences, tokens of a step, cache blocks,
//!   unread events;
//! - every stream ends with exactly one `Finished`, even when the engine thread panics;
//! - a steady decode step allocates nothing.
//!
//! It knows nothing of text, JSON or HTTP, and it reads no clock where decisions are made, but
//! for the one how much to guess ahead, which changes no token.

pub mod blocks;
pub mod channel;
pub mod constraint;
pub mod decoder;
pub mod forward;
pub mod handle;
pub mod reference;
pub mod request;
mod run;
mod sampler;
mod scheduler;
mod sequence;
pub mod sim;
mod speculation;
mod step;

pub use blocks::{BlockName, BlockObserver};
pub use channel::EventStream;
pub use constraint::{ConstraintError, TokenConstraint, TokenMask};
pub use decoder::Decoder;
pub use forward::{Forward, StepError, StepStats};
pub use handle::{Engine, EngineHandle, EngineStats, Limits, ModelFacts, SubmitError};
pub use reference::ReferenceDecoder;
pub use request::{
    CancelReason, Event, FinishReason, InvalidRequest, Request, RequestId, SamplingParams, Summary,
    Timings, TopLogprob, Usage,
};
pub use speculation::{DRAFT_TOKENS_MAX, DraftCounts, STEP_ROWS_MAX, Speculation};
