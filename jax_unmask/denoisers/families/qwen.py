"""Tensor names and config fields that the families of Qwen's lineage share.

Dream is Qwen2.5 made bidirectional, SDAR is Qwen3 trained with block diffusion; LLaDA-MoE follows
OLMoE, which names its tensors the same way.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families.base import (
    TensorSpec,
    per_expert,
    per_layer,
    read_fields,
    shape_fields,
    written_fields,
)

LAYER = "model.layers.{}."
MLP = {"gate_proj.weight": "gate", "up_proj.weight": "up", "down_proj.weight": "down"}

# Fields of `config.json` by the argument of `DenoiserConfig` that each of them is.
_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "max_length": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}
# Defaults of the published classes of this lineage, the same in every family: those with the only
# value that is implemented here, and the one field that files leave out.
_UNTIED = {"tie_word_embeddings": False}
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "rope_scaling": None,
}


def read(fields: Mapping[str, Any], family: str, **more: Any) -> DenoiserConfig:
    """The config that a `config.json` describes; raises ValueError, as each family's reader does.

    `more` are arguments of `DenoiserConfig` that are the family's own; they win.
    """
    need = read_fields(_UNTIED | {k: v for k, v in fields.items() if v is not None}, family)
    need.require(_FIXED)
    shape = shape_fields(need, _NAMES)
    heads = shape["num_heads"]
    arguments = {
        **shape,
        "family": family,
        "num_kv_heads": need.get("num_key_value_heads", heads),
        "head_dim": need.get("head_dim", shape["hidden_size"] // heads),
        # All rotate in the type of the computation.
        "rotary_in_float32": False,
    }
    return DenoiserConfig(**(arguments | more))


def write(config: DenoiserConfig, **more: Any) -> dict[str, Any]:
    """The fields of `config.json` that all of these families share, and `more`.

    Of `more`, None leaves a field out.
    """
    fields = _FIXED | written_fields(config, {**_NAMES, "num_kv_heads": "num_key_value_heads"})
    fields |= {"initializer_range": 0.02, "use_cache": False, **more}
    absent = {"bos_token_id", *more}
    return {k: fields[k] for k in sorted(fields) if fields[k] is not None or k not in absent}


def tensors(config: DenoiserConfig) -> list[TensorSpec]:
    """Every tensor of a checkpoint and the parameter that it fills."""
    specs = outer(config, "model.embed_tokens.weight")
    attention = {
        "input_layernorm.weight": (("attention_norm", "scale"), False),
        "self_attn.q_proj.weight": (("query", "kernel"), True),
        "self_attn.k_proj.weight": (("key", "kernel"), True),
        "self_attn.v_proj.weight": (("value", "kernel"), True),
        "self_attn.o_proj.weight": (("attention_out", "kernel"), True),
        "post_attention_layernorm.weight": (("mlp_norm", "scale"), False),
    }
    if config.qkv_bias:
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            attention[f"self_attn.{theirs}_proj.bias"] = ((ours, "bias"), False)
    if config.out_bias:
        attention["self_attn.o_proj.bias"] = (("attention_out", "bias"), False)
    if config.qk_norm:
        attention["self_attn.q_norm.weight"] = (("query_norm", "scale"), False)
        attention["self_attn.k_norm.weight"] = (("key_norm", "scale"), False)
    rest = mlps(config, bias="mlp.expert_bias", shared="shared_expert.")
    return specs + per_layer(config, LAYER, attention) + rest


def outer(config: DenoiserConfig, embedding: str) -> list[TensorSpec]:
    """The tensors outside the layers; the output projection is absent where it is tied."""
    specs = [
        TensorSpec(embedding, ("embedding",)),
        TensorSpec("model.norm.weight", ("final_norm", "scale")),
    ]
    if not config.tie_embeddings:
        specs.append(TensorSpec("lm_head.weight", ("head",)))
    return specs


def mlps(config: DenoiserConfig, *, bias: str, shared: str) -> list[TensorSpec]:
    """The tensors of dense MLPs and experts.

    Inside a layer, `bias` is the name of a router's bias, `shared` the prefix of a shared expert.
    """
    dense = {f"mlp.{theirs}": ((ours, "kernel"), True) for theirs, ours in MLP.items()}
    specs = per_layer(config, LAYER, dense, only=False)
    moe = config.experts
    if moe is None:
        return specs
    parts = {"mlp.gate.weight": (("experts", "router"), True)}
    if moe.has_bias:
        buffers = per_layer(config, LAYER, {bias: (("experts", "router_bias"), False)}, only=True)
        specs += [dataclasses.replace(spec, keeps_dtype=True) for spec in buffers]
    if moe.shared_size:
        for theirs, ours in MLP.items():
            parts[f"{shared}{theirs}"] = ((f"shared_{ours}", "kernel"), True)
    specs += per_layer(config, LAYER, parts, only=True)
    experts = {theirs: ("experts", ours) for theirs, ours in MLP.items()}
    return specs + per_expert(config, LAYER + "mlp.experts.{}.", experts)
