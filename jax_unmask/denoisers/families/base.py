"""The interface of a family, and the mapping of its checkpoint tensors to parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jax_unmask.denoisers.config import DenoiserConfig, ExpertsConfig


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint file, or some rows of one.

    Several specs of one name share the tensor: it is the concatenation of theirs, in the order of
    the specs (a fused projection, for instance).
    """

    name: str  # In the safetensors files.
    path: tuple[str, ...]  # The parameter that it fills, as keys of the nested dict.
    # Its place on the parameter's leading axes: (layer,), (layer, expert), or () for all of it.
    index: tuple[int, ...] = ()
    transpose: bool = False  # The file holds [out, in] and the parameter [in, out].
    # Stays in the type in which it is stored (a buffer that the published code keeps in float32).
    keeps_dtype: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A published checkpoint format."""

    name: str  # `DenoiserConfig.family` of its models.
    model_types: tuple[str, ...]  # `model_type` of its `config.json` files; the first is written.
    architectures: tuple[str, ...]  # Names of its published classes; the first is written.
    config_from_hf: Callable[[Mapping[str, Any]], DenoiserConfig]  # Reads a parsed `config.json`.
    # Writes a `config.json`, complete enough for the published class, which is added.
    config_to_hf: Callable[[DenoiserConfig], dict[str, Any]]
    tensors: Callable[[DenoiserConfig], list[TensorSpec]]  # Every tensor of a checkpoint.
    # `config.json` by hub name: what planning needs to know of a model that is not here yet.
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    chat_template: str | None = None  # Jinja template of tokenizers that come without one.
    template_tokens: tuple[str, ...] = ()  # Special tokens that the template writes.
    turn_ends: tuple[str, ...] = ()  # Tokens that end an answer, beside the EOS token.
    # Id of the mask token by vocabulary size, for published files that do not give it.
    mask_token_ids: Mapping[int, int] = dataclasses.field(default_factory=dict)
    # Its published sampler takes confidences from the distribution that tokens are drawn from
    # (after temperature, top-k and top-p), not from the denoiser's own.
    draws_from_filtered: bool = False
    top_p_first: bool = False  # Its published sampler applies top-p before top-k.


class Fields:
    """The fields of a `config.json`, read with errors that name the field."""

    def __init__(self, fields: Mapping[str, Any], family: str) -> None:
        self._fields = fields
        self._family = family

    def __call__(self, name: str) -> Any:
        """A field that must be there.

        Raises:
            ValueError: it is missing, or null.
        """
        if self._fields.get(name) is None:
            raise ValueError(
                f"config.json: {name} is missing; a {self._family} config must give it"
            )
        return self._fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """A field that may be missing or null; then the default."""
        value = self._fields.get(name)
        return default if value is None else value

    def given(self, name: str, default: Any) -> Any:
        """A field in which null means something else than a missing field, which is the default."""
        return self._fields.get(name, default)

    def require(self, only: Mapping[str, Any]) -> None:
        """Refuses values that would change the computation and are not implemented.

        Args:
            only: the implemented value by name; a field that is missing or null has it.

        Raises:
            ValueError: a field has another value.
        """
        for name, implemented in only.items():
            if self.get(name, implemented) != implemented:
                raise ValueError(
                    f"config.json: {name}={self._fields[name]!r} is not supported for "
                    f"{self._family}; only {name}={implemented!r} is implemented"
                )


# Switches of later model classes that would change the computation, with the values that do not.
NEUTRAL: dict[str, Any] = {
    "quantization_config": None,
    "logit_scale": 1,
    "logits_scaling": 1,
    "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
    "embedding_multiplier": 1,
    "residual_multiplier": 1,
    "attention_multiplier": None,
    "query_pre_attn_scalar": None,
}
_MOST_LAYERS = 10_000
_ROPE = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}


def read_fields(fields: Mapping[str, Any], family: str) -> Fields:
    """The fields of a `config.json` under the names that transformers 4 gave them.

    transformers 5 nests rotary settings in `rope_parameters` (also under the older name
    `rope_scaling`), lists the kind of attention of each layer, and calls experts local.

    Raises:
        ValueError: a field changes the computation in a way that is not implemented, or disagrees
            with another.
    """
    found = dict(fields)

    def refuse(name: str, value: Any, reason: str) -> None:
        raise ValueError(f"config.json: {name}={value!r} is not supported for {family}; {reason}")

    def put(name: str, value: Any, origin: str) -> None:
        if found.get(name) not in (None, value):
            raise ValueError(
                f"config.json: {name}={found[name]!r} disagrees with {origin}={value!r}; correct "
                "one of them"
            )
        found[name] = value

    for name, neutral in NEUTRAL.items():
        if fields.get(name) not in (None, neutral):
            remedy = f"only {name}={neutral!r} is implemented"
            if name == "quantization_config":
                remedy = "give the model with its weights in float32, bfloat16 or float16"
            refuse(name, fields[name], remedy)
    for name in ("n_layers", "num_hidden_layers"):
        if isinstance(found.get(name), int) and found[name] > _MOST_LAYERS:
            refuse(name, found[name], f"at most {_MOST_LAYERS} layers are")
    for name in ("rope_scaling", "rope_parameters"):
        rope = found.pop(name, None)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            refuse(name, rope, "it must be an object")
        kinds = [value for value in rope.values() if isinstance(value, Mapping)]
        if kinds:  # One entry for each kind of attention.
            if len(kinds) < len(rope) or any(kind != kinds[0] for kind in kinds):
                refuse(name, rope, "all layers must be rotated alike")
            rope = kinds[0]
        kind = rope.get("rope_type", rope.get("type"))
        if kind != "default" and (kind is not None or not set(rope) <= _ROPE):
            refuse(name, rope, "only rope_type='default' is implemented")
        for inner in ("rope_theta", "partial_rotary_factor"):
            if rope.get(inner) is not None:
                put(inner, rope[inner], f"{name}.{inner}")
    layers = found.pop("layer_types", None) or ()
    if set(layers) - {"full_attention"}:
        refuse("layer_types", layers, "only 'full_attention' is implemented")
    if fields.get("num_local_experts") is not None:
        put("num_experts", fields["num_local_experts"], "num_local_experts")
    for name in TOKENS:  # The first of several ends a text for the model; see `Tokenizer.stop_ids`.
        if isinstance(found.get(name), list):
            found[name] = found[name][0] if found[name] else None
    return Fields(found, family)


def per_layer(
    config: DenoiserConfig,
    prefix: str,
    parts: Mapping[str, tuple[tuple[str, ...], bool]],
    *,
    only: bool | None = None,
) -> list[TensorSpec]:
    """Specs of the tensors that every layer, or every layer of a kind, has.

    Args:
        config: determines how layers are stacked.
        prefix: start of the names, with "{}" where the number of the layer goes.
        parts: end of the name -> (path inside the layer's parameters, transpose).
        only: True for layers with experts, False for those without, None for all.
    """
    return [
        TensorSpec(prefix.format(layer) + name, (run.name, *path), (layer - run.start,), transpose)
        for run in config.layer_runs
        if only in (None, run.has_experts)
        for name, (path, transpose) in parts.items()
        for layer in range(run.start, run.stop)
    ]


def per_expert(
    config: DenoiserConfig, prefix: str, parts: Mapping[str, tuple[str, ...]]
) -> list[TensorSpec]:
    """Specs of the matrices that every expert of every layer with experts has; see `per_layer`.

    `prefix` has "{}" for the layer and "{}" for the expert.
    """
    count = 0 if config.experts is None else config.experts.num_experts
    return [
        TensorSpec(
            prefix.format(layer, expert) + name,
            (run.name, *path),
            (layer - run.start, expert),
            transpose=True,
        )
        for run in config.layer_runs
        if run.has_experts
        for name, path in parts.items()
        for layer in range(run.start, run.stop)
        for expert in range(count)
    ]


TOKENS = ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id")


def shape_fields(fields: Fields, names: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `DenoiserConfig` that are fields of a `config.json`, and its special tokens.

    `names` has the field by the argument. Padding falls back to EOS.
    """
    found = {ours: fields(theirs) for ours, theirs in names.items()}
    found |= {name: float(found[name]) for name in ("rope_theta", "norm_eps")}
    if not isinstance(found["tie_embeddings"], bool):
        name = names["tie_embeddings"]
        raise ValueError(f"config.json: {name}={found['tie_embeddings']!r} must be true or false")
    for name in TOKENS:
        found[name] = fields.get(name)
    found |= {name: fields(name) for name in ("mask_token_id", "eos_token_id")}
    if found["pad_token_id"] is None:
        found["pad_token_id"] = found["eos_token_id"]
    return found


def written_fields(config: DenoiserConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `shape_fields`, with the type of the parameters."""
    fields = {theirs: getattr(config, ours) for ours, theirs in names.items()}
    fields |= {name: getattr(config, name) for name in TOKENS}
    return fields | {"torch_dtype": str(np.dtype(config.param_dtype))}


def check_head_width(config: DenoiserConfig) -> None:
    """Raises ValueError for a head width other than hidden_size / num_heads, for formats without a
    field for it.
    """
    if config.num_heads * config.head_dim != config.hidden_size:
        raise ValueError(
            f"head_dim={config.head_dim} with num_heads={config.num_heads} does not give "
            f"hidden_size={config.hidden_size}; the format of family {config.family!r} has no "
            "other head width"
        )


def experts_of(config: DenoiserConfig) -> ExpertsConfig:
    """The experts of a config whose format needs some; raises ValueError without."""
    if config.experts is None:
        raise ValueError(f"family={config.family!r} needs experts; the config has none")
    return config.experts
