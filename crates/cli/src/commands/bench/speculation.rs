//! `moeba bench --speculate`: what guessing ahead is worth, on answers that repeat a text and on
//! answers that do not.
//!
//! Real answers to fixed prompts, since it is their words that are guessed: to give a program back
//! with one name changed, and to tell a story. Each is given without guesses, with guesses where
//! they are measured to gain (the default of `moeba run`), and with guesses wherever there are any,
//! by turns; what counts is the ratio within a round.

use anyhow::Result;
use moeba_engine::{DraftCounts, SamplingParams, Speculation};
use moeba_text::{ChatRequest, message};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::machine;
use crate::models::Library;
use crate::output::{Style, print, print_json, size, styled, table};
use crate::progress::Progress;
use crate::session::{LoadPlan, Question, Session};
use crate::settings::Settings;

/// What is asked, by name.
const TASKS: [(&str, &str); 2] = [
    ("edit", include_str!("edit_prompt.txt")),
    ("story", "Tell me a story about a lighthouse keeper who finds a message in a bottle."),
];

/// The ways to answer, by name as in `--speculate` of `moeba run`. The first is compared with.
const WAYS: [(&str, Speculation); 3] =
    [("off", Speculation::Off), ("auto", Speculation::Measured), ("ngram", Speculation::Always)];

/// Room for either prompt, in any vocabulary.
const PROMPT_TOKENS_MAX: usize = 2048;

/// All answers to one prompt in one way.
#[derive(Default)]
struct Series {
    rates: Vec<f64>,
    drafts: DraftCounts,
    tokens: u64,
    expert_bytes: u64,
    text: String,
}

/// Runs it.
///
/// # Errors
/// If the model cannot be run.
pub(super) fn run(args: &BenchArgs, settings: &Settings) -> Result<()> {
    let tokens_max = args.generate.iter().copied().max().unwrap_or(0).max(2);
    let path = Library::open(settings)?.resolve(args.model.get())?.path;
    let session = Session::load(
        &LoadPlan {
            path: path.clone(),
            ctx: PROMPT_TOKENS_MAX + tokens_max,
            ctx_is_asked: false,
            kv_type: args.kv_type,
            reference: false,
        },
        settings,
    )?;
    let load = machine::load();
    let prompts = TASKS.map(|(_, prompt)| prompt_tokens(&session, prompt));
    let mut all: [[Series; WAYS.len()]; TASKS.len()] = Default::default();
    let waiting = Progress::new(settings.voice).wait("measuring answers");
    // One round is not counted: it reads the prompts, which later ones find in the cache.
    for round in 0..=args.runs.get() {
        for (prompt, series) in prompts.iter().zip(&mut all) {
            for index in 0..WAYS.len() {
                // Every other round in the other order, so that a trend favours nobody.
                let index = if round % 2 == 0 { index } else { WAYS.len() - 1 - index };
                let tokens = prompt.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))?;
                series[index].answer(&session, tokens, WAYS[index].1, tokens_max, round > 0)?;
            }
        }
    }
    waiting.clear();
    if args.json {
        return print_json(&json!({ "model": path, "tests": to_json(&all), "load_before": load }));
    }
    let mut text = to_text(&all, settings.voice.out_colours);
    let busy = load.filter(|load| *load > machine::BUSY);
    let busy = busy.map(|load| format!("the machine was busy before (load {load:.1})"));
    for line in [Some(path.display().to_string()), busy].into_iter().flatten() {
        text.push_str(&styled(&line, Style::Dim, settings.voice.out_colours));
        text.push('\n');
    }
    print(&text)
}

/// A prompt as the model reads it: in a chat, if it chats.
fn prompt_tokens(session: &Session, prompt: &str) -> Result<Vec<u32>> {
    let messages = [message("user", prompt)];
    let request = ChatRequest { messages: &messages, ..ChatRequest::default() };
    session.chat(&request).map(|(prompt, _)| prompt.ids).or_else(|_| session.plain_tokens(prompt))
}

impl Series {
    fn answer(
        &mut self,
        session: &Session,
        tokens: &[u32],
        speculation: Speculation,
        tokens_max: usize,
        counts: bool,
    ) -> Result<()> {
        let question = Question {
            tokens: tokens.to_vec(),
            parser: None,
            sampling: SamplingParams::greedy(),
            max_tokens: Some(tokens_max),
            stops: Vec::new(),
            speculation,
        };
        let answer = session.answer(question, &|| false, &mut |_| Ok(()))?;
        if counts {
            let usage = answer.summary.usage;
            self.rates.push(answer.summary.decode_tokens_per_second().unwrap_or(0.0));
            self.drafts += usage.drafts;
            self.tokens += usage.completion_tokens as u64;
            self.expert_bytes += answer.summary.experts.decode_bytes;
            self.text = answer.reply.content;
        }
        Ok(())
    }

    fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.tokens.saturating_sub(self.drafts.accepted).max(1) as f64
    }

    /// Share of guesses that were right, if there were any.
    fn right(&self) -> Option<f64> {
        let computed = self.drafts.computed;
        (computed > 0).then(|| self.drafts.accepted as f64 / computed as f64)
    }

    /// How many times as fast as `other`, round by round.
    fn times(&self, other: &Series) -> Vec<f64> {
        self.rates.iter().zip(&other.rates).map(|(mine, theirs)| mine / theirs).collect()
    }
}

/// Median, lowest and highest.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    [f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]), sorted[0], sorted[n - 1]]
}

fn to_json(all: &[[Series; WAYS.len()]; TASKS.len()]) -> Vec<Value> {
    let mut shown = Vec::new();
    for ((task, _), series) in TASKS.iter().zip(all) {
        for ((way, _), one) in WAYS.iter().zip(series) {
            shown.push(json!({
                "task": task,
                "speculate": way,
                "runs": one.rates,
                "tokens_per_second": spread(&one.rates)[0],
                "times_as_fast_as_off": one.times(&series[0]),
                "tokens": one.tokens,
                "tokens_per_step": one.tokens_per_step(),
                "guessed_tokens": one.drafts.computed,
                "guessed_tokens_accepted": one.drafts.accepted,
                "expert_bytes_per_token": one.expert_bytes / one.tokens.max(1),
                "same_answer_as_off": one.text == series[0].text,
            }));
        }
    }
    shown
}

fn to_text(all: &[[Series; WAYS.len()]; TASKS.len()], colours: bool) -> String {
    let heading = [
        "ANSWER",
        "SPECULATE",
        "TOKENS/S",
        "MIN",
        "MAX",
        "TIMES OFF",
        "MIN",
        "MAX",
        "TOKENS/STEP",
        "GUESSED",
        "RIGHT",
        "EXPERTS/TOKEN",
        "THE SAME",
    ];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for ((task, _), series) in TASKS.iter().zip(all) {
        for ((way, _), one) in WAYS.iter().zip(series) {
            let mut row = vec![(*task).to_owned(), (*way).to_owned()];
            row.extend(spread(&one.rates).map(|rate| format!("{rate:.1}")));
            row.extend(spread(&one.times(&series[0])).map(|times| format!("{times:.2}")));
            row.extend([
                format!("{:.2}", one.tokens_per_step()),
                one.drafts.computed.to_string(),
                one.right().map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
                size(one.expert_bytes / one.tokens.max(1)),
                if one.text == series[0].text { "yes" } else { "NO" }.to_owned(),
            ]);
            rows.push(row);
        }
    }
    let columns: Vec<usize> = (2..heading.len()).collect();
    table(&rows, &columns, colours)
}
