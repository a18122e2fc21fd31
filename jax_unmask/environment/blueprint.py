"""A training step as shapes: the arrays that devices hold, the programs that run, their work."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jax_unmask.rollout import Prompts, row_keys
from jax_unmask.runtime.accelerators import Accelerator
from jax_unmask.runtime.placement import Placement

Tree = Any


@dataclasses.dataclass(frozen=True)
class TracedProgram:
    """One program of a training step.

    Attributes:
        name: what it does.
        lowered: the traced program (`jax.stages.Lowered`).
        has_denoiser: it runs the denoiser.
    """

    name: str
    lowered: Any
    has_denoiser: bool = True


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A training step as shapes in their places.

    Attributes:
        lasting: what devices hold from step to step, by name.
        passing: what one program of a step leaves for the next.
        trained: parameters that are trained.
        programs: in the order in which they run.
    """

    lasting: dict[str, Tree]
    passing: Tree
    trained: Tree
    programs: tuple[TracedProgram, ...]


ASSUMED_UTILISATION = 0.4
"""Share of the peak that a step is assumed to reach."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Matrix products of a step, in operations over all devices.

    Attributes:
        nfe: forwards that a row is assumed to need; 0 for recipes without rollouts.
        rollout: of the rollouts.
        update: of the update, its backward pass included.
    """

    nfe: int
    rollout: float
    update: float

    def seconds(self, device: Accelerator, devices: int) -> tuple[float, float]:
        """Seconds of rollout and update at `ASSUMED_UTILISATION`, were nothing ever waited for."""
        speed = device.flops * devices * ASSUMED_UTILISATION
        return self.rollout / speed, self.update / speed


def prompt_shapes(placement: Placement, rows: int, length: int) -> tuple[Any, Any]:
    """Prompts and keys of a batch."""
    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    mask = jax.ShapeDtypeStruct(tokens.shape, jnp.bool_)
    keys = jax.eval_shape(lambda key: row_keys(key, rows), jax.random.key(0))
    prompts: Any = Prompts(tokens=tokens, mask=mask)  # type: ignore[arg-type]
    return placement.rows((prompts, keys))


def bytes_per_device(tree: Tree) -> int:
    """Bytes of abstract arrays on one device."""

    def size(leaf: Any) -> int:
        shape, dtype = leaf.shape, leaf.dtype
        if leaf.sharding is not None:
            shape = leaf.sharding.shard_shape(shape)
        if jnp.issubdtype(dtype, jax.dtypes.prng_key):
            bits = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, dtype))
            shape, dtype = bits.shape, bits.dtype
        return math.prod(shape) * dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
