"""LLaDA2 (arXiv 2512.15745): `config.json`, tensor names and chat template.

Covers LLaDA2.0 and LLaDA2.1, -mini (16B) and -flash (100B): block-causal mixtures of experts with
DeepSeek-V3's router. The published class fuses the query, key and value projections.
"""

from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig, ExpertsConfig
from jax_unmask.denoisers.families import ling, qwen
from jax_unmask.denoisers.families.base import (
    Family,
    TensorSpec,
    experts_of,
    per_layer,
    read_fields,
)

NAME = "llada2_moe"

# Switches of the published class with the only values that are implemented here.
_FIXED: dict[str, Any] = {
    "use_qk_norm": True,
    "use_bias": False,
    "use_qkv_bias": False,
    "norm_head": False,
    "score_function": "sigmoid",
    "embedding_dropout": 0.0,
    "output_dropout": 0.0,
}
# Block length of all published models; `config.json` does not have it.
_BLOCK_SIZE = 32

_MINI: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "moe_router_enable_expert_bias": True,
    "vocab_size": ling.VOCAB_SIZE,
    "max_position_embeddings": 32_768,
    "rope_theta": 600_000.0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "pad_token_id": 156_892,
    "eos_token_id": 156_892,
}
_FLASH = _MINI | {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 9216,
    "moe_intermediate_size": 1024,
}
PUBLISHED = {
    "inclusionAI/LLaDA2.0-mini": _MINI,
    "inclusionAI/LLaDA2.0-flash": _FLASH,
    "inclusionAI/LLaDA2.1-mini": _MINI,
    "inclusionAI/LLaDA2.1-flash": _FLASH,
}


def config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads a LLaDA2 `config.json`; raises ValueError for what is missing or not implemented."""
    need = read_fields(fields, NAME)
    need.require(_FIXED)
    count, dense = need("num_hidden_layers"), need("first_k_dense_replace")
    size = need("moe_intermediate_size")
    experts = ExpertsConfig(
        num_experts=need("num_experts"),
        per_token=need("num_experts_per_tok"),
        size=size,
        layers=tuple(i >= dense for i in range(count)),
        shared_size=size * need.get("num_shared_experts", 0),
        score="sigmoid",
        has_bias=bool(need.get("moe_router_enable_expert_bias", True)),
        normalise=need("num_experts_per_tok") > 1,
        scale=float(need("routed_scaling_factor")),
        num_groups=need("n_group"),  # The class would take 8, and keep 4.
        groups_kept=need("topk_group"),
        router_in_float32=True,
    )
    head_dim = need.get("head_dim", need("hidden_size") // need("num_attention_heads"))
    if need.get("rotary_dim") is None:
        need("partial_rotary_factor")  # The class would take 0.5.
    return qwen.read(
        fields,
        NAME,
        head_dim=head_dim,
        intermediate_size=need("intermediate_size"),
        qk_norm=True,
        rotary_dim=ling.rotary_dim(need, head_dim),
        attention_block=need.get("block_size", _BLOCK_SIZE),
        experts=experts,
    )


def config_to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """Writes a LLaDA2 `config.json`.

    Raises:
        ValueError: the config has no experts, or their places or sizes cannot be represented in the
            format.
    """
    moe = experts_of(config)
    dense = moe.layers.index(True) if any(moe.layers) else len(moe.layers)
    if not all(moe.layers[dense:]) or moe.shared_size % moe.size:
        raise ValueError(
            f"experts.layers={moe.layers} with experts.shared_size={moe.shared_size} cannot be "
            "written: in LLaDA2's format all dense layers come first, and the shared experts' "
            f"width is a multiple of experts.size={moe.size}"
        )
    fields = qwen.write(
        config,
        **_FIXED,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        partial_rotary_factor=ling.rotary_factor(config),
        moe_intermediate_size=moe.size,
        num_experts=moe.num_experts,
        num_experts_per_tok=moe.per_token,
        num_shared_experts=moe.shared_size // moe.size,
        first_k_dense_replace=dense,
        n_group=moe.num_groups,
        topk_group=moe.groups_kept,
        routed_scaling_factor=moe.scale,
        moe_router_enable_expert_bias=moe.has_bias,
        max_window_layers=config.num_layers,
        sliding_window=None,
        output_router_logits=False,
    )
    if config.attention_block != _BLOCK_SIZE:
        fields["block_size"] = config.attention_block
    return fields


def tensors(config: DenoiserConfig) -> list[TensorSpec]:
    """Every tensor of a LLaDA2 checkpoint and the parameter that it fills."""
    attention = {
        "input_layernorm.weight": (("attention_norm", "scale"), False),
        "attention.query_layernorm.weight": (("query_norm", "scale"), False),
        "attention.key_layernorm.weight": (("key_norm", "scale"), False),
        "attention.dense.weight": (("attention_out", "kernel"), True),
        "post_attention_layernorm.weight": (("mlp_norm", "scale"), False),
    }
    specs = qwen.outer(config, "model.word_embeddings.weight")
    specs += per_layer(config, qwen.LAYER, attention)
    for part in ("query", "key", "value"):
        fused = {"attention.query_key_value.weight": ((part, "kernel"), True)}
        specs += per_layer(config, qwen.LAYER, fused)
    return specs + qwen.mlps(config, bias="mlp.gate.expert_bias", shared="mlp.shared_experts.")


FAMILY = Family(
    name=NAME,
    model_types=("llada2_moe",),
    architectures=("LLaDA2MoeModelLM",),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    tensors=tensors,
    published=PUBLISHED,
    chat_template=ling.CHAT_TEMPLATE,
    template_tokens=ling.TEMPLATE_TOKENS,
    turn_ends=ling.TURN_ENDS,
    mask_token_ids=ling.MASK_TOKEN_IDS,
    draws_from_filtered=True,
)
