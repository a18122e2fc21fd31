"""Names and layout of policy tensors in the PyTorch reference's files."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jax_unmask.policies.hidden_network import HiddenNetworkConfig
from jax_unmask.policies.layers import ROPE_BASE
from jax_unmask.policies.network import NetworkConfig


@dataclasses.dataclass(frozen=True)
class PolicyTensor:
    """One tensor of the file and the parameter that it is stored in.

    Attributes:
        name: name in the file, without prefix.
        path: where the parameter lies in the nested params.
        transpose: the file holds [out, in], the parameter [in, out].
        part: (index, count) if the tensor is one of several that share the parameter's last axis.
    """

    name: str
    path: tuple[str, ...]
    transpose: bool = False
    part: tuple[int, int] = (0, 1)

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape in the file of (the slice of) a parameter of the given shape."""
        shape = (*shape[:-1], shape[-1] // self.part[1])
        return shape[::-1] if self.transpose else shape

    def write(self, param: jax.Array) -> np.ndarray:
        """The tensor in the layout of the file."""
        index, count = self.part
        value = np.split(np.asarray(param, np.float32), count, axis=-1)[index]
        return np.ascontiguousarray(value.T if self.transpose else value)


def tensor_specs(config: Any, paths: Iterable[tuple[str, ...]]) -> list[PolicyTensor]:
    """Every trained tensor of a network, in the order of the parameter's slices.

    Args:
        config: the network.
        paths: its parameters, for networks that the reference does not have: their tensors are
            called as the parameters are.
    """
    if isinstance(config, HiddenNetworkConfig):
        return _hidden_specs(config)
    if not isinstance(config, NetworkConfig):
        return [PolicyTensor(".".join(path), path) for path in paths]
    specs = [*_conditioner(), *_linear("confidence_proj", ("features",))]
    if config.token_buckets:
        specs.append(PolicyTensor("token_embedding.weight", ("token_embedding",)))
    if config.position_embedding:
        specs.append(PolicyTensor("position_embedding.weight", ("position_embedding",)))
    if config.hidden_size:
        specs += _linear("hidden_proj", ("hidden",))
    for index in range(config.num_blocks):
        name, path = f"transformer_blocks.{index}", f"block_{index}"
        for part, projection in enumerate(("q_proj", "k_proj", "v_proj")):
            specs += _linear(f"{name}.{projection}", (path, "qkv"), (part, 3))
        for theirs, ours in (
            ("out_proj", "out"),
            ("linear1", "up"),
            ("linear2", "down"),
            ("ada_conditioning", "modulation"),
        ):
            specs += _linear(f"{name}.{theirs}", (path, ours))
        for norm in ("norm1", "norm2"):
            specs += _norm(f"{name}.{norm}", (path, norm))
        for kind in ("pair", "rank", "candidate"):
            if getattr(config, f"{kind}_attention"):
                specs.append(PolicyTensor(f"{name}.{kind}_bias", (path, f"{kind}_bias")))
    if config.take_back:
        specs += _linear("take_back_proj", ("take_back",))
    return [*specs, *_norm("final_norm", ("final_norm",)), *_linear("output_proj", ("output",))]


def buffers(config: Any) -> dict[str, np.ndarray]:
    """Constants that the reference saves along with the weights (rotary frequencies)."""
    if not isinstance(config, NetworkConfig):
        return {}
    head_dim = config.hidden_dim // config.num_heads
    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
    frequencies = (ROPE_BASE**-exponent).astype(np.float32)
    return {
        f"transformer_blocks.{index}.inv_freq": frequencies for index in range(config.num_blocks)
    }


def _hidden_specs(config: HiddenNetworkConfig) -> list[PolicyTensor]:
    specs = _conditioner()
    for index in range(config.num_blocks + 1):
        specs += _norm(f"norms.{index}", (f"norm_{index}",))
        specs += _linear(f"ada_linears.{index}", (f"modulation_{index}",))
    for index in range(config.num_blocks):
        name, path = f"transformer_blocks.{index}", f"block_{index}"
        for theirs, ours in (("attn_norm", "attention_norm"), ("ff_norm", "mlp_norm")):
            specs.append(PolicyTensor(f"{name}.{theirs}.weight", (path, ours, "scale")))
        for theirs, ours in (
            ("q_proj", "query"),
            ("k_proj", "key"),
            ("v_proj", "value"),
            ("attn_out", "attention_out"),
            ("ff_proj", "gate"),
            ("up_proj", "up"),
            ("ff_out", "down"),
        ):
            specs.append(PolicyTensor(f"{name}.{theirs}.weight", (path, ours, "kernel"), True))
    return [*specs, *_linear("output_proj", ("output",))]


def _conditioner() -> list[PolicyTensor]:
    return [
        *_linear("time_mlp.0", ("conditioner", "time_in")),
        *_linear("time_mlp.2", ("conditioner", "time_out")),
        PolicyTensor("mask_embedding.weight", ("conditioner", "mask_embedding")),
    ]


def _linear(name: str, path: tuple[str, ...], part: tuple[int, int] = (0, 1)) -> list[PolicyTensor]:
    return [
        PolicyTensor(f"{name}.weight", (*path, "kernel"), True, part),
        PolicyTensor(f"{name}.bias", (*path, "bias"), False, part),
    ]


def _norm(name: str, path: tuple[str, ...]) -> list[PolicyTensor]:
    return [
        PolicyTensor(f"{name}.weight", (*path, "scale")),
        PolicyTensor(f"{name}.bias", (*path, "bias")),
    ]
