"""LLaDA (Nie et al. 2025, arXiv 2502.09992): `config.json`, tensor names and chat template.

Covers LLaDA-8B-Base, LLaDA-8B-Instruct and LLaDA-1.5, and every model of their architecture. The
published class has many switches; a value that would change the computation and that the
transformer here does not implement is refused by name.
"""

from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families.base import (
    Family,
    TensorSpec,
    check_head_width,
    per_layer,
    read_fields,
    shape_fields,
    written_fields,
)

NAME = "llada"
ARCHITECTURE = "LLaDAModelLM"

# Fields of `config.json` by the argument of `DenoiserConfig` that each of them is.
_NAMES = {
    "hidden_size": "d_model",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "max_length": "max_sequence_length",
    "tie_embeddings": "weight_tying",
}
# Switches of the published class with the only values that are implemented here. It gives them
# defaults that LLaDA does not use, so they must be written down, ...
_FIXED: dict[str, Any] = {
    "block_type": "llama",
    "block_group_size": 1,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "attention_layer_norm": False,
    "activation_type": "silu",
    "include_bias": False,
    "alibi": False,
    "rope": True,
    "rope_full_precision": True,
    "input_emb_norm": False,
    "scale_logits": False,
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "residual_dropout": 0.0,
}
# ... except for these.
_OPTIONAL: dict[str, Any] = {
    "bias_for_layer_norm": False,
    "include_qkv_bias": False,
    "rope_scaling": None,
}

# Fields of the published class that do not touch this implementation's computation; written on
# export so that the reference code finds what it expects.
_EXPORT_ONLY: dict[str, Any] = {
    "alibi_bias_max": 8.0,
    "attention_layer_norm_with_affine": True,
    "flash_attention": False,
    "init_cutoff_factor": None,
    "init_device": "meta",
    "init_fn": "mitchell",
    "init_std": 0.02,
    "mlp_ratio": 4,
    "multi_query_attention": None,
    "precision": "amp_bf16",
    "use_cache": False,
}

SPECIAL_TOKENS = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
CHAT_TEMPLATE = (
    "{{ '<|startoftext|>' }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{% endif %}"
)

_LLADA_8B: dict[str, Any] = {
    **_FIXED,
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12_288,
    "vocab_size": 126_464,
    "embedding_size": 126_464,
    "max_sequence_length": 4096,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "mask_token_id": 126_336,
    "eos_token_id": 126_081,
    "pad_token_id": 126_081,
}
PUBLISHED = dict.fromkeys(
    ("GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-1.5"), _LLADA_8B
)


def config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads a LLaDA `config.json`; raises ValueError for what is missing or not implemented.

    Nothing is taken from the published class's defaults, which describe another model.
    """
    architectures = fields.get("architectures")
    if architectures and ARCHITECTURE not in architectures:
        raise ValueError(
            f"config.json: architectures={architectures} is not supported with model_type="
            f"'llada'; expected [{ARCHITECTURE!r}]"
        )
    need = read_fields(fields, NAME)
    need.require(_FIXED | _OPTIONAL)
    for name in _FIXED:
        need(name)
    shape = shape_fields(need, _NAMES)
    width, heads = shape["hidden_size"], shape["num_heads"]
    if width % heads:
        raise ValueError(
            f"config.json: d_model={width} is not divisible by n_heads={heads}; a LLaDA head is "
            "d_model / n_heads wide"
        )
    # The published class falls back in these ways when a field is null.
    kv_heads = need.get("n_kv_heads", 1 if need.get("multi_query_attention") else heads)
    mlp = need.get("mlp_hidden_size") or need("mlp_ratio") * width
    vocab = need("vocab_size")
    rows = fields.get("embedding_size") or vocab
    if rows < vocab:
        raise ValueError(
            f"config.json: embedding_size={rows} is smaller than vocab_size={vocab}; the "
            "embedding table needs a row per token"
        )
    return DenoiserConfig(
        **shape,
        family=NAME,
        vocab_size=rows,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        intermediate_size=mlp,
    )


def config_to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """Writes a LLaDA `config.json`, complete enough for the published class.

    Raises:
        ValueError: the config has a shape that LLaDA's format cannot represent.
    """
    check_head_width(config)
    fields = {
        **_FIXED,
        **_EXPORT_ONLY,
        "bias_for_layer_norm": False,
        "include_qkv_bias": False,
        "n_kv_heads": config.num_kv_heads,
        "mlp_hidden_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "embedding_size": config.vocab_size,
        **written_fields(config, _NAMES),
    }
    if config.bos_token_id is None:
        del fields["bos_token_id"]
    return dict(sorted(fields.items()))


def tensors(config: DenoiserConfig) -> list[TensorSpec]:
    """Every tensor of a LLaDA checkpoint and the parameter that it fills.

    `ff_proj` is the gate, and `ff_out` is the down projection inside a block but the output
    projection at the top.
    """
    top = [("wte", ("embedding",)), ("ln_f", ("final_norm", "scale"))]
    if not config.tie_embeddings:
        top.append(("ff_out", ("head",)))
    specs = [TensorSpec(f"model.transformer.{name}.weight", path) for name, path in top]
    parts = {
        "attn_norm.weight": (("attention_norm", "scale"), False),
        "q_proj.weight": (("query", "kernel"), True),
        "k_proj.weight": (("key", "kernel"), True),
        "v_proj.weight": (("value", "kernel"), True),
        "attn_out.weight": (("attention_out", "kernel"), True),
        "ff_norm.weight": (("mlp_norm", "scale"), False),
        "ff_proj.weight": (("gate", "kernel"), True),
        "up_proj.weight": (("up", "kernel"), True),
        "ff_out.weight": (("down", "kernel"), True),
    }
    return specs + per_layer(config, "model.transformer.blocks.{}.", parts)


FAMILY = Family(
    name=NAME,
    model_types=("llada",),
    architectures=(ARCHITECTURE,),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    tensors=tensors,
    published=PUBLISHED,
    chat_template=CHAT_TEMPLATE,
    template_tokens=SPECIAL_TOKENS,
)
