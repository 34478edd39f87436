//! What a caller may ask of the engine and what comes back, as plain data.
//!
//! A request is token ids and numbers; text, templates and stop strings live above the engine.
//! Whoever watches for a stop string cancels the request with [`CancelReason::Stop`].

use std::fmt;
use std::time::Duration;

use crate::constraint::TokenConstraint;
use crate::handle::ModelFacts;
use crate::speculation::{DraftCounts, Speculation};

/// The most alternatives [`Request::logprobs`] may ask for per token.
pub const TOP_LOGPROBS_MAX: usize = 20;

/// The most entries of [`SamplingParams::logit_bias`].
pub const LOGIT_BIAS_MAX: usize = 1024;

/// The most entries of [`Request::stop_tokens`].
pub const STOP_TOKENS_MAX: usize = 64;

/// Names a request within one engine; never reused while the engine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How the next token is chosen from the logits.
///
/// The order of operations: bias, penalties, the request's constraint, temperature, top-k, top-p,
/// min-p, then one draw. The defaults change nothing: plain sampling at temperature 1.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy (the highest logit, ties to the lowest id). In `0..=100`.
    pub temperature: f32,
    /// Keep only the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this; 1 keeps all.
    /// In `(0, 1]`.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the likeliest one; 0 keeps all. In `0..=1`.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output;
    /// 1 changes nothing. In `(0, 100]`.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token already generated. In `-100..=100`.
    pub presence_penalty: f32,
    /// Subtracted for each time a token was already generated. In `-100..=100`.
    pub frequency_penalty: f32,
    /// `(token id, value added to its logit)`; `-inf` forbids a token.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws. The same request with the same seed yields the same tokens. `None` lets
    /// the engine choose one, which [`Summary::seed`] reports.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> SamplingParams {
        SamplingParams {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> SamplingParams {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }
}

/// One completion of one prompt. Several choices for one prompt are several requests with
/// different seeds; they share the prompt's blocks through the prefix cache.
pub struct Request {
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// The most tokens to generate, at least 1. Prompt and output together must fit the model's
    /// context and the cache; `None` generates until one of these is full.
    pub max_tokens: Option<usize>,
    /// Token ids that end the output, besides the model's own ([`crate::Limits::eos_tokens`]).
    pub stop_tokens: Vec<u32>,
    /// Do not end at the model's own end-of-sequence tokens; `stop_tokens` still end the output.
    pub ignore_eos: bool,
    /// Report log-probabilities: of the chosen token and of this many likeliest alternatives
    /// (0 to [`TOP_LOGPROBS_MAX`]), from the distribution before any sampling parameter.
    pub logprobs: Option<usize>,
    /// Higher runs earlier; a level is worth a head start of [`crate::Limits::priority_step`]
    /// steps, so a low priority waits longer but never for ever. In `-100..=100`.
    pub priority: i32,
    /// Cached prompt blocks are shared only among requests with the same salt: a server gives
    /// each API key its own, so that nobody can learn by timing what another has asked.
    pub cache_salt: u64,
    /// Restricts each next token, as a grammar does.
    pub constraint: Option<Box<dyn TokenConstraint>>,
    /// Whether tokens are guessed ahead, which changes how fast they come and nothing else.
    pub speculation: Speculation,
}

impl Request {
    /// A request with default sampling for the prompt `tokens`.
    pub fn new(tokens: Vec<u32>) -> Request {
        Request {
            tokens,
            sampling: SamplingParams::default(),
            max_tokens: None,
            stop_tokens: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            priority: 0,
            cache_salt: 0,
            constraint: None,
            speculation: Speculation::default(),
        }
    }

    /// Checks every field against its documented range and against the model.
    ///
    /// # Errors
    /// The first field out of range, by name.
    pub fn validate(&self, model: &ModelFacts) -> Result<(), InvalidRequest> {
        check_prompt(&self.tokens, model)?;
        if self.max_tokens == Some(0) {
            return Err(InvalidRequest::new("max_tokens", "is 0, expected at least 1".into()));
        }
        let total = self.tokens.len().saturating_add(self.max_tokens.unwrap_or(1));
        if total > model.sequence_tokens_max() {
            let limit = model.sequence_tokens_max();
            let message = format!(
                "asks for {total} tokens in all (prompt {}), the model and its cache hold {limit}",
                self.tokens.len()
            );
            return Err(InvalidRequest::new("max_tokens", message));
        }
        at_most("stop_tokens", self.stop_tokens.len(), STOP_TOKENS_MAX)?;
        at_most("logprobs", self.logprobs.unwrap_or(0), TOP_LOGPROBS_MAX)?;
        if !(-100..=100).contains(&self.priority) {
            let message = format!("is `{}`, expected -100 to 100", self.priority);
            return Err(InvalidRequest::new("priority", message));
        }
        self.sampling.validate(model)
    }
}

impl SamplingParams {
    /// Checks every field against its documented range and the vocabulary.
    ///
    /// # Errors
    /// The first field out of range, by name.
    pub fn validate(&self, model: &ModelFacts) -> Result<(), InvalidRequest> {
        in_range("temperature", self.temperature, 0.0, 100.0)?;
        in_range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        in_range("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        at_most("logit_bias", self.logit_bias.len(), LOGIT_BIAS_MAX)?;
        for &(token, bias) in &self.logit_bias {
            if token as usize >= model.vocab_size {
                let message =
                    format!("names token `{token}`, the vocabulary has {}", model.vocab_size);
                return Err(InvalidRequest::new("logit_bias", message));
            }
            if bias.is_nan() || bias == f32::INFINITY {
                let message = format!("of token `{token}` is `{bias}`, expected a number or -inf");
                return Err(InvalidRequest::new("logit_bias", message));
            }
        }
        Ok(())
    }
}

/// A field of a request is outside its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {message}")]
pub struct InvalidRequest {
    /// The field's name in [`Request`] or [`SamplingParams`].
    pub field: &'static str,
    /// What was found and what is expected; reads on from the field's name.
    pub message: String,
}

impl InvalidRequest {
    fn new(field: &'static str, message: String) -> InvalidRequest {
        InvalidRequest { field, message }
    }
}

fn check_prompt(tokens: &[u32], model: &ModelFacts) -> Result<(), InvalidRequest> {
    if tokens.is_empty() {
        return Err(InvalidRequest::new("tokens", "is empty, expected at least 1 token".into()));
    }
    if tokens.len() >= model.sequence_tokens_max() {
        let limit = model.sequence_tokens_max();
        let message = format!(
            "has {} tokens, the model and its cache hold {limit} including the output",
            tokens.len()
        );
        return Err(InvalidRequest::new("tokens", message));
    }
    // An id outside the vocabulary would read outside the embedding table.
    match tokens.iter().position(|&token| token as usize >= model.vocab_size) {
        None => Ok(()),
        Some(index) => {
            let message = format!(
                "holds `{}` at index {index}, the vocabulary has {}",
                tokens[index], model.vocab_size
            );
            Err(InvalidRequest::new("tokens", message))
        }
    }
}

fn in_range(field: &'static str, value: f32, min: f32, max: f32) -> Result<(), InvalidRequest> {
    // NaN is in no range.
    if value >= min && value <= max {
        return Ok(());
    }
    let lowest = if min == f32::MIN_POSITIVE { "above 0".into() } else { format!("{min}") };
    Err(InvalidRequest::new(field, format!("is `{value}`, expected {lowest} to {max}")))
}

fn at_most(field: &'static str, count: usize, max: usize) -> Result<(), InvalidRequest> {
    if count <= max {
        return Ok(());
    }
    Err(InvalidRequest::new(field, format!("asks for {count}, expected at most {max}")))
}

/// What a stream yields: tokens, then one end.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A generated token. The stop token that ends an output is not among them.
    Token {
        /// The token's id.
        id: u32,
        /// Natural logarithm of its probability before any sampling parameter, when
        /// [`Request::logprobs`] asks for it.
        logprob: Option<f32>,
        /// The likeliest tokens, best first; as many as [`Request::logprobs`] asks for.
        top_logprobs: Vec<TopLogprob>,
    },
    /// The request is over; nothing follows.
    Finished(Summary),
}

/// A token that could have been chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopLogprob {
    /// The token's id.
    pub id: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Why a request is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was chosen: the model's own or one of the request's.
    Stop {
        /// The token, which is not emitted as an event.
        token: u32,
    },
    /// The request's constraint holds a complete text and allows nothing more.
    ConstraintComplete,
    /// `max_tokens` are generated, or the context is full.
    Length,
    /// Somebody cancelled it.
    Cancelled(CancelReason),
    /// The model's logits were not numbers; no token was made from them.
    NumericalError,
    /// The constraint failed or allowed no token at all.
    ConstraintError(String),
    /// The model failed at this request; others go on.
    ModelError(String),
    /// The engine's thread is gone, and every request with it.
    EngineStopped(String),
}

/// Why somebody cancelled a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelReason {
    /// The consumer has lost interest; also a dropped stream.
    Client,
    /// The consumer has seen a stop string in the text.
    Stop,
    /// A deadline has passed.
    Deadline,
    /// The engine is shutting down.
    Shutdown,
}

/// The figures of a finished request.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Why it is over.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Expert weights read for this request.
    pub experts: ExpertReads,
    /// The seed of its draws, given or chosen.
    pub seed: u64,
}

/// Expert weights read for a request: its share, by tokens, of each step's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExpertReads {
    /// In all steps, prompt and output.
    pub bytes: u64,
    /// In steps that computed its output. A prompt is told apart because its tokens share experts:
    /// a mean over both would say nothing of either.
    pub decode_bytes: u64,
    /// Tokens those steps computed for it and kept: wrong guesses cost bytes and yield none.
    pub decode_tokens: usize,
}

impl ExpertReads {
    /// Notes its share of one step, which kept `tokens` tokens, of its output or not.
    pub(crate) fn add(&mut self, bytes: u64, tokens: usize, decode: bool) {
        self.bytes += bytes;
        if decode {
            self.decode_bytes += bytes;
            self.decode_tokens += tokens;
        }
    }

    /// Bytes per token of output, if any was computed.
    pub fn decode_bytes_per_token(&self) -> Option<u64> {
        self.decode_bytes.checked_div(self.decode_tokens as u64)
    }
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose cached keys and values were found, not computed.
    pub cached_tokens: usize,
    /// Tokens generated, a stop token included.
    pub completion_tokens: usize,
    /// How often the request lost its blocks to others and was computed again.
    pub preemptions: usize,
    /// Tokens guessed ahead.
    pub drafts: DraftCounts,
}

impl Usage {
    /// Tokens of output that a step yielded on average, if there was one: more than 1 where guesses
    /// were right.
    pub fn tokens_per_step(&self) -> Option<f64> {
        let steps = (self.completion_tokens as u64).saturating_sub(self.drafts.accepted);
        (steps > 0).then(|| self.completion_tokens as f64 / steps as f64)
    }
}

/// Where a request's time went. All are zero until reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to the first step that ran some of it.
    pub queued: Duration,
    /// From there to the first generated token.
    pub prompt: Duration,
    /// From the first to the last generated token.
    pub decode: Duration,
}

impl Summary {
    /// Prompt tokens computed (not found in the cache) per second, if any.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        let computed = self.usage.prompt_tokens - self.usage.cached_tokens;
        rate(computed, self.timings.prompt)
    }

    /// Tokens per second after the first one, if there was more than one.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        rate(self.usage.completion_tokens.saturating_sub(1), self.timings.decode)
    }
}

fn rate(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelFacts = ModelFacts {
        vocab_size: 100,
        context_length: 64,
        num_blocks: 8,
        batch_tokens_max: 32,
        logit_rows_max: 4,
    };

    /// The field `change` makes invalid, if it does.
    fn field(change: impl FnOnce(&mut Request)) -> Option<&'static str> {
        let mut request = Request::new(vec![1, 2, 3]);
        change(&mut request);
        request.validate(&MODEL).err().map(|error| error.field)
    }

    #[test]
    fn errors_name_the_field() {
        assert_eq!(field(|_| ()), None);
        assert_eq!(field(|r| r.tokens.clear()), Some("tokens"));
        assert_eq!(field(|r| r.tokens[1] = 100), Some("tokens"));
        assert_eq!(field(|r| r.tokens = vec![0; 64]), Some("tokens"));
        assert_eq!(field(|r| r.max_tokens = Some(0)), Some("max_tokens"));
        assert_eq!(field(|r| r.max_tokens = Some(61)), None);
        assert_eq!(field(|r| r.max_tokens = Some(62)), Some("max_tokens"));
        assert_eq!(field(|r| r.max_tokens = Some(usize::MAX)), Some("max_tokens"));
        assert_eq!(field(|r| r.stop_tokens = vec![0; 65]), Some("stop_tokens"));
        assert_eq!(field(|r| r.logprobs = Some(21)), Some("logprobs"));
        assert_eq!(field(|r| r.priority = 101), Some("priority"));
        assert_eq!(field(|r| r.sampling.temperature = f32::NAN), Some("temperature"));
        assert_eq!(field(|r| r.sampling.temperature = -1.0), Some("temperature"));
        assert_eq!(field(|r| r.sampling.top_p = 0.0), Some("top_p"));
        assert_eq!(field(|r| r.sampling.min_p = 1.5), Some("min_p"));
        assert_eq!(field(|r| r.sampling.repetition_penalty = 0.0), Some("repetition_penalty"));
        assert_eq!(field(|r| r.sampling.presence_penalty = 101.0), Some("presence_penalty"));
        assert_eq!(field(|r| r.sampling.frequency_penalty = -101.0), Some("frequency_penalty"));
        assert_eq!(field(|r| r.sampling.logit_bias = vec![(100, 1.0)]), Some("logit_bias"));
        assert_eq!(field(|r| r.sampling.logit_bias = vec![(1, f32::NAN)]), Some("logit_bias"));
        assert_eq!(field(|r| r.sampling.logit_bias = vec![(1, f32::NEG_INFINITY)]), None);
    }

    #[test]
    fn messages_say_found_and_expected() {
        let mut request = Request::new(vec![1]);
        request.sampling.top_p = 2.0;
        let message = request.validate(&MODEL).map_err(|error| error.to_string());
        assert_eq!(message, Err("`top_p` is `2`, expected above 0 to 1".to_owned()));
    }
}
