"""The architecture of a DiffusionGemma, read from its `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_unmask.denoisers.config import check_sizes
from jax_unmask.denoisers.families.base import NEUTRAL, Fields

MODEL_TYPE = "diffusion_gemma"

_SLIDING, _FULL = "sliding_attention", "full_attention"
# Switches of the published class with the only values that are implemented here.
_FIXED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_ROPE: dict[str, dict[str, Any]] = {
    _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    _FULL: {"rope_type": "proportional", "rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25},
}


class LayerConfig(NamedTuple):
    """One layer."""

    is_sliding: bool  # Attention reaches back over a window only; there is a value projection.
    head_dim: int
    num_kv_heads: int
    theta: float  # Base of the rotary frequencies.
    rotary_fraction: float  # Part of the frequencies that are not zero.


@dataclasses.dataclass(frozen=True)
class DiffusionGemmaConfig:
    """Static description of the text model; hashable. See `DenoiserConfig`, too."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int  # Width of the dense MLP and of the self-conditioning.
    num_heads: int
    layers: tuple[LayerConfig, ...]
    sliding_window: int  # Positions that a sliding layer attends to, including the query's.
    num_experts: int  # Of each layer, beside the dense MLP.
    per_token: int  # Experts that each token goes to.
    expert_size: int
    norm_eps: float
    softcap: float | None  # Logits are softcap * tanh(logits / softcap); None leaves them alone.
    canvas_length: int
    max_length: int
    eos_token_ids: tuple[int, ...]  # Each of them ends a text.
    pad_token_id: int  # Fills the text after its end.
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_heads", "sliding_window")
        check_sizes(self, *sizes, "num_experts", "per_token", "expert_size", "canvas_length")
        for token in (*self.eos_token_ids, self.pad_token_id):
            if not isinstance(token, int) or not 0 <= token < self.vocab_size:
                raise ValueError(f"token {token!r} is not in the vocabulary of {self.vocab_size}")
        if not self.eos_token_ids:
            raise ValueError("eos_token_id is empty; a token must end a text")
        for layer in self.layers:
            if layer.head_dim % 2 or self.num_heads % layer.num_kv_heads:
                raise ValueError(
                    f"layer {layer} does not fit num_heads={self.num_heads}: head_dim must be "
                    "even and num_kv_heads divide it"
                )
        for name in ("norm_eps", "softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a number above 0")
        if self.per_token > self.num_experts:
            raise ValueError(f"per_token={self.per_token} exceeds num_experts={self.num_experts}")
        for name in ("dtype", "param_dtype"):
            object.__setattr__(self, name, np.dtype(getattr(self, name)))


def config_from_hf(fields: Mapping[str, Any]) -> DiffusionGemmaConfig:
    """Reads a `config.json`.

    Raises:
        ValueError: a field is missing, or has a value that is not implemented.
    """
    whole = Fields(fields, MODEL_TYPE)
    if whole("model_type") != MODEL_TYPE:
        raise ValueError(
            f"config.json: model_type={fields['model_type']!r} is not {MODEL_TYPE!r}; load other "
            "families with denoisers.from_pretrained"
        )
    text = Fields(whole("text_config"), MODEL_TYPE)
    text.require(_FIXED)
    whole.require({"quantization_config": None})
    text.require({name: NEUTRAL[name] for name in NEUTRAL if name != "final_logit_softcapping"})
    if text.get("use_bidirectional_attention") == "all":
        raise ValueError(
            "config.json: use_bidirectional_attention='all' is not supported; the encoder of text "
            "is causal"
        )
    eos = text("eos_token_id")
    return DiffusionGemmaConfig(
        vocab_size=text("vocab_size"),
        hidden_size=text("hidden_size"),
        intermediate_size=text("intermediate_size"),
        num_heads=text("num_attention_heads"),
        layers=_layers(text),
        sliding_window=text("sliding_window"),
        num_experts=text("num_experts"),
        per_token=text("top_k_experts"),
        expert_size=text("moe_intermediate_size"),
        norm_eps=float(text("rms_norm_eps")),
        softcap=text.given("final_logit_softcapping", 30.0),
        canvas_length=whole("canvas_length"),
        max_length=text("max_position_embeddings"),
        eos_token_ids=tuple(eos) if isinstance(eos, list) else (eos,),
        pad_token_id=text("pad_token_id"),
    )


def _layers(text: Fields) -> tuple[LayerConfig, ...]:
    rope = text.get("rope_parameters", _ROPE)
    own = {int(index): sizes for index, sizes in text.get("per_layer_config", {}).items()}
    types = text("layer_types")
    if len(types) != text("num_hidden_layers") or set(types) - {_SLIDING, _FULL}:
        raise ValueError(
            f"config.json: layer_types={types} must name {_SLIDING} or {_FULL} for each of the "
            f"{text('num_hidden_layers')} layers"
        )
    layers = []
    known = {"head_dim", "num_key_value_heads"}
    for index, kind in enumerate(types):
        sizes = {"head_dim": text("head_dim"), "num_key_value_heads": text("num_key_value_heads")}
        if kind == _FULL and not own:
            sizes["head_dim"] = text.get("global_head_dim", 512)
            count = text.get("num_global_key_value_heads", sizes["num_key_value_heads"])
            sizes["num_key_value_heads"] = count
        sizes |= own.get(index, {})
        if set(sizes) != known:
            raise ValueError(
                f"config.json: per_layer_config={own[index]} of layer {index} is not supported; it "
                f"may have {' and '.join(sorted(known))}"
            )
        wanted = "default" if kind == _SLIDING else "proportional"
        if rope.get(kind, {}).get("rope_type") != wanted:
            raise ValueError(
                f"config.json: rope_parameters={rope} is not supported; it must have rope_type="
                f"{wanted!r} for {kind}"
            )
        layers.append(
            LayerConfig(
                is_sliding=kind == _SLIDING,
                head_dim=sizes["head_dim"],
                num_kv_heads=sizes["num_key_value_heads"],
                theta=float(rope[kind]["rope_theta"]),
                rotary_fraction=float(rope[kind].get("partial_rotary_factor", 1.0)),
            )
        )
    return tuple(layers)
