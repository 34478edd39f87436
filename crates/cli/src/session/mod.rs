//! A loaded model one can talk to: text in, text out, token by token.
//!
//! Joins two crates that never meet otherwise, `text` and `engine`: a conversation becomes tokens
//! and is submitted; tokens come back and become thoughts, text and tool calls, and the text is
//! watched for stop strings.
//! Nothing here prints or reads flags, so that a server can use it as it is.

mod advice;
mod load;
mod speech;
mod words;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use moeba_engine::{EngineHandle, Request, SamplingParams, Speculation, Summary};
use moeba_text::{ChatPrompt, ChatRequest, Reply, ReplyEvent, ReplyParser};

pub(crate) use advice::Advice;
pub(crate) use load::{CTX_DEFAULT, LoadPlan};
use speech::Speech;
pub(crate) use words::Words;

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
    /// Tells thoughts, text and calls of the answer apart; without one, all is text.
    pub(crate) parser: Option<ReplyParser>,
    /// How tokens are chosen.
    pub(crate) sampling: SamplingParams,
    /// Longest answer, in tokens; the context's rest if `None`.
    pub(crate) max_tokens: Option<usize>,
    /// The answer ends before any of these.
    pub(crate) stops: Vec<String>,
    /// Whether tokens are guessed ahead.
    pub(crate) speculation: Speculation,
}

/// An answer that has ended.
#[derive(Debug)]
pub(crate) struct Answer {
    /// What was thought, said and called.
    pub(crate) reply: Reply,
    /// Tokens spent on thoughts.
    pub(crate) thought_tokens: usize,
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
    /// A conversation as tokens, ending where the model is to answer, and a parser for the answer.
    ///
    /// # Errors
    /// If the model has no chat format, or the conversation cannot be said in it.
    pub(crate) fn chat(&self, request: &ChatRequest<'_>) -> Result<(ChatPrompt, ReplyParser)> {
        let chat = self.words.chat.as_ref().context(
            "this model has no chat template; --no-template gives it the prompt as it is",
        )?;
        let prompt = chat.prompt(request)?;
        let parser = chat.reply(&prompt);
        Ok((prompt, parser))
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

    /// Answers, handing out what is said as it comes. `is_enough` is asked between tokens.
    ///
    /// # Errors
    /// If the question does not fit, the model fails, or `on_event` does.
    pub(crate) fn answer(
        &self,
        question: Question,
        is_enough: &dyn Fn() -> bool,
        on_event: &mut dyn FnMut(&ReplyEvent) -> Result<()>,
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
            speculation: question.speculation,
            max_tokens: Some(question.max_tokens.unwrap_or(room).min(room)),
            ..Request::new(question.tokens)
        };
        let stream = self.engine.submit(request)?;
        let speech = Speech::new(&self.words.tokenizer, question.parser, question.stops)?;
        speech.listen(stream, is_enough, on_event)
    }
}
