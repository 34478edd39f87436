//! `moeba quantize`: a model in another format, as GGUF.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail};
use moeba_kernels::dtype::{DType, FORMATS};
use moeba_model::convert::{Conversion, Ending, Importance, Recipe, Target, is_writable};
use moeba_model::files::{Container, open};
use regex_automata::hybrid::regex::Regex;
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::gguf_words;
use crate::interrupt::{self, Armed};
use crate::machine;
use crate::models::Library;
use crate::output::{count, harmless, note, print, print_json, size, table};
use crate::progress::Progress;
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// If the output exists, the input cannot be converted, or the disk refuses.
pub(crate) fn run(args: &QuantizeArgs, settings: &Settings) -> Result<()> {
    let output = args.output.as_deref().filter(|_| !args.dry_run);
    let output = output.map(|path| super::new_output_file(path, args.force)).transpose()?;
    let target = target(&args.target)?;
    let choices: Vec<(Regex, DType)> =
        args.tensor_types.iter().map(|typed| choice(typed)).collect::<Result<_>>()?;
    let choose = |name: &str| {
        let found =
            choices.iter().find(|(regex, _)| regex.is_match(&mut regex.create_cache(), name));
        found.map(|(_, dtype)| *dtype)
    };
    let importance = args.imatrix.as_deref().map(Importance::read).transpose()?;
    let input = Library::open(settings)?.resolve(Some(&args.input))?.path;
    let files = open(&input)?;
    let words = match files.container {
        Container::Gguf => Vec::new(),
        Container::HuggingFace | Container::Mistral => gguf_words::of_directory(&files)?,
    };
    let recipe = Recipe {
        target,
        is_pure: args.pure,
        choose: &choose,
        importance: importance.as_ref(),
        words: &words,
    };
    let conversion = Conversion::plan(&files, &recipe)?;
    let progress = Progress::new(settings.voice);
    conversion.notes().iter().for_each(|note| progress.say(&format!("note: {note}")));
    if let Some(output) = &output {
        if same_file(output, &input) {
            bail!("`{}` is the input itself; write to another file", output.display());
        }
        let pool = machine::pool(settings)?;
        let kept = "not finished; what is done is kept, and the same command goes on with it";
        let writer = conversion.start(output).context(kept)?;
        let (done, all) = (writer.num_written(), conversion.tensors().len());
        if done > 0 {
            progress.say(&format!("going on after {done} of {all} tensors"));
        } else if writer.has_discarded() {
            progress.say("starting over: what was begun here had another input, recipe or version");
        }
        let title = format!("writing {}", target.name);
        let bar = progress.bytes(&title, Some(conversion.num_bytes()));
        let armed = Armed::new()?;
        let ending = conversion.write(writer, &pool, &mut |done| {
            bar.set(done);
            if interrupt::is_pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let ending = ending.context(kept)?;
        drop(armed);
        bar.clear();
        if ending == Ending::Stopped {
            progress.say("stopped; the same command goes on with what is done");
            std::process::exit(interrupt::EXIT_CODE.into());
        }
    }
    report(&conversion, args, settings)
}

/// The type called `name`.
pub(super) fn target(name: &str) -> Result<&'static Target> {
    Target::from_name(name).with_context(|| {
        let names: Vec<&str> = Target::all().map(|target| target.name).collect();
        format!("no type is called `{}`; there are {}", harmless(name), names.join(", "))
    })
}

/// Reads `REGEX=TYPE`.
fn choice(typed: &str) -> Result<(Regex, DType)> {
    let (regex, name) = typed.rsplit_once('=').context("--tensor-type wants REGEX=TYPE")?;
    let dtype = DType::from_name(name).filter(|&dtype| is_writable(dtype)).with_context(|| {
        let names = FORMATS.iter().filter(|format| is_writable(format.dtype));
        let names: Vec<&str> = names.map(|format| format.name).collect();
        format!("`{}` is no format to write; there are {}", harmless(name), names.join(", "))
    })?;
    let regex = Regex::new(regex).map_err(|error| anyhow::anyhow!("`{regex}`: {error}"))?;
    Ok((regex, dtype))
}

fn same_file(a: &std::path::Path, b: &std::path::Path) -> bool {
    std::fs::canonicalize(a).ok().zip(std::fs::canonicalize(b).ok()).is_some_and(|(a, b)| a == b)
}

/// What the result consists of.
fn report(conversion: &Conversion, args: &QuantizeArgs, settings: &Settings) -> Result<()> {
    let shares = conversion.shares();
    let numbers: u64 = shares.iter().map(|share| share.numbers).sum();
    let bits = |bytes: u64, numbers: u64| 8.0 * bytes as f64 / numbers.max(1) as f64;
    if args.json {
        let shares = shares.iter().map(|share| {
            json!({
                "format": share.dtype.name(),
                "tensors": share.tensors,
                "weights": share.numbers,
                "bytes": share.bytes,
            })
        });
        return print_json(&json!({
            "path": args.output.as_ref().filter(|_| !args.dry_run)
                .map(|path| path.display().to_string()),
            "formats": shares.collect::<Vec<_>>(),
            "tensors": conversion.tensors().len(),
            "weights": numbers,
            "bytes": conversion.num_bytes(),
            "bits_per_weight": bits(conversion.num_bytes(), numbers),
        }));
    }
    let heading = ["FORMAT", "TENSORS", "WEIGHTS", "BYTES", "BITS/WEIGHT"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    let mut row = |name: &str, tensors: usize, numbers: u64, bytes: u64| {
        rows.push(vec![
            name.to_owned(),
            tensors.to_string(),
            count(numbers),
            size(bytes),
            format!("{:.2}", bits(bytes, numbers)),
        ]);
    };
    for share in &shares {
        row(share.dtype.name(), share.tensors, share.numbers, share.bytes);
    }
    row("all", conversion.tensors().len(), numbers, conversion.num_bytes());
    print(&table(&rows, &[1, 2, 3, 4], settings.voice.out_colours))?;
    if let Some(output) = args.output.as_ref().filter(|_| !args.dry_run && settings.voice.chatty) {
        note(&format!("wrote `{}`", output.display()));
    }
    Ok(())
}
