//! A loaded model one can talk to: text in, text out, token by token.
//!
//! Joins two crates that never meet otherwise, `text` and `engine`: a conversation is rendered,
//! encoded and submitted; tokens come back, become characters, and are watched for stop strings.
//! Nothing here prints or reads flags, so that a server can use it as it is.

mod advice;
mod load;
mod words;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use moeba_engine::{
    CancelReason, EngineHandle, Event, EventStream, FinishReason, Request, SamplingParams, Summary,
};
use moeba_text::{Detokenizer, RenderInput, StopStrings};
use serde_json::Value as Json;

pub(crate) use advice::Advice;
pub(crate) use load::{CTX_DEFAULT, LoadPlan};
pub(crate) use words::Words;

/// How long to wait for a token before looking whether the user has had enough.
const PATIENCE: Duration = Duration::from_millis(50);

/// A model that is ready to answer.
pub(crate) struct Session {
    engine: EngineHandle,
    words: Words,
    /// What the model's makers advise for sampling.
    pub(crate) advice: Advice,
    /// Remarks made while loading, for the user.
    pub(crate) notes: Vec<String>,
    /// How long loading took.
    pub(crate) load_time: Duration,
}

/// One thing to be answered.
pub(crate) struct Question {
    /// The prompt.
    pub(crate) tokens: Vec<u32>,
    /// How tokens are chosen.
    pub(crate) sampling: SamplingParams,
    /// Longest answer, in tokens; the context's rest if `None`.
    pub(crate) max_tokens: Option<usize>,
    /// The answer ends before any of these.
    pub(crate) stops: Vec<String>,
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// All of its text.
    pub(crate) text: String,
    /// The engine's figures.
    pub(crate) summary: Summary,
    /// Why it ended.
    pub(crate) end: End,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The model had said all.
    Stop,
    /// A stop string came up.
    StopString,
    /// The limit of tokens, or of the context, was reached.
    Length,
    /// The user had enough.
    Interrupted,
}

impl End {
    /// The word for it in JSON, as the OpenAI API says it where it has one.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stop | Self::StopString => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

impl Session {
    /// Tokens of a conversation, ending where the model is to answer.
    ///
    /// # Errors
    /// If the model has no chat template, or the template refuses the conversation.
    pub(crate) fn chat_tokens(&self, messages: &[Json]) -> Result<Vec<u32>> {
        let template = self.words.template.as_ref().context(
            "this model has no chat template; --no-template gives it the prompt as it is",
        )?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        let input = RenderInput {
            messages,
            add_generation_prompt: true,
            now: now.map(|time| time.as_secs() as i64),
            ..RenderInput::default()
        };
        Ok(template.encode(&self.words.tokenizer, &input)?)
    }

    /// Uses another chat template: one of ours by name, or the text of one.
    ///
    /// # Errors
    /// If it is no template.
    pub(crate) fn set_template(&mut self, name_or_source: &str) -> Result<()> {
        self.words.set_template(name_or_source)
    }

    /// Tokens of a text as it is, beginning as the model's texts begin.
    ///
    /// # Errors
    /// If the text cannot be encoded.
    pub(crate) fn plain_tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.words.tokenizer.encode_document(text, moeba_text::Specials::Plain)?)
    }

    /// Most tokens a question and its answer may have together.
    pub(crate) fn context_tokens(&self) -> usize {
        self.engine.model().sequence_tokens_max()
    }

    /// Answers, handing out text as it comes. `is_enough` is asked between tokens.
    ///
    /// # Errors
    /// If the question does not fit, the model fails, or `on_text` does.
    pub(crate) fn answer(
        &self,
        question: Question,
        is_enough: &dyn Fn() -> bool,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let room = self.context_tokens().saturating_sub(question.tokens.len());
        if room == 0 {
            bail!(
                "the prompt has {} tokens, the context {}; --ctx makes it larger",
                question.tokens.len(),
                self.context_tokens()
            );
        }
        let request = Request {
            sampling: question.sampling,
            max_tokens: Some(question.max_tokens.unwrap_or(room).min(room)),
            ..Request::new(question.tokens)
        };
        let stream = self.engine.submit(request)?;
        let speech = Speech {
            detokenizer: Detokenizer::continuing(Arc::clone(&self.words.tokenizer)),
            stops: StopStrings::new(question.stops)?,
            text: String::new(),
            tokens: 0,
            is_stopped: false,
        };
        speech.listen(stream, is_enough, on_text)
    }
}

/// The text of an answer while it comes.
struct Speech {
    detokenizer: Detokenizer,
    stops: StopStrings,
    text: String,
    /// Tokens of the answer so far.
    tokens: usize,
    is_stopped: bool,
}

impl Speech {
    fn listen(
        mut self,
        mut stream: EventStream,
        is_enough: &dyn Fn() -> bool,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        loop {
            if is_enough() {
                stream.cancel(CancelReason::Client);
            }
            let Ok(event) = stream.recv_timeout(PATIENCE) else { continue };
            match event.context("the engine ended the stream without a word")? {
                // What comes after a stop string was computed before the engine heard of it.
                Event::Token { .. } if self.is_stopped => {}
                Event::Token { id, .. } => {
                    if let Err(error) = self.token(id, on_text) {
                        stream.cancel(CancelReason::Client);
                        return Err(error);
                    }
                    if self.is_stopped {
                        stream.cancel(CancelReason::Stop);
                    }
                }
                Event::Finished(summary) => return self.finish(summary, on_text),
            }
        }
    }

    fn token(&mut self, id: u32, on_text: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
        self.tokens += 1;
        let mut piece = String::new();
        self.detokenizer.push(id, &mut piece);
        let before = self.text.len();
        self.is_stopped |= self.stops.push(&piece, &mut self.text).is_some();
        let fresh = &self.text[before..];
        if fresh.is_empty() { Ok(()) } else { on_text(fresh) }
    }

    fn finish(
        mut self,
        mut summary: Summary,
        on_text: &mut dyn FnMut(&str) -> Result<()>,
    ) -> Result<Answer> {
        let before = self.text.len();
        if self.is_stopped {
            // The engine ran on until it heard of it; how far is chance and not part of the answer.
            summary.usage.completion_tokens = self.tokens;
        } else {
            let mut rest = String::new();
            self.detokenizer.finish(&mut rest);
            self.is_stopped = self.stops.push(&rest, &mut self.text).is_some();
            self.stops.finish(&mut self.text);
        }
        if self.text.len() > before {
            on_text(&self.text[before..])?;
        }
        let end = match &summary.reason {
            _ if self.is_stopped => End::StopString,
            FinishReason::Stop { .. } | FinishReason::ConstraintComplete => End::Stop,
            FinishReason::Length => End::Length,
            FinishReason::Cancelled(_) => End::Interrupted,
            FinishReason::NumericalError => bail!("the model's numbers went bad (NaN)"),
            FinishReason::ConstraintError(message)
            | FinishReason::ModelError(message)
            | FinishReason::EngineStopped(message) => return Err(anyhow!("{message}")),
        };
        Ok(Answer { text: self.text, summary, end })
    }
}
