"""Maps between the tensors of a checkpoint file and parameters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from jax_unmask.denoisers import families
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families import TensorSpec
from jax_unmask.denoisers.transformer import abstract_params
from jax_unmask.runtime.placement import to_host

Path = tuple[str, ...]
Index = tuple[slice, ...]


class Layout:
    """The checkpoint format of a config's family, for a model of the config's shape.

    Attributes:
        shapes: shape in the file of every tensor by name.
        keeping: paths of the parameters that keep the type in which they are stored.
        names: names of the tensors of these parameters.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        self._parameters = flatten_dict(abstract_params(config))
        self._by_name: dict[str, list[TensorSpec]] = defaultdict(list)
        self._by_path: dict[Path, list[TensorSpec]] = defaultdict(list)
        for spec in families.named(config.family).tensors(config):
            self._by_name[spec.name].append(spec)
            self._by_path[spec.path].append(spec)
        self.shapes = {name: self._shape(parts) for name, parts in self._by_name.items()}
        self.keeping = {
            path for path, parts in self._by_path.items() if any(p.keeps_dtype for p in parts)
        }
        self.names = {spec.name for path in self.keeping for spec in self._by_path[path]}

    def read(
        self,
        path: Path,
        tensor: Callable[[str, Index], np.ndarray],
        dtype: np.dtype,
        index: Index | None = None,
    ) -> np.ndarray:
        """Assembles a parameter, or a part of one, from as much of the tensors as it needs.

        Args:
            path: the parameter.
            tensor: reads a part of a tensor of the file, by name and index.
            dtype: type of the parameter.
            index: the part, one slice per dimension; None for all of it.
        """
        shape = self._parameters[path].shape
        whole = tuple(slice(0, size) for size in shape)
        part = whole if index is None else tuple(map(_bounded, index, shape))
        array = np.empty([each.stop - each.start for each in part], dtype)
        for spec in self._by_path[path]:
            lead = len(spec.index)
            place = tuple(at - each.start for at, each in zip(spec.index, part[:lead], strict=True))
            if any(not 0 <= at < size for at, size in zip(place, array.shape, strict=False)):
                continue
            stored = part[lead:][::-1] if spec.transpose else part[lead:]
            parts = self._by_name[spec.name]
            if len(parts) > 1:
                first = sum(self._part(other)[0] for other in parts[: parts.index(spec)])
                stored = (slice(stored[0].start + first, stored[0].stop + first), *stored[1:])
            value = tensor(spec.name, stored)
            # `...` rather than a new array: the cast and the transpose happen in the copy.
            array[place or ...] = value.T if spec.transpose else value
        return array

    def write(self, name: str, flat: Mapping[Path, Any]) -> np.ndarray:
        """A tensor in the layout of the file.

        Args:
            name: its name.
            flat: all parameters by path.
        """
        values = []
        for spec in self._by_name[name]:
            value = to_host(flat[spec.path][spec.index] if spec.index else flat[spec.path])
            values.append(value.T if spec.transpose else value)
        return np.ascontiguousarray(values[0] if len(values) == 1 else np.concatenate(values))

    def nbytes(self, name: str, flat: Mapping[Path, Any]) -> int:
        """Size of a tensor in the file."""
        return math.prod(self.shapes[name]) * flat[self._by_name[name][0].path].dtype.itemsize

    @property
    def paths(self) -> list[Path]:
        """All parameters."""
        return list(self._by_path)

    def parameter_shape(self, path: Path) -> tuple[int, ...]:
        """Shape of a parameter."""
        return tuple(self._parameters[path].shape)

    def stored_as(self, path: Path) -> list[str]:
        """Names of the tensors that hold a parameter."""
        return [spec.name for spec in self._by_path[path]]

    def _part(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = self._parameters[spec.path].shape[len(spec.index) :]
        return shape[::-1] if spec.transpose else shape

    def _shape(self, parts: list[TensorSpec]) -> tuple[int, ...]:
        shapes = [self._part(part) for part in parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _bounded(part: slice, size: int) -> slice:
    start, stop, _ = part.indices(size)
    return slice(start, stop)
