//! Answers in sections: thoughts, text and calls with marks between them.

use std::sync::Arc;

use super::super::conversation::is_plain_name;
use super::super::formats::{Calls, Mark, Sections};
use super::lexer::Found;
use super::objects::{Feed, Objects};
use super::scan::{JsonScan, Step};
use super::tagged::Tagged;
use super::{Sink, Tool, python_calls};

/// Longest text that can still turn out to be a call's name or id, in bytes.
const NAME_BYTES_MAX: usize = 512;
/// Longest list of Python calls in bytes.
const PYTHON_BYTES_MAX: usize = 1 << 20;
/// Most line feeds held back at the end of a section.
const LINE_FEEDS_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct SectionReader {
    rules: Sections,
    /// The tools offered.
    tools: Arc<[Tool]>,
    state: State,
    edge: Edge,
    /// Something other than blanks was said.
    has_said: bool,
    /// How the mark was spelled that began the call being read; empty if none did.
    call_mark: &'static str,
}

/// Where in an answer.
#[derive(Debug)]
enum State {
    Thought,
    Text,
    /// A bare call may begin: what was read of it.
    Undecided(String),
    /// Behind a call's mark: its name so far.
    Name(String),
    /// Behind the mark of a call's id.
    Id {
        name: String,
        id: String,
    },
    /// Behind `function<sep>`: the name and the code fence so far.
    Fence(String),
    Arguments(Arguments),
    Objects(Box<Objects>),
    Tagged(Box<Tagged>),
    Python(String),
    /// Behind a call.
    Between,
}

/// Arguments on their way.
#[derive(Debug, Default)]
struct Arguments {
    scan: JsonScan,
    is_empty: bool,
    is_complete: bool,
    is_broken: bool,
}

/// Line feeds next to marks.
#[derive(Debug, Default)]
struct Edge {
    at_begin: bool,
    held: usize,
}

impl Edge {
    /// Hands on `text`; if `trims`, but for line feeds at the edges.
    fn pass(&mut self, trims: bool, text: &str, emit: &mut dyn FnMut(&str)) {
        if trims { self.trim(text, emit) } else { emit(text) }
    }

    fn trim(&mut self, text: &str, emit: &mut dyn FnMut(&str)) {
        let text = if self.at_begin { text.trim_start_matches('\n') } else { text };
        let body = text.trim_end_matches('\n');
        self.at_begin &= text.is_empty();
        if !body.is_empty() {
            self.release(emit);
            emit(body);
        }
        self.held += text.len() - body.len();
        while self.held > LINE_FEEDS_MAX {
            emit("\n");
            self.held -= 1;
        }
    }

    /// The line feeds were text after all.
    fn release(&mut self, emit: &mut dyn FnMut(&str)) {
        for _ in 0..std::mem::take(&mut self.held) {
            emit("\n");
        }
    }
}

/// Adds `c` to what may be a call's; takes all of it back out once it is longer than that may be.
fn push_within(raw: &mut String, c: char, bytes_max: usize) -> Option<String> {
    raw.push(c);
    (raw.len() > bytes_max).then(|| std::mem::take(raw))
}

impl SectionReader {
    pub(super) fn new(
        rules: Sections,
        starts_in_thought: bool,
        tools: &Arc<[Tool]>,
    ) -> SectionReader {
        let state = if starts_in_thought { State::Thought } else { State::Text };
        let edge = Edge { at_begin: starts_in_thought, held: 0 };
        let tools = Arc::clone(tools);
        SectionReader { rules, tools, state, edge, has_said: false, call_mark: "" }
    }

    pub(super) fn is_thinking(&self) -> bool {
        matches!(self.state, State::Thought)
    }

    /// Takes a mark.
    pub(super) fn mark(&mut self, found: Found, sink: &mut Sink) {
        if self.is_written_about(found) {
            self.text(found.literal, sink);
            return;
        }
        let is_thinking = self.is_thinking();
        match found.mark {
            Mark::Think => {
                self.close(sink);
                self.enter(State::Thought);
            }
            Mark::ThinkEnd if is_thinking => {
                self.close(sink);
                self.enter(State::Text);
            }
            Mark::Call => {
                self.close(sink);
                self.call_mark = found.literal;
                self.state = match self.rules.calls {
                    Calls::None => State::Between,
                    Calls::Named | Calls::Numbered | Calls::Fenced => State::Name(String::new()),
                    Calls::Objects => State::Objects(Box::new(Objects::new(Vec::new()))),
                    Calls::Tagged(tags) => {
                        State::Tagged(Box::new(Tagged::new(tags, &self.tools, false)))
                    }
                    Calls::Bare => State::Undecided(String::new()),
                };
            }
            Mark::CallBody => {
                self.close(sink);
                if let Calls::Tagged(tags) = self.rules.calls {
                    self.state = State::Tagged(Box::new(Tagged::new(tags, &self.tools, true)));
                }
                self.text(found.literal, sink);
            }
            Mark::CallEnd if !is_thinking => {
                self.close(sink);
                self.enter(State::Between);
            }
            Mark::Nothing if !is_thinking => {
                self.close(sink);
                self.enter(State::Text);
            }
            Mark::CallId => {
                if let State::Name(name) = &mut self.state {
                    let name = std::mem::take(name);
                    self.state = State::Id { name, id: String::new() };
                }
            }
            Mark::Arguments => self.begin_arguments(sink),
            // Strays are structure without a place.
            _ => {}
        }
    }

    /// Is a mark in letters only part of what the model writes?
    fn is_written_about(&self, found: Found) -> bool {
        let is_thinking = self.is_thinking();
        let in_call = !self.is_saying();
        match found.mark {
            _ if !found.is_text => false,
            Mark::Think | Mark::ThinkEnd if in_call => true,
            Mark::Think => found.is_spelled && (self.has_said || is_thinking),
            Mark::ThinkEnd => found.is_spelled && !is_thinking,
            Mark::Call if is_thinking => true,
            Mark::Call => found.is_spelled && (in_call || self.tools.is_empty()),
            Mark::CallBody => in_call || is_thinking || self.tools.is_empty(),
            Mark::CallEnd => found.is_spelled && matches!(self.state, State::Text | State::Thought),
            Mark::Nothing => in_call,
            _ => false,
        }
    }

    /// Is what comes shown to somebody?
    fn is_saying(&self) -> bool {
        matches!(self.state, State::Text | State::Thought | State::Between)
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.edge = Edge { at_begin: self.rules.trims, held: 0 };
        self.call_mark = "";
    }

    /// Takes text.
    pub(super) fn text(&mut self, text: &str, sink: &mut Sink) {
        let mut rest = text;
        while !rest.is_empty() {
            match &self.state {
                State::Thought => {
                    self.edge.pass(self.rules.trims, rest, &mut |piece| sink.reasoning(piece));
                    return;
                }
                State::Text if self.has_said || !self.expects_bare() => {
                    self.say(rest, sink);
                    return;
                }
                _ => {}
            }
            let c = rest.chars().next().expect("the rest is not empty");
            rest = &rest[c.len_utf8()..];
            self.character(c, sink);
        }
    }

    /// Can an answer be a call without any mark?
    fn expects_bare(&self) -> bool {
        self.rules.calls == Calls::Bare && !self.tools.is_empty()
    }

    fn say(&mut self, text: &str, sink: &mut Sink) {
        self.has_said |= !text.trim().is_empty();
        self.edge.pass(self.rules.trims, text, &mut |piece| sink.content(piece));
    }

    /// Takes a character of a call, or of what may be one.
    fn character(&mut self, c: char, sink: &mut Sink) {
        let is_blank = c.is_whitespace();
        match &mut self.state {
            State::Thought => {}
            State::Text if matches!(c, '{' | '[') => {
                self.state = State::Undecided(String::new());
                self.undecided(c, sink);
            }
            State::Text => self.say(c.encode_utf8(&mut [0; 4]), sink),
            State::Undecided(_) => self.undecided(c, sink),
            State::Name(_) => self.name(c, sink),
            State::Id { name, id } => {
                id.push(c);
                if name.len() + id.len() > NAME_BYTES_MAX {
                    let raw = [name.as_str(), id.as_str()].concat();
                    self.no_call(&raw, sink);
                }
            }
            State::Fence(raw) => {
                if c == '{' {
                    let name = raw.split_whitespace().next().unwrap_or_default().to_owned();
                    self.begin(&name, None, sink);
                    self.argument(c, sink);
                } else if let Some(raw) = push_within(raw, c, NAME_BYTES_MAX) {
                    self.no_call(&raw, sink);
                }
            }
            State::Arguments(_) => self.argument(c, sink),
            State::Objects(objects) => {
                let fed = objects.push(c, sink);
                self.fed(fed, sink);
            }
            State::Tagged(tagged) => {
                let fed = tagged.push(c, sink);
                if let Some(raw) = tagged.as_json() {
                    self.state = State::Objects(Box::new(Objects::new(Vec::new())));
                    raw.chars().for_each(|c| self.character(c, sink));
                } else {
                    self.fed(fed, sink);
                }
            }
            State::Python(raw) => {
                if let Some(raw) = push_within(raw, c, PYTHON_BYTES_MAX) {
                    self.no_call(&raw, sink);
                }
            }
            // Blanks between calls are layout, and so is what separates those without marks.
            State::Between if is_blank => {}
            State::Between
                if matches!(self.rules.calls, Calls::Bare | Calls::Objects)
                    && matches!(c, ';' | '{') =>
            {
                if c == '{' {
                    self.state = State::Undecided(String::new());
                    self.undecided(c, sink);
                }
            }
            State::Between => {
                self.enter(State::Text);
                self.say(c.encode_utf8(&mut [0; 4]), sink);
            }
        }
    }

    /// A call may begin: JSON, or a list of Python calls.
    fn undecided(&mut self, c: char, sink: &mut Sink) {
        let State::Undecided(raw) = &mut self.state else { return };
        raw.push(c);
        let is_list = raw.trim_start().starts_with('[');
        if c == '{' {
            let raw = std::mem::take(raw);
            let offered = self.tools.iter().filter(|_| self.call_mark.is_empty());
            let names = offered.map(|tool| tool.name.clone()).collect();
            self.state = State::Objects(Box::new(Objects::new(names)));
            for c in raw.chars() {
                self.character(c, sink);
            }
        } else if is_list && (c.is_alphabetic() || c == '_') {
            self.state = State::Python(std::mem::take(raw));
        } else if !(c.is_whitespace() || (c == '[' && raw.trim() == "["))
            || raw.len() > NAME_BYTES_MAX
        {
            let raw = std::mem::take(raw);
            self.no_call(&raw, sink);
        }
    }

    /// Behind a call's mark: a name, or JSON that holds it.
    fn name(&mut self, c: char, sink: &mut Sink) {
        let State::Name(raw) = &mut self.state else { return };
        if matches!(c, '{' | '[') && raw.trim().is_empty() {
            self.state = State::Objects(Box::new(Objects::new(Vec::new())));
            self.character(c, sink);
        } else if c == '{' && is_plain_name(raw.trim()) {
            // Some models leave out the mark before arguments.
            let name = raw.trim().to_owned();
            self.begin(&name, None, sink);
            self.argument(c, sink);
        } else if let Some(raw) = push_within(raw, c, NAME_BYTES_MAX) {
            self.no_call(&raw, sink);
        }
    }

    /// The mark before arguments.
    fn begin_arguments(&mut self, sink: &mut Sink) {
        match &mut self.state {
            State::Name(name) if self.rules.calls == Calls::Fenced && name.trim() == "function" => {
                self.state = State::Fence(String::new());
            }
            State::Name(name) => {
                let name = name.trim().to_owned();
                let numbered = name.strip_prefix("functions.").and_then(|n| n.rsplit_once(':'));
                match numbered.filter(|_| self.rules.calls == Calls::Numbered) {
                    Some((short, _)) => self.begin(short, Some(name.clone()), sink),
                    None => self.begin(&name, None, sink),
                }
            }
            State::Id { name, id } => {
                let (name, id) = (name.trim().to_owned(), id.trim().to_owned());
                self.begin(&name, Some(id).filter(|id| !id.is_empty()), sink);
            }
            _ => {}
        }
    }

    fn begin(&mut self, name: &str, id: Option<String>, sink: &mut Sink) {
        self.has_said = true;
        sink.call(name, id);
        self.state = State::Arguments(Arguments { is_empty: true, ..Arguments::default() });
    }

    /// Takes a character of arguments.
    fn argument(&mut self, c: char, sink: &mut Sink) {
        let is_fenced = self.rules.calls == Calls::Fenced;
        let State::Arguments(arguments) = &mut self.state else { return };
        if arguments.is_complete {
            if !(c.is_whitespace() || is_fenced && c == '`') {
                sink.end_call(true);
                self.enter(State::Text);
                self.say(c.encode_utf8(&mut [0; 4]), sink);
            }
            return;
        }
        if arguments.is_empty && c.is_whitespace() {
            return;
        }
        arguments.is_broken |= arguments.is_empty && c != '{';
        arguments.is_empty = false;
        sink.arguments(c.encode_utf8(&mut [0; 4]));
        if !arguments.is_broken {
            let step = arguments.scan.step(c);
            arguments.is_complete = step == Step::Done;
            arguments.is_broken = matches!(step, Step::Broken | Step::Over);
        }
    }

    /// What a character did to a call written as JSON or between tags.
    fn fed(&mut self, fed: Feed, sink: &mut Sink) {
        match (fed, &mut self.state) {
            (Feed::More, _) => {}
            (Feed::Done, State::Tagged(_)) => {
                // More may follow.
                self.has_said = true;
                self.call_mark = "";
            }
            (Feed::Done, _) => {
                self.has_said = true;
                self.state = State::Between;
            }
            (Feed::Broken, state) => {
                self.has_said = true;
                let goes_on = match state {
                    State::Objects(objects) => objects.give_up(self.call_mark, sink),
                    State::Tagged(tagged) => tagged.give_up(self.call_mark, sink),
                    _ => false,
                };
                if goes_on {
                    let arguments = Arguments { is_broken: true, ..Arguments::default() };
                    self.state = State::Arguments(arguments);
                } else {
                    self.state = State::Text;
                    self.edge = Edge::default();
                }
            }
        }
    }

    /// What was read is no call but text, its mark included.
    fn no_call(&mut self, raw: &str, sink: &mut Sink) {
        let mark = std::mem::take(&mut self.call_mark);
        self.state = State::Text;
        self.edge = Edge::default();
        self.has_said = true;
        self.say(mark, sink);
        self.say(raw, sink);
    }

    /// Ends the section being read, because a mark begins another.
    fn close(&mut self, sink: &mut Sink) {
        if !self.rules.trims {
            self.edge.held = 0;
        }
        self.end(true, sink);
        self.call_mark = "";
    }

    /// Ends the answer.
    pub(super) fn finish(&mut self, sink: &mut Sink) {
        if matches!(self.state, State::Text) {
            self.edge.release(&mut |piece| sink.content(piece));
        }
        self.end(false, sink);
        // What was no call after all is text, its last line feeds too.
        if matches!(self.state, State::Text) {
            self.edge.release(&mut |piece| sink.content(piece));
        }
        self.state = State::Between;
    }

    /// Ends what is open; `by_mark` if the model said so.
    fn end(&mut self, by_mark: bool, sink: &mut Sink) {
        match std::mem::replace(&mut self.state, State::Between) {
            State::Thought | State::Text | State::Between => {}
            State::Name(raw) if is_plain_name(raw.trim()) => {
                sink.call(raw.trim(), None);
                self.no_arguments(by_mark, sink);
            }
            State::Undecided(raw) if by_mark && raw.trim().is_empty() => {}
            State::Name(raw) if raw.trim().is_empty() => {}
            State::Name(raw) | State::Undecided(raw) | State::Fence(raw) => {
                self.no_call(&raw, sink);
            }
            State::Id { name, id } => {
                sink.call(name.trim(), Some(id.trim().to_owned()));
                self.no_arguments(by_mark, sink);
            }
            State::Arguments(arguments) if arguments.is_empty => self.no_arguments(by_mark, sink),
            State::Arguments(arguments) => sink.end_call(arguments.is_complete),
            State::Objects(mut objects) => {
                if objects.give_up(self.call_mark, sink) {
                    sink.end_call(false);
                }
            }
            State::Tagged(mut tagged) => {
                self.has_said = true;
                tagged.finish(by_mark, self.call_mark, sink);
            }
            State::Python(raw) => match python_calls::read(&raw) {
                Some(calls) if self.are_offered(&calls) => {
                    for (name, arguments) in calls {
                        sink.call(&name, None);
                        sink.arguments(&arguments);
                        sink.end_call(true);
                    }
                }
                _ => self.no_call(&raw, sink),
            },
        }
    }

    /// A call without arguments: if the model ended it so, it has none; else they are missing.
    fn no_arguments(&mut self, by_mark: bool, sink: &mut Sink) {
        self.has_said = true;
        if by_mark {
            sink.arguments("{}");
        }
        sink.end_call(by_mark);
    }

    /// Without a mark, only names of tools make a list of Python calls.
    fn are_offered(&self, calls: &[(String, String)]) -> bool {
        !self.call_mark.is_empty() || {
            let names = || self.tools.iter().map(|tool| &tool.name);
            calls.iter().all(|(name, _)| names().any(|offered| offered == name))
        }
    }
}
