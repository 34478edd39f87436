//! Models that nobody has: counted as those that are there.

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;
use moeba_kernels::dtype::DType;
use moeba_model::convert::Target;
use moeba_model::cost::Cost;
use moeba_model::families::FAMILIES;
use moeba_model::files::{self, ModelFiles, StoredType, TensorHeader};
use moeba_model::inspect::{Inspection, imagine, inspect};
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::{LoadOptions, Model};

use crate::families::fixture;

fn target(name: &str) -> &'static Target {
    Target::from_name(name).unwrap()
}

fn imagined(config: &str, target: &Target) -> Result<Inspection, String> {
    let files = ModelFiles::of_config("config.json".as_ref(), config).unwrap();
    imagine(&files, &LoadOptions::default(), target).map_err(|error| error.to_string())
}

/// What loading plans with is what is foreseen from `config.json` alone. Nearly all GGUF files of
/// the fixtures are F32; beside what is foreseen they hold what ropes are scaled by, and predictors
/// of further tokens.
#[test]
fn a_configuration_foretells_the_plan_that_loading_makes() {
    let mut families = 0;
    for family in FAMILIES {
        let dir = fixture(family.name);
        let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let foreseen = imagined(&config, target("F32")).unwrap();
        let foreseen_weights = foreseen.weights.unwrap();
        let files = files::open(&dir.join("model.gguf")).unwrap();
        let is_f32 = |header: &TensorHeader| header.stored == StoredType::Known(DType::F32);
        if !files.tensors.headers().iter().all(is_f32) {
            continue;
        }
        families += 1;
        let model = Model::from_files(&files, &LoadOptions::default()).unwrap();
        let plan = |spec, weights, input_kinds| {
            let demand = Demand {
                context_tokens: 100,
                kv_dtype: KvDType::F16,
                tokens_max: 64,
                logit_rows_max: 1,
                threads: 2,
                precision: Precision::Sixteen,
                input_kinds,
            };
            MemoryPlan::new(spec, weights, &demand, u64::MAX).unwrap()
        };
        let beside =
            |name: &String| name.starts_with("rope_") || model.unused_tensors().contains(name);
        let beside = files.tensors.headers().iter().filter(|header| beside(&header.name));
        let weights = files.tensors.total_bytes() - beside.map(|h| h.bytes).sum::<u64>();
        assert_eq!(
            plan(&foreseen.spec, foreseen_weights.bytes_total, foreseen_weights.input_kinds),
            plan(model.spec(), weights, model.input_kinds()),
            "{}",
            family.name
        );
        assert_eq!(foreseen_weights.bytes_experts, model.expert_bytes(), "{}", family.name);
        let work = |cost: &Cost| cost.token(50, KvDType::F16);
        let found = work(&Cost::of_model(&model));
        assert_eq!(work(&foreseen_weights.cost), found, "{}", family.name);
    }
    assert!(families > 15, "{families}");
}

#[test]
fn other_types_take_other_bytes_and_weights_that_are_there_do_not_matter() {
    for name in ["mixtral", "mistral4", "gpt_oss"] {
        let bytes = |path, target| {
            let files = files::open(path).unwrap();
            let found = imagine(&files, &LoadOptions::default(), target).unwrap();
            found.weights.unwrap().bytes_total
        };
        let (dir, gguf) = (fixture(name), fixture(name).join("model.gguf"));
        let all: Vec<u64> = Target::all().map(|target| bytes(&gguf, target)).collect();
        assert_eq!(all.last(), Some(&bytes(&dir, target("F32"))));
        assert!(bytes(&dir, target("Q8_0")) < bytes(&dir, target("BF16")), "{name}");
        assert!(all.iter().all(|bytes| *bytes <= all[all.len() - 1]), "{name}: {all:?}");
    }
}

/// The published model has 119 billion weights; those of its experts are 116 of them.
#[test]
fn a_large_model_is_imagined_without_its_memory() {
    let config = crate::published::MISTRAL_SMALL_4;
    let found = imagined(config, target("Q4_K_M")).unwrap();
    let weights = found.weights.unwrap();
    assert_eq!(found.parameters.total, 118_972_826_624);
    assert!((68e9..76e9).contains(&(weights.bytes_total as f64)), "{}", weights.bytes_total);
    assert_eq!(weights.bytes_per_token, weights.cost.token(0, KvDType::F16).weight_bytes());
    assert!(weights.bytes_per_token < weights.bytes_total / 10);
    assert!(inspect(&fixture("mistral4"), &LoadOptions::default()).is_ok());
}

#[test]
fn configurations_beyond_belief_are_refused() {
    let config = crate::published::MISTRAL_SMALL_4;
    for (from, to) in [
        ("\"n_routed_experts\": 128", "\"n_routed_experts\": 100000"),
        ("\"hidden_size\": 4096", "\"hidden_size\": 16777216"),
        ("\"vocab_size\": 131072", "\"vocab_size\": 4294967295"),
    ] {
        let changed = config.replace(from, to);
        assert_ne!(changed, config);
        match imagined(&changed, target("F32")) {
            Ok(found) => assert!(found.weights.unwrap().bytes_total > 1 << 40, "{to}"),
            Err(error) => assert!(error.contains("expected"), "{to}: {error}"),
        }
    }
    assert!(ModelFiles::of_config("x.json".as_ref(), "[1]").is_err());
}
