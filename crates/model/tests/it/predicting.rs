//! Predictions are arithmetic: given limits, they can be checked without a machine.

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;
use moeba_kernels::isa::Isa;
use moeba_model::LoadOptions;
use moeba_model::cost::Cost;
use moeba_model::inspect::inspect;
use moeba_model::memory_plan::MemoryPlan;
use moeba_model::prediction::{Conditions, Limits, Span, decode, prefill, streaming};

use crate::families::fixture;

const LIMITS: Limits = Limits {
    isa: Isa::Avx512,
    read_bytes_per_s: 20e9,
    integer_ops_per_s: 1e12,
    float_ops_per_s: 3e11,
};

const CONDITIONS: Conditions =
    Conditions { kv_dtype: KvDType::F16, precision: Precision::Sixteen, step_tokens_max: 512 };

/// Costs of the shapes of some families, as large models have them: at some bits a weight.
fn costs() -> Vec<Cost> {
    let cost = |family: &str| {
        let spec = inspect(&fixture(family), &LoadOptions::default()).unwrap().spec;
        Cost::imagined(&spec, 4.5)
    };
    ["mixtral", "mistral4", "gemma3", "gpt_oss", "llama"].map(cost).to_vec()
}

#[track_caller]
fn assert_faster(fast: Span, slow: Span) {
    assert!(fast.low > slow.low && fast.high > slow.high, "{fast:?} over {slow:?}");
}

#[test]
fn a_prediction_is_a_range_on_every_instruction_set() {
    for isa in Isa::ALL {
        let limits = Limits { isa, ..LIMITS };
        for cost in costs() {
            for span in
                [decode(&cost, 9, &CONDITIONS, &limits), prefill(&cost, 9, &CONDITIONS, &limits)]
            {
                assert!(0.0 < span.low && span.low < span.high && span.high.is_finite());
                assert!(span.contains(span.low.midpoint(span.high)) && !span.contains(0.0));
            }
        }
    }
}

#[test]
fn more_bandwidth_and_arithmetic_make_it_faster() {
    let wider = Limits { read_bytes_per_s: 40e9, ..LIMITS };
    let stronger = Limits { integer_ops_per_s: 2e12, float_ops_per_s: 6e11, ..LIMITS };
    for cost in costs() {
        let decode = |limits| decode(&cost, 100, &CONDITIONS, limits);
        assert_faster(decode(&wider), decode(&LIMITS));
        assert_faster(decode(&stronger), decode(&LIMITS));
        let prefill = |limits| prefill(&cost, 1000, &CONDITIONS, limits);
        assert_faster(prefill(&wider), prefill(&LIMITS));
        assert_faster(prefill(&stronger), prefill(&LIMITS));
    }
}

#[test]
fn context_and_precision_have_their_price() {
    let cost = &costs()[0];
    let decode = |position, conditions| decode(cost, position, conditions, &LIMITS);
    assert_faster(decode(0, &CONDITIONS), decode(50_000, &CONDITIONS));
    let small = Conditions { kv_dtype: KvDType::Q8, ..CONDITIONS };
    assert_faster(decode(50_000, &small), decode(50_000, &CONDITIONS));
    let prefill = |tokens, conditions| prefill(cost, tokens, conditions, &LIMITS);
    let coarse = Conditions { precision: Precision::Eight, ..CONDITIONS };
    assert_faster(prefill(512, &coarse), prefill(512, &CONDITIONS));
    assert_faster(prefill(512, &CONDITIONS), prefill(50_000, &CONDITIONS));
    let chopped = Conditions { step_tokens_max: 16, ..CONDITIONS };
    assert_faster(prefill(512, &CONDITIONS), prefill(512, &chopped));
}

#[test]
fn tiles_are_foretold_where_they_are_used() {
    let cost = &costs()[0];
    let amx = Limits { isa: Isa::Amx, ..LIMITS };
    let mixed = Conditions { precision: Precision::Mixed, ..CONDITIONS };
    assert_faster(prefill(cost, 512, &mixed, &amx), prefill(cost, 512, &CONDITIONS, &amx));
    for limits in [amx, LIMITS] {
        let integers = prefill(cost, 512, &CONDITIONS, &LIMITS);
        assert_eq!(prefill(cost, 512, &CONDITIONS, &limits), integers);
    }
    assert_eq!(decode(cost, 9, &mixed, &amx), decode(cost, 9, &CONDITIONS, &LIMITS));
}

#[test]
fn what_does_not_fit_is_missed_evenly() {
    let cost = &costs()[0];
    let called = cost.token(0, KvDType::F16).expert_bytes as f64;
    let plan =
        MemoryPlan { weights: 1000, kv_cache: 50, num_blocks: 1, workspace: 50, tokens_max: 1 };
    let of = |have| streaming(&plan, cost, 800, have);
    assert!(of(299).is_none(), "what is no expert does not fit");
    let none = of(300).unwrap();
    assert_eq!((none.resident_share, none.miss_bytes_per_token), (0.0, called));
    let half = of(700).unwrap();
    assert_eq!((half.resident_share, half.miss_bytes_per_token), (0.5, called / 2.0));
    assert_eq!(half.tokens_per_s_max(called), Some(2.0));
    assert_eq!(of(1100).unwrap().tokens_per_s_max(called), None, "nothing is missed");
}
