//! `moeba run`: one answer, or a chat.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use moeba_engine::SamplingParams;
use moeba_text::{BUILT_IN_NAMES, ChatRequest, Effort, Reply, ReplyParser, ToolCall, message};
use serde_json::{Value, json};

use super::printer::Printer;
use super::repl;
use crate::args::{RunArgs, SamplingArgs};
use crate::clock;
use crate::input;
use crate::interrupt;
use crate::models::Library;
use crate::output::{Style, note, print_json, size, styled};
use crate::session::{Advice, Answer, CTX_DEFAULT, End, LoadPlan, Question, Session};
use crate::settings::Settings;

/// Longest answer where nobody says otherwise.
const MAX_TOKENS_DEFAULT: usize = 1024;

/// Runs the command.
///
/// # Errors
/// If the model cannot be obtained, loaded or run, or there is no prompt.
pub(crate) fn run(args: &RunArgs, settings: &Settings) -> Result<()> {
    let wants_chat =
        args.prompt.is_none() && args.file.is_none() && (args.chat || io::stdin().is_terminal());
    if wants_chat && args.json {
        bail!("--json needs a prompt");
    }
    // Read before the model is loaded: a prompt that is not there should not cost a minute.
    let prompt = if wants_chat {
        None
    } else {
        let prompt = input::text_of(args.prompt.as_deref(), args.file.as_deref())?;
        if prompt.trim().is_empty() {
            bail!("the prompt is empty");
        }
        Some(prompt)
    };
    let tools = args.tools.as_deref().map_or_else(|| Ok(Vec::new()), read_tools)?;
    let session = load(args, settings)?;
    interrupt::install()?;
    match prompt {
        Some(prompt) => one_shot(args, settings, &session, (&prompt, &tools)),
        None => repl::run(args, settings, &session, tools),
    }
}

/// Reads a list of tools, each as in the OpenAI API, or its `function` alone.
fn read_tools(path: &Path) -> Result<Vec<Value>> {
    let text = input::text_of(None, Some(path))?;
    let wrong = || format!("`{}` is no list of tools", path.display());
    let value: Value = serde_json::from_str(&text).with_context(wrong)?;
    let Value::Array(list) = value else { bail!("{}", wrong()) };
    let whole = |tool: Value| {
        let is_whole = tool["function"].is_object();
        if is_whole { tool } else { json!({ "type": "function", "function": tool }) }
    };
    let tools: Vec<Value> = list.into_iter().map(whole).collect();
    if let Some(at) = tools.iter().position(|tool| !tool["function"]["name"].is_string()) {
        bail!("`{}`: tool {at} has no name", path.display());
    }
    Ok(tools)
}

/// Obtains and loads the model.
fn load(args: &RunArgs, settings: &Settings) -> Result<Session> {
    let resolved = Library::open(settings)?.resolve(args.model.model.as_deref())?;
    let plan = LoadPlan {
        path: resolved.path,
        ctx: args.model.ctx.map_or(CTX_DEFAULT, Into::into),
        ctx_is_asked: args.model.ctx.is_some(),
        kv_type: args.model.kv_type,
        reference: args.reference,
    };
    let mut session = Session::load(&plan, settings)?;
    session.advice = session.advice.or(resolved.advice);
    if let Some(template) = &args.template {
        set_template(&mut session, template)?;
    }
    if settings.voice.chatty {
        if args.reference {
            note("note: computing the plain way, which is slow");
        }
        session.notes.iter().for_each(|remark| note(&format!("note: {remark}")));
    }
    Ok(session)
}

/// Takes `--template`: the name of one of ours, else a file.
fn set_template(session: &mut Session, name_or_file: &str) -> Result<()> {
    if BUILT_IN_NAMES.contains(&name_or_file) {
        return session.set_template(name_or_file);
    }
    let source = input::text_of(None, Some(Path::new(name_or_file))).with_context(|| {
        let names = BUILT_IN_NAMES.join(", ");
        format!("`{name_or_file}` is neither a template's file nor one of {names}")
    })?;
    session.set_template(&source)
}

/// Answers one prompt, with tools offered.
fn one_shot(
    args: &RunArgs,
    settings: &Settings,
    session: &Session,
    (prompt, tools): (&str, &[Value]),
) -> Result<()> {
    let asked = if args.no_template {
        Asked { tokens: session.plain_tokens(prompt)?, ..Asked::default() }
    } else {
        let system = args.system.as_deref().map(|system| message("system", system));
        let messages: Vec<Value> = system.into_iter().chain([message("user", prompt)]).collect();
        chat(args, settings, session, (&messages, tools))?
    };
    let (effort, remarks) = (asked.effort, asked.remarks.clone());
    let question = question(args, session, asked);
    let start = Instant::now();
    let mut printer = Printer::new(args, settings, args.json);
    let answer = ask(session, question, &mut printer)?;
    if args.json {
        let mut shown = to_json(&answer);
        shown["reasoning_effort"] = effort.map(Effort::name).into();
        shown["warnings"] = remarks.into();
        shown["timings"]["load_seconds"] = session.load_time.as_secs_f64().into();
        shown["timings"]["total_seconds"] = start.elapsed().as_secs_f64().into();
        print_json(&shown)?;
    } else {
        printer.end_line()?;
    }
    if settings.voice.chatty && !args.no_stats {
        note(&styled(&figures(&answer), Style::Dim, settings.voice.err_colours));
    }
    if answer.end == End::Interrupted {
        std::process::exit(interrupt::EXIT_CODE.into());
    }
    Ok(())
}

/// A prompt as the model reads it, and how its answer is read.
#[derive(Default)]
pub(super) struct Asked {
    pub(super) tokens: Vec<u32>,
    pub(super) parser: Option<ReplyParser>,
    pub(super) effort: Option<Effort>,
    pub(super) remarks: Vec<String>,
}

/// A conversation, with tools offered, as the model reads it. What could not be done as asked is
/// told.
pub(super) fn chat(
    args: &RunArgs,
    settings: &Settings,
    session: &Session,
    (messages, tools): (&[Value], &[Value]),
) -> Result<Asked> {
    let (prompt, parser) = session.chat(&ChatRequest {
        messages,
        tools,
        effort: args.reasoning_effort,
        now: Some(clock::local_seconds()),
        ..ChatRequest::default()
    })?;
    if settings.voice.chatty {
        prompt.remarks.iter().for_each(|remark| note(&format!("note: {remark}")));
    }
    let (tokens, effort, remarks) = (prompt.ids, prompt.effort, prompt.remarks);
    Ok(Asked { tokens, parser: Some(parser), effort, remarks })
}

/// The question the flags describe.
pub(super) fn question(args: &RunArgs, session: &Session, asked: Asked) -> Question {
    let room = session.context_tokens().saturating_sub(asked.tokens.len());
    let max_tokens = args.sampling.max_tokens.map_or(MAX_TOKENS_DEFAULT.min(room), Into::into);
    Question {
        tokens: asked.tokens,
        parser: asked.parser,
        sampling: sampling(&args.sampling, session.advice),
        max_tokens: Some(max_tokens.max(1)),
        stops: args.sampling.stop.clone(),
        speculation: args.speculate.into(),
    }
}

/// What is typed wins over what is advised.
fn sampling(typed: &SamplingArgs, advice: Advice) -> SamplingParams {
    let typed_advice = Advice {
        temperature: typed.temperature,
        top_k: typed.top_k,
        top_p: typed.top_p,
        min_p: typed.min_p,
        repeat_penalty: typed.repeat_penalty,
    };
    SamplingParams {
        presence_penalty: typed.presence_penalty.unwrap_or(0.0),
        frequency_penalty: typed.frequency_penalty.unwrap_or(0.0),
        seed: typed.seed,
        ..typed_advice.or(advice).sampling()
    }
}

/// Answers and prints what is said as it comes; Ctrl-C ends the answer.
pub(super) fn ask(session: &Session, question: Question, printer: &mut Printer) -> Result<Answer> {
    let _armed = interrupt::arm();
    session.answer(question, &interrupt::is_pressed, &mut |event| printer.show(event))
}

/// The figures of an answer in one line.
pub(super) fn figures(answer: &Answer) -> String {
    let summary = &answer.summary;
    let usage = summary.usage;
    let rate = |rate: Option<f64>| rate.map_or_else(String::new, |r| format!(", {r:.1} tokens/s"));
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} known)"),
    };
    let mut line = format!(
        "[prompt {} tokens{cached}{} | answer {} tokens{} | first token after {:.2} s",
        usage.prompt_tokens,
        rate(summary.prompt_tokens_per_second()),
        usage.completion_tokens,
        rate(summary.decode_tokens_per_second()),
        (summary.timings.queued + summary.timings.prompt).as_secs_f64(),
    );
    if let Some(bytes) = summary.experts.decode_bytes_per_token().filter(|bytes| *bytes > 0) {
        let _ = write!(line, " | {} of expert weights per token", size(bytes));
    }
    if usage.drafts.computed > 0 {
        let _ = write!(line, " | {} of {} guessed", usage.drafts.accepted, usage.drafts.computed);
    }
    if answer.thought_tokens > 0 {
        let _ = write!(line, " | {} tokens of thoughts", answer.thought_tokens);
    }
    let end = match answer.end {
        End::Length => " | cut at the limit",
        End::Interrupted => " | interrupted",
        End::Stop | End::StopString => "",
    };
    line + &format!(" | seed {}{end}]", summary.seed)
}

fn to_json(answer: &Answer) -> Value {
    let (summary, reply) = (&answer.summary, &answer.reply);
    let has_calls = answer.end == End::Stop && !reply.tool_calls.is_empty();
    json!({
        "text": reply.content,
        "content": reply.content,
        "reasoning": Some(&reply.reasoning).filter(|text| !text.is_empty()),
        "tool_calls": tool_calls(reply),
        "finish_reason": if has_calls { "tool_calls" } else { answer.end.name() },
        "seed": summary.seed,
        "usage": {
            "prompt_tokens": summary.usage.prompt_tokens,
            "cached_tokens": summary.usage.cached_tokens,
            "completion_tokens": summary.usage.completion_tokens,
            "reasoning_tokens": answer.thought_tokens,
            "guessed_tokens": summary.usage.drafts.computed,
            "guessed_tokens_accepted": summary.usage.drafts.accepted,
        },
        "timings": {
            "prompt_tokens_per_second": summary.prompt_tokens_per_second(),
            "decode_tokens_per_second": summary.decode_tokens_per_second(),
            "first_token_seconds": (summary.timings.queued + summary.timings.prompt).as_secs_f64(),
            "decode_seconds": summary.timings.decode.as_secs_f64(),
        },
        "expert_bytes": summary.experts.bytes,
        "expert_bytes_per_token": summary.experts.decode_bytes_per_token(),
    })
}

/// Calls as in the OpenAI API, with a mark on those whose arguments are no JSON.
fn tool_calls(reply: &Reply) -> Vec<Value> {
    let one = |(index, call): (usize, &ToolCall)| {
        let id = call.id.clone().unwrap_or_else(|| format!("call{index:05}"));
        let function = json!({ "name": call.name, "arguments": call.arguments });
        let mut shown = json!({ "id": id, "type": "function", "function": function });
        if call.is_malformed {
            shown["malformed"] = true.into();
        }
        shown
    };
    reply.tool_calls.iter().enumerate().map(one).collect()
}
