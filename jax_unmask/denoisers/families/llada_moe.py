"""LLaDA-MoE (arXiv 2509.24389): `config.json` and tensor names.

Covers LLaDA-MoE-7B-A1B-Base and -Instruct: OLMoE's layers with full attention. Published files have
model_type "llada", like LLaDA's; the class name distinguishes them.
"""

from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig, ExpertsConfig
from jax_unmask.denoisers.families import ling, qwen
from jax_unmask.denoisers.families.base import Family, check_head_width, experts_of, read_fields

NAME = "llada_moe"

# Fields of the published class with the only values that are implemented here.
_FIXED: dict[str, Any] = {
    "clip_qkv": None,
    "moe_router_score_function": "softmax",
    "routed_scaling_factor": 1,
    "router_num_group": None,
    "router_topk_group": None,
}


def config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads a LLaDA-MoE `config.json`; raises ValueError for what is missing or unknown."""
    need = read_fields(fields, NAME)
    need.require(_FIXED)
    count = need("num_hidden_layers")
    frequencies = need("moe_layer_freq")
    if not isinstance(frequencies, list) or len(frequencies) != count:
        raise ValueError(
            f"config.json: moe_layer_freq={frequencies!r} must list 0 (dense) or 1 (experts) for "
            f"each of num_hidden_layers={count} layers"
        )
    layers = tuple(bool(value) for value in frequencies)
    has_bias = bool(need.get("moe_router_enable_expert_bias", False))
    experts = ExpertsConfig(
        num_experts=need("num_experts"),
        per_token=need("num_experts_per_tok"),
        size=need("expert_intermediate_size"),
        layers=layers,
        shared_size=need.get("shared_expert_intermediate_size", 0),
        has_bias=has_bias,
        weigh_biased=has_bias,
    )
    bias = bool(need.get("attention_bias", False))
    head_dim = need("hidden_size") // need("num_attention_heads")
    dense = need("dense_intermediate_size") if not all(layers) else None
    return qwen.read(
        fields,
        NAME,
        head_dim=head_dim,
        intermediate_size=dense or need.get("dense_intermediate_size", experts.size),
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=bool(need.get("qk_layernorm", False)),
        rotary_dim=ling.rotary_dim(need, head_dim),
        experts=experts if any(layers) else None,
    )


def config_to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """Writes a LLaDA-MoE `config.json`.

    Raises:
        ValueError: the config has no experts, or a head width that the format cannot represent.
    """
    moe = experts_of(config)
    check_head_width(config)
    return qwen.write(
        config,
        attention_bias=config.qkv_bias,
        qk_layernorm=config.qk_norm,
        partial_rotary_factor=ling.rotary_factor(config),
        dense_intermediate_size=config.intermediate_size,
        expert_intermediate_size=moe.size,
        shared_expert_intermediate_size=moe.shared_size or None,
        num_experts=moe.num_experts,
        num_experts_per_tok=moe.per_token,
        moe_layer_freq=[int(has_experts) for has_experts in moe.layers],
        moe_router_enable_expert_bias=moe.has_bias,
        moe_router_score_function="softmax",
        routed_scaling_factor=1,
        output_router_logits=False,
        router_aux_loss_coef=0.01,
    )


FAMILY = Family(
    name=NAME,
    model_types=("lladamoe", "llada_moe", "llada"),
    architectures=("LLaDAMoEModelLM", "LLaDAMoEModel"),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    tensors=qwen.tensors,
    chat_template=ling.CHAT_TEMPLATE,
    template_tokens=ling.TEMPLATE_TOKENS,
    turn_ends=ling.TURN_ENDS,
    mask_token_ids=ling.MASK_TOKEN_IDS,
)
