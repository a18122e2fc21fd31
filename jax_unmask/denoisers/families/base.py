"""The interface of a family, and the mapping of its checkpoint tensors to parameters."""

from __future__ import annotations

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

    Attributes:
        name: its name in the safetensors files.
        path: the parameter that it fills, as keys of the nested dict.
        index: its place on the parameter's leading axes: (layer,), or (layer, expert); () for a
            parameter by itself.
        transpose: the file holds [out, in] and the parameter [in, out].
        keeps_dtype: stays in the type in which it is stored, whatever the others are given (a
            buffer that the published code keeps in float32).
    """

    name: str
    path: tuple[str, ...]
    index: tuple[int, ...] = ()
    transpose: bool = False
    keeps_dtype: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A published checkpoint format.

    Attributes:
        name: `DenoiserConfig.family` of its models.
        model_types: values of `model_type` that its `config.json` files have; the first is written.
        architectures: names of its published classes; the first is written.
        config_from_hf: reads a parsed `config.json`.
        config_to_hf: writes one, complete enough for the published class.
        tensors: every tensor of a checkpoint.
        published: `config.json` by hub name: what planning needs to know of a model that is not
            here yet. Loading a model reads its own file instead.
        chat_template: Jinja template of tokenizers that come without one, or None.
        template_tokens: special tokens that the template writes.
        turn_ends: tokens that end an answer, beside the EOS token.
        mask_token_ids: id of the mask token by vocabulary size, for published models whose
            `config.json` does not give it.
        draws_from_filtered: its published sampler takes confidences from the distribution that
            tokens are drawn from (after temperature, top-k and top-p), not from the denoiser's own.
        top_p_first: its published sampler applies top-p before top-k.
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    config_from_hf: Callable[[Mapping[str, Any]], DenoiserConfig]
    config_to_hf: Callable[[DenoiserConfig], dict[str, Any]]
    tensors: Callable[[DenoiserConfig], list[TensorSpec]]
    published: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    chat_template: str | None = None
    template_tokens: tuple[str, ...] = ()
    turn_ends: tuple[str, ...] = ()
    mask_token_ids: Mapping[int, int] = dataclasses.field(default_factory=dict)
    draws_from_filtered: bool = False
    top_p_first: bool = False


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
        TensorSpec(
            prefix.format(layer) + name,
            (run.name, *path),
            index=(layer - run.start,),
            transpose=transpose,
        )
        for run in config.layer_runs
        if only in (None, run.has_experts)
        for name, (path, transpose) in parts.items()
        for layer in range(run.start, run.stop)
    ]


def per_expert(
    config: DenoiserConfig, prefix: str, parts: Mapping[str, tuple[str, ...]]
) -> list[TensorSpec]:
    """Specs of the matrices that every expert of every layer with experts has.

    Args:
        config: determines how layers are stacked.
        prefix: start of the names, with "{}" for the layer and "{}" for the expert.
        parts: end of the name -> path inside the layer's parameters.
    """
    count = 0 if config.experts is None else config.experts.num_experts
    return [
        TensorSpec(
            prefix.format(layer, expert) + name,
            (run.name, *path),
            index=(layer - run.start, expert),
            transpose=True,
        )
        for run in config.layer_runs
        if run.has_experts
        for name, path in parts.items()
        for layer in range(run.start, run.stop)
        for expert in range(count)
    ]


TOKENS = {name: name for name in ("mask_token_id", "eos_token_id", "pad_token_id", "bos_token_id")}


def token_fields(fields: Fields) -> dict[str, Any]:
    """The special tokens of a config; padding falls back to EOS."""
    eos = fields("eos_token_id")
    return {
        "mask_token_id": fields("mask_token_id"),
        "eos_token_id": eos,
        "pad_token_id": fields.get("pad_token_id", eos),
        "bos_token_id": fields.get("bos_token_id"),
    }


def shape_fields(fields: Fields, names: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `DenoiserConfig` that are fields of a `config.json`, and its special tokens.

    Args:
        fields: the fields.
        names: name of the field by name of the argument.
    """
    found = {ours: fields(theirs) for ours, theirs in names.items()}
    floats = {name: float(found[name]) for name in ("rope_theta", "norm_eps")}
    return (
        found | floats | {"tie_embeddings": bool(found["tie_embeddings"]), **token_fields(fields)}
    )


def written_fields(config: DenoiserConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `shape_fields`, with the type of the parameters."""
    fields = {theirs: getattr(config, ours) for ours, theirs in {**names, **TOKENS}.items()}
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
