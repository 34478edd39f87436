//! Real layers of every family, with small random weights: what a request yields does not depend on
//! what happens around it. Log-probabilities are compared bit by bit, so equal tokens by luck do
//! not pass.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moeba_engine::{
    Decoder, Engine, EngineHandle, Event, EventStream, FinishReason, Forward, Limits, Request,
    STEP_ROWS_MAX, SamplingParams, Speculation, StepError, StepStats, Summary,
};
use moeba_kernels::attention::KvDType;
use moeba_kernels::pool::{Pinning, Pool};
use moeba_model::batch::Batch;
use moeba_model::families::FAMILIES;
use moeba_model::kv::KvCache;
use moeba_model::workspace::Workspace;
use moeba_model::{LoadOptions, Model};

/// How an engine is set up; answers must not depend on any of it but `kv`.
#[derive(Clone, Copy)]
struct Setup {
    threads: usize,
    batch_tokens_max: usize,
    sequences_max: usize,
    num_blocks: usize,
    prefix_cache: bool,
    kv: KvDType,
    speculation: Speculation,
}

/// One sequence, the whole prompt in one step, nothing kept, nothing guessed.
const PLAIN: Setup = Setup {
    threads: 1,
    batch_tokens_max: 128,
    sequences_max: 1,
    num_blocks: 8,
    prefix_cache: false,
    kv: KvDType::F32,
    speculation: Speculation::Off,
};

fn decoder(path: &Path, setup: Setup) -> Decoder {
    let model = Model::load(path, &LoadOptions::default()).expect("the fixture is sound");
    let pool = Pool::new(setup.threads, Pinning::None);
    let cache = KvCache::new(model.spec(), setup.num_blocks, setup.kv).expect("a small cache");
    let tokens_max = setup.batch_tokens_max;
    let logit_rows_max = match setup.speculation {
        Speculation::Off => setup.sequences_max,
        _ => STEP_ROWS_MAX,
    };
    let workspace = Workspace::new(&model, &pool, tokens_max, logit_rows_max);
    Decoder::new(model, pool, cache, workspace)
}

fn limits(setup: Setup) -> Limits {
    Limits {
        batch_tokens_max: setup.batch_tokens_max,
        sequences_max: setup.sequences_max,
        prefix_cache: setup.prefix_cache,
        ..Limits::default()
    }
}

fn start(path: &Path, setup: Setup) -> EngineHandle {
    Engine::start(Box::new(decoder(path, setup)), limits(setup))
}

/// Request `index` of a family's test: prompts of different lengths with a common beginning.
fn request(index: usize, vocab_size: usize) -> Request {
    let token = |i: usize| ((i * 7919 + 13) % vocab_size) as u32;
    let mut tokens: Vec<u32> = (0..20).map(token).collect();
    tokens.extend((0..5 * index).map(|i| token(31 * i + index)));
    let mut request = Request::new(tokens);
    request.max_tokens = Some(24);
    request.logprobs = Some(3);
    request.sampling = SamplingParams {
        temperature: if index.is_multiple_of(2) { 0.0 } else { 0.9 },
        top_p: 0.95,
        seed: Some(index as u64),
        ..SamplingParams::default()
    };
    request
}

const REQUESTS: usize = 4;

/// The answers to all requests, submitted together or one after the other.
fn answers(path: &Path, setup: Setup, together: bool) -> Vec<(Vec<Event>, Summary)> {
    let engine = start(path, setup);
    let submit = |index| {
        let request = request(index, engine.model().vocab_size);
        let request = Request { speculation: setup.speculation, ..request };
        engine.submit(request).expect("room")
    };
    let read = |stream: EventStream| {
        let mut events: Vec<Event> = stream.collect();
        match events.pop() {
            Some(Event::Finished(summary)) => (events, summary),
            other => panic!("a stream ends with `Finished`, not {other:?}"),
        }
    };
    if together {
        let streams: Vec<_> = (0..REQUESTS).map(submit).collect();
        streams.into_iter().map(read).collect()
    } else {
        (0..REQUESTS).map(|index| read(submit(index))).collect()
    }
}

fn fixtures() -> Vec<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/models");
    let families = FAMILIES.iter().map(|family| root.join(family.name).join("model.gguf"));
    families.filter(|path| path.exists()).collect()
}

#[test]
fn the_same_request_yields_the_same_bits_in_every_company() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 6, "fixtures are where they should be");
    for path in fixtures {
        let alone = answers(&path, PLAIN, false);
        assert!(alone.iter().all(|(events, _)| events.len() == 24));
        let check = |name: &str, setup: Setup, together: bool| {
            let others = answers(&path, setup, together);
            for (index, (one, other)) in alone.iter().zip(&others).enumerate() {
                assert_eq!(one.0, other.0, "{}: request {index}, {name}", path.display());
            }
            others
        };
        let wide = Setup { sequences_max: 4, num_blocks: 32, threads: 2, ..PLAIN };
        check("in one batch, two threads", wide, true);
        check("in chunks", Setup { batch_tokens_max: 7, ..PLAIN }, false);
        check("in chunks and together", Setup { batch_tokens_max: 9, ..wide }, true);
        let warm = check("found in the cache", Setup { prefix_cache: true, ..PLAIN }, false);
        assert!(warm[1..].iter().all(|(_, summary)| summary.usage.cached_tokens == 16));
        let tight = Setup { num_blocks: 7, prefix_cache: true, ..wide };
        let tight = check("preempted", tight, true);
        assert!(tight.iter().any(|(_, summary)| summary.usage.preemptions > 0));
    }
}

#[test]
fn guessing_ahead_changes_no_bit_and_is_counted() {
    let (mut computed, mut accepted) = (0, 0);
    for path in fixtures() {
        let alone = answers(&path, PLAIN, false);
        let guessed = Setup { speculation: Speculation::Always, prefix_cache: true, ..PLAIN };
        let together = Setup { sequences_max: 4, num_blocks: 32, threads: 2, ..guessed };
        let tight = Setup { num_blocks: 7, ..together };
        for (setup, at_once) in [(guessed, false), (together, true), (tight, true)] {
            for (one, other) in alone.iter().zip(answers(&path, setup, at_once)) {
                assert_eq!(one.0, other.0, "{}", path.display());
                assert_eq!(one.1.reason, other.1.reason);
                let (plain, usage) = (one.1.usage, other.1.usage);
                assert_eq!(usage.completion_tokens, plain.completion_tokens);
                assert_eq!(plain.drafts.computed, 0);
                computed += usage.drafts.computed;
                accepted += usage.drafts.accepted;
            }
        }
    }
    assert!(accepted > 200 && computed > accepted + 200, "{accepted} of {computed}");
}

#[test]
fn a_cache_of_another_format_changes_numbers_but_not_with_company() {
    let path = fixtures().swap_remove(0);
    for kv in [KvDType::F16, KvDType::BF16, KvDType::Q8] {
        let alone = answers(&path, Setup { kv, ..PLAIN }, false);
        let wide = Setup { kv, sequences_max: 4, num_blocks: 32, batch_tokens_max: 9, ..PLAIN };
        let together = answers(&path, wide, true);
        for (one, other) in alone.iter().zip(&together) {
            assert_eq!(one.0, other.0, "{kv:?}");
        }
    }
}

/// Counts what the steps of a model allocate, on the engine's own thread.
struct Counted {
    inner: Decoder,
    decode_allocations: Arc<AtomicU64>,
    decode_steps: Arc<AtomicU64>,
}

impl Forward for Counted {
    fn forward(&mut self, batch: &Batch) -> Result<StepStats, StepError> {
        let mut result = None;
        let counted = allocation_counter::measure(|| result = Some(self.inner.forward(batch)));
        // The first steps touch memory set aside for good, and prompts are of any length.
        if batch.len() == batch.logit_rows.len() && batch.positions.iter().all(|&p| p > 50) {
            self.decode_steps.fetch_add(1, Ordering::Relaxed);
            self.decode_allocations.fetch_add(counted.count_total, Ordering::Relaxed);
        }
        result.expect("the step was run")
    }
    fn logits(&self, row: usize) -> &[f32] {
        self.inner.logits(row)
    }
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }
    fn context_length(&self) -> usize {
        self.inner.context_length()
    }
    fn num_blocks(&self) -> usize {
        self.inner.num_blocks()
    }
    fn batch_tokens_max(&self) -> usize {
        self.inner.batch_tokens_max()
    }
    fn logit_rows_max(&self) -> usize {
        self.inner.logit_rows_max()
    }
}

#[test]
fn a_decode_step_of_a_real_model_allocates_nothing() {
    for path in fixtures() {
        let (decode_allocations, decode_steps) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let speculation = Speculation::Always;
        let setup = Setup { sequences_max: 4, num_blocks: 32, speculation, ..PLAIN };
        let inner = decoder(&path, setup);
        let counted = Counted {
            inner,
            decode_allocations: decode_allocations.clone(),
            decode_steps: decode_steps.clone(),
        };
        let engine = Engine::start(Box::new(counted), limits(setup));
        let ask = |index| {
            let mut request = request(index, engine.model().vocab_size);
            request.max_tokens = Some(60);
            request.speculation = setup.speculation;
            engine.submit(request).expect("room")
        };
        let streams: Vec<EventStream> = (0..3).map(ask).collect();
        assert!(streams.into_iter().all(|stream| stream.count() == 61));
        assert!(decode_steps.load(Ordering::Relaxed) > 20);
        let allocations = decode_allocations.load(Ordering::Relaxed);
        assert_eq!(allocations, 0, "{}", path.display());
    }
}

/// One-token requests, so that each needs few experts; whether each ended well, or the message.
fn outcomes(path: &Path, setup: Setup, together: bool) -> Vec<Result<(), String>> {
    let engine = start(path, setup);
    let submit = |index: u32| {
        let mut request = Request::new(vec![7 * index + 3]);
        request.max_tokens = Some(1);
        engine.submit(request).expect("room")
    };
    let read = |stream: EventStream| match stream.last() {
        Some(Event::Finished(Summary { reason: FinishReason::ModelError(message), .. })) => {
            Err(message)
        }
        Some(Event::Finished(_)) => Ok(()),
        other => panic!("a stream ends with `Finished`, not {other:?}"),
    };
    if together {
        let streams: Vec<_> = (0..8).map(submit).collect();
        streams.into_iter().map(read).collect()
    } else {
        (0..8).map(|index| read(submit(index))).collect()
    }
}

#[test]
fn a_damaged_expert_ends_only_the_requests_that_need_it() {
    const TENSOR: &str = "blk.1.ffn_down_exps.weight";
    let path = fixtures().into_iter().find(|path| path.ends_with("mixtral/model.gguf"));
    let path = path.expect("the fixture is where it should be");
    let mut bytes = std::fs::read(&path).expect("the fixture is readable");
    let files = moeba_model::files::open(&path).expect("the fixture is sound");
    let tensor = files.tensors.get(TENSOR).expect("the fixture has experts");
    let first = tensor.bytes.offset();
    bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    let damaged = std::env::temp_dir().join(format!("moeba-damaged-{}.gguf", std::process::id()));
    std::fs::write(&damaged, bytes).expect("room for a small file");
    let alone = outcomes(&damaged, PLAIN, false);
    let wide = Setup { sequences_max: 8, num_blocks: 32, threads: 2, ..PLAIN };
    let together = outcomes(&damaged, wide, true);
    std::fs::remove_file(&damaged).expect("the file is ours");
    assert_eq!(alone, together);
    let failed: Vec<&String> = alone.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!((1..8).contains(&failed.len()), "some need expert 0 and some do not: {alone:?}");
    for message in failed {
        assert!(message.contains("expert `0` of layer `1`"), "{message}");
        assert!(message.contains(TENSOR), "{message}");
    }
}
