"""Dream (Ye et al. 2025, arXiv 2508.15487): `config.json`, tensor names and chat template.

Covers Dream-v0-Base-7B, Dream-v0-Instruct-7B, Dream-Coder and DiffuCoder-7B: Qwen2.5 with full
attention. Made from a causal model, it scores token i + 1 at position i (`logits_shift`).
"""

from collections.abc import Mapping
from typing import Any

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families import qwen
from jax_unmask.denoisers.families.base import Family, check_head_width, read_fields

NAME = "dream"

# Qwen2.5's ChatML, with its system turn where the messages bring none.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_DREAM_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "vocab_size": 152_064,
    "max_position_embeddings": 131_072,
    "rope_theta": 1_000_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "mask_token_id": 151_666,
    "bos_token_id": 151_643,
    "eos_token_id": 151_643,
    "pad_token_id": 151_643,
}
PUBLISHED = dict.fromkeys(
    (
        "Dream-org/Dream-v0-Base-7B",
        "Dream-org/Dream-v0-Instruct-7B",
        "Dream-org/Dream-Coder-v0-Instruct-7B",
        "apple/DiffuCoder-7B-Base",
        "apple/DiffuCoder-7B-Instruct",
        "apple/DiffuCoder-7B-cpGRPO",
    ),
    _DREAM_7B,
)


def config_from_hf(fields: Mapping[str, Any]) -> DenoiserConfig:
    """Reads a Dream `config.json`; raises ValueError for what is missing or not implemented."""
    return qwen.read(
        fields,
        NAME,
        intermediate_size=read_fields(fields, NAME)("intermediate_size"),
        qkv_bias=True,
        logits_shift=True,
    )


def config_to_hf(config: DenoiserConfig) -> dict[str, Any]:
    """Writes a Dream `config.json`.

    Raises:
        ValueError: the config has a shape that Dream's format cannot represent.
    """
    check_head_width(config)
    return qwen.write(
        config, intermediate_size=config.intermediate_size, max_window_layers=config.num_layers
    )


FAMILY = Family(
    name=NAME,
    model_types=("Dream", "dream"),
    architectures=("DreamModel",),
    config_from_hf=config_from_hf,
    config_to_hf=config_to_hf,
    tensors=qwen.tensors,
    published=PUBLISHED,
    chat_template=CHAT_TEMPLATE,
    template_tokens=("<|im_start|>", "<|im_end|>"),
    turn_ends=("<|im_end|>", "<|dlm_pad|>"),
    draws_from_filtered=True,
    top_p_first=True,
)
