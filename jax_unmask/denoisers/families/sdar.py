"""SDAR (Cheng et al. 2025, arXiv 2510.06303): `config.json`, tensor names and chat template.

Covers SDAR-{1.7B,4B,8B}-Chat and TraDo-{4B,8B} (arXiv 2509.06949), which are SDAR after
reinforcement learning, and the mixture of experts SDAR-30B-A3B: Qwen3 with block-causal attention.
"""

from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig, ExpertsConfig
from jax_unmask.denoisers.families import qwen
from jax_unmask.denoisers.families.base import Family, experts_of, read_fields

NAME = "sdar"
MOE_NAME = "sdar_moe"

# Qwen3's ChatML without tools; the published tokenizers bring the full one. Answers before the last
# question lose their reasoning, and later ones keep it, as there.
CHAT_TEMPLATE = (
    "{% set last = namespace(user=messages | length) %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% set text = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in text and loop.index0 < last.user %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + text + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)

_SDAR_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12_288,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "block_size": 4,
    "mask_token_id": 151_669,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "pad_token_id": 151_643,
}
_SDAR_4B = _SDAR_8B | {"hidden_size": 2560, "intermediate_size": 9728}
# Qwen3-1.7B's shape. Whether its table is tied has not been seen; like its siblings', it is not.
_SDAR_1_7B = _SDAR_8B | {
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "intermediate_size": 6144,
}
PUBLISHED = {
    "JetLM/SDAR-1.7B-Chat": _SDAR_1_7B,
    "JetLM/SDAR-4B-Chat": _SDAR_4B,
    "JetLM/SDAR-8B-Chat": _SDAR_8B,
    "Gen-Verse/TraDo-4B-Instruct": _SDAR_4B,
    "Gen-Verse/TraDo-8B-Instruct": _SDAR_8B,
    "Gen-Verse/TraDo-8B-Thinking": _SDAR_8B,
}

# The classes' own default; some published files do not repeat it.
_BLOCK_SIZE = 4


def config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads an SDAR `config.json`; raises ValueError for what is missing or not implemented."""
    return _read(fields, NAME, intermediate_size=read_fields(fields, NAME)("intermediate_size"))


def moe_config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads an SDAR-MoE `config.json`; its layers of experts are placed as in Qwen3-MoE."""
    need = read_fields(fields, MOE_NAME)
    count, step = need("num_hidden_layers"), need.get("decoder_sparse_step", 1)
    dense = set(need.get("mlp_only_layers", []))
    experts = ExpertsConfig(
        num_experts=need("num_experts"),
        per_token=need("num_experts_per_tok"),
        size=need("moe_intermediate_size"),
        layers=tuple(i not in dense and (i + 1) % step == 0 for i in range(count)),
        normalise=bool(need("norm_topk_prob")),
    )
    width = need.get("intermediate_size", experts.size)
    return _read(fields, MOE_NAME, intermediate_size=width, experts=experts)


def moe_config_to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """Writes an SDAR-MoE `config.json`.

    Raises:
        ValueError: the config has no experts.
    """
    moe = experts_of(config)
    return config_to_hf(
        config,
        num_experts=moe.num_experts,
        num_experts_per_tok=moe.per_token,
        moe_intermediate_size=moe.size,
        norm_topk_prob=moe.normalise,
        decoder_sparse_step=1,
        mlp_only_layers=[i for i, has_experts in enumerate(moe.layers) if not has_experts],
        output_router_logits=False,
        router_aux_loss_coef=0.001,
    )


def _read(fields: Mapping[str, Any], family: str, **more: Any) -> DenoiserConfig:
    need = read_fields(fields, family)
    bias = bool(need.get("attention_bias", False))
    return qwen.read(
        fields,
        family,
        qkv_bias=bias,
        out_bias=bias,
        qk_norm=True,
        norm_scale_in_float32=True,
        attention_block=need.get("block_size", _BLOCK_SIZE),
        **more,
    )


def config_to_hf(config: DenoiserConfig, **more: Any) -> dict[str, Any]:
    """Writes an SDAR `config.json`; `more` are fields of its own."""
    return qwen.write(
        config,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        attention_bias=config.qkv_bias,
        block_size=config.attention_block,
        max_window_layers=config.num_layers,
        sliding_window=None,
        **more,
    )


_SHARED: dict[str, Any] = {
    "tensors": qwen.tensors,
    "chat_template": CHAT_TEMPLATE,
    "template_tokens": ("<|im_start|>", "<|im_end|>"),
    "turn_ends": ("<|im_end|>",),
    "draws_from_filtered": True,
}
FAMILY = Family(
    name=NAME,
    model_types=("sdar",),
    architectures=("SDARForCausalLM",),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    published=PUBLISHED,
    **_SHARED,
)
MOE_FAMILY = Family(
    name=MOE_NAME,
    model_types=("sdar_moe",),
    architectures=("SDARMoeForCausalLM", "SDARMoEForCausalLM"),
    config_from_hf=moe_config_from_hf,
    config_to_hf=moe_config_to_hf,
    **_SHARED,
)
