"""Denoisers on disk: Hugging Face directories, hub names, Orbax directories.

A model directory always holds a `config.json` in its family's own format. Beside it lie the
weights, either as safetensors under the family's tensor names or as an Orbax checkpoint in
`params/`, and usually a tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from jax_unmask.denoisers import hub
from jax_unmask.denoisers.config import DenoiserConfig
from jax_unmask.denoisers.families import llada
from jax_unmask.denoisers.families.base import TensorSpec
from jax_unmask.denoisers.tensor_files import TensorFiles, has_tensor_files, write_tensor_files
from jax_unmask.denoisers.tokenizer import Tokenizer, load_tokenizer
from jax_unmask.denoisers.transformer import Denoiser, Params, abstract_params
from jax_unmask.runtime.files import atomic_write

ORBAX_ITEM = "params"
_FAMILIES = {llada.MODEL_TYPE: llada}
_LISTED = 8  # Problems that an error message spells out before it counts the rest.

Path = tuple[str, ...]


def from_pretrained(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    param_dtype: DTypeLike | None = None,
) -> tuple[Denoiser, Params]:
    """Loads a denoiser.

    The weights are read one tensor at a time into the stacked arrays of their parameter, so host
    memory needs room for one parameter beside the model.

    Args:
        path: a directory with `config.json` and safetensors or Orbax weights, or a hub name.
        dtype: type of the computation; by default that of the parameters.
        param_dtype: type of the parameters; by default as stored (the widest, where tensors
            differ).

    Returns:
        The denoiser and its parameters.

    Raises:
        FileNotFoundError: the directory, its `config.json` or its weights are missing.
        ValueError: the config is not supported, a weights file is corrupt, or its tensors are not
            exactly the ones that the config calls for.
    """
    directory = hub.local_directory(path)
    config = read_config(directory)
    orbax, tensors = (directory / ORBAX_ITEM).is_dir(), has_tensor_files(directory)
    if orbax and tensors:
        raise ValueError(
            f"{directory} holds both safetensors and an Orbax checkpoint ({ORBAX_ITEM}/); remove "
            "the one that is out of date"
        )
    load = _load_orbax if orbax else _load_tensors
    params, config = load(directory, config, param_dtype)
    config = dataclasses.replace(config, dtype=config.param_dtype if dtype is None else dtype)
    return Denoiser(config), params


def save_pretrained(
    directory: str | os.PathLike[str],
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a Hugging Face directory in the family's own format, bit for bit.

    `config.json` is written last: a directory that has one is complete.

    Args:
        directory: made if missing; a model that it holds already is replaced.
        denoiser: gives the config.
        params: the parameters, stored in the type that they have.
        tokenizer: its files are copied as they are.
        max_shard_bytes: weights beyond this size are split over several files.
    """
    config = denoiser.config
    specs = _family(config.family).tensors(config)
    _check_params(params, config)
    flat = flatten_dict(params)
    config = dataclasses.replace(config, param_dtype=_widest(leaf.dtype for leaf in flat.values()))
    by_name = {spec.name: spec for spec in specs}

    def size(spec: TensorSpec) -> int:
        return flat[spec.path].nbytes // (1 if spec.layer is None else config.num_layers)

    def read(name: str) -> np.ndarray:
        spec = by_name[name]
        leaf = flat[spec.path] if spec.layer is None else flat[spec.path][spec.layer]
        array = np.asarray(leaf)
        return np.ascontiguousarray(array.T if spec.transpose else array)

    directory = _begin_save(directory)
    sizes = {spec.name: size(spec) for spec in specs}
    write_tensor_files(directory, sizes, read, max_shard_bytes)
    _finish_save(directory, config, tokenizer)


def save_orbax(
    directory: str | os.PathLike[str],
    denoiser: Denoiser,
    params: Params,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes an Orbax directory: the same `config.json`, and the parameters as they are in memory.

    Args:
        directory: made if missing; must not hold an Orbax checkpoint yet.
        denoiser: gives the config.
        params: the parameters; sharded arrays are written by the processes that hold them.
        tokenizer: its files are copied as they are.

    Raises:
        FileExistsError: the directory already holds a checkpoint.
    """
    import orbax.checkpoint as ocp  # 1.6 s; most uses of a denoiser need none of it.

    _check_params(params, denoiser.config)
    widest = _widest(leaf.dtype for leaf in jax.tree.leaves(params))
    config = dataclasses.replace(denoiser.config, param_dtype=widest)
    target = pathlib.Path(directory).absolute() / ORBAX_ITEM
    if target.exists():
        raise FileExistsError(f"{target} exists already; choose another directory or remove it")
    directory = _begin_save(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target, params)
    _finish_save(directory, config, tokenizer)


def read_config(directory: pathlib.Path) -> DenoiserConfig:
    """Reads `config.json` of a model directory, whatever its family.

    Where it does not name the mask token (some published files do not), the tokenizer must.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is not valid, its family is unknown, or it asks for something that is not
            implemented.
    """
    fields = hub.read_json(directory / "config.json")
    family = _family(fields.get("model_type"))
    if fields.get("mask_token_id") is None:
        if not (directory / "tokenizer.json").is_file():
            raise ValueError(
                f"{directory / 'config.json'}: mask_token_id is missing, and no tokenizer.json "
                "beside it could name the mask token; add the field"
            )
        fields["mask_token_id"] = load_tokenizer(directory).mask_id
    return family.config_from_hf(fields)


def _family(model_type: Any) -> Any:
    if model_type not in _FAMILIES:
        raise ValueError(
            f"config.json: model_type={model_type!r} is not a known family; supported: "
            f"{', '.join(sorted(_FAMILIES))}"
        )
    return _FAMILIES[model_type]


def _load_tensors(
    directory: pathlib.Path, config: DenoiserConfig, param_dtype: DTypeLike | None
) -> tuple[Params, DenoiserConfig]:
    files = TensorFiles(directory)
    specs = _family(config.family).tensors(config)
    expected = flatten_dict(abstract_params(config))

    def shape_in_file(spec: TensorSpec) -> tuple[int, ...]:
        shape = expected[spec.path].shape
        shape = shape if spec.layer is None else shape[1:]
        return shape[::-1] if spec.transpose else shape

    names = {spec.name for spec in specs}
    problems = [f"missing {name}" for name in sorted(names - files.shapes.keys())]
    problems += [f"unexpected {name}" for name in sorted(files.shapes.keys() - names)]
    problems += [
        f"{spec.name} has shape {files.shapes[spec.name]} instead of {shape_in_file(spec)}"
        for spec in specs
        if spec.name in files.shapes and files.shapes[spec.name] != shape_in_file(spec)
    ]
    _refuse(problems, directory)

    if param_dtype is None:
        param_dtype = _widest(files.dtypes.values())
    config = dataclasses.replace(config, param_dtype=param_dtype)
    by_path: dict[Path, list[TensorSpec]] = defaultdict(list)
    for spec in specs:
        by_path[spec.path].append(spec)

    params = {}
    for path, parts in by_path.items():
        array = np.empty(expected[path].shape, config.param_dtype)
        for spec in parts:
            tensor = files.read(spec.name)
            # `...` rather than a new array: the cast and the transpose happen in the copy.
            array[... if spec.layer is None else spec.layer] = (
                tensor.T if spec.transpose else tensor
            )
        params[path] = jnp.asarray(array)
    return unflatten_dict(params), config


def _load_orbax(
    directory: pathlib.Path, config: DenoiserConfig, param_dtype: DTypeLike | None
) -> tuple[Params, DenoiserConfig]:
    import orbax.checkpoint as ocp

    path = directory.absolute() / ORBAX_ITEM
    with ocp.StandardCheckpointer() as checkpointer:
        stored = flatten_dict(checkpointer.metadata(path).item_metadata.tree)
        expected = flatten_dict(abstract_params(config))
        _refuse(_differences(stored, expected), directory)
        if param_dtype is None:
            param_dtype = _widest(leaf.dtype for leaf in stored.values())
        config = dataclasses.replace(config, param_dtype=param_dtype)
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {
            key: jax.ShapeDtypeStruct(leaf.shape, config.param_dtype, sharding=device)
            for key, leaf in expected.items()
        }
        return checkpointer.restore(path, unflatten_dict(target)), config


def _check_params(params: Params, config: DenoiserConfig) -> None:
    """Refuses to save parameters that are not those of the config."""
    problems = _differences(flatten_dict(params), flatten_dict(abstract_params(config)))
    _refuse(problems, "params")


def _differences(found: dict[Path, Any], expected: dict[Path, Any]) -> list[str]:
    """What keeps one flat tree of arrays from being another, in words."""
    name = "/".join
    problems = [f"missing {name(path)}" for path in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected {name(path)}" for path in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name(path)} has shape {tuple(found[path].shape)} instead of {leaf.shape}"
        for path, leaf in expected.items()
        if path in found and tuple(found[path].shape) != leaf.shape
    ]
    return problems


def _refuse(problems: list[str], where: object) -> None:
    if problems:
        more = len(problems) - _LISTED
        text = "; ".join(problems[:_LISTED]) + (f"; and {more} more" if more > 0 else "")
        raise ValueError(f"{where}: tensors do not fit the config: {text}")


def _widest(dtypes: Any) -> np.dtype:
    """The smallest type that holds all of the given ones exactly."""
    return np.dtype(jnp.result_type(*set(dtypes)))


def _begin_save(directory: str | os.PathLike[str]) -> pathlib.Path:
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").unlink(missing_ok=True)
    return directory


def _finish_save(
    directory: pathlib.Path, config: DenoiserConfig, tokenizer: Tokenizer | None
) -> None:
    if tokenizer is not None:
        tokenizer.save(directory)
    fields = _family(config.family).config_to_hf(config)
    atomic_write(directory / "config.json", json.dumps(fields, indent=2) + "\n")
