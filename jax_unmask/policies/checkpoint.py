"""Policies on disk: the public PyTorch layout (safetensors and a small JSON), read and written.

A directory holds `model.safetensors`, with tensor names as the reference saves them (prefix
`base_policy.`), and `policy_config.json`. Fields that the reference does not have are in the JSON
under "jax_unmask" and in extra tensors, so a policy with the published observations can be loaded
by either side.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jax_unmask.denoisers.families.llada import config_from_hf, config_to_hf
from jax_unmask.policies.base import Params
from jax_unmask.policies.hidden_network import HiddenNetworkConfig
from jax_unmask.policies.learned import LearnedPolicy
from jax_unmask.policies.network import NetworkConfig
from jax_unmask.policies.tensors import PolicyTensor, buffers, tensor_specs

WEIGHTS = "model.safetensors"
CONFIG = "policy_config.json"
PREFIX = "base_policy."

# policy_config.json of the reference -> NetworkConfig.
_NETWORK_FIELDS = {
    "confidences_top_p": "top_k",
    "hidden_dim": "hidden_dim",
    "feedforward_dim": "feedforward_dim",
    "num_heads": "num_heads",
    "time_embed_dim": "time_embed_dim",
    "num_blocks": "num_blocks",
    "time_period": "time_period",
}
_HIDDEN_FIELDS = {name: name for name in ("time_embed_dim", "num_blocks", "time_period")}
_SETTINGS = ("temperature", "scale")


def load_policy(directory: str | pathlib.Path) -> tuple[LearnedPolicy, Params]:
    """Reads a policy that this package or the PyTorch reference saved.

    The reference does not record how its policies act; they get the way it evaluates them:
    Bernoulli with arg-max fallback, full context, temperature 1. Use `dataclasses.replace` and the
    params to choose another.

    Args:
        directory: holds `policy_config.json` and `model.safetensors`.

    Returns:
        (policy, params), the params in float32 on the default device.

    Raises:
        FileNotFoundError: the directory or one of its files does not exist.
        ValueError: the config is not understood, or tensors are missing, unexpected or of another
            shape; the message lists all of them.
    """
    directory = pathlib.Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name} does not exist; a policy directory holds {CONFIG} and "
                f"{WEIGHTS}"
            )
    policy, settings = _read_config(directory)
    params = {
        "network": _read_network(policy, directory / WEIGHTS),
        **{name: jnp.asarray(settings.get(name, 1.0), jnp.float32) for name in _SETTINGS},
    }
    return policy, params


def save_policy(directory: str | pathlib.Path, policy: LearnedPolicy, params: Params) -> None:
    """Writes a policy; the inverse of `load_policy`.

    Args:
        directory: created if needed; files of an earlier policy in it are replaced.
        policy: the policy.
        params: its params, with scalar temperature and scale.

    Raises:
        ValueError: temperature or scale differs between rows.
    """
    settings = {}
    for name in _SETTINGS:
        value = np.asarray(params[name])
        if value.ndim:
            raise ValueError(
                f"{name} has shape {value.shape}; save a policy with one {name} for all rows"
            )
        settings[name] = float(value)
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        PREFIX + spec.name: spec.write(_get(params["network"], spec.path))
        for spec in tensor_specs(policy.network)
    }
    tensors |= {PREFIX + name: value for name, value in buffers(policy.network).items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(json.dumps(_config_fields(policy, settings), indent=2) + "\n")


def settings_of(policy: LearnedPolicy, params: Params) -> dict[str, Any]:
    """Settings of a policy, by the names of `parse_policy`."""
    fields = (field.name for field in dataclasses.fields(policy) if field.name != "network")
    return {
        **{name: getattr(policy, name) for name in fields},
        **{name: float(np.asarray(params[name])) for name in _SETTINGS},
    }


def _read_config(directory: pathlib.Path) -> tuple[LearnedPolicy, dict[str, float]]:
    path = directory / CONFIG
    try:
        fields = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    own = dict(fields.get("jax_unmask", {}))
    extra = dict(own.pop("network", {}))
    settings = {name: own.pop(name) for name in _SETTINGS if name in own}
    kind = fields.get("policy_type")
    network: NetworkConfig | HiddenNetworkConfig
    if kind == "dit_confidence":
        network = NetworkConfig(**_pick(path, fields, _NETWORK_FIELDS), **extra)
    elif kind == "dit_hidden":
        network = HiddenNetworkConfig(
            denoiser=config_from_hf(_denoiser_fields(directory, fields)),
            **_pick(path, fields, _HIDDEN_FIELDS),
            **extra,
        )
    else:
        raise ValueError(
            f"{path}: policy_type={kind!r} is unknown; it must be 'dit_confidence' or 'dit_hidden'"
        )
    own.setdefault("distribution", "bernoulli_argmax")
    return LearnedPolicy(network=network, **own), settings


def _pick(path: pathlib.Path, fields: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    missing = [name for name in names if name not in fields]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return {ours: fields[theirs] for theirs, ours in names.items()}


def _denoiser_fields(directory: pathlib.Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The denoiser's config.json: written out in place, or a path relative to the policy."""
    value = fields.get("llada_config")
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and (directory / value).is_file():
        return json.loads((directory / value).read_text())
    raise ValueError(
        f"{directory / CONFIG}: llada_config={value!r} is neither a file nor an object with the "
        "fields of the denoiser's config.json"
    )


def _config_fields(policy: LearnedPolicy, settings: dict[str, float]) -> dict[str, Any]:
    network = policy.network
    names: dict[str, str]
    if isinstance(network, HiddenNetworkConfig):
        names = _HIDDEN_FIELDS
        fields: dict[str, Any] = {"policy_type": "dit_hidden"}
        fields["llada_config"] = config_to_hf(network.denoiser)
    else:
        names = _NETWORK_FIELDS
        fields = {"policy_type": "dit_confidence"}
    fields |= {theirs: getattr(network, ours) for theirs, ours in names.items()}
    known = {*names.values(), "denoiser"}
    extra = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in known and getattr(network, field.name) != field.default
    }
    own = {
        field.name: getattr(policy, field.name)
        for field in dataclasses.fields(policy)
        if field.name != "network"
    }
    return {**fields, "jax_unmask": {**own, **settings, "network": extra}}


def _read_network(policy: LearnedPolicy, path: pathlib.Path) -> Params:
    tensors = load_file(path)
    shapes = jax.eval_shape(policy.init_params, jax.random.key(0))["network"]
    specs = tensor_specs(policy.network)
    wanted = {PREFIX + spec.name: spec for spec in specs}
    constants = {PREFIX + name: value for name, value in buffers(policy.network).items()}
    problems = [f"missing: {name}" for name in wanted if name not in tensors]
    problems += [
        f"unexpected: {name}" for name in tensors if name not in wanted and name not in constants
    ]
    for name, spec in wanted.items():
        expected = spec.file_shape(_get(shapes, spec.path).shape)
        if name in tensors and tensors[name].shape != expected:
            problems.append(f"shape of {name}: {tensors[name].shape}, expected {expected}")
    for name, value in constants.items():
        if name in tensors and not np.allclose(tensors[name], value, rtol=1e-3):
            problems.append(f"values of {name}: not those of rotary base 10000")
    if problems:
        raise ValueError(f"{path} does not fit {CONFIG} beside it:\n  " + "\n  ".join(problems))
    return _assemble(specs, tensors)


def _assemble(specs: list[PolicyTensor], tensors: dict[str, np.ndarray]) -> Params:
    """Nested params from the tensors; those that share a parameter are joined in file order."""
    pieces: dict[tuple[str, ...], list[np.ndarray]] = {}
    for spec in specs:
        value = tensors[PREFIX + spec.name].astype(np.float32)
        pieces.setdefault(spec.path, []).append(value.T if spec.transpose else value)
    params: dict[str, Any] = {}
    for path, values in pieces.items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(np.concatenate(values, axis=-1))
    return params


def _get(tree: Params, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
