//! Parameter counts of published models, from their configurations alone.

use moeba_kernels::activations::{ActKinds, Precision};
use moeba_kernels::attention::KvDType;
use moeba_kernels::dtype::ActKind;
use moeba_model::inspect::{Inspection, inspect};
use moeba_model::kv::KvCache;
use moeba_model::memory_plan::{Demand, MemoryPlan};
use moeba_model::spec::{Llama3, Mixer, QueryScale, RopeScaling};
use moeba_model::{LoadOptions, SoftmaxScale};

use crate::files::scratch::Scratch;

fn inspected(config: &str) -> Inspection {
    let scratch = Scratch::new();
    scratch.write("config.json", config.as_bytes());
    inspect(scratch.path(), &LoadOptions::default()).unwrap()
}

fn refused(config: &str) -> String {
    let scratch = Scratch::new();
    scratch.write("config.json", config.as_bytes());
    let inspected = inspect(scratch.path(), &LoadOptions::default());
    inspected.map(|_| ()).unwrap_err().to_string()
}

/// Checks total and active parameters in billions. Publishers round up or down as they like.
#[track_caller]
fn check(config: &str, total: f64, active: f64) {
    let counted = inspected(config).parameters;
    for (count, published) in [(counted.total, total), (counted.active, active)] {
        let billions = count as f64 / 1e9;
        assert!((billions - published).abs() < 0.06, "{billions} is not {published}");
    }
}

#[test]
fn mixtral_8x7b() {
    check(MIXTRAL_8X7B, 46.7, 12.9);
    assert_eq!(inspected(MIXTRAL_8X7B).parameters.total, 46_702_792_704);
}

#[test]
fn mistral_small_4_from_either_nesting() {
    check(MISTRAL_SMALL_4, 119.0, 6.6);
    assert_eq!(inspected(MISTRAL_SMALL_4).parameters.total, 118_972_826_624);
    let text_alone = MISTRAL_SMALL_4
        .replace("\"Mistral3ForConditionalGeneration\"", "\"Mistral4ForCausalLM\"")
        .replace("\"text_config\": {", "\"hidden_act\": \"silu\", ")
        .replace("\"model_type\": \"mistral4\",", "")
        .replace("}, \"model_type\"", ", \"model_type\"");
    assert_eq!(inspected(&text_alone).spec, inspected(MISTRAL_SMALL_4).spec);
}

#[test]
fn qwen3_30b_a3b() {
    check(QWEN3_30B_A3B, 30.5, 3.3);
    assert_eq!(inspected(QWEN3_30B_A3B).parameters.total, 30_532_122_624);
}

/// Checks counts against what publishers write on the model's name, in whole billions, and the
/// total exactly. They do not count the token's embedding as active, and predictors of further
/// tokens as they like, hence a tolerance of 3 %, and of 1.
#[track_caller]
fn check_rounded(config: &str, [total, active]: [f64; 2], exactly: u64) {
    let Inspection { spec, parameters, .. } = inspected(config);
    assert_eq!(parameters.total, exactly);
    let working = parameters.active - (spec.vocab_size * spec.hidden_size) as u64;
    for (count, published) in [(parameters.total, total), (working, active)] {
        let billions = count as f64 / 1e9;
        let near = (billions - published).abs() < 0.03 * published + 1.0;
        assert!(near, "{billions} is not {published}");
    }
}

#[test]
fn deepseek_v3_and_kimi_k2() {
    check_rounded(DEEPSEEK_V3, [671.0, 37.0], 671_026_419_200);
    check_rounded(KIMI_K2, [1000.0, 32.0], 1_026_408_232_448);
}

#[test]
fn deepseek_v2_and_its_lite_version() {
    check_rounded(DEEPSEEK_V2, [236.0, 21.0], 235_741_434_880);
    check_rounded(DEEPSEEK_V2_LITE, [15.7, 2.4], 15_706_484_224);
}

#[test]
fn glm_minimax_ernie_and_hunyuan() {
    // The first counts its predictor of a second token along.
    check_rounded(GLM_4_5, [355.0, 32.0], 352_797_829_024);
    check_rounded(&glm_4_5_air(), [106.0, 12.0], 106_852_251_264);
    check_rounded(MINIMAX_M2, [230.0, 10.0], 228_689_764_864);
    check_rounded(ERNIE_300B, [300.0, 47.0], 299_484_163_264);
    check_rounded(&ernie_21b(), [21.0, 3.0], 21_825_437_888);
    check_rounded(&hunyuan_a13b(), [80.0, 13.0], 80_393_183_232);
}

#[test]
fn parts_of_heads_are_rotated_and_bases_stretched() {
    let gqa = |config: &str| {
        let Mixer::Gqa(gqa) = &inspected(config).spec.layers[0].mixer else { panic!("heads") };
        gqa.clone()
    };
    let dim = |config: &str| gqa(config).rope.map(|rope| rope.dim);
    assert_eq!((dim(GLM_4_5), dim(MINIMAX_M2)), (Some(64), Some(64)));
    let rope = gqa(&hunyuan_a13b()).rope.unwrap();
    assert!((rope.base - 11_158_839.925).abs() < 0.1, "{}", rope.base);
    assert_eq!(rope.scaling, RopeScaling::None);
}

#[test]
fn lists_of_the_wrong_length_and_other_impossible_values_are_refused_by_name() {
    let hunyuan = hunyuan_a13b();
    let minimax =
        MINIMAX_M2.replace("\"hidden_act\"", "\"attn_type_list\": [1, 1], \"hidden_act\"");
    let two = "\"attn_type_list\": [1, 1], \"num_hidden_layers\": 2";
    let of_two = MINIMAX_M2.replace("\"num_hidden_layers\": 62", two);
    let linear = of_two.replace("[1, 1]", "[1, 0]");
    assert_eq!(inspected(&of_two).spec.layers.len(), 2);
    let changed = |config: &str, from: &str, to: &str| {
        assert!(config.contains(from), "{from}");
        config.replace(from, to)
    };
    for (config, blamed) in [
        (minimax, "attn_type_list"),
        (linear, "attn_type_list"),
        (changed(MINIMAX_M2, "\"rotary_dim\": 64", "\"rotary_dim\": 129"), "rotary_dim"),
        (changed(MINIMAX_M2, "\"rotary_dim\": 64", "\"rotary_dim\": 63"), "rotary_dim"),
        (changed(GLM_4_5, "factor\": 0.5", "factor\": 1.5"), "partial_rotary_factor"),
        (changed(GLM_4_5, "factor\": 0.5", "factor\": 0.001"), "head_dim"),
        (changed(ERNIE_300B, "_start_index\": 3", "_start_index\": 55"), "moe_layer_start_index"),
        (changed(ERNIE_300B, "_end_index\": 53", "_end_index\": 54"), "moe_layer_end_index"),
        (changed(ERNIE_300B, "_interval\": 1", "_interval\": 0"), "moe_layer_interval"),
        (changed(ERNIE_300B, "\"moe_k\": 8", "\"moe_k\": 65"), "moe_k"),
        (changed(ERNIE_300B, "\"use_bias\": false", "\"use_bias\": true"), "use_bias"),
        (changed(&hunyuan, "\"moe_topk\": [8, ", "\"moe_topk\": ["), "moe_topk"),
        (changed(&hunyuan, "\"moe_topk\": [8, ", "\"moe_topk\": [65, "), "moe_topk"),
        (changed(&hunyuan, "\"alpha\": 1000.0", "\"alpha\": 0.5"), "rope_scaling.alpha"),
        (changed(&hunyuan, "\"alpha\": 1000.0,", ""), "rope_scaling.type"),
    ] {
        let error = refused(&config);
        assert!(error.contains(blamed), "{blamed}: {error}");
    }
}

/// 192^-0.5, and the square of 0.1·weight·ln(factor) + 1.
#[test]
fn yarn_has_a_say_in_the_scale_of_deepseeks_scores() {
    let scales = [(DEEPSEEK_V3, 1.0, 40.0), (DEEPSEEK_V2, 0.707, 40.0), (KIMI_K2, 1.0, 32.0)];
    for (config, weight, factor) in scales {
        let spec = inspected(config).spec;
        let Mixer::Mla(mla) = &spec.layers[0].mixer else { panic!("latent attention") };
        let magnitude = 0.1 * weight * f64::ln(factor) + 1.0;
        let wanted = 192_f64.powf(-0.5) * magnitude * magnitude;
        assert!((f64::from(mla.scale) - wanted).abs() < 1e-6, "{}", mla.scale);
        assert_eq!(mla.rope.amplitude(), 1.0);
    }
}

#[test]
fn impossible_groups_and_dense_layers_are_refused_by_name() {
    for (from, to, blamed) in [
        (r#""n_group": 8"#, r#""n_group": 7"#, "n_group"),
        (r#""n_group": 8"#, r#""n_group": 512"#, "n_group"),
        (r#""topk_group": 4"#, r#""topk_group": 9"#, "topk_group"),
        (r#""topk_group": 4"#, r#""topk_group": 0"#, "topk_group"),
        (r#""n_group": 8"#, r#""n_group": 256"#, "topk_group"),
        (
            r#""first_k_dense_replace": 3"#,
            r#""first_k_dense_replace": 62"#,
            "first_k_dense_replace",
        ),
        (r#""moe_layer_freq": 1"#, r#""moe_layer_freq": 2"#, "moe_layer_freq"),
        (r#""num_experts_per_tok": 8"#, r#""num_experts_per_tok": 257"#, "num_experts_per_tok"),
        (r#""kv_lora_rank": 512"#, r#""kv_lora_rank": 0"#, "kv_lora_rank"),
        (r#""qk_rope_head_dim": 64"#, r#""qk_rope_head_dim": 63"#, "qk_rope_head_dim"),
    ] {
        assert!(DEEPSEEK_V3.contains(from), "{from}");
        let error = refused(&DEEPSEEK_V3.replace(from, to));
        assert!(error.contains(blamed), "{to}: {error}");
    }
    let error = refused(&DEEPSEEK_V2.replace("group_limited_greedy", "noaux_tc"));
    assert!(error.contains("topk_method"), "{error}");
}

#[test]
fn olmoe_1b_7b() {
    check(OLMOE_1B_7B, 6.9, 1.3);
    assert_eq!(inspected(OLMOE_1B_7B).parameters.total, 6_919_161_856);
}

#[test]
fn qwen1_5_moe_a2_7b() {
    check(QWEN1_5_MOE_A2_7B, 14.3, 2.7);
    assert_eq!(inspected(QWEN1_5_MOE_A2_7B).parameters.total, 14_315_784_192);
}

#[test]
fn granite_3_0_3b_a800m() {
    check(GRANITE_3_0_3B_A800M, 3.3, 0.9);
    let spec = inspected(GRANITE_3_0_3B_A800M).spec;
    let Mixer::Gqa(gqa) = &spec.layers[0].mixer else { panic!("grouped heads") };
    assert_eq!((spec.embedding_scale, gqa.scale), (12.0, 0.015_625));
    assert_eq!((spec.layers[0].residual_scale, spec.logit_scale), (0.22, 1.0 / 6.0));
}

#[test]
fn ministral_3_in_three_sizes() {
    let larger = |hidden, intermediate, layers| {
        MINISTRAL_3_3B
            .replace("3072", hidden)
            .replace("9216", intermediate)
            .replace("\"num_hidden_layers\": 26", &format!("\"num_hidden_layers\": {layers}"))
            .replace("true", "false")
    };
    check(MINISTRAL_3_3B, 3.4, 3.4);
    check(&larger("4096", "14336", "34"), 8.5, 8.5);
    check(&larger("5120", "16384", "40"), 13.5, 13.5);
    let spec = inspected(MINISTRAL_3_3B).spec;
    let Mixer::Gqa(gqa) = &spec.layers[25].mixer else { panic!("grouped heads") };
    let wanted = QueryScale::LogSteps { beta: 0.1, original: 16384, offset: 0 };
    assert_eq!((gqa.query_scale, gqa.rope.as_ref().unwrap().amplitude()), (wanted, 1.0));
}

#[test]
fn dense_models_are_all_active() {
    check(SMOLLM2_135M, 0.1, 0.1);
    let counted = inspected(SMOLLM2_135M).parameters;
    assert_eq!((counted.total, counted.active), (134_515_008, 134_515_008));
    assert_eq!(inspected(GEMMA3_270M).parameters.total, 268_098_176);
}

#[test]
fn gemma3_4b_says_only_what_differs_from_the_defaults() {
    let found = inspected(GEMMA3_4B);
    assert_eq!(found.parameters.total, 3_880_263_168);
    assert_eq!((found.spec.vocab_size, found.spec.context_length), (262_208, 131_072));
    let both_ways = GEMMA3_4B
        .replace("\"model_type\"", "\"use_bidirectional_attention\": true, \"model_type\"");
    let error = refused(&both_ways);
    assert!(error.contains("use_bidirectional_attention"), "{error}");
}

#[test]
fn what_understands_images_is_known_by_its_text_model() {
    let dense = inspected(MISTRAL_SMALL_3);
    assert_eq!((dense.spec.family, dense.parameters.total), ("mistral", 23_572_403_200));
    assert_eq!(inspected(MISTRAL_SMALL_4).spec.family, "mistral4");
    assert_eq!(inspected(MINISTRAL_3_3B).spec.family, "ministral3");
    let other = MISTRAL_SMALL_3.replace("\"mistral\"", "\"mistral9\"");
    let error = refused(&other);
    assert!(error.contains("text_config.model_type") && error.contains("mistral9"), "{error}");
}

#[test]
fn the_softmax_scale_is_plain_unless_asked_otherwise() {
    let scratch = Scratch::new();
    scratch.write("config.json", MISTRAL_SMALL_4.as_bytes());
    for (softmax_scale, wanted) in
        [(SoftmaxScale::Plain, 0.088_388_35), (SoftmaxScale::Yarn, 0.194_969_5)]
    {
        let options = LoadOptions { softmax_scale, ..LoadOptions::default() };
        let spec = inspect(scratch.path(), &options).unwrap().spec;
        let Mixer::Mla(mla) = &spec.layers[35].mixer else { panic!("latent attention") };
        assert!((mla.scale - wanted).abs() < 1e-6, "{}", mla.scale);
        assert_eq!(mla.rope.amplitude(), 1.0);
    }
}

#[test]
fn llama_3_scales_its_rope_in_either_generation_of_configurations() {
    let scaling = r#""factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3""#;
    let old = format!("\"rope_scaling\": {{{scaling}}}, \"rope_theta\": 500000.0");
    let new = format!("\"rope_parameters\": {{{scaling}, \"rope_theta\": 500000.0}}");
    let with = |rope: &str| inspected(&SMOLLM2_135M.replace("\"rope_theta\": 100000", rope)).spec;
    assert_eq!(with(&old), with(&new));
    let Mixer::Gqa(gqa) = &with(&old).layers[0].mixer else { panic!("grouped heads") };
    let wanted = RopeScaling::Llama3(Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original: 8192.0,
    });
    assert_eq!(gqa.rope.as_ref().unwrap().scaling, wanted);
}

#[test]
fn latent_attention_caches_320_values_per_token_and_layer() {
    let spec = inspected(MISTRAL_SMALL_4).spec;
    assert_eq!(KvCache::bytes_per_block(&spec, KvDType::BF16), 16 * 36 * 640);
}

#[test]
fn a_refused_plan_says_what_is_needed_what_there_is_and_what_would_fit() {
    let spec = inspected(MISTRAL_SMALL_4).spec;
    let demand = Demand {
        context_tokens: 262_144,
        kv_dtype: KvDType::BF16,
        tokens_max: 512,
        logit_rows_max: 1,
        threads: 8,
        precision: Precision::Sixteen,
        input_kinds: ActKinds::from(ActKind::I8x256),
    };
    let weights = 67 << 30;
    let plan = MemoryPlan::new(&spec, weights, &demand, 128 << 30).unwrap();
    assert_eq!(plan.kv_cache, 262_144 * 23_040);
    assert!(plan.workspace > 100 << 20 && plan.workspace < 1 << 30, "{}", plan.workspace);
    let refused = MemoryPlan::new(&spec, weights, &demand, 72 << 30).unwrap_err();
    assert!(refused.context_tokens_max > 100_000 && refused.context_tokens_max < 262_144);
    let message = refused.to_string();
    for part in ["weights 67.00 GiB", "cache 5.62 GiB", "have 72.00 GiB", "would fit"] {
        assert!(message.contains(part), "`{part}` in: {message}");
    }
    let tight = MemoryPlan::new(&spec, weights, &demand, weights + 1).unwrap_err();
    assert!(tight.to_string().contains("the workspace does not fit"), "{tight}");
    let hopeless = MemoryPlan::new(&spec, weights, &demand, 8 << 30).unwrap_err();
    assert!(hopeless.to_string().contains("weights alone do not fit"), "{hopeless}");
}

const MIXTRAL_8X7B: &str = r#"{"architectures": ["MixtralForCausalLM"], "hidden_act": "silu",
    "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
    "vocab_size": 32000}"#;

pub(crate) const MISTRAL_SMALL_4: &str = r#"{"architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {"first_k_dense_replace": 0, "head_dim": 128, "hidden_size": 4096,
    "intermediate_size": 12288, "kv_lora_rank": 256, "max_position_embeddings": 1048576,
    "model_type": "mistral4",
    "moe_intermediate_size": 2048, "n_group": 1, "n_routed_experts": 128, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 32, "num_experts_per_tok": 4,
    "num_hidden_layers": 36, "num_key_value_heads": 32, "q_lora_rank": 1024,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 128.0,
    "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 8192, "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0, "rope_type": "yarn"}, "routed_scaling_factor": 1.0,
    "tie_word_embeddings": false, "topk_group": 1, "v_head_dim": 128, "vocab_size": 131072
    }, "model_type": "mistral3"}"#;

const MISTRAL_SMALL_3: &str = r#"{"architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {"head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 32768, "max_position_embeddings": 131072, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": null,
    "vocab_size": 131072}, "model_type": "mistral3"}"#;

/// `config.json` of `deepseek-ai/DeepSeek-V3`, `-R1` and `-V3.1`.
const DEEPSEEK_V3: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256,
    "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32,
    "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
    "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 129280}"#;

/// `config.json` of `moonshotai/Kimi-K2-Instruct`.
const KIMI_K2: &str = r#"{"architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 131072,
    "model_type": "kimi_k2", "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 1,
    "n_routed_experts": 384, "n_shared_experts": 1, "norm_topk_prob": true,
    "num_attention_heads": 64, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 64, "num_nextn_predict_layers": 0, "q_lora_rank": 1536,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 50000.0, "routed_scaling_factor": 2.827, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 128,
    "vocab_size": 163840}"#;

/// `config.json` of `deepseek-ai/DeepSeek-V2` and `-V2.5`.
const DEEPSEEK_V2: &str = r#"{"architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 12288, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 1536, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 160,
    "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 128,
    "num_experts_per_tok": 6, "num_hidden_layers": 60, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707,
    "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 16.0, "scoring_func": "softmax",
    "tie_word_embeddings": false, "topk_group": 3, "topk_method": "group_limited_greedy",
    "v_head_dim": 128, "vocab_size": 102400}"#;

/// `config.json` of `deepseek-ai/DeepSeek-V2-Lite`.
const DEEPSEEK_V2_LITE: &str = r#"{"architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": false, "first_k_dense_replace": 1, "hidden_act": "silu",
    "hidden_size": 2048, "intermediate_size": 10944, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": null, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32,
    "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096, "type": "yarn"}, "rope_theta": 10000,
    "routed_scaling_factor": 1.0, "scoring_func": "softmax", "tie_word_embeddings": false,
    "topk_group": 1, "topk_method": "greedy", "v_head_dim": 128, "vocab_size": 102400}"#;

/// `config.json` of `zai-org/GLM-4.5`.
const GLM_4_5: &str = r#"{"architectures": ["Glm4MoeForCausalLM"], "attention_bias": true,
    "first_k_dense_replace": 3, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
    "intermediate_size": 12288, "max_position_embeddings": 131072,
    "moe_intermediate_size": 1536, "n_group": 1, "n_routed_experts": 160, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 96, "num_experts_per_tok": 8,
    "num_hidden_layers": 92, "num_key_value_heads": 8, "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-05, "rope_scaling": null,
    "rope_theta": 1000000, "routed_scaling_factor": 2.5, "tie_word_embeddings": false,
    "topk_group": 1, "use_qk_norm": true, "vocab_size": 151552}"#;

/// `config.json` of `zai-org/GLM-4.5-Air`: what differs from the larger model.
fn glm_4_5_air() -> String {
    let config = GLM_4_5
        .replace("\"first_k_dense_replace\": 3", "\"first_k_dense_replace\": 1")
        .replace("5120", "4096")
        .replace("12288", "10944")
        .replace("1536", "1408")
        .replace("\"num_hidden_layers\": 92", "\"num_hidden_layers\": 46")
        .replace("160", "128");
    config.replace("2.5", "1.0").replace("\"use_qk_norm\": true", "\"use_qk_norm\": false")
}

/// `config.json` of `MiniMaxAI/MiniMax-M2`, its list of 62 kinds of attention left out.
const MINIMAX_M2: &str = r#"{"architectures": ["MiniMaxM2ForCausalLM"], "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 1536,
    "max_position_embeddings": 196608, "mlp_intermediate_size": 8192,
    "mtp_transformer_layers": 1, "num_attention_heads": 48, "num_experts_per_tok": 8,
    "num_hidden_layers": 62, "num_key_value_heads": 8, "num_local_experts": 256,
    "num_mtp_modules": 3, "qk_norm_type": "per_layer", "rms_norm_eps": 1e-06,
    "rope_theta": 5000000, "rotary_dim": 64, "scoring_func": "sigmoid",
    "shared_intermediate_size": 0, "tie_word_embeddings": false, "use_mtp": true,
    "use_qk_norm": true, "use_routing_bias": true, "vocab_size": 200064}"#;

/// `config.json` of `baidu/ERNIE-4.5-300B-A47B-PT`.
const ERNIE_300B: &str = r#"{"architectures": ["Ernie4_5_MoeForCausalLM"], "hidden_act": "silu",
    "hidden_size": 8192, "intermediate_size": 28672, "max_position_embeddings": 131072,
    "moe_intermediate_size": 3584, "moe_k": 8, "moe_layer_end_index": 53,
    "moe_layer_interval": 1, "moe_layer_start_index": 3, "moe_num_experts": 64,
    "moe_num_shared_experts": 0, "num_attention_heads": 64, "num_hidden_layers": 54,
    "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "tie_word_embeddings": false, "use_bias": false, "vocab_size": 103424}"#;

/// `config.json` of `baidu/ERNIE-4.5-21B-A3B-PT`: what differs from the larger model.
fn ernie_21b() -> String {
    let config = ERNIE_300B
        .replace("8192", "2560")
        .replace("28672", "12288")
        .replace("3584", "1536")
        .replace("\"moe_k\": 8", "\"moe_k\": 6")
        .replace("\"moe_layer_end_index\": 53", "\"moe_layer_end_index\": -1")
        .replace("\"moe_layer_start_index\": 3", "\"moe_layer_start_index\": 1")
        .replace("\"moe_num_shared_experts\": 0", "\"moe_num_shared_experts\": 2")
        .replace("\"num_attention_heads\": 64", "\"num_attention_heads\": 20")
        .replace("\"num_hidden_layers\": 54", "\"num_hidden_layers\": 28");
    let config = config.replace("\"num_key_value_heads\": 8", "\"num_key_value_heads\": 4");
    config.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true")
}

/// `config.json` of `tencent/Hunyuan-A13B-Instruct`.
fn hunyuan_a13b() -> String {
    let each = |value: &str| format!("[{}]", vec![value; 32].join(", "));
    let (size, one, eight) = (each("3072"), each("1"), each("8"));
    format!(
        r#"{{"architectures": ["HunYuanMoEV1ForCausalLM"], "attention_bias": false,
        "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 3072,
        "max_position_embeddings": 32768, "moe_intermediate_size": {size},
        "moe_layer_num_skipped": 0, "moe_topk": {eight}, "num_attention_heads": 32,
        "num_experts": 64, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "num_shared_expert": {one}, "rms_norm_eps": 1e-05, "rope_scaling": {{"alpha": 1000.0,
        "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "type": "dynamic"}}, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "use_cla": false, "use_qk_norm": true, "vocab_size": 128167}}"#
    )
}

const QWEN3_30B_A3B: &str = r#"{"architectures": ["Qwen3MoeForCausalLM"], "attention_bias": false,
    "decoder_sparse_step": 1, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
    "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": true,
    "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_scaling": null, "rope_theta": 1000000.0, "sliding_window": null,
    "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936}"#;

const SMOLLM2_135M: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
    "hidden_size": 576, "intermediate_size": 1536, "max_position_embeddings": 8192,
    "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05, "rope_theta": 100000, "tie_word_embeddings": true,
    "vocab_size": 49152}"#;

const GEMMA3_270M: &str = r#"{"architectures": ["Gemma3ForCausalLM"], "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 640, "intermediate_size": 2048,
    "max_position_embeddings": 32768, "num_attention_heads": 4, "num_hidden_layers": 18,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0, "sliding_window": 512,
    "vocab_size": 262144}"#;

const GEMMA3_4B: &str = r#"{"architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024}}"#;

/// `allenai/OLMoE-1B-7B-0924`
const OLMOE_1B_7B: &str = r#"{"architectures": ["OlmoeForCausalLM"], "attention_bias": false,
    "clip_qkv": null, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 1024,
    "max_position_embeddings": 4096, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts": 64, "num_experts_per_tok": 8, "num_hidden_layers": 16,
    "num_key_value_heads": 16, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
    "tie_word_embeddings": false, "vocab_size": 50304}"#;

/// `Qwen/Qwen1.5-MoE-A2.7B`
const QWEN1_5_MOE_A2_7B: &str = r#"{"architectures": ["Qwen2MoeForCausalLM"],
    "decoder_sparse_step": 1, "hidden_act": "silu", "hidden_size": 2048,
    "intermediate_size": 5632, "max_position_embeddings": 8192, "max_window_layers": 21,
    "moe_intermediate_size": 1408, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts": 60, "num_experts_per_tok": 4, "num_hidden_layers": 24,
    "num_key_value_heads": 16, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "shared_expert_intermediate_size": 5632, "sliding_window": 32768,
    "tie_word_embeddings": false, "use_sliding_window": false, "vocab_size": 151936}"#;

/// `ibm-granite/granite-3.0-3b-a800m-base`
const GRANITE_3_0_3B_A800M: &str = r#"{"architectures": ["GraniteMoeForCausalLM"],
    "attention_bias": false, "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
    "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 512, "logits_scaling": 6.0,
    "max_position_embeddings": 4096, "num_attention_heads": 24, "num_experts_per_tok": 8,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 40,
    "residual_multiplier": 0.22, "rms_norm_eps": 1e-06, "rope_scaling": null,
    "rope_theta": 10000.0, "tie_word_embeddings": true, "vocab_size": 49155}"#;

/// The text model of `mistralai/Ministral-3-3B-Instruct-2512`; the larger sizes differ in widths,
/// layers and a head of their own.
const MINISTRAL_3_3B: &str = r#"{"architectures": ["Mistral3ForConditionalGeneration"],
    "text_config": {"head_dim": 128, "hidden_act": "silu", "hidden_size": 3072,
    "intermediate_size": 9216, "max_position_embeddings": 262144, "model_type": "ministral3",
    "num_attention_heads": 32, "num_hidden_layers": 26, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_parameters": {"beta_fast": 32.0, "beta_slow": 1.0,
    "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16384, "rope_theta": 1000000.0, "rope_type": "yarn",
    "type": "yarn"}, "sliding_window": null, "tie_word_embeddings": true,
    "vocab_size": 131072}, "model_type": "mistral3"}"#;
