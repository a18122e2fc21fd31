"""Denoisers on disk: Hugging Face directories, hub names, Orbax directories.

A model directory always has a `config.json` in its family's format. Beside it are the weights,
either as safetensors under the family's tensor names or as an Orbax checkpoint in `params/`, and
usually a tokenizer.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jax_unmask.denoisers import families, hub
from jax_unmask.denoisers import quantization as quantized
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.orbax_files import (
    ORBAX_ITEM,
    check_orbax_files,
    has_orbax_files,
    new_orbax_item,
    read_orbax_files,
    shapes_of,
    write_orbax_item,
)
from jax_unmask.denoisers.tensor_files import (
    MAX_SHARD_BYTES,
    Index,
    Path,
    TensorFiles,
    TensorMap,
    check_shapes,
    has_all_tensor_files,
    has_tensor_files,
    widest,
    write_tensor_files,
)
from jax_unmask.denoisers.tokenizer import Tokenizer, has_tokenizer, load_tokenizer
from jax_unmask.denoisers.transformer import Denoiser, Params, abstract_params, count_params
from jax_unmask.runtime.progress import progress_bar

_LARGE = 500_000_000  # Parameters.


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
    mask_token_id: int | None = None,
    family: str | None = None,
    quantization: str | None = None,
    shardings: Callable[[Params], Params] | None = None,
) -> tuple[Denoiser, Params]:
    """Loads a denoiser.

    The weights are read one tensor at a time into the stacked arrays of their parameter, so host
    memory needs room for one parameter beside the model; with `shardings`, for one device's shard
    of one. Each parameter is quantised as soon as it is read.

    Args:
        path: a shipped model such as "sudoku", a directory with `config.json` and safetensors or
            Orbax weights, or a hub name.
        dtype: type of the computation; by default that of the parameters, but bfloat16 for float16,
            in which activations of models that were trained in bfloat16 overflow.
        param_dtype: type of the parameters; by default as stored (the widest, where tensors
            differ).
        mask_token_id: the mask token, for models whose files do not name it.
        family: import path of a `families.Family` of your own (docs/extending.md); by default
            `config.json` says which family it is.
        quantization: "int8" or "fp8" for a denoiser that is not trained, or None; see
            `jax_unmask.denoisers.quantization`.
        shardings: maps the tree of shapes to a tree of shardings, such as
            `lambda params: mesh.param_shardings(params, rules, mesh)` with `runtime.mesh`. No
            device ever holds more than its shards, and a process reads only those of its own
            devices. By default all parameters go to the first device.

    Returns:
        The denoiser and its parameters.

    Raises:
        FileNotFoundError: the directory, its `config.json` or its weights are missing.
        ValueError: the config is not supported, a weights file is corrupt, or its tensors are not
            exactly the ones that the config calls for (redundant equal copies, buffers and prefixes
            of wrappers aside).
        FloatingPointError: a weight is not finite, as stored or in `param_dtype`.
        ImportError: quantised weights are asked for, and Qwix is not installed.
    """
    if quantization is not None:
        quantized.check_kind(quantization)
    directory = hub.local_directory(path)
    config = read_config(directory, mask_token_id=mask_token_id, family=family)
    load = _load_orbax if _is_orbax(directory) else _load_tensors
    places = {} if shardings is None else flatten_dict(shardings(abstract_params(config)))
    params, config = load(directory, config, param_dtype, quantization, places)
    if dtype is None:
        dtype = config.param_dtype
        if dtype == jnp.float16:  # Made from bfloat16, whose activations float16 cannot hold.
            dtype = jnp.bfloat16
    return Denoiser(dataclasses.replace(config, dtype=dtype)), params


def check_weights(path: str | os.PathLike[str]) -> None:
    """Checks the weights of a model by the headers of their files: names, shapes and types.

    Args:
        path: as of `from_pretrained`; weights that would have to be downloaded are not looked at.

    Raises:
        FileNotFoundError, ValueError: as `from_pretrained`.
    """
    directory = hub.local_directory(path, weights=False)
    config = read_config(directory)
    if _is_orbax(directory):
        check_orbax_files(directory, abstract_params(config))
    elif not hub.is_downloaded(path) or has_all_tensor_files(directory):
        _open_tensors(directory, config)


def save_pretrained(
    directory: str | os.PathLike[str],
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes a Hugging Face directory in the family's format, bit for bit.

    `config.json` is written last: a directory that has one is complete.

    Args:
        directory: made if missing; an existing model in it is replaced.
        denoiser: gives the config.
        params: the parameters, stored in the type that they have.
        tokenizer: its files are copied as they are, and what lies beside them: the generation
            config, and the code that `auto_map` in `config.json` names.
        max_shard_bytes: weights beyond this size are split over several files.
    """
    config, tensors = _checked(params, denoiser.config)
    flat = flatten_dict(params)
    directory = hub.begin_saving(directory) if jax.process_index() == 0 else pathlib.Path()
    sizes = {name: tensors.nbytes(name, flat) for name in tensors.shapes}
    if jax.process_index():
        for name in sizes:  # Collective where shards lie on several processes; the first one saves.
            tensors.write(name, flat)
        return
    with _progress(config, len(sizes), "write weights") as advance:

        def write(name: str) -> Any:
            advance()
            return tensors.write(name, flat)

        write_tensor_files(directory, sizes, write, max_shard_bytes)
    _finish_save(directory, config, tokenizer)


def save_orbax(
    directory: str | os.PathLike[str],
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes an Orbax directory: `config.json`, and the parameters as they are in memory.

    The arguments are those of `save_pretrained`; sharded arrays are written by the processes that
    hold them.

    Raises:
        FileExistsError: the directory already holds a checkpoint.
    """
    config, _ = _checked(params, denoiser.config)
    item = new_orbax_item(pathlib.Path(directory))
    directory = hub.begin_saving(directory)
    write_orbax_item(item, params)
    _finish_save(directory, config, tokenizer)


def read_config(
    directory: pathlib.Path, *, mask_token_id: int | None = None, family: str | None = None
) -> DenoiserConfig:
    """Reads `config.json` of a model directory, whatever its family.

    Args:
        directory: the model directory.
        mask_token_id: the mask token, where `config.json` does not name it (some published files
            do not); by default the tokenizer must, or the family knows it.
        family: import path of the family, for one from outside that `config.json` does not name.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is not valid, its family is unknown, or it asks for something that is not
            implemented.
    """
    fields = hub.read_json(directory / "config.json")
    if family is not None:
        fields |= {families.FIELD: family}
    with hub.reading_config(directory):
        fields = families.complete(fields)
        found = families.of(fields)
    if mask_token_id is not None:
        fields["mask_token_id"] = mask_token_id
    if fields.get("mask_token_id") is None:
        if not has_tokenizer(directory):
            raise ValueError(
                f"{directory / 'config.json'}: mask_token_id is missing, and no tokenizer.json "
                "beside it could name the mask token; add the field, or give mask_token_id"
            )
        fields["mask_token_id"] = load_tokenizer(directory).mask_id
    with hub.reading_config(directory):
        return found.config_from_hf(fields)


def _is_orbax(directory: pathlib.Path) -> bool:
    """Whether the weights of a directory are an Orbax checkpoint; an error if both kinds are."""
    orbax = has_orbax_files(directory)
    if orbax and has_tensor_files(directory):
        raise ValueError(
            f"{directory} holds both safetensors and an Orbax checkpoint ({ORBAX_ITEM}/); remove "
            "the one that is out of date"
        )
    return orbax


def _open_tensors(directory: pathlib.Path, config: DenoiserConfig) -> tuple[TensorFiles, TensorMap]:
    """The files of the weights, with the tensors that the config calls for, and their map."""
    files, tensors = TensorFiles(directory), _tensor_map(config)
    copies = {}
    if config.tie_embeddings:
        untied = _tensor_map(dataclasses.replace(config, tie_embeddings=False))
        (table,) = tensors.stored_as(("embedding",))
        copies = dict.fromkeys(untied.stored_as(("head",)), table)
    files.reconcile(tensors.shapes, copies, config.rope_theta)
    return files, tensors


def _load_tensors(
    directory: pathlib.Path,
    config: DenoiserConfig,
    param_dtype: DTypeLike | None,
    quantization: str | None,
    places: Mapping[Path, jax.sharding.Sharding],
) -> tuple[Params, DenoiserConfig]:
    files, tensors = _open_tensors(directory, config)
    if param_dtype is None:
        param_dtype = widest(
            dtype for name, dtype in files.dtypes.items() if name not in tensors.names
        )
    config = dataclasses.replace(config, param_dtype=param_dtype)

    def dtype_of(path: Path) -> np.dtype:
        if path not in tensors.keeping:
            return np.dtype(config.param_dtype)
        return widest(files.dtypes[name] for name in tensors.stored_as(path))

    params = {}
    with _progress(config, len(tensors.paths), "read weights") as advance:
        for path in tensors.paths:
            read = functools.partial(tensors.read, path, files, dtype_of(path))
            shape = tensors.parameter_shape(path)
            value = _spread(read, shape, places[path]) if path in places else jnp.asarray(read())
            params[path] = quantized.quantize(path, value, quantization) if quantization else value
            advance()
    return unflatten_dict(params), config


@contextlib.contextmanager
def _progress(config: DenoiserConfig, tensors: int, title: str) -> Iterator[Callable[[], object]]:
    """A function to call after each tensor; there is a bar for models that take long."""
    if count_params(config) < _LARGE:
        yield lambda: None
        return
    with progress_bar(tensors, title=title) as bar:
        yield bar.update


def _load_orbax(
    directory: pathlib.Path,
    config: DenoiserConfig,
    param_dtype: DTypeLike | None,
    quantization: str | None,
    places: Mapping[Path, jax.sharding.Sharding],
) -> tuple[Params, DenoiserConfig]:
    params, param_dtype = read_orbax_files(
        directory,
        abstract_params(config),
        param_dtype,
        keeping=_tensor_map(config).keeping,
        places=places,
    )
    config = dataclasses.replace(config, param_dtype=param_dtype)
    return quantized.quantize_params(params, quantization) if quantization else params, config


def _spread(
    read: Callable[[Index], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding
) -> jax.Array:
    """An array with a sharding; this process reads the shards of its devices, one at a time."""
    holders: dict[tuple[tuple[int, int, int], ...], list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        assert index is not None
        bounds = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, devices in holders.items():
        part = read(tuple(slice(*each) for each in bounds))
        arrays += jax.block_until_ready([jax.device_put(part, device) for device in devices])
        del part
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _tensor_map(config: DenoiserConfig) -> TensorMap:
    """The checkpoint format of a config's family, for a model of the config's shape."""
    return TensorMap(families.named(config.family).tensors(config), abstract_params(config))


def _checked(params: Params, config: DenoiserConfig) -> tuple[DenoiserConfig, TensorMap]:
    """The config with the type of the parameters, and their format on disk.

    Parameters that are not those of the config are refused.
    """
    if any(map(quantized.is_quantized, flatten_dict(params).values())):
        raise ValueError(
            "quantised parameters cannot be saved: the formats hold floating-point weights. Load "
            "the model without quantization, and save that"
        )
    check_shapes(shapes_of(params), shapes_of(abstract_params(config)), "params")
    tensors = _tensor_map(config)
    flat = flatten_dict(params)
    dtype = widest(leaf.dtype for path, leaf in flat.items() if path not in tensors.keeping)
    return dataclasses.replace(config, param_dtype=dtype), tensors


def _finish_save(
    directory: pathlib.Path, config: DenoiserConfig, tokenizer: Tokenizer | None
) -> None:
    fields = families.to_hf(config)
    if tokenizer is not None:
        tokenizer.save(directory)
        fields |= hub.remote_code(tokenizer.directory)
    hub.finish_saving(directory, fields)
