"""Tiny configs of many families, with what is special about each switched on: windows, caps, scales, experts."""

from __future__ import annotations

from typing import Any

import transformers
from packaging.version import Version

from tests.engine import tiny

MLA = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
GEMMA_2 = {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
CAPS = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
SSM = {"mamba_chunk_size": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}

# The tree layout, with right numbers. Samples are longer than the windows of 8.
TREE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": GEMMA_2 | CAPS,
    "gemma3_text": GEMMA_2 | {"num_hidden_layers": 6, "final_logit_softcapping": 3.0},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "starcoder2": {"sliding_window": 8},
    "smollm3": {},
    "gpt2": tiny.GPT2,
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": EXPERTS | {"head_dim": 8, "decoder_sparse_step": 1},
    "deepseek_v3": MLA
    | {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24}
    | {"first_k_dense_replace": 1, "num_key_value_heads": 4},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.25},
    "granite": {"logits_scaling": 8.0, "attention_multiplier": 0.3, "embedding_multiplier": 3.0},
    "hyperclovax": {"logits_scaling": 0.125},  # multiplied, where Granite divides
    "nanochat": {},
    "vaultgemma": GEMMA_2 | CAPS,
    "exaone4": {"sliding_window": 8},
}
# The padded layout, with right numbers.
PADDED: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8},
    "mamba2": {"chunk_size": 8, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "falcon_mamba": {"state_size": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1}
    | {"use_mamba_kernels": False, "mamba_d_state": 8},
    "falcon_h1": SSM | {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "bamba": SSM | {"attn_layer_indices": [1]},
    "recurrent_gemma": {"attention_window_size": 8, "lru_width": 32, "logits_soft_cap": 3.0, "num_hidden_layers": 3}
    | {"block_types": ["recurrent", "recurrent", "attention"]},
    "qwen3_next": EXPERTS
    | {"num_hidden_layers": 4, "head_dim": 8, "shared_expert_intermediate_size": 24, "linear_num_value_heads": 4}
    | {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8},
    "minimax": {},
    "rwkv": {"attention_hidden_size": 32},
    "falcon": {"alibi": True},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 128},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    "llama4_text": {"num_hidden_layers": 4, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}
    | {"intermediate_size_mlp": 48, "attention_chunk_size": 8},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},  # sinks
    "doge": {},  # masks of its own
}
# GPT-J takes an attention function since transformers 5.24.
GPTJ_LAYOUT = TREE if Version(transformers.__version__) >= Version("5.24") else PADDED
GPTJ_LAYOUT["gptj"] = {"n_embd": 32, "n_head": 4, "n_layer": 2, "rotary_dim": 8}


def model(family: str, **options: Any) -> Any:
    """A tiny random model of a family above; options of `tiny.build`."""
    settings = {**TREE, **PADDED}[family]
    if family == "gpt2":
        return tiny.build(tiny.AutoConfig.for_model("gpt2", **settings), **options)
    return tiny.build(tiny.config(family, **settings), **options)
