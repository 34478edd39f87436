//! A text run through a model in windows: what `perplexity`, `kld` and `imatrix` share.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use moeba_model::Model;
use moeba_model::files::{self, ModelFiles};
use moeba_text::Specials;

use crate::args::TextArgs;
use crate::input;
use crate::machine;
use crate::models::Library;
use crate::progress::{Bar, Progress};
use crate::runner::Runner;
use crate::session::Words;
use crate::settings::Settings;

/// A text cut into windows, and the model to read it.
pub(crate) struct Windows {
    /// The model with room for one window.
    pub(crate) runner: Runner,
    /// All tokens of the text.
    tokens: Vec<u32>,
    /// Put before every window; the tokenizer's word for the beginning.
    begin: Option<u32>,
    /// Tokens of a window, `begin` included.
    window: usize,
    stride: usize,
    count: usize,
    bar: Bar,
}

/// One window: its tokens, and which of them are to be counted.
pub(crate) struct Window<'a> {
    /// Tokens `[window]`.
    pub(crate) tokens: Vec<u32>,
    /// The first token that is predicted and counted; those before are context only.
    pub(crate) first: usize,
    /// The model.
    pub(crate) runner: &'a mut Runner,
}

impl Window<'_> {
    /// Hands out what the model predicts for each token that is counted: logits `[vocab]` and the
    /// token that really follows.
    ///
    /// # Errors
    /// If the model cannot be run, or what `on_prediction` says.
    pub(crate) fn predict(
        self,
        mut on_prediction: impl FnMut(&[f32], u32) -> Result<()>,
    ) -> Result<()> {
        let (context, read) = self.tokens[..self.tokens.len() - 1].split_at(self.first - 1);
        let vocab = self.runner.model.spec().vocab_size;
        let mut following = self.tokens[self.first..].iter();
        self.runner.feed(context)?;
        self.runner.score(read, |logits| {
            let mut predictions = logits.chunks_exact(vocab).zip(following.by_ref());
            predictions.try_for_each(|(logits, next)| on_prediction(logits, *next))
        })
    }
}

impl Windows {
    /// Loads the model and cuts the text. `stride` says how far windows are apart; the default is
    /// their length, so that each token is in one.
    ///
    /// # Errors
    /// If model or text cannot be read, or the text has less than two tokens.
    pub(crate) fn open(
        args: &TextArgs,
        stride: Option<usize>,
        settings: &Settings,
    ) -> Result<Windows> {
        let path = Library::open(settings)?.resolve(Some(&args.model))?.path;
        let files = files::open(&path)?;
        let (tokens, begin) = read(args, &files)?;
        let model = Model::from_files(&files, &settings.load_options())?;
        input::check_tokens(&tokens, model.spec().vocab_size)?;
        let window = args.ctx.get().min(tokens.len() + usize::from(begin.is_some()));
        let room = window - usize::from(begin.is_some()).min(window);
        ensure!(room >= 2, "the text has {} tokens; at least two are needed", tokens.len());
        let stride = stride.unwrap_or(room).min(room);
        ensure!(stride > 0, "windows have to move on");
        // A last window that is not full is left out, unless it is the only one.
        let windows = (tokens.len() - room) / stride + 1;
        let windows = args.windows.map_or(windows, |limit| windows.min(limit.get()));
        let pool = machine::pool(settings)?;
        let runner = Runner::new(model, pool, window, args.kv_type.into())?;
        let total = (windows * window) as u64;
        let bar = Progress::new(settings.voice).steps("reading the text, tokens", total);
        Ok(Windows { runner, tokens, begin, window, stride, count: windows, bar })
    }

    /// How many windows there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Tokens of a window.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// Hands out one window after the other, and answers how many tokens a second that was.
    ///
    /// # Errors
    /// What `on_window` says.
    pub(crate) fn each(&mut self, mut on_window: impl FnMut(Window) -> Result<()>) -> Result<f64> {
        let begin = usize::from(self.begin.is_some());
        let room = self.window - begin;
        let start = Instant::now();
        for index in 0..self.count {
            let from = index * self.stride;
            let mut tokens: Vec<u32> = self.begin.into_iter().collect();
            tokens.extend(&self.tokens[from..from + room]);
            // The first token has nothing to be predicted from.
            let shared = if index == 0 { 1 - begin } else { room - self.stride };
            let first = (begin + shared).max(1);
            self.runner.restart();
            on_window(Window { tokens, first, runner: &mut self.runner })
                .with_context(|| format!("in window {}", index + 1))?;
            self.bar.set(((index + 1) * self.window) as u64);
        }
        self.bar.clear();
        let seconds = start.elapsed().as_secs_f64();
        Ok((self.count * self.window) as f64 / seconds)
    }
}

/// The tokens of the text, and the one that begins every window.
fn read(args: &TextArgs, files: &ModelFiles) -> Result<(Vec<u32>, Option<u32>)> {
    if let Some(typed) = &args.tokens {
        return Ok((input::tokens_typed(typed)?, None));
    }
    let words = Words::of_files(files)?;
    let text = input::text_of(None, args.file.as_deref())?;
    let tokens = words.tokenizer.encode(&text, Specials::Plain)?;
    let special = words.tokenizer.special();
    Ok((tokens, special.bos.filter(|_| special.add_bos)))
}

/// A mean with its standard error.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mean {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Mean {
    /// Takes one more value.
    pub(crate) fn add(&mut self, value: f64) {
        self.count += 1.0;
        self.sum += value;
        self.squares += value * value;
    }

    /// How many values there are.
    pub(crate) fn count(&self) -> usize {
        self.count as usize
    }

    /// The mean.
    pub(crate) fn mean(&self) -> f64 {
        self.sum / self.count
    }

    /// The standard error of the mean, as if values were independent.
    pub(crate) fn error(&self) -> f64 {
        let variance = (self.squares / self.count - self.mean() * self.mean()).max(0.0);
        (variance / (self.count - 1.0).max(1.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_errors() {
        let mut mean = Mean::default();
        for value in [1.0, 2.0, 3.0, 4.0] {
            mean.add(value);
        }
        assert_eq!((mean.count(), mean.mean()), (4, 2.5));
        // The sample variance is 5/3.
        assert!((mean.error() - (5.0f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }
}
