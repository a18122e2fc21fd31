"""Layout of the parameters of every denoiser on a mesh, and products with them there.

One table for all families: layers are stacked, so each parameter has its layer first. Trees derived
from parameters (optimiser moments, averages, the value model) have the same names at the end of
their paths, and so the same layout.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.quantization import is_quantized
from jax_unmask.runtime.mesh import (
    Rules,
    active,
    active_over,
    constrain,
    on_each_device,
    param_shardings,
    spec,
)
from jax_unmask.settings import ConfigError

Names = tuple[str | None, str | None]
Tree = TypeVar("Tree")

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


def keep(tree: Tree) -> Tree:
    """Constrains a tree of parameters to the layout of `RULES`, inside `jax.jit`.

    A step then returns parameters laid out as the next step takes them.
    """
    mesh = active()
    if mesh is None:
        return tree
    shardings = param_shardings(tree, RULES, mesh)
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def in_product_type(params: Tree, dtype: Any) -> Tree:
    """Parameters with all matrices in the type in which products take them anyway.

    Not for quantised ones. Those that already are of that type stay what they are.
    """

    def convert(path: jax.tree_util.KeyPath, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_matrix = any(len(spec) and re.search(pattern, name) for pattern, spec in RULES)
        return leaf.astype(dtype) if is_matrix and leaf.dtype != dtype else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def gathered(kernel: Any, names: Names, dtype: Any) -> Any:
    """A matrix ready for a product: gathered along the fsdp axis, sharded along the tensor axis.

    It is gathered in the type of the product. Its gradient is reduced straight to the shards that
    the parameter is stored in. A quantised one [I, O] stays that. `names` are those of `LINEAR`.
    """
    if active() is None:
        return kernel if is_quantized(kernel) else kernel.astype(dtype)
    if is_quantized(kernel):  # Its scales are small, and follow by themselves.
        return kernel.replace(qvalue=_whole(kernel.qvalue, names))
    return _gathered(kernel, names, jnp.dtype(dtype), kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gathered(kernel: Array, names: Names, dtype: Any, stored: Any) -> Array:
    return _whole(kernel.astype(dtype), names)


def _whole(kernel: Array, names: Names) -> Array:
    return constrain(kernel, *(None if name == "embed" else name for name in names))


_gathered.defvjp(
    lambda kernel, names, dtype, stored: (_whole(kernel.astype(dtype), names), None),
    lambda names, dtype, stored, _, gradient: (constrain(gradient.astype(stored), *names),),
)


def look_up(table: Float[Array, "V D"], tokens: Int[Array, " N"]) -> Float[Array, "N D"]:
    """Rows of an embedding table, `table[tokens]`.

    On a mesh every device looks its group's tokens up in its own shard of the table: rows are sent,
    not the table.
    """
    mesh = active_over(tokens.shape[0])
    if mesh is None:
        return jnp.take(table, tokens, axis=0)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]

    def of_shard(table: Array, tokens: Array) -> Array:
        if fsdp > 1:
            tokens = jax.lax.all_gather(tokens, "fsdp", tiled=True)
        if tensor > 1:
            tokens = tokens - jax.lax.axis_index("tensor") * table.shape[0]
            is_here = (tokens >= 0) & (tokens < table.shape[0])
            rows = jnp.take(table, jnp.where(is_here, tokens, 0), axis=0)
            rows = jnp.where(is_here[:, None], rows, 0)
        else:
            rows = jnp.take(table, tokens, axis=0)
        rows = jax.lax.psum(rows, "tensor")
        if fsdp > 1:
            rows = jax.lax.all_to_all(rows, "fsdp", split_axis=0, concat_axis=1, tiled=True)
        return rows

    split = on_each_device(of_shard, (spec("vocab", "embed"), spec("batch")), spec("batch"))
    return split(table, tokens)


def check_mesh(config: DenoiserConfig, mesh: Mesh | None) -> None:
    """Raises ConfigError for a mesh axis that does not divide a dimension which it shards."""
    if mesh is None:
        return
    inner = ("num_heads", "num_kv_heads", "intermediate_size", "vocab_size")
    sizes = [("tensor", name, getattr(config, name)) for name in inner]
    sizes.append(("fsdp", "hidden_size", config.hidden_size))
    if config.experts is not None:
        sizes.append(("tensor", "size of an expert", config.experts.size))
        sizes.append(("tensor", "size of the shared expert", config.experts.shared_size))
    for axis, name, size in sizes:
        shards = mesh.shape[axis]
        if size % shards:
            problem = f"it does not divide the denoiser's {name} = {size}"
            raise ConfigError(f"mesh.{axis}", shards, problem, "Give a divisor of it")
