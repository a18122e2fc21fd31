"""The reductions of the head on TPUs in one kernel, whose logits never reach memory.

A program of the kernel has a block of positions, which stay in a core's fast memory, and one tile
of the vocabulary after the other. Each of the 128 lanes of a register reduces its own tokens;
`reduce` merges the lanes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jax_unmask.runtime import accelerators
from jax_unmask.runtime.mesh import active

LANES = 128
MOST_PROBABLE = 4
"""Largest number of largest logits that it keeps."""
# Most positions of a program, and of one product of it; tokens of a tile; fast memory.
_POSITIONS, _ROWS, _TOKENS, _FAST_MEMORY = 1024, 512, 512, 64 * 2**20
_BFLOAT16_ROWS = 16  # Of one register.


class Lanes(NamedTuple):
    """Reductions of N positions over the tokens of each lane."""

    top: tuple[Float[Array, "N 128"], ...]  # The largest logits, descending.
    mass: Float[Array, "N 128"]  # Sum of exp(logit - maximum).
    moment: Float[Array, "N 128"] | None  # Sum of exp(logit - maximum) * (logit - maximum).
    best: Float[Array, "N 128"]  # Largest logit of a token that may be a candidate.
    candidate: Int[Array, "N 128"]  # That token, the first of equals.


def takes(
    table: Float[Array, "V D"], hidden: Float[Array, "*B D"], top_k: int, temperature: float
) -> bool:
    """Whether the kernel is taken for these arrays of one device."""
    if accelerators.platform() != "tpu" or temperature > 0 or top_k > MOST_PROBABLE:
        return False
    # Cores of the fourth generation have too little fast memory. A product whose rows do not
    # divide over the mesh is the compiler's to spread.
    if "v4" in accelerators.devices()[0].device_kind or active() is not None:
        return False
    size, width = table.shape
    is_short = table.dtype == hidden.dtype == jnp.bfloat16
    # Two blocks of each are in fast memory.
    fits = 4 * width * (_POSITIONS + _TOKENS) <= _FAST_MEMORY * 3 // 4
    return is_short and fits and width % LANES == 0 and size >= _TOKENS


def reduce(
    table: Float[Array, "V D"],
    hidden: Float[Array, "N D"],
    top_k: int,
    entropy: bool,
    forbidden: Int[Array, ""] | int,
) -> Lanes:
    """Reductions of each lane's tokens; `forbidden` is no candidate.

    Tokens are numbered from 0, the first row of the table.
    """
    count, width = hidden.shape
    size = table.shape[0]
    # As even as possible: what a last block has too many is computed, too.
    share = pl.cdiv(count, pl.cdiv(count, _POSITIONS))
    groups, height = pl.cdiv(share, _ROWS), count
    if count > _ROWS:
        height = pl.cdiv(pl.cdiv(share, groups), _BFLOAT16_ROWS) * _BFLOAT16_ROWS
    block = groups * height
    of_block = pl.BlockSpec((block, LANES), lambda i, j, _: (i, 0))
    number: Any = jax.ShapeDtypeStruct((count, LANES), jnp.float32)
    token: Any = jax.ShapeDtypeStruct((count, LANES), jnp.int32)
    out = Lanes((number,) * top_k, number, number if entropy else None, number, token)
    leaves, structure = jax.tree.flatten(out)
    kernel = functools.partial(_kernel, size=size, height=height, structure=structure)
    found = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(count, block), pl.cdiv(size, _TOKENS)),
            in_specs=[
                pl.BlockSpec((block, width), lambda i, j, _: (i, 0)),
                pl.BlockSpec((_TOKENS, width), lambda i, j, _: (j, 0)),
            ],
            out_specs=[of_block] * len(leaves),
        ),
        out_shape=leaves,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_FAST_MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * count * size * width,
            transcendentals=count * size,
            bytes_accessed=2 * width * (count + size * pl.cdiv(count, block)),
        ),
        name="head",
    )(jnp.reshape(forbidden, (1,)).astype(jnp.int32), hidden, table)
    lanes: Lanes = jax.tree.unflatten(structure, found)
    return lanes


def _kernel(
    forbidden: Any, hidden: Any, table: Any, *refs: Any, size: int, height: int, structure: Any
) -> None:
    out: Lanes = jax.tree.unflatten(structure, refs)
    tile = pl.program_id(1)
    lowest = jnp.finfo(jnp.float32).min

    @pl.when(tile == 0)
    def _() -> None:
        for number, top in enumerate(out.top):
            top[...] = jnp.full_like(top, -jnp.inf if number else lowest)
        for zero in (out.mass, out.moment):
            if zero is not None:
                zero[...] = jnp.zeros_like(zero)
        out.best[...] = jnp.full_like(out.best, lowest)
        out.candidate[...] = jnp.zeros_like(out.candidate)

    tokens = table.shape[0]

    def of_rows(group: Array, _: None) -> None:
        rows = pl.ds(group * height, height)
        logits = jax.lax.dot_general(
            hidden[rows], table[...], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        lane = jax.lax.broadcasted_iota(jnp.int32, (height, LANES), 1)
        first = tile * tokens + lane
        pieces = []
        for column in range(0, tokens, LANES):
            piece = logits[:, column : column + LANES]
            if size % tokens:  # The last tile ends after the vocabulary.
                piece = jnp.where(first + column < size, piece, -jnp.inf)
            pieces.append(piece)
        # 1. The largest logits.
        before = out.top[0][rows]
        top = [each[rows] for each in out.top]
        for piece in pieces:
            for number in range(len(top)):
                larger = jnp.maximum(top[number], piece)
                if number < len(top) - 1:
                    piece = jnp.minimum(top[number], piece)
                top[number] = larger
        for ref, each in zip(out.top, top, strict=True):
            ref[rows] = each
        # 2. Sums, relative to the maximum so far.
        drop = jnp.maximum(before - top[0], lowest)
        scale, mass = jnp.exp(drop), out.mass[rows]
        moment = None if out.moment is None else (out.moment[rows] + mass * drop) * scale
        mass = mass * scale
        for piece in pieces:
            shifted = piece - top[0]
            weight = jnp.exp(shifted)
            mass += weight
            if moment is not None:
                moment += jnp.where(weight > 0, weight * shifted, 0.0)
        out.mass[rows] = mass
        if moment is not None and out.moment is not None:
            out.moment[rows] = moment
        # 3. The best token, the first of equals, and its logit.
        best, candidate = out.best[rows], out.candidate[rows]
        for number, piece in enumerate(pieces):
            token = first + number * LANES
            better = (piece > best) & (token != forbidden[0])
            best = jnp.where(better, piece, best)
            candidate = jnp.where(better, token, candidate)
        out.best[rows], out.candidate[rows] = best, candidate

    jax.lax.fori_loop(0, hidden.shape[0] // height, of_rows, None)
