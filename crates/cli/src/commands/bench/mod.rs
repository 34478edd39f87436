//! `moeba bench`: how fast a model reads and writes here, next to what the machine could do.
//!
//! The model is driven directly, without sampling. Every test is run once uncounted; then all tests
//! take turns, so that a disturbance hits them alike. Medians and the whole spread are told, never
//! a best run. `docs/benchmarks.md` says how to read the numbers.

mod breakdown;
mod report;
mod speculation;
mod test;

use anyhow::{Result, ensure};
use moeba_kernels::attention::KvDType;
use moeba_kernels::isa;
use moeba_model::Model;
use moeba_model::batch::BLOCK_TOKENS;
use moeba_model::cost::Cost;
use moeba_model::prediction::Conditions;

use self::breakdown::Breakdown;
use self::report::Facts;
use self::test::{Kind, Test};
use crate::args::BenchArgs;
use crate::machine;
use crate::models::Library;
use crate::output::{print, print_json};
use crate::progress::Progress;
use crate::runner::{Runner, STEP_LOGITS_MAX};
use crate::settings::Settings;

/// Runs the command.
///
/// # Errors
/// If there is nothing to measure, or the model cannot be run.
pub(crate) fn run(args: &BenchArgs, settings: &Settings) -> Result<()> {
    if args.speculate {
        return speculation::run(args, settings);
    }
    let mut tests = tests(args)?;
    let path = Library::open(settings)?.resolve(args.model.get())?.path;
    let model = Model::load(&path, &settings.load_options())?;
    let longest = tests.iter().map(Test::end).max().unwrap_or(0);
    let context = model.spec().context_length;
    ensure!(
        longest <= context,
        "`{longest}` tokens are more than the model's context of {context}"
    );
    let pool = machine::pool(settings)?;
    let facts = Facts {
        path: path.display().to_string(),
        family: model.spec().family,
        bytes_per_token: model.bytes_per_token(),
        threads: pool.threads(),
        isa: isa::current(),
        limbs: model.precision().limbs(),
        load: machine::load(),
        limits: if args.no_machine { None } else { machine::limits(&pool, settings.voice).ok() },
    };
    let (cost, kv_dtype) = (Cost::of_model(&model), KvDType::from(args.kv_type));
    let room = |test: &Test| test.sequences * test.end().next_multiple_of(BLOCK_TOKENS);
    let room = tests.iter().map(room).max().unwrap_or(0);
    let mut runner = Runner::new(model, pool, room, kv_dtype)?;
    for test in &mut tests {
        test.step_tokens_max = runner.step_tokens();
        test.by_tiles = test.kind == Kind::Prefill && settings.precision.has_bfloats();
    }
    let waiting = Progress::new(settings.voice).wait("measuring the model");
    for round in 0..=args.runs.get() {
        for test in &mut tests {
            let rate = test.measure(&mut runner)?;
            if round > 0 {
                test.rates.push(rate);
            }
        }
    }
    let step_tokens_max = runner.step_tokens();
    let conditions = Conditions { kv_dtype, precision: settings.precision, step_tokens_max };
    for test in &mut tests {
        test.count(&cost, kv_dtype);
        if let Some(limits) = &facts.limits {
            test.predict(&cost, &conditions, &limits.into());
        }
    }
    // Last, because a pool that has begun to count its regions goes on with it.
    let profiled = tests.iter().filter(|_| args.profile);
    let breakdowns =
        profiled.map(|test| Breakdown::of(test, &mut runner)).collect::<Result<Vec<_>>>()?;
    waiting.clear();
    if args.json {
        return print_json(&report::to_json(&tests, &breakdowns, &facts));
    }
    let colours = settings.voice.out_colours;
    let mut text = report::to_text(&tests, &facts, colours);
    for (test, breakdown) in tests.iter().zip(&breakdowns) {
        text.push_str(&breakdown.to_text(test, facts.limits.as_ref(), colours));
    }
    print(&text)
}

fn tests(args: &BenchArgs) -> Result<Vec<Test>> {
    let prefill = args.prompt.iter().map(|&tokens| Test::new(Kind::Prefill, tokens, 1, 0));
    let decode = args.batch.iter().flat_map(|&sequences| {
        let of = move |&tokens: &usize| Test::new(Kind::Decode, tokens, sequences, args.depth);
        args.generate.iter().map(of)
    });
    let tests: Vec<Test> =
        prefill.chain(decode).filter(|test| test.tokens * test.sequences > 0).collect();
    ensure!(!tests.is_empty(), "nothing to measure: all lengths are 0");
    let most = tests.iter().map(|test| test.sequences).max().unwrap_or(0);
    ensure!(
        most <= STEP_LOGITS_MAX,
        "`{most}` sequences at once are more than a step has logits for: {STEP_LOGITS_MAX}"
    );
    Ok(tests)
}
