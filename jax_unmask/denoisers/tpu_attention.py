"""Attention on TPUs in one kernel, whose scores never reach memory; gradients too.

A program of the kernel has some queries of a head and all of its keys, so that their scores fit a
core's fast memory at one time. Heads are columns of arrays [B, S, H * d]: nothing is transposed or
padded, whatever the length. The keys that a query sees follow from one number per query and two
per key (`positions.Bounds`), so a mask of the size of the scores does not exist either.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.positions import Bounds
from jax_unmask.runtime.mesh import active, active_over, free_axes, on_each_device, spec

LANES = 128
"""Widths of heads are multiples of it."""
# Scores of one program, and fast memory of all of it.
_SCORES, _FAST_MEMORY = 512 * 1024, 64 * 2**20
_MOST_KEYS = 8192
# Scores of a layer, in bytes, that stay in the fast memory between plain products, too.
_SMALL = 32 * 2**20


def refusal(
    query: Float[Array, "B Q H d"] | jax.ShapeDtypeStruct,
    key: Float[Array, "B K G d"] | jax.ShapeDtypeStruct,
    small_too: bool = False,
) -> str:
    """The reason for plain products; empty where the kernel is to be taken.

    Plain products write their float32 scores to the device's memory and read them three times. Only
    small ones do not; then there is nothing to gain, unless `small_too` asks for the kernel.
    """
    batch, queries, heads, _ = query.shape
    mesh = active_over(batch)
    if mesh is None and active() is not None:
        return "its rows do not divide over the mesh"
    if key.shape[1] > _MOST_KEYS:
        return f"it has more than {_MOST_KEYS} keys"
    devices = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in free_axes(mesh))
    size = 4 * batch * heads * queries * key.shape[1] // devices
    if size <= _SMALL and not small_too:
        return f"its scores, {size / 1e6:.0f} MB, stay in fast memory"
    return ""


def attend(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    bounds: Bounds,
) -> Float[Array, "B Q H d"]:
    """`attention.attention` in one kernel. On a mesh each device has its rows and heads."""
    batch, keys = query.shape[0], key.shape[1]
    label = jnp.broadcast_to(bounds.label, (batch, query.shape[1]))
    low = jnp.broadcast_to(bounds.low, (batch, keys))
    high = jnp.full_like(low, jnp.iinfo(jnp.int32).max)
    if bounds.high is not None:
        high = jnp.broadcast_to(bounds.high, (batch, keys))
    inputs = (query, key, value, label, low, high)
    if active_over(batch) is None:
        return _attend(*inputs)
    heads, rows = spec("batch", None, "heads"), spec("batch")
    split = on_each_device(_attend, (heads, heads, heads, rows, rows, rows), heads, check_vma=False)
    out: Array = split(*inputs)
    return out


@jax.custom_vjp
def _attend(
    query: Float[Array, "B Q H d"],
    key: Float[Array, "B K G d"],
    value: Float[Array, "B K G d"],
    label: Int[Array, "B Q"],
    low: Int[Array, "B K"],
    high: Int[Array, "B K"],
) -> Float[Array, "B Q H d"]:
    call = _Grid(query, key)
    out: Array = call(
        _forward, call.inputs(query, key, value, label, low, high), [call.queries(query.dtype)]
    )[0]
    return out.reshape(query.shape)


def _attend_backward(inputs: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
    query, key, value, *_ = inputs
    call = _Grid(query, key)
    size = gradient.shape[1]
    of_query, of_key, of_value = call(
        functools.partial(_backward, size=size),
        [*call.inputs(*inputs), (call.columns(gradient), call.query_spec)],
        [call.queries(query.dtype), call.all_keys(key.dtype), call.all_keys(value.dtype)],
        # Sums over the queries of a head.
        scratch=[pltpu.VMEM((key.shape[1], key.shape[3]), jnp.float32)] * 2,
    )

    def of_group(x: Array) -> Array:
        """The sum over the query heads that share a key's head."""
        shared = x.reshape(*key.shape[:2], key.shape[2], -1, key.shape[3])
        return shared.sum(axis=3, dtype=jnp.float32).astype(x.dtype)

    return of_query.reshape(query.shape), of_group(of_key), of_group(of_value), None, None, None


_attend.defvjp(lambda *inputs: (_attend(*inputs), inputs), _attend_backward)


class _Grid:
    """Shapes and grid of a kernel: rows, query heads, blocks of queries."""

    def __init__(self, query: Array, key: Array) -> None:
        self.batch, self.length, self.heads, self.width = query.shape
        self.keys, groups = key.shape[1:3]
        share = self.heads // groups
        # Whole registers, unless it is all queries.
        block = max(_SCORES // self.keys // LANES * LANES, LANES)
        self.block = min(block, self.length)
        self.grid = (self.batch, self.heads, pl.cdiv(self.length, self.block))
        self.query_spec = pl.BlockSpec((None, self.block, self.width), lambda b, h, i: (b, i, h))
        # Query head h is served by key head h // (H / G).
        self.key_spec = pl.BlockSpec(
            (None, self.keys, self.width), lambda b, h, i: (b, 0, h // share)
        )
        self.own_key_spec = pl.BlockSpec((None, self.keys, self.width), lambda b, h, i: (b, 0, h))
        self.label_spec = pl.BlockSpec((None, self.block, 1), lambda b, h, i: (b, i, 0))
        self.bound_spec = pl.BlockSpec((None, 1, self.keys), lambda b, h, i: (b, 0, 0))

    @staticmethod
    def columns(x: Float[Array, "B S H d"]) -> Float[Array, "B S Hd"]:
        return x.reshape(*x.shape[:2], -1)

    def inputs(
        self, query: Array, key: Array, value: Array, label: Array, low: Array, high: Array
    ) -> list[tuple[Array, pl.BlockSpec]]:
        """The arrays of a kernel, with the block of each that a program has."""
        return [
            (self.columns(query), self.query_spec),
            (self.columns(key), self.key_spec),
            (self.columns(value), self.key_spec),
            (label[:, :, None], self.label_spec),
            (low[:, None], self.bound_spec),
            (high[:, None], self.bound_spec),
        ]

    def queries(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """A result for each query and head."""
        shape = (self.batch, self.length, self.heads * self.width)
        return jax.ShapeDtypeStruct(shape, dtype), self.query_spec

    def all_keys(self, dtype: Any) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        """A result for each key and query head."""
        shape = (self.batch, self.keys, self.heads * self.width)
        return jax.ShapeDtypeStruct(shape, dtype), self.own_key_spec

    def __call__(
        self,
        kernel: Callable[..., None],
        inputs: list[tuple[Array, pl.BlockSpec]],
        outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
        scratch: list[Any] | None = None,
    ) -> list[Array]:
        products = 2 if len(outputs) == 1 else 5
        scores = self.batch * self.heads * self.length * self.keys
        moved = [x for x, _ in inputs] + [x for x, _ in outputs]
        return pl.pallas_call(
            functools.partial(kernel, scale=self.width**-0.5),
            grid=self.grid,
            in_specs=[each for _, each in inputs],
            out_specs=[each for _, each in outputs],
            out_shape=[each for each, _ in outputs],
            scratch_shapes=scratch or [],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=_FAST_MEMORY,
            ),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * scores * self.width,
                transcendentals=scores,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
            ),
            name="attention",
        )(*(x for x, _ in inputs))


def _product(first: Array, second: Array, over: tuple[int, int]) -> Array:
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(first, second, dims, preferred_element_type=jnp.float32)


def _weights(
    query: Float[Array, "Q d"],
    key: Float[Array, "K d"],
    label: Int[Array, "Q 1"],
    low: Int[Array, "1 K"],
    high: Int[Array, "1 K"],
    scale: float,
) -> tuple[Float[Array, "Q K"], Float[Array, "Q 1"], Array]:
    """Weights, their sums, and which keys are seen."""
    scores = _product(query, key, (1, 1)) * scale
    seen = (label >= low) & (label <= high)
    # The lowest finite number: a query without any visible key must not become NaN.
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights, weights.sum(axis=-1, keepdims=True), seen


def _forward(
    query: Any, key: Any, value: Any, label: Any, low: Any, high: Any, out: Any, *, scale: float
) -> None:
    weights, total, _ = _weights(query[...], key[...], label[...], low[...], high[...], scale)
    weighted = _product(weights.astype(value.dtype), value[...], (1, 0))
    out[...] = (weighted / total).astype(out.dtype)


def _backward(
    query: Any,
    key: Any,
    value: Any,
    label: Any,
    low: Any,
    high: Any,
    gradient: Any,
    of_query: Any,
    of_key: Any,
    of_value: Any,
    key_sum: Any,
    value_sum: Any,
    *,
    scale: float,
    size: int,
) -> None:
    number, block = pl.program_id(2), query.shape[0]

    @pl.when(number == 0)
    def _() -> None:
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    # The last block may end after the queries: what stands there must not reach the sums.
    place = number * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    queries = jnp.where(place < size, query[...], 0)
    given = jnp.where(place < size, gradient[...], 0)
    weights, total, seen = _weights(queries, key[...], label[...], low[...], high[...], scale)
    weights = weights / total
    narrow = weights.astype(value.dtype)
    value_sum[...] += _product(narrow, given, (0, 0))
    of_weights = _product(given, value[...], (1, 1))
    mean = (weights * of_weights).sum(axis=-1, keepdims=True)
    of_scores = jnp.where(seen, weights * (of_weights - mean) * scale, 0.0).astype(key.dtype)
    of_query[...] = _product(of_scores, key[...], (1, 0)).astype(of_query.dtype)
    key_sum[...] += _product(of_scores, queries, (0, 0))

    @pl.when(number == pl.num_programs(2) - 1)
    def _() -> None:
        of_key[...] = key_sum[...].astype(of_key.dtype)
        of_value[...] = value_sum[...].astype(of_value.dtype)
