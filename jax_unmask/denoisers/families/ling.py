"""The vocabulary of the Ling models and partial RoPE, shared by LLaDA-MoE and LLaDA2."""

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families.base import Fields

VOCAB_SIZE = 157_184
MASK_TOKEN_IDS = {VOCAB_SIZE: 156_895}
"""The published `config.json` files do not name the mask token."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<role>SYSTEM</role>detailed thinking off<|role_end|>' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'HUMAN' if message['role'] == 'user' else message['role'] | upper %}"
    "{{ '<role>' + role + '</role>' + message['content'] + '<|role_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<role>ASSISTANT</role>' }}{% endif %}"
)
TEMPLATE_TOKENS = ("<role>", "</role>", "<|role_end|>")
TURN_ENDS = ("<|role_end|>",)


def rotary_dim(need: Fields, head_dim: int) -> int | None:
    """Features of a head that are rotated; None for all of them.

    Raises:
        ValueError: two fields disagree about them.
    """
    factor, given = need.get("partial_rotary_factor"), need.get("rotary_dim")
    turned = given if factor is None and given is not None else int(head_dim * (factor or 1))
    if given not in (None, turned):
        raise ValueError(
            f"config.json: rotary_dim={given} disagrees with partial_rotary_factor={factor} of "
            f"heads of width {head_dim}, which is {turned}; correct one of them"
        )
    return None if turned == head_dim else turned


def rotary_factor(config: DenoiserConfig) -> float:
    """The inverse of `rotary_dim`."""
    return (config.rotary_dim or config.head_dim) / config.head_dim
