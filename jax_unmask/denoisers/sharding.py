"""The rules that lay the parameters of every denoiser out on a mesh.

One table for all families: layers are stacked, so each parameter has its layer first. What is
derived from parameters has their names at the end of its path, and so follows them: optimiser
moments, averages, the value model, what the rollouts are given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jax.sharding import Mesh, PartitionSpec

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.runtime.config import ConfigError
from jax_unmask.runtime.mesh import Rules, spec

Names = tuple[str | None, str | None]

LINEAR: dict[str, Names] = {
    r"(query|key|value)": ("embed", "heads"),
    r"attention_out": ("heads", "embed"),
    r"(shared_)?(gate|up)": ("embed", "mlp"),
    r"(shared_)?down": ("mlp", "embed"),
}
"""Names of the inputs and outputs of each linear map."""


def linear_axes(name: str) -> Names:
    """Names of the inputs and outputs of a linear map, see `LINEAR`."""
    for pattern, names in LINEAR.items():
        if re.fullmatch(pattern, name):
            return names
    raise ValueError(f"linear map {name!r} has no sharding rule; add one to LINEAR")


def _rules() -> Iterator[tuple[str, PartitionSpec]]:
    # The head of a value model is a vector, and shares its name with the output projection.
    yield r"(^|/)value/(.*/)?head$", spec()
    yield r"(^|/)(embedding|head)$", spec("vocab", "embed")
    for pattern, (inputs, outputs) in LINEAR.items():
        yield rf"(^|/)experts/{pattern}$", spec(None, None, inputs, outputs)
        yield rf"(^|/){pattern}/kernel$", spec(None, inputs, outputs)
        yield rf"(^|/){pattern}/bias$", spec(None, outputs)
        yield rf"(^|/){pattern}/lora_a$", spec(None, inputs, None)
        yield rf"(^|/){pattern}/lora_b$", spec(None, None, outputs)
    # Norms, routers, counters, keys, unmasking policies.
    yield ".*", spec()


RULES: Rules = tuple(_rules())


def check_mesh(config: DenoiserConfig, mesh: Mesh | None) -> None:
    """Refuses a mesh that does not divide what it spreads of a denoiser.

    Raises:
        ConfigError: names the axis, its size and the dimension.
    """
    if mesh is None:
        return
    inner = {"intermediate_size": config.intermediate_size}
    if config.experts is not None:
        inner["size of an expert"] = config.experts.size
        inner["size of the shared expert"] = config.experts.shared_size or 0
    spread = {
        "tensor": {
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            **inner,
            "vocab_size": config.vocab_size,
        },
        "fsdp": {"hidden_size": config.hidden_size},
    }
    for axis, sizes in spread.items():
        parts = mesh.shape[axis]
        for name, size in sizes.items():
            if size % parts:
                raise ConfigError(
                    f"mesh.{axis}",
                    parts,
                    f"it does not divide the denoiser's {name} = {size}",
                    "Give a divisor of it",
                )
