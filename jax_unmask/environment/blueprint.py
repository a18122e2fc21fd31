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
    """One program of a training step."""

    name: str
    lowered: Any  # jax.stages.Lowered
    has_denoiser: bool = True  # It runs the denoiser.


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A training step as shapes in their places."""

    lasting: dict[str, Tree]  # What devices hold from step to step, by name.
    passing: Tree  # What one program of a step leaves for the next.
    trained: Tree  # Parameters that are trained.
    programs: tuple[TracedProgram, ...]  # In the order in which they run.


ASSUMED_UTILISATION = 0.4
"""Share of the peak that a step is assumed to reach."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Matrix products of a step, in operations over all devices."""

    nfe: int  # Forwards that a row is assumed to need; 0 for recipes without rollouts.
    rollout: float
    update: float  # With its backward pass.

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
