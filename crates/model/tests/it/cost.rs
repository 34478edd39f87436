//! What is counted before a step is what the step reads, and two operations per active parameter.

use moeba_kernels::attention::{KvDType, Mask};
use moeba_model::cost::{Cost, StepShape};
use moeba_model::families::FAMILIES;
use moeba_model::inspect::inspect;
use moeba_model::kv::KvCache;
use moeba_model::spec::Mixer;
use moeba_model::{LoadOptions, Model};

use crate::families::fixture;
use crate::oracle::Runner;

const F32: KvDType = KvDType::F32;

fn cost_of(family: &str) -> (Model, Cost) {
    let model = Model::load(&fixture(family), &LoadOptions::default()).unwrap();
    let cost = Cost::of_model(&model);
    (model, cost)
}

/// A prompt that a single sequence reads in one step.
fn prompt(tokens: usize) -> StepShape {
    StepShape { sequences: 1, positions: 0..tokens, logit_rows: 1, kv_dtype: F32 }
}

#[test]
fn one_token_reads_the_experts_that_are_counted() {
    for family in ["mixtral", "mistral4", "qwen2_moe", "gpt_oss", "llama4"] {
        let mut runner = Runner::load(&fixture(family), 8).unwrap();
        runner.score(&[17], 0).unwrap();
        let work = Cost::of_model(&runner.model).token(0, F32);
        assert_eq!(runner.workspace.expert_bytes(), work.expert_bytes, "{family}");
        assert_eq!(runner.model.bytes_per_token(), work.weight_bytes(), "{family}");
        assert_eq!(work.weight_bytes() + work.cache_bytes, work.bytes());
    }
}

/// Norms and biases are parameters, and no matrices.
#[test]
fn a_token_takes_two_operations_for_each_active_parameter_but_norms_and_biases() {
    for family in FAMILIES {
        let (model, cost) = cost_of(family.name);
        let operations = cost.token(0, F32).operations;
        let found = inspect(&fixture(family.name), &LoadOptions::default()).unwrap();
        let imagined = Cost::imagined(&found.spec, 4.5).token(0, F32).operations;
        let (done, all) = (operations.integer + operations.float, imagined.integer);
        assert!(done <= all && done > all * 9 / 10, "{}: {done} of {all}", family.name);
        assert_eq!(imagined.attention, operations.attention, "{}", family.name);
        assert_eq!(imagined.float, 0, "{}", family.name);
        let sixteen = Cost::imagined(model.spec(), 16.0).token(0, F32).operations;
        assert_eq!((sixteen.integer, sixteen.float), (0, imagined.integer));
    }
}

#[test]
fn a_prompt_does_what_its_tokens_do_but_reads_weights_once() {
    for family in ["mixtral", "mistral4", "gemma3", "llama4"] {
        let (model, cost) = cost_of(family);
        let whole = cost.step(&prompt(40));
        let each = (0..40).map(|position| cost.token(position, F32).operations);
        let attention = each.clone().map(|operations| operations.attention).sum::<u64>();
        assert_eq!(whole.operations.attention, attention, "{family}");
        let head = 39 * 2 * (model.spec().vocab_size * model.spec().hidden_size) as u64;
        let rest = whole.operations.integer + whole.operations.float + head;
        assert_eq!(rest, each.map(|o| o.integer + o.float).sum::<u64>(), "{family}");
        assert!(whole.expert_bytes <= model.expert_bytes(), "{family}");
        assert!(whole.weight_bytes() <= model.num_bytes() + model.bytes_per_token(), "{family}");
    }
}

#[test]
fn sequences_share_weights_and_nothing_else() {
    let (model, cost) = cost_of("mixtral");
    let one = cost.token(30, F32);
    let four =
        cost.step(&StepShape { sequences: 4, positions: 30..31, logit_rows: 4, kv_dtype: F32 });
    assert_eq!(four.operations.total(), 4 * one.operations.total());
    assert_eq!(four.cache_bytes, 4 * one.cache_bytes);
    assert!(four.dense_bytes < 2 * one.dense_bytes);
    assert!((one.expert_bytes + 1..=model.expert_bytes()).contains(&four.expert_bytes));
    assert_eq!(cost.step(&StepShape { sequences: 0, ..prompt(8) }).bytes(), 0);
}

#[test]
fn windows_bound_what_attention_costs() {
    let (model, cost) = cost_of("gemma3");
    let block = KvCache::bytes_per_block(model.spec(), F32);
    assert_eq!(cost.token(0, F32).cache_bytes, block / 16);
    let (mut seen, mut operations) = (0, 0);
    for layer in &model.spec().layers {
        let Mixer::Gqa(gqa) = &layer.mixer else { panic!("gemma3 has grouped queries") };
        let visible = if let Mask::Sliding(window) = gqa.mask { window } else { 1000 };
        seen += visible as u64;
        operations += (4 * gqa.num_attention_heads * gqa.head_dim * visible) as u64;
    }
    let work = cost.token(999, F32);
    assert_eq!(work.operations.attention, operations);
    assert_eq!(work.cache_bytes, block / 16 * seen / model.spec().layers.len() as u64);
    assert!(seen < 1000 * model.spec().layers.len() as u64, "the fixture has a window");
}
