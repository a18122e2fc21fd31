"""The safetensors files of a checkpoint, one tensor at a time, and the parameters in them."""

import json
import math
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from jax_unmask.denoisers.families.base import TensorSpec
from jax_unmask.denoisers.hub import read_json
from jax_unmask.runtime.files import atomic_write, replacing
from jax_unmask.runtime.placement import to_host

Path = tuple[str, ...]
Index = tuple[slice, ...]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_SHARD_BYTES = 5 * 10**9

_LISTED = 8  # Problems that an error message spells out before it counts the rest.
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}


# Prefixes that wrappers put before all names.
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.)+")
_BUFFERS = re.compile(
    r"(?:^|\.)(?:rotary_emb\.(?:(?:original_)?inv_freq|cos_cached|sin_cached)|position_ids"
    r"|masked_bias|causal_mask|attention_bias_cache)$"
)


class TensorFiles:
    """The tensors of a checkpoint directory: one file, or shards with an index.

    The files are memory-mapped; a tensor takes memory only when it is read.

    Attributes:
        shapes: shape of every tensor by name.
        dtypes: type of every tensor by name; as text if it is none that parameters have.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Opens the files and reads their headers.

        Raises:
            FileNotFoundError: no weights, or a shard of the index is missing.
            ValueError: a file is corrupt, or the index disagrees with its shards.
        """
        self._handles: dict[str, Any] = {}
        self._stored: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, Any] = {}
        self.directory = directory
        for path, promised in _files(directory).items():
            self._open(path, promised)

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor as stored, or only the slice `index` of it."""
        whole = tuple(slice(0, size) for size in self.shapes[name])
        stored = self._stored.get(name, name)
        if index is None or index == whole:
            return self._handles[stored].get_tensor(stored)
        return self._handles[stored].get_slice(stored)[index]

    def reconcile(
        self,
        expected: Mapping[str, tuple[int, ...]],
        copies: Mapping[str, str],
        theta: float | None = None,
    ) -> None:
        """Gives tensors their expected names, and forgets redundant ones.

        Wrappers put prefixes before all names (`module.`); some savers write a tied matrix twice,
        or only under its other name; older ones write buffers that follow from the config.

        Args:
            expected: shape of every tensor that there should be.
            copies: names under which a tied tensor may stand, with its expected one.
            theta: base of the rotary frequencies, which stored ones are compared with.

        Raises:
            ValueError: a copy, or a buffer, differs from what it should be; tensors are missing,
                unexpected or of other shapes; or one is not floating point.
        """
        for name in sorted(self.shapes.keys() - expected.keys()):
            plain = _PREFIX.sub("", name)
            target = plain if plain in expected else copies.get(plain)
            if target is None:
                if not _BUFFERS.search(plain):
                    continue
                self._check_frequencies(name, theta)
            elif target not in self.shapes:
                self._stored[target] = self._stored.get(name, name)
                self.shapes[target], self.dtypes[target] = self.shapes[name], self.dtypes[name]
            elif self.shapes[name] != self.shapes[target] or not self._equal(name, target):
                raise ValueError(
                    f"{self.directory}: tensors {name} and {target} must be one matrix (by "
                    "config.json, or by their names), but differ; remove the one that is out of "
                    "date, or correct tie_word_embeddings (weight_tying)"
                )
            del self.shapes[name], self.dtypes[name]
        check_shapes(self.shapes, expected, self.directory)
        for name, dtype in self.dtypes.items():
            if isinstance(dtype, str):
                raise ValueError(
                    f"{self.directory}: tensor {name} has type {dtype}; only {', '.join(_DTYPES)} "
                    "are supported (quantised weights are not)"
                )

    def _equal(self, name: str, other: str) -> bool:
        """Whether two tensors of one shape are equal, read a few rows at a time."""
        rows = self.shapes[name][0] if self.shapes[name] else 1
        parts = [slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096)]
        read = lambda each, at: self.read(each, (at,) if rows > 4096 else None)
        return all(np.array_equal(read(name, at), read(other, at)) for at in parts)

    def _check_frequencies(self, name: str, theta: float | None) -> None:
        """Refuses stored rotary frequencies that are not those of the config."""
        if not name.endswith("inv_freq") or theta is None or isinstance(self.dtypes[name], str):
            return
        found = self.read(name).astype(np.float64)
        expected = theta ** -(np.arange(found.size) / found.size)
        if not np.allclose(found, expected, rtol=0.01):
            raise ValueError(
                f"{self.directory}: tensor {name} holds other rotary frequencies than those of "
                f"rope_theta={theta} in config.json; remove the tensor, or correct the field"
            )

    def _open(self, path: pathlib.Path, promised: set[str] | None) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing, though {INDEX} names it")
        try:
            handle = safetensors.safe_open(path, framework="np")
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(
                f"{path} is not a complete safetensors file ({error}); copy or download it again"
            ) from error
        names = set(handle.keys())
        if promised is not None and promised != names:
            different = sorted(promised ^ names)
            raise ValueError(
                f"{path} and {INDEX} disagree about {len(different)} tensors, e.g. {different[0]}"
            )
        for name in names:
            info = handle.get_slice(name)
            self._handles[name] = handle
            self.shapes[name] = tuple(info.get_shape())
            self.dtypes[name] = _DTYPES.get(info.get_dtype(), info.get_dtype())


class TensorMap:
    """Map between the tensors of a checkpoint file and parameters.

    Attributes:
        shapes: shape in the file of every tensor by name.
        paths: all parameters.
        keeping: the parameters that keep the type in which they are stored.
        names: names of the tensors of these parameters.
    """

    def __init__(self, specs: Iterable[TensorSpec], params: Mapping[str, Any]) -> None:
        """Maps the tensors `specs` to parameters of the shapes of `params` (a nested dict)."""
        self._parameters = flatten_dict(params)
        self._by_name: dict[str, list[TensorSpec]] = defaultdict(list)
        self._by_path: dict[Path, list[TensorSpec]] = defaultdict(list)
        for spec in specs:
            self._by_name[spec.name].append(spec)
            self._by_path[spec.path].append(spec)
        self.shapes = {name: self._shape(parts) for name, parts in self._by_name.items()}
        self.paths = list(self._by_path)
        self.keeping = {
            path for path, parts in self._by_path.items() if any(p.keeps_dtype for p in parts)
        }
        self.names = {spec.name for path in self.keeping for spec in self._by_path[path]}

    def read(
        self, path: Path, files: TensorFiles, dtype: np.dtype, index: Index | None = None
    ) -> np.ndarray:
        """Assembles a parameter, or a slice of one, reading only the slices of tensors that it
        needs.

        Args:
            path: the parameter.
            files: hold its tensors.
            dtype: type of the parameter.
            index: which slice of the parameter; None for all of it.

        Raises:
            FloatingPointError: a number is not finite, as stored or in the type of the parameter.
        """
        shape = self._parameters[path].shape
        whole = tuple(slice(0, size) for size in shape)
        part = (
            whole
            if index is None
            else tuple(
                slice(*each.indices(size)[:2]) for each, size in zip(index, shape, strict=True)
            )
        )
        array = np.empty([each.stop - each.start for each in part], dtype)
        for spec in self._by_path[path]:
            lead = len(spec.index)
            place = tuple(at - each.start for at, each in zip(spec.index, part[:lead], strict=True))
            if any(not 0 <= at < size for at, size in zip(place, array.shape, strict=False)):
                continue
            stored = _turned(part[lead:]) if spec.transpose else part[lead:]
            parts = self._by_name[spec.name]
            if len(parts) > 1:
                first = sum(self._part(other)[0] for other in parts[: parts.index(spec)])
                stored = (slice(stored[0].start + first, stored[0].stop + first), *stored[1:])
            value = files.read(spec.name, stored)
            if not is_finite(value):
                raise not_finite(files.directory, spec.name)
            # `...` rather than a new array: the cast and the transpose happen in the copy.
            with np.errstate(over="ignore"):  # The caller looks for infinity.
                array[place or ...] = value.swapaxes(-1, -2) if spec.transpose else value
            if value.dtype != dtype and not np.isfinite(array[place or ...]).all():
                raise not_finite(files.directory, spec.name, dtype)
        return array

    def write(self, name: str, flat: Mapping[Path, Any]) -> np.ndarray:
        """A tensor in the layout of the file, from all parameters by path."""
        values = []
        for spec in self._by_name[name]:
            value = to_host(flat[spec.path][spec.index] if spec.index else flat[spec.path])
            values.append(value.swapaxes(-1, -2) if spec.transpose else value)
        return np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values))

    def nbytes(self, name: str, flat: Mapping[Path, Any]) -> int:
        """Size of a tensor in the file."""
        return math.prod(self.shapes[name]) * flat[self._by_name[name][0].path].dtype.itemsize

    def parameter_shape(self, path: Path) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._parameters[path].shape)

    def stored_as(self, path: Path) -> list[str]:
        """Names of the tensors that hold a parameter."""
        return [spec.name for spec in self._by_path[path]]

    def _part(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = self._parameters[spec.path].shape[len(spec.index) :]
        return _turned(shape) if spec.transpose else shape

    def _shape(self, parts: list[TensorSpec]) -> tuple[int, ...]:
        shapes = [self._part(part) for part in parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def is_finite(value: np.ndarray) -> bool:
    """Whether all numbers are finite, by their exponents: NumPy is slow with bfloat16."""
    bits = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
    exponent = np.array(np.inf, value.dtype).view(bits.dtype)
    return not value.size or bool(np.max(bits & exponent) < exponent)


def not_finite(
    directory: pathlib.Path, name: str, dtype: DTypeLike | None = None
) -> FloatingPointError:
    """The error for a tensor with NaN or infinity, as stored or after a cast to `dtype`."""
    if dtype is None:
        problem = "holds numbers that are not finite; the file is damaged, or training diverged"
    else:
        problem = f"overflows in {np.dtype(dtype)}; load it as float32 or bfloat16"
    return FloatingPointError(f"{directory}: tensor {name} {problem}")


def _turned(axes: tuple[Any, ...]) -> tuple[Any, ...]:
    """The axes with the last two exchanged."""
    return (*axes[:-2], axes[-1], axes[-2])


def has_tensor_files(directory: pathlib.Path) -> bool:
    """Whether a directory contains safetensors weights."""
    return (directory / SINGLE).exists() or (directory / INDEX).exists()


def has_all_tensor_files(directory: pathlib.Path) -> bool:
    """Whether a directory contains safetensors weights, and every file that its index names."""
    return has_tensor_files(directory) and all(path.exists() for path in _files(directory))


def check_shapes(
    found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: object
) -> None:
    """Compares the shapes of tensors, by name, with the expected ones.

    Raises:
        ValueError: some are missing, unexpected or of other shapes. The message names `where` they
            are and lists them.
    """
    problems = [f"missing {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = len(problems) - _LISTED
        text = "; ".join(problems[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{where}: tensors do not fit the config: {text}")


def widest(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The smallest type that represents all of the given ones exactly."""
    return np.dtype(jnp.result_type(*set(dtypes)))


def write_tensor_files(
    directory: pathlib.Path,
    sizes: Mapping[str, int],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Writes a checkpoint: one file, or shards with an index if it is larger.

    Holds one shard in memory. Older weights in the directory are removed at the end.

    Args:
        directory: an existing directory.
        sizes: bytes of each tensor by name, in the order in which they are written.
        read: gives a tensor by name.
        max_shard_bytes: limit of a file; a larger single tensor gets a file of its own.
    """
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # "format" is what transformers asks a file for before it reads it.
        with replacing(directory / file) as partial:
            save_file({name: read(name) for name in names}, partial, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    keep = set(weight_map.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        atomic_write(directory / INDEX, json.dumps(index, indent=2) + "\n")
        keep.add(INDEX)
    for old in (*directory.glob("model*.safetensors"), directory / INDEX):
        if old.name not in keep:
            old.unlink(missing_ok=True)


def _files(directory: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """Paths of the weights, each with the tensors that the index promises (None: no index)."""
    if (directory / SINGLE).exists():
        return {directory / SINGLE: None}
    if not (directory / INDEX).exists():
        raise FileNotFoundError(
            f"{directory} holds no weights: neither {SINGLE} nor {INDEX} (nor an Orbax checkpoint)"
        )
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{directory / INDEX} has no weight_map")
    files: dict[pathlib.Path, set[str] | None] = {}
    for file in sorted(set(weight_map.values())):
        files[directory / file] = {name for name, where in weight_map.items() if where == file}
    return files
