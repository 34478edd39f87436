"""The shapes: one committed per family, small enough for the repository, and random ones to sweep.

Sizes are meant to be awkward: hidden sizes and ranks that are no multiple of 32, three heads, a
head size other than hidden / heads, one layer, one expert.
"""
import random

from checkpoint import Case

IDS = dict(max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMALL = dict(vocab_size=128, hidden_size=32, num_hidden_layers=2, **IDS)
GQA = dict(num_attention_heads=4, num_key_value_heads=2)


def yarn(rope: int, nope: int, factor: float, original: int, beta: float = 0.1) -> dict:
    """Small 4's rope. `mscale_all_dim` 0 and `attention_factor` 1 switch off the disputed softmax
    factor; a short original context lets YaRN and the query scale act within a few tokens."""
    return dict(rope_type="yarn", type="yarn", rope_theta=10000.0, factor=factor,
                original_max_position_embeddings=original, max_position_embeddings=4096,
                beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=0.0,
                attention_factor=1.0, llama_4_scaling_beta=beta,
                partial_rotary_factor=rope / (nope + rope))


def plain(theta: float) -> dict:
    return dict(rope_type="default", rope_theta=theta)


def gemma_rope(factor: float) -> dict:
    full = plain(1e6) if factor == 1.0 else dict(rope_type="linear", rope_theta=1e6, factor=factor)
    return dict(full_attention=full, sliding_attention=plain(10000.0))


CLASSES = {
    "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe", "mistral4": "Mistral4", "gemma3": "Gemma3",
}


def case(family: str, config: dict, **options) -> Case:
    stem = CLASSES[family]
    config_class = f"{stem}TextConfig" if family == "gemma3" else f"{stem}Config"
    return Case(family, config_class, f"{stem}ForCausalLM", config, **options)


# The seeds are those that leave the clearest margins, in greedy steps and in routing.
COMMITTED = {
    "llama": case("llama", SMALL | GQA | dict(
        intermediate_size=48, rope_parameters=plain(10000.0)), seed=1),
    "mistral": case("mistral", SMALL | dict(
        num_attention_heads=4, num_key_value_heads=1, head_dim=12, intermediate_size=48,
        sliding_window=None, rope_parameters=plain(1e6)), dtype="bfloat16", seed=9),
    "mixtral": case("mixtral", SMALL | GQA | dict(
        intermediate_size=24, num_local_experts=4, num_experts_per_tok=2, sliding_window=None,
        rope_parameters=plain(1e6)), seed=4),
    "qwen3": case("qwen3", SMALL | GQA | dict(
        head_dim=16, intermediate_size=48, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters=plain(1e6)), dtype="bfloat16", seed=14),
    "qwen3_moe": case("qwen3_moe", SMALL | GQA | dict(
        head_dim=12, intermediate_size=48, moe_intermediate_size=12, num_experts=8,
        num_experts_per_tok=3, norm_topk_prob=True, decoder_sparse_step=1, rms_norm_eps=1e-6,
        rope_parameters=plain(1e6)), seed=24),
    "mistral4": case("mistral4", SMALL | dict(
        num_attention_heads=3, num_key_value_heads=3, intermediate_size=48,
        moe_intermediate_size=12, n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
        q_lora_rank=24, kv_lora_rank=20, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=12,
        first_k_dense_replace=0, routed_scaling_factor=1.0, tie_word_embeddings=False,
        rope_parameters=yarn(8, 8, 16.0, 16)), dtype="bfloat16",
        quirks={"gguf_fused"}, seed=5),
    "gemma3": case("gemma3", SMALL | dict(
        hidden_size=24, num_hidden_layers=6, num_attention_heads=2, num_key_value_heads=1,
        head_dim=12, query_pre_attn_scalar=12, intermediate_size=40, sliding_window=16,
        bos_token_id=2, eos_token_id=1, rope_parameters=gemma_rope(1.0)), seed=9),
}


def random_case(family: str, r: random.Random, seed: int) -> Case:
    """A random shape of a family, in a random one of the spellings its repositories use."""
    heads_kv = r.choice([1, 1, 2, 3])
    heads = heads_kv * r.choice([1, 2, 3, 5])
    hidden = heads * r.choice([n for n in range(2, 40) if 16 <= heads * n <= 96])
    config = dict(
        vocab_size=r.choice([97, 128, 131, 256, 320]), hidden_size=hidden,
        num_hidden_layers=r.choice([1, 1, 2, 3]), num_attention_heads=heads,
        num_key_value_heads=heads_kv, head_dim=2 * r.randint(2, 20),
        intermediate_size=r.choice([20, 33, 48, 64, 100]), tie_word_embeddings=r.random() < 0.3,
        rope_parameters=plain(r.choice([10000.0, 500000.0, 1e6])),
        rms_norm_eps=r.choice([1e-5, 1e-6]), **IDS)
    if family in ("llama", "mixtral") and r.random() < 0.5:  # the head size left to the reader
        del config["head_dim"]
        config["hidden_size"] = heads * 2 * r.randint(3, 12)
    made = case(family, config, seed=seed, tokens=r.choice([24, 48, 70]),
                dtype=r.choice(["float32", "float32", "bfloat16", "float16"]))
    if r.random() < 0.3:
        made.quirks.add("sharded")
    if r.random() < 0.5 and family != "mistral4":
        made.quirks.add("v4_config")
    if family in VARIATIONS:
        VARIATIONS[family](made, config, r)
    return made


def experts(r: random.Random, least: int = 1) -> tuple[int, int]:
    """How many experts, and how many a token uses."""
    count = r.choice([n for n in (1, 2, 3, 4, 5, 8, 8, 13, 16, 16) if n >= least])
    return count, min(count, r.choice([1, 2, 2, 3, 4, 8]))


def vary_llama(made: Case, config: dict, r: random.Random) -> None:
    if r.random() < 0.3:
        made.quirks.add("llama3_rope")
        config["rope_parameters"] = dict(
            rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position_embeddings=64)


def vary_mistral(made: Case, config: dict, r: random.Random) -> None:
    config["sliding_window"] = r.choice([None, None, 16])
    made.gguf = config["sliding_window"] is None  # the llama architecture of GGUF knows no window


def vary_mixtral(made: Case, config: dict, r: random.Random) -> None:
    count, used = experts(r)
    config |= dict(num_local_experts=count, num_experts_per_tok=used, sliding_window=None)
    if r.random() < 0.2:
        made.quirks.add("gguf_per_expert")


def vary_qwen3_moe(made: Case, config: dict, r: random.Random) -> None:
    count, used = experts(r)
    config |= dict(num_experts=count, num_experts_per_tok=used, norm_topk_prob=r.random() < 0.8,
                   moe_intermediate_size=r.choice([8, 12, 21, 32]), decoder_sparse_step=1,
                   mlp_only_layers=[0] if r.random() < 0.2 else [])
    # GGUF's qwen3moe always renormalises and has experts in every layer.
    made.gguf = config["norm_topk_prob"] and not config["mlp_only_layers"]


def vary_mistral4(made: Case, config: dict, r: random.Random) -> None:
    count, used = experts(r, least=2)  # transformers scores a group by its two best
    heads, rope, nope = r.randint(1, 6), 2 * r.randint(1, 8), r.randint(1, 20)
    while int((nope + rope) * (rope / (nope + rope))) != rope:  # transformers rounds this down
        nope += 1
    del config["head_dim"]
    config |= dict(
        hidden_size=2 * r.randint(10, 40), num_attention_heads=heads, num_key_value_heads=heads,
        moe_intermediate_size=r.choice([8, 12, 21, 32]), n_routed_experts=count,
        num_experts_per_tok=used, n_shared_experts=r.choice([1, 1, 2]),
        q_lora_rank=r.randint(4, 40), kv_lora_rank=r.randint(4, 40), qk_rope_head_dim=rope,
        qk_nope_head_dim=nope, v_head_dim=r.randint(3, 24),
        first_k_dense_replace=r.choice([0, 0, 1]), routed_scaling_factor=r.choice([1.0, 1.5]),
        rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters=yarn(rope, nope, r.choice([4.0, 16.0]), r.choice([16, 32])))
    made.quirks |= {q for q in ("gguf_fused", "gguf_temperature") if r.random() < 0.5}
    made.quirks |= {q for q in ("per_expert", "wrapped") if r.random() < 0.3}
    if made.quirks & {"per_expert", "wrapped"}:
        made.quirks.discard("sharded")


def vary_gemma3(made: Case, config: dict, r: random.Random) -> None:
    config |= dict(num_hidden_layers=r.choice([1, 3, 6, 7]), sliding_window=r.choice([8, 16, 33]),
                   query_pre_attn_scalar=config["head_dim"], tie_word_embeddings=True,
                   hidden_size=config["num_attention_heads"] * r.randint(2, 6) * 2,
                   rope_parameters=gemma_rope(r.choice([1.0, 8.0])))


VARIATIONS = {
    "llama": vary_llama, "mistral": vary_mistral, "mixtral": vary_mixtral,
    "qwen3_moe": vary_qwen3_moe, "mistral4": vary_mistral4, "gemma3": vary_gemma3,
}


def later(stem: str, **config) -> Case:
    return Case(stem, f"{stem}Config", f"{stem}ForCausalLM", SMALL | GQA | config)


# Families to come: made on request (`--family`), compared from safetensors alone.
MLA = dict(num_attention_heads=3, num_key_value_heads=3, kv_lora_rank=20, qk_rope_head_dim=8,
           qk_nope_head_dim=8, v_head_dim=12, moe_intermediate_size=12, intermediate_size=48,
           first_k_dense_replace=1)
LATER = {
    "deepseek_v2": later("DeepseekV2", **MLA, q_lora_rank=None, n_routed_experts=8,
                         num_experts_per_tok=2, n_shared_experts=2, topk_method="greedy",
                         routed_scaling_factor=1.0, norm_topk_prob=False),
    "deepseek_v3": later("DeepseekV3", **MLA, q_lora_rank=24, n_routed_experts=8,
                         num_experts_per_tok=3, n_shared_experts=1, n_group=4, topk_group=2,
                         routed_scaling_factor=2.5, norm_topk_prob=True,
                         rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                              original_max_position_embeddings=16, beta_fast=32.0,
                                              beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)),
    "llama4_text": Case("llama4_text", "Llama4TextConfig", "Llama4ForCausalLM", SMALL | GQA | dict(
        head_dim=8, intermediate_size=24, intermediate_size_mlp=48, num_local_experts=4,
        num_experts_per_tok=1, interleave_moe_layer_step=1, use_qk_norm=True, attn_scale=0.1,
        attention_chunk_size=16, attn_temperature_tuning=True, floor_scale=16, num_hidden_layers=4,
        no_rope_layers=None, rope_parameters=plain(500000.0))),
    "gpt_oss": later("GptOss", head_dim=16, intermediate_size=24, num_local_experts=4,
                     num_experts_per_tok=2, sliding_window=16),
    "qwen2_moe": later("Qwen2Moe", intermediate_size=48, moe_intermediate_size=12,
                       shared_expert_intermediate_size=24, num_experts=8, num_experts_per_tok=2,
                       norm_topk_prob=False),
    "olmoe": later("Olmoe", intermediate_size=24, num_experts=8, num_experts_per_tok=3,
                   norm_topk_prob=False),
    "granitemoe": later("GraniteMoe", intermediate_size=24, num_local_experts=4,
                        num_experts_per_tok=2, embedding_multiplier=2.0, logits_scaling=3.0,
                        residual_multiplier=0.7, attention_multiplier=0.2,
                        tie_word_embeddings=True),
    "phimoe": later("Phimoe", intermediate_size=24, num_local_experts=4, num_experts_per_tok=2,
                    lm_head_bias=True, attention_bias=True, router_jitter_noise=0.01),
    "glm4_moe": later("Glm4Moe", head_dim=16, intermediate_size=48, moe_intermediate_size=12,
                      n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1,
                      first_k_dense_replace=1, n_group=1, topk_group=1, use_qk_norm=True,
                      attention_bias=True, routed_scaling_factor=1.0),
    "minimax_m2": later("MiniMaxM2", head_dim=16, intermediate_size=24, num_local_experts=4,
                        num_experts_per_tok=2),
    "ernie4_5_moe": later("Ernie4_5_Moe", intermediate_size=48, moe_intermediate_size=12,
                          moe_num_experts=4, moe_k=2, moe_num_shared_experts=1,
                          moe_layer_start_index=1),
    "hunyuan_v1_moe": later("HunYuanMoEV1", head_dim=8, intermediate_size=24, num_experts=4,
                            moe_topk=2),
    "ministral3": later("Ministral3", head_dim=16, intermediate_size=48),
}
