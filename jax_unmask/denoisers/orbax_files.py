"""The weights of a model directory as an Orbax checkpoint: reading and writing."""

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jax_unmask.denoisers.tensor_files import Path, check_shapes, is_finite, not_finite, widest
from jax_unmask.denoisers.transformer import Params
from jax_unmask.runtime.files import named

ORBAX_ITEM = "params"


def has_orbax_files(directory: pathlib.Path) -> bool:
    """Whether a directory contains weights as an Orbax checkpoint."""
    return (directory / ORBAX_ITEM).is_dir()


def new_orbax_item(directory: pathlib.Path) -> pathlib.Path:
    """The directory for new weights of a model.

    Raises:
        FileExistsError: the model directory already holds a checkpoint.
    """
    item = directory.absolute() / ORBAX_ITEM
    if item.exists():
        raise FileExistsError(f"{item} exists already; choose another directory or remove it")
    return item


def write_orbax_item(item: pathlib.Path, params: Params) -> None:
    """Writes parameters as they are in memory; sharded ones by the processes that hold them."""
    import orbax.checkpoint as ocp  # 1.6 s; most uses of a denoiser need none of it.

    with named(item), ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(item, params)


def read_orbax_files(
    directory: pathlib.Path,
    expected: Params,
    param_dtype: DTypeLike | None = None,
    *,
    keeping: Collection[Path] = (),
    places: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> tuple[Params, DTypeLike]:
    """The parameters of a model directory, and their type.

    Args:
        directory: the model directory.
        expected: shapes of the parameters that its config calls for.
        param_dtype: type of the parameters; by default the widest that is stored.
        keeping: parameters that keep the type in which they are stored.
        places: shardings; parameters without one go to the first device.

    Raises:
        ValueError: the checkpoint is damaged, or holds other tensors than the expected ones.
    """
    import orbax.checkpoint as ocp

    item = directory.absolute() / ORBAX_ITEM
    with ocp.StandardCheckpointer() as checkpointer:
        stored = check_orbax_files(directory, expected)
        if param_dtype is None:
            param_dtype = widest(dtype for path, dtype in stored.items() if path not in keeping)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {
            path: jax.ShapeDtypeStruct(
                leaf.shape,
                stored[path] if path in keeping else param_dtype,
                sharding=(places or {}).get(path, device),
            )
            for path, leaf in flatten_dict(expected).items()
        }
        with _complete(directory):
            params = checkpointer.restore(item, unflatten_dict(target))
    for path, leaf in flatten_dict(params).items():
        # Each process looks at its shards: in a collective, it would wait for those that read.
        shards = (shard for shard in leaf.addressable_shards if shard.replica_id == 0)
        if not all(is_finite(np.asarray(shard.data)) for shard in shards):
            narrowed = stored[path] != leaf.dtype
            raise not_finite(directory, "/".join(path), param_dtype if narrowed else None)
    return params, param_dtype


def check_orbax_files(directory: pathlib.Path, expected: Params) -> dict[Path, np.dtype]:
    """The type of each parameter of a model directory, by the checkpoint's description.

    Raises: as `read_orbax_files`.
    """
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer, _complete(directory):
        metadata = checkpointer.metadata(directory.absolute() / ORBAX_ITEM).item_metadata
        if metadata is None:
            raise EOFError("its description is damaged")
    check_shapes(shapes_of(metadata.tree), shapes_of(expected), directory)
    return {path: leaf.dtype for path, leaf in flatten_dict(metadata.tree).items()}


def shapes_of(params: Params) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by its path, as text."""
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(params, sep="/").items()}


@contextlib.contextmanager
def _complete(directory: pathlib.Path) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise over damaged files into one ValueError."""
    try:
        yield
    except Exception as error:  # They raise bare Exceptions among others.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{directory} is not a complete Orbax checkpoint ({reason}); copy it again, or convert "
            "the model again with jax_unmask.convert"
        ) from error
