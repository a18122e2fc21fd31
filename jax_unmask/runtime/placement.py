"""Placement of a run's arrays on its mesh, and transfers between mesh and hosts."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jax_unmask.runtime import accelerators
from jax_unmask.runtime import mesh as meshes
from jax_unmask.runtime.mesh import Params, Rules
from jax_unmask.settings import ConfigError, Settings, setting

Tree = TypeVar("Tree")
Json = Any


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """The devices, and how training and rollouts lie on them.

    The product of data, fsdp and tensor is the number of devices of all processes. Rollouts run on
    the same devices in a layout of their own.
    """

    is_exempt: ClassVar[bool] = True

    data: int = setting(
        -1, "Copies of the model; -1 for all devices that the other axes leave.", ge=-1
    )
    fsdp: int = setting(
        0,
        "Shards of its weights, each with its shard of the batch; 0 for as few as fit the memory "
        "of the devices, -1 as above.",
        ge=-1,
    )
    tensor: int = setting(1, "Shards of single matrix products; -1 as above.", ge=-1)
    rollout_fsdp: int = setting(
        0,
        "For rollouts: shards of the weights that every forward gathers. 0 for 1, or where "
        "`rollout_tensor` is 0 too, for a choice by memory (the layout above, where memory is not "
        "known).",
        ge=0,
    )
    rollout_tensor: int = setting(
        0,
        "For rollouts: shards of single matrix products, whose weights stay where they are. 0 as "
        "above.",
        ge=0,
    )


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the hosts around it.

    With several processes, those whose devices have the same rows (because the tensor axis spans
    them) form a feed. Each feed reads its slice of the rows of every batch; all slices have the
    same length.

    Attributes:
        mesh: the devices of all processes; None for the first device alone, with programs without
            any sharding.
    """

    mesh: Mesh | None = None

    @classmethod
    def of(cls, *sizes: int, **named: int) -> "Placement":
        """The placement on all devices with a mesh of these sizes, see `mesh.make_mesh`.

        Raises:
            ValueError: the sizes do not fit the devices.
        """
        mesh = meshes.make_mesh(*sizes, **named)
        # Programs for a device that is absent know it by the mesh alone.
        return cls(None if mesh.size == 1 and not accelerators.are_absent() else mesh)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """A context in which programs are compiled for the mesh."""
        if self.mesh is None:
            yield
            return
        # Arrays that tracing makes would be put on the devices of `set_mesh`.
        is_absent = accelerators.are_absent()
        with (
            jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
            if is_absent
            else jax.set_mesh(self.mesh)
        ):
            yield

    @property
    def shards(self) -> int:
        """Number of shards of a batch; must divide its rows."""
        return 1 if self.mesh is None else meshes.batch_shards(self.mesh)

    @property
    def feed(self) -> int:
        """Index of the slice of a batch that this process reads, of `feeds`."""
        me = jax.process_index()
        return next(feed for feed, holders in enumerate(self._feeds()) if me in holders)

    @property
    def feeds(self) -> int:
        """Number of runs that the rows of a batch are read in."""
        return len(self._feeds())

    @property
    def is_first_of_feed(self) -> bool:
        """Whether this process is the first of those that read the same rows."""
        return jax.process_index() == min(self._feeds()[self.feed])

    def shardings(self, tree: Params, rules: Rules) -> Params | None:
        """A sharding for each leaf; None where there is no mesh."""
        return None if self.mesh is None else meshes.param_shardings(tree, rules, self.mesh)

    def make(
        self,
        function: Callable[..., Tree],
        *arguments: Any,
        rules: Rules,
        donate: tuple[int, ...] = (),
    ) -> Tree:
        """Result of a function of arrays, each leaf created with the sharding of the rules.

        The result may take over the memory of the arguments with these numbers (`donate`).
        """
        if self.mesh is None:
            make = jax.jit(function, donate_argnums=donate) if donate else function
            return make(*arguments)
        with self.active():
            shardings = self.shardings(jax.eval_shape(function, *arguments), rules)
            return jax.jit(function, out_shardings=shardings, donate_argnums=donate)(*arguments)

    def like(self, function: Callable[..., Tree], *arguments: Any, rules: Rules) -> Tree:
        """Shapes of what `make` returns, with their shardings; makes nothing."""
        shapes = jax.eval_shape(function, *arguments)
        if self.mesh is not None:
            return self.parameters(shapes, rules)
        one = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda leaf: _placed(leaf, one), shapes)

    def lay_out(self, tree: Params, rules: Rules) -> Params:
        """Arrays of any placement on the same devices, laid out here."""
        if self.mesh is None:
            return tree
        return jax.tree.map(jax.device_put, tree, self.shardings(tree, rules))

    def parameters(self, tree: Params, rules: Rules) -> Params:
        """Shapes (`jax.ShapeDtypeStruct`) of parameters, where the rules place those."""
        if self.mesh is None:
            return tree
        return jax.tree.map(_placed, tree, self.shardings(tree, rules))

    def everywhere(self, tree: Any) -> Any:
        """Arrays that all processes have alike, or shapes, whole on every device."""
        return self._put(tree, PartitionSpec(), own=False)

    def records(self, tree: Any) -> Any:
        """Records of a rollout's steps, [T, B, ...], of any placement, or shapes."""
        return self._put(tree, meshes.spec(None, "batch"), own=False)

    def rows(self, tree: Any) -> Any:
        """A batch [B, ...], from the rows of each process's feed: NumPy arrays [B / feeds, ...]."""
        return self._put(tree, meshes.spec("batch"), own=True)

    def global_rows(self, tree: Any) -> Any:
        """A batch [B, ...], from all of its rows, which all processes have alike."""
        return self._put(tree, meshes.spec("batch"), own=False)

    def fetch(self, tree: Any) -> Any:
        """The rows of this process's feed of batches [B, ...] on the devices, as NumPy arrays."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return jax.tree.map(self._fetch, tree)

    def gather(self, tree: Any) -> Any:
        """The rows of all feeds, in order, gathered from all processes: NumPy arrays [B, ...].

        All processes get the values of the first process of each feed: results of hosts, such as
        the score of a program that timed out, may differ and must become equal everywhere.
        """
        if jax.process_count() == 1:
            return tree
        firsts = [min(holders) for holders in self._feeds()]

        def gather(leaf: np.ndarray) -> np.ndarray:
            every = np.asarray(multihost_utils.process_allgather(np.asarray(leaf)))
            return np.concatenate([every[first] for first in firsts])

        return jax.tree.map(gather, tree)

    def broadcast(self, value: Json) -> Json:
        """The value that process 0 passes, on all processes; those of the others are ignored."""
        if jax.process_count() == 1:
            return value
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
        room = np.zeros(length, np.uint8)
        room[: len(text)] = text[:length]
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(room)).tobytes())

    def meet(self, name: str) -> None:
        """Waits until all processes have come to this point."""
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(name)

    def _put(self, tree: Any, spec: PartitionSpec, *, own: bool) -> Any:
        if self.mesh is None:
            return jax.tree.map(lambda leaf: leaf if _is_shape(leaf) else jnp.asarray(leaf), tree)
        sharding = NamedSharding(self.mesh, spec)

        def put(leaf: Any) -> Any:
            if _is_shape(leaf):
                is_whole = leaf.ndim < len(spec)
                return _placed(
                    leaf, sharding.update(spec=PartitionSpec()) if is_whole else sharding
                )
            if isinstance(leaf, jax.Array) and (
                jax.process_count() == 1
                or not (leaf.is_fully_addressable or leaf.is_fully_replicated)
            ):
                return jax.device_put(leaf, sharding)
            if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = put(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            value = np.asarray(leaf)
            count, first = len(value) if value.ndim else 1, 0
            if own:
                first = self.feed * count
            shape = (count * self.feeds if own else count, *value.shape[1:])
            shape = shape if value.ndim else ()

            def part(index: tuple[slice, ...] | None) -> np.ndarray:
                if index is None or not own:
                    return value[index or ()]
                start, stop, _ = index[0].indices(shape[0])
                return value[start - first : stop - first]

            return jax.make_array_from_callback(shape, sharding, part)

        return jax.tree.map(put, tree)

    def _fetch(self, array: jax.Array) -> np.ndarray:
        """The rows of an array that this process's devices hold."""
        parts: dict[int, Any] = {}
        for shard in array.addressable_shards:
            parts.setdefault(shard.index[0].indices(array.shape[0])[0], shard)
        return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])

    def _holders(self) -> list[frozenset[int]]:
        """The processes of each shard of a batch."""
        if self.mesh is None:
            return [frozenset({jax.process_index()})]
        devices = self.mesh.devices.reshape(self.shards, -1)
        return [frozenset(device.process_index for device in part) for part in devices]

    def _feeds(self) -> list[frozenset[int]]:
        """The feeds in the order of their rows."""
        return list(dict.fromkeys(self._holders()))


def _is_shape(leaf: Any) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def _placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def to_host(tree: Any) -> Any:
    """Whole arrays as NumPy arrays, gathered from all shards; all processes must call it."""

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return jax.device_get(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, tree)


def from_config(config: Any) -> Placement:
    """The placement of `config.mesh` for training.

    Raises:
        ConfigError: it does not fit the devices.
    """
    sizes = {axis: getattr(config.mesh, axis) for axis in meshes.AXES}
    sizes["fsdp"] = sizes["fsdp"] or 1  # Where nobody has chosen.
    return _of(sizes, "data, .fsdp and .tensor")


def for_rollouts(config: Any) -> Placement:
    """The placement of `config.mesh` for rollouts.

    Raises:
        ConfigError: it does not fit the devices.
    """
    fsdp, tensor = config.mesh.rollout_fsdp, config.mesh.rollout_tensor
    if not (fsdp or tensor):
        return from_config(config)
    return _of({"data": -1, "fsdp": fsdp or 1, "tensor": tensor or 1}, "rollout_fsdp and _tensor")


def _of(sizes: dict[str, int], keys: str) -> Placement:
    try:
        return Placement.of(**sizes)
    except ValueError as error:
        text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        problem = str(error).removeprefix("mesh ").removeprefix(f"{text} ").removeprefix(": ")
        remedy = f"Change config.mesh.{keys}, or the devices that the run may see"
        raise ConfigError("mesh", text, problem, remedy) from error
