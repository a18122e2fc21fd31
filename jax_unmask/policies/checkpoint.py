"""Policies on disk: the public PyTorch layout (safetensors and a small JSON), read and written.

A directory holds `model.safetensors`, with tensor names as the reference saves them (prefix
`base_policy.`), and `policy_config.json`. Settings that the reference does not have stand in the
JSON under "jax_unmask" and in extra tensors, so either side can load a policy with the published
observations. A network from another package is named by its import path.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jax_unmask.denoisers import families, hub
from jax_unmask.policies import calibration
from jax_unmask.policies.base import Params
from jax_unmask.policies.hidden_network import HiddenNetworkConfig
from jax_unmask.policies.learned import NETWORKS, LearnedPolicy
from jax_unmask.policies.network import NetworkConfig
from jax_unmask.policies.tensors import buffers, tensor_specs
from jax_unmask.runtime.files import atomic_write, replacing
from jax_unmask.settings import SettingError, check_values

WEIGHTS = "model.safetensors"
CONFIG = "policy_config.json"
PREFIX = "base_policy."

_DENOISER = "llada_config"
_SHARED = {name: name for name in ("time_embed_dim", "num_blocks", "time_period")}
_NAMES = ("hidden_dim", "feedforward_dim", "num_heads")
# Networks of the reference: its policy_type, and its name of each setting.
_REFERENCE: dict[str, tuple[type, dict[str, str]]] = {
    "dit_confidence": (
        NetworkConfig,
        {"confidences_top_p": "top_k", **{name: name for name in _NAMES}, **_SHARED},
    ),
    "dit_hidden": (HiddenNetworkConfig, _SHARED),
}
_SETTINGS = ("temperature", "scale", "alpha")


@dataclasses.dataclass(frozen=True)
class MadeFor:
    """Place and distribution that a policy was trained for: defaults of commands that use it.

    Attributes:
        model: path or name of the denoiser.
        task: the task, in the notation of `tasks.parse`.
        gen_length, block_length: the canvas.
        distribution: how the policy acts at test time.
    """

    model: str
    task: str
    gen_length: int
    block_length: int
    distribution: str

    @classmethod
    def all_of(cls, config: Any) -> "tuple[MadeFor, ...]":
        """The places of a training config, which may have several environments."""
        return tuple(map(cls.of, config.each))

    @classmethod
    def of(cls, config: Any) -> "MadeFor":
        """The place of a training config with one environment."""
        task, trained = config.task, config.policy.distribution
        return cls(
            model=str(config.model.path),
            task=f"{task.name}:{','.join(task.settings)}".rstrip(":"),
            gen_length=config.rollout.gen_length,
            block_length=config.rollout.block_length,
            # Independent draws of a trained policy lose accuracy to chance.
            distribution=trained if trained == "dpls" else "threshold",
        )


def made_for(directory: str | pathlib.Path) -> tuple[MadeFor, ...]:
    """The places that the policy of a directory was trained for; () if its files do not say."""
    own = hub.read_json(pathlib.Path(directory) / CONFIG).get("jax_unmask", {})
    found = own.get("made_for", [])
    try:
        return tuple(MadeFor(**each) for each in ([found] if isinstance(found, dict) else found))
    except TypeError as error:
        raise ValueError(f"{pathlib.Path(directory) / CONFIG}: made_for: {error}") from error


def load_policy(directory: str | pathlib.Path) -> tuple[LearnedPolicy, Params]:
    """The policy that this package or the PyTorch reference saved, and its params (float32).

    The reference does not record how its policies act; they get the way it evaluates them:
    Bernoulli with arg-max fallback, full context, temperature 1. Use `dataclasses.replace` and the
    params to choose another.

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
    try:
        policy, settings = _read_config(directory)
    except (TypeError, AttributeError) as error:  # Fields of other names or types.
        raise ValueError(f"{directory / CONFIG} is not the config of a policy: {error}") from error
    return policy, {"network": _read_network(policy, directory / WEIGHTS), **settings}


def save_policy(
    directory: str | pathlib.Path,
    policy: LearnedPolicy,
    params: Params,
    made_for: Sequence[MadeFor] = (),
) -> None:
    """Writes a policy, over another one if the directory has one; the inverse of `load_policy`.

    `made_for` is kept beside it, see `made_for`.

    Raises:
        ValueError: temperature or scale differs between rows.
    """
    for name in _SETTINGS:
        if np.ndim(params.get(name)):
            raise ValueError(
                f"{name} has shape {np.shape(params[name])}; save a policy with one {name} for all "
                "rows"
            )
    flat = flatten_dict(params["network"])
    tensors = {
        PREFIX + spec.name: spec.write(flat[spec.path])
        for spec in tensor_specs(policy.network, flat)
    }
    tensors |= {PREFIX + name: value for name, value in buffers(policy.network).items()}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / calibration.FILE).unlink(missing_ok=True)  # They are those of other weights.
    with replacing(directory / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    fields = _config_fields(policy, params)
    places = [dataclasses.asdict(each) for each in made_for]
    if places:
        fields["jax_unmask"]["made_for"] = places if len(places) > 1 else places[0]
    atomic_write(directory / CONFIG, json.dumps(fields, indent=2) + "\n")


def settings_of(policy: LearnedPolicy, params: Params) -> dict[str, Any]:
    """Settings of a policy, by the names of `parse_policy`."""
    fields = (field.name for field in dataclasses.fields(policy) if field.name != "network")
    return {
        **{name: getattr(policy, name) for name in fields},
        **{name: float(np.asarray(params[name])) for name in _SETTINGS if name in params},
    }


def _read_config(directory: pathlib.Path) -> tuple[LearnedPolicy, Params]:
    """The policy, and its temperature and scale."""
    path = directory / CONFIG
    fields = hub.read_json(path)
    own = {"distribution": "bernoulli_argmax", **fields.get("jax_unmask", {})}
    network = own.pop("network", {})
    own.pop("made_for", None)
    settings = {name: own.pop(name) for name in _SETTINGS if name in own}
    kind = str(fields.get("policy_type"))
    try:
        make, names = _REFERENCE[kind] if kind in _REFERENCE else (NETWORKS(kind), {})
    except ValueError as error:
        listed = ", ".join(map(repr, _REFERENCE))
        raise ValueError(
            f"{path}: policy_type={kind!r} is none of {listed}, and no network either ({error})"
        ) from error
    missing = [name for name in names if name not in fields]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    given = {ours: fields[theirs] for theirs, ours in names.items()} | network
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in given.items()}
    if any(field.name == "denoiser" for field in dataclasses.fields(make)):
        denoiser = _denoiser_fields(directory, fields)
        given["denoiser"] = families.of(denoiser).config_from_hf(denoiser)
    try:
        check_values(make, given)
        check_values(LearnedPolicy, own)
        for name, value in settings.items():
            if not isinstance(value, int | float):
                raise SettingError(name, value, "it is no number", "Correct it")
        network = make(**given)
    except SettingError as error:
        raise ValueError(f"{path}: {error}") from error
    policy = LearnedPolicy(network, **own)
    return policy, policy.params(**settings)


def _denoiser_fields(directory: pathlib.Path, fields: dict[str, Any]) -> dict[str, Any]:
    """The denoiser's config.json: written out in place, or a path relative to the policy."""
    value = fields.get(_DENOISER)
    if isinstance(value, dict):
        return value
    if isinstance(value, str) and (directory / value).is_file():
        return hub.read_json(directory / value)
    raise ValueError(
        f"{directory / CONFIG}: {_DENOISER}={value!r} is neither a file nor an object with the "
        "fields of the denoiser's config.json"
    )


def _config_fields(policy: LearnedPolicy, params: Params) -> dict[str, Any]:
    network = policy.network
    kind, names = NETWORKS.name_of(type(network)), {}
    for name, (make, settings) in _REFERENCE.items():
        if type(network) is make:
            kind, names = name, settings
    fields: dict[str, Any] = {"policy_type": kind}
    denoiser = getattr(network, "denoiser", None)
    if denoiser is not None:
        fields[_DENOISER] = families.to_hf(denoiser)
    fields |= {theirs: getattr(network, ours) for theirs, ours in names.items()}
    extra = {
        field.name: getattr(network, field.name)
        for field in dataclasses.fields(network)
        if field.name not in {*names.values(), "denoiser"}
        and getattr(network, field.name) != field.default
    }
    return {**fields, "jax_unmask": {**settings_of(policy, params), "network": extra}}


def _read_network(policy: LearnedPolicy, path: pathlib.Path) -> Params:
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise FloatingPointError(
            f"{path}: tensor {broken[0]} holds numbers that are not finite; the file is damaged, "
            "or training diverged"
        )
    shapes = flatten_dict(jax.eval_shape(policy.init_params, jax.random.key(0))["network"])
    specs = tensor_specs(policy.network, shapes)
    wanted = {PREFIX + spec.name: spec for spec in specs}
    constants = {PREFIX + name: value for name, value in buffers(policy.network).items()}
    problems = [f"missing: {name}" for name in wanted if name not in tensors]
    problems += [
        f"unexpected: {name}" for name in tensors if name not in wanted and name not in constants
    ]
    for name, spec in wanted.items():
        expected = spec.file_shape(shapes[spec.path].shape)
        if name in tensors and tensors[name].shape != expected:
            problems.append(f"shape of {name}: {tensors[name].shape}, expected {expected}")
    for name, value in constants.items():
        found = tensors.get(name, value)
        if found.shape != value.shape or not np.allclose(found, value, rtol=1e-3):
            problems.append(f"values of {name}: not those of rotary base 10000")
    if problems:
        raise ValueError(f"{path} does not fit {CONFIG} beside it:\n  " + "\n  ".join(problems))
    # Tensors that share a parameter are joined along its last axis, in the order of the specs.
    pieces: dict[tuple[str, ...], list[np.ndarray]] = {}
    for spec in specs:
        value = tensors[PREFIX + spec.name].astype(np.float32)
        pieces.setdefault(spec.path, []).append(value.T if spec.transpose else value)
    joined = {path: np.concatenate(values, axis=-1) for path, values in pieces.items()}
    return unflatten_dict({path: jnp.asarray(value) for path, value in joined.items()})
